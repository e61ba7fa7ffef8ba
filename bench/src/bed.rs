//! A bed: three hosts in a row, the middle one being where a path is built.
//!
//! ```text
//! client 203.0.113.10 ── 203.0.113.1 proxy 192.0.2.1 ── 192.0.2.10 backend
//! ```
//!
//! Each path has a bed of its own, so that none meets another's rules, BPF programs, connection
//! tracking or sockets in TIME-WAIT. A bed without traffic costs nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use limpid_tests::net::Host;

/// The one port of everything: services take turns on it.
pub(crate) const PORT: u16 = 5000;

const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const PROXY_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PROXY_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

/// The service, as seen from the proxy host.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(BACKEND), PORT);

/// The proxy host, as seen from the client.
pub(crate) const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(PROXY_OUTSIDE), PORT);

/// The same on every host. Without the first two, tens of thousands of connections a second would
/// measure how fast a host runs out of ports.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/ip_local_port_range", "1024 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/tcp_max_syn_backlog", "16384"),
    ("net/core/somaxconn", "16384"),
];

/// Three hosts, joined by veth.
pub(crate) struct Bed {
    /// Where connections come from.
    pub client: Host,
    /// Where they are routed, translated or proxied.
    pub proxy: Host,
    /// Where they end.
    pub backend: Host,
}

impl Bed {
    /// A new one. Nothing is forwarded yet.
    pub(crate) fn new() -> Result<Self> {
        let client = Host::new("client")?;
        let proxy = Host::new("proxy")?;
        let backend = Host::new("backend")?;
        join((&proxy, "outside", PROXY_OUTSIDE), (&client, CLIENT))?;
        join((&proxy, "inside", PROXY_INSIDE), (&backend, BACKEND))?;
        for host in [&client, &proxy, &backend] {
            for (path, value) in SYSCTLS {
                host.sysctl(path, value)?;
            }
        }
        Ok(Self {
            client,
            proxy,
            backend,
        })
    }
}

/// A veth pair, and a default route by its near end on the far host.
fn join(
    (near, name, near_ip): (&Host, &str, Ipv4Addr),
    (far, far_ip): (&Host, Ipv4Addr),
) -> Result<()> {
    near.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}",
        far.namespace().display()
    ))?;
    for (host, interface, address) in [(near, name, near_ip), (far, "eth0", far_ip)] {
        host.ip(&format!("addr add {address}/24 dev {interface}"))?;
        host.ip(&format!("link set {interface} up"))?;
    }
    far.ip(&format!("route add default via {near_ip}"))
}
