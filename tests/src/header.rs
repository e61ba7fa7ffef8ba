//! PROXY headers, built byte by byte from the specification and from nothing of limpid's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

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

/// `PP2_TYPE_ALPN`.
pub const ALPN: u8 = 0x01;
/// `PP2_TYPE_AUTHORITY`.
pub const AUTHORITY: u8 = 0x02;
/// `PP2_TYPE_CRC32C`.
pub const CRC32C: u8 = 0x03;
/// `PP2_TYPE_NOOP`.
pub const NOOP: u8 = 0x04;
/// `PP2_TYPE_UNIQUE_ID`.
pub const UNIQUE_ID: u8 = 0x05;
/// `PP2_TYPE_SSL`.
pub const SSL: u8 = 0x20;
/// Where AWS puts the name of a VPC endpoint.
pub const AWS: u8 = 0xea;

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

/// A header of version 2, command PROXY over TCP, as a server reads it from a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Whom it names as the client.
    pub source: SocketAddr,
    /// Whom the client has called.
    pub destination: SocketAddr,
    /// Type and value, in their order; a CRC-32C among them is right.
    pub tlvs: Vec<(u8, Vec<u8>)>,
}

impl Received {
    /// Reads it, and not a byte behind it. Anything else is an error.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Self> {
        let mut header = vec![0; 16];
        from.read_exact(&mut header).await.context("a header")?;
        ensure!(header.starts_with(&SIGNATURE), "no header: {header:02x?}");
        let (start, length) = header.split_at(14);
        let ip_len = match start[12..] {
            [0x21, 0x11] => 4,
            [0x21, 0x21] => 16,
            _ => bail!("not of a TCP connection: {header:02x?}"),
        };
        let length = u16::from_be_bytes(length.try_into()?);
        header.resize(16 + usize::from(length), 0);
        from.read_exact(&mut header[16..])
            .await
            .context("its rest")?;

        let (addresses, mut rest) = header[16..]
            .split_at_checked(2 * (ip_len + 2))
            .context("no room for addresses")?;
        let (ips, ports) = addresses.split_at(2 * ip_len);
        let (source, destination) = ips.split_at(ip_len);
        let mut tlvs = Vec::new();
        while let [kind, high, low, behind @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (value, behind) = behind.split_at_checked(length).context("a cut TLV")?;
            tlvs.push((*kind, value.to_vec()));
            rest = behind;
            if *kind == CRC32C {
                check_crc32c(&header, header.len() - rest.len() - value.len())?;
            }
        }
        ensure!(rest.is_empty(), "half a TLV: {rest:02x?}");
        Ok(Self {
            source: endpoint(source, &ports[..2])?,
            destination: endpoint(destination, &ports[2..])?,
            tlvs,
        })
    }

    /// The value of the only TLV of a type; an error where there are several.
    pub fn tlv(&self, kind: u8) -> Result<Option<&[u8]>> {
        let mut values = self.tlvs.iter().filter(|tlv| tlv.0 == kind);
        let value = values.next().map(|tlv| &tlv.1[..]);
        ensure!(values.next().is_none(), "{kind:#04x} twice: {self:?}");
        Ok(value)
    }

    /// All but those of one type.
    pub fn tlvs_but(&self, kind: u8) -> Vec<(u8, &[u8])> {
        let others = self.tlvs.iter().filter(|tlv| tlv.0 != kind);
        others.map(|(kind, value)| (*kind, &value[..])).collect()
    }
}

fn endpoint(ip: &[u8], port: &[u8]) -> Result<SocketAddr> {
    let ip = match ip.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(ip)?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(ip)?).into(),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(port.try_into()?)))
}

/// The checksum at `at` is that of the header with zeroes in its place.
fn check_crc32c(header: &[u8], at: usize) -> Result<()> {
    let mut zeroed = header.to_vec();
    let place = zeroed.get_mut(at..at + 4).context("a short checksum")?;
    place.fill(0);
    let (right, found) = (crc32c::crc32c(&zeroed).to_be_bytes(), &header[at..at + 4]);
    ensure!(found == right, "checksum {found:02x?}, not {right:02x?}");
    Ok(())
}
