//! Rules 9 to 14: the line of text.

use proxy_core::header::{Absence, Refusal, Version};

use super::wire::{CLIENT, DESTINATION, V1, absent, addresses, header, refusal, refused_at, tcp};

/// A line with these fields after `PROXY`, and its CRLF.
fn line(fields: &str) -> Vec<u8> {
    format!("PROXY {fields}\r\n").into_bytes()
}

#[test]
fn the_example_of_the_specification() {
    let (received, _) = header(V1);
    assert_eq!(received.version, Version::V1);
    assert!(received.tlvs.is_empty());
    assert_eq!(tcp(V1), addresses(CLIENT, DESTINATION));
}

#[test]
fn rule_09_107_bytes_and_not_one_more() {
    let unknown = |len: usize| line(&format!("{:x<1$}", "UNKNOWN ", len - "PROXY \r\n".len()));
    assert_eq!(unknown(107).len(), 107);
    assert_eq!(absent(&unknown(107)), Absence::Unknown);
    assert_eq!(refusal(&unknown(108)), Refusal::V1TooLong);

    // The longest line that the specification counts with fits.
    let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let longest = line(&format!("TCP6 {address} {address} 65535 65535"));
    assert_eq!(longest.len(), 104);
    tcp(&longest);

    // Legal addresses in a spelling that is longer than any the specification counts with.
    let spelled_out = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255";
    let too_long = line(&format!("TCP6 {spelled_out} {spelled_out} 65535 65535"));
    assert_eq!(refused_at(&too_long), (106, Refusal::V1TooLong));
}

