//! Turning a TCP segment of one leg of a flow into a segment of the other, by constants.
//!
//! Once both legs of a flow are connections with known positions, the same byte of the stream has a
//! fixed distance between its two sequence numbers, and everything else that a header says can be
//! translated likewise:
//!
//! | field | becomes | see |
//! |---|---|---|
//! | sequence number | it + [`Shift::seq`] | RFC 9293, 3.4 |
//! | acknowledgement number, if ACK is set | it + [`Shift::ack`] | |
//! | SACK edges, D-SACK's too | each + [`Shift::ack`]: they count as it does | RFC 2018, 3; RFC 2883, 4 |
//! | window | the same bytes in the other scale, rounded down | RFC 7323, 2.3 |
//! | timestamp value, its echo | it + [`Shift::ts_val`], it + [`Shift::ts_ecr`] | RFC 7323, 3.2 |
//! | ECE, CWR | as they are where both legs have ECN, else 0 | RFC 3168, 6.1 |
//! | urgent pointer | as it is: it counts from the sequence number | RFC 9293, 3.8.5 |
//! | reserved bits | 0: what they mean is of one leg | RFC 9293, 3.1; RFC 9768 |
//! | other options | padding, for the same reason | |
//! | ports, checksum | as they are: the caller's | |
//!
//! What is here is pure: the tc programs call it on the header that they loaded, host tests and the
//! fuzzer on headers of their own, where it is compared with a slow one (`reference`). A header is
//! what is on the wire, big-endian, in a buffer of fixed size; its length is in bytes. All offsets
//! are constants and all loops of fixed length, or the BPF verifier would not follow.

#[cfg(any(test, feature = "check"))]
pub mod check;
#[cfg(test)]
mod properties;
#[cfg(any(test, feature = "check"))]
mod reference;
#[cfg(test)]
mod tests;

use crate::packet::{ACK, SYN};

/// The reserved bits of byte 12 (RFC 9293, 3.1). The last is the flag AE of accurate ECN (RFC 9768).
const RESERVED: u8 = 0x0f;

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
/// Two NOPs, SACK (5); its length follows, 2 + 8 for each block (RFC 2018, 3).
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
    /// Added to the timestamp value, once known. Nobody but the first segment that has a timestamp can
    /// tell, so the caller learns it from that before it is translated.
    pub ts_val: u32,
    /// Added to the timestamp echo, once known; until then the echo becomes 0, which Linux takes as
    /// "no measurement".
    pub ts_ecr: u32,
    /// Scale of the window that the segment carries, 0 to 14: the kernel takes a larger one for 14, as
    /// RFC 7323, 2.3 wants.
    pub window_from: u8,
    /// Scale that its receiver will apply to it, 0 to 14.
    ///
    /// A sender whose whole window is smaller than 2 to the power of this, in bytes, could never be
    /// sent anything: its flow must not be translated.
    pub window_to: u8,
    /// `TS_*_KNOWN` bits.
    pub known: u8,
    /// 1: both legs have negotiated ECN as RFC 3168 has it; 0: its bits are cleared, and the caller
    /// sees to those in the IP header. Accurate ECN (RFC 9768) cannot be translated: it counts.
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
/// `len` is the data offset in bytes, 20 to 60. Options other than timestamps and SACK, and those two in
/// unusual places, become padding; those that a flow cannot do without (MPTCP, TCP-AO, MD5) make it
/// ineligible before it comes here. So do the options of a SYN: the flow is established, a SYN in it
/// is a stray, and gets no more than a challenge (RFC 9293, 3.10.7.4).
#[inline(always)]
pub fn translate(header: &mut [u8; BUFFER], len: usize, shift: &Shift) {
    set_word(header, 4, word(header, 4).wrapping_add(shift.seq));
    if header[13] & ACK != 0 {
        set_word(header, 8, word(header, 8).wrapping_add(shift.ack));
    }
    if header[13] & SYN == 0 {
        set_window(header, shift);
    }
    header[12] &= !RESERVED;
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
    let whole_blocks = size >= 10 && size % 8 == 2;
    if word(header, AT) & 0xffff_ff00 == SACK_ALIGNED && whole_blocks && AT + 2 + size == len {
        for edge in 0..(MAX_HEADER - 24) / 4 {
            if 2 + edge * 4 < size && AT + 4 + edge * 4 <= MAX_HEADER - 4 {
                let at = AT + 4 + edge * 4;
                set_word(header, at, word(header, at).wrapping_add(shift.ack));
            }
        }
        return;
    }
    pad::<AT>(header, len);
}

/// Makes padding of the options from `AT` on.
#[inline(always)]
fn pad<const AT: usize>(header: &mut [u8; BUFFER], len: usize) {
    for offset in 0..MAX_HEADER - AT {
        if AT + offset < len {
            header[AT + offset] = NOP;
        }
    }
}

