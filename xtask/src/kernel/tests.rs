//! `cargo xtask test --kernel`: the tests that ask something of a kernel, asked of others.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::docs::{self, Tested};
use super::job::Tests;
use super::place::Place;
use super::{BOOT, Kernels, Patience, executables, probe};
use crate::daemon::{self, Profile};
use crate::step::step;
use crate::tally::Tally;
use crate::test::Selection;
use crate::{programs, workspace};

/// A test ends itself after 90 s, of which an emulated machine is given several times as much.
pub(super) const PATIENCE: Patience = Patience {
    boot: BOOT,
    silence: Duration::from_secs(10 * 60),
    whole: Duration::from_secs(3 * 60 * 60),
};

/// Multiplies the tests' time limits and divides their sizes.
pub(super) const SCALE: &str = "LIMPID_TEST_SCALE";

/// Its value where a processor is emulated: the tests take two to three times as long there, and more
/// where other work is being done.
const EMULATED: &str = "4";

/// Runs the selected tests, of the integration tests and of `proxy-user --test kernel`, on each kernel.
///
/// To `document` means to do so on the running kernel too, to ask `limpid probe` on each, and to write
/// docs/kernels.md.
pub(crate) fn test(kernels: &Kernels, selection: &Selection, document: bool) -> Result<()> {
    if let Err(error) = programs::install() {
        eprintln!("    going on without: {error:#}");
    }
    let (machine, kernels) = kernels.provide()?;
    let limpid = executables::stripped(&daemon::build(Profile::Dev)?, "limpid")?;
    let tests = Tests {
        limpid: &limpid,
        programs: &executables::build(&selection.files)?,
        selection,
    };

    let mut summary = String::new();
    let mut clean = true;
    let mut any = false;
    let mut documented = Vec::new();
    let guests = kernels.iter().map(|kernel| Place::Guest(&machine, kernel));
    for place in document.then_some(Place::Here).into_iter().chain(guests) {
        let kernel = place.name()?;
        let report = match document {
            true => Some(probe::report(place, &limpid)?),
            false => None,
        };
        let mut tally = Tally::default();
        let ended = step(&format!("tests on kernel {kernel}"), || {
            let script = tests.script(workspace::root(), &scale(place))?;
            place.run(&script, PATIENCE, |line| {
                println!("{line}");
                tally.read(line);
            })
        });
        let problem = match ended {
            Ok(0) => None,
            Ok(_) if tally.any_failed() => Some("tests failed".to_owned()),
            Ok(_) => Some("a test program did not get to its end".to_owned()),
            Err(error) => Some(format!("{error:#}")),
        };
        clean &= problem.is_none();
        any |= tally.any();
        let problem = problem.unwrap_or_default();
        writeln!(summary, "\nkernel {kernel}\n{tally}\n{problem}")?;
        documented.extend(report.map(|report| Tested { report, tally }));
    }

    println!("{summary}");
    if document {
        docs::write(&documented)?;
    }
    ensure!(clean, "a test failed, or could not be run (see above)");
    ensure!(any, "no test matches {}", selection.filters.join(" "));
    Ok(())
}

/// How much slower than this machine a place is, in terms of the tests.
fn scale(place: Place<'_>) -> OsString {
    let default = if place.is_emulated() { EMULATED } else { "1" };
    env::var_os(SCALE).unwrap_or_else(|| default.into())
}
