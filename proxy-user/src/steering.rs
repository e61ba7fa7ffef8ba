//! Steering, seen from userspace: which address a backend sees, from before the SYN until after the
//! last packet.
//!
//! [`Steering::claim`] reserves the client's address and port towards a backend and announces the
//! socket; the tc programs do the rest when the SYN leaves ([`proxy_common::flow`]). The
//! [`Identity`] that it returns keeps the entries while the socket lives, and hands them to the
//! linger list when it is dropped: the kernel may still have a FIN to send, and a TIME-WAIT to
//! answer in the client's name.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proxy_common::flow::{
    Connecting, OFFER_ALL, SEEN_FIN, SEEN_RST, SEEN_SYN, STEER_IN, Translation, Tuple,
};
use proxy_core::address::{Client, Upstream};
use thiserror::Error;

use crate::bpf::forwards::ForwardTable;
use crate::bpf::tables::{FlowTable, ReserveError};
use crate::lock::lock;
use crate::sys;

/// How long entries stay after the last packet of a flow that both sides have closed: long enough
/// for a lost last ACK to be asked for again (a retransmission timeout is 200 ms and doubles).
const LINGER_CLOSED: Duration = Duration::from_secs(2);

/// How long entries stay after the last packet of a flow that is not closed. The kernel gives up on
/// an orphaned socket in about 100 s (`tcp_orphan_retries`, 8).
const LINGER_OPEN: Duration = Duration::from_secs(130);

/// How many other ports are tried where the client's own is taken.
const PORT_ATTEMPTS: usize = 64;

/// Ports given to flows whose client's port is taken; 1024 to 65535.
const FALLBACK_PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// From one port of our own to the next at most: how hard the next is to guess, and how soon one comes again.
const OWN_PORT_STEP: u16 = 8;

/// Why a flow could not get its client's address.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Client and backend speak different versions of IP.
    #[error(
        "client {client} and upstream {upstream} are of different families, so the backend cannot \
         see the client's address (--source-mismatch proxy uses the proxy's instead)"
    )]
    FamilyMismatch {
        /// The client.
        client: Client,
        /// The backend.
        upstream: Upstream,
    },
    /// No reply to this address could ever come back.
    #[error("client address {client} cannot be the source of a connection: it is {what}")]
    ClientAddress {
        /// The client.
        client: Client,
        /// What kind of address it is.
        what: &'static str,
    },
    /// All ports tried are in use by other flows of this client to this backend.
    #[error(
        "client {client} has no free port towards {upstream} ({PORT_ATTEMPTS} others were tried)"
    )]
    PortsTaken {
        /// The client.
        client: Client,
        /// The backend.
        upstream: Upstream,
    },
    /// As many flows as allowed are open.
    #[error("{0} flows are open, as many as --max-flows allows")]
    TooMany(usize),
    /// The flow table did not take it.
    #[error(transparent)]
    Table(#[from] ReserveError),
    /// The socket's cookie could not be read.
    #[error("SO_COOKIE: {0}")]
    Cookie(#[source] std::io::Error),
}

impl ClaimError {
    /// The reason's stable name.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::FamilyMismatch { .. } => "family-mismatch",
            Self::ClientAddress { .. } => "client-address-unusable",
            Self::PortsTaken { .. } => "client-ports-taken",
            Self::TooMany(_) | Self::Table(ReserveError::Full) => "flow-table-full",
            Self::Table(ReserveError::Taken | ReserveError::Map(_)) => "flow-table-error",
            Self::Cookie(_) => "socket-error",
        }
    }
}

/// The flow table and those entries whose sockets are closed.
#[derive(Debug)]
pub struct Steering {
    table: FlowTable,
    /// Where flows of the engine `packet` linger.
    forwards: Arc<ForwardTable>,
    max_flows: usize,
    /// Ports that the kernel gives to sockets that do not ask for one.
    local_ports: RangeInclusive<u16>,
    /// The port of our own that was tried last.
    own_port: AtomicU16,
    /// The flows that are this daemon's: those with an [`Identity`].
    open: Mutex<HashSet<u64>>,
    lingering: Mutex<HashMap<Tuple, Lingering>>,
}

