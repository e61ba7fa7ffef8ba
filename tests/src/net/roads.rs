//! The whole road: clients, two edges, two origins, three backends, and four switches between them.
//!
//! ```text
//!            outside           transit           inside: origin1 .1, backends .11 .12 .13
//! clients ────┬─ edge1 .1 .11 ───┬─── origin1 .1 ──┬──────┬──────┐
//!             │                  │              backend1 backend2 backend3
//!             └─ edge2 .2 .12 ───┴─── origin2 .2 ──┴──────┴──────┘
//!                                              beyond: origin2 .1, backends .11 .12 .13
//! ```
//!
//! A backend sees clients' addresses, so its answers must be sent to the origin that the connection came
//! by, and a default route alone sends all of them to one. Each origin therefore has a network of its own
//! with the backends. A backend has an address in each of the two, and answers from where it was called:
//!
//! ```text
//! ip rule add from 192.0.2.11  lookup 101      ip route add default via 192.0.2.1  table 101
//! ip rule add from 198.18.0.11 lookup 102      ip route add default via 198.18.0.1 table 102
//! ```
//!
//! That is all an operator does: two lines an origin and a family in each backend's namespace, none of them
//! about single connections, and none on the origins. Whatever happens to an origin, the backends need not
//! notice. (One router before the backends that marks connections by the origin they came from would spare
//! them the second address, and be what the two origins are there not to have: a single host on all roads.)

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::address::{Family, Host as HostAddress, Segment};
use super::host::Host;
use super::link::{End, Link, LinkKind};

/// The proxies near the clients.
pub const EDGES: [&str; 2] = ["edge1", "edge2"];
/// The proxies near the backends.
pub const ORIGINS: [&str; 2] = ["origin1", "origin2"];
/// The servers.
pub const BACKENDS: [&str; 3] = ["backend1", "backend2", "backend3"];

/// The network of each origin with the backends.
const INSIDE: [Segment; 2] = [Segment::Inside, Segment::Beyond];
/// The interfaces of a backend, one an origin.
const CARDS: [&str; 2] = ["eth1", "eth2"];
/// The routing tables of a backend, one an origin.
const TABLES: [u8; 2] = [101, 102];

/// The switches' own address in each segment.
const SWITCH: HostAddress = HostAddress(254);
/// An origin in the network that is its own.
const ORIGIN_INSIDE: HostAddress = HostAddress(1);
/// The clients' first address; the others follow.
const FIRST_CLIENT: u8 = 100;

/// How many addresses the clients have.
pub const CLIENTS: u8 = 16;

/// The hosts. They are numbered from 0 here, and named from 1.
pub struct Roads {
    /// Where all connections come from.
    pub clients: Host,
    /// Named as in [`EDGES`].
    pub edges: [Host; 2],
    /// Named as in [`ORIGINS`].
    pub origins: [Host; 2],
    /// Named as in [`BACKENDS`].
    pub backends: [Host; 3],
    switch: Host,
}

impl Roads {
    /// Builds it.
    pub fn build() -> Result<Self> {
        let roads = Self {
            clients: Host::new("clients")?,
            edges: [Host::new(EDGES[0])?, Host::new(EDGES[1])?],
            origins: [Host::new(ORIGINS[0])?, Host::new(ORIGINS[1])?],
            backends: [
                Host::new(BACKENDS[0])?,
                Host::new(BACKENDS[1])?,
                Host::new(BACKENDS[2])?,
            ],
            switch: Host::new("switch")?,
        };
        let plug = |segment, host, interface, address| {
            let port = End::new(&roads.switch, switch(segment), SWITCH);
            let end = End::new(host, interface, address);
            Link::join(&LinkKind::Bridge, segment, &port, &end).map(drop)
        };
        plug(Segment::Outside, &roads.clients, "eth0", client(0))?;
        for n in 1..CLIENTS {
            let end = End::new(&roads.clients, "eth0", client(n));
            end.address(Segment::Outside)?;
        }
        for (n, edge) in (0..).zip(&roads.edges) {
            plug(Segment::Outside, edge, "outside", edge_outside(n))?;
            plug(Segment::Transit, edge, "transit", edge_transit(n))?;
        }
        for ((n, origin), inside) in (0..).zip(&roads.origins).zip(INSIDE) {
            plug(Segment::Transit, origin, "transit", origin_transit(n))?;
            plug(inside, origin, "inside", ORIGIN_INSIDE)?;
        }
        for (n, host) in (0..).zip(&roads.backends) {
            for ((segment, card), table) in INSIDE.into_iter().zip(CARDS).zip(TABLES) {
                plug(segment, host, card, backend(n))?;
                answer_by(host, segment, backend(n), table)?;
            }
        }
        Ok(roads)
    }

    /// One of the clients' addresses.
    pub fn client_ip(&self, n: u8, family: Family) -> IpAddr {
        Segment::Outside.address(client(n), family)
    }

    /// Where clients reach an edge.
    pub fn edge_addr(&self, n: u8, family: Family, port: u16) -> SocketAddr {
        Segment::Outside.socket(edge_outside(n), family, port)
    }

    /// The edge as origins see it.
    pub fn edge_transit_ip(&self, n: u8, family: Family) -> IpAddr {
        Segment::Transit.address(edge_transit(n), family)
    }

    /// Where edges reach an origin.
    pub fn origin_addr(&self, n: u8, family: Family, port: u16) -> SocketAddr {
        Segment::Transit.socket(origin_transit(n), family, port)
    }

    /// Where an origin reaches a backend.
    pub fn backend_addr(&self, origin: u8, n: u8, family: Family, port: u16) -> SocketAddr {
        INSIDE[usize::from(origin)].socket(backend(n), family, port)
    }

    /// Pulls a backend's cables, or puts them in again: the switches' ports go down, or up.
    pub fn plug_backend(&self, n: u8, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        for segment in INSIDE {
            let port = format!("{}p{}", switch(segment), backend(n).0);
            self.switch.ip(&format!("link set {port} {state}"))?;
        }
        Ok(())
    }
}

fn client(n: u8) -> HostAddress {
    HostAddress(FIRST_CLIENT + n)
}

fn edge_outside(n: u8) -> HostAddress {
    HostAddress(1 + n)
}

fn edge_transit(n: u8) -> HostAddress {
    HostAddress(11 + n)
}

fn origin_transit(n: u8) -> HostAddress {
    HostAddress(1 + n)
}

fn backend(n: u8) -> HostAddress {
    HostAddress(11 + n)
}

/// The bridge of a segment, on the host that has all of them.
fn switch(segment: Segment) -> &'static str {
    match segment {
        Segment::Outside => "outside",
        Segment::Transit => "transit",
        Segment::Inside => "inside",
        Segment::Beyond => "beyond",
    }
}

/// What `host` sends from its address in `segment` goes by the origin there.
fn answer_by(host: &Host, segment: Segment, address: HostAddress, table: u8) -> Result<()> {
    for family in Family::ALL {
        let version = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        let own = segment.address(address, family);
        let origin = segment.address(ORIGIN_INSIDE, family);
        host.ip(&format!("{version} rule add from {own} lookup {table}"))?;
        host.ip(&format!(
            "{version} route add default via {origin} table {table}"
        ))?;
    }
    Ok(())
}
