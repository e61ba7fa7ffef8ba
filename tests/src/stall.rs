//! Readers that do not read: what is held between them and their senders.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::memory::Memory;
use crate::net::Host;
use crate::transfer::Flow;

/// For how long nobody reads.
const STALL: Duration = Duration::from_secs(2);

/// How often memory is measured.
const SAMPLE: Duration = Duration::from_millis(100);

/// The most that was held at any moment, in bytes, over what was held before.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// By the proxy's own process and its sockets, for each pair.
    pub per_flow: u64,
    /// By the kernel of the whole machine, in any account: the senders' and readers' own queues are
    /// part of it.
    pub kernel: u64,
}

/// Sends `flow` over each pair (sender, reader: a whole connection's, or halves of it), through the process `pid` on `host`, while no reader
/// reads. No sender may get rid of everything. Then the readers read, and all of it must come.
pub async fn stall<S, R>(host: &Host, pid: u32, pairs: Vec<(S, R)>, flow: Flow) -> Result<Held>
where
    S: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    let flows = pairs.len() as u64;
    let before = Memory::measure(host, pid)?;
    let mut senders = JoinSet::new();
    let mut readers = Vec::new();
    for (mut sender, reader) in pairs {
        senders.spawn(async move { flow.send_to_end(&mut sender).await.map(|()| sender) });
        readers.push(reader);
    }
    let (mut own, mut kernel) = (0, 0);
    for _ in 0..STALL.as_millis() / SAMPLE.as_millis() {
        tokio::time::sleep(SAMPLE).await;
        let now = Memory::measure(host, pid)?;
        own = own.max(now.own().saturating_sub(before.own()));
        kernel = kernel.max(now.kernel.saturating_sub(before.kernel));
    }
    ensure!(
        timeout(Duration::ZERO, senders.join_next()).await.is_err(),
        "a sender got rid of everything: nothing holds it back"
    );
    let mut reading = JoinSet::new();
    for mut reader in readers {
        reading.spawn(async move { flow.receive_to_end(&mut reader).await.map(|()| reader) });
    }
    while let Some(read) = reading.join_next().await {
        read?.context("after the stall")?;
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    Ok(Held {
        per_flow: own / flows,
        kernel,
    })
}
