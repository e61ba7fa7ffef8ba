//! Explicit congestion notification (RFC 3168), in both headers.

use anyhow::{Result, ensure};
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use proxy_common::flow::SEEN_ECN_ALONE;
use proxy_common::packet::ACK;
use proxy_common::segment::Shift;
use proxy_user::bpf::dry_run::Verdict;

use super::for_each_family;
use super::frame::{self, Header};
use super::spliced::{ACKED_UP, DOWN, START_UP, Spliced, UP};

const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// What the IP header says (RFC 3168, 5): not capable, capable by either code, congestion experienced.
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "knows_ecn", flags);
    for_each_family(suite, "passes_marks", marks_pass);
    for_each_family(suite, "takes_marks_off", marks_end);
}

/// The flags pass where both legs have it, and only there; reserved bits never do.
fn flags(family: Family) -> Result<()> {
    for ecn in [0, 1] {
        let shift = Shift { ecn, ..UP };
        let flow = Spliced::with(family, shift, DOWN)?;
        let mut header = Header::new(ACK | ECE | CWR, START_UP, ACKED_UP, 4096);
        header.buffer[12] |= 0x0f;
        let expected = header.translated(&shift);
        ensure!(expected.buffer[12] == 5 << 4);
        ensure!((expected.buffer[13] == ACK) == (ecn == 0));
        flow.becomes(&flow.up, &header, b"marked", &expected)?;
    }
    Ok(())
}

/// Both legs have it: what routers say is for the other end.
fn marks_pass(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    for mark in [NOT_ECT, ECT_1, ECT_0, CE] {
        let (before, after) = frames(&flow, UP)?;
        let (before, after) = (frame::marked(&before, mark)?, frame::marked(&after, mark)?);
        flow.leaves_as(&before, &after)?;
    }
    Ok(())
}

/// Only the sender has it: its packets leave as those of a connection without; one that a router has
/// marked is lost, since its receiver would not tell.
fn marks_end(family: Family) -> Result<()> {
    let shift = Shift { ecn: 0, ..UP };
    let flow = Spliced::with(family, shift, DOWN)?;
    flow.mark(&flow.up, SEEN_ECN_ALONE);
    for mark in [NOT_ECT, ECT_1, ECT_0] {
        let (before, after) = frames(&flow, shift)?;
        let (before, after) = (
            frame::marked(&before, mark)?,
            frame::marked(&after, NOT_ECT)?,
        );
        flow.leaves_as(&before, &after)?;
    }
    let (before, _) = frames(&flow, shift)?;
    let (verdict, _) = flow.arrive(&frame::marked(&before, CE)?)?;
    ensure!(verdict == Verdict::Drop, "{verdict:?}");
    Ok(())
}

/// A segment as it arrives and as it leaves.
fn frames(flow: &Spliced, shift: Shift) -> Result<(Vec<u8>, Vec<u8>)> {
    let header = Header::new(ACK | ECE, START_UP, ACKED_UP, 4096);
    let rewrite = flow.entry(&flow.up)?.rewrite;
    Ok((
        frame::tcp(&flow.up, &header, b"marked")?,
        frame::tcp(&rewrite, &header.translated(&shift), b"marked")?,
    ))
}
