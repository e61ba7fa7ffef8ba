//! Choosing the toolchain for BPF, and installing one where there is none.

use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Toolchain, compiler, linker};
use crate::apt;
use crate::step::{output_within, step};

/// How long rustup may try to download before the next way is taken.
const DOWNLOAD: Duration = Duration::from_secs(120);

/// Debian's newest compiler, kept for building web browsers, with its library's source.
const DEBIAN: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];

/// What to type where nothing could be done.
const BY_HAND: &str = "\
Install a compiler that has its library's source, by one of:
    rustup component add rust-src
    apt-get install rustc-web rust-web-src cargo-web     (Debian, as root)
or name one:
    LIMPID_BPF_RUSTC=/path/to/rustc cargo xtask build";

/// The toolchain to compile BPF with. Changes nothing on the machine if all it needs is there.
pub(crate) fn setup() -> Result<Toolchain> {
    let mut refused = match choose() {
        Ok(toolchain) => return Ok(toolchain),
        Err(refused) => refused,
    };
    let mut attempts = Vec::new();
    // Who names a compiler wants that one or none.
    if env::var_os(compiler::OVERRIDE).is_none() {
        for install in [with_rustup, with_apt] {
            match install().map(|()| choose()) {
                Ok(Ok(toolchain)) => return Ok(toolchain),
                Ok(Err(still)) => refused = still,
                Err(error) => attempts.push(format!("{error:#}")),
            }
        }
    }
    refused.append(&mut attempts);
    bail!("no compiler for BPF.\n{}\n{BY_HAND}", refused.join("\n"))
}

/// The first compiler that will do and that has a linker; or what is wrong with each.
fn choose() -> Result<Toolchain, Vec<String>> {
    let mut refused = Vec::new();
    for (origin, probed) in compiler::candidates() {
        let equipped = probed.and_then(|compiler| {
            let linker = linker::ensure_for(&compiler)?;
            Ok(Toolchain { compiler, linker })
        });
        match equipped {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => refused.push(format!("{origin}: {error:#}")),
        }
    }
    Err(refused)
}

/// Adds the library's source to the active toolchain: a small download, and the compiler stays the
/// one that builds the daemon.
fn with_rustup() -> Result<()> {
    step("adding rust-src to rustup's active toolchain", || {
        output_within(
            DOWNLOAD,
            Command::new("rustup").args(["component", "add", "rust-src"]),
        )
    })?;
    Ok(())
}

fn with_apt() -> Result<()> {
    apt::install(&DEBIAN)
}
