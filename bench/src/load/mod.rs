//! What is done to a contender, and what is read off it.

mod idle;
mod iperf;
mod paced;
mod stall;
mod wrk;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::Host;

use crate::contender::Contender;
use crate::cpu::Cpu;
use crate::metric::Metric;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// The time of one measurement.
    pub time: Duration,
    /// Requests a second of the paced client.
    pub rate: u32,
    /// Idle connections.
    pub idle: usize,
    /// For how long a reader does not read.
    pub stall: Duration,
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Requests one after the other on so many connections.
    KeepAlive(u32),
    /// A connection for each request.
    Close,
    /// As many bytes as go through, client to backend.
    Up,
    /// As many bytes as go through, backend to client.
    Down,
    /// Requests at a fixed rate.
    Paced,
    /// Connections that do nothing.
    Idle,
    /// A sender whose reader does not read.
    Stall,
}

impl Workload {
    /// All, in the order of the report.
    pub(crate) const ALL: [Self; 9] = [
        Self::KeepAlive(1),
        Self::KeepAlive(32),
        Self::KeepAlive(256),
        Self::Close,
        Self::Up,
        Self::Down,
        Self::Paced,
        Self::Idle,
        Self::Stall,
    ];

    /// Measures once.
    pub(crate) fn run(
        self,
        on: &Contender,
        directory: &Path,
        extent: &Extent,
    ) -> Result<Vec<Reading>> {
        match self {
            Self::KeepAlive(connections) => wrk::keep_alive(on, directory, extent, connections),
            Self::Close => wrk::close(on, directory, extent),
            Self::Up => iperf::bulk(on, directory, extent, iperf::Direction::Up),
            Self::Down => iperf::bulk(on, directory, extent, iperf::Direction::Down),
            Self::Paced => paced::paced(on, directory, extent),
            Self::Idle => idle::idle(on, extent),
            Self::Stall => stall::stall(on, extent),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeepAlive(1) => f.write_str("keep-alive, 1 connection"),
            Self::KeepAlive(n) => write!(f, "keep-alive, {n} connections"),
            Self::Close => f.write_str("one request a connection"),
            Self::Up => f.write_str("bulk, client to backend"),
            Self::Down => f.write_str("bulk, backend to client"),
            Self::Paced => f.write_str("fixed rate"),
            Self::Idle => f.write_str("idle connections"),
            Self::Stall => f.write_str("a stalled reader"),
        }
    }
}

/// One number, and what it is.
pub(crate) type Reading = (Metric, f64);

/// Does `work` and says what CPU time it took.
fn with_cpu<T>(on: &Contender, work: impl FnOnce() -> Result<T>) -> Result<(T, Cpu)> {
    let before = Cpu::now(on.pid())?;
    let done = work()?;
    Ok((done, Cpu::now(on.pid())? - before))
}

/// Runs a load generator that ends by itself, and makes sure of that.
fn generate(client: &Host, program: &str, time: Duration, arguments: &[&str]) -> Result<String> {
    let limit = (time.as_secs() + 15).to_string();
    let words = ["--kill-after=1", &limit, program];
    let output = client.try_run("timeout", &[&words, arguments].concat())?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program}: {}: {stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// The number `name` of a program's JSON.
fn number(json: &serde_json::Value, name: &str) -> Result<f64> {
    json.pointer(name)
        .and_then(serde_json::Value::as_f64)
        .with_context(|| format!("no number {name} in {json}"))
}
