//! Finding or building `bpf-linker` for a compiler.
//!
//! The compiler hands its linker LLVM bitcode, and bitcode can be read by the same or a newer LLVM
//! only. So the linker belongs to a compiler, and is built again when a newer one comes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::compiler::Compiler;
use crate::step::{output, run, step};
use crate::{apt, workspace};

/// Names the `bpf-linker` to use, before anything that would be built.
pub(crate) const OVERRIDE: &str = "LIMPID_BPF_LINKER";

/// The version that is built.
const VERSION: &str = "0.13.0";

/// The LLVM versions that it can be built against.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// A linker that understands what `compiler` writes; it is built if it has to be.
pub(crate) fn ensure_for(compiler: &Compiler) -> Result<PathBuf> {
    if let Some(path) = env::var_os(OVERRIDE).map(PathBuf::from) {
        ensure!(
            works(&path),
            "{OVERRIDE} names {}, which does not run",
            path.display()
        );
        return Ok(path);
    }
    let linker = workspace::tools().join("bin/bpf-linker");
    let stamp = workspace::tools().join("bpf-linker.stamp");
    let built_with = fs::read_to_string(&stamp)
        .ok()
        .as_deref()
        .and_then(parse_stamp);
    if built_with.is_some_and(|llvm| llvm >= compiler.llvm) && works(&linker) {
        return Ok(linker);
    }

    let llvm = llvm_for(compiler)?;
    step(
        &format!("building bpf-linker {VERSION} with LLVM {llvm}"),
        || {
            run(workspace::cargo()
                .args(["install", "bpf-linker", "--quiet", "--locked", "--force"])
                .args(["--version", &format!("={VERSION}")])
                .args([
                    "--no-default-features",
                    "--features",
                    &format!("llvm-{llvm}"),
                ])
                .arg("--root")
                .arg(workspace::tools())
                .env("LLVM_PREFIX", prefix(llvm)))
        },
    )?;
    fs::write(&stamp, format!("{VERSION} llvm {llvm}\n"))
        .with_context(|| format!("could not write {}", stamp.display()))?;
    Ok(linker)
}

/// An LLVM whose development files are there, or can be installed, and that is new enough.
fn llvm_for(compiler: &Compiler) -> Result<u32> {
    let fitting = || LLVMS.filter(|&llvm| llvm >= compiler.llvm);
    if let Some(present) = fitting().find(|&llvm| has_development_files(llvm)) {
        return Ok(present);
    }
    let wanted = fitting()
        .find(|&llvm| apt::offers(&package(llvm)))
        .or_else(|| fitting().next())
        .with_context(|| format!("bpf-linker {VERSION} knows no LLVM {}", compiler.llvm))?;
    apt::install(&[&package(wanted)])
        .with_context(|| format!("building bpf-linker needs LLVM {wanted}'s development files"))?;
    Ok(wanted)
}

fn package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

fn prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn has_development_files(llvm: u32) -> bool {
    prefix(llvm).join("include/llvm-c/Core.h").exists()
        && prefix(llvm).join("lib/libLLVM.so").exists()
}

/// It may be there and not run: the LLVM that it is linked to can have been removed.
fn works(linker: &Path) -> bool {
    output(Command::new(linker).arg("--version")).is_ok()
}

/// The LLVM version out of a stamp, if it is one of the version that is wanted now.
fn parse_stamp(stamp: &str) -> Option<u32> {
    stamp
        .trim_end()
        .strip_prefix(VERSION)?
        .strip_prefix(" llvm ")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_another_version_counts_for_nothing() {
        assert_eq!(parse_stamp(&format!("{VERSION} llvm 22\n")), Some(22));
        assert_eq!(parse_stamp("0.12.0 llvm 22\n"), None);
        assert_eq!(parse_stamp(""), None);
    }
}