/// Entries without an owner; the key beside it is the `STEER_IN` entry's.
#[derive(Clone, Copy, Debug)]
struct Lingering {
    flow: u64,
    /// The `STEER_OUT` entry, once the SYN has left.
    out: Option<Tuple>,
    /// The connection was made. If it was not, closing its socket has sent nothing, and nothing is
    /// left to say in the client's name.
    established: bool,
}

/// What an upstream connection may offer its backend: no more than the downstream one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Largest segment that it asks for, in bytes; 0: as the kernel wants.
    pub mss: u16,
    /// `OFFER_*` bits of [`proxy_common::flow`].
    pub options: u16,
}

impl Offer {
    /// As the kernel wants.
    pub const ANY: Self = Self {
        mss: 0,
        options: OFFER_ALL,
    };
}

impl Steering {
    /// A table with what an earlier daemon has left in it, which stays as it is until
    /// [`Self::inherit`].
    #[must_use]
    pub fn new(table: FlowTable, forwards: Arc<ForwardTable>, max_flows: usize) -> Arc<Self> {
        Arc::new(Self {
            table,
            forwards,
            max_flows,
            local_ports: sys::local_ports(),
            own_port: AtomicU16::new(fastrand::u16(..)),
            open: Mutex::default(),
            lingering: Mutex::default(),
        })
    }

    /// The earlier daemon is gone: the entries of its sockets linger, and none of them will connect any
    /// more. Those of flows that were adopted ([`Self::adopt`]) are ours by now.
    pub fn inherit(&self) {
        let entries = self.table.entries();
        let mut lingering = self.lingering();
        for (tuple, entry) in entries {
            if self.is_open(entry.flow) {
                continue;
            }
            let (reply, out) = match entry.action {
                STEER_IN if entry.seen & SEEN_SYN == 0 => (tuple, None),
                STEER_IN => (tuple, Some(entry.rewrite.reversed())),
                // Its other entry may have been lost when the daemon died.
                _ => (entry.rewrite.reversed(), Some(tuple)),
            };
            let flow = Lingering {
                flow: entry.flow,
                out,
                established: true,
            };
            let known = lingering.entry(reply).or_insert(flow);
            if known.flow == flow.flow {
                known.out = known.out.or(out);
            } else {
                *known = flow;
            }
        }
        drop(lingering);
        self.table.withdraw_all_but(|flow| self.is_open(flow));
    }

    /// How many flows are open or linger, and how many may be open.
    #[must_use]
    pub fn fill(&self) -> (usize, usize) {
        let open = lock(&self.open).len();
        (open + self.lingering().len(), self.max_flows)
    }

    /// Is the flow this daemon's?
    #[must_use]
    pub fn is_open(&self, flow: u64) -> bool {
        lock(&self.open).contains(&flow)
    }

    /// Gives the connection that `socket` is about to make the address of `client`, and its port
    /// where that is free.
    pub fn claim(
        self: &Arc<Self>,
        socket: &impl std::os::fd::AsFd,
        client: Client,
        upstream: Upstream,
        offer: Offer,
    ) -> Result<Identity, ClaimError> {
        if client.ip().is_ipv4() != upstream.ip().is_ipv4() {
            return Err(ClaimError::FamilyMismatch { client, upstream });
        }
        if let Some(what) = unusable(client, upstream) {
            return Err(ClaimError::ClientAddress { client, what });
        }
        let wanted = (client.port() != 0).then_some(client.port());
        let others = std::iter::repeat_with(|| fastrand::u16(FALLBACK_PORTS)).take(PORT_ATTEMPTS);
        self.claim_one(
            socket,
            client,
            upstream,
            offer,
            wanted.into_iter().chain(others),
        )
    }

