//! Lists of networks: which peers may send a PROXY header, which clients are let in.
//!
//! Whoever may send a header may name any client, so the list is explicit and an empty list holds
//! nobody. What happens to an address that is not on it is the listener's decision, not this module's.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

/// The length of the prefix under which IPv6 spells IPv4 addresses, `::ffff:0:0/96`.
const MAPPED_PREFIX_LEN: u8 = 96;

/// One entry of the list: a network in CIDR notation, or a single address.
///
/// Bits beyond the prefix are dropped (`10.1.2.3/8` is `10.0.0.0/8`), and a network of IPv4-mapped
/// addresses is the IPv4 network that it spells. `0.0.0.0/0` is how one says "anyone": every peer,
/// IPv6 included. `::/0` is every IPv6 peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

/// A value that is no network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{value:?} is not a network: write an address with a prefix length \
     (192.0.2.0/24, 2001:db8::/32) or an address alone (192.0.2.1)"
)]
pub struct ParseNetworkError {
    value: String,
}

impl Network {
    /// Whether `ip` is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let anyone = self.0.addr().is_ipv4() && self.0.prefix_len() == 0;
        anyone || self.0.contains(&ip)
    }
}

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let network = value
            .parse::<IpNet>()
            .ok()
            .or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))
            .ok_or_else(|| ParseNetworkError {
                value: value.to_owned(),
            })?;
        Ok(Self(unmapped(network).trunc()))
    }
}

/// `network`, as IPv4 if all of its addresses are IPv4-mapped: peers are compared as IPv4.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else {
        return network;
    };
    let ipv4 = v6
        .addr()
        .to_ipv4_mapped()
        .zip(v6.prefix_len().checked_sub(MAPPED_PREFIX_LEN));
    match ipv4.map(|(address, prefix_len)| Ipv4Net::new(address, prefix_len)) {
        Some(Ok(v4)) => v4.into(),
        Some(Err(_)) | None => network,
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A list of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// Whether `ip` is in one of them. An IPv4-mapped address is compared as it stands: the types of
    /// [`crate::address`] make it IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(ip))
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(nets: I) -> Self {
        Self(nets.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Peer;

    fn trusts(nets: &[&str], ip: &str) -> bool {
        let peers: Networks = nets.iter().map(|net| net.parse().unwrap()).collect();
        let ip: IpAddr = ip.parse().unwrap();
        peers.contains(Peer::new((ip, 1234).into()).ip())
    }

    #[test]
    fn rule_03_only_listed_peers_are_trusted() {
        for (nets, ip, expected) in [
            (&["10.0.0.0/8"][..], "10.255.0.1", true),
            (&["10.0.0.0/8"], "11.0.0.1", false),
            (&["10.1.2.3/8"], "10.255.0.1", true),
            (&["192.0.2.1"], "192.0.2.1", true),
            (&["192.0.2.1"], "192.0.2.2", false),
            (&["2001:db8::/32", "192.0.2.0/24"], "2001:db8:1::1", true),
            (&["2001:db8::/32", "192.0.2.0/24"], "192.0.2.200", true),
            (&["2001:db8::/32", "192.0.2.0/24"], "2001:db9::1", false),
            (&["0.0.0.0/0"], "203.0.113.9", true),
            (&["0.0.0.0/0"], "2001:db8::1", true),
            (&["::/0"], "2001:db8::1", true),
            (&["::/0"], "203.0.113.9", false),
            (&[], "127.0.0.1", false),
        ] {
            assert_eq!(trusts(nets, ip), expected, "{nets:?} {ip}");
        }
    }

    #[test]
    fn ipv4_mapped_peers_and_networks_are_ipv4() {
        assert!(trusts(&["10.0.0.0/8"], "::ffff:10.1.2.3"));
        assert!(trusts(&["::ffff:10.0.0.0/104"], "10.1.2.3"));
        assert!(trusts(&["::ffff:10.1.2.3"], "::ffff:10.1.2.3"));
        assert!(!trusts(&["::ffff:10.0.0.0/104"], "11.1.2.3"));
        let net: Network = "::ffff:10.1.2.3/104".parse().unwrap();
        assert_eq!(net.to_string(), "10.0.0.0/8");
    }

    #[test]
    fn the_error_names_the_value_and_what_is_allowed() {
        for value in [
            "",
            "localhost",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.1:80",
            "10/8",
        ] {
            let message = value.parse::<Network>().unwrap_err().to_string();
            assert!(message.contains(&format!("{value:?}")), "{message}");
            assert!(message.contains("192.0.2.0/24"), "{message}");
        }
    }
}