#[test]
fn rule_09_the_end_counts_within_107_bytes() {
    // After 106 bytes without a CR, the line cannot end in time; with one, it still can.
    let open = [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat();
    assert_eq!(refused_at(&open), (106, Refusal::V1TooLong));
    let mut ending = open[..105].to_vec();
    ending.extend_from_slice(b"\r!");
    assert_eq!(refused_at(&ending), (107, Refusal::V1LineEnding));
}

#[test]
fn rule_10_crlf_only() {
    for (bytes, at) in [
        (&b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n"[..], 44),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\rX", 45),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\r\n", 45),
        (b"PROXY UNKNOWN\n", 14),
        (b"PROXY UNKNOWN\rX", 15),
        (b"PROXY UNKNOWN what\never\r\n", 19),
        (b"PROXY UNKNOWN what\rever\r\n", 20),
        (b"PROXY \n", 7),
        (b"PROXY TCP4\n", 11),
    ] {
        assert_eq!(
            refused_at(bytes),
            (at, Refusal::V1LineEnding),
            "{}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn rule_11_one_space_between_five_fields() {
    for (fields, why) in [
        ("TCP4  192.0.2.1 198.51.100.1 1 2", Refusal::V1Fields),
        ("TCP4 192.0.2.1  198.51.100.1 1 2", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1  1 2", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1 1  2", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1 1 2 ", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1 1 2 3", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1 1", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1 1 ", Refusal::V1Fields),
        ("TCP4 192.0.2.1 198.51.100.1", Refusal::V1Fields),
        ("TCP4 ", Refusal::V1Fields),
        ("TCP4", Refusal::V1Fields),
        ("", Refusal::V1Fields),
        (" TCP4 192.0.2.1 198.51.100.1 1 2", Refusal::V1Fields),
        ("TCP4\t192.0.2.1 198.51.100.1 1 2", Refusal::V1Protocol),
        ("tcp4 192.0.2.1 198.51.100.1 1 2", Refusal::V1Protocol),
        ("Tcp4 192.0.2.1 198.51.100.1 1 2", Refusal::V1Protocol),
        ("TCP 192.0.2.1 198.51.100.1 1 2", Refusal::V1Protocol),
        ("TCP44 192.0.2.1 198.51.100.1 1 2", Refusal::V1Protocol),
        ("UDP4 192.0.2.1 198.51.100.1 1 2", Refusal::V1Protocol),
        ("unknown", Refusal::V1Protocol),
        ("UNKNOWNFOO", Refusal::V1Protocol),
    ] {
        assert_eq!(refusal(&line(fields)), why, "{fields:?}");
    }
}

#[test]
fn rule_12_addresses_are_four_plain_decimal_octets() {
    for address in [
        "192.0.2",
        "192.0.2.1.1",
        "192.0.2.256",
        "192.0.2.01",
        "00.0.0.0",
        "0x7f.0.0.1",
        "192.0.2.",
        ".0.2.1",
        "192..2.1",
        "3221225985",
        "192.0.2.1:80",
        "192.0.2.-1",
        "192.0.2.+1",
        "localhost",
        "192.0.2.1/32",
        "١٩٢.0.2.1",
    ] {
        let source = line(&format!("TCP4 {address} 198.51.100.1 1 2"));
        let destination = line(&format!("TCP4 198.51.100.1 {address} 1 2"));
        assert_eq!(refusal(&source), Refusal::V1Address, "{address}");
        assert_eq!(refusal(&destination), Refusal::V1Address, "{address}");
    }
    let extremes = tcp(&line("TCP4 0.0.0.0 255.255.255.255 1 2"));
    assert_eq!(extremes, addresses("0.0.0.0:1", "255.255.255.255:2"));
}

#[test]
fn rule_12_ports_are_plain_decimal_numbers() {
    for port in [
        "00080", "00", "+80", "-1", "65536", "99999", "100000", "0x50", "8o", "80.", "８０",
    ] {
        let source = line(&format!("TCP4 192.0.2.1 198.51.100.1 {port} 2"));
        let destination = line(&format!("TCP4 192.0.2.1 198.51.100.1 1 {port}"));
        assert_eq!(refusal(&source), Refusal::V1Port, "{port}");
        assert_eq!(refusal(&destination), Refusal::V1Port, "{port}");
    }
    let extremes = tcp(&line("TCP4 192.0.2.1 198.51.100.1 0 65535"));
    assert_eq!(extremes, addresses("192.0.2.1:0", "198.51.100.1:65535"));
}

#[test]
fn rule_13_addresses_match_the_family() {
    for fields in [
        "TCP6 192.0.2.1 198.51.100.1 1 2",
        "TCP6 192.0.2.1 2001:db8::2 1 2",
        "TCP6 2001:db8::1 198.51.100.1 1 2",
        "TCP4 2001:db8::1 2001:db8::2 1 2",
        "TCP4 192.0.2.1 2001:db8::2 1 2",
        "TCP4 ::ffff:192.0.2.1 ::ffff:198.51.100.1 1 2",
    ] {
        assert_eq!(refusal(&line(fields)), Refusal::V1Address, "{fields}");
    }
}

#[test]
fn rule_13_ipv6_in_any_legal_spelling() {
    for spelling in [
        "2001:db8::1",
        "2001:DB8::1",
        "2001:0db8:0000:0000:0000:0000:0000:0001",
        "2001:db8:0:0:0:0:0:1",
        "2001:db8::0:0:1",
        "2001:db8::0.0.0.1",
    ] {
        let received = tcp(&line(&format!("TCP6 {spelling} 2001:db8::2 56324 443")));
        assert_eq!(
            received,
            addresses("[2001:db8::1]:56324", "[2001:db8::2]:443"),
            "{spelling}"
        );
    }
    for not_an_address in [
        "1:2:3:4:5:6:7",
        ":1::2",
        "1:::2",
        "::12345",
        "::g",
        "[::1]",
        "::1%lo",
    ] {
        let bytes = line(&format!("TCP6 {not_an_address} ::2 1 2"));
        assert_eq!(refusal(&bytes), Refusal::V1Address, "{not_an_address}");
    }
}

#[test]
fn rule_13_ipv4_mapped_means_the_ipv4_client() {
    for mapped in [
        "::ffff:192.0.2.1",
        "::ffff:c000:201",
        "0:0:0:0:0:FFFF:192.0.2.1",
    ] {
        let received = tcp(&line(&format!(
            "TCP6 {mapped} ::ffff:198.51.100.1 56324 443"
        )));
        assert_eq!(received, addresses(CLIENT, DESTINATION), "{mapped}");
    }
    let mixed = tcp(&line("TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443"));
    assert_eq!(mixed, addresses(CLIENT, "[2001:db8::2]:443"));
}

#[test]
fn rule_14_unknown_ignores_the_rest_of_the_line() {
    for rest in [
        "",
        " ",
        "  ",
        " TCP4 192.0.2.1 198.51.100.1 1 2",
        " \0\u{ff}\t",
        " ffff:f...f",
    ] {
        assert_eq!(
            absent(&line(&format!("UNKNOWN{rest}"))),
            Absence::Unknown,
            "{rest:?}"
        );
    }
    let (received, _) = header(b"PROXY UNKNOWN 192.0.2.1 198.51.100.1 1 2\r\n");
    assert_eq!(received.client(), None);
}
