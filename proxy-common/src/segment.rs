//! Turning a TCP segment of one leg of a flow into a segment of the other, by constants.
//!
//! Once both legs of a flow are connections with known positions, the same byte of the stream has a
//! fixed distance between its two sequence numbers, and everything else that a header says can be
//! translated likewise (RFC 9293; window scale and timestamps: RFC 7323; SACK: RFC 2018, 2883). What
//! is here is pure: the tc programs call it on the header that they loaded, host tests and the
//! fuzzer on headers of their own.

use crate::packet::{ACK, SYN};

/// ECN bits of the flag byte (RFC 3168, 6.1).
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A TCP header with all its options, in bytes.
pub const MAX_HEADER: usize = 60;

/// Size of the buffers that headers are translated in.
pub const BUFFER: usize = 64;

/// The option that pads (RFC 9293, 3.1).
const NOP: u8 = 1;
/// Two NOPs, timestamps (8), its length (10): RFC 7323, appendix A.
const TIMESTAMPS_ALIGNED: u32 = 0x0101_080a;
/// Two NOPs, SACK (5); its length follows.
const SACK_ALIGNED: u32 = 0x0101_0500;

/// [`Shift::known`]: `ts_val` is valid.
pub const TS_VAL_KNOWN: u8 = 1 << 0;
/// [`Shift::known`]: `ts_ecr` is valid.
pub const TS_ECR_KNOWN: u8 = 1 << 1;

/// The constants of one direction. All sums are modulo 2^32.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Added to the sequence number.
    pub seq: u32,
    /// Added to the acknowledgement number and to SACK edges.
    pub ack: u32,
    /// Added to the timestamp value, once known.
    pub ts_val: u32,
    /// Added to the timestamp echo, once known; until then the echo becomes 0, which Linux takes as
    /// "no measurement".
    pub ts_ecr: u32,
    /// Scale of the window that the segment carries (RFC 7323, 2.2), 0 to 14.
    pub window_from: u8,
    /// Scale that its receiver will apply to it.
    pub window_to: u8,
    /// `TS_*_KNOWN` bits.
    pub known: u8,
    /// 1: both legs have negotiated ECN; 0: its bits are cleared.
    pub ecn: u8,
}

const _: () = assert!(size_of::<Shift>() == 20);

