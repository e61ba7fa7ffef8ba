//! Somewhere to run a script as root: on the running kernel, or on one that is booted for it.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::boot::Machine;
use super::emulator::Accelerator;
use super::package::Kernel;
use super::watch::Patience;
use crate::step;

/// Where limpid is tried.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// This machine.
    Here,
    /// A guest of it.
    Guest(&'a Machine, &'a Kernel),
}

impl Place<'_> {
    /// What to call its kernel.
    pub(super) fn name(self) -> Result<String> {
        match self {
            Self::Here => {
                let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
                Ok(release.trim().to_owned())
            }
            Self::Guest(_, kernel) => Ok(kernel.release.clone()),
        }
    }

    /// Whether its instructions are executed by an emulator.
    pub(super) fn is_emulated(self) -> bool {
        match self {
            Self::Here => false,
            Self::Guest(machine, _) => machine.accelerator() == Accelerator::Emulation,
        }
    }

    /// Runs a script and returns its exit code. Each line of its output is given to `line` at once.
    ///
    /// Of a guest, an error is the kernel's failure to boot, or to get to the script's end within
    /// `patience`; here, nothing watches but the tests themselves.
    pub(super) fn run(
        self,
        script: &str,
        patience: Patience,
        line: impl FnMut(&str),
    ) -> Result<i32> {
        match self {
            Self::Here => {
                let mut shell = Command::new("sh");
                shell.args(["-c", script]).stdin(Stdio::null());
                let status = step::lines(&mut shell, line)?;
                status.code().context("the shell was ended by a signal")
            }
            Self::Guest(machine, kernel) => machine.run(kernel, script, patience, line),
        }
    }

    /// The same for a script whose output is wanted as a whole, and which is to succeed.
    pub(super) fn output(self, script: &str, patience: Patience) -> Result<String> {
        let mut output = String::new();
        let code = self.run(script, patience, |line| {
            output.push_str(line);
            output.push('\n');
        })?;
        ensure!(
            code == 0,
            "on kernel {} the script ended with {code}:\n{output}",
            self.name()?
        );
        Ok(output)
    }
}
