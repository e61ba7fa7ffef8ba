//! How a flow ends: what is noted, what userspace is told, and what happens to whatever comes later.

use anyhow::{Result, ensure};
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use proxy_common::flow::{SEEN_ENDED, SEEN_FIN, SEEN_RST, SEEN_SWITCH};
use proxy_common::packet::{ACK, FIN, RST, SYN};
use proxy_user::bpf::dry_run::Verdict;

use super::for_each_family;
use super::frame::{self, Header};
use super::spliced::{ACKED_DOWN, ACKED_UP, DOWN, START_DOWN, START_UP, Spliced};

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "notes_each_end_once", noted_once);
    for_each_family(suite, "counts_each_byte_once", bytes);
    for_each_family(suite, "counts_no_padding", padding);
    for_each_family(suite, "drops_what_is_ended", ended);
    for_each_family(suite, "leaves_a_new_connection", new_connection);
    for_each_family(suite, "keeps_a_live_one", stray_syn);
}

fn noted_once(family: Family) -> Result<()> {
    let mut flow = Spliced::new(family)?;
    let (up, down) = (flow.up, flow.down);
    let segment = |flags| Header::new(flags, START_UP, ACKED_UP, 4096);
    flow.is_translated(&segment(ACK), b"data")?;
    ensure!(flow.events()? == 0 && flow.entry(&up)?.seen == SEEN_SWITCH);
    for (flags, seen, events) in [
        (ACK | FIN, SEEN_FIN, 1),
        (ACK | FIN, SEEN_FIN, 0),
        (ACK, SEEN_FIN, 0),
        (RST, SEEN_FIN | SEEN_RST, 1),
        (RST | ACK, SEEN_FIN | SEEN_RST, 0),
    ] {
        flow.is_translated(&segment(flags), b"")?;
        let entry = flow.entry(&up)?;
        ensure!(entry.seen == SEEN_SWITCH | seen, "{flags:#x}: {entry:?}");
        let told = flow.events()?;
        ensure!(told == events, "{flags:#x}: {told} events");
    }
    // Each side has an end of its own.
    let fin = Header::new(ACK | FIN, START_DOWN, ACKED_DOWN, 512);
    flow.becomes(&down, &fin, b"bye", &fin.translated(&DOWN))?;
    ensure!(flow.entry(&down)?.seen == SEEN_SWITCH | SEEN_FIN && flow.events()? == 1);
    ensure!(flow.entry(&down)?.bytes == 3);
    Ok(())
}

/// Sent again, overlapping, past a loss, after a FIN that was lost: the stream is as long as it is.
fn bytes(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let payload = [0xaa; 300];
    for (offset, len, flags, bytes) in [
        (0, 100, ACK, 100),
        (0, 100, ACK, 100),
        (50, 100, ACK, 150),
        (0, 20, ACK, 150),
        // 50 bytes have been lost before they came here.
        (200, 56, ACK, 256),
        (150, 50, ACK, 256),
        // Here the numbers wrap.
        (256, 44, ACK, 300),
        // The FIN had the number 300, and never came; its sender's acknowledgements are one further.
        (301, 0, ACK, 300),
        (300, 0, ACK | FIN, 300),
        (301, 0, ACK, 300),
        // What a RST carries (RFC 9293, 3.5.3: a reason, perhaps) is not of the stream.
        (301, 10, RST, 300),
    ] {
        let header = Header::new(flags, START_UP.wrapping_add(offset), ACKED_UP, 4096);
        flow.is_translated(&header, &payload[..len])?;
        let entry = flow.entry(&flow.up)?;
        ensure!(entry.bytes == bytes, "{offset} + {len}: {entry:?}");
        let next = START_UP.wrapping_add(u32::try_from(bytes)?);
        ensure!(entry.next_seq == next, "{offset} + {len}: {entry:?}");
    }
    ensure!(flow.entry(&flow.up)?.packets == 11);
    Ok(())
}

