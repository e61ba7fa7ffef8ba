//! Properties that hold for headers and bytes of every kind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::{
    Addresses, Checksum, Decoder, EncodeError, Endpoints, Header, Limits, Status, Subject, Tlv,
    TlvType, Tlvs, check, encode_v1, encode_v2,
};
use crate::address::{Client, Destination};

/// Beginnings that take random bytes past the first checks.
const BEGINNINGS: &[&[u8]] = &[
    b"",
    b"PROXY ",
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"PROXY UNKNOWN ",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x00\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0",
];

fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<Ipv4Addr>().prop_map(IpAddr::V4),
        any::<Ipv6Addr>().prop_map(IpAddr::V6),
        // Mapped, and with runs of zeroes: what spelling is about.
        any::<Ipv4Addr>().prop_map(|ipv4| ipv4.to_ipv6_mapped().into()),
        prop::array::uniform8(prop_oneof![Just(0), any::<u16>()]).prop_map(IpAddr::from),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

fn addresses() -> impl Strategy<Value = Addresses> {
    (socket_addr(), socket_addr()).prop_map(|(client, destination)| Addresses {
        client: Client::new(client),
        destination: Destination::new(destination),
    })
}

/// TLVs that may be sent as they are, `SSL` with sub-TLVs among them.
fn tlvs() -> impl Strategy<Value = Vec<(TlvType, Vec<u8>)>> {
    let value = |len| prop::collection::vec(any::<u8>(), 0..len);
    let any_kind = any::<u8>()
        .prop_map(TlvType)
        .prop_filter("made below, or not passed on", |kind| {
            !matches!(*kind, TlvType::SSL | TlvType::CRC32C | TlvType::NOOP)
        });
    let ssl = (any::<[u8; 5]>(), any::<u8>(), value(50)).prop_map(|(start, kind, value)| {
        let len = u16::try_from(value.len()).unwrap().to_be_bytes();
        (TlvType::SSL, [&start[..], &[kind], &len, &value].concat())
    });
    prop::collection::vec(prop_oneof![4 => (any_kind, value(129)), 1 => ssl], 0..8)
}

/// TLVs of a header that comes: as [`tlvs`], with padding and as many unique IDs as there may be.
fn received() -> impl Strategy<Value = Tlvs> {
    let also = prop_oneof![Just(TlvType::UNIQUE_ID), Just(TlvType::NOOP)];
    let also = prop::collection::vec((also, prop::collection::vec(any::<u8>(), 0..129)), 0..4);
    let mixed = (tlvs(), also).prop_map(|(some, others)| [some, others].concat());
    (mixed.prop_shuffle(), checksum()).prop_map(|(tlvs, checksum)| {
        let ends = Addresses {
            client: Client::new(([192, 0, 2, 1], 1).into()),
            destination: Destination::new(([192, 0, 2, 2], 2).into()),
        };
        let bytes = encode_v2(Subject::Client(ends), borrowed(&tlvs), checksum).unwrap();
        whole(&bytes).tlvs
    })
}

fn checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![Just(Checksum::Omit), Just(Checksum::Compute)]
}

/// The header that is all of `bytes`, by a decoder that takes the largest.
fn whole(bytes: &[u8]) -> Header {
    let widest = Limits::v2_len(Limits::LARGEST).unwrap();
    match Decoder::new(widest).decode(bytes) {
        Ok(Status::Complete { header, consumed }) if consumed == bytes.len() => header,
        other => panic!("{} is {other:?}", bytes.escape_ascii()),
    }
}

fn borrowed(tlvs: &[(TlvType, Vec<u8>)]) -> impl Iterator<Item = Tlv<'_>> {
    tlvs.iter().map(|(kind, value)| Tlv { kind: *kind, value })
}

/// A legal header, then payload.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let subject = prop_oneof![
        5 => addresses().prop_map(Subject::Client),
        1 => Just(Subject::OwnAccount),
    ];
    let header = (subject, tlvs(), any::<bool>(), any::<bool>()).prop_map(
        |(subject, tlvs, checksum, text)| {
            let checksum = if checksum {
                Checksum::Compute
            } else {
                Checksum::Omit
            };
            if text {
                encode_v1(subject).unwrap()
            } else {
                encode_v2(subject, borrowed(&tlvs), checksum).unwrap()
            }
        },
    );
    (header, prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(header, payload)| [header, payload].concat())
}

