//! What options mean together: whatever no single value is to blame for.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use super::place::Place;
use super::problem::{Findings, Problem, Setting};
use super::{
    Config, Daemon, ListenAddress, Listener, LogTarget, Mismatch, Name, Pool, Ports, SendProxy,
    Server, Target, TargetPort,
};
use crate::splice::Choice;

/// What the PROXY protocol asks a receiver to wait for a header at least (section 2).
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// IFNAMSIZ, less the NUL.
const INTERFACE_NAME: usize = 15;

impl Config {
    /// Everything that is wrong with what is said, though each value is legal by itself.
    #[must_use]
    pub fn check(&self) -> Findings {
        let mut findings = Findings::default();
        if self.listeners.is_empty() {
            findings.add(Place::default(), Problem::NoListener);
        }
        self.check_daemon(&mut findings);
        for (name, listener) in &self.listeners {
            check_listener(&Place::listener(name), listener, &mut findings);
            self.check_pool_of(name, listener, &mut findings);
        }
        self.check_overlaps(&mut findings);
        for (name, pool) in &self.pools {
            check_pool(&Place::pool(name), pool, &mut findings);
            self.check_use(name, pool, &mut findings);
        }
        findings
    }

    fn check_daemon(&self, findings: &mut Findings) {
        let place = Place::daemon();
        let defaults = Daemon::default();
        let daemon = &self.daemon;
        if let Some(interface) = &daemon.upstream_interface {
            check_interface(interface, place.key("upstream-interface"), findings);
            let attaches = |listener: &Listener| {
                listener.steers() || !matches!(listener.splice, Choice::Sockmap | Choice::Copy)
            };
            if !self.listeners.values().any(attaches) {
                findings.add(
                    place.key("upstream-interface"),
                    Problem::NoEffect {
                        option: "upstream-interface",
                        without: Setting("source", Some("client")),
                    },
                );
            }
        }
        if daemon.access_log == LogTarget::Log
            && daemon.access_log_format != defaults.access_log_format
        {
            findings.add(
                place.key("access-log-format"),
                Problem::NoEffect {
                    option: "access-log-format",
                    without: Setting("access-log", None),
                },
            );
        }
        let Some(metrics) = daemon.metrics else {
            return;
        };
        for (name, listener) in &self.listeners {
            let mut addresses = listener.listen.iter();
            if let Some(other) = addresses.find(|other| overlap(**other, metrics.into())) {
                let problem = Problem::MetricsOverlap {
                    other: *other,
                    listener: name.clone(),
                };
                findings.add(place.key("metrics"), problem);
            }
        }
    }

    fn check_pool_of(&self, name: &Name, listener: &Listener, findings: &mut Findings) {
        let place = Place::listener(name);
        let pool_name = self.pool_of(name, listener);
        let Some(pool) = self.pools.get(pool_name) else {
            let place = match listener.pool {
                Some(_) => place.key("pool"),
                None => place,
            };
            let problem = Problem::NoSuchPool {
                pool: pool_name.clone(),
                known: self.pools.keys().cloned().collect(),
            };
            return findings.add(place, problem);
        };
        let all = |is: fn(IpAddr) -> bool, servers: fn(IpAddr) -> bool| {
            listener.listen.iter().all(|listen| is(listen.ip))
                && pool
                    .upstream
                    .iter()
                    .all(|server| literal(&server.target).is_some_and(servers))
        };
        // Of whom a header tells, any family may come.
        let one_family = listener.steers()
            && !listener.accept_proxy
            && listener.source_mismatch == Mismatch::Refuse
            && !listener.listen.is_empty()
            && !pool.upstream.is_empty();
        let specific_v6 = |ip: IpAddr| ip.is_ipv6() && !ip.is_unspecified();
        if one_family
            && (all(|ip| ip.is_ipv4(), |ip| ip.is_ipv6()) || all(specific_v6, |ip| ip.is_ipv4()))
        {
            findings.add(place, Problem::FamiliesDiffer);
        }
    }

    fn check_overlaps(&self, findings: &mut Findings) {
        let mut seen: Vec<(&Name, &Listener, ListenAddress)> = Vec::new();
        for (name, listener) in &self.listeners {
            for (index, address) in listener.listen.iter().enumerate() {
                let other = seen.iter().find(|(_, before, other)| {
                    overlap(*address, *other) && !apart(listener, before)
                });
                if let Some((other_name, _, other)) = other {
                    let problem = Problem::Overlap {
                        address: *address,
                        other: *other,
                        listener: (*other_name).clone(),
                    };
                    findings.add(Place::listener(name).key("listen").at(index), problem);
                }
                seen.push((name, listener, *address));
            }
        }
    }

