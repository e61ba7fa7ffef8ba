//! Pools: servers that stand for each other.
//!
//! A [`Pool`] knows the addresses behind its configured names ([`resolve`], and follows them as they change),
//! checks them, and says which server a connection goes to. What it goes by is
//! `proxy_core::balance`. Connecting is the stage `upstream`'s, which tells how it went by the [`Lease`].

use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use proxy_core::address::{Client, Upstream};
use proxy_core::balance::{
    self, Candidate, Checks as Counted, Ejection, Health, Method, Policy, Standing, choose,
};
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

mod check;
mod follow;
pub mod resolve;
mod server;
#[cfg(test)]
mod tests;

pub use balance::{Admin, State};
pub use server::{Checks, Counts, Endpoint, LastCheck, Lease, Server, Tried};

use crate::config::{self, Balance, Name, Target, TargetPort};
use crate::lock::lock;
use check::Checking;
use follow::Following;
use resolve::{LookupError, Place, Resolver};

/// Why a pool cannot start.
#[derive(Debug, Error)]
pub enum PoolError {
    /// It has no servers.
    #[error("pool {0} has no upstream: one is needed at least, as HOST:PORT")]
    Empty(Name),
    /// Two servers cannot be told apart.
    #[error("pool {pool} has two servers called {server}: a name of their own tells them apart")]
    Twice {
        /// The pool.
        pool: Name,
        /// Their name.
        server: String,
    },
    /// There is no port to connect to.
    #[error(
        "pool {pool}: {server} has no port of its own, and cannot be checked: write its port in place \
         of `same`, or leave check-interval out"
    )]
    CheckWithoutPort {
        /// The pool.
        pool: Name,
        /// The server.
        server: String,
    },
    /// None of its servers has an address.
    #[error("pool {pool} has no server: {source}")]
    Unresolved {
        /// The pool.
        pool: Name,
        /// Why the first of them has none.
        #[source]
        source: LookupError,
    },
}

/// Why there is no server for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoServer {
    /// There are none.
    #[error("the pool has no server: its names have no addresses")]
    NoneThere,
    /// Those that could take it have been tried.
    #[error("all servers that could take the connection have been tried")]
    AllTried,
    /// Checks fail.
    #[error("all servers are down")]
    AllDown,
    /// Operators want it so.
    #[error("no server takes connections: all are drained, disabled or of weight 0")]
    AllDrained,
}

impl NoServer {
    /// The reason's stable name.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoneThere => "no-server",
            Self::AllTried => "all-servers-tried",
            Self::AllDown => "all-servers-down",
            Self::AllDrained => "all-servers-drained",
        }
    }
}

/// A name that no server has.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "pool {pool} has no server {server:?}; it has {known}, and NAME/ADDRESS for one of a name's addresses"
)]
pub struct UnknownServer {
    pool: Name,
    server: String,
    known: String,
}

/// A server, for those who look at it.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// What it is called.
    pub name: Arc<str>,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its share of the connections, as configured; with SRV records, multiplied by theirs.
    pub weight: u32,
    /// Its share now: less while it starts slowly, in the unit of `weight`.
    pub effective_weight: f64,
    /// Does it wait until no primary is left?
    pub backup: bool,
    /// What it is.
    pub state: State,
    /// For how long it has been that.
    pub unchanged: Duration,
    /// Its connections.
    pub counts: Counts,
    /// What checks have found.
    pub checks: Checks,
}

/// A running pool. Its tasks end when it is dropped or [retired](Pool::retire).
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    following: Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// What the pool and its tasks share.
#[derive(Debug)]
struct Shared {
    name: Name,
    method: Method,
    policy: Policy,
    checking: Option<Checking>,
    servers: Mutex<Servers>,
}

#[derive(Debug)]
struct Servers {
    /// What is configured, in its order.
    entries: Vec<Entry>,
    /// Servers as they are now.
    members: Vec<Member>,
    /// Those that were: their connections may be open still, and they may come back.
    left: Vec<Weak<Server>>,
    /// Do servers that come now join others?
    joining: bool,
}

/// A configured server: a name or an address.
#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    weight: u32,
    backup: bool,
    /// What an operator wants of all its addresses, those to come included.
    admin: Admin,
    places: Vec<Place>,
}

/// One of its addresses.
#[derive(Debug)]
struct Member {
    entry: usize,
    server: Arc<Server>,
    weight: u32,
    candidate: Candidate,
    checking: Option<AbortOnDropHandle<()>>,
}

