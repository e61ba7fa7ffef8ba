//! Finding a Rust compiler that can compile for BPF.
//!
//! `bpfel-unknown-none` comes without a compiled `core`, so the compiler needs the source of its
//! own standard library. Which channel it is of matters little: `RUSTC_BOOTSTRAP` unlocks
//! `-Z build-std` in a stable one.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt;
use crate::step::{output, step};
use crate::workspace::forget_host_toolchain;

/// Names the `rustc` to use, before anything that would be found.
pub(crate) const OVERRIDE: &str = "LIMPID_BPF_RUSTC";

/// A compiler that has its library's source beside it.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// Who brought it.
    origin: Origin,
    /// The folder that holds its `bin` and `lib`.
    sysroot: PathBuf,
    /// As `rustc -vV` gives it under `release`.
    version: String,
    /// The major version of its LLVM, whose bitcode the linker must be able to read.
    pub(crate) llvm: u32,
}

/// Where a compiler comes from, which decides how more of it (clippy) is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The environment named it.
    Override,
    /// The rustup toolchain of this name.
    Rustup(String),
    /// The package `rustc-web`.
    Debian,
}

/// Every compiler that was looked at, best first, and why it will not do if it will not.
pub(crate) fn candidates() -> Vec<(Origin, Result<Compiler>)> {
    if let Some(rustc) = env::var_os(OVERRIDE) {
        return vec![(Origin::Override, Compiler::probe(&rustc, Origin::Override))];
    }
    let rustup = rustup_toolchains().into_iter().map(|(name, path)| {
        let origin = Origin::Rustup(name);
        (
            origin.clone(),
            Compiler::probe(path.join("bin/rustc").as_os_str(), origin),
        )
    });
    let debian = Path::new("/usr/bin/rustc");
    let debian = debian.exists().then(|| {
        (
            Origin::Debian,
            Compiler::probe(debian.as_os_str(), Origin::Debian),
        )
    });
    rustup.chain(debian).collect()
}

impl Compiler {
    fn probe(rustc: &OsStr, origin: Origin) -> Result<Self> {
        let ask = |arguments: &[&str]| {
            output(forget_host_toolchain(&mut Command::new(rustc)).args(arguments))
        };
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim_end());
        let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
        ensure!(
            core.exists(),
            "it has no library source (no {})",
            core.display()
        );

        let verbose = ask(&["-vV"])?;
        let field = |name| verbose.lines().find_map(|line| line.strip_prefix(name));
        let version = field("release: ")
            .context("it does not say which version it is")?
            .to_owned();
        let llvm = field("LLVM version: ")
            .and_then(|version| version.split('.').next()?.parse().ok())
            .context("it does not say which LLVM it has")?;
        Ok(Self {
            origin,
            sysroot,
            version,
            llvm,
        })
    }

    /// A program that came with it, or nothing.
    fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.sysroot.join("bin").join(name)).filter(|path| path.exists())
    }

    /// Installs this compiler's clippy if it came without.
    pub(crate) fn provide_clippy(&self) -> Result<()> {
        if self.program("cargo-clippy").is_some() && self.program("clippy-driver").is_some() {
            return Ok(());
        }
        match &self.origin {
            Origin::Override => bail!("the compiler {OVERRIDE} names has no clippy beside it"),
            Origin::Rustup(name) => {
                let add = ["component", "add", "clippy", "--toolchain", name];
                step("adding clippy to the toolchain for BPF", || {
                    output(Command::new("rustup").args(add))
                })?;
                Ok(())
            }
            Origin::Debian => apt::install(&["rust-web-clippy"]),
        }
    }

    /// A cargo command that compiles the BPF crate's way: with this compiler, whatever toolchain
    /// runs xtask, and with unstable options. `program` is `cargo` or one of its plugins.
    pub(crate) fn cargo(&self, program: &str) -> Command {
        // A toolchain put together by hand may have no cargo; any will do then.
        let mut command = Command::new(self.program(program).unwrap_or_else(|| program.into()));
        forget_host_toolchain(&mut command)
            .env("RUSTC", self.sysroot.join("bin/rustc"))
            .env("RUSTC_BOOTSTRAP", "1");
        for tool in ["cargo", "rustdoc"] {
            if let Some(path) = self.program(tool) {
                command.env(tool.to_uppercase(), path);
            }
        }
        command
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rustc {} ({}, LLVM {})",
            self.version, self.origin, self.llvm
        )
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Override => write!(f, "named by {OVERRIDE}"),
            Self::Rustup(name) => write!(f, "rustup's {name}"),
            Self::Debian => f.write_str("Debian's rustc-web"),
        }
    }
}

/// The installed toolchains. None where there is no rustup.
fn rustup_toolchains() -> Vec<(String, PathBuf)> {
    let list = output(Command::new("rustup").args(["toolchain", "list", "-v"]));
    parse_toolchains(&list.unwrap_or_default())
}

/// Names and folders out of `rustup toolchain list -v`, the active one first.
fn parse_toolchains(list: &str) -> Vec<(String, PathBuf)> {
    let mut lines: Vec<&str> = list.lines().collect();
    lines.sort_by_key(|line| !line.contains("active"));
    lines
        .into_iter()
        .filter_map(|line| {
            let name = line.split_whitespace().next()?;
            let folder = line.get(line.find('/')?..)?;
            Some((name.to_owned(), PathBuf::from(folder)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_toolchain_comes_first() {
        let list = "\
nightly-x86_64-unknown-linux-gnu\t/home/me/.rustup/toolchains/nightly-x86_64-unknown-linux-gnu
stable-x86_64-unknown-linux-gnu (active, default) /home/me/.rustup/toolchains/stable
patched /home/me/src/my rust/stage1
";
        let found = parse_toolchains(list);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "stable-x86_64-unknown-linux-gnu",
                "nightly-x86_64-unknown-linux-gnu",
                "patched"
            ]
        );
        assert_eq!(found[0].1, Path::new("/home/me/.rustup/toolchains/stable"));
        assert_eq!(found[2].1, Path::new("/home/me/src/my rust/stage1"));
    }

    #[test]
    fn a_machine_without_rustup_has_no_toolchains() {
        assert!(parse_toolchains("").is_empty());
        assert!(parse_toolchains("no installed toolchains\n").is_empty());
    }
}
