//! The engine `packet`: the flow goes on below the sockets, which are given up.
//!
//! Both legs are connections of this host with known positions. The difference between the two
//! positions of a byte does not depend on when it is taken, so the switch is a write into a table at any
//! moment ([`ForwardTable::enter`]); from then on the tc programs turn packets of one leg into packets of
//! the other. The sockets stay for a moment as guards ([`guard`]). Then they are closed without a word,
//! and what is left of the flow is its two entries, a [`Forwarding`], in the care of
//! [`crate::forwarded`].
//!
//! * [`plan`]: may the flow be switched, and what its entries say: decided without I/O.
//! * [`guard`]: what the sockets still have to do. [`grace`]: until when something may reach them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_common::flow::{HANDING_OVER, Record, Tuple};
use tokio::net::TcpStream;

use super::progress::State;
use super::{End, EngineKind, Fallback, Flow};
use crate::bpf::forwards::ForwardTable;
use crate::bpf::tables::ReserveError;
use crate::netlink::conntrack::Conntrack;
use crate::paths::{Paths, Way};
use crate::steering::Identity;
use crate::sys::{self, arrival, repair};

mod grace;
mod guard;
mod plan;

pub use grace::GracePeriods;
use plan::{Leg, Legs};

/// What the flows of this engine share.
#[derive(Debug)]
pub struct PacketEngine {
    /// Where they are entered.
    pub table: Arc<ForwardTable>,
    /// By which interfaces their packets may come and leave.
    pub paths: Arc<Paths>,
    /// What must not remember their connections.
    pub conntrack: Conntrack,
    /// After which nothing is on its way to the sockets.
    pub grace_periods: GracePeriods,
    /// The timestamp clock of all steered connections.
    pub wire_clock: u32,
}

/// A flow that no longer needs its sockets.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding {
    /// Its number in the tables: the cookie that its upstream socket had.
    pub flow: u64,
    /// What the tables know of it.
    pub record: Record,
    /// How it ended, if it did not survive the handover.
    pub end: Option<End>,
    /// [`Paths::generation`] when its ways were looked up.
    pub routes: u64,
}

/// Switches `flow`, or gives it back with the reason why another engine must take it.
pub(super) async fn run<'a>(
    engine: &PacketEngine,
    flow: Flow<'a>,
    identity: Option<&mut Identity>,
) -> Result<Forwarding, (Flow<'a>, Fallback)> {
    let Some(identity) = identity else {
        return Err((flow, Fallback::NotSteered));
    };
    let routes = engine.paths.generation();
    let switched = match addresses(&flow, identity) {
        Ok(addresses) => switch(engine, &flow, &addresses).await,
        Err(fallback) => Err(fallback),
    };
    let (number, record) = match switched {
        Ok(switched) => switched,
        Err(fallback) => return Err((flow, fallback)),
    };
    let grace_period = engine.grace_periods.next();
    let progress = flow.progress;
    progress.carried_by(EngineKind::Packet);
    progress.enter(State::Open);
    let (up, down) = (progress.up(), progress.down());
    up.forwarded(Arc::clone(&engine.table), number, record.downstream);
    down.forwarded(Arc::clone(&engine.table), number, record.upstream);
    let (end, record) = guard::run(engine, flow, number, record, grace_period).await;
    // The port is free for another connection now.
    let out = identity.unsteer();
    // Each as its socket had it: our own address first.
    let downstream = (record.downstream.destination(), record.downstream.source());
    for (own, peer) in [Some(downstream), out].into_iter().flatten() {
        if let Err(e) = engine.conntrack.forget(own, peer) {
            tracing::debug!("{e}");
        }
    }
    Ok(Forwarding {
        flow: number,
        record,
        end,
        routes,
    })
}

/// The addresses of a flow's packets, as they are on the wire.
struct Addresses {
    /// Of the downstream peer: whoever connected to us.
    peer: SocketAddr,
    listener: SocketAddr,
    /// What the backend sees.
    source: SocketAddr,
    backend: SocketAddr,
}

