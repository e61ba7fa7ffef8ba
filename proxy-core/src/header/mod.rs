//! The PROXY protocol: who a connection is made for, told in its first bytes.
//!
//! Receiving is a [`Decoder`] that is handed the bytes read so far and answers: complete, not yet,
//! or a [`Refusal`]. It is stricter than the libraries there are, because a header that two parsers
//! read differently is a way to forge a client. Sending is [`encode_v1`] and [`encode_v2`].
//!
//! The crate `proxy-header` writes both versions, and reads the binary parts of a header that has
//! passed the checks made here: address blocks, and the sub-TLVs of TLS. What it leaves open is what
//! the modules below are for: when a header can be refused, checksums, LOCAL and the families that
//! name no TCP client, limits.
//!
//! Belongs here: everything about the bytes of a header. Does not: reading them from a socket under
//! a deadline, and deciding what to do with a connection whose header was refused.
//!
//! ```
//! use proxy_core::header::{Decoder, Refusal, Status};
//!
//! let received = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n";
//! let decoder = Decoder::default();
//! assert_eq!(decoder.decode(&received[..20]), Ok(Status::Incomplete { need: 22 }));
//! let Ok(Status::Complete { header, consumed }) = decoder.decode(received) else { panic!() };
//! assert_eq!(header.client().unwrap().to_string(), "192.0.2.1:56324");
//! assert_eq!(&received[consumed..], b"GET / HTTP/1.1\r\n");
//!
//! assert_eq!(decoder.decode(b"GET / HTTP/1.1\r\n"), Err(Refusal::NotProxyProtocol));
//! ```
//!
#![doc = include_str!("rules.md")]

mod decode;
mod encode;
mod refusal;
mod tlv;
mod v1;
mod v2;

#[cfg(any(test, feature = "check"))]
pub mod check;
#[cfg(test)]
mod properties;

pub use decode::{Decoder, LimitError, Limits, Status};
pub use encode::{Checksum, EncodeError, Subject, encode_v1, encode_v2};
pub use proxy_header::SslInfo;
pub use refusal::Refusal;
pub use tlv::{Tlv, TlvType, Tlvs};

use crate::address::{Client, Destination};

/// A received header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The version it was written in.
    pub version: Version,
    /// The connection it tells of.
    pub endpoints: Endpoints,
    /// The extensions of version 2. Empty for version 1 and for LOCAL.
    pub tlvs: Tlvs,
}

impl Header {
    /// The client that the header names, if it names one.
    pub fn client(&self) -> Option<Client> {
        match self.endpoints {
            Endpoints::Tcp(addresses) => Some(addresses.client),
            Endpoints::Absent(_) => None,
        }
    }
}

/// The two versions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text.
    V1,
    /// A binary header with extensions.
    V2,
}

/// The connection that a header tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoints {
    /// A TCP connection.
    Tcp(Addresses),
    /// Nothing that a TCP connection could be made in the name of: the header is legal, and the
    /// addresses of the connection that brought it are used.
    Absent(Absence),
}

/// The two ends of a client's TCP connection to whoever sent the header.
///
/// Their families can differ, since an IPv4-mapped address is IPv4 here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The client's end.
    pub client: Client,
    /// The end that the client connected to.
    pub destination: Destination,
}

/// Why a legal header names no TCP client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Absence {
    /// Version 1, `UNKNOWN` (rule 14).
    Unknown,
    /// Version 2, LOCAL: the sender speaks for itself, as health checks do (rule 16).
    Local,
    /// Version 2, a family that the sender could not or would not tell (rule 17).
    Unspec,
    /// Version 2, the client spoke UDP (rule 17).
    Udp,
    /// Version 2, the client came over a UNIX socket (rule 17).
    Unix,
}

impl Absence {
    /// A stable name for the log and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Local => "local",
            Self::Unspec => "unspec",
            Self::Udp => "udp",
            Self::Unix => "unix",
        }
    }
}