    /// Gives the connection that `socket` is about to make a port of this host's address `own`, one that
    /// is the flow's even when no socket has it: none of those that the kernel gives away
    /// (`ip_local_port_range`).
    pub fn claim_own(
        self: &Arc<Self>,
        socket: &impl std::os::fd::AsFd,
        own: IpAddr,
        upstream: Upstream,
        offer: Offer,
    ) -> Result<Identity, ClaimError> {
        let client = Client::new(SocketAddr::new(own, 0));
        let ports = std::iter::repeat_with(|| self.next_own_port())
            .take(usize::from(u16::MAX))
            .filter(|port| FALLBACK_PORTS.contains(port) && !self.local_ports.contains(port))
            .take(8 * PORT_ATTEMPTS);
        self.claim_one(socket, client, upstream, offer, ports)
    }

    /// By random increments (RFC 6056, 3.3.5): a port comes again only after thousands of others. Where it
    /// came again at once, a backend that still had a socket of the last flow (the next limpid, until what
    /// that had received is handed over) would take the SYN for one of that flow, and not answer it.
    fn next_own_port(&self) -> u16 {
        let step = fastrand::u16(1..=OWN_PORT_STEP);
        self.own_port
            .fetch_add(step, Ordering::Relaxed)
            .wrapping_add(step)
    }

