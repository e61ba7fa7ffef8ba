//! Which listening socket a range of ports leads to: the layout of the `sk_lookup` program's maps, and its
//! decision.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges that the program goes through, at most: each SYN to this host is held against them.
pub const RANGES_LIMIT: u32 = 64;

/// An IP address as four words, each as it lies in memory in network byte order; IPv4 as `::ffff:a.b.c.d`
/// (RFC 4291, 2.5.5.2).
pub type Words = [u32; 4];

/// What stands before an IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// A word of an address that counts.
const ALL: u32 = u32::MAX;

/// The words of an IPv4 address, which is one word in network byte order.
#[inline(always)]
#[must_use]
pub const fn ipv4(address: u32) -> Words {
    [0, 0, MAPPED, address]
}

fn words(ip: IpAddr) -> Words {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    core::array::from_fn(|word| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|octet| octets[4 * word + octet]);
        u32::from_ne_bytes([a, b, c, d])
    })
}

/// An address and a port that somebody listens on. Key of `LISTENING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address; 0.0.0.0 (`::ffff:0.0.0.0`) for all of IPv4, `::` for all of IPv6.
    pub address: Words,
    /// The port, host byte order.
    pub port: u32,
}

impl Place {
    /// The place of `ip` and `port`.
    #[must_use]
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self {
            address: words(ip),
            port: port.into(),
        }
    }

    /// Where somebody listens who listens on this port of all addresses of its family.
    #[inline(always)]
    #[must_use]
    pub const fn of_any_address(&self) -> Self {
        let is_ipv4 = self.address[0] == 0 && self.address[1] == 0 && self.address[2] == MAPPED;
        Self {
            address: [0, 0, if is_ipv4 { MAPPED } else { 0 }, 0],
            port: self.port,
        }
    }
}

/// The addresses of a [`Range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// All, of both families.
    All,
    /// All of IPv4.
    AllV4,
    /// One.
    One(IpAddr),
}

impl From<IpAddr> for Addresses {
    /// As a socket is bound: 0.0.0.0 is all of IPv4, and `::` is all.
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Self::AllV4,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Self::All,
            one => Self::One(one),
        }
    }
}

/// Ports of an address, or of all. Value of `RANGES`; its index is also that of its socket in `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The address.
    pub address: Words,
    /// The bits of it that count.
    pub mask: Words,
    /// The first port, host byte order.
    pub first: u16,
    /// The last port, host byte order.
    pub last: u16,
    /// The interface that the SYN must come by, its index; 0: any.
    pub interface: u32,
}

impl Range {
    /// The ports from `first` to `last`, both included. `interface` is an index, 0 for any.
    #[must_use]
    pub fn new(addresses: Addresses, first: u16, last: u16, interface: u32) -> Self {
        let (address, mask) = match addresses {
            Addresses::All => ([0; 4], [0; 4]),
            Addresses::AllV4 => (ipv4(0), [ALL, ALL, ALL, 0]),
            Addresses::One(ip) => (words(ip), [ALL; 4]),
        };
        Self {
            address,
            mask,
            first,
            last,
            interface,
        }
    }

    /// Is a SYN to `place`, which comes by `interface`, one of its own?
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, place: &Place, interface: u32) -> bool {
        let (is, mask, wanted) = (&place.address, &self.mask, &self.address);
        // Without branches: the verifier follows each.
        let other = (is[0] ^ wanted[0]) & mask[0]
            | (is[1] ^ wanted[1]) & mask[1]
            | (is[2] ^ wanted[2]) & mask[2]
            | (is[3] ^ wanted[3]) & mask[3];
        other == 0
            && self.first as u32 <= place.port
            && place.port <= self.last as u32
            && (self.interface == 0 || self.interface == interface)
    }

    /// Where it stands among others: the program takes the first that holds. One address goes before all,
    /// IPv4 before both families, fewer ports before more, one interface before any.
    #[must_use]
    pub fn rank(&self) -> impl Ord + use<> {
        let free: u32 = self.mask.iter().map(|word| word.count_zeros()).sum();
        (free, self.last - self.first, self.interface == 0)
    }
}

const _: () = assert!(size_of::<Place>() == 20);
const _: () = assert!(size_of::<Range>() == 40);

#[cfg(feature = "aya")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
    use super::{Place, Range};

    // SAFETY: `repr(C)`, integers and arrays of them only, and no padding (the sizes asserted above
    // are the sums of the fields), so every bit pattern is a value and every byte is initialised.
    unsafe impl aya::Pod for Place {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Range {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ip: &str, port: u16) -> Place {
        Place::new(ip.parse().expect("an address"), port)
    }

    fn range(ip: &str, first: u16, last: u16) -> Range {
        let ip: IpAddr = ip.parse().expect("an address");
        Range::new(ip.into(), first, last, 0)
    }

    #[test]
    fn a_range_holds_its_addresses() {
        let addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"];
        for (ip, held) in [
            ("192.0.2.1", [true, false, false, false]),
            ("2001:db8::1", [false, false, true, false]),
            ("0.0.0.0", [true, true, false, false]),
            ("::", [true, true, true, true]),
        ] {
            let range = range(ip, 1, u16::MAX);
            let found = addresses.map(|to| range.holds(&place(to, 80), 0));
            assert_eq!(found, held, "{ip}");
        }
    }

    #[test]
    fn a_range_holds_its_ports() {
        let range = range("192.0.2.1", 8000, 8099);
        for (port, held) in [(7999, false), (8000, true), (8099, true), (8100, false)] {
            assert_eq!(range.holds(&place("192.0.2.1", port), 0), held, "{port}");
        }
    }

    #[test]
    fn a_range_holds_its_interface() {
        let mut range = range("::", 1, 2);
        assert!(range.holds(&place("::1", 1), 7));
        range.interface = 7;
        assert!(range.holds(&place("::1", 1), 7) && !range.holds(&place("::1", 1), 8));
    }

    #[test]
    fn any_address_is_of_the_same_family() {
        for (ip, any) in [
            ("192.0.2.1", "0.0.0.0"),
            ("0.0.0.0", "0.0.0.0"),
            ("2001:db8::1", "::"),
            ("::1", "::"),
        ] {
            assert_eq!(place(ip, 80).of_any_address(), place(any, 80), "{ip}");
        }
    }

    #[test]
    fn the_narrowest_range_goes_first() {
        let in_order = [
            range("192.0.2.1", 8000, 8099),
            range("192.0.2.1", 1, u16::MAX),
            range("0.0.0.0", 8000, 8001),
            range("0.0.0.0", 8000, 8099),
            range("::", 8000, 8001),
        ];
        assert!(in_order.is_sorted_by_key(Range::rank));
        let mut bound = range("192.0.2.1", 8000, 8099);
        bound.interface = 7;
        assert!(bound.rank() < in_order[0].rank());
    }
}
