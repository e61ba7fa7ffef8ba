//! `cargo xtask test --kernel`: the tests that ask something of a kernel, asked of others.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::boot::Machine;
use super::emulator::Accelerator;
use super::executables::{self, TestProgram};
use super::{BOOT, Kernels, Patience, quoted};
use crate::daemon::{self, Profile};
use crate::step::step;
use crate::tally::Tally;
use crate::{programs, workspace};

/// A test ends itself after 90 s, of which an emulated machine is given several times as much.
pub(super) const PATIENCE: Patience = Patience {
    boot: BOOT,
    silence: Duration::from_secs(10 * 60),
    whole: Duration::from_secs(3 * 60 * 60),
};

/// Multiplies the tests' time limits and divides their sizes.
const SCALE: &str = "LIMPID_TEST_SCALE";

/// Its value where a processor is emulated: the tests take twice as long there, and more where other
/// work is being done.
const EMULATED: &str = "4";

/// Runs the integration tests and those of `proxy-user --test kernel` on each kernel: those whose
/// names contain one of `filters`, or all. `harness` are options for the test harness.
pub(crate) fn test(kernels: &Kernels, filters: &[String], harness: &[OsString]) -> Result<()> {
    if let Err(error) = programs::install() {
        eprintln!("    going on without: {error:#}");
    }
    let kernels = kernels.provide()?;
    let machine = Machine::provide(kernels.first().context("no kernel is named")?)?;
    let limpid = executables::stripped(&daemon::build(Profile::Dev)?, "limpid")?;
    let mut tests = executables::build()?;
    for test in &mut tests {
        test.path = executables::stripped(&test.path, &test.name)?;
    }
    let job = job(&limpid, &scale(&machine), &tests, filters, harness);

    let mut summary = String::new();
    let mut clean = true;
    let mut any = false;
    for kernel in &kernels {
        let mut tally = Tally::default();
        let code = step(&format!("tests on kernel {}", kernel.name), || {
            machine.run(kernel, &job, PATIENCE, |line| {
                println!("{line}");
                tally.read(line);
            })
        });
        summary += &format!("\nkernel {}\n{tally}\n", kernel.name);
        match code {
            Ok(0) => {}
            Ok(_) => {
                clean = false;
                if !tally.any_failed() {
                    summary += "a test program did not get to its end\n";
                }
            }
            Err(error) => {
                clean = false;
                summary += &format!("{error:#}\n");
            }
        }
        any |= tally.any();
    }

    println!("{summary}");
    ensure!(clean, "a test failed, or could not be run (see above)");
    ensure!(any, "no test matches {}", filters.join(" "));
    Ok(())
}

/// How much slower than this machine the guests are, in terms of the tests.
fn scale(machine: &Machine) -> OsString {
    let default = match machine.accelerator() {
        Accelerator::Kvm => "1",
        Accelerator::Emulation => EMULATED,
    };
    env::var_os(SCALE).unwrap_or_else(|| default.into())
}

/// What a guest does: each test program, once for each filter, for a harness may know no more than
/// one at a time.
fn job(
    limpid: &Path,
    scale: &OsStr,
    tests: &[TestProgram],
    filters: &[String],
    harness: &[OsString],
) -> String {
    let rounds: Vec<&[String]> = match filters {
        [] => vec![&[]],
        some => some.chunks(1).collect(),
    };
    let mut job = format!(
        "export LIMPID_BIN={} {SCALE}={}\ncd {}\nfailed=0\n",
        quoted(limpid.as_os_str()),
        quoted(scale),
        quoted(workspace::root().as_os_str())
    );
    for filter in rounds {
        for test in tests {
            job += &format!("echo {}\n", quoted(OsStr::new(&test.name)));
            job += &quoted(test.path.as_os_str());
            let filter = filter.iter().map(OsStr::new);
            for argument in filter.chain(harness.iter().map(OsString::as_os_str)) {
                job.push(' ');
                job += &quoted(argument);
            }
            job += " || failed=1\n";
        }
    }
    job + "exit $failed\n"
}

#[cfg(test)]
mod of_the_job {
    use super::*;

    #[test]
    fn each_program_is_run_once_for_each_filter() {
        let tests = [TestProgram {
            name: "header".into(),
            path: "/t/header".into(),
        }];
        let limpid = Path::new("/t/limpid");
        let filters = ["v1".to_owned(), "v2".to_owned()];
        let harness = [OsString::from("--nocapture")];
        let job = job(limpid, OsStr::new("4"), &tests, &filters, &harness);
        assert!(job.starts_with("export LIMPID_BIN='/t/limpid' LIMPID_TEST_SCALE='4'\n"));
        for filter in filters {
            let line = format!("'/t/header' '{filter}' '--nocapture' || failed=1\n");
            assert!(job.contains(&line));
        }
        assert!(job.ends_with("exit $failed\n"));
    }
}