/// Makes padding of all options but timestamps, where every stack puts them: of SACK, above all. Its blocks may be
/// about what one who is to see the segment has never sent.
#[inline(always)]
pub fn only_timestamps(header: &mut [u8; BUFFER], len: usize) {
    if len >= 32 && word(header, 20) == TIMESTAMPS_ALIGNED {
        pad::<32>(header, len);
    } else {
        pad::<20>(header, len);
    }
}

#[inline(always)]
fn set_window(header: &mut [u8; BUFFER], shift: &Shift) {
    [header[14], header[15]] = rescaled(window(header), shift).to_be_bytes();
}

/// RFC 7323, 2.3: the field is the window shifted right by its sender's scale. What does not fit is
/// cut to the largest that does; a remainder is dropped, never granted.
///
/// So what is left of a window can become 0 early. That costs nothing: it is what a full receiver would
/// say next, and it says more as soon as it has read (RFC 9293, 3.8.6.2.2), or when it is probed
/// (3.8.6.1), for as long as it takes. Rounded up, it would let a segment out that the receiver need not
/// take (Linux does not since 6.17, while anything is queued: `tcp_sequence`); then a
/// reader that rests for a quarter of an hour is a loss repeated until the sender gives up.
#[inline(always)]
fn rescaled(field: u16, shift: &Shift) -> u16 {
    let window = (u32::from(field) << (shift.window_from & 15)) >> (shift.window_to & 15);
    if window > 0xffff {
        0xffff
    } else {
        window as u16
    }
}

#[inline(always)]
fn timestamps(header: &mut [u8; BUFFER], at: usize, shift: &Shift) {
    if shift.known & TS_VAL_KNOWN != 0 {
        set_word(header, at, word(header, at).wrapping_add(shift.ts_val));
    }
    // RFC 7323, 3.2: the echo is valid only with ACK, else it should be 0. With ACK, 0 is what Linux
    // takes as "no measurement"; it stays that.
    let echo = word(header, at + 4);
    let valid = header[13] & ACK != 0 && echo != 0;
    let known = valid && shift.known & TS_ECR_KNOWN != 0;
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

/// Is the acknowledgement number valid?
#[inline(always)]
#[must_use]
pub fn has_acknowledgement(header: &[u8; BUFFER]) -> bool {
    header[13] & ACK != 0
}

/// The acknowledgement number; of no meaning without the flag ACK.
#[inline(always)]
#[must_use]
pub fn acknowledgement(header: &[u8; BUFFER]) -> u32 {
    word(header, 8)
}

/// The window field, not scaled.
#[inline(always)]
#[must_use]
pub fn window(header: &[u8; BUFFER]) -> u16 {
    u16::from_be_bytes([header[14], header[15]])
}

/// What an acknowledgement number and a window field of the sender are to the receiver.
#[inline(always)]
#[must_use]
pub fn acknowledging(acked: u32, window: u16, shift: &Shift) -> (u32, u16) {
    (acked.wrapping_add(shift.ack), rescaled(window, shift))
}

/// Lets a translated header acknowledge no less than `floor`; true where it does so by itself.
///
/// Our socket has acknowledged up to there what it hands over, and who has seen that takes a much older
/// number for an attack (RFC 5961, 5.2). The window, in units of 2 to the power of `scale`, then ends where
/// it would have ended.
#[inline(always)]
pub fn raise_acknowledgement(header: &mut [u8; BUFFER], floor: u32, scale: u8) -> bool {
    let behind = floor.wrapping_sub(word(header, 8));
    if behind == 0 || behind >= 1 << 31 {
        return true;
    }
    set_word(header, 8, floor);
    let scale = scale & 15;
    let offered = u32::from(window(header)) << scale;
    let left = if offered > behind {
        (offered - behind) >> scale
    } else {
        0
    };
    [header[14], header[15]] = (left as u16).to_be_bytes();
    false
}

/// Sets the sequence number.
#[inline(always)]
pub fn set_sequence(header: &mut [u8; BUFFER], sequence: u32) {
    set_word(header, 4, sequence);
}

/// Lets the header acknowledge nothing beyond `limit`: what is less than 2^31 after it (RFC 9293, 3.4).
#[inline(always)]
pub fn limit_acknowledgement(header: &mut [u8; BUFFER], limit: u32) {
    if limit.wrapping_sub(word(header, 8)) >= 1 << 31 {
        set_word(header, 8, limit);
    }
}

/// Leaves no flag but ACK.
#[inline(always)]
pub fn bare_flags(header: &mut [u8; BUFFER]) {
    header[12] &= !RESERVED;
    header[13] = ACK;
}

/// The timestamp value of a header, if it has one: found as [`translate`] finds it.
#[inline(always)]
#[must_use]
pub fn timestamp(header: &[u8; BUFFER], len: usize) -> Option<u32> {
    (len >= 32 && word(header, 20) == TIMESTAMPS_ALIGNED).then(|| word(header, 24))
}
