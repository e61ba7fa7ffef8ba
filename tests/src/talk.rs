//! Closed loops: a client says something, the backend says it back, and the client waits for that
//! before it goes on. What such a client notices of a splice is how long it waited.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::net::Host;
use crate::pattern::Pattern;
use crate::suite::scaled;
use crate::transfer::expect_bytes;

/// How much is said at a time, in bytes.
pub const MESSAGE: usize = 200;

/// After this a connection is dead, before scaling.
const DEAD: Duration = Duration::from_secs(10);

/// A backend that answers with what it hears, until it is dropped.
pub struct Echo(JoinHandle<()>);

impl Echo {
    /// Answers what connects to `listener`, which is on `host`.
    pub fn start(host: &Host, listener: &TcpListener) -> Result<Self> {
        let listener = SockRef::from(listener).try_clone()?;
        let serving = async move {
            let mut talks = JoinSet::new();
            // Registered here: in the runtime that serves it.
            let Ok(listener) = TcpListener::from_std(listener.into()) else {
                return;
            };
            while let Ok((stream, _)) = listener.accept().await {
                talks.spawn(answer(stream));
                while talks.try_join_next().is_some() {}
            }
        };
        Ok(Self(host.spawn(serving)))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What goes wrong here shows at the other end.
async fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.split();
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// One exchange of speaker `seed`, its `round`th. Returns how long the answer took.
pub async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    seed: u64,
    round: u64,
) -> Result<Duration> {
    let mut message = [0; MESSAGE];
    Pattern::new(seed).fill(round * MESSAGE as u64, &mut message);
    let begun = Instant::now();
    let talk = async {
        stream.write_all(&message).await?;
        expect_bytes(stream, &message).await
    };
    timeout(scaled(DEAD), talk)
        .await
        .context("no answer")
        .and_then(|talked| talked)
        .with_context(|| format!("connection {seed}, exchange {round}"))?;
    Ok(begun.elapsed())
}

/// Clients that talk until they are stopped.
pub struct Talks {
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    tasks: Vec<JoinHandle<Result<TcpStream>>>,
}

#[derive(Default)]
struct Progress {
    exchanges: AtomicU64,
    longest_us: AtomicU64,
}

impl Talks {
    /// Lets each of `streams`, which an [`Echo`] answers, talk with `pause` between exchanges. They do so on
    /// the thread of `host`: what a test waits for meanwhile does not hold them up.
    pub fn start(host: &Host, streams: Vec<TcpStream>, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::default());
        let mut tasks = Vec::new();
        for (seed, mut stream) in (0..).zip(streams) {
            let (stop, progress) = (Arc::clone(&stop), Arc::clone(&progress));
            tasks.push(host.spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    let took = exchange(&mut stream, seed, round).await?;
                    progress.add(took);
                    round += 1;
                    tokio::time::sleep(pause).await;
                }
                Ok(stream)
            }));
        }
        Self {
            stop,
            progress,
            tasks,
        }
    }

    /// The exchanges so far.
    pub fn exchanges(&self) -> u64 {
        self.progress.exchanges.load(Ordering::Relaxed)
    }

    /// The longest that any of them took.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.progress.longest_us.load(Ordering::Relaxed))
    }

    /// The longest of those that ended since this was asked last.
    pub fn longest_since(&self) -> Duration {
        Duration::from_micros(self.progress.longest_us.swap(0, Ordering::Relaxed))
    }

    /// Lets every client finish its exchange. None may have failed.
    pub async fn stop(self) -> Result<Vec<TcpStream>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut streams = Vec::new();
        for task in self.tasks {
            streams.push(task.await??);
        }
        Ok(streams)
    }
}

impl Progress {
    fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        self.longest_us.fetch_max(us, Ordering::Relaxed);
    }
}
