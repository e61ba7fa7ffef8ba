//! One server of a pool, and a connection's share of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxy_core::address::Upstream;
use proxy_core::balance::{Admin, Change, Health, Policy, State};

use super::check::CheckError;
use crate::config::{Name, TargetPort};
use crate::lock::lock;

/// Where a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    ip: IpAddr,
    port: Option<u16>,
}

impl Endpoint {
    /// At `ip`; an IPv4-mapped address is IPv4.
    #[must_use]
    pub fn new(ip: IpAddr, port: TargetPort) -> Self {
        Self {
            ip: ip.to_canonical(),
            port: match port {
                TargetPort::Is(port) => Some(port),
                TargetPort::Same => None,
            },
        }
    }

    /// Its address.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// Its port; `None`: the one that the client has called.
    #[must_use]
    pub fn port(self) -> Option<u16> {
        self.port
    }

    /// What a client that called port `called` is connected to.
    #[must_use]
    pub fn upstream(self, called: u16) -> Upstream {
        Upstream::new(SocketAddr::new(self.ip, self.port.unwrap_or(called)))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.port) {
            (ip, Some(port)) => SocketAddr::new(ip, port).fmt(f),
            (IpAddr::V4(ip), None) => write!(f, "{ip}:same"),
            (IpAddr::V6(ip), None) => write!(f, "[{ip}]:same"),
        }
    }
}

/// A server: one address of what is configured. Pools that follow each other in reloads share it.
#[derive(Debug)]
pub struct Server {
    pool: Name,
    name: Arc<str>,
    endpoint: Endpoint,
    health: Mutex<Health>,
    open: AtomicU32,
    total: AtomicU64,
    failed: AtomicU64,
    ejections: AtomicU64,
    connect: Mutex<Option<Duration>>,
    checks: Mutex<Checks>,
}

/// What has become of a server's connections.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Open now.
    pub open: u32,
    /// Given to it, whatever has become of them.
    pub total: u64,
    /// Those of them that could not be made.
    pub failed: u64,
    /// How often it was ejected for that.
    pub ejections: u64,
    /// How long the last one that could took to connect.
    pub connect: Option<Duration>,
}

/// What checks have found.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// How many have succeeded.
    pub succeeded: u64,
    /// How many have failed.
    pub failed: u64,
    /// The last one.
    pub last: Option<LastCheck>,
}

/// A check that is over.
#[derive(Clone, Debug)]
pub struct LastCheck {
    /// How long it took.
    pub took: Duration,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Server {
    pub(super) fn new(pool: Name, name: Arc<str>, endpoint: Endpoint, health: Health) -> Self {
        Self {
            pool,
            name,
            endpoint,
            health: Mutex::new(health),
            open: AtomicU32::new(0),
            total: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            connect: Mutex::default(),
            checks: Mutex::default(),
        }
    }

    /// The pool that it is of.
    #[must_use]
    pub fn pool(&self) -> &Name {
        &self.pool
    }

    /// What it is called: servers of one name share it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn is(&self, name: &str, endpoint: Endpoint) -> bool {
        *self.name == *name && self.endpoint == endpoint
    }

    /// Is `text` its name, or `NAME/ADDRESS`?
    pub(super) fn is_called(&self, text: &str) -> bool {
        *self.name == *text
            || text.split_once('/').is_some_and(|(name, endpoint)| {
                *self.name == *name && self.endpoint.to_string() == endpoint
            })
    }

    pub(super) fn is_checked(&self) -> bool {
        lock(&self.health).admin() != Admin::Down
    }

    /// Its state and effective weight `now`.
    pub(super) fn standing(&self, weight: u32, now: Instant, policy: &Policy) -> (State, u32) {
        let mut health = lock(&self.health);
        let change = health.refresh(now, policy);
        let standing = (health.state(), health.weight(weight, now, policy));
        drop(health);
        self.log(change, "time has passed");
        standing
    }

    pub(super) fn since(&self) -> Instant {
        lock(&self.health).since()
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            open: self.open(),
            total: self.total.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ejections: self.ejections.load(Ordering::Relaxed),
            connect: *lock(&self.connect),
        }
    }

    pub(super) fn checks(&self) -> Checks {
        lock(&self.checks).clone()
    }

    pub(super) fn set(&self, admin: Admin, policy: &Policy) {
        self.tell("set by an operator", |health, now| {
            health.set(admin, now, policy)
        });
    }

    pub(super) fn checked(&self, took: Duration, error: Option<&CheckError>, policy: &Policy) {
        let mut checks = lock(&self.checks);
        match error {
            None => checks.succeeded += 1,
            Some(_) => checks.failed += 1,
        }
        let error_text = error.map(ToString::to_string);
        checks.last = Some(LastCheck {
            took,
            error: error_text.clone(),
        });
        drop(checks);
        let reason = error_text.as_deref().unwrap_or("checks have succeeded");
        self.tell(reason, |health, now| {
            health.checked(error.is_none(), now, policy)
        });
    }

    fn tell(&self, reason: &str, what: impl FnOnce(&mut Health, Instant) -> Option<Change>) {
        let change = what(&mut lock(&self.health), Instant::now());
        if change.is_some_and(|change| change.to == State::Ejected) {
            self.ejections.fetch_add(1, Ordering::Relaxed);
        }
        self.log(change, reason);
    }

    fn log(&self, change: Option<Change>, reason: &str) {
        macro_rules! log {
            ($level:ident, $change:expr) => {
                tracing::$level!(
                    pool = %self.pool,
                    server = %self,
                    from = $change.from.label(),
                    to = $change.to.label(),
                    reason,
                    "server has changed"
                )
            };
        }
        match change {
            Some(change) if matches!(change.to, State::Ejected | State::Down) => log!(warn, change),
            Some(change) => log!(info, change),
            None => {}
        }
    }
}

/// `NAME/ADDRESS`, or the address alone where that is the name.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.to_string();
        if *self.name == *endpoint {
            f.write_str(&endpoint)
        } else {
            write!(f, "{}/{endpoint}", self.name)
        }
    }
}

/// One connection's share of a server: counted as open until it is dropped.
#[derive(Debug)]
pub struct Lease {
    server: Arc<Server>,
    upstream: Upstream,
    policy: Policy,
}

impl Lease {
    pub(super) fn new(server: &Arc<Server>, called: u16, policy: Policy) -> Self {
        server.open.fetch_add(1, Ordering::Relaxed);
        server.total.fetch_add(1, Ordering::Relaxed);
        Self {
            upstream: server.endpoint.upstream(called),
            server: Arc::clone(server),
            policy,
        }
    }

    /// What to connect to.
    #[must_use]
    pub fn upstream(&self) -> Upstream {
        self.upstream
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The connection has been made, in this time.
    pub fn connected(&self, took: Duration) {
        *lock(&self.server.connect) = Some(took);
        self.server
            .tell("a connection has been made", |health, now| {
                health.connected(now, &self.policy)
            });
    }

    /// The server could not be connected to. Not for what it has no part in: the client that left, an address
    /// that cannot be had.
    pub fn failed(&self) {
        self.server.failed.fetch_add(1, Ordering::Relaxed);
        self.server
            .tell("clients' connections have failed", |health, now| {
                health.failed(now, &self.policy)
            });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The servers that have been tried for a connection.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<Arc<Server>>);

impl Tried {
    /// The lease's server has been tried.
    pub fn add(&mut self, lease: &Lease) {
        self.0.push(Arc::clone(&lease.server));
    }

    /// How many have been tried.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, server: &Arc<Server>) -> bool {
        self.0.iter().any(|tried| Arc::ptr_eq(tried, server))
    }
}
