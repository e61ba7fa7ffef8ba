//! The daemon: building it with its BPF programs, and running it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::step::{run as run_command, step};
use crate::{bpf, workspace};

/// How the daemon is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to compile.
    Dev,
    /// Quick to run.
    Release,
}

impl Profile {
    pub(crate) fn from_release(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    /// Cargo's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }

    /// Cargo's name for its folder in the target directory.
    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds the BPF programs, then the daemon; returns where it is.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    bpf::build(&bpf::setup()?)?;
    step(
        &format!("compiling the daemon ({})", profile.name()),
        || {
            run_command(
                workspace::cargo()
                    .args(["build", "--package", "proxy-user", "--bin", "limpid"])
                    .args(["--profile", profile.name()]),
            )
        },
    )?;
    workspace::binary(profile.folder(), "limpid")
}

/// Builds limpid and becomes it, so that signals and the exit code are its own.
pub(crate) fn run(profile: Profile, arguments: &[OsString]) -> Result<()> {
    let binary = build(profile)?;
    let error = Command::new(&binary).args(arguments).exec();
    Err(error).with_context(|| format!("could not start {}", binary.display()))
}
