//! Packet filters of hosts that limpid has to work on unchanged.

use anyhow::{Context, Result};

use crate::net::Host;

/// A host that accepts what it knows and nothing else: policy DROP, ESTABLISHED accepted, INVALID
/// dropped, one port open. IPv6 keeps its neighbour discovery.
pub fn strict_input(host: &Host, port: u16) -> Result<()> {
    for (tool, icmp) in [("iptables", "icmp"), ("ip6tables", "ipv6-icmp")] {
        for rule in [
            "-A INPUT -i lo -j ACCEPT".to_owned(),
            "-A INPUT -m conntrack --ctstate INVALID -j DROP".to_owned(),
            "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT".to_owned(),
            format!("-A INPUT -p {icmp} -j ACCEPT"),
            format!("-A INPUT -p tcp --dport {port} -m conntrack --ctstate NEW -j ACCEPT"),
            "-P INPUT DROP".to_owned(),
        ] {
            host.sh(&format!("{tool} -w {rule}"))?;
        }
    }
    Ok(())
}

/// The same for what is forwarded: nothing is, but what conntrack knows.
pub fn strict_forward(host: &Host) -> Result<()> {
    for tool in ["iptables", "ip6tables"] {
        for rule in [
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "-P FORWARD DROP",
        ] {
            host.sh(&format!("{tool} -w {rule}"))?;
        }
    }
    Ok(())
}

/// How many connections the host's conntrack knows. It counts where a rule asks for it.
pub fn tracked(host: &Host) -> Result<u64> {
    let count = host.sh("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
    count.trim().parse().context(count)
}

/// A host that drops some of what it is sent, as long as this is there.
pub struct Deaf<'a>(&'a Host);

impl<'a> Deaf<'a> {
    /// To new connections to `port`: their SYNs come again after a second.
    pub fn to_new(host: &'a Host, port: u16) -> Result<Self> {
        Self::to(host, &format!("tcp dport {port} tcp flags syn / syn,ack"))
    }

    /// To resets.
    pub fn to_resets(host: &'a Host) -> Result<Self> {
        Self::to(host, "tcp flags rst")
    }

    fn to(host: &'a Host, what: &str) -> Result<Self> {
        host.sh("nft add table inet deaf")?;
        let chain = "{ type filter hook input priority 0 ; policy accept ; }";
        host.sh(&format!("nft add chain inet deaf input {chain}"))?;
        host.sh(&format!("nft add rule inet deaf input {what} counter drop"))?;
        Ok(Self(host))
    }

    /// How many packets were dropped.
    pub fn dropped(&self) -> Result<u64> {
        let rules = self.0.sh("nft list chain inet deaf input")?;
        let count = rules
            .split("packets ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        count.and_then(|count| count.parse().ok()).context(rules)
    }

    /// No longer.
    pub fn end(self) -> Result<()> {
        self.0.sh("nft delete table inet deaf").map(drop)
    }
}

/// The rules that Docker keeps for its default bridge, as `iptables-save` shows them.
pub fn docker(host: &Host, bridge: &str) -> Result<()> {
    for rule in [
        "-P FORWARD DROP".to_owned(),
        "-N DOCKER".to_owned(),
        "-N DOCKER-USER".to_owned(),
        "-A FORWARD -j DOCKER-USER".to_owned(),
        format!("-A FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-A FORWARD -o {bridge} -j DOCKER"),
        format!("-A FORWARD -i {bridge} ! -o {bridge} -j ACCEPT"),
        format!("-A FORWARD -i {bridge} -o {bridge} -j ACCEPT"),
        "-A DOCKER-USER -j RETURN".to_owned(),
        "-t nat -N DOCKER".to_owned(),
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        "-t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        format!("-t nat -A POSTROUTING -s 192.0.2.0/24 ! -o {bridge} -j MASQUERADE"),
        format!("-t nat -A DOCKER -i {bridge} -j RETURN"),
    ] {
        host.sh(&format!("iptables -w {rule}"))?;
    }
    Ok(())
}
