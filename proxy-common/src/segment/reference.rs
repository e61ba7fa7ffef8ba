//! The same translation once more, slow and obvious: what the fast one is compared with.
//!
//! A header is read into its parts, the options by walking them; the parts are translated as the RFCs
//! say it, in numbers that cannot overflow; and written out again.

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use super::{Shift, TS_ECR_KNOWN, TS_VAL_KNOWN};

/// A TCP header (RFC 9293, 3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) ports: [u8; 4],
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) reserved: u8,
    pub(super) flags: Flags,
    pub(super) window: u16,
    pub(super) checksum: u16,
    pub(super) urgent: u16,
    pub(super) options: Vec<Item>,
}

/// The flags that matter here, and the byte that has them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u8);

impl Flags {
    fn syn(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    fn ack(self) -> bool {
        self.0 >> 4 & 1 == 1
    }

    /// Without ECE (bit 6) and CWR (bit 7).
    fn without_ecn(self) -> Self {
        Self(self.0 & 0b0011_1111)
    }
}

/// What stands among the options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Kind 1.
    Nop,
    /// Kind 8 (RFC 7323, 3.2).
    Timestamps { value: u32, echo: u32 },
    /// Kind 5, with at least one block and whole blocks only (RFC 2018, 3): their edges.
    Sack(Vec<u32>),
    /// Any other; or, after the end-of-options mark or where no option can be read, all that is left.
    Other(Vec<u8>),
}

impl Item {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Nop => vec![1],
            Self::Timestamps { value, echo } => {
                [&[8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
            }
            Self::Sack(edges) => {
                let mut bytes = vec![5, 2 + 4 * edges.len() as u8];
                bytes.extend(edges.iter().flat_map(|edge| edge.to_be_bytes()));
                bytes
            }
            Self::Other(bytes) => bytes.clone(),
        }
    }
}

impl Header {
    /// Reads a header: all of `bytes`, 20 at least.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Self {
            ports: [bytes[0], bytes[1], bytes[2], bytes[3]],
            sequence: word(&bytes[4..8]),
            acknowledgement: word(&bytes[8..12]),
            reserved: bytes[12] % 16,
            flags: Flags(bytes[13]),
            window: half(14),
            checksum: half(16),
            urgent: half(18),
            options: items(&bytes[20..]),
        }
    }

    /// Writes it, the data offset as its length wants it.
    pub(super) fn write(&self) -> Vec<u8> {
        let options: Vec<u8> = self.options.iter().flat_map(Item::bytes).collect();
        let words = (20 + options.len()) / 4;
        let mut bytes = Vec::from(self.ports);
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([(words as u8) * 16 + self.reserved, self.flags.0]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend(self.checksum.to_be_bytes());
        bytes.extend(self.urgent.to_be_bytes());
        bytes.extend(options);
        bytes
    }

    /// The timestamp and its echo, where translation takes them.
    pub(super) fn timestamps(&self) -> Option<(u32, u32)> {
        match self.options[..] {
            [Item::Nop, Item::Nop, Item::Timestamps { value, echo }, ..] => Some((value, echo)),
            _ => None,
        }
    }

    /// What this header is on the other leg.
    pub(super) fn translated(&self, shift: &Shift) -> Self {
        let ack = self.flags.ack();
        Self {
            ports: self.ports,
            sequence: moved(self.sequence, shift.seq),
            acknowledgement: if ack {
                moved(self.acknowledgement, shift.ack)
            } else {
                self.acknowledgement
            },
            reserved: 0,
            flags: if shift.ecn == 1 {
                self.flags
            } else {
                self.flags.without_ecn()
            },
            window: if self.flags.syn() {
                self.window
            } else {
                rescaled(self.window, shift)
            },
            checksum: self.checksum,
            urgent: self.urgent,
            options: translated(&self.options, ack, shift),
        }
    }
}

/// Timestamps are taken where they come first, SACK where nothing else is left, each behind two NOPs;
/// the rest is padding.
fn translated(options: &[Item], ack: bool, shift: &Shift) -> Vec<Item> {
    let (stamps, rest) = match options {
        [Item::Nop, Item::Nop, Item::Timestamps { value, echo }, ..] => {
            let stamps = Item::Timestamps {
                value: if shift.known & TS_VAL_KNOWN == 0 {
                    *value
                } else {
                    moved(*value, shift.ts_val)
                },
                echo: if shift.known & TS_ECR_KNOWN == 0 || *echo == 0 || !ack {
                    0
                } else {
                    moved(*echo, shift.ts_ecr)
                },
            };
            (vec![Item::Nop, Item::Nop, stamps], &options[3..])
        }
        _ => (vec![], options),
    };
    let rest = match rest {
        [Item::Nop, Item::Nop, Item::Sack(edges)] => {
            let edges = edges.iter().map(|edge| moved(*edge, shift.ack)).collect();
            vec![Item::Nop, Item::Nop, Item::Sack(edges)]
        }
        _ => vec![Item::Nop; rest.iter().map(|item| item.bytes().len()).sum()],
    };
    [stamps, rest].concat()
}

/// The options' walk (RFC 9293, 3.1).
fn items(mut bytes: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let len = match bytes {
            [1, ..] => 1,
            [kind, len, ..] if *kind != 0 && (2..=bytes.len()).contains(&usize::from(*len)) => {
                usize::from(*len)
            }
            _ => bytes.len(),
        };
        let (option, rest) = bytes.split_at(len);
        items.push(match option {
            [1] => Item::Nop,
            [8, 10, stamps @ ..] if len == 10 => Item::Timestamps {
                value: word(&stamps[..4]),
                echo: word(&stamps[4..]),
            },
            [5, size, edges @ ..] if usize::from(*size) == len && is_blocks(edges) => {
                Item::Sack(edges.chunks(4).map(word).collect())
            }
            other => Item::Other(other.to_vec()),
        });
        bytes = rest;
    }
    items
}

fn is_blocks(edges: &[u8]) -> bool {
    !edges.is_empty() && edges.len().is_multiple_of(8)
}

/// A number modulo 2^32, further by so many.
fn moved(number: u32, by: u32) -> u32 {
    let sum = i128::from(number) + i128::from(by);
    sum.rem_euclid(1 << 32) as u32
}

/// The largest field that in the receiver's scale says no more than this one in the sender's.
fn rescaled(field: u16, shift: &Shift) -> u16 {
    let bytes = i128::from(field) * 2i128.pow(shift.window_from.into());
    (bytes / 2i128.pow(shift.window_to.into())).min(0xffff) as u16
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}
