//! Where a listener accepts connections.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use proxy_core::address::Listener;

use super::{WordError, word};

/// Ports of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// One; 0: any that is free.
    One(u16),
    /// From the first to the last, both included; more than one.
    Range(u16, u16),
}

impl Ports {
    /// All of them.
    pub const ALL: Self = Self::Range(1, u16::MAX);
}

/// Where connections are accepted: `ADDR:PORT`, `ADDR:FIRST-LAST` or `ADDR:*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenAddress {
    /// The address; unspecified: all of its family, and with `::` all of both.
    pub ip: IpAddr,
    /// The ports.
    pub ports: Ports,
}

impl ListenAddress {
    /// Does a connection to `called` come to here? If so, how exactly is that said: the port, the address.
    #[must_use]
    pub fn fits(self, called: Listener) -> Option<(bool, bool)> {
        let ip = self.ip.to_canonical();
        let any = ip.is_unspecified() && (ip.is_ipv6() || called.ip().is_ipv4());
        let (port, exact) = match self.ports {
            Ports::One(0) => (true, false),
            Ports::One(port) => (port == called.port(), true),
            Ports::Range(first, last) => ((first..=last).contains(&called.port()), false),
        };
        (port && (any || ip == called.ip())).then_some((exact, !any))
    }

    /// With the first of the ports.
    #[must_use]
    pub fn first(self) -> SocketAddr {
        let (Ports::One(port) | Ports::Range(port, _)) = self.ports;
        SocketAddr::new(self.ip, port)
    }
}

impl FromStr for ListenAddress {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = || WordError::new(text, Self::ALLOWED);
        let (ip, ports) = text.rsplit_once(':').ok_or_else(wrong)?;
        // With a port in its place the standard library reads the rest.
        let ip = format!("{ip}:0")
            .parse::<SocketAddr>()
            .map_err(|_| wrong())?
            .ip();
        let port = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits
                .parse::<u16>()
                .ok()
                .filter(|_| plain)
                .ok_or_else(wrong)
        };
        let ports = match ports.split_once('-') {
            None if ports == "*" => Ports::ALL,
            None => Ports::One(port(ports)?),
            Some((first, last)) => match (port(first)?, port(last)?) {
                (first, last) if first == last && first > 0 => Ports::One(first),
                (first, last) if first > 0 && first < last => Ports::Range(first, last),
                _ => return Err(wrong()),
            },
        };
        Ok(Self { ip, ports })
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            ports: Ports::One(address.port()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            Ports::One(_) => self.first().fmt(f),
            Ports::Range(..) => {
                match self.ip {
                    IpAddr::V4(ip) => write!(f, "{ip}:"),
                    IpAddr::V6(ip) => write!(f, "[{ip}]:"),
                }?;
                match self.ports {
                    Ports::ALL => f.write_str("*"),
                    Ports::Range(first, last) => write!(f, "{first}-{last}"),
                    Ports::One(port) => port.fmt(f),
                }
            }
        }
    }
}

word!(
    ListenAddress,
    "an address with ports: ADDR:PORT, ADDR:FIRST-LAST or ADDR:*, an IPv6 address in brackets"
);
