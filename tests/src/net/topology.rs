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
}

const CLIENT: HostAddress = HostAddress(10);
const EDGE_OUTSIDE: HostAddress = HostAddress(1);
const EDGE_TRANSIT: HostAddress = HostAddress(2);
const PROXY: HostAddress = HostAddress(1);
const BACKEND: HostAddress = HostAddress(10);
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
        let mut links = vec![
            (
                Segment::Outside,
                Link::join(
                    &plan.outside,
                    Segment::Outside,
                    &End {
                        host: &edge,
                        interface: "outside",
                        address: EDGE_OUTSIDE,
                    },
                    &End {
                        host: &client,
                        interface: "eth0",
                        address: CLIENT,
                    },
                )?,
            ),
            (
                Segment::Transit,
                Link::join(
                    &plan.transit,
                    Segment::Transit,
                    &End {
                        host: &proxy,
                        interface: "transit",
                        address: PROXY,
                    },
                    &End {
                        host: &edge,
                        interface: "transit",
                        address: EDGE_TRANSIT,
                    },
                )?,
            ),
        ];
        let mut plug = |host: &Host, address| -> Result<()> {
            links.push((
                Segment::Inside,
                Link::join(
                    &plan.inside,
                    Segment::Inside,
                    &End {
                        host: &proxy,
                        interface: "inside",
                        address: PROXY,
                    },
                    &End {
                        host,
                        interface: "eth0",
                        address,
                    },
                )?,
            ));
            default_route(host, Segment::Inside, PROXY)
        };
        plug(&backend, BACKEND)?;
        let backend2 = if plan.two_backends {
            let host = Host::new("backend2")?;
            plug(&host, BACKEND2)?;
            Some(host)
        } else {
            None
        };
        default_route(&client, Segment::Outside, EDGE_OUTSIDE)?;
        default_route(&edge, Segment::Transit, PROXY)?;
        default_route(&proxy, Segment::Transit, EDGE_TRANSIT)?;
        Ok(Self {
            links,
            client,
            edge,
            proxy,
            backend,
            backend2,
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
        for host in [&self.edge, &self.proxy] {
            host.sysctl("net/ipv4/ip_forward", "1")?;
            host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
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
        Segment::Inside.socket(BACKEND, family, port)
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

fn default_route(host: &Host, segment: Segment, via: HostAddress) -> Result<()> {
    for family in Family::ALL {
        let via = segment.address(via, family);
        let version = if via.is_ipv4() { "-4" } else { "-6" };
        host.ip(&format!("{version} route add default via {via}"))?;
    }
    Ok(())
}
