//! `cargo xtask test --kernel`: the tests that ask something of a kernel, asked of others.

use std::env;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::docs::{Page, Tested};
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
/// What each offers and how it went is written to target/kernels/kernels.md, unless tests were selected
/// by name; to docs/kernels.md too, if it is to be `kept`. Results are added to `total`.
pub(crate) fn test(
    kernels: &Kernels,
    selection: &Selection,
    kept: bool,
    total: &mut Tally,
) -> Result<()> {
    if let Err(error) = programs::install() {
        eprintln!("    going on without: {error:#}");
    }
    let ready = kernels.provide()?;
    let limpid = executables::stripped(&daemon::build(Profile::Dev)?, "limpid")?;
    let tests = Tests {
        limpid: &limpid,
        programs: &executables::build(&selection.files)?,
        selection,
    };

    let mut problems = 0;
    let mut page = Page::new(tests.programs);
    for place in ready.places() {
        match run(place, &tests) {
            Ok(tested) => {
                problems += usize::from(tested.problem.is_some());
                page.add(tested);
            }
            Err(error) => {
                println!("kernel {}: {error:#}\n", place.name()?);
                problems += 1;
            }
        }
    }

    println!("{}", page.summary());
    let results = page.results();
    let any = results.any();
    if selection.filters.is_empty() {
        page.write(kept)?;
    }
    total.add(results);
    ensure!(
        problems == 0,
        "not all is well on {problems} of the kernels (see above)"
    );
    ensure!(any, "no test matches {}", selection.filters.join(" "));
    Ok(())
}

/// Asks limpid what a kernel offers, and runs the tests there.
fn run(place: Place<'_>, tests: &Tests<'_>) -> Result<Tested> {
    let report = probe::report(place, tests.limpid)?;
    let kernel = &report.kernel;
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
    println!("\nkernel {kernel}\n{tally}");
    println!("{}\n", problem.as_deref().unwrap_or_default());
    Ok(Tested {
        report,
        tally,
        problem,
    })
}

/// How much slower than this machine a place is, in terms of the tests.
fn scale(place: Place<'_>) -> OsString {
    let default = if place.is_emulated() { EMULATED } else { "1" };
    env::var_os(SCALE).unwrap_or_else(|| default.into())
}
