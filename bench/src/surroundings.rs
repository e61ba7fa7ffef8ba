//! What a result depends on beside limpid: the machine, its programs, and who else is using it.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::Cpu;

/// For how long the machine is listened to before each measurement.
const QUIET: Duration = Duration::from_millis(250);

/// CPUs that others may keep busy without being waited for.
const MUCH: f64 = 0.1;

/// Where, with what, and in whose company a run was made.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Kernel, processor, number of CPUs.
    pub machine: String,
    /// The programs' own words about their versions.
    pub programs: Vec<String>,
    /// /proc/loadavg before the run.
    pub load_before: String,
    /// /proc/loadavg after the run, which is mostly our own.
    pub load_after: String,
    /// CPUs kept busy by others in the pauses between measurements.
    pub others: Vec<f64>,
}

impl Surroundings {
    /// Before a run.
    pub(crate) fn look() -> Self {
        let programs = [
            ("haproxy", "-v"),
            ("nginx", "-v"),
            ("wrk", "-v"),
            ("iperf3", "-v"),
        ];
        Self {
            machine: machine(),
            programs: programs
                .into_iter()
                .filter_map(|(program, flag)| version(program, flag))
                .collect(),
            load_before: load(),
            load_after: String::new(),
            others: Vec::new(),
        }
    }

    /// Waits until nobody else does much on the machine, but no longer than `patience`, and notes
    /// how busy it is then.
    pub(crate) fn listen(&mut self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            let busy = busy()?;
            if busy <= MUCH || Instant::now() >= end {
                self.others.push(busy);
                return Ok(());
            }
        }
    }

    /// After a run.
    pub(crate) fn look_again(&mut self) {
        self.load_after = load();
    }

    /// CPUs that others kept busy: the median and the largest.
    pub(crate) fn company(&self) -> (f64, f64) {
        let mut sorted = self.others.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.get(sorted.len() / 2).copied();
        let most = sorted.last().copied();
        (middle.unwrap_or(0.0), most.unwrap_or(0.0))
    }
}

/// CPUs that do something while nothing is measured.
fn busy() -> Result<f64> {
    let (before, start) = (Cpu::now(None)?, Instant::now());
    thread::sleep(QUIET);
    let busy = (Cpu::now(None)? - before).machine;
    Ok(busy / start.elapsed().as_secs_f64())
}

fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("processor", |(_, model)| model);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    format!("Linux {}, {cpus} CPUs ({model})", kernel.trim())
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The first word with a number in it; some print it to standard error, some fail afterwards.
fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let is_number = |word: &&str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    let number = text.split_whitespace().find(is_number)?;
    let number = number.rsplit('/').next().unwrap_or(number);
    Some(format!("{program} {number}"))
}
