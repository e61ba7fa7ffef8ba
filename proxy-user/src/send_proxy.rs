//! The header that we send: limpid as the edge of a chain, or in its middle.
//!
//! What the configuration of a pool asks for becomes a [`SendProxy`], which makes the header of each
//! connection to its servers. A header depends on the client's side alone: it is made once a connection,
//! before the first server is tried, and is the same for whichever takes it. The bytes are
//! `proxy_core::header`'s; sending them, together with the first payload, is [`upstream`](crate::upstream)'s.

use std::ascii;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use proxy_core::address::{Client, Destination, Listener, Upstream};
use proxy_core::header::{
    Addresses, Checksum, EncodeError, Endpoints, Header, Subject, Tlvs, encode_v1, encode_v2,
};
use uuid::Uuid;

use crate::config::{self, Pool};

/// Which header the servers of a pool get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendProxy {
    /// A line of text: the addresses, and nothing else.
    V1,
    /// The binary form.
    V2(Extensions),
}

/// What a header of version 2 says besides the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// Whether it carries a CRC-32C, which is always of its own bytes.
    pub checksum: Checksum,
    /// It says what the connection is known by: the unique ID that came, or one of our own.
    pub unique_id: bool,
    /// The TLVs of the header that came are passed on, a unique ID among them.
    pub tlvs: bool,
}

/// A header that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// All of it, up to 65 551 bytes.
    pub bytes: Vec<u8>,
    /// What it says the connection is known by.
    pub unique_id: Option<UniqueId>,
}

impl SendProxy {
    /// What `pool` asks for; `None`: its servers get no header.
    #[must_use]
    pub fn of(pool: &Pool) -> Option<Self> {
        Some(match pool.send_proxy? {
            config::SendProxy::V1 => Self::V1,
            config::SendProxy::V2 => Self::V2(Extensions {
                checksum: if pool.send_proxy_crc32c {
                    Checksum::Compute
                } else {
                    Checksum::Omit
                },
                unique_id: pool.send_proxy_unique_id,
                tlvs: pool.send_proxy_tlvs,
            }),
        })
    }

    /// The header of a connection for `client`: it came with the header `received`, where one was expected,
    /// and to the address `called`.
    ///
    /// The server is told the destination that the received header names, else the address that was called.
    pub fn header(
        &self,
        client: Client,
        received: Option<&Header>,
        called: Listener,
    ) -> Result<Outgoing, EncodeError> {
        let addresses = match received.map(|header| header.endpoints) {
            Some(Endpoints::Tcp(addresses)) => addresses,
            // Whoever sent a header without addresses spoke for itself: it is the client.
            Some(Endpoints::Absent(_)) | None => Addresses {
                client,
                destination: Destination::new(called.socket_addr()),
            },
        };
        let subject = Subject::Client(addresses);
        match self {
            Self::V1 => Ok(Outgoing {
                bytes: encode_v1(subject)?,
                unique_id: None,
            }),
            Self::V2(extensions) => extensions.header(subject, received),
        }
    }

    /// The header of a connection that we make on our own account, as a health check is, with the addresses
    /// of its socket (rule 24): LOCAL, or a line that names both ends, since not every server of version 1
    /// takes `UNKNOWN`.
    pub fn own_account(&self, local: SocketAddr, remote: Upstream) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::V1 => encode_v1(Subject::Client(Addresses {
                client: Client::new(local),
                destination: Destination::new(remote.socket_addr()),
            })),
            // What follows LOCAL is skipped by whoever reads it (rule 16).
            Self::V2(_) => encode_v2(Subject::OwnAccount, [], Checksum::Omit),
        }
    }
}

impl Extensions {
    fn header(self, subject: Subject, received: Option<&Header>) -> Result<Outgoing, EncodeError> {
        let none = Tlvs::default();
        let received = received.map_or(&none, |header| &header.tlvs);
        let came = UniqueId::among(received);
        let unique_id = match came {
            Some(came) => (self.unique_id || self.tlvs).then_some(came),
            None => self.unique_id.then(UniqueId::new),
        };
        let passed_on = if self.tlvs { received } else { &none };
        let tlvs = passed_on.forwardable_with(unique_id.as_ref().map(UniqueId::as_bytes));
        Ok(Outgoing {
            bytes: encode_v2(subject, tlvs, self.checksum)?,
            unique_id,
        })
    }
}

