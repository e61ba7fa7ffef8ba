//! cargo-deny: licences, sources, duplicates and known vulnerabilities of the dependencies
//! (`deny.toml`).

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::lint::Verdict;
use crate::step::{output, output_within, run, step};
use crate::workspace;

/// The version that is installed where there is none.
const VERSION: &str = "0.20.2";

/// How long the advisory database may take to arrive.
const DOWNLOAD: Duration = Duration::from_secs(60);

/// The lock files to judge. The fuzz targets ship with nothing.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "proxy-ebpf/Cargo.toml"];

/// Checks what can be checked: without cargo-deny nothing, and without the advisory database, which
/// is on a server of its own, everything else.
pub(crate) fn check() -> Result<Verdict> {
    let deny = match provide() {
        Ok(path) => path,
        Err(error) => {
            return Ok(Verdict::Partial(format!(
                "cargo-deny did not install: {error:#}"
            )));
        }
    };
    let fetched = output_within(DOWNLOAD, in_root(&deny).args(["fetch", "db"]));
    let mut checks = vec!["bans", "licenses", "sources"];
    if fetched.is_ok() {
        checks.push("advisories");
    }
    for manifest in MANIFESTS {
        run(in_root(&deny)
            .args([
                "--manifest-path",
                manifest,
                "check",
                "--hide-inclusion-graph",
            ])
            .args(&checks))?;
    }
    Ok(if fetched.is_ok() {
        Verdict::Clean
    } else {
        Verdict::Partial("advisories, whose database could not be fetched".into())
    })
}

/// cargo-deny as the user has it, or built into `target/tools`.
fn provide() -> Result<PathBuf> {
    let ours = workspace::tools().join("bin/cargo-deny");
    for path in [ours.clone(), "cargo-deny".into()] {
        if output(Command::new(&path).arg("--version")).is_ok() {
            return Ok(path);
        }
    }
    step(&format!("building cargo-deny {VERSION}"), || {
        run(workspace::cargo()
            .args(["install", "cargo-deny", "--quiet", "--locked"])
            .args(["--version", &format!("={VERSION}")])
            .arg("--root")
            .arg(workspace::tools())
            // It runs for a second: what counts is how long it takes to compile.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"))
    })?;
    Ok(ours)
}

fn in_root(deny: &PathBuf) -> Command {
    let mut command = Command::new(deny);
    command.current_dir(workspace::root());
    command
}
