//! What the programs leave alone, and what they cannot forward.

use anyhow::{Result, ensure};
use etherparse::IpNumber;
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use proxy_common::flow::{SEEN_SWITCH, Tuple};
use proxy_common::packet::{ACK, SYN};
use proxy_user::bpf::dry_run::Verdict;

use super::for_each_family;
use super::frame::{self, ETHERNET, Header};
use super::spliced::{ACKED_UP, FLOW, START_UP, Spliced};

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "leaves_other_flows", other_tuples);
    for_each_family(suite, "leaves_later_fragments", fragments);
    for_each_family(suite, "leaves_other_protocols", protocols);
    for_each_family(suite, "waits_for_the_switch", before_the_switch);
    for_each_family(suite, "drops_half_a_header", half_a_header);
}

fn segment() -> Header {
    Header::new(ACK, START_UP, ACKED_UP, 4096)
}

/// One that differs in any part, the way back among them.
fn other_tuples(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let (up, down) = (flow.up, flow.down);
    for other in [
        up.reversed(),
        down.reversed(),
        Tuple { src: up.dst, ..up },
        Tuple { dst: up.src, ..up },
        Tuple {
            src_port: up.src_port ^ 1,
            ..up
        },
        Tuple {
            dst_port: up.dst_port ^ 0x100,
            ..up
        },
    ] {
        flow.passes(&frame::tcp(&other, &segment(), b"not ours")?)?;
        flow.passes(&frame::tcp(&other, &Header::new(SYN, 1, 0, 64240), b"")?)?;
    }
    ensure!(flow.entry(&up)?.packets == 0 && flow.entry(&down)?.packets == 0);
    Ok(())
}

/// Only the first has ports; what stands there in others is payload, even if it looks like them.
fn fragments(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let whole = segment().bytes(&flow.up, b"looks like a segment")?;
    let mut frame = match family {
        Family::V4 => frame::ethernet(&flow.up, IpNumber::TCP, &whole)?,
        Family::V6 => {
            // RFC 8200, 4.5: next header, reserved, offset 1480 and "more", identification.
            let header = [
                6,
                0,
                1480u16.to_be_bytes()[0],
                1480u16.to_be_bytes()[1] | 1,
                0,
                0,
                0,
                7,
            ];
            let fragment = [&header[..], &whole].concat();
            frame::ethernet(&flow.up, IpNumber::IPV6_FRAGMENTATION_HEADER, &fragment)?
        }
    };
    if family == Family::V4 {
        // RFC 791: an offset of 185 times 8 bytes.
        frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&185u16.to_be_bytes());
    }
    flow.passes(&frame)?;
    ensure!(flow.entry(&flow.up)?.packets == 0);
    Ok(())
}

/// UDP of the same ports; ARP; and a frame that ends in its IP header.
fn protocols(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let whole = segment().bytes(&flow.up, b"looks like a segment")?;
    flow.passes(&frame::ethernet(&flow.up, IpNumber::UDP, &whole)?)?;
    let tcp = frame::tcp(&flow.up, &segment(), b"")?;
    let mut arp = tcp.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    flow.passes(&arp)?;
    // The kernel takes none that is shorter than an IP header.
    let headers = match family {
        Family::V4 => ETHERNET + 20,
        Family::V6 => ETHERNET + 40,
    };
    for len in [headers, headers + 3, headers + 13] {
        flow.passes(&tcp[..len])?;
    }
    ensure!(flow.entry(&flow.up)?.packets == 0);
    Ok(())
}

/// An entry that is not in force is none.
fn before_the_switch(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    flow.table
        .update(FLOW, &flow.up, |entry| entry.seen &= !SEEN_SWITCH);
    flow.passes(&frame::tcp(&flow.up, &segment(), b"for the socket")?)?;
    ensure!(flow.entry(&flow.up)?.packets == 0);
    Ok(())
}

/// A header that says it is longer than the packet: nothing of it is forwarded, or noted.
fn half_a_header(family: Family) -> Result<()> {
    let mut flow = Spliced::new(family)?;
    let header = segment().with_options(&[1; 40]);
    let frame = frame::tcp(&flow.up, &header, b"")?;
    for missing in [1, 4, 40] {
        let (verdict, _) = flow.arrive(&frame[..frame.len() - missing])?;
        ensure!(verdict == Verdict::Drop, "{missing}: {verdict:?}");
    }
    ensure!(flow.entry(&flow.up)?.packets == 0 && flow.events()? == 0);
    flow.is_translated(&header, b"")
}
