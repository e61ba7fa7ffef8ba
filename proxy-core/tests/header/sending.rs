//! Rules 24 and 25: what is written. That it is written whole (rule 23) is the daemon's to keep.

use proxy_core::header::{
    Absence, Checksum, EncodeError, Endpoints, Subject, Tlv, TlvType, encode_v1, encode_v2,
};

use super::wire::{
    CLIENT, DESTINATION, LOCAL, PROXY, TCP4, TCP6, V1, absent, addresses, header, tcp, tcp4_with,
    tlv, v2,
};

fn subject(client: &str, destination: &str) -> Subject {
    Subject::Client(addresses(client, destination))
}

fn v2_without_tlvs(subject: Subject) -> Vec<u8> {
    encode_v2(subject, [], Checksum::Omit).unwrap()
}

#[test]
fn rule_24_one_family() {
    let ipv4 = subject(CLIENT, DESTINATION);
    assert_eq!(encode_v1(ipv4).unwrap(), V1);
    assert_eq!(v2_without_tlvs(ipv4), v2(PROXY, 0x11, TCP4));

    let ipv6 = subject("[2001:db8::1]:56324", "[2001:db8::2]:443");
    assert_eq!(
        encode_v1(ipv6).unwrap(),
        b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"
    );
    assert_eq!(v2_without_tlvs(ipv6), v2(PROXY, 0x21, TCP6));
}

#[test]
fn rule_24_mixed_families_are_promoted_to_ipv6() {
    for (client, destination, line) in [
        (
            CLIENT,
            "[2001:db8::2]:443",
            "TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443",
        ),
        (
            "[2001:db8::1]:56324",
            DESTINATION,
            "TCP6 2001:db8::1 ::ffff:198.51.100.1 56324 443",
        ),
    ] {
        let mixed = subject(client, destination);
        let written = encode_v1(mixed).unwrap();
        assert_eq!(written, format!("PROXY {line}\r\n").into_bytes());
        assert_eq!(tcp(&written), addresses(client, destination));

        let written = v2_without_tlvs(mixed);
        assert_eq!(written[13], 0x21);
        assert_eq!(tcp(&written), addresses(client, destination));
    }
}

#[test]
fn rule_24_both_mapped_is_ipv4() {
    let mapped = subject("[::ffff:192.0.2.1]:56324", "[::ffff:198.51.100.1]:443");
    assert_eq!(encode_v1(mapped).unwrap(), V1);
}

#[test]
fn rule_24_on_the_proxys_own_account() {
    let line = encode_v1(Subject::OwnAccount).unwrap();
    assert_eq!(line, b"PROXY UNKNOWN\r\n");
    assert_eq!(absent(&line), Absence::Unknown);

    let local = v2_without_tlvs(Subject::OwnAccount);
    assert_eq!(local, v2(LOCAL, 0x00, b""));
    assert_eq!(absent(&local), Absence::Local);
}

#[test]
fn rule_25_tlvs_are_forwarded_and_the_checksum_computed_anew() {
    let captured =
        include_bytes!("../../../fuzz/corpus/header_decode/haproxy-v2-tcp4-crc32c-unique-id");
    let (received, _) = header(captured);
    let new = subject("203.0.113.7:1", "203.0.113.8:2");
    let written = encode_v2(new, received.tlvs.iter(), Checksum::Compute).unwrap();
    // Reading it back verifies the checksum.
    let (passed_on, _) = header(&written);
    assert_eq!(
        passed_on.endpoints,
        Endpoints::Tcp(addresses("203.0.113.7:1", "203.0.113.8:2"))
    );
    assert_eq!(passed_on.tlvs.unique_id(), received.tlvs.unique_id());
    assert!(received.tlvs.crc32c().is_some() && passed_on.tlvs.crc32c().is_some());
    assert_ne!(passed_on.tlvs.crc32c(), received.tlvs.crc32c());

    // Not asked for, it is not there, though it was received.
    let written = encode_v2(new, received.tlvs.iter(), Checksum::Omit).unwrap();
    assert_eq!(header(&written).0.tlvs.crc32c(), None);
}

#[test]
fn rule_25_the_checksum_is_the_one_haproxy_computes() {
    // HAProxy puts it first where this crate puts it last: with no other TLV that is the same.
    let captured = include_bytes!("../../../fuzz/corpus/header_decode/haproxy-v2-tcp6-crc32c");
    let Endpoints::Tcp(addresses) = header(captured).0.endpoints else {
        panic!("no addresses")
    };
    let written = encode_v2(Subject::Client(addresses), [], Checksum::Compute).unwrap();
    assert_eq!(written, captured);
}

