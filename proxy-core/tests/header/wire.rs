//! Headers made by hand, and what the decoder says of them.

use std::net::SocketAddr;

use proxy_core::address::{Client, Destination};
use proxy_core::header::{Absence, Addresses, Decoder, Endpoints, Header, Refusal, Status};

pub(crate) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The command PROXY, with the version.
pub(crate) const PROXY: u8 = 0x21;
/// The command LOCAL, with the version.
pub(crate) const LOCAL: u8 = 0x20;

pub(crate) const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";

/// What [`V1`] and [`TCP4`] say.
pub(crate) const CLIENT: &str = "192.0.2.1:56324";
pub(crate) const DESTINATION: &str = "198.51.100.1:443";

/// The address block of `CLIENT` and `DESTINATION`.
pub(crate) const TCP4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

/// `[2001:db8::1]:56324` to `[2001:db8::2]:443`.
pub(crate) const TCP6: &[u8] = &[
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, //
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, //
    0xdc, 0x04, 0x01, 0xbb,
];

/// A version 2 header that claims the length it has.
pub(crate) fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    v2_claiming(rest.len().try_into().unwrap(), command, family, rest)
}

/// A version 2 header that claims another length than it may have.
pub(crate) fn v2_claiming(len: u16, command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &len.to_be_bytes(), rest].concat()
}

/// A TCP4 header with these bytes where TLVs belong.
pub(crate) fn tcp4_with(tlvs: &[u8]) -> Vec<u8> {
    v2(PROXY, 0x11, &[TCP4, tlvs].concat())
}

pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &len[..], value].concat()
}

pub(crate) fn addresses(client: &str, destination: &str) -> Addresses {
    Addresses {
        client: Client::new(socket_addr(client)),
        destination: Destination::new(socket_addr(destination)),
    }
}

fn socket_addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The header that `bytes` begin with, and its length.
#[track_caller]
pub(crate) fn header(bytes: &[u8]) -> (Header, usize) {
    match Decoder::default().decode(bytes) {
        Ok(Status::Complete { header, consumed }) => (header, consumed),
        other => panic!("{} is {other:?}", bytes.escape_ascii()),
    }
}

/// The addresses of a header that is all of `bytes`.
#[track_caller]
pub(crate) fn tcp(bytes: &[u8]) -> Addresses {
    let (header, consumed) = header(bytes);
    assert_eq!(consumed, bytes.len());
    match header.endpoints {
        Endpoints::Tcp(addresses) => addresses,
        Endpoints::Absent(absence) => panic!("{} is {absence:?}", bytes.escape_ascii()),
    }
}

/// Why a header that is all of `bytes` names no TCP client.
#[track_caller]
pub(crate) fn absent(bytes: &[u8]) -> Absence {
    let (header, consumed) = header(bytes);
    assert_eq!(consumed, bytes.len());
    match header.endpoints {
        Endpoints::Absent(absence) => absence,
        Endpoints::Tcp(addresses) => panic!("{} is {addresses:?}", bytes.escape_ascii()),
    }
}

/// Why `bytes` are refused.
#[track_caller]
pub(crate) fn refusal(bytes: &[u8]) -> Refusal {
    match Decoder::default().decode(bytes) {
        Err(refusal) => refusal,
        Ok(status) => panic!("{} is {status:?}", bytes.escape_ascii()),
    }
}

/// Why `bytes` are refused when they come one at a time, and after how many of them.
#[track_caller]
pub(crate) fn refused_at(bytes: &[u8]) -> (usize, Refusal) {
    let decoder = Decoder::default();
    (0..=bytes.len())
        .find_map(|len| {
            decoder
                .decode(&bytes[..len])
                .err()
                .map(|refusal| (len, refusal))
        })
        .unwrap_or_else(|| panic!("{} is not refused", bytes.escape_ascii()))
}
