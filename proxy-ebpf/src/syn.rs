//! What the SYN of an upstream socket may offer: no more than the downstream connection has, so that a
//! packet of one can become a packet of the other.
//!
//! The SYNs are this host's own, and Linux puts options where `tcp_options_write` does: constant
//! offsets will do. The kernel takes an option that the answer does not have as not negotiated.

use aya_ebpf::programs::TcContext;
use proxy_common::flow::{OFFER_ALL, OFFER_SACK, OFFER_TIMESTAMPS};

use crate::packet::{RewriteFailed, set_word, word};

// Offsets in the TCP header.
const FIRST: u32 = 20;
const SECOND: u32 = 24;
const TIMESTAMP: u32 = 28;

// Options as they stand in a word (RFC 9293, 3.2; RFC 2018, 2; RFC 7323, 3.2).
const MSS: u32 = 0x0204_0000;
const SACK_TIMESTAMPS: u32 = 0x0402_080a;
const NOPS_TIMESTAMPS: u32 = 0x0101_080a;
const NOPS_SACK: u32 = 0x0101_0402;
const SACK_NOPS: u32 = 0x0402_0101;
const NOPS: u32 = 0x0101_0101;

/// Where the timestamps option of a packet of this host's own has its two words, from the packet's start;
/// 0: it has none.
///
/// [`crate::packet::timestamps`] finds it in anybody's packets, by a walk that costs the verifier much.
#[inline(always)]
pub fn own_timestamps(ctx: &TcContext, l4: u32, header_len: u32) -> u32 {
    let is_timestamps = |at| matches!(word(ctx, l4 + at), Some(SACK_TIMESTAMPS | NOPS_TIMESTAMPS));
    if header_len >= TIMESTAMP + 8 && is_timestamps(SECOND) {
        l4 + TIMESTAMP // A SYN, which begins with the MSS.
    } else if header_len >= SECOND + 8 && is_timestamps(FIRST) {
        l4 + SECOND
    } else {
        0
    }
}

/// Lets the SYN ask for segments of at most `mss` bytes (0: any), and offer no more than `offer`.
#[inline(always)]
pub fn adapt(ctx: &TcContext, l4: u32, mss: u16, offer: u16) -> Result<(), RewriteFailed> {
    if mss != 0
        && let Some(option) = word(ctx, l4 + FIRST)
        && option & 0xffff_0000 == MSS
        && option & 0xffff > u32::from(mss)
    {
        set_word(ctx, l4, FIRST, MSS | u32::from(mss))?;
    }
    if offer & OFFER_ALL == OFFER_ALL {
        return Ok(());
    }
    let Some(options) = word(ctx, l4 + SECOND) else {
        return Ok(()); // A SYN without options.
    };
    let has_timestamps = options == SACK_TIMESTAMPS || options == NOPS_TIMESTAMPS;
    let has_sack = options == SACK_TIMESTAMPS || options == NOPS_SACK;
    let timestamps = has_timestamps && offer & OFFER_TIMESTAMPS != 0;
    let sack = has_sack && offer & OFFER_SACK != 0;
    if !has_timestamps && !has_sack {
        return Ok(());
    }
    let left = match (sack, timestamps) {
        (true, true) => SACK_TIMESTAMPS,
        (false, true) => NOPS_TIMESTAMPS,
        (true, false) => SACK_NOPS,
        (false, false) => NOPS,
    };
    set_word(ctx, l4, SECOND, left)?;
    if has_timestamps && !timestamps {
        set_word(ctx, l4, TIMESTAMP, NOPS)?;
        set_word(ctx, l4, TIMESTAMP + 4, NOPS)?;
    }
    Ok(())
}
