//! `cargo xtask lint`: everything that is checked without running limpid.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::bpf::{self, Toolchain};
use crate::step::{run, step};
use crate::{deny, workspace};

/// How a check went that found nothing wrong.
pub(crate) enum Verdict {
    /// Everything was looked at.
    Clean,
    /// Something could not be looked at here, and why.
    Partial(String),
}

/// Makes every check, and only then fails if one of them did.
pub(crate) fn lint() -> Result<()> {
    let toolchain = bpf::setup()?;
    bpf::build(&toolchain)?;

    type Check<'a> = (&'a str, &'a dyn Fn() -> Result<Verdict>);
    let checks: [Check<'_>; 6] = [
        ("formatting", &format),
        ("clippy, host crates", &clippy_host),
        ("clippy, BPF crate", &|| clippy_bpf(&toolchain)),
        ("documentation, host crates", &doc_host),
        ("documentation, BPF crate", &|| doc_bpf(&toolchain)),
        ("dependencies (cargo-deny)", &deny::check),
    ];
    let mut failed = Vec::new();
    let mut partial = Vec::new();
    for (name, check) in checks {
        match step(name, check) {
            Ok(Verdict::Clean) => {}
            Ok(Verdict::Partial(what)) => partial.push(format!("{name}: {what}")),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    for note in &partial {
        println!("not checked: {note}");
    }
    for note in &failed {
        println!("failed: {note}");
    }
    println!(
        "lint: {} of {} checks passed",
        checks.len() - failed.len(),
        checks.len()
    );
    ensure!(failed.is_empty(), "lint found something to mend");
    Ok(())
}

fn format() -> Result<Verdict> {
    let fmt = |arguments: &[&str]| run(workspace::cargo().arg("fmt").args(arguments));
    fmt(&["--all", "--check"])?;
    for apart in ["proxy-ebpf/Cargo.toml", "fuzz/Cargo.toml"] {
        if workspace::root().join(apart).exists() {
            fmt(&["--manifest-path", apart, "--check"])?;
        }
    }
    Ok(Verdict::Clean)
}

fn clippy_host() -> Result<Verdict> {
    let everything = ["clippy", "--workspace", "--all-targets"];
    clean(workspace::cargo().args(everything).args(DENY_WARNINGS))
}

/// With the clippy of the very compiler that builds the crate: any other one could not read its
/// `core`.
fn clippy_bpf(toolchain: &Toolchain) -> Result<Verdict> {
    toolchain.compiler.provide_clippy()?;
    clean(
        toolchain
            .cargo("cargo-clippy")
            .args(["clippy", "--release"])
            .args(DENY_WARNINGS),
    )
}

fn doc_host() -> Result<Verdict> {
    clean(documented(workspace::cargo().args(["doc", "--workspace"])))
}

fn doc_bpf(toolchain: &Toolchain) -> Result<Verdict> {
    clean(documented(
        toolchain.cargo("cargo").args(["doc", "--release"]),
    ))
}

/// Private items too: most of what there is to read here is private, and links to it resolve.
fn documented(doc: &mut Command) -> &mut Command {
    doc.args(["--no-deps", "--document-private-items"]).env(
        "RUSTDOCFLAGS",
        "-D warnings -A rustdoc::private-intra-doc-links",
    )
}

fn clean(command: &mut Command) -> Result<Verdict> {
    run(command).map(|()| Verdict::Clean)
}

const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];
