//! The address plan. Every address is from a documentation range (RFC 5737, RFC 3849)
//! or the range for benchmarks (RFC 2544), so that none
//! can be mistaken for one of the machine that runs the tests.
//!
//! ```text
//! client .10 ── outside ── .1 edge .2 ── transit ── .1 proxy .1 ── inside ── backend .10, .11
//!        203.0.113.0/24         198.51.100.0/24            192.0.2.0/24
//!        2001:db8:c::/64        2001:db8:a::/64            2001:db8:b::/64
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The IP version a scenario runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for scenarios that are run over each.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The address that stands for "any" in a `bind`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The prefix that holds every address.
    pub fn everything(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// One of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Where clients are.
    Outside,
    /// Between edge and proxy: limpid's downstream side.
    Transit,
    /// Between proxy and backends: limpid's upstream side.
    Inside,
    /// Behind a router of the inside network (RFC 2544's range), where a scenario has one.
    Beyond,
}

/// Prefix lengths of every segment, IPv4 and IPv6.
pub const PREFIXES: (u8, u8) = (24, 64);

/// A host's place in a segment: its last octet or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(pub u8);

impl Segment {
    /// The address of `host` in this segment.
    pub fn address(self, host: Host, family: Family) -> IpAddr {
        let n = host.0;
        match (self, family) {
            (Self::Outside, Family::V4) => Ipv4Addr::new(203, 0, 113, n).into(),
            (Self::Transit, Family::V4) => Ipv4Addr::new(198, 51, 100, n).into(),
            (Self::Inside, Family::V4) => Ipv4Addr::new(192, 0, 2, n).into(),
            (Self::Beyond, Family::V4) => Ipv4Addr::new(198, 18, 0, n).into(),
            (Self::Outside, Family::V6) => Self::v6(0xc, n),
            (Self::Transit, Family::V6) => Self::v6(0xa, n),
            (Self::Inside, Family::V6) => Self::v6(0xb, n),
            (Self::Beyond, Family::V6) => Self::v6(0xd, n),
        }
    }

    /// Address and port of `host` in this segment.
    pub fn socket(self, host: Host, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(host, family), port)
    }

    fn v6(network: u16, host: u8) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host.into()).into()
    }
}
