//! Names of upstreams.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use proxy_core::address::Upstream;
use thiserror::Error;

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is no [`HostPort`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseHostPortError {
    /// There is no port.
    #[error("no port: HOST:PORT is expected, with an IPv6 address in brackets")]
    NoPort,
    /// The port is not one.
    #[error("{0:?} is not a port: 1 to 65535 is allowed")]
    Port(String),
    /// The host is not one.
    #[error("{0:?} is neither a name nor an address; an IPv6 address stands in brackets")]
    Host(String),
}

impl FromStr for HostPort {
    type Err = ParseHostPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(ParseHostPortError::NoPort)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = match port.parse() {
            Ok(port) if digits && port > 0 => port,
            Ok(_) | Err(_) => return Err(ParseHostPortError::Port(port.to_owned())),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.len() <= 253 && host.chars().all(legal),
        };
        if !valid {
            return Err(ParseHostPortError::Host(host.to_owned()));
        }
        Ok(Self {
            host: bracketed.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse() {
            Ok(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Why a name has no addresses.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The resolver failed.
    #[error("cannot resolve {0}: {1}")]
    Failed(HostPort, #[source] io::Error),
    /// It found nothing.
    #[error("{0} has no address")]
    NoAddress(HostPort),
}

/// The addresses of `name`, in the resolver's order.
pub async fn resolve(name: &HostPort) -> Result<Vec<Upstream>, ResolveError> {
    let found = tokio::net::lookup_host((name.host.as_str(), name.port))
        .await
        .map_err(|e| ResolveError::Failed(name.clone(), e))?;
    let mut upstreams = Vec::new();
    for upstream in found.map(Upstream::new) {
        if !upstreams.contains(&upstream) {
            upstreams.push(upstream);
        }
    }
    if upstreams.is_empty() {
        return Err(ResolveError::NoAddress(name.clone()));
    }
    Ok(upstreams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for good in [
            "nginx:80",
            "192.0.2.1:65535",
            "[2001:db8::1]:1",
            "a_b.example:8080",
        ] {
            assert_eq!(good.parse::<HostPort>().expect(good).to_string(), good);
        }
    }

    #[test]
    fn refusals_name_the_part() {
        use ParseHostPortError::{Host, NoPort, Port};
        let cases = [
            ("nginx", NoPort),
            ("nginx:", Port(String::new())),
            ("nginx:0", Port("0".into())),
            ("nginx:65536", Port("65536".into())),
            ("nginx:+80", Port("+80".into())),
            (":80", Host(String::new())),
            ("2001:db8::1:80", Host("2001:db8::1".into())),
            ("[192.0.2.1]:80", Host("[192.0.2.1]".into())),
            ("a b:80", Host("a b".into())),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<HostPort>(), Err(error), "{text}");
        }
    }
}
