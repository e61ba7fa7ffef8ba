//! Socket addresses by the part they play.
//!
//! One connection through a proxy has at least five addresses, all of the type [`SocketAddr`], and
//! most bugs of transparent proxies are one of them in the place of another. So each part has a
//! type here, and a bare `SocketAddr` does not cross a module.
//!
//! An IPv4 connection that arrives at an IPv6 socket shows its peer as `::ffff:192.0.2.1`. That is
//! an IPv4 address in another spelling (RFC 4291, section 2.5.5.2): every type here turns it into
//! IPv4 when it is made, so comparisons, CIDR matches and log lines need not think of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// `address`, as IPv4 if it is an IPv4-mapped IPv6 address.
///
/// Everything else stays as it is: rebuilding an IPv6 address from its parts would lose the scope
/// that a link-local address needs.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

macro_rules! part {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Names the part that `address` plays; an IPv4-mapped address becomes IPv4.
            pub fn new(address: SocketAddr) -> Self {
                Self(canonical(address))
            }

            /// The address, for the socket call or the map that needs it.
            pub fn socket_addr(self) -> SocketAddr {
                self.0
            }

            /// The IP address alone.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl From<SocketAddr> for $name {
            fn from(address: SocketAddr) -> Self {
                Self::new(address)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

part! {
    /// The other end of a downstream connection: who really connected to us. An edge proxy or a
    /// load balancer where a PROXY header is expected, the client itself where not.
    Peer
}
part! {
    /// Whom the connection is made for: the source that the PROXY header names, or the peer where
    /// it names none.
    Client
}
part! {
    /// Whom the client connected to, as the PROXY header tells it: an address of the sender.
    Destination
}
part! {
    /// The address that a listening socket of ours is bound to.
    Listener
}
part! {
    /// The address of a backend.
    Upstream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_mapped_is_ipv4() {
        let mapped = Peer::new("[::ffff:192.0.2.1]:80".parse().unwrap());
        assert_eq!(mapped, Peer::new("192.0.2.1:80".parse().unwrap()));
        assert_eq!(mapped.to_string(), "192.0.2.1:80");
    }

    #[test]
    fn ipv4_compatible_and_nat64_are_not() {
        // Only ::ffff:0:0/96 is IPv4 in another spelling.
        for ipv6 in ["[::192.0.2.1]:80", "[64:ff9b::192.0.2.1]:80", "[::1]:80"] {
            assert!(Client::new(ipv6.parse().unwrap()).ip().is_ipv6(), "{ipv6}");
        }
    }

    #[test]
    fn the_scope_of_a_link_local_address_stays() {
        let link_local: SocketAddr = "[fe80::1%3]:80".parse().unwrap();
        assert_eq!(Peer::new(link_local).socket_addr(), link_local);
    }
}
