//! Where things are in this repository, and the host's cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// The BPF crate: not a member of the workspace, so commands name it.
pub(crate) fn ebpf() -> PathBuf {
    root().join("proxy-ebpf")
}

/// Everything the BPF build leaves behind. Not below `CARGO_TARGET_DIR`, for `proxy-user/build.rs`
/// looks for the object here.
pub(crate) fn bpf_target() -> PathBuf {
    root().join("target/bpf")
}

/// Tools built for this repository alone, as `cargo install --root` lays them out.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Kernels to boot, and what that takes.
pub(crate) fn kernels() -> PathBuf {
    root().join("target/kernels")
}

/// A binary of the workspace, `profile` being the folder's name: `debug` or `release`.
///
/// xtask itself was built into the same target directory, wherever that was configured to be.
pub(crate) fn binary(profile: &str, name: &str) -> Result<PathBuf> {
    let xtask = env::current_exe().context("where is xtask itself?")?;
    let target = xtask
        .ancestors()
        .nth(2)
        .context("xtask is not below a target directory")?;
    Ok(target.join(profile).join(name))
}

/// The cargo that runs xtask, for work on the host's crates.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo said about *xtask's* package would make the children's build scripts run again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_about_the_package) {
            command.env_remove(&name);
        }
    }
    command
}

/// Takes the host toolchain's settings out of a command that is to use another toolchain.
///
/// cargo and rustup tell their children which toolchain they are; a compiler started from here
/// would follow that instead of the path it was called by.
pub(crate) fn forget_host_toolchain(command: &mut Command) -> &mut Command {
    const SETTINGS: [&str; 9] = [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ];
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| is_about_the_package(name) || SETTINGS.contains(&name))
        {
            command.env_remove(&name);
        }
    }
    command
}

fn is_about_the_package(name: &str) -> bool {
    [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}