    /// What is wrong with a pool as the listeners use it.
    fn check_use(&self, name: &Name, pool: &Pool, findings: &mut Findings) {
        let place = Place::pool(name);
        let users: Vec<&Listener> = self
            .listeners
            .iter()
            .filter(|(listener_name, listener)| self.pool_of(listener_name, listener) == name)
            .map(|(_, listener)| listener)
            .collect();
        if users.is_empty() {
            return findings.add(place, Problem::PoolUnused(name.clone()));
        }
        if pool.send_proxy_tlvs && !users.iter().any(|listener| listener.accept_proxy) {
            let problem = Problem::NoEffect {
                option: "send-proxy-tlvs",
                without: Setting("accept-proxy", None),
            };
            findings.add(place.key("send-proxy-tlvs"), problem);
        }
        for (index, server) in pool.upstream.iter().enumerate() {
            let place = place.key("upstream").at(index);
            let Some(ip) = literal(&server.target) else {
                continue;
            };
            if ip.is_loopback() && users.iter().any(|listener| listener.steers()) {
                let problem = Problem::LoopbackWithClientSource(server.target.clone());
                findings.add(place.clone(), problem);
            }
            // What this host sends to itself comes by no other interface than its own.
            let reachable = users
                .iter()
                .filter(|listener| listener.downstream_interface.is_none());
            let mut addresses = reachable.flat_map(|listener| &listener.listen);
            if let Some(address) = addresses.find(|address| leads_to(&server.target, ip, **address))
            {
                let problem = Problem::Loop {
                    target: server.target.clone(),
                    address: *address,
                };
                findings.add(place, problem);
            }
        }
    }
}

fn check_listener(place: &Place, listener: &Listener, findings: &mut Findings) {
    if listener.listen.is_empty() {
        findings.add(place.clone(), Problem::NoListen);
    }
    check_header(place, listener, findings);
    if let Some(interface) = &listener.downstream_interface {
        check_interface(interface, place.key("downstream-interface"), findings);
    }
    if listener.fast_open.is_some() && listener.splice == Choice::Packet {
        findings.add(place.key("fast-open"), Problem::FastOpenWithPacket);
    }
    if !listener.steers() && listener.source_mismatch != Mismatch::Refuse {
        let problem = Problem::NoEffect {
            option: "source-mismatch",
            without: Setting("source", Some("client")),
        };
        findings.add(place.key("source-mismatch"), problem);
    }
    if let (Some(client), Some(all)) = (
        listener.max_connections_per_client,
        listener.max_connections,
    ) && client > all
    {
        let problem = Problem::LimitUnreachable {
            option: "max-connections-per-client",
            before: "max-connections",
        };
        findings.add(place.key("max-connections-per-client"), problem);
    }
}

/// What belongs to PROXY headers.
fn check_header(place: &Place, listener: &Listener, findings: &mut Findings) {
    if listener.accept_proxy {
        if listener.trust.is_empty() {
            findings.add(place.key("accept-proxy"), Problem::NoTrust);
        }
        if listener.header_timeout.get() < HEADER_TIMEOUT {
            let problem = Problem::ShortHeaderTimeout(listener.header_timeout);
            findings.add(place.key("header-timeout"), problem);
        }
        return;
    }
    if !listener.trust.is_empty() {
        let problem = Problem::Needs {
            option: "trust",
            needed: Setting("accept-proxy", None),
        };
        findings.add(place.key("trust"), problem);
    }
    let defaults = Listener::default();
    for (option, is_set) in [
        (
            "header-timeout",
            listener.header_timeout != defaults.header_timeout,
        ),
        ("max-header", listener.max_header != defaults.max_header),
    ] {
        if is_set {
            let without = Setting("accept-proxy", None);
            findings.add(place.key(option), Problem::NoEffect { option, without });
        }
    }
}