/// A frame on a cable has at least 60 bytes (IEEE 802.3, 3.2.8), more than the headers of IPv4 and TCP, and
/// may have more behind the packet for other reasons. That is not of the stream.
fn padding(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let header = Header::new(ACK, START_UP, ACKED_UP, 4096);
    let mut padded = frame::tcp(&flow.up, &header, b"")?;
    padded.extend([0; 6]);
    let (verdict, _) = flow.arrive(&padded)?;
    ensure!(verdict == Verdict::Redirect, "{verdict:?}");
    let entry = flow.entry(&flow.up)?;
    ensure!((entry.bytes, entry.next_seq) == (0, START_UP), "{entry:?}");
    Ok(())
}

/// Each segment is dropped, and asks for a RST; but no RST does.
fn ended(family: Family) -> Result<()> {
    let mut flow = Spliced::new(family)?;
    let up = flow.up;
    flow.mark(&up, SEEN_ENDED);
    let segment = |flags| Header::new(flags, START_UP, ACKED_UP + 9, 77);
    for flags in [ACK, ACK, ACK | FIN] {
        let (verdict, _) = flow.arrive(&frame::tcp(&up, &segment(flags), b"more")?)?;
        ensure!(verdict == Verdict::Drop, "{verdict:?}");
        ensure!(flow.events()? == 1);
    }
    // With what it acknowledges, which is the number that the RST must have (RFC 5961, 3.2).
    let entry = flow.entry(&up)?;
    ensure!(
        (entry.acked, entry.window) == (ACKED_UP + 9, 77),
        "{entry:?}"
    );
    // Nobody gets the payload, so nobody is charged for it.
    ensure!((entry.bytes, entry.next_seq) == (0, START_UP), "{entry:?}");
    let reset = frame::tcp(&up, &segment(RST), b"")?;
    ensure!(flow.arrive(&reset)?.0 == Verdict::Drop && flow.events()? == 1);
    ensure!(flow.entry(&up)?.seen & SEEN_RST != 0);
    ensure!(flow.arrive(&reset)?.0 == Verdict::Drop && flow.events()? == 0);
    Ok(())
}

/// A SYN on the tuple of a flow that is over is for the listener. The entry is in its way no more, but
/// what it has noted can still be read.
fn new_connection(family: Family) -> Result<()> {
    for (client, backend) in [
        (SEEN_RST, 0),
        (0, SEEN_RST),
        (SEEN_ENDED, SEEN_ENDED),
        (SEEN_FIN, SEEN_FIN),
    ] {
        let flow = Spliced::new(family)?;
        flow.mark(&flow.up, client);
        flow.mark(&flow.down, backend);
        let syn = Header::new(SYN, 1, 0, 64240).with_options(&[2, 4, 5, 0xb4]);
        let frame = frame::tcp(&flow.up, &syn, b"")?;
        flow.passes(&frame)?;
        let (up, down) = (flow.entry(&flow.up)?, flow.entry(&flow.down)?);
        ensure!(up.seen == client && up.packets == 0, "{up:?}");
        ensure!(
            down.seen == SEEN_SWITCH | backend && down.packets == 0,
            "{down:?}"
        );
        flow.passes(&frame)?;
        // The rest of it likewise.
        flow.passes(&frame::tcp(
            &flow.up,
            &Header::new(ACK, 2, 1, 502),
            b"hello",
        )?)?;
    }
    Ok(())
}

/// While it lives a SYN is a stray, which its receiver challenges (RFC 9293, 3.10.7.4).
fn stray_syn(family: Family) -> Result<()> {
    for seen in [0, SEEN_FIN] {
        let flow = Spliced::new(family)?;
        flow.mark(&flow.up, seen);
        flow.is_translated(&Header::new(SYN, 1, 0, 64240), b"")?;
        ensure!(flow.entry(&flow.up)?.seen == SEEN_SWITCH | seen);
    }
    // Nor is the answer to one a new connection, whatever the flow has come to.
    let flow = Spliced::new(family)?;
    flow.mark(&flow.up, SEEN_RST);
    flow.is_translated(&Header::new(SYN | ACK, 1, 2, 64240), b"")?;
    flow.entry(&flow.up)?;
    Ok(())
}
