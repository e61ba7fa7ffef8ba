//! Version 2: a fixed part of 16 bytes, an address block, and TLVs.
//!
//! Each byte of the fixed part is judged when it is there (rule 6); the rest is looked at once, when
//! all of it is there.

use proxy_header::{ParseConfig, ProxyHeader};

use super::{Absence, Addresses, Endpoints, Header, Limits, Refusal, Status, Tlvs, Version};
use crate::address::{Client, Destination};

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length.
pub(super) const FIXED_LEN: usize = 16;

/// Decodes the header that `bytes` begin with; they begin with [`SIGNATURE`].
pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Status, Refusal> {
    let incomplete = Ok(Status::Incomplete { need: FIXED_LEN });
    let Some(&version_and_command) = bytes.get(12) else {
        return incomplete;
    };
    let command = Command::of(version_and_command)?;
    let Some(&family) = bytes.get(13) else {
        return incomplete;
    };
    let family = match command {
        Command::Local => None,
        Command::Proxy => Some(Family::of(family)?),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_LEN) else {
        return incomplete;
    };
    let len = usize::from(u16::from_be_bytes([high, low]));

    let consumed = FIXED_LEN + len;
    if consumed > limits.max_v2_len() {
        return Err(Refusal::V2TooLong {
            len: consumed,
            cap: limits.max_v2_len(),
        });
    }
    let needed = family.map_or(0, Family::block_len);
    if len < needed {
        return Err(Refusal::V2AddressBlock { len, needed });
    }
    let Some(header) = bytes.get(..consumed) else {
        return Ok(Status::Incomplete { need: consumed });
    };

    let (endpoints, tlvs) = match family {
        // Rule 16: what follows is skipped. There is no telling where TLVs would begin in it: load
        // balancers send them with and without an address block before them.
        None => (Endpoints::Absent(Absence::Local), Tlvs::default()),
        Some(family) => (
            family.endpoints(header)?,
            Tlvs::check(header, FIXED_LEN + needed)?,
        ),
    };
    let header = Header {
        version: Version::V2,
        endpoints,
        tlvs,
    };
    Ok(Status::Complete { header, consumed })
}

enum Command {
    Local,
    Proxy,
}

impl Command {
    fn of(version_and_command: u8) -> Result<Self, Refusal> {
        match (version_and_command >> 4, version_and_command & 0x0f) {
            (2, 0) => Ok(Self::Local),
            (2, 1) => Ok(Self::Proxy),
            (2, command) => Err(Refusal::V2Command { command }),
            (version, _) => Err(Refusal::V2Version { version }),
        }
    }
}

/// What the family byte can say (rule 17).
#[derive(Clone, Copy)]
enum Family {
    Unspec,
    Tcp4,
    Udp4,
    Tcp6,
    Udp6,
    Unix,
}

impl Family {
    fn of(family: u8) -> Result<Self, Refusal> {
        match family {
            0x00 => Ok(Self::Unspec),
            0x11 => Ok(Self::Tcp4),
            0x12 => Ok(Self::Udp4),
            0x21 => Ok(Self::Tcp6),
            0x22 => Ok(Self::Udp6),
            0x31 | 0x32 => Ok(Self::Unix),
            family => Err(Refusal::V2Family { family }),
        }
    }

    /// The length of the address block (rule 18). UNSPEC has none: its TLVs follow at once.
    fn block_len(self) -> usize {
        match self {
            Self::Unspec => 0,
            Self::Tcp4 | Self::Udp4 => 12,
            Self::Tcp6 | Self::Udp6 => 36,
            Self::Unix => 216,
        }
    }

    fn endpoints(self, header: &[u8]) -> Result<Endpoints, Refusal> {
        match self {
            Self::Tcp4 | Self::Tcp6 => addresses(header).map(Endpoints::Tcp),
            Self::Unspec => Ok(Endpoints::Absent(Absence::Unspec)),
            Self::Udp4 | Self::Udp6 => Ok(Endpoints::Absent(Absence::Udp)),
            Self::Unix => Ok(Endpoints::Absent(Absence::Unix)),
        }
    }
}

/// The address block of a complete header of TCP.
fn addresses(header: &[u8]) -> Result<Addresses, Refusal> {
    let config = ParseConfig {
        include_tlvs: false,
        allow_v1: false,
        allow_v2: true,
    };
    let (header, _) = ProxyHeader::parse(header, config).map_err(|_| Refusal::V2Unreadable)?;
    let addresses = header.proxied_address().ok_or(Refusal::V2Unreadable)?;
    Ok(Addresses {
        client: Client::new(addresses.source),
        destination: Destination::new(addresses.destination),
    })
}
