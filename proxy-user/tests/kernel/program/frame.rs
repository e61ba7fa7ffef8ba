//! Frames as they are on the wire, made from scratch.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpEcn, IpNumber, Ipv4Header,
    Ipv6Header, TcpHeaderSlice,
};
use proxy_common::flow::Tuple;
use proxy_common::segment::{self, BUFFER, Shift};

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// A TCP header with its options, ports and checksum aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) buffer: [u8; BUFFER],
    pub(crate) len: usize,
}

impl Header {
    /// One without options.
    pub(crate) fn new(flags: u8, sequence: u32, acknowledgement: u32, window: u16) -> Self {
        let mut buffer = [0; BUFFER];
        buffer[4..8].copy_from_slice(&sequence.to_be_bytes());
        buffer[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        buffer[12] = 5 << 4;
        buffer[13] = flags;
        buffer[14..16].copy_from_slice(&window.to_be_bytes());
        Self { buffer, len: 20 }
    }

    /// With these options, whole words of them.
    pub(crate) fn with_options(mut self, options: &[u8]) -> Self {
        self.buffer[20..20 + options.len()].copy_from_slice(options);
        self.len = 20 + options.len();
        // The length in words, in the upper half of the byte.
        self.buffer[12] = u8::try_from(self.len * 4).unwrap_or(u8::MAX);
        self
    }

    /// What it should become.
    pub(crate) fn translated(mut self, shift: &Shift) -> Self {
        segment::translate(&mut self.buffer, self.len, shift);
        self
    }

    /// As a packet of `tuple` has it.
    pub(crate) fn bytes(&self, tuple: &Tuple, payload: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = self.buffer[..self.len].to_vec();
        bytes[0..2].copy_from_slice(&tuple.src_port.to_be_bytes());
        bytes[2..4].copy_from_slice(&tuple.dst_port.to_be_bytes());
        let header = TcpHeaderSlice::from_slice(&bytes)?;
        let checksum = match (tuple.src.into(), tuple.dst.into()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)?
            }
            _ => header.calc_checksum_ipv6_raw(tuple.src.octets, tuple.dst.octets, payload)?,
        };
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        Ok(bytes)
    }
}

/// A TCP segment of `tuple`.
pub(crate) fn tcp(tuple: &Tuple, header: &Header, payload: &[u8]) -> Result<Vec<u8>> {
    let segment = [header.bytes(tuple, payload)?.as_slice(), payload].concat();
    ethernet(tuple, IpNumber::TCP, &segment)
}

/// An ICMP error of `from_to` that says what size is too large, about a packet that begins with `quoted`.
pub(crate) fn too_big(from_to: &Tuple, mtu: u16, quoted: &[u8]) -> Result<Vec<u8>> {
    let (protocol, message) = match (from_to.src.into(), from_to.dst.into()) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kind = Icmpv6Type::PacketTooBig { mtu: mtu.into() };
            let header = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), quoted)?;
            (IpNumber::IPV6_ICMP, header.to_bytes().to_vec())
        }
        _ => {
            let kind =
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: mtu,
                });
            let header = Icmpv4Header::with_checksum(kind, quoted);
            (IpNumber::ICMP, header.to_bytes().to_vec())
        }
    };
    ethernet(from_to, protocol, &[message.as_slice(), quoted].concat())
}

/// A frame with an IP packet of the addresses of `tuple`.
pub(crate) fn ethernet(tuple: &Tuple, protocol: IpNumber, payload: &[u8]) -> Result<Vec<u8>> {
    let kind: u16 = match tuple.src.into() {
        IpAddr::V4(_) => 0x0800,
        IpAddr::V6(_) => 0x86dd,
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(ip(tuple, protocol, payload.len())?);
    frame.extend(payload);
    Ok(frame)
}

/// The IP header of such a packet.
pub(crate) fn ip(tuple: &Tuple, protocol: IpNumber, payload_len: usize) -> Result<Vec<u8>> {
    let payload_len = u16::try_from(payload_len).context("too long")?;
    let header = match (tuple.src.into(), tuple.dst.into()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header =
                Ipv4Header::new(payload_len, 63, protocol, src.octets(), dst.octets())?;
            header.identification = 0x1234;
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        _ => Ipv6Header {
            payload_length: payload_len,
            next_header: protocol,
            hop_limit: 63,
            source: tuple.src.octets,
            destination: tuple.dst.octets,
            ..Ipv6Header::default()
        }
        .to_bytes()
        .to_vec(),
    };
    Ok(header)
}

/// The frame with these ECN bits in its IP header, and with the class that voice has (RFC 3246) beside them.
pub(crate) fn marked(frame: &[u8], ecn: u8) -> Result<Vec<u8>> {
    let (ecn, class) = (IpEcn::try_new(ecn)?, IpDscp::EF);
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let header = if packet[0] >> 4 == 4 {
        let (mut header, _) = Ipv4Header::from_slice(packet)?;
        (header.ecn, header.dscp) = (ecn, class);
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    } else {
        let (mut header, _) = Ipv6Header::from_slice(packet)?;
        header.set_ecn(ecn);
        header.set_dscp(class);
        header.to_bytes().to_vec()
    };
    Ok([ethernet, &header, &packet[header.len()..]].concat())
}