fn addresses(flow: &Flow<'_>, identity: &Identity) -> Result<Addresses, Fallback> {
    let failed = |_: io::Error| Fallback::SocketRefused;
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let listener = canonical(flow.downstream.local_addr().map_err(failed)?);
    // What netfilter has translated is on the wire as it was before.
    match arrival::original_destination(&flow.downstream) {
        Ok(Some(other)) if canonical(other) != listener => return Err(Fallback::Translated),
        Ok(_) => {}
        Err(e) => tracing::debug!("original destination: {e}"),
    }
    let addresses = Addresses {
        peer: canonical(flow.downstream.peer_addr().map_err(failed)?),
        listener,
        source: identity.source(),
        backend: identity.backend(),
    };
    if addresses.peer.is_ipv4() == addresses.backend.is_ipv4() {
        Ok(addresses)
    } else {
        Err(Fallback::FamiliesDiffer)
    }
}

/// Puts the flow into the tables.
async fn switch(
    engine: &PacketEngine,
    flow: &Flow<'_>,
    addresses: &Addresses,
) -> Result<(u64, Record), Fallback> {
    let failed = |_: io::Error| Fallback::SocketRefused;
    let (down, up) = (&flow.downstream, &flow.upstream);
    let arrived = arrival::interface_of(down).map_err(failed)?;
    if !arrived.is_some_and(|index| engine.paths.is_attached(index)) {
        return Err(Fallback::NotAttached);
    }
    let to_client = engine.paths.towards(addresses.peer.ip()).await;
    let to_backend = engine.paths.towards(addresses.backend.ip()).await;
    let (Some(to_client), Some(to_backend)) = (to_client, to_backend) else {
        return Err(Fallback::NotAttached);
    };
    let record = Record {
        accepted_ns: flow.accepted_ns,
        early_bytes: flow.progress.bytes_up(),
        handed_over: [0; 2],
        downstream: Tuple::new(addresses.peer, addresses.listener),
        upstream: Tuple::new(addresses.backend, addresses.source),
        client: flow.client.ip().into(),
        client_port: flow.client.port(),
        state: HANDING_OVER,
        reserved: 0,
    };
    let number = sys::socket_cookie(up).map_err(failed)?;
    engine
        .table
        .announce(number, &record)
        .map_err(|e| not_entered(&e))?;
    // From here on nothing waits: positions and entries belong to one moment.
    let entered = || {
        let legs = Legs {
            downstream: leg(down, to_backend, clock)?,
            // What the backend sees of all steered connections.
            upstream: leg(up, to_client, |_| Ok(engine.wire_clock))?,
        };
        legs.may_be_joined(addresses.peer.is_ipv4())?;
        let (downstream, upstream) = legs.entries(number, &record);
        let entered = engine.table.enter(record, downstream, upstream);
        entered.map_err(|e| not_entered(&e))
    };
    match entered() {
        Ok(()) => Ok((number, record)),
        Err(fallback) => {
            engine.table.forget(number);
            Err(fallback)
        }
    }
}

fn not_entered(error: &ReserveError) -> Fallback {
    match error {
        ReserveError::Taken => Fallback::TupleTaken,
        ReserveError::Full | ReserveError::Map(_) => Fallback::TableFull,
    }
}

/// Reads where a connection is; what comes from its peer will leave by `out`.
fn leg(
    socket: &TcpStream,
    out: Way,
    clock: impl FnOnce(&TcpStream) -> io::Result<u32>,
) -> Result<Leg, Fallback> {
    let read = || -> io::Result<Leg> {
        // The closing would lose a pending acknowledgement (of the header, usually).
        repair::acknowledge(socket)?;
        let positions = repair::positions(socket)?;
        // After them: in any other state a FIN would have a place among the bytes.
        let negotiated = repair::negotiated(socket)?;
        if !negotiated.established {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(Leg {
            negotiated,
            read: positions.read,
            received: positions.received,
            write: positions.write,
            clock: clock(socket)?,
            cookie: sys::socket_cookie(socket)?,
            out,
        })
    };
    read().map_err(|e| match e.kind() {
        io::ErrorKind::NotConnected => Fallback::HalfClosed,
        _ => Fallback::SocketRefused,
    })
}

/// What, added to `CLOCK_MONOTONIC` in ms, is the timestamp of our socket (`tcp_clock_ts`).
fn clock(socket: &TcpStream) -> io::Result<u32> {
    loop {
        let before = sys::monotonic_ns() / 1_000_000;
        let timestamp = repair::timestamp(socket)?;
        if sys::monotonic_ns() / 1_000_000 == before {
            // The lowest bit may have been taken off; what is too late by 1 ms is as good, and what is
            // too early might be refused (RFC 7323, 5).
            return Ok((timestamp | 1).wrapping_sub(before as u32));
        }
    }
}
