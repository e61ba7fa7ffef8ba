//! What commands, metrics and connections share of a running daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use proxy_core::address::{Client, Listener, Upstream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::ReloadError;
use super::accepting::Services;
use crate::admission::{Admission, Place};
use crate::bpf::tables::Counters;
use crate::config::{self, Config, Name};
use crate::forwarded::Forwarded;
use crate::lock::lock;
use crate::pool::{Lease, Pool};
use crate::registry::Registry;
use crate::splice::{End, Limits};
use crate::steering::Steering;
use crate::takeover::Candidate;

/// The pools, by name.
pub type Pools = BTreeMap<Name, Arc<Pool>>;

/// What only the daemon's own loop can do.
#[derive(Debug)]
pub enum Order {
    /// Another daemon wants its place.
    TakeOver(Candidate),
    /// The file is to be read again; who asks is told what came of it.
    Reload(oneshot::Sender<Result<Reloaded, ReloadError>>),
}

/// What a reload has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// In words, one line.
    pub done: String,
    /// What is doubtful about the file, a line each.
    pub warnings: Vec<String>,
}

/// What the metrics read of the kernel.
#[derive(Clone, Debug)]
pub struct InKernel {
    /// The flow table.
    pub steering: Arc<Steering>,
    /// What the tc programs count.
    pub counters: Arc<Counters>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Shared {
    /// Its name.
    pub instance: String,
    /// The file that it reads, if there is one.
    pub file: Option<PathBuf>,
    /// When it was started.
    pub started: Instant,
    /// The open flows.
    pub registry: Registry,
    /// Who keeps those that have no sockets.
    pub forwarded: Forwarded,
    /// Those that have.
    pub serving: TaskTracker,
    /// Flows that there are descriptors for. Connections beyond wait in their listener's backlog, so
    /// that none is accepted only to fail.
    pub places: Arc<Semaphore>,
    pools: ArcSwap<Pools>,
    admissions: ArcSwap<BTreeMap<Name, Admission>>,
    config: ArcSwap<Config>,
    in_kernel: OnceLock<InKernel>,
    /// `None`: the daemon is ending, or taken over.
    orders: Mutex<Option<UnboundedSender<Order>>>,
}

impl Shared {
    /// That of a daemon which takes `orders`, and serves nothing yet.
    #[must_use]
    pub fn new(
        instance: String,
        file: Option<PathBuf>,
        forwarded: Forwarded,
        places: usize,
        orders: UnboundedSender<Order>,
    ) -> Self {
        Self {
            instance,
            file,
            started: Instant::now(),
            registry: Registry::default(),
            forwarded,
            serving: TaskTracker::new(),
            places: Arc::new(Semaphore::new(places)),
            pools: ArcSwap::default(),
            admissions: ArcSwap::default(),
            config: ArcSwap::default(),
            in_kernel: OnceLock::new(),
            orders: Mutex::new(Some(orders)),
        }
    }

    /// What it serves.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// The pools.
    #[must_use]
    pub fn pools(&self) -> Arc<Pools> {
        self.pools.load_full()
    }

    /// Who a listener lets in; its limits are not changed yet.
    pub(super) fn admission(&self, name: &Name, listener: &config::Listener) -> Admission {
        let known = self.admissions.load().get(name).cloned();
        known.unwrap_or_else(|| Admission::new(listener))
    }

    /// A place for a client that an earlier daemon has let in by this listener.
    #[must_use]
    pub fn place(&self, listener: &Name, client: Client) -> Option<Place> {
        Some(self.admissions.load().get(listener)?.adopt(client))
    }

    /// Another configuration, its pools and services.
    pub(super) fn serves(&self, config: Config, pools: Pools, services: &Services) {
        for (name, listener) in &config.listeners {
            if let Some(service) = services.get(name) {
                service.admission.reconfigure(listener);
            }
            self.registry.observer().metrics().listens(name);
        }
        let admissions = services.iter();
        let admissions =
            admissions.map(|(name, service)| (name.clone(), service.admission.clone()));
        self.admissions.store(Arc::new(admissions.collect()));
        self.config.store(Arc::new(config));
        let before = self.pools.swap(Arc::new(pools));
        // Connections of theirs may go on for days.
        before.values().for_each(|pool| pool.retire());
    }

    /// What there is where the tc programs run.
    #[must_use]
    pub fn in_kernel(&self) -> Option<&InKernel> {
        self.in_kernel.get()
    }

    /// The tc programs run.
    pub(super) fn runs_in_kernel(&self, in_kernel: InKernel) {
        let _ = self.in_kernel.set(in_kernel);
    }

    /// How long a flow may be silent that an earlier daemon has accepted at `called`. Where no listener has
    /// that address any more: as long as by default.
    #[must_use]
    pub fn limits_at(&self, called: Listener) -> Limits {
        let config = self.config();
        let listener = config.listener_at(called);
        listener.map_or_else(
            || Limits::of(&config::Listener::default()),
            |(_, l)| Limits::of(l),
        )
    }

    /// The names of the listener that has this address, and of its pool.
    #[must_use]
    pub fn listener_at(&self, called: Listener) -> Option<(Name, Name)> {
        let config = self.config();
        let (name, listener) = config.listener_at(called)?;
        Some((name.clone(), config.pool_of(name, listener).clone()))
    }

    /// The share of a server that a connection has which an earlier daemon has made.
    #[must_use]
    pub fn lease(&self, pool: &Name, upstream: Upstream) -> Option<Lease> {
        self.pools().get(pool)?.adopt(upstream)
    }

    /// Ends a flow: both sides get a RST. False: there is none of this number.
    #[must_use]
    pub fn end(&self, id: u64, why: End) -> bool {
        let Some(flow) = self.registry.get(id) else {
            return false;
        };
        flow.end(why);
        self.forwarded.end(id, why);
        true
    }

    /// Gives an order to the daemon's loop, or gives it back where that takes none any more.
    pub fn order(&self, order: Order) -> Result<(), Order> {
        match &*lock(&self.orders) {
            Some(orders) => orders.send(order).map_err(|refused| refused.0),
            None => Err(order),
        }
    }

    /// Does it accept no connections any more?
    #[must_use]
    pub fn is_ending(&self) -> bool {
        lock(&self.orders).is_none()
    }

    /// No more orders are taken.
    pub(super) fn is_to_end(&self) {
        *lock(&self.orders) = None;
    }

    /// Opens log files again.
    pub fn reopen_logs(&self) {
        if let Err(e) = self.registry.observer().reopen() {
            tracing::error!("--access-log: {e}");
        }
    }
}