/// The shortest way to the end of a line of which `line` may be the beginning: byte by byte, the
/// first of these that is not refused.
fn completed(mut line: Vec<u8>) -> Result<(), Vec<u8>> {
    const BYTES: &[u8] = b"\n\r .:0PROXY TCP46UNKW";
    loop {
        let next = BYTES.iter().find_map(|&byte| {
            line.push(byte);
            let answer = Decoder::default().decode(&line);
            line.pop();
            answer.ok().map(|status| (byte, status))
        });
        match next {
            Some((_, Status::Complete { .. })) => return Ok(()),
            Some((byte, Status::Incomplete { .. })) => line.push(byte),
            None => return Err(line),
        }
    }
}

proptest! {
    #[test]
    fn v1_round_trip(addresses in addresses()) {
        let line = encode_v1(Subject::Client(addresses)).unwrap();
        let Ok(Status::Complete { header, consumed }) = Decoder::default().decode(&line) else {
            panic!("{}", line.escape_ascii());
        };
        prop_assert_eq!(header.endpoints, Endpoints::Tcp(addresses));
        prop_assert_eq!(consumed, line.len());
    }

    #[test]
    fn v2_round_trip(addresses in addresses(), tlvs in tlvs(), with_checksum: bool) {
        let checksum = if with_checksum { Checksum::Compute } else { Checksum::Omit };
        let bytes = encode_v2(Subject::Client(addresses), borrowed(&tlvs), checksum).unwrap();
        let Ok(Status::Complete { header, consumed }) = Decoder::default().decode(&bytes) else {
            panic!("{bytes:?}");
        };
        prop_assert_eq!(header.endpoints, Endpoints::Tcp(addresses));
        prop_assert_eq!(consumed, bytes.len());
        let others = header.tlvs.iter().filter(|tlv| tlv.kind != TlvType::CRC32C);
        prop_assert!(others.eq(borrowed(&tlvs)));
        prop_assert_eq!(header.tlvs.crc32c().is_some(), with_checksum);
    }

    /// Rules 24 and 25: what is sent for a client is read as what was meant, whatever came before it.
    #[test]
    fn what_is_passed_on_is_read_as_it_came(
        addresses in addresses(),
        received in received(),
        unique_id in prop::option::of(prop::collection::vec(any::<u8>(), 0..129)),
        checksum in checksum(),
    ) {
        let tlvs = received.forwardable_with(unique_id.as_deref());
        let bytes = encode_v2(Subject::Client(addresses), tlvs, checksum).unwrap();
        let sent = whole(&bytes);
        prop_assert_eq!(sent.endpoints, Endpoints::Tcp(addresses));
        prop_assert_eq!(sent.tlvs.crc32c().is_some(), checksum == Checksum::Compute);

        // In words: all others as they came, and one unique ID where there is any.
        let apart = |tlv: &Tlv<'_>| {
            matches!(tlv.kind, TlvType::CRC32C | TlvType::NOOP | TlvType::UNIQUE_ID)
        };
        let others = |tlvs: &Tlvs| -> Vec<(TlvType, Vec<u8>)> {
            let others = tlvs.iter().filter(|tlv| !apart(tlv));
            others.map(|tlv| (tlv.kind, tlv.value.to_vec())).collect()
        };
        prop_assert_eq!(others(&sent.tlvs), others(&received));
        let known_by = received.unique_id().or(unique_id.as_deref());
        prop_assert_eq!(sent.tlvs.unique_id(), known_by);
        let count = |kind| sent.tlvs.iter().filter(|tlv| tlv.kind == kind).count();
        prop_assert_eq!(count(TlvType::UNIQUE_ID), usize::from(known_by.is_some()));
        prop_assert_eq!(count(TlvType::NOOP), 0);
    }

    /// Rule 25: TLVs of any size are all there, or it is an error.
    #[test]
    fn an_overlong_set_is_an_error_and_nothing_less_is(
        addresses in addresses(),
        lens in prop::collection::vec(prop_oneof![0_usize..2000, 10_000_usize..40_000], 0..6),
        checksum in checksum(),
    ) {
        let values: Vec<_> = lens.iter().map(|&len| vec![0xa5; len]).collect();
        let tlvs = || values.iter().map(|value| Tlv { kind: TlvType(0xe0), value });
        let alone = encode_v2(Subject::Client(addresses), [], checksum).unwrap().len();
        let len = alone + lens.iter().map(|len| 3 + len).sum::<usize>();
        match encode_v2(Subject::Client(addresses), tlvs(), checksum) {
            Ok(bytes) => {
                prop_assert_eq!(bytes.len(), len);
                prop_assert!(whole(&bytes).tlvs.custom().eq(tlvs()));
            }
            Err(error) => {
                prop_assert_eq!(error, EncodeError::TlvsTooLong);
                prop_assert!(len > Limits::LARGEST, "{} would fit", len);
            }
        }
    }

    #[test]
    fn every_split_of_a_legal_header_gives_the_same_answer(stream in stream()) {
        check::decode(&stream);
        check::round_trip(&stream);
    }

    #[test]
    fn every_split_of_a_spoilt_header_gives_the_same_answer(
        mut stream in stream(),
        at: prop::sample::Index,
        byte in prop_oneof![any::<u8>(), prop::sample::select(b"\r\n .:0+P".as_slice())],
    ) {
        let at = at.index(stream.len());
        stream[at] = byte;
        check::decode(&stream);
        check::round_trip(&stream);
    }

    #[test]
    fn any_bytes_at_all(
        start in prop::sample::select(BEGINNINGS),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let bytes = [start, &rest].concat();
        check::decode(&bytes);
        check::round_trip(&bytes);
    }

    /// Rule 6 from the other side: what is not refused yet can still become legal.
    #[test]
    fn a_line_that_is_not_refused_can_be_completed(
        family in prop::sample::select(vec!["TCP4 ", "TCP6 "]),
        rest in "[0-9a-f]{1,4}([.:]{1,2}[0-9a-f]{1,4}){0,9}[.:]{0,2}( [0-9a-f.:]{0,4})?",
    ) {
        let line = format!("PROXY {family}{rest}").into_bytes();
        // The longest prefix that is not refused.
        let len = (0..=line.len())
            .rev()
            .find(|&len| Decoder::default().decode(&line[..len]).is_ok())
            .unwrap();
        if let Err(stuck) = completed(line[..len].to_vec()) {
            panic!("{} leads nowhere from {}", line[..len].escape_ascii(), stuck.escape_ascii());
        }
    }

    /// However an IPv6 address is spelled, none of its beginnings is refused.
    #[test]
    fn ipv6_in_any_spelling(
        groups in prop::array::uniform8(prop_oneof![Just(0), any::<u16>()]),
        width in 0_usize..=4,
        upper: bool,
        dotted: bool,
        elided in prop::option::of((0_usize..8, 1_usize..8)),
    ) {
        let mut texts: Vec<_> = groups.iter().map(|group| format!("{group:0width$x}")).collect();
        if dotted {
            let [.., high, low] = groups.map(u16::to_be_bytes);
            texts.truncate(6);
            texts.push(format!("{}.{}.{}.{}", high[0], high[1], low[0], low[1]));
        }
        let mut text = texts.join(":");
        let hex_groups = if dotted { 6 } else { 8 };
        if let Some((start, len)) = elided.filter(|(start, len)| start + len <= hex_groups) {
            text = format!("{}::{}", texts[..start].join(":"), texts[start + len..].join(":"));
        }
        if upper {
            text = text.to_uppercase();
        }
        let ip: Ipv6Addr = text.parse().unwrap();
        let line = format!("PROXY TCP6 {text} ::1 1 2\r\n").into_bytes();
        check::decode(&line);
        let Ok(Status::Complete { header, .. }) = Decoder::default().decode(&line) else {
            panic!("{}", line.escape_ascii());
        };
        prop_assert_eq!(header.client(), Some(Client::new((ip, 1).into())));
    }
}
