//! Rules 1 to 7: what holds for both versions.

use proxy_core::header::{Decoder, Refusal, Status};

use super::wire::{
    CLIENT, DESTINATION, LOCAL, PROXY, SIGNATURE, TCP4, TCP6, V1, addresses, header, refused_at,
    tcp4_with, tlv, v2, v2_claiming,
};

/// One legal header of each kind.
fn headers() -> Vec<Vec<u8>> {
    vec![
        V1.to_vec(),
        b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.1 0 65535\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN what \0 ever\r\n".to_vec(),
        v2(PROXY, 0x11, TCP4),
        v2(PROXY, 0x21, TCP6),
        v2(LOCAL, 0x00, b""),
        tcp4_with(&tlv(0x02, &[b'a'; 4096 - 16 - 12 - 3])),
    ]
}

#[test]
fn rule_01_nothing_is_complete_before_its_last_byte() {
    for bytes in headers() {
        for len in 0..bytes.len() {
            match Decoder::default().decode(&bytes[..len]) {
                Ok(Status::Incomplete { need }) => {
                    assert!(
                        len < need && need <= bytes.len(),
                        "{need} needed after {len}"
                    );
                }
                other => panic!("{} is {other:?}", bytes[..len].escape_ascii()),
            }
        }
        assert_eq!(header(&bytes).1, bytes.len());
    }
}

#[test]
fn rule_04_segments_of_every_size() {
    for bytes in headers() {
        let at_once = header(&bytes);
        for size in [1, 2, 3, 7, 16, 100, 536, 1460, 4096] {
            let mut received = Vec::new();
            for segment in bytes.chunks(size) {
                received.extend_from_slice(segment);
                if let Status::Complete { header, consumed } =
                    Decoder::default().decode(&received).unwrap()
                {
                    assert_eq!((header, consumed), at_once, "segments of {size}");
                    assert_eq!(received.len(), bytes.len());
                }
            }
        }
    }
}

#[test]
fn rule_04_reading_what_is_needed_reads_no_payload() {
    for bytes in headers() {
        let stream = [&bytes[..], b"payload"].concat();
        let (mut read, mut rounds) = (0, 0);
        while let Status::Incomplete { need } = Decoder::default().decode(&stream[..read]).unwrap()
        {
            read = need;
            rounds += 1;
        }
        assert_eq!(read, bytes.len());
        assert!(rounds <= 107, "{rounds} reads");
    }
}

#[test]
fn rule_05_payload_in_the_same_segment() {
    for bytes in headers() {
        let alone = header(&bytes);
        for payload in [
            &b"\n"[..],
            b"\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0\0\0",
            &[0xff; 9000],
        ] {
            let segment = [&bytes[..], payload].concat();
            let with_payload = header(&segment);
            assert_eq!(with_payload, alone);
            assert_eq!(&segment[with_payload.1..], payload);
        }
    }
}

