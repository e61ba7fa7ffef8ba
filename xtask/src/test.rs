//! `cargo xtask test`: the unit tests of every crate, then the integration tests.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::daemon::{self, Profile};
use crate::step::step;
use crate::tally::Tally;
use crate::{programs, workspace};

/// The package of the integration tests.
const INTEGRATION: &str = "limpid-tests";

/// Runs the tests whose names contain one of `filters`, or all. `harness` are options for the test
/// harness.
///
/// Without root, or without one of the programs that the integration tests start, those that need
/// it report that they were ignored, and why.
pub(crate) fn test(filters: &[String], harness: &[OsString]) -> Result<()> {
    if let Err(error) = programs::install() {
        eprintln!("    going on without: {error:#}");
    }
    let limpid = daemon::build(Profile::Dev)?;

    let mut tally = Tally::default();
    let mut clean = true;
    // A harness may know no more than one filter at a time.
    let rounds: Vec<&[String]> = if filters.is_empty() {
        vec![&[]]
    } else {
        filters.chunks(1).collect()
    };
    for filter in rounds {
        let named = filter
            .iter()
            .map(OsStr::new)
            .chain(harness.iter().map(OsString::as_os_str));
        let named: Vec<&OsStr> = named.collect();
        clean &= step("unit tests", || {
            let packages = ["--workspace", "--exclude", INTEGRATION];
            run_counting(
                workspace::cargo()
                    .args(TEST)
                    .args(packages)
                    .arg("--")
                    .args(&named),
                &mut tally,
            )
        })?;
        clean &= step("integration tests", || {
            let package = ["--package", INTEGRATION];
            run_counting(
                workspace::cargo()
                    .args(TEST)
                    .args(package)
                    .arg("--")
                    .args(&named)
                    .env("LIMPID_BIN", &limpid),
                &mut tally,
            )
        })?;
    }

    println!("\n{tally}");
    ensure!(clean, "a test failed, or could not be compiled (see above)");
    ensure!(tally.any(), "no test matches {}", filters.join(" "));
    Ok(())
}

const TEST: [&str; 2] = ["test", "--no-fail-fast"];

/// Runs `cargo test`, showing what it says and adding its results up. False if a test failed.
fn run_counting(command: &mut Command, tally: &mut Tally) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start cargo")?;
    let stdout = child.stdout.take().context("stdout was asked for")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("could not read what the tests say")?;
        println!("{line}");
        tally.read(&line);
    }
    Ok(child.wait()?.success())
}
