//! Version 1: a line of text, read field by field.
//!
//! `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`
//!
//! Rule 6 shapes this module. A field is judged before it is complete, by whether it can still
//! become legal, so that a line is refused at the very byte that spoils it; and because that verdict
//! rests on the bytes up to there alone, it is the same however the line is cut into segments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Absence, Addresses, Endpoints, Header, Refusal, Status, Tlvs, Version};
use crate::address::{Client, Destination};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";

/// The shortest legal line.
pub(super) const SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();

/// Rule 9, and within it the last place where the CR can be.
const LONGEST: usize = 107;
const LAST_CR: usize = LONGEST - 2;

/// Decodes the line that `bytes` begin with; they begin with [`SIGNATURE`].
pub(super) fn decode(bytes: &[u8]) -> Result<Status, Refusal> {
    let mut line = Line {
        bytes,
        at: SIGNATURE.len(),
    };
    match line.endpoints() {
        Ok(endpoints) => Ok(Status::Complete {
            header: Header {
                version: Version::V1,
                endpoints,
                tlvs: Tlvs::default(),
            },
            consumed: line.at,
        }),
        Err(Stop::Incomplete) => {
            let ending = if bytes.ends_with(b"\r") { "\n" } else { "\r\n" };
            Ok(Status::Incomplete {
                need: SHORTEST.max(bytes.len() + ending.len()),
            })
        }
        Err(Stop::Refused(refusal)) => Err(refusal),
    }
}

/// Why reading a line ends before its end.
enum Stop {
    Incomplete,
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The line, and how far it has been read.
struct Line<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Line<'a> {
    fn endpoints(&mut self) -> Result<Endpoints, Stop> {
        match self.field(|end| matches!(end, b' ' | b'\r'))? {
            (Protocol::Unknown, b' ') => {
                self.ignored()?;
                Ok(Endpoints::Absent(Absence::Unknown))
            }
            (Protocol::Unknown, _) => {
                self.line_feed()?;
                Ok(Endpoints::Absent(Absence::Unknown))
            }
            (Protocol::Tcp4, b' ') => self.addresses::<Ipv4Addr>(),
            (Protocol::Tcp6, b' ') => self.addresses::<Ipv6Addr>(),
            (Protocol::Tcp4 | Protocol::Tcp6, _) => Err(Refusal::V1Fields.into()),
        }
    }

    fn addresses<Ip: Field + Into<IpAddr>>(&mut self) -> Result<Endpoints, Stop> {
        let (source, _) = self.field::<Ip>(|end| end == b' ')?;
        let (destination, _) = self.field::<Ip>(|end| end == b' ')?;
        let (Port(source_port), _) = self.field(|end| end == b' ')?;
        let (Port(destination_port), _) = self.field(|end| end == b'\r')?;
        self.line_feed()?;
        Ok(Endpoints::Tcp(Addresses {
            client: Client::new(SocketAddr::new(source.into(), source_port)),
            destination: Destination::new(SocketAddr::new(destination.into(), destination_port)),
        }))
    }

