//! Latency at a fixed rate: our own client, since wrk knows no rate.
//!
//! A thread for each connection sends at its appointed times. Where it is late, because the answer
//! before took too long, the wait counts as latency: otherwise a stall would hide the requests that
//! it kept from being sent (coordinated omission).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Extent, Reading};
use crate::contender::Contender;
use crate::metric::Metric;
use crate::services::Program;

const CONNECTIONS: u32 = 32;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
const BODY: &[u8] = b"\r\n\r\nlimpid\n";
const PATIENCE: Duration = Duration::from_secs(10);

/// Percentiles of all requests of all connections.
pub(super) fn paced(on: &Contender, directory: &Path, extent: &Extent) -> Result<Vec<Reading>> {
    let _web = Program::web(&on.bed.backend, directory)?;
    let target = on.target();
    let connections = on.bed.client.block(move || {
        (0..CONNECTIONS)
            .map(|_| TcpStream::connect_timeout(&target, PATIENCE))
            .collect::<Result<Vec<_>, _>>()
    })??;
    let interval = Duration::from_secs(1) * CONNECTIONS / extent.rate;
    let start = Instant::now() + Duration::from_millis(20);
    let end = start + extent.time;
    let threads: Vec<_> = (0..)
        .zip(connections)
        .map(|(n, stream)| {
            // They take turns within an interval.
            let first = start + interval * n / CONNECTIONS;
            thread::spawn(move || one(stream, first, interval, end))
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        let latencies = thread.join().map_err(|_| anyhow!("a client panicked"))?;
        all.extend(latencies?);
    }
    ensure!(!all.is_empty(), "no request was sent");
    all.sort_unstable();
    let percentile = |percent: usize| all[(all.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    Ok(vec![
        (Metric::PacedP50, percentile(50)),
        (Metric::PacedP99, percentile(99)),
    ])
}

/// The latencies of one connection.
fn one(
    mut stream: TcpStream,
    first: Instant,
    interval: Duration,
    end: Instant,
) -> Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut latencies = Vec::new();
    let mut appointed = first;
    while appointed < end {
        let now = Instant::now();
        let begin = if now < appointed {
            thread::sleep(appointed - now);
            // What the timer adds is not the path's doing.
            Instant::now()
        } else {
            appointed
        };
        request(&mut stream)?;
        latencies.push(begin.elapsed());
        ensure!(begin < end + PATIENCE, "cannot keep up at all");
        appointed += interval;
    }
    Ok(latencies)
}

fn request(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(REQUEST).context("sending a request")?;
    let mut answer = [0; 1024];
    let mut length = 0;
    while !answer[..length].ends_with(BODY) {
        let read = stream.read(&mut answer[length..]).context("an answer")?;
        ensure!(read > 0, "closed in the middle of an answer");
        length += read;
    }
    Ok(())
}
