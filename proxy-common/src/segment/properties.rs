//! Properties of headers as stacks write them, and of headers of any kind.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::check::Case;
use super::reference::{Flags, Header, Item};
use super::{BUFFER, Shift, TS_ECR_KNOWN, TS_VAL_KNOWN, translate};
use crate::packet::ACK;

/// Numbers of 32 bits, half of them close to where such numbers wrap or change sign.
fn number() -> impl Strategy<Value = u32> {
    let near = |number: u32| {
        (0..20_000u32).prop_map(move |by| number.wrapping_add(by).wrapping_sub(10_000))
    };
    prop_oneof![2 => any::<u32>(), 1 => near(0), 1 => near(1 << 31), 1 => Just(0)]
}

fn shift() -> impl Strategy<Value = Shift> {
    let numbers = (number(), number(), number(), number());
    (numbers, 0..=14u8, 0..=14u8, 0..4u8, 0..2u8).prop_map(
        |((seq, ack, ts_val, ts_ecr), window_from, window_to, known, ecn)| Shift {
            seq,
            ack,
            ts_val,
            ts_ecr,
            window_from,
            window_to,
            known,
            ecn,
        },
    )
}

/// As Linux writes them on an established connection (`tcp_options_write`), and the BSDs and Windows:
/// timestamps or none, then SACK blocks or none, each behind two NOPs.
fn usual_options() -> impl Strategy<Value = Vec<Item>> {
    let stamps = prop_oneof![
        Just(vec![]),
        (number(), number()).prop_map(|(value, echo)| vec![
            Item::Nop,
            Item::Nop,
            Item::Timestamps { value, echo }
        ]),
    ];
    let sack = prop_oneof![
        Just(vec![]),
        prop::collection::vec((number(), number()), 1..=4).prop_map(|blocks| {
            let edges = blocks.into_iter().flat_map(|(left, right)| [left, right]);
            vec![Item::Nop, Item::Nop, Item::Sack(edges.collect())]
        }),
    ];
    (stamps, sack).prop_map(|(stamps, mut sack)| {
        // RFC 2018, 3: beside timestamps there is room for three.
        if let (false, Some(Item::Sack(edges))) = (stamps.is_empty(), sack.last_mut()) {
            edges.truncate(6);
        }
        [stamps, sack].concat()
    })
}

/// Options that are not translated: end of options, MSS, MD5, MPTCP, accurate ECN.
const OTHERS: &[&[u8]] = &[
    &[0],
    &[2, 4, 5, 180],
    &[19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[30, 4, 0, 0],
    &[172, 2],
];

/// Options that exist (and some that do not), in any order, cut where a header ends.
fn mixed_options() -> impl Strategy<Value = Vec<Item>> {
    let padding = Just(vec![1]);
    let stamps = (number(), number()).prop_map(|(value, echo)| {
        [&[8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
    });
    let edges = prop::collection::vec(any::<u8>(), 0..33);
    let sack_of_any_length =
        (0..40u8, edges).prop_map(|(len, edges)| [&[5, len][..], &edges].concat());
    let other = prop::sample::select(OTHERS).prop_map(<[u8]>::to_vec);
    let noise = prop::collection::vec(any::<u8>(), 1..8);
    let option = prop_oneof![
        4 => padding,
        2 => stamps,
        2 => sack_of_any_length,
        1 => other,
        1 => noise,
    ];
    prop::collection::vec(option, 0..10).prop_map(|options| {
        let mut bytes = options.concat();
        bytes.truncate(40);
        bytes.truncate(bytes.len() / 4 * 4);
        vec![Item::Other(bytes)]
    })
}

fn header(options: impl Strategy<Value = Vec<Item>>) -> impl Strategy<Value = Header> {
    let numbers = (number(), number(), any::<u16>(), any::<u16>());
    // Most segments have ACK and neither SYN nor RST.
    let flags =
        prop_oneof![4 => any::<u8>().prop_map(|flags| flags & !0x06 | ACK), 1 => any::<u8>()];
    (any::<[u8; 4]>(), numbers, 0..16u8, flags, options).prop_map(
        |(ports, (sequence, acknowledgement, window, rest), reserved, flags, options)| Header {
            ports,
            sequence,
            acknowledgement,
            reserved,
            flags: Flags(flags),
            window,
            checksum: rest,
            urgent: rest,
            options,
        },
    )
}

/// The header in a buffer, before bytes that are not its own.
fn buffer(header: &Header) -> ([u8; BUFFER], usize) {
    let bytes = header.write();
    let mut buffer = [0xee; BUFFER];
    buffer[..bytes.len()].copy_from_slice(&bytes);
    (buffer, bytes.len())
}

fn check(header: &Header, shift: Shift, payload: &[u8]) {
    let (buffer, len) = buffer(header);
    Case {
        buffer,
        len,
        shift,
        payload,
    }
    .check();
}

/// The edges of a header's SACK blocks.
fn edges(header: &Header) -> &[u32] {
    match header.options.last() {
        Some(Item::Sack(edges)) => edges,
        _ => &[],
    }
}

/// Where a stream begins, or a clock, on the two legs: the number there.
#[derive(Clone, Copy, Debug)]
struct Origin {
    here: u32,
    there: u32,
}

impl Origin {
    fn distance(self) -> u32 {
        self.there.wrapping_sub(self.here)
    }

    /// Do these two numbers, one of each leg, mean the same byte or tick?
    fn same(self, here: u32, there: u32) -> bool {
        here.wrapping_sub(self.here) == there.wrapping_sub(self.there)
    }
}

fn origin() -> impl Strategy<Value = Origin> {
    (number(), number()).prop_map(|(here, there)| Origin { here, there })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn usual_headers(
        header in header(usual_options()),
        shift in shift(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        check(&header, shift, &payload);
    }

    #[test]
    fn headers_with_options_of_all_kinds(
        header in header(mixed_options()),
        shift in shift(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        check(&header, shift, &payload);
    }

    /// Whatever a segment says of a byte of either stream, or of a tick of either clock, it says of the
    /// same one on the other leg.
    #[test]
    fn positions_are_kept(
        mut header in header(usual_options()),
        sent in origin(),
        received in origin(),
        own_clock in origin(),
        other_clock in origin(),
    ) {
        header.flags.0 |= ACK;
        let shift = Shift {
            seq: sent.distance(),
            ack: received.distance(),
            ts_val: own_clock.distance(),
            ts_ecr: other_clock.distance(),
            known: TS_VAL_KNOWN | TS_ECR_KNOWN,
            ..Shift::default()
        };
        let (mut bytes, len) = buffer(&header);
        translate(&mut bytes, len, &shift);
        let there = Header::read(&bytes[..len]);

        prop_assert!(sent.same(header.sequence, there.sequence));
        prop_assert!(received.same(header.acknowledgement, there.acknowledgement));
        prop_assert_eq!(edges(&header).len(), edges(&there).len());
        for (edge, translated) in edges(&header).iter().zip(edges(&there)) {
            prop_assert!(received.same(*edge, *translated));
        }
        prop_assert_eq!(header.timestamps().is_some(), there.timestamps().is_some());
        if let (Some((value, echo)), Some((their_value, their_echo))) =
            (header.timestamps(), there.timestamps())
        {
            prop_assert!(own_clock.same(value, their_value));
            prop_assert!(echo == 0 && their_echo == 0 || other_clock.same(echo, their_echo));
        }
    }
}
