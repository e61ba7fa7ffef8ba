//! Writing headers. `proxy-header` lays out the bytes; what it is given here cannot make it panic.

use std::net::{Ipv6Addr, SocketAddr};

use proxy_header::{ProxiedAddress, ProxyHeader};
use thiserror::Error;

use super::tlv::{UNIQUE_ID_MAX, checksum_without};
use super::{Addresses, Tlv, TlvType};

/// What a header tells of the connection that it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// It is made for a client: `TCP4` or `TCP6`, or the command PROXY.
    Client(Addresses),
    /// It is made on the proxy's own account: `UNKNOWN`, or the command LOCAL. (A health check in
    /// version 1 is a [`Subject::Client`] with the addresses of its own socket, rule 24.)
    OwnAccount,
}

/// Whether a version 2 header carries a CRC-32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It carries none.
    Omit,
    /// It carries its own, as its last TLV.
    Compute,
}

/// Why a header cannot be written.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The value of a TLV is longer than its 16-bit length can say.
    #[error("the TLV {kind} has {len} bytes, over the 65535 that a TLV can have")]
    TlvTooLong {
        /// Its type.
        kind: TlvType,
        /// The length of its value.
        len: usize,
    },
    /// A unique ID that every receiver would refuse (rule 22).
    #[error(
        "the TLV {} has {len} bytes, over the 128 it may have",
        TlvType::UNIQUE_ID
    )]
    UniqueIdTooLong {
        /// The length of its value.
        len: usize,
    },
    /// The TLVs fit one by one, but not together with the addresses (rule 25).
    #[error("the TLVs do not fit into the 65535 bytes of a PROXY header")]
    TlvsTooLong,
    /// `proxy-header` cannot write the header for some other reason.
    #[error("the PROXY header cannot be written")]
    Layout(#[source] proxy_header::Error),
}

impl EncodeError {
    /// A stable name for the log and the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TlvTooLong { .. } | Self::UniqueIdTooLong { .. } | Self::TlvsTooLong => {
                "header-too-long"
            }
            Self::Layout(_) => "header-not-writable",
        }
    }
}

impl From<proxy_header::Error> for EncodeError {
    fn from(error: proxy_header::Error) -> Self {
        match error {
            proxy_header::Error::HeaderTooBig => Self::TlvsTooLong,
            other => Self::Layout(other),
        }
    }
}

/// A line of version 1, which has no place for TLVs.
pub fn encode_v1(subject: Subject) -> Result<Vec<u8>, EncodeError> {
    let mut line = Vec::new();
    unextended(subject).encode_v1(&mut line)?;
    Ok(line)
}

/// A header of version 2.
///
/// A CRC-32C among `tlvs` is passed over: it was of another header (rule 25).
pub fn encode_v2<'a>(
    subject: Subject,
    tlvs: impl IntoIterator<Item = Tlv<'a>>,
    checksum: Checksum,
) -> Result<Vec<u8>, EncodeError> {
    let mut header = unextended(subject);
    for Tlv { kind, value } in tlvs {
        let len = value.len();
        match kind {
            TlvType::CRC32C => continue,
            TlvType::UNIQUE_ID if len > UNIQUE_ID_MAX => {
                return Err(EncodeError::UniqueIdTooLong { len });
            }
            // `append_tlv` panics here.
            _ if len > usize::from(u16::MAX) => return Err(EncodeError::TlvTooLong { kind, len }),
            _ => header.append_tlv(proxy_header::Tlv::Custom(kind.0, value.into())),
        }
    }
    if checksum == Checksum::Compute {
        header.append_tlv(proxy_header::Tlv::Crc32c(0));
    }

    let mut bytes = Vec::new();
    header.encode_v2(&mut bytes)?;
    if checksum == Checksum::Compute {
        let at = bytes.len() - size_of::<u32>();
        let value = checksum_without(&bytes, at);
        bytes[at..].copy_from_slice(&value.to_be_bytes());
    }
    Ok(bytes)
}

/// The header of `subject`, without TLVs.
fn unextended(subject: Subject) -> ProxyHeader<'static> {
    match subject {
        Subject::Client(addresses) => {
            let (client, destination) = of_one_family(addresses);
            ProxyHeader::with_address(ProxiedAddress::stream(client, destination))
        }
        Subject::OwnAccount => ProxyHeader::with_local(),
    }
}

/// Both ends, as IPv6 if one of them is (rule 24).
fn of_one_family(addresses: Addresses) -> (SocketAddr, SocketAddr) {
    let ends = (
        addresses.client.socket_addr(),
        addresses.destination.socket_addr(),
    );
    match ends {
        (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => ends,
        (client, destination) => (mapped(client), mapped(destination)),
    }
}

/// `address`, as IPv4-mapped if it is IPv4.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => {
            let ip: Ipv6Addr = v4.ip().to_ipv6_mapped();
            SocketAddr::new(ip.into(), v4.port())
        }
        SocketAddr::V6(_) => address,
    }
}
