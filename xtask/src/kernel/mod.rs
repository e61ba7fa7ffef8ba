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

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::boot::Machine;
use self::package::{Choice, Kernel};
pub(crate) use self::probe::probe;
pub(crate) use self::tests::test;
use self::watch::Patience;

/// Emulated, a kernel is up after some seconds; a machine that does other things as well may take
/// longer.
const BOOT: Duration = Duration::from_secs(120);

/// Which kernels a command is about.
#[derive(Clone, Debug, Args)]
pub(crate) struct Kernels {
    /// A kernel to boot under QEMU, by its series: 5.10, 6.1 or 6.12; the newest of it that Debian
    /// has. May be given several times
    #[arg(long = "kernel", value_name = "SERIES")]
    series: Vec<String>,

    /// Any other kernel to boot: its image …
    #[arg(long = "kernel-image", value_name = "PATH", requires = "modules")]
    image: Option<PathBuf>,

    /// … and the folder of its modules, as /lib/modules/RELEASE
    #[arg(long = "kernel-modules", value_name = "PATH", requires = "image")]
    modules: Option<PathBuf>,
}

impl Kernels {
    /// Whether the running kernel is meant.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty() && self.image.is_none()
    }

    /// Finds, or downloads, each of them, and something to boot them.
    fn provide(&self) -> Result<(Machine, Vec<Kernel>)> {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "kernels are booted on x86-64 alone"
        );
        let image = self.image.clone().zip(self.modules.clone());
        let kernels: Vec<Kernel> = self
            .series
            .iter()
            .cloned()
            .map(Choice::Series)
            .chain(image.map(|(image, modules)| Choice::Image { image, modules }))
            .map(|choice| Kernel::provide(&choice))
            .collect::<Result<_>>()?;
        let first = kernels.first().context("no kernel is named (--kernel)")?;
        Ok((Machine::provide(first)?, kernels))
    }
}

/// `cargo xtask boot`: runs a command on each kernel, one after another, and shows what it says.
pub(crate) fn boot(kernels: &Kernels, command: &[String]) -> Result<()> {
    let (machine, kernels) = kernels.provide()?;
    let job = job::in_folder(&env::current_dir()?, &command.join(" "))?;
    let mut failed = Vec::new();
    for kernel in &kernels {
        let code = machine.run(kernel, &job, tests::PATIENCE, |line| println!("{line}"))?;
        if code != 0 {
            failed.push(format!("{} ended with {code}", kernel.release));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

/// Everything that is downloaded or made for them.
fn folder() -> PathBuf {
    crate::workspace::kernels()
}
