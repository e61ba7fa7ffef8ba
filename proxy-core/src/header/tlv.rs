//! The extensions of version 2: type, length, value.
//!
//! [`Tlvs`] can only be made by checking, so that reading them cannot fail.

use std::fmt;

use super::{Refusal, SslInfo};

/// The type of a TLV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TlvType(pub u8);

impl TlvType {
    /// `PP2_TYPE_ALPN`: the protocol that was negotiated with the client.
    pub const ALPN: Self = Self(0x01);
    /// `PP2_TYPE_AUTHORITY`: the host name that the client asked for (SNI).
    pub const AUTHORITY: Self = Self(0x02);
    /// `PP2_TYPE_CRC32C`: a checksum over the whole header.
    pub const CRC32C: Self = Self(0x03);
    /// `PP2_TYPE_NOOP`: padding.
    pub const NOOP: Self = Self(0x04);
    /// `PP2_TYPE_UNIQUE_ID`: what the sender knows the connection by.
    pub const UNIQUE_ID: Self = Self(0x05);
    /// `PP2_TYPE_SSL`: the client's TLS connection, with TLVs of its own.
    pub const SSL: Self = Self(0x20);
    /// `PP2_TYPE_NETNS`: the name of the sender's network namespace.
    pub const NETNS: Self = Self(0x30);

    /// Whether this is `PP2_TYPE_MIN_CUSTOM` to `PP2_TYPE_MAX_CUSTOM`, where vendors put theirs: AWS
    /// 0xEA, Azure 0xEE, Google 0xE0.
    pub fn is_custom(self) -> bool {
        (0xe0..=0xef).contains(&self.0)
    }
}

impl fmt::Display for TlvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALPN => f.write_str("ALPN"),
            Self::AUTHORITY => f.write_str("AUTHORITY"),
            Self::CRC32C => f.write_str("CRC32C"),
            Self::NOOP => f.write_str("NOOP"),
            Self::UNIQUE_ID => f.write_str("UNIQUE_ID"),
            Self::SSL => f.write_str("SSL"),
            Self::NETNS => f.write_str("NETNS"),
            Self(other) => write!(f, "{other:#04x}"),
        }
    }
}

/// The most bytes a unique ID may have (rule 22).
pub(super) const UNIQUE_ID_MAX: usize = 128;

/// Type and length, before the value.
const PREFIX_LEN: usize = 3;

/// One TLV. Its value is binary, whatever the type: a NUL does not end it, and nothing promises that
/// text is UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tlv<'a> {
    /// What it is.
    pub kind: TlvType,
    /// What it says.
    pub value: &'a [u8],
}

/// The TLVs of a received header, well-formed and with the checksum verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tlvs(Box<[u8]>);

impl Tlvs {
    /// Checks the TLVs of a complete `header`, which begin at `start` (rules 20 to 22).
    pub(super) fn check(header: &[u8], start: usize) -> Result<Self, Refusal> {
        let mut checksum = None;
        let mut walk = Walk {
            bytes: header,
            at: start,
        };
        while let Some(tlv) = walk.step()? {
            match tlv.kind {
                TlvType::CRC32C if checksum.is_some() => return Err(Refusal::ChecksumRepeated),
                TlvType::CRC32C => {
                    let len = tlv.value.len();
                    let value = tlv.value.try_into();
                    let value = value.map_err(|_| Refusal::ChecksumLength { len })?;
                    checksum = Some((walk.at - len, u32::from_be_bytes(value)));
                }
                TlvType::UNIQUE_ID if tlv.value.len() > UNIQUE_ID_MAX => {
                    return Err(Refusal::UniqueIdTooLong {
                        len: tlv.value.len(),
                    });
                }
                TlvType::SSL => check_ssl(tlv.value)?,
                _ => {}
            }
        }
        if let Some((at, received)) = checksum {
            let computed = checksum_without(header, at);
            if received != computed {
                return Err(Refusal::ChecksumMismatch { received, computed });
            }
        }
        Ok(Self(header[start..].into()))
    }

