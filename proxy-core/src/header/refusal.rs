//! Every way in which bytes fail to be a header.

use thiserror::Error;

use super::TlvType;

/// Why bytes are no legal header: one variant for each rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// Rule 6: the first bytes belong to neither version. Some other protocol is spoken here.
    #[error("the first bytes are no PROXY header")]
    NotProxyProtocol,

    /// Rule 9: 107 bytes do not hold the line and its CRLF.
    #[error("the v1 line does not end within 107 bytes")]
    V1TooLong,
    /// Rule 10: a CR without its LF, or an LF without its CR.
    #[error("the v1 line does not end with CRLF")]
    V1LineEnding,
    /// Rule 11: the protocol is none of `TCP4`, `TCP6` and `UNKNOWN`.
    #[error("the protocol of the v1 line is none of TCP4, TCP6 and UNKNOWN")]
    V1Protocol,
    /// Rule 11: a field is missing or one too many, or more than a space lies between two.
    #[error("the v1 line has other fields than five with one space between them")]
    V1Fields,
    /// Rules 12 and 13: an address is malformed, or not of the family that the line names.
    #[error("an address of the v1 line is not one of the family it names")]
    V1Address,
    /// Rule 12: a port is not a plain decimal number up to 65535.
    #[error("a port of the v1 line is not a decimal number from 0 to 65535")]
    V1Port,

    /// Rule 15: the signature is followed by a version other than 2.
    #[error("the binary header is of version {version}, not 2")]
    V2Version {
        /// The version nibble.
        version: u8,
    },
    /// Rule 15: the command is neither LOCAL nor PROXY.
    #[error("the v2 command {command:#x} is neither LOCAL nor PROXY")]
    V2Command {
        /// The command nibble.
        command: u8,
    },
    /// Rule 17: family and transport are not in the table.
    #[error("the v2 family and transport {family:#04x} are not in the specification")]
    V2Family {
        /// The family byte.
        family: u8,
    },
    /// Rule 18: the length does not cover the address block of the family.
    #[error("the v2 length {len} is less than the {needed} bytes of the address block")]
    V2AddressBlock {
        /// The length that the header claims.
        len: usize,
        /// The length of an address block of its family.
        needed: usize,
    },
    /// Rule 19: the header claims more than the configured cap.
    #[error("the v2 header has {len} bytes, over the cap of {cap}")]
    V2TooLong {
        /// The length of the whole header.
        len: usize,
        /// The cap.
        cap: usize,
    },
    /// A header that passed every check, and that `proxy-header` cannot read all the same. Where two
    /// readers disagree there is no telling whom the header names, so it is refused.
    #[error("the v2 addresses cannot be read")]
    V2Unreadable,

    /// Rule 20: a TLV has less than its type and length, or runs over the end of the header.
    #[error("a TLV runs over the end of the v2 header")]
    TlvOverrun,
    /// Rule 20, one level down: the sub-TLVs of [`TlvType::SSL`] do not fit into it.
    #[error("the TLV {} is malformed", TlvType::SSL)]
    SslMalformed,
    /// Rule 21: a checksum that is not four bytes.
    #[error("the TLV {} has {len} bytes, not 4", TlvType::CRC32C)]
    ChecksumLength {
        /// The length of its value.
        len: usize,
    },
    /// Rule 21: the checksum is of other bytes than these.
    #[error("the checksum is {received:#010x}, the header's is {computed:#010x}")]
    ChecksumMismatch {
        /// What the header says.
        received: u32,
        /// What it should say.
        computed: u32,
    },
    /// Rule 21: a second checksum. Each would have to be computed with the other zeroed and with it
    /// filled in.
    #[error("the TLV {} is there twice", TlvType::CRC32C)]
    ChecksumRepeated,
    /// Rule 22: a unique ID of more than 128 bytes.
    #[error(
        "the TLV {} has {len} bytes, over the 128 it may have",
        TlvType::UNIQUE_ID
    )]
    UniqueIdTooLong {
        /// The length of its value.
        len: usize,
    },
}

impl Refusal {
    /// A stable name for the log and the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotProxyProtocol => "not-proxy-protocol",
            Self::V1TooLong => "v1-too-long",
            Self::V1LineEnding => "v1-line-ending",
            Self::V1Protocol => "v1-protocol",
            Self::V1Fields => "v1-fields",
            Self::V1Address => "v1-address",
            Self::V1Port => "v1-port",
            Self::V2Version { .. } => "v2-version",
            Self::V2Command { .. } => "v2-command",
            Self::V2Family { .. } => "v2-family",
            Self::V2AddressBlock { .. } => "v2-address-block",
            Self::V2TooLong { .. } => "v2-too-long",
            Self::V2Unreadable => "v2-unreadable",
            Self::TlvOverrun => "tlv-overrun",
            Self::SslMalformed => "ssl-malformed",
            Self::ChecksumLength { .. } => "checksum-length",
            Self::ChecksumMismatch { .. } => "checksum-mismatch",
            Self::ChecksumRepeated => "checksum-repeated",
            Self::UniqueIdTooLong { .. } => "unique-id-too-long",
        }
    }
}
