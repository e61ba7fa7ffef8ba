//! `cargo xtask`: limpid's build, test, demo and benchmark commands.
//!
//! This page is the command line; each command is a module, or a function of one.

#![forbid(unsafe_code)]

mod apt;
mod bench;
mod bpf;
mod ci;
mod daemon;
mod demo;
mod deny;
mod kernel;
mod lint;
mod programs;
mod step;
mod tally;
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::daemon::Profile;
use crate::kernel::Kernels;
use crate::tally::Tally;
use crate::test::Selection;

/// Builds, tests and shows limpid.
///
/// `build`, `run`, `demo`, `bench`, `test` and `lint` do their own set-up: on a Debian machine with
/// cargo and root there is nothing to install first.
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

    /// Show limpid at work: an edge proxy in front, a web server behind, the bytes in the kernel
    ///
    /// Needs root. Missing programs are installed as by `test`. All of it is in network namespaces,
    /// which are gone afterwards.
    Demo {
        /// Optimise the daemon. It takes longer to compile and changes little of what is seen: the
        /// bytes are moved by the BPF programs, which are always optimised
        #[arg(long)]
        release: bool,

        /// Arguments of the demo
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },

    /// Measure limpid beside routing, DNAT, HAProxy and nginx
    ///
    /// Everything is built as it would be shipped and runs in network namespaces, which are gone
    /// afterwards. Needs root; missing programs are installed as by `test`. Table, numbers and plot
    /// are written to target/bench. Half an hour with the defaults, a few minutes with --quick;
    /// `cargo xtask bench -- --help` describes the arguments.
    Bench {
        /// Arguments of the benchmark: --rounds N, --seconds N, --quick, --docs, …
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },

    /// Run the unit tests and the integration tests
    ///
    /// The integration tests need root and other proxies, servers and tools. As root on Debian
    /// the missing ones are installed, without their services being started or enabled. Elsewhere
    /// the tests that need what is not there are ignored, with the reason; the last lines name
    /// them and count all results.
    ///
    /// With --kernel, what asks something of a kernel (the integration tests, and those of
    /// proxy-user named "kernel") is run on others, booted under QEMU. QEMU and kernels are Debian's,
    /// unpacked to target/kernels and not installed. Where KVM does not work, a processor is emulated:
    /// tests are then given more time and less to move.
    Test {
        #[command(flatten)]
        selection: Selection,

        #[command(flatten)]
        kernels: Kernels,

        /// Write what each of the kernels named offers, and how the tests went there, to
        /// docs/kernels.md as well as to target/kernels
        #[arg(long, requires = "series", conflicts_with = "filters")]
        docs: bool,
    },

    /// Show what `limpid probe` finds on other kernels
    Probe {
        #[command(flatten)]
        kernels: Kernels,

        /// Options of `limpid probe`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },

    /// Run a shell command on another kernel: cargo xtask boot --kernel 5.10 -- uname -r
    ///
    /// It is run as root, sees this machine's files at their paths, and starts in the current folder.
    /// What it writes to files is gone afterwards. The kernel's own messages are in
    /// target/kernels/run/*/console.log.
    Boot {
        #[command(flatten)]
        kernels: Kernels,

        /// The command, a shell's syntax included
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },

    /// Check formatting, lints, documentation and dependencies, warnings denied
    ///
    /// Formatting (workspace, BPF crate, fuzz targets); clippy for the host's crates, and for the
    /// BPF crate with the clippy of the compiler that builds it (Debian's rust-web-clippy or
    /// rustup's component, installed where missing); rustdoc, private items included; cargo-deny
    /// with deny.toml. cargo-deny is built into target/tools; where it cannot be installed, or its
    /// database of advisories cannot be fetched, this is said and the rest counts.
    Lint,

    /// Do what CI does: lint, demo, test, and the tests that differ between kernels on others
    Ci,
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
        Xtask::Demo { release, arguments } => {
            demo::demo(Profile::from_release(release), &arguments)
        }
        Xtask::Bench { arguments } => bench::bench(&arguments),
        Xtask::Test {
            selection,
            kernels,
            docs,
        } => {
            if kernels.is_empty() {
                test::test(&selection, &mut Tally::default())
            } else {
                kernel::test(&kernels, &selection, docs, &mut Tally::default())
            }
        }
        Xtask::Probe { kernels, arguments } => kernel::probe(&kernels, &arguments),
        Xtask::Boot { kernels, command } => kernel::boot(&kernels, &command),
        Xtask::Lint => lint::lint(),
        Xtask::Ci => ci::ci(),
    }
}
