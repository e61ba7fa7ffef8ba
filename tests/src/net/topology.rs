//! The standard network: client, edge, proxy, and backends behind it.
//!
//! limpid runs on `proxy` (and on `edge`, where a chain is wanted). Packets for a client's address
//! find their way from the backends to the proxy by the backends' default route, and nothing else
//! is prepared: no forwarding, no rule, no route to the clients' network on the proxy beyond the
//! default one.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::address::{Family, Host as HostAddress, Segment};
use super::host::Host;
use super::link::{End, Link, LinkKind};
use super::wire::{Counts, Wire};

/// How the network is to be built.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Between client and edge.
    pub outside: LinkKind,
    /// Between edge and proxy.
    pub transit: LinkKind,
    /// Between proxy and backends. Two backends need [`LinkKind::Bridge`].
    pub inside: LinkKind,
    /// A second backend, `.11`.
    pub two_backends: bool,
    /// Edge, proxy and backend are plugged into one switch, each by its only cable: what the proxy
    /// passes on leaves by the interface that it came by.
    pub one_cable: bool,
    /// A router between proxy and backend, `.2`, which forwards no packet larger than this to the
    /// backend: the backend is then in [`Segment::Beyond`].
    pub router_mtu: Option<u16>,
    /// No host asks another for larger segments: the MSS option of every SYN says this at most.
    pub mss: Option<u16>,
}

/// Four or five hosts and the links between them.
pub struct Topology {
    // The links go first: a wire's threads hold devices of the namespaces.
    links: Vec<(Segment, Link)>,
    /// Where connections come from.
    pub client: Host,
    /// The proxy that faces clients, and sends PROXY headers.
    pub edge: Host,
    /// The host that limpid runs on.
    pub proxy: Host,
    /// The server.
    pub backend: Host,
    /// Another server, if the plan has one.
    pub backend2: Option<Host>,
    /// The router before the backend, if the plan has one.
    pub router: Option<Host>,
}

const CLIENT: HostAddress = HostAddress(10);
const EDGE_OUTSIDE: HostAddress = HostAddress(1);
const EDGE_TRANSIT: HostAddress = HostAddress(2);
const PROXY: HostAddress = HostAddress(1);
const BACKEND: HostAddress = HostAddress(10);
const ROUTER: HostAddress = HostAddress(2);
const ROUTER_BEYOND: HostAddress = HostAddress(1);
const BACKEND2: HostAddress = HostAddress(11);

impl Topology {
    /// Plain veth links and one backend.
    pub fn standard() -> Result<Self> {
        Self::build(&Plan::default())
    }

    /// Builds what `plan` says.
    pub fn build(plan: &Plan) -> Result<Self> {
        let client = Host::new("client")?;
        let edge = Host::new("edge")?;
        let proxy = Host::new("proxy")?;
        let backend = Host::new("backend")?;
        let mut links = Vec::new();
        let mut join = |kind: &LinkKind, segment, near: End<'_>, far: End<'_>| -> Result<()> {
            links.push((segment, Link::join(kind, segment, &near, &far)?));
            default_route(far.host, segment, near.address)
        };
        join(
            &plan.outside,
            Segment::Outside,
            End::new(&edge, "outside", EDGE_OUTSIDE),
            End::new(&client, "eth0", CLIENT),
        )?;
        if !plan.one_cable {
            join(
                &plan.transit,
                Segment::Transit,
                End::new(&proxy, "transit", PROXY),
                End::new(&edge, "transit", EDGE_TRANSIT),
            )?;
        }
        let inside = || End::new(&proxy, "inside", PROXY);
        let (mut router, mut backend2) = (None, None);
        if let Some(mtu) = plan.router_mtu {
            let host = Host::new("router")?;
            join(
                &plan.inside,
                Segment::Inside,
                inside(),
                End::new(&host, "inside", ROUTER),
            )?;
            join(
                &LinkKind::Veth,
                Segment::Beyond,
                End::new(&host, "beyond", ROUTER_BEYOND),
                End::new(&backend, "eth0", BACKEND),
            )?;
            forward(&host)?;
            for family in Family::ALL {
                let backend = Segment::Beyond.address(BACKEND, family);
                let router = Segment::Inside.address(ROUTER, family);
                proxy.ip(&format!("route add {backend} via {router}"))?;
                host.ip(&format!("route add {backend} dev beyond mtu {mtu}"))?;
            }
            router = Some(host);
        } else if plan.one_cable {
            plug_in(&edge, &proxy, &backend)?;
        } else {
            join(
                &plan.inside,
                Segment::Inside,
                inside(),
                End::new(&backend, "eth0", BACKEND),
            )?;
        }
        if plan.two_backends {
            let host = Host::new("backend2")?;
            join(
                &plan.inside,
                Segment::Inside,
                inside(),
                End::new(&host, "eth0", BACKEND2),
            )?;
            backend2 = Some(host);
        }
        default_route(&proxy, Segment::Transit, EDGE_TRANSIT)?;
        if let Some(mss) = plan.mss {
            for host in [&client, &edge, &proxy, &backend] {
                limit_segments(host, mss)?;
            }
        }
        Ok(Self {
            links,
            client,
            edge,
            proxy,
            backend,
            backend2,
            router,
        })
    }

