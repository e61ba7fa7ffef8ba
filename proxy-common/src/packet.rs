//! Reading packet headers: pure functions over header bytes.
//!
//! The BPF programs load the bytes and act; which packets are of interest is decided here, where
//! host tests and the fuzzer call the very same code. Nothing here loops or indexes out of fixed
//! arrays, so the verifier accepts all of it.

use crate::flow::Address;

/// Length of an Ethernet header; VLAN tags are in the skb's metadata, not in the packet.
pub const ETHERNET: u32 = 14;
/// Length of an IPv4 header without options.
pub const IPV4: u32 = 20;
/// Length of the IPv6 header.
pub const IPV6: u32 = 40;

/// IP protocol numbers (IANA).
pub const TCP: u8 = 6;
/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// TCP flag bits (RFC 9293, 3.1), byte 13 of the header.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// What an IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The protocol that follows.
    pub protocol: u8,
    /// Length of the header in bytes.
    pub header_len: u32,
}

/// Reads an IPv4 header; `None` for what has no ports: a non-first fragment, a bad header.
#[inline(always)]
#[must_use]
pub fn ipv4(header: &[u8; IPV4 as usize]) -> Option<Ip> {
    let header_len = u32::from(header[0] & 0x0f) * 4;
    // RFC 791: the low 13 bits are the fragment's offset. Only the first fragment has ports.
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[0] >> 4 != 4 || header_len < IPV4 || fragment_offset != 0 {
        return None;
    }
    Some(Ip {
        src: Address::from_ipv4([header[12], header[13], header[14], header[15]]),
        dst: Address::from_ipv4([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        header_len,
    })
}

/// Reads an IPv6 header. Extension headers are not followed: their protocol number is returned,
/// which is none that the programs take.
#[inline(always)]
#[must_use]
pub fn ipv6(header: &[u8; IPV6 as usize]) -> Option<Ip> {
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut src = Address::UNSPECIFIED;
    let mut dst = Address::UNSPECIFIED;
    src.octets.copy_from_slice(&header[8..24]);
    dst.octets.copy_from_slice(&header[24..40]);
    Some(Ip {
        src,
        dst,
        protocol: header[6],
        header_len: IPV6,
    })
}

/// The source and destination ports that a TCP header begins with.
#[inline(always)]
#[must_use]
pub const fn ports([s0, s1, d0, d1]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
}

/// What bytes 12 and 13 of a TCP header say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Length of the header in bytes, options included.
    pub header_len: u32,
    /// The flag byte.
    pub flags: u8,
}

/// Reads bytes 12 and 13 of a TCP header; `None` where the data offset is impossible.
#[inline(always)]
#[must_use]
pub fn tcp([offset, flags]: [u8; 2]) -> Option<Tcp> {
    let header_len = u32::from(offset >> 4) * 4;
    if header_len < 20 {
        return None;
    }
    Some(Tcp { header_len, flags })
}

/// Is this ICMP message an error that carries the packet it is about?
///
/// IPv4: destination unreachable (3, with "fragmentation needed"), time exceeded (11), parameter
/// problem (12) (RFC 792). IPv6: types 1 to 4 (RFC 4443, 2.1: errors have the high bit clear).
#[inline(always)]
#[must_use]
pub const fn is_icmp_error(protocol: u8, icmp_type: u8) -> bool {
    match protocol {
        ICMP => matches!(icmp_type, 3 | 11 | 12),
        ICMPV6 => matches!(icmp_type, 1..=4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [u8; 20] = [
        0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, TCP, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2,
    ];

    #[test]
    fn reads_ipv4() {
        let ip = ipv4(&HEADER).expect("a header");
        assert_eq!(ip.src.ipv4(), [192, 0, 2, 1]);
        assert_eq!(ip.dst.ipv4(), [198, 51, 100, 2]);
        assert_eq!((ip.protocol, ip.header_len), (TCP, 20));
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let mut later = HEADER;
        later[7] = 1;
        assert_eq!(ipv4(&later), None);
        let mut first = HEADER;
        first[6] = 0x20; // more fragments
        assert!(ipv4(&first).is_some());
    }

    #[test]
    fn refuses_impossible_headers() {
        let mut short = HEADER;
        short[0] = 0x44;
        assert_eq!(ipv4(&short), None);
        assert_eq!(ipv6(&[0x40; 40]), None);
        assert_eq!(tcp([0x40, 0]), None);
    }

    #[test]
    fn reads_ipv6_and_tcp() {
        let mut header = [0u8; 40];
        header[0] = 0x60;
        header[6] = TCP;
        header[23] = 1;
        header[39] = 2;
        let ip = ipv6(&header).expect("a header");
        assert_eq!((ip.src.octets[15], ip.dst.octets[15]), (1, 2));
        assert_eq!(ports([0, 80, 1, 0]), (80, 256));
        assert_eq!(
            tcp([0x80, SYN]),
            Some(Tcp {
                header_len: 32,
                flags: SYN
            })
        );
    }

    #[test]
    fn icmp_errors_carry_packets_and_echoes_do_not() {
        assert!(is_icmp_error(ICMP, 3) && is_icmp_error(ICMPV6, 2));
        assert!(!is_icmp_error(ICMP, 8) && !is_icmp_error(ICMPV6, 128) && !is_icmp_error(TCP, 3));
    }
}