    fn claim_one(
        self: &Arc<Self>,
        socket: &impl std::os::fd::AsFd,
        client: Client,
        upstream: Upstream,
        offer: Offer,
        ports: impl Iterator<Item = u16>,
    ) -> Result<Identity, ClaimError> {
        let flow = sys::socket_cookie(socket).map_err(ClaimError::Cookie)?;
        let place = self.place(flow)?;
        if self.lingering().len() >= self.max_flows {
            self.forget_closed();
        }
        for port in ports {
            let source = SocketAddr::new(client.ip(), port);
            let reply = Tuple::new(upstream.socket_addr(), source);
            let connecting = Connecting {
                reply,
                mss: offer.mss,
                offer: offer.options,
            };
            match self.reserve(flow, connecting) {
                Ok(()) => {
                    return Ok(Identity {
                        place,
                        reply,
                        out: None,
                        announced: true,
                        established: false,
                        fate: Fate::Linger,
                    });
                }
                Err(ReserveError::Taken) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(ClaimError::PortsTaken { client, upstream })
    }

    /// The identity of a flow that another daemon has left in the tables; `reply` is what the backend's
    /// packets carry.
    pub fn adopt(self: &Arc<Self>, flow: u64, reply: Tuple) -> Identity {
        lock(&self.open).insert(flow);
        Identity {
            place: Place {
                steering: Arc::clone(self),
                flow,
            },
            reply,
            out: None,
            announced: false,
            established: true,
            fate: Fate::Linger,
        }
    }

    /// A place among the flows that may be open at once.
    fn place(self: &Arc<Self>, flow: u64) -> Result<Place, ClaimError> {
        let mut open = lock(&self.open);
        if open.len() >= self.max_flows {
            return Err(ClaimError::TooMany(self.max_flows));
        }
        open.insert(flow);
        drop(open);
        Ok(Place {
            steering: Arc::clone(self),
            flow,
        })
    }

    fn reserve(&self, flow: u64, connecting: Connecting) -> Result<(), ReserveError> {
        let reply = connecting.reply;
        let reserved = match self.table.reserve(flow, connecting) {
            // A client that comes again from the same port: what lingers of its last connection
            // has served its turn if both sides had closed it.
            Err(ReserveError::Taken) if self.evict_closed(&reply) => {
                self.table.reserve(flow, connecting)
            }
            result => result,
        };
        // So has what lingers of one that was forwarded: its reservation would still be there if it
        // were not over.
        if reserved.is_ok()
            && let Some(other) = self.forwards.owner(&reply)
        {
            self.forwards.remove(other, &reply);
        }
        reserved
    }

    fn evict_closed(&self, reply: &Tuple) -> bool {
        let mut lingering = self.lingering();
        let Some(flow) = lingering.get(reply).copied() else {
            return false;
        };
        let closed = self.state(reply, &flow).is_none_or(|(_, closed)| closed);
        if closed {
            lingering.remove(reply);
            self.forget(reply, &flow);
        }
        closed
    }

    /// Makes room: entries whose connection is over linger only for the sake of late packets.
    fn forget_closed(&self) {
        let looked_at: Vec<_> = self.lingering().keys().copied().collect();
        for reply in looked_at {
            self.evict_closed(&reply);
        }
    }

    /// Forgets lingering entries whose time has come; `now_ns` is `CLOCK_MONOTONIC`. Returns how
    /// many remain. A system call or two an entry: not for an async task.
    pub fn sweep(&self, now_ns: u64) -> usize {
        let looked_at: Vec<_> = self.lingering().iter().map(|(r, f)| (*r, *f)).collect();
        for (reply, flow) in looked_at {
            let stays = self
                .state(&reply, &flow)
                .is_some_and(|(last_seen_ns, closed)| {
                    let age = Duration::from_nanos(now_ns.saturating_sub(last_seen_ns));
                    age < if closed { LINGER_CLOSED } else { LINGER_OPEN }
                });
            let mut lingering = self.lingering();
            // A new flow may have taken the tuple, and left it, meanwhile.
            if !stays
                && lingering
                    .get(&reply)
                    .is_some_and(|now| now.flow == flow.flow)
            {
                lingering.remove(&reply);
                self.forget(&reply, &flow);
            }
        }
        self.lingering().len()
    }

    /// When a lingering flow's last packet passed, in ns of `CLOCK_MONOTONIC`, and whether both
    /// sides have closed it; `None` where no packet ever passed or the entries are gone.
    fn state(&self, reply: &Tuple, flow: &Lingering) -> Option<(u64, bool)> {
        let out = self.entry(&flow.out?, flow.flow)?;
        let back = self.entry(reply, flow.flow)?;
        let reset = (out.seen | back.seen) & SEEN_RST != 0;
        let finished = out.seen & back.seen & SEEN_FIN != 0;
        let closed = reset || finished || !flow.established;
        Some((out.last_seen_ns.max(back.last_seen_ns), closed))
    }

    /// The entry of `tuple`, if it is still this flow's. (A new connection from the same local port
    /// replaces the entry.)
    fn entry(&self, tuple: &Tuple, flow: u64) -> Option<Translation> {
        self.table.get(tuple).filter(|entry| entry.flow == flow)
    }

    fn forget(&self, reply: &Tuple, flow: &Lingering) {
        for tuple in flow.out.iter().chain([reply]) {
            if self.entry(tuple, flow.flow).is_some() {
                self.table.remove(tuple);
            }
        }
    }

    fn lingering(&self) -> MutexGuard<'_, HashMap<Tuple, Lingering>> {
        lock(&self.lingering)
    }
}

/// A flow's place in the table, for as long as its upstream socket is open.
#[derive(Debug)]
pub struct Identity {
    place: Place,
    reply: Tuple,
    out: Option<Tuple>,
    /// Its socket is announced to the egress program.
    announced: bool,
    established: bool,
    fate: Fate,
}

/// What becomes of a flow's entries when its identity is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The kernel may still have something to say in the client's name.
    Linger,
    /// Nobody has anything left to say.
    Go,
    /// They are another daemon's now.
    Stay,
}

/// One of the flows that may be open at once.
#[derive(Debug)]
struct Place {
    steering: Arc<Steering>,
    flow: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.steering.open).remove(&self.flow);
    }
}

impl Identity {
    /// The source that the backend sees.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.reply.destination()
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> SocketAddr {
        self.reply.source()
    }

