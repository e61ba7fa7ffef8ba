//! PROXY headers, built byte by byte from the specification and from nothing of limpid's.

use std::net::{IpAddr, SocketAddr};

/// The version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The text line (section 2.1).
    V1,
    /// The binary header (section 2.2).
    V2,
}

impl Version {
    /// Both, for scenarios that are run with each.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// A header of this version that names `source` and `destination`.
    pub fn header(self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        match self {
            Self::V1 => v1(source, destination),
            Self::V2 => v2(source, destination, &[]),
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The signature of version 2.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// `PP2_TYPE_CRC32C`.
const CRC32C: u8 = 0x03;

/// Version 1.
pub fn v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let protocol = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {protocol} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

/// Version 2, command PROXY, over TCP, with TLVs.
pub fn v2(source: SocketAddr, destination: SocketAddr, tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    let mut body = Vec::new();
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(ip) => body.extend(ip.octets()),
            IpAddr::V6(ip) => body.extend(ip.octets()),
        }
    }
    body.extend(source.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    for (kind, value) in tlvs {
        body.push(*kind);
        body.extend(length(value));
        body.extend(*value);
    }
    v2_raw(0x21, family, &body)
}

/// Version 2 with a CRC-32C over the whole header, as section 2.2.3 has it.
pub fn v2_crc32c(source: SocketAddr, destination: SocketAddr, tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let tlvs = [tlvs, &[(CRC32C, &[0; 4])]].concat();
    let mut header = v2(source, destination, &tlvs);
    let checksum = crc32c::crc32c(&header).to_be_bytes();
    let at = header.len() - checksum.len();
    header[at..].copy_from_slice(&checksum);
    header
}

/// Version 2 from its parts: version and command, family and transport, the rest.
pub fn v2_raw(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    [
        &SIGNATURE[..],
        &[version_command, family],
        &length(body),
        body,
    ]
    .concat()
}

/// A length field; what does not fit is cut, which no test wants.
fn length(body: &[u8]) -> [u8; 2] {
    u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes()
}
