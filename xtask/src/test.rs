//! `cargo xtask test`: the unit tests of every crate, and the integration tests.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::{Result, ensure};
use clap::Args;

use crate::daemon::{self, Profile};
use crate::step::{self, step};
use crate::tally::Tally;
use crate::{programs, workspace};

/// Which packages' tests cargo is asked for, always: which features its dependencies get depends on it, and
/// others would have everything compiled once more.
pub(crate) const PACKAGES: &str = "--workspace";

/// Which tests a command is about.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Selection {
    /// Run only tests whose name contains one of these
    pub(crate) filters: Vec<String>,

    /// Run only these test programs: a file of tests/tests by its name, or "kernel". May be given
    /// several times
    #[arg(long = "test", value_name = "PROGRAM")]
    pub(crate) files: Vec<String>,

    /// Options of the test harness, such as --nocapture
    #[arg(last = true)]
    pub(crate) harness: Vec<OsString>,
}

/// Runs the selected tests on the running kernel.
///
/// Without root, or without one of the programs that the integration tests start, those that need
/// it report that they were ignored, and why. Results are added to `total`.
pub(crate) fn test(selection: &Selection, total: &mut Tally) -> Result<()> {
    if let Err(error) = programs::install() {
        eprintln!("    going on without: {error:#}");
    }
    let limpid = daemon::build(Profile::Dev)?;

    let mut tally = Tally::default();
    let mut clean = true;
    for filter in selection.rounds() {
        let named = filter.iter().map(OsStr::new);
        let named: Vec<&OsStr> = named
            .chain(selection.harness.iter().map(OsString::as_os_str))
            .collect();
        let mut cargo = workspace::cargo();
        cargo
            .args(["test", PACKAGES, "--no-fail-fast"])
            .args(selection.files.iter().flat_map(|file| ["--test", file]))
            .arg("--")
            .args(&named)
            .env("LIMPID_BIN", &limpid);
        clean &= step("tests", || run_counting(&mut cargo, &mut tally))?;
    }

    println!("\n{tally}");
    let any = tally.any();
    total.add(tally);
    ensure!(clean, "a test failed, or could not be compiled (see above)");
    ensure!(any, "no test matches {}", selection.filters.join(" "));
    Ok(())
}

impl Selection {
    /// A harness may know no more than one filter at a time.
    pub(crate) fn rounds(&self) -> Vec<&[String]> {
        match &self.filters[..] {
            [] => vec![&[]],
            some => some.chunks(1).collect(),
        }
    }
}

/// Runs `cargo test`, showing what it says and adding its results up. False if a test failed.
fn run_counting(command: &mut Command, tally: &mut Tally) -> Result<bool> {
    let status = step::lines(command, |line| {
        println!("{line}");
        tally.read(line);
    })?;
    Ok(status.success())
}
