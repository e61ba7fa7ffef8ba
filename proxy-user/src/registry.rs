//! The open flows, as `limpid flows` lists them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use proxy_core::address::{Client, Listener, Peer, Upstream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::lock::lock;
use crate::splice::{End, Progress};

/// One connection and what is known of it so far. Each field is set once, by the stage that learns
/// it.
#[derive(Debug)]
pub struct Flow {
    /// Its number in this daemon.
    pub id: u64,
    /// Who connected.
    pub peer: Peer,
    /// The address that it connected to.
    pub called: Listener,
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
    /// Cancelled when the daemon ends it.
    pub stop: CancellationToken,
    /// Why, if not because it ends itself.
    ended_by: OnceLock<End>,
}

impl Flow {
    /// Ends it, if it still has sockets; both sides get a RST.
    pub fn end(&self, why: End) {
        let _ = self.ended_by.set(why);
        self.stop.cancel();
    }

    /// How it ends where it was [stopped](Self::stop); `None`: it was not.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        let why = || self.ended_by.get().copied().unwrap_or(End::Stopped);
        self.stop.is_cancelled().then(why)
    }

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
    stop: CancellationToken,
}

impl Registry {
    /// Enters a connection that has just been accepted.
    pub fn open(&self, peer: Peer, called: Listener) -> Arc<Flow> {
        self.adopt(peer, called, Instant::now())
    }

    /// Enters a connection that was accepted by an earlier daemon.
    pub fn adopt(&self, peer: Peer, called: Listener, accepted: Instant) -> Arc<Flow> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed) + 1;
        let flow = Arc::new(Flow {
            id,
            peer,
            called,
            accepted,
            client: OnceLock::new(),
            header: OnceLock::new(),
            upstream: OnceLock::new(),
            source: OnceLock::new(),
            connect: OnceLock::new(),
            progress: Progress::default(),
            stop: self.shared.stop.child_token(),
            ended_by: OnceLock::new(),
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

    /// Ends all flows that have sockets.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// The open flow of this number.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Arc<Flow>> {
        self.flows().get(&id).cloned()
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