/// What a connection is known by all along the chain (`PP2_TYPE_UNIQUE_ID`): up to 128 bytes, of any kind
/// where it came with a header.
///
/// One of our own is a UUID of version 7 (RFC 9562, section 5.7), in text: the time in milliseconds, a
/// counter and random bits of the kernel's. So no two are the same, whatever the host and however often
/// limpid is started, and they sort by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueId(Box<[u8]>);

impl UniqueId {
    /// The one that came with a header.
    #[must_use]
    pub fn among(tlvs: &Tlvs) -> Option<Self> {
        tlvs.unique_id().map(|id| Self(id.into()))
    }

    fn new() -> Self {
        Self(Uuid::now_v7().to_string().into_bytes().into())
    }

    /// As it is sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Printable in any case: other bytes than those of printable ASCII are escaped, and the backslash. Quotes
/// are not: whoever writes them between quotes escapes them.
impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b'"' | b'\'' => f.write_char(byte.into()),
            _ => ascii::escape_default(byte).fmt(f),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proxy_core::header::{Absence, Decoder, Status, Tlv, TlvType, Version};

    use super::*;

    const ALL: Extensions = Extensions {
        checksum: Checksum::Compute,
        unique_id: true,
        tlvs: true,
    };
    const NONE: Extensions = Extensions {
        checksum: Checksum::Omit,
        unique_id: false,
        tlvs: false,
    };

    fn address<T: From<SocketAddr>>(text: &str) -> T {
        let address: SocketAddr = text.parse().expect("an address");
        address.into()
    }

    fn addresses(client: &str, destination: &str) -> Addresses {
        Addresses {
            client: address(client),
            destination: address(destination),
        }
    }

    fn read(bytes: &[u8]) -> Header {
        match Decoder::default().decode(bytes) {
            Ok(Status::Complete { header, consumed }) if consumed == bytes.len() => header,
            other => panic!("{} is {other:?}", bytes.escape_ascii()),
        }
    }

    /// A header of version 2 that has come.
    fn came(tlvs: &[(u8, &[u8])]) -> Header {
        let tlvs = tlvs.iter().map(|&(kind, value)| Tlv {
            kind: TlvType(kind),
            value,
        });
        let named = Subject::Client(addresses("192.0.2.1:56324", "198.51.100.1:443"));
        read(&encode_v2(named, tlvs, Checksum::Compute).expect("it fits"))
    }

    fn sent(extensions: Extensions, received: Option<&Header>) -> (Header, Option<UniqueId>) {
        let client = received.and_then(Header::client);
        let outgoing = SendProxy::V2(extensions)
            .header(
                client.unwrap_or(address("203.0.113.10:50000")),
                received,
                address("203.0.113.1:8443"),
            )
            .expect("it fits");
        (read(&outgoing.bytes), outgoing.unique_id)
    }

    #[test]
    fn the_destination_is_what_the_header_names_else_what_was_called() {
        let (header, _) = sent(NONE, Some(&came(&[])));
        let named = addresses("192.0.2.1:56324", "198.51.100.1:443");
        assert_eq!(header.endpoints, Endpoints::Tcp(named));
        let called = addresses("203.0.113.10:50000", "203.0.113.1:8443");
        let local = read(&encode_v2(Subject::OwnAccount, [], Checksum::Omit).expect("it fits"));
        for received in [None, Some(&local)] {
            let (header, _) = sent(ALL, received);
            assert_eq!(header.endpoints, Endpoints::Tcp(called));
        }
    }

    #[test]
    fn nothing_is_added_that_is_not_asked_for() {
        let (header, unique_id) = sent(NONE, Some(&came(&[(0x05, b"came"), (0xea, b"vpce")])));
        assert!(header.tlvs.is_empty());
        assert_eq!(unique_id, None);
    }

