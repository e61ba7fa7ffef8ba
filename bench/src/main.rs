//! limpid beside routing, DNAT, HAProxy and nginx, measured in one run.
//!
//! Run it by `cargo xtask bench`. Every contender stands in a [`bed`] of its own and is measured under
//! every [`load`], all of them in turn and that several times over, so that whatever else the machine
//! does meets all alike. Medians are reported, with how far apart the rounds were. Nothing is asserted:
//! a slow machine gives small numbers, no failure.

mod bed;
mod contender;
mod cpu;
mod load;
mod memory;
mod metric;
mod peers;
mod report;
mod results;
mod services;
mod surroundings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use limpid_tests::suite::Lab;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::contender::{Contender, Kind};
use crate::load::{Extent, Workload};
use crate::report::Report;
use crate::results::Results;
use crate::surroundings::Surroundings;

/// Open files of this process and of those it starts, where the machine allows that.
const FILES: u64 = 200_000;

/// Files that a proxy wants for a connection (limpid counts four: two sockets and a pipe), and beside.
const FILES_EACH: u64 = 4;
const FILES_BESIDE: u64 = 800;

/// Measures limpid beside routing, DNAT, HAProxy and nginx.
///
/// All of it is in network namespaces, which are gone afterwards. The table goes to standard output,
/// numbers, table and plot to target/bench. With the defaults it takes about 25 minutes.
#[derive(Clone, Debug, Parser)]
#[command(bin_name = "cargo xtask bench", version)]
struct Arguments {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Seconds of each measurement
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// Two rounds of one second, with fewer idle connections: to see that it works
    #[arg(long)]
    quick: bool,

    /// Requests a second for latency at a fixed rate
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    rate: u32,

    /// Idle connections
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    idle: u32,

    /// Seconds for which a reader does not read
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    stall: u64,

    /// Seconds to wait before a measurement for other work on the machine to pause
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=600))]
    patience: u64,

    /// Measure limpid's engines with `--source proxy` too, not only with `--source client`
    #[arg(long)]
    both_sources: bool,

    /// Measure only contenders whose names contain one of these, and direct
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Put only those loads on them whose names, as progress shows them, contain one of these
    #[arg(long, value_name = "NAME")]
    load: Vec<String>,

    /// Write docs/bench.md and docs/bench.svg as well
    #[arg(long)]
    docs: bool,
}

impl Arguments {
    fn settled(mut self) -> Self {
        if self.quick {
            self.rounds = self.rounds.min(2);
            self.seconds = self.seconds.min(1);
            self.idle = self.idle.min(2000);
            self.stall = self.stall.min(2);
        }
        self
    }

    fn extent(&self) -> Result<Extent> {
        Ok(Extent {
            time: Duration::from_secs(self.seconds),
            rate: self.rate,
            idle: usize::try_from(self.idle)?,
            stall: Duration::from_secs(self.stall),
        })
    }

    fn loads(&self) -> Vec<Workload> {
        let wanted = |load: &Workload| {
            let name = load.to_string();
            self.load.is_empty() || self.load.iter().any(|part| name.contains(part.as_str()))
        };
        Workload::ALL.into_iter().filter(wanted).collect()
    }

    fn wants(&self, kind: &Kind) -> bool {
        let name = kind.name();
        *kind == Kind::Direct
            || self.only.is_empty()
            || self.only.iter().any(|only| name.contains(only.as_str()))
    }
}

fn main() -> ExitCode {
    match bench(Arguments::parse().settled()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(mut arguments: Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root"
    );
    // Before any thread is made.
    let lab = Lab::alone()?;
    let mut notes = Vec::new();
    let room = u32::try_from(open_files()?.saturating_sub(FILES_BESIDE) / FILES_EACH)?;
    if arguments.idle > room {
        notes.push(format!(
            "{room} idle connections, not {}: more files may not be opened here",
            arguments.idle
        ));
        arguments.idle = room;
    }
    let (kinds, unknown) = Kind::all(arguments.both_sources)?;
    let unknown = unknown.into_iter();
    notes.extend(unknown.map(|engine| format!("left out: this limpid has no engine `{engine}`")));
    let mut contenders = Vec::new();
    for kind in kinds.into_iter().filter(|kind| arguments.wants(kind)) {
        let name = kind.name();
        match Contender::start(kind, &lab) {
            Ok(contender) => contenders.push(contender),
            Err(error) => notes.push(format!("left out: {name}: {error:#}")),
        }
    }
    for note in &notes {
        eprintln!("{note}");
    }
    let surroundings = Surroundings::look();
    let (results, surroundings) = measure(
        &arguments,
        &contenders,
        lab.path(),
        surroundings,
        &mut notes,
    )?;
    let report = Report {
        settings: settings(&arguments),
        contenders: contenders.iter().map(|c| c.kind.clone()).collect(),
        results,
        surroundings,
        notes,
    };
    println!("{}", report.text());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("the workspace's root")?;
    let mut folders: Vec<PathBuf> = vec![root.join("target/bench")];
    if arguments.docs {
        folders.push(root.join("docs"));
    }
    for written in report.write(&folders)? {
        eprintln!("wrote {}", written.display());
    }
    Ok(())
}

/// Raises the limit of open files, and says what it is then.
fn open_files() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < FILES && setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).is_ok() {
        return Ok(FILES);
    }
    // Without CAP_SYS_RESOURCE nothing raises a hard limit.
    let files = hard.min(FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files).context("raising the limit of open files")?;
    Ok(files)
}

/// Every load in every round on every contender, one after the other. What fails is noted, and the
/// rest goes on.
fn measure(
    arguments: &Arguments,
    contenders: &[Contender],
    directory: &Path,
    mut surroundings: Surroundings,
    notes: &mut Vec<String>,
) -> Result<(Results, Surroundings)> {
    let extent = arguments.extent()?;
    let mut results = Results::default();
    let start = Instant::now();
    let loads = arguments.loads();
    let all = arguments.rounds as usize * loads.len() * contenders.len();
    let mut done = 0;
    for round in 0..arguments.rounds as usize {
        for workload in &loads {
            for turn in 0..contenders.len() {
                // Another one goes first in each round.
                let contender = &contenders[(turn + round) % contenders.len()];
                surroundings.listen(Duration::from_secs(arguments.patience))?;
                let measured = workload.run(contender, directory, &extent);
                done += 1;
                let progress = format!(
                    "[{done}/{all}, {:.0} s] round {}: {workload}: {}",
                    start.elapsed().as_secs_f64(),
                    round + 1,
                    contender.name
                );
                match measured {
                    Ok(readings) => {
                        results.add(&contender.name, &readings);
                        let shown: Vec<String> = readings
                            .iter()
                            .map(|(metric, value)| {
                                format!("{} {}", metric.show(*value), metric.unit())
                            })
                            .collect();
                        eprintln!("{progress}: {}", shown.join(", "));
                    }
                    Err(error) => {
                        let said = contender.last_words();
                        eprintln!("{progress}: FAILED: {error:#} {said}");
                        notes.push(format!(
                            "failed: {workload}: {} (round {}): {error:#} {said}",
                            contender.name,
                            round + 1
                        ));
                    }
                }
            }
        }
    }
    surroundings.look_again();
    Ok((results, surroundings))
}

fn settings(arguments: &Arguments) -> String {
    format!(
        "{} rounds of {} s each; fixed rate: {} requests/s over 32 connections; {} idle connections; \
         reader stalled for {} s",
        arguments.rounds, arguments.seconds, arguments.rate, arguments.idle, arguments.stall
    )
}