/// Reads a big-endian word of the header; `at` is a constant or bounded by the caller.
#[inline(always)]
fn word(header: &[u8; BUFFER], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

#[inline(always)]
fn set_word(header: &mut [u8; BUFFER], at: usize, value: u32) {
    let bytes = value.to_be_bytes();
    header[at] = bytes[0];
    header[at + 1] = bytes[1];
    header[at + 2] = bytes[2];
    header[at + 3] = bytes[3];
}

/// Translates the header in the first `len` bytes of `header`; the rest is not looked at.
///
/// `len` is the data offset in bytes, 20 to 60. The checksum field is left as it is. Options other than
/// timestamps and SACK, and those two in unusual places, become padding; those that a flow cannot do
/// without (MPTCP, TCP-AO, MD5) make it ineligible before it comes here.
#[inline(always)]
pub fn translate(header: &mut [u8; BUFFER], len: usize, shift: &Shift) {
    set_word(header, 4, word(header, 4).wrapping_add(shift.seq));
    if header[13] & ACK != 0 {
        set_word(header, 8, word(header, 8).wrapping_add(shift.ack));
    }
    if header[13] & SYN == 0 {
        set_window(header, shift);
    }
    if shift.ecn == 0 {
        header[13] &= !(ECE | CWR);
    }
    // Options stand where every stack puts them (RFC 7323, appendix A; RFC 2018, 3), so no walk is
    // needed, which the BPF verifier would follow down every path.
    if len >= 32 && word(header, 20) == TIMESTAMPS_ALIGNED {
        timestamps(header, 24, shift);
        sack_or_nothing::<32>(header, len, shift);
    } else {
        sack_or_nothing::<20>(header, len, shift);
    }
}

/// Translates the SACK option at `AT`, if that is what stands there. Anything else becomes padding: an
/// option that is not understood cannot be right on the other leg.
#[inline(always)]
fn sack_or_nothing<const AT: usize>(header: &mut [u8; BUFFER], len: usize, shift: &Shift) {
    if len <= AT {
        return;
    }
    let size = usize::from(header[AT + 3]);
    if word(header, AT) & 0xffff_ff00 == SACK_ALIGNED && size >= 2 && AT + 2 + size == len {
        for edge in 0..(MAX_HEADER - 24) / 4 {
            if 2 + edge * 4 < size && AT + 4 + edge * 4 <= MAX_HEADER - 4 {
                let at = AT + 4 + edge * 4;
                set_word(header, at, word(header, at).wrapping_add(shift.ack));
            }
        }
        return;
    }
    for (at, byte) in header.iter_mut().enumerate().take(MAX_HEADER).skip(AT) {
        if at < len {
            *byte = NOP;
        }
    }
}

/// RFC 7323, 2.3: the field is the window shifted right by its sender's scale. What does not fit is
/// cut to the largest that does; a remainder is dropped, never granted.
#[inline(always)]
fn set_window(header: &mut [u8; BUFFER], shift: &Shift) {
    let field = u32::from(u16::from_be_bytes([header[14], header[15]]));
    let window = (field << (shift.window_from & 15)) >> (shift.window_to & 15);
    let field = if window > 0xffff {
        0xffff
    } else {
        window as u16
    };
    [header[14], header[15]] = field.to_be_bytes();
}

#[inline(always)]
fn timestamps(header: &mut [u8; BUFFER], at: usize, shift: &Shift) {
    if shift.known & TS_VAL_KNOWN != 0 {
        set_word(header, at, word(header, at).wrapping_add(shift.ts_val));
    }
    let echo = word(header, at + 4);
    let known = shift.known & TS_ECR_KNOWN != 0 && echo != 0;
    set_word(
        header,
        at + 4,
        if known {
            echo.wrapping_add(shift.ts_ecr)
        } else {
            0
        },
    );
}

/// The sequence number.
#[inline(always)]
#[must_use]
pub fn sequence(header: &[u8; BUFFER]) -> u32 {
    word(header, 4)
}

/// Sets the sequence number.
#[inline(always)]
pub fn set_sequence(header: &mut [u8; BUFFER], sequence: u32) {
    set_word(header, 4, sequence);
}

/// Lets the header acknowledge nothing beyond `limit`.
#[inline(always)]
pub fn limit_acknowledgement(header: &mut [u8; BUFFER], limit: u32) {
    if limit.wrapping_sub(word(header, 8)) >= 1 << 31 {
        set_word(header, 8, limit);
    }
}

/// Leaves no flag but ACK.
#[inline(always)]
pub fn bare_flags(header: &mut [u8; BUFFER]) {
    header[13] = ACK;
}

/// The timestamp value of a header, if it has one: found as [`translate`] finds it.
#[inline(always)]
#[must_use]
pub fn timestamp(header: &[u8; BUFFER], len: usize) -> Option<u32> {
    (len >= 32 && word(header, 20) == TIMESTAMPS_ALIGNED).then(|| word(header, 24))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const SHIFT: Shift = Shift {
        seq: 1000,
        ack: 0u32.wrapping_sub(500),
        ts_val: 7,
        ts_ecr: 0u32.wrapping_sub(9),
        window_from: 7,
        window_to: 2,
        known: TS_VAL_KNOWN | TS_ECR_KNOWN,
        ecn: 0,
    };

    /// A header with these options, padded with NOPs.
    fn header(options: &[u8]) -> ([u8; BUFFER], usize) {
        let mut bytes = Vec::from([0; 20]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes[8..12].copy_from_slice(&100u32.to_be_bytes());
        bytes[13] = ACK | ECE;
        bytes[14..16].copy_from_slice(&3u16.to_be_bytes());
        bytes.extend_from_slice(options);
        while bytes.len() % 4 != 0 {
            bytes.push(NOP);
        }
        let len = bytes.len();
        bytes[12] = ((len / 4) << 4) as u8;
        bytes.resize(BUFFER, 0xee);
        (bytes.try_into().expect("its size"), len)
    }

    #[test]
    fn numbers_wrap_and_windows_are_rescaled() {
        let (mut bytes, len) = header(&[]);
        translate(&mut bytes, len, &SHIFT);
        assert_eq!(word(&bytes, 4), 999);
        assert_eq!(word(&bytes, 8), 100u32.wrapping_sub(500));
        assert_eq!(bytes[14..16], 96u16.to_be_bytes(), "3 << 7 >> 2");
        assert_eq!(bytes[13], ACK, "ECN is not negotiated on both legs");
        assert!(
            bytes[len..].iter().all(|b| *b == 0xee),
            "nothing after the header is touched"
        );
    }

    #[test]
    fn a_window_that_does_not_fit_is_cut() {
        let (mut bytes, len) = header(&[]);
        bytes[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
        translate(
            &mut bytes,
            len,
            &Shift {
                window_from: 14,
                window_to: 0,
                ..SHIFT
            },
        );
        assert_eq!(bytes[14..16], [0xff, 0xff]);
    }

    const STAMP: [u8; 12] = [NOP, NOP, 8, 10, 0, 0, 0, 1, 0, 0, 0, 20];

    #[test]
    fn timestamps_are_shifted() {
        let (mut bytes, len) = header(&STAMP);
        assert_eq!(timestamp(&bytes, len), Some(1));
        translate(&mut bytes, len, &SHIFT);
        assert_eq!(timestamp(&bytes, len), Some(8));
        assert_eq!(word(&bytes, 28), 11);
    }

    #[test]
    fn an_echo_without_a_known_shift_says_nothing() {
        let (mut bytes, len) = header(&STAMP);
        translate(
            &mut bytes,
            len,
            &Shift {
                known: TS_VAL_KNOWN,
                ..SHIFT
            },
        );
        assert_eq!(word(&bytes, 28), 0);
    }

    #[test]
    fn sack_blocks_move_with_the_acknowledgement() {
        for blocks in 1..=4 {
            for stamp in [&STAMP[..], &[]] {
                if stamp.len() + 4 + blocks * 8 > 40 {
                    continue;
                }
                let mut options = Vec::from(stamp);
                options.extend([NOP, NOP, 5, 2 + 8 * blocks as u8]);
                options.extend((0..blocks * 2).flat_map(|edge| [0, 0, 2, edge as u8]));
                let (mut bytes, len) = header(&options);
                translate(&mut bytes, len, &SHIFT);
                for edge in 0..blocks * 2 {
                    let at = 20 + stamp.len() + 4 + edge * 4;
                    assert_eq!(word(&bytes, at), (0x200 + edge as u32).wrapping_sub(500));
                }
                assert_eq!(timestamp(&bytes, len), (!stamp.is_empty()).then_some(8));
            }
        }
    }

    #[test]
    fn what_is_not_understood_becomes_padding() {
        for options in [
            &[5, 10, 0, 0, 0, 1, 0, 0, 0, 2][..],
            &[8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            &[NOP, NOP, 5, 255],
            &[NOP, NOP, 5, 0],
            &[30, 4, 1, 2, 19, 4, 0, 0],
        ] {
            let (mut bytes, len) = header(options);
            translate(&mut bytes, len, &SHIFT);
            assert!(bytes[20..len].iter().all(|b| *b == NOP), "{options:?}");
            assert!(bytes[len..].iter().all(|b| *b == 0xee), "{options:?}");
        }
    }
}
