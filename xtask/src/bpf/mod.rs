//! The BPF object: a compiler and a linker for it, and the commands that compile or check
//! `proxy-ebpf` with them.

mod compiler;
mod linker;
mod setup;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use self::compiler::Compiler;
pub(crate) use self::setup::setup;
use crate::step::{run, step};
use crate::workspace;

/// What compiles and links BPF on this machine.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    linker: PathBuf,
}

impl Toolchain {
    /// A cargo command, or one of a plugin of cargo's, in the BPF crate's folder. The target and
    /// the flags are in that folder's `.cargo/config.toml`.
    pub(crate) fn cargo(&self, program: &str) -> Command {
        let mut command = self.compiler.cargo(program);
        command
            .current_dir(workspace::ebpf())
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env("CARGO_TARGET_DIR", workspace::bpf_target());
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, linked by {}", self.compiler, self.linker.display())
    }
}

/// Compiles the BPF programs to `target/bpf/limpid.bpf.o`.
///
/// Always optimised: the verifier judges what the compiler leaves over, so there is no other build
/// that one could debug instead.
pub(crate) fn build(toolchain: &Toolchain) -> Result<()> {
    step(
        &format!("compiling the BPF programs with {}", toolchain.compiler),
        || run(toolchain.cargo("cargo").args(["build", "--release"])),
    )?;

    let built = workspace::bpf_target().join("bpfel-unknown-none/release/limpid-bpf");
    let object = workspace::bpf_target().join("limpid.bpf.o");
    let new = fs::read(&built).with_context(|| format!("could not read {}", built.display()))?;
    // Left alone while it is the same: its time is what makes cargo build the daemon again.
    if fs::read(&object).ok().as_ref() != Some(&new) {
        fs::write(&object, new).with_context(|| format!("could not write {}", object.display()))?;
    }
    Ok(())
}
