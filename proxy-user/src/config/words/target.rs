//! Where the servers of a pool are.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{WordError, word};

/// The port of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// This one.
    Is(u16),
    /// The one that the client has called.
    Same,
}

/// Where servers are: `HOST:PORT`, `HOST:same`, or the name of SRV records, `_service._tcp.example.net`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// An address, or a name that is resolved to addresses.
    Host {
        /// The name, or the address without brackets.
        host: String,
        /// The port.
        port: TargetPort,
    },
    /// A name that is resolved to names with ports, weights and priorities (RFC 2782).
    Service(String),
}

impl FromStr for Target {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = |name: &str| (1..=253).contains(&name.len()) && name.chars().all(legal);
        if text.starts_with('_') && is_name(text) {
            return Ok(Self::Service(text.to_owned()));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| WordError::new(text, Self::ALLOWED))?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = match port.parse() {
            _ if port == "same" => TargetPort::Same,
            Ok(port) if digits && port > 0 => TargetPort::Is(port),
            Ok(_) | Err(_) => return Err(WordError::new(port, "a port: 1 to 65535, or `same`")),
        };
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_name(host),
        };
        if !valid {
            return Err(WordError::new(
                host,
                "a name or an address; an IPv6 address stands in brackets",
            ));
        }
        Ok(Self::Host {
            host: bracketed.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = match self {
            Self::Host { host, port } => (host, port),
            Self::Service(name) => return name.fmt(f),
        };
        match host.parse() {
            Ok(IpAddr::V6(v6)) => write!(f, "[{v6}]:"),
            _ => write!(f, "{host}:"),
        }?;
        match port {
            TargetPort::Is(port) => port.fmt(f),
            TargetPort::Same => f.write_str("same"),
        }
    }
}

word!(
    Target,
    "HOST:PORT, HOST:same or _service._tcp.NAME; an IPv6 address stands in brackets"
);