    #[test]
    fn the_unique_id_that_came_goes_on_else_it_is_a_new_one() {
        let received = came(&[(0xea, b"vpce"), (0x05, b"ca\0me")]);
        let alone = Extensions {
            unique_id: true,
            ..NONE
        };
        for extensions in [alone, ALL, Extensions { tlvs: true, ..NONE }] {
            let (header, unique_id) = sent(extensions, Some(&received));
            assert_eq!(header.tlvs.unique_id(), Some(&b"ca\0me"[..]));
            assert_eq!(unique_id.expect("said").to_string(), "ca\\x00me");
        }
        for (extensions, received) in [(alone, None), (ALL, Some(&came(&[(0xea, b"vpce")])))] {
            let (header, unique_id) = sent(extensions, received);
            let unique_id = unique_id.expect("said");
            assert_eq!(header.tlvs.unique_id(), Some(unique_id.as_bytes()));
            let text = unique_id.to_string();
            let uuid = Uuid::parse_str(&text).expect("a UUID, printed as it is");
            assert_eq!((uuid.get_version_num(), text.len()), (7, 36));
        }
    }

    #[test]
    fn a_unique_id_is_printable_and_can_be_told_from_any_other() {
        for (id, text) in [
            (&b"1-a:B"[..], "1-a:B"),
            (b"a\"b'c", "a\"b'c"),
            (b"a\\x00", r"a\\x00"),
            (b"a\0\n\xff", r"a\x00\n\xff"),
        ] {
            assert_eq!(UniqueId(id.into()).to_string(), text);
        }
    }

    #[test]
    fn no_two_connections_have_the_same_unique_id() {
        const EACH: usize = 1000;
        let make = || (0..EACH).map(|_| UniqueId::new().to_string()).collect();
        let threads = [0; 4].map(|_| std::thread::spawn(make));
        let made: Vec<Vec<String>> = threads.map(|t| t.join().expect("made")).into();
        assert!(made.iter().all(|ids| ids.is_sorted()));
        let different: HashSet<_> = made.into_iter().flatten().collect();
        assert_eq!(different.len(), 4 * EACH);
    }

    #[test]
    fn version_1_has_addresses_and_nothing_else() {
        let outgoing = SendProxy::V1
            .header(
                address("192.0.2.1:56324"),
                Some(&came(&[(0x05, b"came")])),
                address("203.0.113.1:8443"),
            )
            .expect("a line");
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";
        assert_eq!(outgoing.bytes, line);
        assert_eq!(outgoing.unique_id, None);
    }

    #[test]
    fn a_check_says_that_it_is_one() {
        let (local, remote) = ("192.0.2.7:40000", address("192.0.2.10:9000"));
        let of = |send_proxy: SendProxy| {
            let bytes = send_proxy.own_account(local.parse().expect("an address"), remote);
            read(&bytes.expect("a header"))
        };
        let header = of(SendProxy::V2(ALL));
        assert_eq!(header.endpoints, Endpoints::Absent(Absence::Local));
        let header = of(SendProxy::V1);
        assert_eq!(header.version, Version::V1);
        let ends = addresses(local, "192.0.2.10:9000");
        assert_eq!(header.endpoints, Endpoints::Tcp(ends));
    }

    #[test]
    fn a_pool_says_what_is_sent() {
        let mut pool = Pool::default();
        assert_eq!(SendProxy::of(&pool), None);
        pool.send_proxy = Some(config::SendProxy::V2);
        assert_eq!(SendProxy::of(&pool), Some(SendProxy::V2(NONE)));
        pool.send_proxy_crc32c = true;
        pool.send_proxy_unique_id = true;
        pool.send_proxy_tlvs = true;
        assert_eq!(SendProxy::of(&pool), Some(SendProxy::V2(ALL)));
        pool.send_proxy = Some(config::SendProxy::V1);
        assert_eq!(SendProxy::of(&pool), Some(SendProxy::V1));
    }
}
