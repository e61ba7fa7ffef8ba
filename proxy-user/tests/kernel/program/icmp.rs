//! ICMP errors about a segment that was forwarded: they go to whoever sent it, as if they were about
//! what it was then.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use etherparse::IpNumber;
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use proxy_common::flow::Tuple;
use proxy_common::packet::ACK;

use super::for_each_family;
use super::frame::{self, ETHERNET, Header};
use super::spliced::{ACKED_DOWN, ACKED_UP, START_DOWN, START_UP, Spliced, UP};

/// What the router's link takes.
const MTU: u16 = 1400;
/// What it forwards too large, beside the header.
const PAYLOAD: [u8; 1440] = [0x5a; 1440];

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "translates_icmp_errors_upstream", upstream);
    for_each_family(suite, "translates_icmp_errors_downstream", downstream);
    for_each_family(suite, "leaves_other_icmp", other);
}

/// A router before the backend does not pass on what the client has sent.
fn upstream(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let sent = Header::new(ACK, START_UP, ACKED_UP, 4096);
    check(
        &flow,
        family,
        flow.up,
        flow.down.reversed(),
        sent.translated(&UP),
        START_UP,
    )
}

/// One before the client, what the backend has sent.
fn downstream(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let received = Header::new(ACK, START_DOWN.wrapping_sub(UP.ack), ACKED_DOWN, 4096);
    check(
        &flow,
        family,
        flow.down,
        flow.up.reversed(),
        received,
        START_DOWN,
    )
}

/// An error about what was `sent`, became `received` with the header `header`, and began with number
/// `sequence` when it was sent. Routers quote 8 bytes of the segment (RFC 792), or more (RFC 1812, 4.3.2.3).
fn check(
    flow: &Spliced,
    family: Family,
    sent: Tuple,
    received: Tuple,
    header: Header,
    sequence: u32,
) -> Result<()> {
    let segment = header.bytes(&received, &PAYLOAD)?;
    let mut original = segment.clone();
    original[0..2].copy_from_slice(&sent.src_port.to_be_bytes());
    original[2..4].copy_from_slice(&sent.dst_port.to_be_bytes());
    original[4..8].copy_from_slice(&sequence.to_be_bytes());
    for quoted in [8, segment.len()] {
        let quote = |tuple: &Tuple, bytes: &[u8]| -> Result<Vec<u8>> {
            let mut quote = frame::ip(tuple, IpNumber::TCP, segment.len() + PAYLOAD.len())?;
            quote.extend(&bytes[..quoted]);
            Ok(quote)
        };
        let error = |to: &Tuple, quote: &[u8]| frame::too_big(&router_to(family, to)?, MTU, quote);
        let before = error(&received, &quote(&received, &segment)?)?;
        let expected = error(&sent, &quote(&sent, &original)?)?;
        flow.leaves_as(&before, &expected)?;
    }
    // It is none of the flow's packets.
    for tuple in [flow.up, flow.down] {
        ensure!(flow.entry(&tuple)?.packets == 0);
    }
    Ok(())
}

/// Errors about other packets, about such as this flow's but sent by whom it was not, and about other
/// protocols; and what is no error.
fn other(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let header = Header::new(ACK, START_UP, ACKED_UP, 4096);
    let received = flow.down.reversed();
    let from_router = router_to(family, &received)?;
    let other = Tuple {
        src_port: 1,
        ..received
    };
    for inner in [other, received.reversed(), flow.up] {
        let mut quote = frame::ip(&inner, IpNumber::TCP, 20)?;
        quote.extend(header.bytes(&inner, b"")?);
        flow.passes(&frame::too_big(&from_router, MTU, &quote)?)?;
    }
    let segment = header.bytes(&received, b"")?;
    let datagram = [frame::ip(&received, IpNumber::UDP, 20)?, segment.clone()].concat();
    flow.passes(&frame::too_big(&from_router, MTU, &datagram)?)?;

    let quote = [frame::ip(&received, IpNumber::TCP, 20)?, segment].concat();
    let mut echo = frame::too_big(&from_router, MTU, &quote)?;
    let (kind, headers) = match family {
        Family::V4 => (8, ETHERNET + 20),
        Family::V6 => (128, ETHERNET + 40),
    };
    *echo.get_mut(headers).context("a type")? = kind;
    flow.passes(&echo)
}

/// From a router on the way, to whoever sent packets of `tuple`.
fn router_to(family: Family, tuple: &Tuple) -> Result<Tuple> {
    let router: SocketAddr = match family {
        Family::V4 => "198.18.7.7:0",
        Family::V6 => "[2001:2:0:7::7]:0",
    }
    .parse()?;
    Ok(Tuple::new(router, tuple.source()))
}
