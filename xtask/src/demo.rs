//! `cargo xtask demo`: the whole path on real traffic, in namespaces of its own.

use std::ffi::OsString;

use anyhow::Result;

use crate::daemon::{self, Profile};
use crate::step::{run, step};
use crate::{programs, workspace};

/// Builds limpid and everything around it, and shows it.
///
/// In the profile of the tests unless asked otherwise: it compiles in half the time, and what the
/// demo shows is moved by the BPF programs, which are optimised either way.
pub(crate) fn demo(profile: Profile, arguments: &[OsString]) -> Result<()> {
    programs::install()?;
    let limpid = daemon::build(profile)?;
    step("compiling the demo", || {
        run(workspace::cargo()
            .arg("build")
            .args(DEMO)
            .args(["--profile", profile.name()]))
    })?;
    run(workspace::cargo()
        .args(["run", "--quiet"])
        .args(DEMO)
        .args(["--profile", profile.name()])
        .arg("--")
        .args(arguments)
        .env("LIMPID_BIN", limpid))
}

const DEMO: [&str; 4] = ["--package", "limpid-tests", "--bin", "limpid-demo"];
