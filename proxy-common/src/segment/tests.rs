//! Each rule by an example.

use super::*;
use crate::packet::RST;
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
        &[NOP, NOP, 5, 2],
        &[NOP, NOP, 5, 6, 0, 0, 0, 1],
        &[30, 4, 1, 2, 19, 4, 0, 0],
    ] {
        let (mut bytes, len) = header(options);
        translate(&mut bytes, len, &SHIFT);
        assert!(bytes[20..len].iter().all(|b| *b == NOP), "{options:?}");
        assert!(bytes[len..].iter().all(|b| *b == 0xee), "{options:?}");
    }
}

/// RFC 7323, 3.2: only a segment with ACK has an echo; of others it should be 0.
#[test]
fn without_ack_neither_number_nor_echo_is_taken() {
    let (mut bytes, len) = header(&STAMP);
    bytes[13] = RST;
    translate(&mut bytes, len, &SHIFT);
    assert_eq!(word(&bytes, 8), 100);
    assert_eq!(timestamp(&bytes, len), Some(8));
    assert_eq!(word(&bytes, 28), 0);
}

#[test]
fn ecn_is_kept_where_both_legs_have_it() {
    let (mut bytes, len) = header(&[]);
    bytes[12] |= 0x01;
    translate(&mut bytes, len, &Shift { ecn: 1, ..SHIFT });
    assert_eq!(bytes[13], ACK | ECE);
    assert_eq!(bytes[12], 0x50, "AE is of accurate ECN");
}

/// The edge of what was offered is never passed, whatever the remainder.
#[test]
fn what_is_left_of_a_window_is_not_granted() {
    let from_bytes = Shift {
        window_from: 0,
        window_to: 7,
        ..SHIFT
    };
    for (offered, granted) in [(0, 0), (1, 0), (127, 0), (128, 1), (255, 1), (0xffff, 511)] {
        assert_eq!(rescaled(offered, &from_bytes), granted, "{offered}");
    }
}

/// RFC 7323, 2.2: the window of a SYN is not scaled.
#[test]
fn the_window_of_a_syn_stays() {
    let (mut bytes, len) = header(&[]);
    bytes[13] = SYN;
    translate(&mut bytes, len, &SHIFT);
    assert_eq!(window(&bytes), 3);
}

#[test]
fn acknowledgements_are_limited_across_the_wrap() {
    for (acknowledged, limit, is) in [
        (100, 100, 100),
        (101, 100, 100),
        (99, 100, 99),
        (5, u32::MAX, u32::MAX),
        (u32::MAX, 5, u32::MAX),
    ] {
        let (mut bytes, _) = header(&[]);
        bytes[8..12].copy_from_slice(&u32::to_be_bytes(acknowledged));
        limit_acknowledgement(&mut bytes, limit);
        assert_eq!(acknowledgement(&bytes), is, "{acknowledged} up to {limit}");
    }
}

#[test]
fn a_guard_is_shown_timestamps_and_no_sack() {
    const TIMESTAMPS: [u8; 12] = [NOP, NOP, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    const SACK: [u8; 12] = [NOP, NOP, 5, 10, 0, 0, 0, 3, 0, 0, 0, 4];
    for (options, kept) in [
        ([&TIMESTAMPS[..], &SACK].concat(), 12),
        (SACK.to_vec(), 0),
        (TIMESTAMPS.to_vec(), 12),
        (Vec::new(), 0),
    ] {
        let (mut bytes, len) = header(&options);
        let before = bytes;
        only_timestamps(&mut bytes, len);
        assert_eq!(bytes[..20 + kept], before[..20 + kept]);
        assert!(bytes[20 + kept..len].iter().all(|byte| *byte == NOP));
        assert_eq!(bytes[len..], before[len..]);
    }
}
