//! What our own socket still sends on a flow that is spliced past it.

use anyhow::{Result, ensure};
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use proxy_common::flow::SEEN_ENDED;
use proxy_common::packet::{ACK, FIN, RST};
use proxy_user::bpf::dry_run::Verdict;

use super::for_each_family;
use super::frame::{self, Header};
use super::spliced::{ACKED_DOWN, DOWN, START_DOWN, Spliced};

/// Where the socket that the client talks to is.
const SEQUENCE: u32 = START_DOWN.wrapping_add(DOWN.seq);
/// What it has acknowledged.
const ACKED: u32 = ACKED_DOWN.wrapping_add(DOWN.ack);

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "refreshes_a_guards_data", data);
    for_each_family(suite, "keeps_a_guard_quiet", quiet);
}

/// With what the backend has acknowledged since, and its window.
fn data(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let on_wire = flow.up.reversed();
    let leaves = |sent: Header, expected: Header, payload: &[u8]| -> Result<()> {
        let (verdict, after) = flow.leave(&frame::tcp(&on_wire, &sent, payload)?)?;
        ensure!(verdict == Verdict::Next, "{verdict:?}");
        let expected = frame::tcp(&on_wire, &expected, payload)?;
        ensure!(after == expected, "{after:02x?} instead of {expected:02x?}");
        Ok(())
    };
    let own = Header::new(ACK, SEQUENCE, ACKED, 9);
    // Nothing is known of the backend yet.
    leaves(own, own, b"handed over")?;

    let answer = Header::new(ACK, START_DOWN, ACKED_DOWN.wrapping_add(1000), 512);
    flow.becomes(&flow.down, &answer, b"", &answer.translated(&DOWN))?;
    // 512 << 9 >> 7.
    let refreshed = Header::new(ACK, SEQUENCE, ACKED.wrapping_add(1000), 2048);
    leaves(own, refreshed, b"handed over")?;
    let fin = |header: Header| {
        let mut header = header;
        header.buffer[13] |= FIN;
        header
    };
    leaves(fin(own), fin(refreshed), b"")?;
    // What is newer, or as new, stays.
    for ahead in [1000, 1001] {
        let own = Header::new(ACK, SEQUENCE, ACKED.wrapping_add(ahead), 9);
        leaves(own, own, b"handed over")?;
    }
    Ok(())
}

/// Acknowledgements alone would look like duplicates, and a RST is the kernel's, not the flow's. Those
/// that the daemon sends leave.
fn quiet(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let frame = |flags| {
        let header = Header::new(flags, SEQUENCE, ACKED, 9);
        frame::tcp(&flow.up.reversed(), &header, b"")
    };
    for flags in [ACK, RST, RST | ACK] {
        let verdict = flow.leave(&frame(flags)?)?.0;
        ensure!(verdict == Verdict::Drop, "{flags:#x}: {verdict:?}");
    }
    flow.mark(&flow.up, SEEN_ENDED);
    let reset = frame(RST)?;
    ensure!(flow.leave(&reset)? == (Verdict::Next, reset));
    Ok(())
}
