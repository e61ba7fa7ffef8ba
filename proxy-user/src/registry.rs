//! The open flows, as `limpid flows` lists them and as the metrics count them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use proxy_core::address::{Client, Listener, Peer, Upstream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::access_log::Concurrency;
use crate::config::Name;
use crate::lock::lock;
use crate::metrics::Totals;
use crate::pool::Lease;
use crate::record::Observer;
use crate::send_proxy::UniqueId;
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
    /// The backend.
    pub upstream: OnceLock<Upstream>,
    /// The source that the backend sees.
    pub source: OnceLock<SocketAddr>,
    /// What the connection is known by along the chain: the ID of the header that came, else the one that
    /// the backend gets.
    pub unique_id: OnceLock<UniqueId>,
    /// What the splice has moved.
    pub progress: Progress,
    /// Cancelled when the daemon ends it.
    pub stop: CancellationToken,
    /// Why, if not because the daemon ends itself.
    ended_by: OnceLock<End>,
    header: OnceLock<Duration>,
    connect: OnceLock<Duration>,
    listener: OnceLock<Name>,
    pool: OnceLock<Name>,
    server: OnceLock<Arc<str>>,
    retries: AtomicU32,
    counted: Counted,
    shared: Arc<Shared>,
}

/// What the metrics have of a flow's bytes: those to the backend, and those to the client.
#[derive(Debug, Default)]
struct Counted {
    most: [AtomicU64; 2],
    before: OnceLock<[u64; 2]>,
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

    /// The header took so long.
    pub fn header_took(&self, time: Duration) {
        if self.header.set(time).is_ok() {
            self.shared
                .observer
                .metrics()
                .header_took(self.listener(), time);
        }
    }

    /// How long the header took.
    #[must_use]
    pub fn header(&self) -> Option<Duration> {
        self.header.get().copied()
    }

    /// Connecting took so long, retries included.
    pub fn connect_took(&self, time: Duration) {
        if self.connect.set(time).is_ok() {
            self.shared
                .observer
                .metrics()
                .connect_took(self.pool(), time);
        }
    }

    /// How long connecting took.
    #[must_use]
    pub fn connect(&self) -> Option<Duration> {
        self.connect.get().copied()
    }

    /// It came by this listener. To be said before the engine is: metrics by engine have the listener too.
    pub fn came_by(&self, listener: &Name) {
        // Under the lock: whoever counts sees both or neither.
        let mut open = self.shared.open();
        if self.listener.set(listener.clone()).is_ok() {
            *open.listeners.entry(listener.clone()).or_default() += 1;
        }
    }

    /// The listener; `None` for an adopted flow whose listener is not there any more.
    #[must_use]
    pub fn listener(&self) -> Option<&Name> {
        self.listener.get()
    }

    /// It goes to this pool. To be said before the engine is.
    pub fn goes_to(&self, pool: &Name) {
        let mut open = self.shared.open();
        if self.pool.set(pool.clone()).is_ok() {
            *open.pools.entry(pool.clone()).or_default() += 1;
        }
    }

    /// The pool, once it is chosen.
    #[must_use]
    pub fn pool(&self) -> Option<&Name> {
        self.pool.get()
    }

    /// This server of the pool has it; or was the last that was tried.
    pub fn served_by(&self, server: Arc<str>) {
        let mut open = self.shared.open();
        if self.server.set(Arc::clone(&server)).is_ok() {
            let pool = self.pool().cloned().unwrap_or_default();
            *open.servers.entry((pool, server)).or_default() += 1;
        }
    }

    /// The server that has it, or the last that was tried, and where that is.
    pub fn is_at(&self, lease: &Lease) {
        let _ = self.upstream.set(lease.upstream());
        self.served_by(lease.server().name().into());
    }

