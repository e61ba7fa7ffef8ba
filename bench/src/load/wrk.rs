//! Requests as fast as they go: wrk against nginx.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Extent, Reading, generate, number, with_cpu};
use crate::contender::Contender;
use crate::cpu::Cpu;
use crate::metric::Metric;
use crate::services::Program;

/// Connections of [`close`] at any time.
const CLOSE_CONNECTIONS: u32 = 64;

/// wrk's own figures are meant for people: this makes it print numbers.
const SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "us": %d, "p50": %f, "p99": %f, "errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// What wrk says.
struct Requests {
    count: f64,
    rate: f64,
    p50: f64,
    p99: f64,
}

impl Requests {
    fn million(&self) -> f64 {
        self.count / 1e6
    }
}

/// Connections that are kept.
pub(super) fn keep_alive(
    on: &Contender,
    directory: &Path,
    extent: &Extent,
    connections: u32,
) -> Result<Vec<Reading>> {
    let (requests, cpu) = wrk(on, directory, extent, connections, &[])?;
    let mut readings = vec![match connections {
        1 => (Metric::KeepAlive1, requests.rate),
        32 => (Metric::KeepAlive32, requests.rate),
        _ => (Metric::KeepAlive256, requests.rate),
    }];
    match connections {
        1 => readings.push((Metric::KeepAlive1P50, requests.p50)),
        32 => {}
        _ => readings.extend([
            (Metric::KeepAlive256P99, requests.p99),
            (Metric::RequestMachineCpu, cpu.machine / requests.million()),
            (Metric::RequestProcessCpu, cpu.process / requests.million()),
        ]),
    }
    Ok(readings)
}

/// A connection for each request.
pub(super) fn close(on: &Contender, directory: &Path, extent: &Extent) -> Result<Vec<Reading>> {
    let header = ["-H", "Connection: close"];
    let (requests, cpu) = wrk(on, directory, extent, CLOSE_CONNECTIONS, &header)?;
    Ok(vec![
        (Metric::Close, requests.rate),
        (Metric::CloseMachineCpu, cpu.machine / requests.million()),
        (Metric::CloseProcessCpu, cpu.process / requests.million()),
    ])
}

fn wrk(
    on: &Contender,
    directory: &Path,
    extent: &Extent,
    connections: u32,
    more: &[&str],
) -> Result<(Requests, Cpu)> {
    let _web = Program::web(&on.bed.backend, directory)?;
    let script = directory.join("wrk.lua");
    std::fs::write(&script, SCRIPT)?;
    let cpus = std::thread::available_parallelism()?.get();
    let arguments = [
        format!("--threads={}", cpus.min(connections as usize)),
        format!("--connections={connections}"),
        format!("--duration={}s", extent.time.as_secs()),
        format!("--script={}", script.display()),
        format!("http://{}/", on.target()),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let arguments = [more, &arguments].concat();
    let (printed, cpu) = with_cpu(on, || {
        generate(&on.bed.client, "wrk", extent.time, &arguments)
    })?;
    let line = printed.lines().rfind(|line| line.starts_with('{'));
    let said = serde_json::from_str(line.context("wrk printed no numbers")?)?;
    let (count, errors) = (number(&said, "/requests")?, number(&said, "/errors")?);
    ensure!(errors == 0.0, "{errors} of {count} requests failed");
    ensure!(count > 0.0, "not one request was answered");
    let requests = Requests {
        count,
        rate: count / number(&said, "/us")? * 1e6,
        p50: number(&said, "/p50")?,
        p99: number(&said, "/p99")?,
    };
    Ok((requests, cpu))
}
