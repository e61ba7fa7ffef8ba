//! What must hold for any header and any [`Shift`], as functions that panic where it does not.
//!
//! The fuzz target calls them with bytes it makes up, the properties with headers as stacks send
//! them, the test below with the corpus in `fuzz/`.

use super::reference::Header;
use super::{BUFFER, Shift, TS_ECR_KNOWN, TS_VAL_KNOWN, translate};
use crate::packet;

/// What a shift takes in the bytes of a case.
const SHIFT_LEN: usize = 20;

/// A header to translate, and what else its checksum is about.
#[derive(Debug)]
pub(super) struct Case<'a> {
    /// The header's buffer, filled up with what followed it.
    pub(super) buffer: [u8; BUFFER],
    /// The header's length in bytes.
    pub(super) len: usize,
    pub(super) shift: Shift,
    /// Pseudo-header and payload.
    pub(super) payload: &'a [u8],
}

impl<'a> Case<'a> {
    /// Reads a case: the fields of a [`Shift`] in their order, big-endian and brought into their
    /// ranges; a buffer; payload. `None` where the header has no length that comes to translation.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (shift, rest) = bytes.split_first_chunk::<SHIFT_LEN>()?;
        let (header, payload) = rest.split_at(rest.len().min(BUFFER));
        let mut buffer = [0; BUFFER];
        buffer[..header.len()].copy_from_slice(header);
        let tcp = packet::tcp([buffer[12], buffer[13]])?;
        let word =
            |at| u32::from_be_bytes([shift[at], shift[at + 1], shift[at + 2], shift[at + 3]]);
        Some(Self {
            buffer,
            len: tcp.header_len as usize,
            shift: Shift {
                seq: word(0),
                ack: word(4),
                ts_val: word(8),
                ts_ecr: word(12),
                window_from: shift[16] % 15,
                window_to: shift[17] % 15,
                known: shift[18],
                ecn: shift[19] % 2,
            },
            payload,
        })
    }

    /// The buffer after translation by `shift`.
    fn translated(&self, shift: &Shift) -> [u8; BUFFER] {
        let mut buffer = self.buffer;
        translate(&mut buffer, self.len, shift);
        buffer
    }

    /// Checks everything.
    pub(super) fn check(&self) {
        self.agrees_with_the_reference();
        self.grants_what_was_offered();
        self.can_be_undone();
        self.keeps_its_checksum();
    }

    fn agrees_with_the_reference(&self) {
        let fast = self.translated(&self.shift);
        let header = Header::read(&self.buffer[..self.len]);
        assert_eq!(
            header.write(),
            self.buffer[..self.len],
            "the reference reads all there is"
        );
        let slow = header.translated(&self.shift);
        assert_eq!(
            fast[..self.len],
            slow.write(),
            "{header:?}, which should become {slow:?}"
        );
        assert_eq!(
            fast[self.len..],
            self.buffer[self.len..],
            "beyond the header nothing changes"
        );
    }

    /// The window never ends later than its sender has said, and not earlier than the other scale
    /// makes it.
    fn grants_what_was_offered(&self) {
        let window = |buffer: &[u8; BUFFER], scale| u64::from(super::window(buffer)) << scale;
        let translated = self.translated(&self.shift);
        if self.buffer[13] & packet::SYN != 0 {
            assert_eq!(super::window(&translated), super::window(&self.buffer));
            return;
        }
        let offered = window(&self.buffer, self.shift.window_from);
        let granted = window(&translated, self.shift.window_to);
        assert!(granted <= offered, "{granted} granted of {offered}");
        assert!(
            offered - granted < 1 << self.shift.window_to || super::window(&translated) == 0xffff,
            "{granted} granted of {offered}"
        );
    }

    /// There and back again, a header is what it was, but for what has no meaning on the other leg.
    fn can_be_undone(&self) {
        let there = Shift {
            known: TS_VAL_KNOWN | TS_ECR_KNOWN,
            ecn: 1,
            window_to: self.shift.window_from,
            ..self.shift
        };
        let back = Shift {
            seq: there.seq.wrapping_neg(),
            ack: there.ack.wrapping_neg(),
            ts_val: there.ts_val.wrapping_neg(),
            ts_ecr: there.ts_ecr.wrapping_neg(),
            ..there
        };
        let nowhere = Shift {
            seq: 0,
            ack: 0,
            ts_val: 0,
            ts_ecr: 0,
            ..there
        };
        // The one echo that becomes 0 says nothing from then on.
        let echo_is_lost = |echo: u32| echo != 0 && echo.wrapping_add(there.ts_ecr) == 0;
        let stamps = Header::read(&self.buffer[..self.len]).timestamps();
        if stamps.is_some_and(|(_, echo)| echo_is_lost(echo)) {
            return;
        }
        let mut buffer = self.translated(&there);
        translate(&mut buffer, self.len, &back);
        assert_eq!(buffer, self.translated(&nowhere));
    }

    /// The checksum (RFC 9293, 3.1) can be carried over as the tc programs do it: by the difference of
    /// the two headers, with the field itself equal in both.
    fn keeps_its_checksum(&self) {
        let sealed = |mut buffer: [u8; BUFFER]| {
            [buffer[16], buffer[17]] = [0, 0];
            checksum(&[&buffer[..self.len], self.payload])
        };
        let translated = self.translated(&self.shift);
        let difference = csum_diff(&self.buffer[..self.len], &translated[..self.len]);
        assert_eq!(
            l4_csum_replace(sealed(self.buffer), difference),
            sealed(translated)
        );
    }
}