    /// The server, once it is known.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        self.server.get().map(AsRef::as_ref)
    }

    /// Connecting has failed, and another server is tried.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// How many servers were tried in vain.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries.load(Relaxed)
    }

    /// What it has carried so far was another daemon's to count. The access line has all of it.
    pub fn count_from_here(&self) {
        let _ = self.counted.before.set(self.bytes());
    }

    /// Payload to the backend and to the client that this daemon counts. It never goes back, even where an
    /// entry of the kernel's tables that has the count is removed by somebody else.
    #[must_use]
    pub fn counted_bytes(&self) -> [u64; 2] {
        let before = self.counted.before.get().copied().unwrap_or_default();
        let [up, down] = self.bytes();
        let most = |i: usize, now: u64| {
            let earlier = self.counted.most[i].fetch_max(now, Relaxed);
            earlier.max(now).saturating_sub(before[i])
        };
        [most(0, up), most(1, down)]
    }

    fn bytes(&self) -> [u64; 2] {
        [self.progress.bytes_up(), self.progress.bytes_down()]
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
    observer: Observer,
    open: Mutex<Open>,
    stop: CancellationToken,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

/// What is open, and the sum of what was.
#[derive(Debug, Default)]
struct Open {
    flows: BTreeMap<u64, Arc<Flow>>,
    listeners: BTreeMap<Name, u64>,
    pools: BTreeMap<Name, u64>,
    servers: BTreeMap<(Name, Arc<str>), u64>,
    /// Beside the flows, under one lock: a flow is in the one or the other.
    ended: Totals,
}

impl Registry {
    /// One whose records are told to `observer`.
    #[must_use]
    pub fn new(observer: Observer) -> Self {
        let shared = Shared {
            observer,
            ..Shared::default()
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Who is told of its records.
    #[must_use]
    pub fn observer(&self) -> &Observer {
        &self.shared.observer
    }

    /// Enters a connection that has just been accepted.
    pub fn open(&self, peer: Peer, called: Listener) -> Arc<Flow> {
        self.adopt(peer, called, Instant::now())
    }

    /// Enters a connection that was accepted by an earlier daemon.
    pub fn adopt(&self, peer: Peer, called: Listener, accepted: Instant) -> Arc<Flow> {
        let id = self.shared.next.fetch_add(1, Relaxed) + 1;
        let flow = Arc::new(Flow {
            id,
            peer,
            called,
            accepted,
            client: OnceLock::new(),
            upstream: OnceLock::new(),
            source: OnceLock::new(),
            unique_id: OnceLock::new(),
            progress: Progress::default(),
            stop: self.shared.stop.child_token(),
            ended_by: OnceLock::new(),
            header: OnceLock::new(),
            connect: OnceLock::new(),
            listener: OnceLock::new(),
            pool: OnceLock::new(),
            server: OnceLock::new(),
            retries: AtomicU32::new(0),
            counted: Counted::default(),
            shared: Arc::clone(&self.shared),
        });
        self.shared.open().flows.insert(id, Arc::clone(&flow));
        flow
    }

    /// Strikes a flow out. Returns how many were open, it included.
    pub fn close(&self, flow: &Flow) -> Concurrency {
        let mut open = self.shared.open();
        let process = open.flows.len() as u64;
        if open.flows.remove(&flow.id).is_some() {
            open.ended.add(flow);
        }
        if open.flows.is_empty() {
            self.shared.emptied.notify_waiters();
        }
        let server = flow.server.get().map(|server| {
            let pool = flow.pool().cloned().unwrap_or_default();
            (pool, Arc::clone(server))
        });
        Concurrency {
            process,
            listener: leave(&mut open.listeners, flow.listener()),
            pool: leave(&mut open.pools, flow.pool()),
            server: leave(&mut open.servers, server.as_ref()),
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
        self.shared.open().flows.get(&id).cloned()
    }

    /// The open flows, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Flow>> {
        self.shared.open().flows.values().cloned().collect()
    }

    /// The open flows, and the sum of those that have ended.
    #[must_use]
    pub fn count(&self) -> (Vec<Arc<Flow>>, Totals) {
        let open = self.shared.open();
        (open.flows.values().cloned().collect(), open.ended.clone())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.open().flows.len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.open().flows.is_empty()
    }
}

/// One less of `key`; returns how many there were. Names that nobody has any more are forgotten.
fn leave<K: Ord>(counts: &mut BTreeMap<K, u64>, key: Option<&K>) -> u64 {
    let Some((key, count)) = key.and_then(|key| Some((key, counts.get_mut(key)?))) else {
        return 0;
    };
    let before = *count;
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::new("192.0.2.1:1".parse().expect("an address"))
    }

    fn called() -> Listener {
        Listener::new("192.0.2.2:2".parse().expect("an address"))
    }

    #[test]
    fn names_are_counted_while_somebody_has_them() {
        let registry = Registry::default();
        let (listener, pool) = (
            "in".parse().expect("a name"),
            "out".parse().expect("a name"),
        );
        let flows = [
            registry.open(peer(), called()),
            registry.open(peer(), called()),
        ];
        for flow in &flows {
            flow.came_by(&listener);
            // Each is set once.
            flow.came_by(&pool);
        }
        flows[0].goes_to(&pool);
        flows[0].served_by("a".into());
        let all = Concurrency {
            process: 2,
            listener: 2,
            pool: 1,
            server: 1,
        };
        assert_eq!(registry.close(&flows[0]), all);
        let one = Concurrency {
            process: 1,
            listener: 1,
            pool: 0,
            server: 0,
        };
        assert_eq!(registry.close(&flows[1]), one);
        let open = registry.shared.open();
        assert!(open.listeners.is_empty() && open.pools.is_empty() && open.servers.is_empty());
    }

    #[test]
    fn bytes_before_the_adoption_are_not_counted() {
        let flow = Registry::default().adopt(peer(), called(), Instant::now());
        flow.progress.sent_up(1000);
        flow.count_from_here();
        assert_eq!(flow.counted_bytes(), [0, 0]);
        flow.progress.sent_up(10);
        assert_eq!(flow.counted_bytes(), [10, 0]);
    }
}