    /// Reads a field and the byte that ends it, which `may_end` approves of.
    ///
    /// What the field is comes before what ends it, in the order of the bytes.
    fn field<T: Field>(&mut self, may_end: impl Fn(u8) -> bool) -> Result<(T, u8), Stop> {
        let (text, end) = self.until(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
        let Some(text) = str::from_utf8(text).ok().filter(|text| T::may_become(text)) else {
            return Err(T::REFUSAL.into());
        };
        match (T::parse(text), end) {
            (_, None) => Err(self.more()),
            (_, Some(b'\n')) => Err(Refusal::V1LineEnding.into()),
            (Some(field), Some(end)) if may_end(end) => {
                self.at += text.len() + 1;
                Ok((field, end))
            }
            // A beginning of a field, and no more of it.
            (None, Some(_)) if !text.is_empty() => Err(T::REFUSAL.into()),
            (Some(_) | None, Some(_)) => Err(Refusal::V1Fields.into()),
        }
    }

    /// Passes over the rest of the line, whatever it holds (rule 14), but for its end.
    fn ignored(&mut self) -> Result<(), Stop> {
        match self.until(|byte| matches!(byte, b'\r' | b'\n')) {
            (_, None) => Err(self.more()),
            (text, Some(b'\r')) => {
                self.at += text.len() + 1;
                self.line_feed()
            }
            (_, Some(_)) => Err(Refusal::V1LineEnding.into()),
        }
    }

    /// Reads the LF after a CR (rule 10).
    fn line_feed(&mut self) -> Result<(), Stop> {
        match self.bytes.get(self.at) {
            None => Err(Stop::Incomplete),
            Some(b'\n') => {
                self.at += 1;
                Ok(())
            }
            Some(_) => Err(Refusal::V1LineEnding.into()),
        }
    }

    /// The bytes up to one that `ends` them, and that one if it is there and the line may have it.
    fn until(&self, ends: impl Fn(u8) -> bool) -> (&'a [u8], Option<u8>) {
        let rest = &self.bytes[self.at..self.bytes.len().min(LAST_CR + 1)];
        match rest.iter().position(|&byte| ends(byte)) {
            Some(len) => (&rest[..len], Some(rest[len])),
            None => (rest, None),
        }
    }

    /// More of the line is needed; rule 9 says whether there may be more.
    fn more(&self) -> Stop {
        if self.bytes.len() > LAST_CR {
            Refusal::V1TooLong.into()
        } else {
            Stop::Incomplete
        }
    }
}

/// A field of the line.
trait Field: Sized {
    /// What the line is refused for if this field is not legal.
    const REFUSAL: Refusal;

    /// The value of a complete field.
    fn parse(text: &str) -> Option<Self>;

    /// Whether `text` is the beginning of a legal field.
    fn may_become(text: &str) -> bool;
}

enum Protocol {
    Tcp4,
    Tcp6,
    Unknown,
}

impl Field for Protocol {
    const REFUSAL: Refusal = Refusal::V1Protocol;

    fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP4" => Some(Self::Tcp4),
            "TCP6" => Some(Self::Tcp6),
            "UNKNOWN" => Some(Self::Unknown),
            _ => None,
        }
    }

    fn may_become(text: &str) -> bool {
        ["TCP4", "TCP6", "UNKNOWN"]
            .iter()
            .any(|word| word.starts_with(text))
    }
}

impl Field for Ipv4Addr {
    const REFUSAL: Refusal = Refusal::V1Address;

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn may_become(text: &str) -> bool {
        some_end::<Self>(
            text,
            &["", ".0", ".0.0", ".0.0.0", "0", "0.0", "0.0.0", "0.0.0.0"],
        )
    }
}

impl Field for Ipv6Addr {
    const REFUSAL: Refusal = Refusal::V1Address;

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn may_become(text: &str) -> bool {
        // The dotted ends are for addresses like ::ffff:192.0.2.1.
        some_end::<Self>(
            text,
            &["", ":", "::", "0", ".0", ".0.0", ".0.0.0", "0.0", "0.0.0"],
        )
    }
}

/// Whether one of `ends`, which are all the ways in which the text of an `Ip` can go on, completes
/// `text`.
fn some_end<Ip: FromStr>(text: &str, ends: &[&str]) -> bool {
    ends.iter()
        .any(|end| format!("{text}{end}").parse::<Ip>().is_ok())
}

struct Port(u16);

impl Field for Port {
    const REFUSAL: Refusal = Refusal::V1Port;

    fn parse(text: &str) -> Option<Self> {
        // `u16::from_str` takes signs and leading zeroes, which rule 12 does not.
        let plain = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
        if plain {
            text.parse().ok().map(Self)
        } else {
            None
        }
    }

    fn may_become(text: &str) -> bool {
        text.is_empty() || Self::parse(text).is_some()
    }
}
