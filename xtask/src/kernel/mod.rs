//! Other kernels than the running one: each boots under QEMU with this machine's files in sight, runs
//! a script as root, and is gone.
//!
//! In the order of a run: `package` finds the kernel (in Debian's `archive`), `modules` and
//! `initramfs` make what it starts from, `emulator` and `boot` start and `watch` it, `guest/` is what
//! it does before and after its `job`. `executables`, `tests` and `probe` are limpid there, or (a
//! `place` is either) on the running kernel; `docs` tells of it.

mod archive;
mod boot;
mod docs;
mod emulator;
mod executables;
mod initramfs;
mod job;
mod modules;
mod package;
mod place;
mod probe;
mod tests;
mod watch;

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use self::boot::Machine;
use self::package::Kernel;
use self::place::Place;
pub(crate) use self::probe::probe;
pub(crate) use self::tests::test;
use self::watch::Patience;

/// Emulated, a kernel is up after some seconds; a machine that does other things as well may take
/// longer.
const BOOT: Duration = Duration::from_secs(120);

/// Which kernels a command is about.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Kernels {
    /// A kernel to boot under QEMU, by its series: 5.10, 6.1 or 6.12; the newest of it that Debian
    /// has. Or "running": the one that runs already. May be given several times
    #[arg(long = "kernel", value_name = "SERIES")]
    series: Vec<String>,

    /// Any other kernel to boot: its image …
    #[arg(long = "kernel-image", value_name = "PATH", requires = "modules")]
    image: Option<PathBuf>,

    /// … and the folder of its modules, as /lib/modules/RELEASE
    #[arg(long = "kernel-modules", value_name = "PATH", requires = "image")]
    modules: Option<PathBuf>,
}

/// The one that is not booted.
const RUNNING: &str = "running";

impl Kernels {
    /// Those that every change is tested on, beside the running one.
    pub(crate) fn of_debian() -> Self {
        Self {
            series: ["5.10", "6.1", "6.12"].map(str::to_owned).into(),
            ..Self::default()
        }
    }

    /// Whether none was named.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty() && self.image.is_none()
    }

    /// Finds, or downloads, each of them, and something to boot them.
    fn provide(&self) -> Result<Ready> {
        ensure!(!self.is_empty(), "no kernel is named (--kernel)");
        let series = self.series.iter().map(|series| match series.as_str() {
            RUNNING => Ok(None),
            series => Kernel::of_debian(series).map(Some),
        });
        let mut kernels = series.collect::<Result<Vec<_>>>()?;
        if let (Some(image), Some(modules)) = (&self.image, &self.modules) {
            kernels.push(Some(Kernel::given(image, modules)?));
        }
        let first = kernels.iter().flatten().next();
        let machine = first.map(Machine::provide).transpose()?;
        Ok(Ready { machine, kernels })
    }
}

/// Kernels that can be used, in the order they were named.
struct Ready {
    /// What boots those that do not run already.
    machine: Option<Machine>,
    /// `None` is the running one.
    kernels: Vec<Option<Kernel>>,
}

impl Ready {
    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.kernels.iter().filter_map(|kernel| match kernel {
            None => Some(Place::Here),
            Some(kernel) => Some(Place::Guest(self.machine.as_ref()?, kernel)),
        })
    }
}

/// `cargo xtask boot`: runs a command on each kernel, one after another, and shows what it says.
pub(crate) fn boot(kernels: &Kernels, command: &[String]) -> Result<()> {
    let ready = kernels.provide()?;
    let job = job::in_folder(&env::current_dir()?, &command.join(" "))?;
    let mut failed = Vec::new();
    for place in ready.places() {
        let code = place.run(&job, tests::PATIENCE, |line| println!("{line}"))?;
        if code != 0 {
            failed.push(format!("{} ended with {code}", place.name()?));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

/// Everything that is downloaded or made for them.
fn folder() -> PathBuf {
    crate::workspace::kernels()
}
