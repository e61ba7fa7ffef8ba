//! `cargo xtask probe`: what limpid finds on other kernels.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::Machine;
use super::{BOOT, Kernels, Patience, executables, quoted};
use crate::daemon::{self, Profile};

/// It takes two seconds.
const PATIENCE: Patience = Patience {
    boot: BOOT,
    silence: Duration::from_secs(60),
    whole: Duration::from_secs(300),
};

/// Shows what `limpid probe` says, given `arguments`, on each kernel.
pub(crate) fn probe(kernels: &Kernels, arguments: &[OsString]) -> Result<()> {
    let kernels = kernels.provide()?;
    let machine = Machine::provide(kernels.first().context("no kernel is named (--kernel)")?)?;
    let limpid = executables::stripped(&daemon::build(Profile::Dev)?, "limpid")?;

    let mut job = format!("{} probe", quoted(limpid.as_os_str()));
    for argument in arguments {
        job.push(' ');
        job += &quoted(argument);
    }
    for kernel in &kernels {
        println!("{}", machine.output(kernel, &job, PATIENCE)?);
    }
    Ok(())
}
