//! `cargo xtask`: limpid's build, test and demo commands.
//!
//! This page is the command line; each command is a module, or a function of one.

#![forbid(unsafe_code)]

mod apt;
mod bpf;
mod daemon;
mod step;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::daemon::Profile;

/// Builds, tests and shows limpid.
///
/// `build`, `run`, `demo`, `test` and `lint` do their own set-up: on a Debian machine with cargo
/// and root there is nothing to install first.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Xtask,
}

#[derive(Debug, Subcommand)]
enum Xtask {
    /// Find or install what the BPF build needs
    ///
    /// The compiler is the first of these that has its library's source:
    ///
    ///  1. the `rustc` that the environment variable `LIMPID_BPF_RUSTC` names;
    ///  2. a rustup toolchain with the component rust-src, the active toolchain first;
    ///  3. Debian's rustc-web with rust-web-src.
    ///
    /// Where there is none, one is installed: `rustup component add rust-src` where rustup can
    /// download, else Debian's packages, which takes root.
    ///
    /// bpf-linker is built into target/tools, against an LLVM that is not older than the
    /// compiler's (/usr/lib/llvm-NN; installed by apt where it is missing). `LIMPID_BPF_LINKER`
    /// names another one.
    ///
    /// Nothing is changed on a machine that has all of this, and no root is needed then.
    #[command(verbatim_doc_comment)]
    Setup,

    /// Compile the BPF programs and the daemon that embeds them
    ///
    /// The BPF object is written to target/bpf/limpid.bpf.o, the daemon to target/debug/limpid (or
    /// target/release/limpid).
    Build {
        /// Optimise the daemon (the BPF programs always are)
        #[arg(long)]
        release: bool,
    },

    /// Build limpid and run it with the arguments given: cargo xtask run -- run --help
    Run {
        /// Optimise the daemon
        #[arg(long)]
        release: bool,

        /// Arguments of limpid
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Xtask) -> Result<()> {
    match command {
        Xtask::Setup => {
            let toolchain = bpf::setup()?;
            println!("BPF is compiled with {toolchain}");
            Ok(())
        }
        Xtask::Build { release } => {
            let binary = daemon::build(Profile::from_release(release))?;
            println!("{}", binary.display());
            Ok(())
        }
        Xtask::Run { release, arguments } => {
            daemon::run(Profile::from_release(release), &arguments)
        }
    }
}
