//! `cargo xtask bench`: limpid beside others, measured.

use std::ffi::OsString;

use anyhow::Result;

use crate::daemon::{self, Profile};
use crate::step::{run, step};
use crate::{programs, workspace};

/// Builds limpid and the benchmark as they would be shipped, installs the others, and measures.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    programs::install_for_bench()?;
    let limpid = daemon::build(Profile::Release)?;
    step("compiling the benchmark", || {
        run(workspace::cargo().arg("build").args(BENCH))
    })?;
    run(workspace::cargo()
        .args(["run", "--quiet"])
        .args(BENCH)
        .arg("--")
        .args(arguments)
        .env("LIMPID_BIN", limpid))
}

const BENCH: [&str; 3] = ["--package", "limpid-bench", "--release"];
