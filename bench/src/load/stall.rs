//! What a sender can make the machine hold whose reader does not read.

use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Extent, Reading};
use crate::contender::Contender;
use crate::memory::Memory;
use crate::metric::Metric;
use crate::services::deaf;

/// The sender stops here, for the machine's sake.
const MOST: u64 = 1 << 30;

const SAMPLE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(10);
const MEGABYTE: f64 = 1e6;

/// Sends for as long as told. Both ends' own queues are part of the figures, as they are of
/// `direct`'s.
pub(super) fn stall(on: &Contender, extent: &Extent) -> Result<Vec<Reading>> {
    let _deaf = deaf(&on.bed.backend)?;
    let target = on.target();
    let connected = on
        .bed
        .client
        .block(move || TcpStream::connect_timeout(&target, PATIENCE))?;
    let mut stream = connected.with_context(|| format!("connecting to {target}"))?;
    stream.set_write_timeout(Some(SAMPLE))?;
    let chunk = vec![0x5a; 64 << 10];
    let before = Memory::now(on.pid())?;
    let (mut taken, mut most) = (0, 0.0_f64);
    let (end, mut next) = (Instant::now() + extent.stall, Instant::now());
    while Instant::now() < end && taken < MOST {
        match stream.write(&chunk) {
            Ok(length) => taken += length as u64,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("sending to one who does not read"),
        }
        if Instant::now() >= next {
            let grown = Memory::now(on.pid())? - before;
            most = most.max(grown.kernel + grown.process);
            next = Instant::now() + SAMPLE;
        }
    }
    Ok(vec![
        (Metric::StallTaken, taken as f64 / MEGABYTE),
        (Metric::StallMemory, most / MEGABYTE),
    ])
}
