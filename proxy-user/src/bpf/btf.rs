//! Where the running kernel's structures have their members, from its BTF.
//!
//! Reads just enough of the format (kernel documentation, "BPF Type Format (BTF)") to find a member
//! by name. aya reads BTF too, but keeps members to itself.

use std::path::Path;
use std::{fs, io};

use thiserror::Error;

/// The kernel's own types.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Why a member's place is not known.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel has none (`CONFIG_DEBUG_INFO_BTF`).
    #[error("{KERNEL}: {0}")]
    Read(#[source] io::Error),
    /// The data is not BTF as this reads it.
    #[error("{KERNEL} is not understood: {0}")]
    Format(&'static str),
    /// This kernel has no such member.
    #[error("this kernel's struct {structure} has no member {member}")]
    Missing {
        /// The structure.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
}

/// BTF data.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: std::ops::Range<usize>,
}

/// A type's record: where its name is, its kind, its number of members, and where they are.
struct Record {
    name: u32,
    kind: u32,
    members: usize,
    kind_flag: bool,
    body: usize,
    next: usize,
}

impl Btf {
    /// The running kernel's.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(fs::read(Path::new(KERNEL)).map_err(BtfError::Read)?)
    }

    fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        const SHORT: BtfError = BtfError::Format("short header");
        let word = |at: usize| word(&data, at).ok_or(SHORT);
        if word(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Format("magic"));
        }
        let header = word(4)? as usize;
        let section = |at: usize| {
            let start = header.checked_add(word(at)? as usize).ok_or(SHORT)?;
            let end = start.checked_add(word(at + 4)? as usize).ok_or(SHORT)?;
            if end > data.len() {
                Err(BtfError::Format("section"))
            } else {
                Ok(start..end)
            }
        };
        let (types, strings) = (section(8)?, section(16)?);
        Ok(Self {
            data,
            types,
            strings,
        })
    }

    /// Offset, in bytes, of a member that is not a bit field.
    pub fn offset(&self, structure: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let mut at = self.types.start;
        while at < self.types.end {
            let record = self.record(at)?;
            at = record.next;
            if record.kind != KIND_STRUCT || !self.is_named(record.name, structure) {
                continue;
            }
            for index in 0..record.members {
                let at = record.body + index * 12; // name, type, offset
                if self.is_named(self.word(at)?, member) {
                    let bits = self.word(at + 8)?;
                    // With the kind flag the upper byte is the width of a bit field.
                    return Ok(if record.kind_flag {
                        bits & 0xff_ffff
                    } else {
                        bits
                    } / 8);
                }
            }
        }
        Err(BtfError::Missing { structure, member })
    }

    /// The record at `at`. Its length depends on its kind: `struct btf_type`, then what follows.
    fn record(&self, at: usize) -> Result<Record, BtfError> {
        let info = self.word(at + 4)?;
        let (members, kind) = ((info & 0xffff) as usize, (info >> 24) & 0x1f);
        let body = at + 12;
        let len = match kind {
            2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0, // pointer, forward, typedef, …, type tag
            1 | 14 | 17 => 4,                            // integer, variable, declaration tag
            3 => 12,                                     // array
            KIND_STRUCT | 5 | 15 | 19 => members * 12,   // and union, data section, 64 bit enum
            6 | 13 => members * 8,                       // enum, function prototype
            _ => return Err(BtfError::Format("unknown kind")),
        };
        let name = self.word(at)?;
        Ok(Record {
            name,
            kind,
            members,
            kind_flag: info >> 31 == 1,
            body,
            next: body + len,
        })
    }

    fn word(&self, at: usize) -> Result<u32, BtfError> {
        word(&self.data, at).ok_or(BtfError::Format("truncated type"))
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        self.data[self.strings.clone()]
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// BTF is in the byte order of the machine that it describes.
fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, an integer, and `struct s { int a; int b; }`.
    fn sample() -> Vec<u8> {
        let types: [u32; 13] = [
            1,
            1 << 24,
            4,
            32,
            5,
            KIND_STRUCT << 24 | 2,
            8,
            7,
            1,
            0,
            9,
            1,
            32,
        ];
        let strings = b"\0int\0s\0a\0b\0";
        let mut data = Vec::new();
        for word in [
            u32::from(MAGIC) | 1 << 16,
            24,
            0,
            types.len() as u32 * 4,
            types.len() as u32 * 4,
            strings.len() as u32,
        ] {
            data.extend_from_slice(&word.to_ne_bytes());
        }
        types
            .iter()
            .for_each(|word| data.extend_from_slice(&word.to_ne_bytes()));
        data.extend_from_slice(strings);
        data
    }

    #[test]
    fn members_are_found_by_name() {
        let btf = Btf::parse(sample()).expect("BTF");
        assert_eq!(btf.offset("s", "a").expect("a"), 0);
        assert_eq!(btf.offset("s", "b").expect("b"), 4);
        assert!(matches!(
            btf.offset("s", "c"),
            Err(BtfError::Missing { .. })
        ));
        assert!(matches!(
            btf.offset("int", "a"),
            Err(BtfError::Missing { .. })
        ));
    }

    #[test]
    fn truncated_data_is_refused() {
        let whole = sample();
        for len in 0..whole.len() {
            assert!(Btf::parse(whole[..len].to_vec()).is_err(), "{len} bytes");
        }
    }
}