fn check_pool(place: &Place, pool: &Pool, findings: &mut Findings) {
    if pool.upstream.is_empty() {
        findings.add(place.clone(), Problem::NoServer);
    } else if pool.upstream.iter().all(|server| server.weight.get() == 0) {
        findings.add(place.key("upstream"), Problem::NoWeight);
    }
    check_servers(place, pool, findings);
    if pool.send_proxy != Some(SendProxy::V2) {
        for (option, is_set) in [
            ("send-proxy-crc32c", pool.send_proxy_crc32c),
            ("send-proxy-unique-id", pool.send_proxy_unique_id),
            ("send-proxy-tlvs", pool.send_proxy_tlvs),
        ] {
            if is_set {
                let needed = Setting("send-proxy", Some("v2"));
                findings.add(place.key(option), Problem::Needs { option, needed });
            }
        }
    }
    let defaults = Pool::default();
    let checks = pool.check_interval.is_some();
    let check = Setting("check-interval", None);
    let timeout_is_set = pool.check_timeout != defaults.check_timeout;
    for (option, has_no_effect, without) in [
        ("check-timeout", !checks && timeout_is_set, check),
        ("rise", !checks && pool.rise != defaults.rise, check),
        ("fall", !checks && pool.fall != defaults.fall, check),
        (
            "eject-time",
            pool.eject_after.get() == 0 && pool.eject_time != defaults.eject_time,
            Setting("eject-after", None),
        ),
    ] {
        if has_no_effect {
            findings.add(place.key(option), Problem::NoEffect { option, without });
        }
    }
}

fn check_servers(place: &Place, pool: &Pool, findings: &mut Findings) {
    let mut names = HashSet::new();
    for (index, server) in pool.upstream.iter().enumerate() {
        let place = place.key("upstream").at(index);
        if !names.insert(server.title()) {
            findings.add(place.clone(), Problem::SameName(server.title()));
        }
        if pool.check_interval.is_some() && takes_the_clients_port(server) {
            let problem = Problem::CheckWithoutPort(server.target.clone());
            findings.add(place.clone(), problem);
        }
        if literal(&server.target).is_some_and(|ip| ip.is_unspecified()) {
            findings.add(place, Problem::Unspecified(server.target.clone()));
        }
    }
}

fn takes_the_clients_port(server: &Server) -> bool {
    matches!(
        server.target,
        Target::Host {
            port: TargetPort::Same,
            ..
        }
    )
}

/// `dev_valid_name` of the kernel.
fn check_interface(name: &str, place: Place, findings: &mut Findings) {
    let legal = |c: char| c != '/' && c != ':' && !c.is_whitespace() && c != '\0';
    let reserved = name == "." || name == "..";
    let fits = (1..=INTERFACE_NAME).contains(&name.len());
    if !fits || reserved || !name.chars().all(legal) {
        findings.add(place, Problem::InterfaceName(name.to_owned()));
    }
}

/// A server's address, where it is no name.
fn literal(target: &Target) -> Option<IpAddr> {
    match target {
        Target::Host { host, .. } => host.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
        Target::Service(_) => None,
    }
}

/// Would a packet to one of them be for the other, too?
///
/// A single port within a range is none of the range's: it has a socket of its own.
fn overlap(a: ListenAddress, b: ListenAddress) -> bool {
    let ports = match (a.ports, b.ports) {
        // Any free one: never the same.
        (Ports::One(0), _) | (_, Ports::One(0)) => false,
        (Ports::One(a), Ports::One(b)) => a == b,
        (Ports::Range(a, last_a), Ports::Range(b, last_b)) => a <= last_b && b <= last_a,
        (Ports::One(_), Ports::Range(..)) | (Ports::Range(..), Ports::One(_)) => false,
    };
    ports && (covers(a.ip, b.ip) || covers(b.ip, a.ip))
}

/// Sockets that are bound to interfaces are in nobody's way but their own interface's.
fn apart(a: &Listener, b: &Listener) -> bool {
    match (&a.downstream_interface, &b.downstream_interface) {
        (Some(a), Some(b)) => a != b,
        (None, _) | (_, None) => false,
    }
}

/// Does a socket on `of` get what is for `ip`?
fn covers(of: IpAddr, ip: IpAddr) -> bool {
    let (of, ip) = (of.to_canonical(), ip.to_canonical());
    match of {
        IpAddr::V6(of) if of.is_unspecified() => true,
        IpAddr::V4(of) if of.is_unspecified() => ip.is_ipv4(),
        IpAddr::V4(_) | IpAddr::V6(_) => of == ip,
    }
}

fn holds(ports: Ports, port: u16) -> bool {
    match ports {
        Ports::One(one) => one == port,
        Ports::Range(first, last) => (first..=last).contains(&port),
    }
}

/// Does a server's address lead to the listener's?
fn leads_to(target: &Target, ip: IpAddr, listen: ListenAddress) -> bool {
    // What else is an address of this host is not known here.
    let here = if listen.ip.is_unspecified() {
        ip.is_loopback() && covers(listen.ip, ip)
    } else {
        covers(listen.ip, ip)
    };
    let has_port = match target {
        Target::Host {
            port: TargetPort::Is(port),
            ..
        } => holds(listen.ports, *port),
        Target::Host {
            port: TargetPort::Same,
            ..
        } => true,
        Target::Service(_) => false,
    };
    here && has_port
}
