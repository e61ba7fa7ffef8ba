//! The open flows, as `limpid flows` lists them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use proxy_core::address::{Client, Peer, Upstream};
use tokio::sync::Notify;

use crate::lock::lock;
use crate::splice::Progress;

/// One connection and what is known of it so far. Each field is set once, by the stage that learns
/// it.
#[derive(Debug)]
pub struct Flow {
    /// Its number in this daemon.
    pub id: u64,
    /// Who connected.
    pub peer: Peer,
    /// When.
    pub accepted: Instant,
    /// Whom it is for.
    pub client: OnceLock<Client>,
    /// How long the header took.
    pub header: OnceLock<Duration>,
    /// The backend.
    pub upstream: OnceLock<Upstream>,
    /// The source that the backend sees.
    pub source: OnceLock<SocketAddr>,
    /// How long connecting took.
    pub connect: OnceLock<Duration>,
    /// What the splice has moved.
    pub progress: Progress,
}

impl Flow {
    /// Where it stands, as a stable name.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.client.get(), self.progress.state()) {
            (None, _) => "header",
            (Some(_), state) => state.label(),
        }
    }
}

/// All open flows of a daemon. Clones are the same registry.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    emptied: Notify,
    flows: Mutex<BTreeMap<u64, Arc<Flow>>>,
}

impl Registry {
    /// Enters a connection that has just been accepted.
    pub fn open(&self, peer: Peer) -> Arc<Flow> {
        self.adopt(peer, Instant::now())
    }

    /// Enters a connection that was accepted by an earlier daemon.
    pub fn adopt(&self, peer: Peer, accepted: Instant) -> Arc<Flow> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed) + 1;
        let flow = Arc::new(Flow {
            id,
            peer,
            accepted,
            client: OnceLock::new(),
            header: OnceLock::new(),
            upstream: OnceLock::new(),
            source: OnceLock::new(),
            connect: OnceLock::new(),
            progress: Progress::default(),
        });
        self.flows().insert(id, Arc::clone(&flow));
        flow
    }

    /// Strikes a flow out.
    pub fn close(&self, id: u64) {
        let mut flows = self.flows();
        flows.remove(&id);
        if flows.is_empty() {
            self.shared.emptied.notify_waiters();
        }
    }

    /// Waits until there are none.
    pub async fn emptied(&self) {
        loop {
            let mut emptied = pin!(self.shared.emptied.notified());
            // From here on it is told.
            emptied.as_mut().enable();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// The open flows, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Flow>> {
        self.flows().values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows().len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows().is_empty()
    }

    fn flows(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Flow>>> {
        lock(&self.shared.flows)
    }
}