#[test]
fn rule_06_refused_at_the_byte_that_proves_it() {
    use Refusal::{
        NotProxyProtocol, V1Address, V1Fields, V1LineEnding, V1Port, V1Protocol, V1TooLong,
    };
    let endless = [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat();
    let table: &[(&[u8], &[u8], Refusal)] = &[
        // What is sent, how much of it is enough, and why.
        (b"GET / HTTP/1.1\r\n", b"G", NotProxyProtocol),
        (b"POST / HTTP/1.1\r\n", b"PO", NotProxyProtocol),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PRI",
            NotProxyProtocol,
        ),
        (b"\x16\x03\x01\x02\x00\x01", b"\x16", NotProxyProtocol),
        (
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            b"\r\n\r\nG",
            NotProxyProtocol,
        ),
        (b"proxy TCP4 ", b"p", NotProxyProtocol),
        (b"PROXYxTCP4 ", b"PROXYx", NotProxyProtocol),
        (b"PROXY UDP4 ", b"PROXY UD", V1Protocol),
        (b"PROXY TCP5 ", b"PROXY TCP5", V1Protocol),
        (b"PROXY  TCP4 ", b"PROXY  ", V1Fields),
        (b"PROXY TCP4 256.0.0.1 ", b"PROXY TCP4 256", V1Address),
        (b"PROXY TCP4 01.2.3.4 ", b"PROXY TCP4 01", V1Address),
        (b"PROXY TCP4 1.2.3.4.5 ", b"PROXY TCP4 1.2.3.4.", V1Address),
        (b"PROXY TCP4 1.2.3 ", b"PROXY TCP4 1.2.3 ", V1Address),
        (b"PROXY TCP4 ::1 ", b"PROXY TCP4 :", V1Address),
        (b"PROXY TCP6 192.0.2.1 ", b"PROXY TCP6 192.", V1Address),
        (b"PROXY TCP6 12345::1 ", b"PROXY TCP6 12345", V1Address),
        (b"PROXY TCP6 1::2::3 ", b"PROXY TCP6 1::2::", V1Address),
        (
            b"PROXY TCP6 fe80::1%eth0 ",
            b"PROXY TCP6 fe80::1%",
            V1Address,
        ),
        (
            b"PROXY TCP6 1:2:3:4:5:6:7:8:9 ",
            b"PROXY TCP6 1:2:3:4:5:6:7:8:",
            V1Address,
        ),
        (
            b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 ",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 65536",
            V1Port,
        ),
        (
            b"PROXY TCP4 1.2.3.4 5.6.7.8 00080 ",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 00",
            V1Port,
        ),
        (
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +80 ",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +",
            V1Port,
        ),
        (
            b"PROXY TCP4 1.2.3.4 5\n",
            b"PROXY TCP4 1.2.3.4 5\n",
            V1LineEnding,
        ),
        (b"PROXY TCP4\r\n", b"PROXY TCP4\r", V1Fields),
        (&endless, &endless[..106], V1TooLong),
        (
            &v2(0x11, 0x11, TCP4),
            &v2(0x11, 0, &[])[..13],
            Refusal::V2Version { version: 1 },
        ),
        (
            &v2(0x2f, 0x11, TCP4),
            &v2(0x2f, 0, &[])[..13],
            Refusal::V2Command { command: 15 },
        ),
        (
            &v2(PROXY, 0x41, TCP4),
            &v2(PROXY, 0x41, &[])[..14],
            Refusal::V2Family { family: 0x41 },
        ),
        (
            &v2_claiming(11, PROXY, 0x11, TCP4),
            &v2_claiming(11, PROXY, 0x11, &[]),
            Refusal::V2AddressBlock {
                len: 11,
                needed: 12,
            },
        ),
    ];
    for &(sent, enough, why) in table {
        assert!(sent.starts_with(enough));
        assert_eq!(
            refused_at(sent),
            (enough.len(), why),
            "{}",
            sent.escape_ascii()
        );
    }
}

#[test]
fn rule_06_each_byte_of_the_signature_counts() {
    for at in 0..SIGNATURE.len() {
        let mut bytes = v2(PROXY, 0x11, TCP4);
        bytes[at] ^= 0x80;
        assert_eq!(refused_at(&bytes), (at + 1, Refusal::NotProxyProtocol));
    }
}

#[test]
fn rule_07_a_second_header_is_payload() {
    let second = v2(PROXY, 0x21, TCP6);
    for first in headers() {
        let stream = [&first[..], &second].concat();
        assert_eq!(header(&stream), header(&first));
    }
    let other_v1 = b"PROXY TCP4 203.0.113.7 203.0.113.8 1 2\r\n";
    let (first, _) = header(&[V1, other_v1].concat());
    assert_eq!(first.client(), Some(addresses(CLIENT, DESTINATION).client));
}

#[test]
fn labels_are_distinct_and_kebab_case() {
    let refusals = [
        Refusal::NotProxyProtocol,
        Refusal::V1TooLong,
        Refusal::V1LineEnding,
        Refusal::V1Protocol,
        Refusal::V1Fields,
        Refusal::V1Address,
        Refusal::V1Port,
        Refusal::V2Version { version: 0 },
        Refusal::V2Command { command: 0 },
        Refusal::V2Family { family: 0 },
        Refusal::V2AddressBlock { len: 0, needed: 0 },
        Refusal::V2TooLong { len: 0, cap: 0 },
        Refusal::V2Unreadable,
        Refusal::TlvOverrun,
        Refusal::SslMalformed,
        Refusal::ChecksumLength { len: 0 },
        Refusal::ChecksumMismatch {
            received: 0,
            computed: 0,
        },
        Refusal::ChecksumRepeated,
        Refusal::UniqueIdTooLong { len: 0 },
    ];
    let mut labels: Vec<_> = refusals.iter().map(Refusal::label).collect();
    for label in &labels {
        let kebab = label
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        assert!(kebab, "{label}");
    }
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), refusals.len());
}
