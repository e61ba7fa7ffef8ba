//! Rules 15 to 22: the binary header.

use proxy_core::header::{Absence, Decoder, Header, Limits, Refusal, Status, TlvType, Version};

use super::wire::{
    CLIENT, DESTINATION, LOCAL, PROXY, TCP4, TCP6, absent, addresses, header, refusal, refused_at,
    tcp, tcp4_with, tlv, v2, v2_claiming,
};

macro_rules! captured {
    ($name:literal) => {
        include_bytes!(concat!("../../../fuzz/corpus/header_decode/", $name))
    };
}

#[test]
fn rule_15_version_and_command() {
    assert_eq!(header(&v2(PROXY, 0x11, TCP4)).0.version, Version::V2);
    assert_eq!(tcp(&v2(PROXY, 0x11, TCP4)), addresses(CLIENT, DESTINATION));
    assert_eq!(absent(&v2(LOCAL, 0x11, TCP4)), Absence::Local);
    for byte in 0..=u8::MAX {
        let (version, command) = (byte >> 4, byte & 0x0f);
        let bytes = v2(byte, 0x11, TCP4);
        match (version, command) {
            (2, 0 | 1) => assert_eq!(header(&bytes).1, bytes.len()),
            (2, _) => assert_eq!(refusal(&bytes), Refusal::V2Command { command }),
            (_, _) => assert_eq!(refusal(&bytes), Refusal::V2Version { version }),
        }
    }
}

#[test]
fn rule_16_local_skips_whatever_follows() {
    let nlb = captured!("aws-nlb-local-with-tlvs");
    assert_eq!(nlb[12..16], [0x20, 0x11, 0x00, 0x54]);
    assert_eq!(absent(nlb), Absence::Local);
    for family in 0..=u8::MAX {
        for rest in [
            &b""[..],
            b"x",
            TCP4,
            b"\x03\x00\x04\xde\xad\xbe\xef",
            b"\x02\xff\xff",
            &[0; 300],
        ] {
            let bytes = v2(LOCAL, family, rest);
            assert_eq!(
                absent(&bytes),
                Absence::Local,
                "family {family:#04x}, {rest:?}"
            );
            assert!(header(&bytes).0.tlvs.is_empty());
        }
    }
    assert_eq!(absent(captured!("haproxy-v2-health-check")), Absence::Local);
    assert_eq!(
        absent(captured!("haproxy-v2-from-unix-socket")),
        Absence::Local
    );
}

#[test]
fn rule_17_families() {
    assert_eq!(tcp(&v2(PROXY, 0x11, TCP4)), addresses(CLIENT, DESTINATION));
    let ipv6 = addresses("[2001:db8::1]:56324", "[2001:db8::2]:443");
    assert_eq!(tcp(&v2(PROXY, 0x21, TCP6)), ipv6);
    assert_eq!(absent(&v2(PROXY, 0x00, b"")), Absence::Unspec);
    assert_eq!(absent(&v2(PROXY, 0x12, TCP4)), Absence::Udp);
    assert_eq!(absent(&v2(PROXY, 0x22, TCP6)), Absence::Udp);
    assert_eq!(absent(&v2(PROXY, 0x31, &[0; 216])), Absence::Unix);
    assert_eq!(absent(&v2(PROXY, 0x32, &[0; 216])), Absence::Unix);
    for family in 0..=u8::MAX {
        if !matches!(family, 0x00 | 0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32) {
            assert_eq!(
                refusal(&v2(PROXY, family, &[0; 216])),
                Refusal::V2Family { family }
            );
        }
    }
}