#[test]
fn rule_25_padding_and_checksum_are_not_for_the_next_hop() {
    let tlvs = [tlv(0x04, &[0; 30]), tlv(0xea, b"\x01vpce"), tlv(0x77, b"?")].concat();
    let (received, _) = header(&tcp4_with(&tlvs));
    let forwarded: Vec<_> = received.tlvs.forwardable().map(|tlv| tlv.kind.0).collect();
    assert_eq!(forwarded, [0xea, 0x77]);
}

#[test]
fn rule_25_a_connection_has_one_unique_id() {
    fn sent(received: &[u8], ours: Option<&[u8]>) -> Vec<(u8, Vec<u8>)> {
        let (received, _) = header(&tcp4_with(received));
        let tlvs = received.tlvs.forwardable_with(ours);
        let written = encode_v2(subject(CLIENT, DESTINATION), tlvs, Checksum::Omit).unwrap();
        let read = header(&written).0.tlvs;
        read.iter()
            .map(|tlv| (tlv.kind.0, tlv.value.to_vec()))
            .collect()
    }
    let custom = (0xea, b"\x01vpce".to_vec());
    let first = (0x05, b"first".to_vec());

    // One that came stays, in its place; of two the first.
    let twice = [tlv(0x05, b"first"), tlv(0xea, b"\x01vpce"), tlv(0x05, b"2")].concat();
    let expected = [first, custom.clone()];
    assert_eq!(sent(&twice, None), expected);
    assert_eq!(sent(&twice, Some(b"ours")), expected);

    // Ours takes the place of none.
    let none = tlv(0xea, b"\x01vpce");
    assert_eq!(sent(&none, None), std::slice::from_ref(&custom));
    let ours = (0x05, b"ours".to_vec());
    assert_eq!(sent(&none, Some(b"ours")), [custom, ours.clone()]);
    assert_eq!(sent(&[], Some(b"ours")), [ours]);
}

#[test]
fn rule_25_an_overlong_set_of_tlvs_is_an_error() {
    let ipv4 = subject(CLIENT, DESTINATION);
    let custom = TlvType(0xe0);
    let written = |len: usize, checksum| {
        encode_v2(
            ipv4,
            [Tlv {
                kind: custom,
                value: &vec![0; len],
            }],
            checksum,
        )
    };
    // 65 535 bytes after the fixed part: the address block, and type and length of the TLV.
    let most = 65_535 - 12 - 3;
    assert_eq!(written(most, Checksum::Omit).unwrap().len(), 65_535 + 16);
    assert_eq!(
        written(most + 1, Checksum::Omit),
        Err(EncodeError::TlvsTooLong)
    );
    assert_eq!(
        written(most - 7, Checksum::Compute).unwrap().len(),
        65_535 + 16
    );
    assert_eq!(
        written(most - 6, Checksum::Compute),
        Err(EncodeError::TlvsTooLong)
    );

    assert_eq!(
        written(65_535, Checksum::Omit),
        Err(EncodeError::TlvsTooLong)
    );
    let too_long = EncodeError::TlvTooLong {
        kind: custom,
        len: 65_536,
    };
    assert_eq!(written(65_536, Checksum::Omit), Err(too_long));

    let many = vec![
        Tlv {
            kind: custom,
            value: &[0; 1000]
        };
        70
    ];
    assert_eq!(
        encode_v2(ipv4, many, Checksum::Omit),
        Err(EncodeError::TlvsTooLong)
    );
    for error in [
        EncodeError::TlvsTooLong,
        EncodeError::UniqueIdTooLong { len: 129 },
    ] {
        assert_eq!(error.label(), "header-too-long");
    }
}

#[test]
fn rule_25_no_unique_id_is_sent_that_a_receiver_must_refuse() {
    let unique_id = |len: usize| {
        let value = vec![b'i'; len];
        encode_v2(
            Subject::OwnAccount,
            [Tlv {
                kind: TlvType::UNIQUE_ID,
                value: &value,
            }],
            Checksum::Omit,
        )
    };
    assert!(unique_id(128).is_ok());
    assert_eq!(
        unique_id(129),
        Err(EncodeError::UniqueIdTooLong { len: 129 })
    );
}