/// Checks the translation of the case that is in `bytes`, if one is.
pub fn translation(bytes: &[u8]) {
    if let Some(case) = Case::read(bytes) {
        case.check();
    }
}

/// The Internet checksum (RFC 1071) of `parts`, each padded to words of 16 bits.
fn checksum(parts: &[&[u8]]) -> u16 {
    let halves = parts.iter().flat_map(|part| part.chunks(2));
    let sum =
        halves.map(|half| u64::from(u16::from_be_bytes([half[0], *half.get(1).unwrap_or(&0)])));
    !folded(sum.sum())
}

/// `bpf_csum_diff`: takes the words of `from` from a sum, adds those of `to`. The kernel adds words of
/// its own byte order and 32 bits, which makes no difference to the sum of 16 (RFC 1071, 2).
fn csum_diff(from: &[u8], to: &[u8]) -> u64 {
    let words = |bytes| {
        <[u8]>::chunks_exact(bytes, 4)
            .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
    };
    let taken: u64 = words(from).map(|word| u64::from(!word)).sum();
    let added: u64 = words(to).map(u64::from).sum();
    taken + added
}

/// `bpf_l4_csum_replace` with such a difference (RFC 1624, 3, equation 3).
fn l4_csum_replace(checksum: u16, difference: u64) -> u16 {
    !folded(u64::from(!checksum) + difference)
}

/// A sum in one's complement of 16 bits: carries are added in again.
fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::println;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn the_corpus_is_translated_as_the_reference_does_it() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/translate");
        let entries: Vec<_> = fs::read_dir(&root)
            .expect("the corpus")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert!(entries.len() >= 20, "only {} files", entries.len());
        for path in entries {
            println!("{}", path.display());
            let bytes = fs::read(path).expect("a file");
            assert!(Case::read(&bytes).is_some(), "not a case");
            translation(&bytes);
        }
    }

    /// The example of RFC 1071, 3, and the one of RFC 1624, 4.
    #[test]
    fn the_checksum_is_that_of_the_rfcs() {
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&words]), !0xddf2);
        let difference = csum_diff(&[0, 0, 0x55, 0x55], &[0, 0, 0x32, 0x85]);
        assert_eq!(l4_csum_replace(0xdd2f, difference), 0x0000);
    }
}