    /// What the wires of `segment` did to frames, by direction.
    pub fn wire_counts(&self, segment: Segment) -> Vec<Counts> {
        let links = self.links.iter().filter(|(of, _)| *of == segment);
        links
            .filter_map(|(_, link)| link.wire())
            .flat_map(Wire::counts)
            .collect()
    }

    /// Lets edge and proxy forward, for what is to reach the backend without any proxy.
    pub fn enable_forwarding(&self) -> Result<()> {
        forward(&self.edge)?;
        forward(&self.proxy)
    }

    /// The client's address.
    pub fn client_ip(&self, family: Family) -> IpAddr {
        Segment::Outside.address(CLIENT, family)
    }

    /// The edge's address, as clients see it.
    pub fn edge_addr(&self, family: Family, port: u16) -> SocketAddr {
        Segment::Outside.socket(EDGE_OUTSIDE, family, port)
    }

    /// The edge's address, as the proxy sees it.
    pub fn edge_transit_ip(&self, family: Family) -> IpAddr {
        Segment::Transit.address(EDGE_TRANSIT, family)
    }

    /// The proxy's address, as the edge sees it.
    pub fn proxy_addr(&self, family: Family, port: u16) -> SocketAddr {
        Segment::Transit.socket(PROXY, family, port)
    }

    /// The proxy's address, as backends see it.
    pub fn proxy_inside_ip(&self, family: Family) -> IpAddr {
        Segment::Inside.address(PROXY, family)
    }

    /// The backend's address.
    pub fn backend_addr(&self, family: Family, port: u16) -> SocketAddr {
        let segment = if self.router.is_some() {
            Segment::Beyond
        } else {
            Segment::Inside
        };
        segment.socket(BACKEND, family, port)
    }

    /// The second backend's address.
    pub fn backend2_addr(&self, family: Family, port: u16) -> SocketAddr {
        Segment::Inside.socket(BACKEND2, family, port)
    }

    /// A client's address that no host has: a header may name any.
    pub fn elsewhere(&self, family: Family, host: u8) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([203, 0, 113, host]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0xc, 0, 0, 0, 0xffff, host.into()]),
        }
    }
}

/// Has every route of the host ask for segments of `mss` bytes at most.
fn limit_segments(host: &Host, mss: u16) -> Result<()> {
    for version in ["-4", "-6"] {
        let routes = host.sh(&format!("ip {version} route show"))?;
        for route in routes.lines() {
            let route = route.replace("linkdown", "");
            host.ip(&format!("{version} route change {route} advmss {mss}"))?;
        }
    }
    Ok(())
}

/// Joins all three by a bridge on the edge. The proxy's only interface is `transit`.
fn plug_in(edge: &Host, proxy: &Host, backend: &Host) -> Result<()> {
    let switch = End::new(edge, "transit", EDGE_TRANSIT);
    let proxy = End::new(proxy, "transit", PROXY);
    for (segment, end) in [
        (Segment::Transit, &proxy),
        (Segment::Inside, &End::new(backend, "eth0", BACKEND)),
    ] {
        Link::join(&LinkKind::Bridge, segment, &switch, end)?;
    }
    proxy.address(Segment::Inside)?;
    default_route(backend, Segment::Inside, PROXY)
}

fn forward(host: &Host) -> Result<()> {
    host.sysctl("net/ipv4/ip_forward", "1")?;
    host.sysctl("net/ipv6/conf/all/forwarding", "1")
}

fn default_route(host: &Host, segment: Segment, via: HostAddress) -> Result<()> {
    for family in Family::ALL {
        let via = segment.address(via, family);
        let version = if via.is_ipv4() { "-4" } else { "-6" };
        host.ip(&format!("{version} route add default via {via}"))?;
    }
    Ok(())
}