    /// Was the connection that this socket has made, or has tried to make, really steered? If not,
    /// its packets took a way without our programs and showed the proxy's address.
    pub fn confirm(&mut self, local: SocketAddr) -> bool {
        self.withdraw();
        let out = Tuple::new(local, self.reply.source());
        let steered = self.steering().entry(&out, self.place.flow).is_some();
        if steered {
            self.out = Some(out);
            self.established = true;
        }
        steered
    }

    /// The socket is gone without a word, and its port may be another's. Returns the connection as it was
    /// on this host: from our address to the backend's.
    pub fn unsteer(&mut self) -> Option<(SocketAddr, SocketAddr)> {
        let out = self.out.take()?;
        if self.steering().entry(&out, self.place.flow).is_some() {
            self.steering().table.remove(&out);
        }
        Some((out.source(), out.destination()))
    }

    /// The flow is over, and was forwarded at its end: the address and port are free.
    pub fn release(mut self) {
        self.fate = Fate::Go;
    }

    /// The flow is another daemon's now.
    pub fn hand_over(mut self) {
        self.fate = Fate::Stay;
    }

    /// Packets that left in the client's name, and packets that came back.
    #[must_use]
    pub fn packets(&self) -> (u64, u64) {
        let count = |tuple: &Tuple| {
            self.steering()
                .entry(tuple, self.place.flow)
                .map_or(0, |e| e.packets)
        };
        (self.out().as_ref().map_or(0, count), count(&self.reply))
    }

    fn steering(&self) -> &Steering {
        &self.place.steering
    }

    /// No SYN of it is expected any more.
    fn withdraw(&mut self) {
        if std::mem::take(&mut self.announced) {
            self.steering().table.withdraw(self.place.flow);
        }
    }

    /// The `STEER_OUT` entry's key: known to us once confirmed, and before that to the program that
    /// has completed the reply's entry when the SYN left.
    fn out(&self) -> Option<Tuple> {
        self.out.or_else(|| {
            let entry = self.steering().entry(&self.reply, self.place.flow)?;
            (entry.seen & SEEN_SYN != 0).then(|| entry.rewrite.reversed())
        })
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.withdraw();
        match self.fate {
            Fate::Linger => {}
            Fate::Stay => return,
            // Nobody else can have taken what is reserved.
            Fate::Go => return self.steering().table.remove(&self.reply),
        }
        let flow = Lingering {
            flow: self.place.flow,
            out: self.out(),
            established: self.established,
        };
        self.steering().lingering().insert(self.reply, flow);
    }
}

/// What makes the client's address unfit as a source towards `upstream`, if anything does.
fn unusable(client: Client, upstream: Upstream) -> Option<&'static str> {
    let what = match client.ip() {
        ip if ip == upstream.ip() => "the upstream's own address",
        ip if ip.is_unspecified() => "the unspecified address",
        ip if ip.is_loopback() => "a loopback address",
        ip if ip.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        // Neighbours on a link reply to each other without any router.
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        // RFC 1122, 3.2.1.3 (0/8) and RFC 1112, 4 (240/4): no host has them.
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => "a reserved address",
        IpAddr::V4(_) | IpAddr::V6(_) => return None,
    };
    Some(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Client {
        Client::new(text.parse().expect("an address"))
    }

    #[test]
    fn addresses_that_no_reply_can_reach_are_unusable() {
        let upstream = Upstream::new("198.51.100.2:80".parse().expect("an address"));
        for bad in [
            "0.0.0.0:1",
            "127.0.0.1:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "198.51.100.2:1",
            "0.1.2.3:1",
            "169.254.1.1:1",
            "240.0.0.1:1",
            "[fe80::1]:1",
            "[::]:1",
            "[::1]:1",
            "[ff02::1]:1",
        ] {
            assert!(unusable(client(bad), upstream).is_some(), "{bad}");
        }
        for good in ["192.0.2.1:1", "10.0.0.1:65535", "[2001:db8::1]:1"] {
            assert_eq!(unusable(client(good), upstream), None, "{good}");
        }
    }
}