    /// All of them, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = Tlv<'_>> {
        let mut walk = Walk {
            bytes: &self.0,
            at: 0,
        };
        // They were checked: the only end is the end.
        std::iter::from_fn(move || walk.step().ok().flatten())
    }

    /// Those that mean the same to the next hop, as they came: all but the checksum, which is of this
    /// header alone, and padding (rule 25). A connection has one unique ID: of several the first, which is
    /// [`Self::unique_id`].
    pub fn forwardable(&self) -> impl Iterator<Item = Tlv<'_>> {
        let mut identified = false;
        self.iter().filter(move |tlv| match tlv.kind {
            TlvType::CRC32C | TlvType::NOOP => false,
            TlvType::UNIQUE_ID => !std::mem::replace(&mut identified, true),
            _ => true,
        })
    }

    /// [`Self::forwardable`], and behind them `unique_id` where none is among them.
    pub fn forwardable_with<'a>(
        &'a self,
        unique_id: Option<&'a [u8]>,
    ) -> impl Iterator<Item = Tlv<'a>> {
        let ours = unique_id
            .filter(|_| self.unique_id().is_none())
            .map(|value| Tlv {
                kind: TlvType::UNIQUE_ID,
                value,
            });
        self.forwardable().chain(ours)
    }

    /// The value of the first TLV of a type.
    pub fn get(&self, kind: TlvType) -> Option<&[u8]> {
        self.iter()
            .find(|tlv| tlv.kind == kind)
            .map(|tlv| tlv.value)
    }

    /// The protocol that was negotiated with the client, such as `h2`.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.get(TlvType::ALPN)
    }

    /// The host name that the client asked for.
    pub fn authority(&self) -> Option<&[u8]> {
        self.get(TlvType::AUTHORITY)
    }

    /// The checksum; it was right.
    pub fn crc32c(&self) -> Option<u32> {
        self.get(TlvType::CRC32C)?
            .try_into()
            .ok()
            .map(u32::from_be_bytes)
    }

    /// What the sender knows the connection by: at most 128 bytes.
    pub fn unique_id(&self) -> Option<&[u8]> {
        self.get(TlvType::UNIQUE_ID)
    }

    /// The client's TLS connection.
    pub fn ssl(&self) -> Option<SslInfo<'_>> {
        match proxy_header::Tlv::decode(TlvType::SSL.0, self.get(TlvType::SSL)?) {
            Ok(proxy_header::Tlv::Ssl(info)) => Some(info),
            Ok(_) | Err(_) => None,
        }
    }

    /// The name of the sender's network namespace.
    pub fn netns(&self) -> Option<&[u8]> {
        self.get(TlvType::NETNS)
    }

    /// Those of vendors.
    pub fn custom(&self) -> impl Iterator<Item = Tlv<'_>> {
        self.iter().filter(|tlv| tlv.kind.is_custom())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The checksum of `header` with the four bytes at `at` zeroed.
pub(super) fn checksum_without(header: &[u8], at: usize) -> u32 {
    let (before, rest) = header.split_at(at);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(checksum, &rest[4..])
}

/// Checks that the value of [`TlvType::SSL`] is a byte of flags, four bytes of verification, and
/// whole TLVs.
fn check_ssl(value: &[u8]) -> Result<(), Refusal> {
    let start = size_of::<u8>() + size_of::<u32>();
    if value.len() < start {
        return Err(Refusal::SslMalformed);
    }
    let mut walk = Walk {
        bytes: value,
        at: start,
    };
    while walk.step().map_err(|_| Refusal::SslMalformed)?.is_some() {}
    Ok(())
}

/// A walk over TLVs, and the place after the last one that was read.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// The next TLV, or `None` where they end.
    fn step(&mut self) -> Result<Option<Tlv<'a>>, Refusal> {
        let Some((&kind, rest)) = self.bytes[self.at..].split_first() else {
            return Ok(None);
        };
        let (&len, rest) = rest.split_first_chunk().ok_or(Refusal::TlvOverrun)?;
        let len = usize::from(u16::from_be_bytes(len));
        let value = rest.get(..len).ok_or(Refusal::TlvOverrun)?;
        self.at += PREFIX_LEN + len;
        Ok(Some(Tlv {
            kind: TlvType(kind),
            value,
        }))
    }
}