impl AsMut<Candidate> for Member {
    fn as_mut(&mut self) -> &mut Candidate {
        &mut self.candidate
    }
}

impl Pool {
    /// Starts a pool: looks its names up, and begins to follow and to check them.
    ///
    /// A name that has no address does not keep the others from being used: it is logged, and asked for
    /// again. Only a pool without any address is an error.
    ///
    /// `before` is the pool of that name before a reload. Servers that are the same by name and address keep
    /// all that is known of them, and a name that cannot be resolved now keeps its addresses.
    ///
    /// `changed` is notified when servers come or go: the way to them may lead over other interfaces.
    pub async fn start(
        name: &Name,
        config: &config::Pool,
        resolver: &Resolver,
        before: Option<&Self>,
        changed: Arc<Notify>,
    ) -> Result<Arc<Self>, PoolError> {
        let before = before.map(|pool| &*pool.shared);
        let shared = Arc::new(Shared::new(name, config, before)?);
        let follow = |server: &config::Server| {
            Following::new(
                server.target.clone(),
                resolver.clone(),
                Arc::clone(&changed),
            )
        };
        let mut names: Vec<Following> = config.upstream.iter().map(follow).collect();
        let found = join_all(names.iter_mut().map(Following::first)).await;
        let mut first_error = None;
        let mut following = Vec::new();
        for (index, (name, found)) in names.into_iter().zip(found).enumerate() {
            let found = match found {
                Ok(found) => {
                    shared.update(index, found.places.clone(), before);
                    Some(found)
                }
                Err(error) => {
                    shared.resume(index, before);
                    tracing::warn!(pool = %shared.name, %error, "a server's name is not resolved");
                    first_error.get_or_insert(error);
                    None
                }
            };
            if name.is_a_name() {
                let run = name.run(Arc::clone(&shared), index, found);
                following.push(AbortOnDropHandle::new(tokio::spawn(run)));
            }
        }
        let mut servers = lock(&shared.servers);
        servers.joining = true;
        let empty = servers.members.is_empty();
        drop(servers);
        match first_error {
            Some(source) if empty => Err(PoolError::Unresolved {
                pool: name.clone(),
                source,
            }),
            _ => Ok(Arc::new(Self {
                shared,
                following: Mutex::new(following),
            })),
        }
    }

