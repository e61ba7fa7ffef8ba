//! Bytes as fast as they go: iperf3, one connection.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Extent, Reading, generate, number, with_cpu};
use crate::bed::PORT;
use crate::contender::Contender;
use crate::metric::Metric;
use crate::services::Program;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Client to backend.
    Up,
    /// Backend to client.
    Down,
}

/// As the receiver counts: a sender may have filled queues.
pub(super) fn bulk(
    on: &Contender,
    directory: &Path,
    extent: &Extent,
    direction: Direction,
) -> Result<Vec<Reading>> {
    let _server = Program::iperf(&on.bed.backend, directory)?;
    let (target, port) = (on.target().ip().to_string(), PORT.to_string());
    let time = extent.time.as_secs().to_string();
    let mut arguments = vec!["-c", &target, "-p", &port, "-t", &time, "-J"];
    if direction == Direction::Down {
        arguments.push("-R");
    }
    let (printed, cpu) = with_cpu(on, || {
        generate(&on.bed.client, "iperf3", extent.time, &arguments)
    })?;
    let said: Value = serde_json::from_str(&printed)?;
    if let Some(error) = said["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let gigabits = number(&said, "/end/sum_received/bits_per_second")? / 1e9;
    let gigabytes = number(&said, "/end/sum_received/bytes")? / 1e9;
    Ok(match direction {
        Direction::Up => vec![
            (Metric::Up, gigabits),
            (Metric::UpMachineCpu, cpu.machine / gigabytes),
        ],
        Direction::Down => vec![
            (Metric::Down, gigabits),
            (Metric::DownMachineCpu, cpu.machine / gigabytes),
            (Metric::DownProcessCpu, cpu.process / gigabytes),
        ],
    })
}