#[test]
fn rule_17_ipv4_mapped_means_the_ipv4_client() {
    let mut block = TCP6.to_vec();
    block[..16].copy_from_slice(b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01");
    assert_eq!(
        tcp(&v2(PROXY, 0x21, &block)),
        addresses(CLIENT, "[2001:db8::2]:443")
    );
}

#[test]
fn rule_18_the_length_covers_the_address_block() {
    for (family, needed) in [
        (0x11, 12),
        (0x12, 12),
        (0x21, 36),
        (0x22, 36),
        (0x31, 216),
        (0x32, 216),
    ] {
        let zeroes = vec![0; needed];
        assert_eq!(header(&v2(PROXY, family, &zeroes)).1, 16 + needed);
        for len in [0, 1, needed - 1] {
            let short = v2(PROXY, family, &zeroes[..len]);
            assert_eq!(refusal(&short), Refusal::V2AddressBlock { len, needed });
        }
        // What is beyond the block is TLVs, for every family.
        let longer = v2(PROXY, family, &[&zeroes[..], &tlv(0x05, b"id")].concat());
        assert_eq!(header(&longer).0.tlvs.unique_id(), Some(&b"id"[..]));
        let garbage = v2(PROXY, family, &[&zeroes[..], b"\x05"].concat());
        assert_eq!(refusal(&garbage), Refusal::TlvOverrun);
    }
}

#[test]
fn rule_19_the_cap() {
    let of_len = |len: usize| tcp4_with(&tlv(0xe0, &vec![0; len - 16 - 12 - 3]));
    for len in [536, 4096] {
        assert_eq!(header(&of_len(len)).1, len);
    }
    let refused = Refusal::V2TooLong {
        len: 4097,
        cap: 4096,
    };
    assert_eq!(refused_at(&of_len(4097)), (16, refused));
    // LOCAL skips what follows, but not without end.
    let local = v2_claiming(u16::MAX, LOCAL, 0, b"");
    assert_eq!(
        refused_at(&local),
        (
            16,
            Refusal::V2TooLong {
                len: 65551,
                cap: 4096
            }
        )
    );
}

#[test]
fn rule_19_the_cap_is_configurable_from_536_bytes_up() {
    for cap in [536, 1000, 65551] {
        let decoder = Decoder::new(Limits::v2_len(cap).unwrap());
        let bytes = tcp4_with(&tlv(0xe0, &vec![0; cap - 16 - 12 - 3]));
        assert!(
            matches!(decoder.decode(&bytes), Ok(Status::Complete { .. })),
            "{cap}"
        );
    }
    let smallest = Decoder::new(Limits::v2_len(536).unwrap());
    let refused = Refusal::V2TooLong { len: 537, cap: 536 };
    assert_eq!(
        smallest.decode(&v2_claiming(521, PROXY, 0x11, b"")),
        Err(refused)
    );
    for cap in [0, 535, 65552, usize::MAX] {
        let message = Limits::v2_len(cap).unwrap_err().to_string();
        assert!(
            message.contains(&cap.to_string()) && message.contains("536 to 65551"),
            "{message}"
        );
    }
}

#[test]
fn rule_20_unknown_and_empty_tlvs_are_passed_over() {
    let tlvs = [
        tlv(0x77, b"?"),
        tlv(0x02, b""),
        tlv(0x00, b""),
        tlv(0xff, b"!"),
    ]
    .concat();
    let (received, _) = header(&tcp4_with(&tlvs));
    let kinds: Vec<_> = received.tlvs.iter().map(|tlv| tlv.kind.0).collect();
    assert_eq!(kinds, [0x77, 0x02, 0x00, 0xff]);
    assert_eq!(received.tlvs.authority(), Some(&b""[..]));
    assert_eq!(received.tlvs.get(TlvType(0x77)), Some(&b"?"[..]));
}

#[test]
fn rule_20_overruns() {
    for tlvs in [
        &b"\x02"[..],
        b"\x02\x00",
        b"\x02\x00\x01",
        b"\x02\x00\x05shop",
        b"\x02\xff\xffshop",
        b"\x04\x00\x00\x04",
    ] {
        // Payload that would make up for what is missing does not.
        let stream = [&tcp4_with(tlvs)[..], &[b'x'; 70_000]].concat();
        assert_eq!(refusal(&stream), Refusal::TlvOverrun, "{tlvs:?}");
    }
}

#[test]
fn rule_21_checksums_that_haproxy_computed() {
    for (bytes, checksum) in [
        (
            &captured!("haproxy-v2-tcp4-crc32c-unique-id")[..],
            0xf24d_8b0d,
        ),
        (captured!("haproxy-v2-tcp6-crc32c"), 0x2fc7_0c62),
        (captured!("haproxy-v2-tcp4-ssl"), 0x0c30_cf97),
    ] {
        let (received, consumed) = header(bytes);
        assert_eq!(consumed, bytes.len());
        assert_eq!(received.tlvs.crc32c(), Some(checksum));
        // One bit anywhere is noticed, but for those that make the checksum another TLV.
        let checksum_at = bytes
            .windows(3)
            .position(|tlv| tlv == b"\x03\x00\x04")
            .unwrap();
        for at in (0..bytes.len()).filter(|&at| at != checksum_at) {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 0x40;
            let answer = Decoder::default().decode(&wrong);
            assert!(
                !matches!(answer, Ok(Status::Complete { .. })),
                "byte {at} of {wrong:?}"
            );
        }
    }
}

#[test]
fn rule_21_a_wrong_checksum_is_refused() {
    let bytes = tcp4_with(&tlv(0x03, b"\xde\xad\xbe\xef"));
    let mut zeroed = bytes.clone();
    zeroed[31..35].fill(0);
    let computed = crc32c::crc32c(&zeroed);
    assert_eq!(
        refusal(&bytes),
        Refusal::ChecksumMismatch {
            received: 0xdead_beef,
            computed
        }
    );

    let mut right = bytes;
    right[31..35].copy_from_slice(&computed.to_be_bytes());
    assert_eq!(tcp(&right), addresses(CLIENT, DESTINATION));
    // It is of the header alone: payload does not count.
    assert_eq!(header(&[&right[..], b"payload"].concat()).1, right.len());
}

#[test]
fn rule_21_the_checksum_is_four_bytes_and_there_once() {
    for len in [0, 3, 5] {
        let bytes = tcp4_with(&tlv(0x03, &vec![0; len]));
        assert_eq!(refusal(&bytes), Refusal::ChecksumLength { len });
    }
    let twice = [tlv(0x03, &[0; 4]), tlv(0x03, &[0; 4])].concat();
    assert_eq!(refusal(&tcp4_with(&twice)), Refusal::ChecksumRepeated);
}

#[test]
fn rule_21_holds_for_families_that_name_no_client() {
    let checksum = tlv(0x03, b"\xde\xad\xbe\xef");
    for (family, block_len) in [(0x00, 0), (0x12, 12), (0x31, 216)] {
        let bytes = v2(
            PROXY,
            family,
            &[&vec![0; block_len][..], &checksum].concat(),
        );
        let received = refusal(&bytes);
        assert!(
            matches!(received, Refusal::ChecksumMismatch { .. }),
            "{received}"
        );
    }
}

fn with_every_tlv() -> Header {
    let ssl = [
        &[0x07, 0, 0, 0, 0][..],
        &tlv(0x21, b"TLSv1.3"),
        &tlv(0x22, b"client.example.com"),
        &tlv(0x23, b"TLS_AES_256_GCM_SHA384"),
    ]
    .concat();
    let tlvs = [
        tlv(0x01, b"h2"),
        tlv(0x02, b"shop.example.com"),
        tlv(0x04, b"\0\0\0"),
        tlv(0x05, b"\0binary\0"),
        tlv(0x20, &ssl),
        tlv(0x30, b"blue"),
        tlv(0xea, b"\x01vpce-08d2bf15fac5001c9"),
        tlv(0xee, b"\x01\x39\x05\0\0"),
        tlv(0xe0, b"\0\0\0\0\x07\x5b\xcd\x15"),
    ];
    header(&tcp4_with(&tlvs.concat())).0
}

#[test]
fn rule_22_tlvs_are_parsed() {
    let received = with_every_tlv();
    let tlvs = &received.tlvs;
    assert_eq!(tlvs.alpn(), Some(&b"h2"[..]));
    assert_eq!(tlvs.authority(), Some(&b"shop.example.com"[..]));
    assert_eq!(tlvs.unique_id(), Some(&b"\0binary\0"[..]));
    assert_eq!(tlvs.netns(), Some(&b"blue"[..]));
    assert_eq!(tlvs.crc32c(), None);
    let ssl = tlvs.ssl().unwrap();
    assert!(ssl.client_ssl() && ssl.client_cert_conn() && ssl.client_cert_sess());
    assert_eq!(ssl.verify(), 0);
    assert_eq!(ssl.version(), Some("TLSv1.3"));
    assert_eq!(ssl.cn(), Some("client.example.com"));
    assert_eq!(ssl.cipher(), Some("TLS_AES_256_GCM_SHA384"));
    let custom: Vec<_> = tlvs.custom().map(|tlv| tlv.kind.0).collect();
    assert_eq!(custom, [0xea, 0xee, 0xe0]);
    assert_eq!(
        tlvs.get(TlvType(0xea)),
        Some(&b"\x01vpce-08d2bf15fac5001c9"[..])
    );
}

#[test]
fn rule_22_what_haproxy_says_of_tls() {
    let (received, _) = header(captured!("haproxy-v2-tcp4-ssl"));
    assert_eq!(received.tlvs.alpn(), Some(&b"h2"[..]));
    assert_eq!(received.tlvs.authority(), Some(&b"shop.example.com"[..]));
    let ssl = received.tlvs.ssl().unwrap();
    assert!(ssl.client_ssl() && !ssl.client_cert_conn());
    assert_eq!(ssl.version(), Some("TLSv1.3"));
    assert_eq!(ssl.key_alg(), Some("RSA2048"));
    assert_eq!(ssl.sig_alg(), Some("RSA-SHA256"));
}

#[test]
fn rule_22_values_are_binary() {
    for value in [&b"a\0b"[..], b"\0", b"\xff\xfe", b"\xc3\x28", b"\r\n"] {
        for kind in [0x01, 0x02, 0x05, 0x30, 0xe0, 0x77] {
            let (received, _) = header(&tcp4_with(&tlv(kind, value)));
            assert_eq!(received.tlvs.get(TlvType(kind)), Some(value), "{kind:#04x}");
        }
    }
}

#[test]
fn rule_22_unique_id_has_at_most_128_bytes() {
    let (longest, _) = header(&tcp4_with(&tlv(0x05, &[b'i'; 128])));
    assert_eq!(longest.tlvs.unique_id(), Some(&[b'i'; 128][..]));
    let longer = tcp4_with(&tlv(0x05, &[b'i'; 129]));
    assert_eq!(refusal(&longer), Refusal::UniqueIdTooLong { len: 129 });
}

#[test]
fn rule_22_malformed_tls_information_is_refused() {
    for value in [
        &b""[..],
        b"\x01",
        b"\x01\0\0\0",
        b"\x01\0\0\0\0\x21",
        b"\x01\0\0\0\0\x21\0\x08TLSv1.3",
        b"\x01\0\0\0\0\x21\0\x07TLSv1.3\x22",
    ] {
        let bytes = tcp4_with(&[tlv(0x20, value), tlv(0x04, &[0; 20])].concat());
        assert_eq!(refusal(&bytes), Refusal::SslMalformed, "{value:?}");
    }
    header(&tcp4_with(&tlv(0x20, b"\0\0\0\0\x01")));
}