    /// Another pool has its place (a reload): names are not followed and servers not checked any more.
    /// Connections that have come to it are still given servers.
    pub fn retire(&self) {
        lock(&self.following).clear();
        for member in &mut lock(&self.shared.servers).members {
            member.checking = None;
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// The server for a connection of `client`, which has called port `called`; none of those that have
    /// been `tried`.
    pub fn pick(&self, client: Client, called: u16, tried: &Tried) -> Result<Lease, NoServer> {
        let Shared { method, policy, .. } = *self.shared;
        let now = Instant::now();
        let members = &mut lock(&self.shared.servers).members;
        for member in &mut *members {
            let (state, weight) = member.server.standing(member.weight, now, &policy);
            member.candidate.weight = weight;
            member.candidate.open = member.server.open();
            member.candidate.standing = if tried.contains(&member.server) {
                Standing::Unusable
            } else {
                state.standing()
            };
        }
        let chosen = choose(method, client.ip(), members).and_then(|index| members.get(index));
        match chosen {
            Some(member) => Ok(Lease::new(&member.server, called, policy)),
            None => Err(no_server(members, tried, &policy)),
        }
    }

    /// The lease of a connection to `upstream` that another daemon has made; `None` where no server is there.
    #[must_use]
    pub fn adopt(&self, upstream: Upstream) -> Option<Lease> {
        let servers = lock(&self.shared.servers);
        let is_there =
            |member: &&Member| member.server.endpoint().upstream(upstream.port()) == upstream;
        let member = servers.members.iter().find(is_there)?;
        Some(Lease::new(
            &member.server,
            upstream.port(),
            self.shared.policy,
        ))
    }

    /// The addresses of all servers, and of those that have left while connections to them are open.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let servers = lock(&self.shared.servers);
        let left = servers.left.iter().filter_map(Weak::upgrade);
        let left = left.filter(|server| server.open() > 0);
        let here = servers.members.iter().map(|m| Arc::clone(&m.server));
        let mut addresses: Vec<IpAddr> = here.chain(left).map(|s| s.endpoint().ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// All servers, in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerView> {
        let policy = &self.shared.policy;
        let now = Instant::now();
        let servers = lock(&self.shared.servers);
        let mut members: Vec<&Member> = servers.members.iter().collect();
        members.sort_by_key(|m| (m.entry, m.server.endpoint()));
        let view = |member: &Member| {
            let (state, weight) = member.server.standing(member.weight, now, policy);
            ServerView {
                name: member.server.name().into(),
                endpoint: member.server.endpoint(),
                weight: member.weight,
                effective_weight: f64::from(weight) / f64::from(balance::WEIGHT_UNIT),
                backup: member.candidate.backup,
                state,
                unchanged: member.server.since().elapsed(),
                counts: member.server.counts(),
                checks: member.server.checks(),
            }
        };
        members.into_iter().map(view).collect()
    }

    /// Says what is wanted of a server: `NAME` is all addresses of it, those to come included; `NAME/ADDRESS`
    /// is one of them. Returns how many servers it is now.
    pub fn set(&self, server: &str, admin: Admin) -> Result<usize, UnknownServer> {
        let policy = &self.shared.policy;
        let mut servers = lock(&self.shared.servers);
        let mut known = false;
        for entry in &mut servers.entries {
            if *entry.name == *server {
                entry.admin = admin;
                known = true;
            }
        }
        // Those that have left may come back.
        for left in servers.left.iter().filter_map(Weak::upgrade) {
            if left.is_called(server) {
                left.set(admin, policy);
            }
        }
        let mut count = 0;
        for member in &servers.members {
            if member.server.is_called(server) {
                member.server.set(admin, policy);
                count += 1;
            }
        }
        if known || count > 0 {
            return Ok(count);
        }
        let names: Vec<&str> = servers.entries.iter().map(|e| &*e.name).collect();
        Err(UnknownServer {
            pool: self.shared.name.clone(),
            server: server.to_owned(),
            known: names.join(", "),
        })
    }
}

/// Why none could be chosen.
fn no_server(members: &[Member], tried: &Tried, policy: &Policy) -> NoServer {
    let now = Instant::now();
    let is_down = |member: &Member| {
        let (state, _) = member.server.standing(member.weight, now, policy);
        state == State::Down && member.weight > 0
    };
    if members.is_empty() {
        NoServer::NoneThere
    } else if members.iter().any(|m| tried.contains(&m.server)) {
        NoServer::AllTried
    } else if members.iter().any(is_down) {
        NoServer::AllDown
    } else {
        NoServer::AllDrained
    }
}

impl Shared {
    /// A pool without addresses yet.
    fn new(name: &Name, config: &config::Pool, before: Option<&Self>) -> Result<Self, PoolError> {
        let mut entries: Vec<Entry> = Vec::new();
        for server in &config.upstream {
            let called = match &server.name {
                Some(name) => name.to_string(),
                None => server.target.to_string(),
            };
            let has_port = match &server.target {
                Target::Host { port, .. } => *port != TargetPort::Same,
                Target::Service(_) => true,
            };
            if config.check_interval.is_some() && !has_port {
                return Err(PoolError::CheckWithoutPort {
                    pool: name.clone(),
                    server: called,
                });
            }
            if entries.iter().any(|entry| *entry.name == *called) {
                return Err(PoolError::Twice {
                    pool: name.clone(),
                    server: called,
                });
            }
            entries.push(Entry {
                weight: server.weight.get(),
                backup: server.backup,
                admin: before.map_or(Admin::Ready, |before| before.admin(&called)),
                name: called.into(),
                places: Vec::new(),
            });
        }
        if entries.is_empty() {
            return Err(PoolError::Empty(name.clone()));
        }
        let policy = policy(config);
        Ok(Self {
            name: name.clone(),
            method: match config.balance {
                Balance::RoundRobin => Method::RoundRobin,
                Balance::LeastConnections => Method::LeastConnections,
                Balance::Source => Method::Source,
            },
            policy,
            checking: Checking::new(config, policy),
            servers: Mutex::new(Servers {
                entries,
                members: Vec::new(),
                left: before.map_or_else(Vec::new, Self::all),
                joining: before.is_some(),
            }),
        })
    }

    /// All servers that there are and were.
    fn all(&self) -> Vec<Weak<Server>> {
        let servers = lock(&self.servers);
        let members = servers.members.iter().map(|m| Arc::downgrade(&m.server));
        members.chain(servers.left.iter().cloned()).collect()
    }

    /// What an operator wants of all addresses of a name.
    fn admin(&self, name: &str) -> Admin {
        let servers = lock(&self.servers);
        let entry = servers.entries.iter().find(|entry| *entry.name == *name);
        entry.map_or(Admin::Ready, |entry| entry.admin)
    }

    /// The addresses of the configured server `index`.
    fn places(&self, index: usize) -> Vec<Place> {
        let servers = lock(&self.servers);
        let entry = servers.entries.get(index);
        entry.map_or_else(Vec::new, |entry| entry.places.clone())
    }

    /// Takes the addresses that the server had in `before`.
    fn resume(&self, index: usize, before: Option<&Self>) {
        let name = lock(&self.servers)
            .entries
            .get(index)
            .map(|e| Arc::clone(&e.name));
        let places = before.zip(name).and_then(|(before, name)| {
            let servers = lock(&before.servers);
            let entry = servers.entries.iter().find(|entry| entry.name == name)?;
            Some(entry.places.clone())
        });
        self.update(index, places.unwrap_or_default(), before);
    }

    /// Is the server one of those that there are now?
    fn has(&self, server: &Arc<Server>) -> bool {
        let servers = lock(&self.servers);
        servers
            .members
            .iter()
            .any(|m| Arc::ptr_eq(&m.server, server))
    }

    /// Gives the configured server `index` these addresses. Returns whether servers have come or gone.
    /// Those of the pool `before` a reload are not logged as joining.
    fn update(&self, index: usize, places: Vec<Place>, before: Option<&Self>) -> bool {
        let mut servers = lock(&self.servers);
        let Servers {
            entries,
            members,
            left,
            joining,
        } = &mut *servers;
        let Some(entry) = entries.get_mut(index) else {
            return false;
        };
        let mut changed = false;
        members.retain(|member| {
            let endpoint = member.server.endpoint();
            let stays = member.entry != index || places.iter().any(|p| p.endpoint == endpoint);
            if !stays {
                tracing::info!(pool = %self.name, server = %member.server, "server has left");
                left.push(Arc::downgrade(&member.server));
                changed = true;
            }
            stays
        });
        for place in &places {
            let weight = entry.weight.saturating_mul(place.weight);
            let backup = entry.backup || place.backup;
            let is_it = |m: &&mut Member| m.entry == index && m.server.endpoint() == place.endpoint;
            if let Some(member) = members.iter_mut().find(is_it) {
                member.weight = weight;
                member.candidate.backup = backup;
                continue;
            }
            changed = true;
            let server = self.server(entry, place.endpoint, left, *joining);
            if *joining && !before.is_some_and(|before| before.has(&server)) {
                tracing::info!(pool = %self.name, %server, "server has joined");
            }
            let key = balance::key(place.endpoint.ip(), place.endpoint.port());
            members.push(Member {
                entry: index,
                weight,
                candidate: Candidate::new(key, place.endpoint.ip(), backup),
                checking: self.check(&server),
                server,
            });
        }
        let is_back = |server: &Server| members.iter().any(|m| std::ptr::eq(&*m.server, server));
        left.retain(|server| server.upgrade().is_some_and(|server| !is_back(&server)));
        entry.places = places;
        changed
    }

    /// The server of `entry` at `endpoint`: one that was there before, or a new one.
    fn server(
        &self,
        entry: &Entry,
        endpoint: Endpoint,
        left: &[Weak<Server>],
        joining: bool,
    ) -> Arc<Server> {
        let mut known = left.iter().filter_map(Weak::upgrade);
        if let Some(server) = known.find(|server| server.is(&entry.name, endpoint)) {
            return server;
        }
        let now = Instant::now();
        let mut health = if joining {
            Health::joining(now)
        } else {
            Health::new(now)
        };
        health.set(entry.admin, now, &self.policy);
        let server = Server::new(self.name.clone(), Arc::clone(&entry.name), endpoint, health);
        Arc::new(server)
    }

    fn check(&self, server: &Arc<Server>) -> Option<AbortOnDropHandle<()>> {
        let checking = self.checking?;
        // SRV records and the configuration have given it a port.
        let upstream = server.endpoint().upstream(server.endpoint().port()?);
        let run = checking.run(Arc::clone(server), upstream);
        Some(AbortOnDropHandle::new(tokio::spawn(run)))
    }
}

fn policy(config: &config::Pool) -> Policy {
    Policy {
        checks: config.check_interval.map(|_| Counted {
            rise: config.rise.get(),
            fall: config.fall.get(),
        }),
        ejection: (config.eject_after.get() > 0).then(|| Ejection {
            after: config.eject_after.get(),
            time: config.eject_time.get(),
        }),
        slow_start: config.slow_start.map(config::Time::get),
    }
}
