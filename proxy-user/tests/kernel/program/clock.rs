//! The timestamp clock that a receiver knows us by, learned from the first segment that has one.

use anyhow::{Result, ensure};
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use nix::time::{ClockId, clock_gettime};
use proxy_common::packet::ACK;
use proxy_common::segment::{self, Shift, TS_ECR_KNOWN, TS_VAL_KNOWN};
use proxy_user::bpf::dry_run::Verdict;

use super::for_each_family;
use super::frame::{self, ETHERNET, Header};
use super::spliced::{ACKED_DOWN, ACKED_UP, DOWN, FLOW, START_DOWN, START_UP, Spliced, UP};

/// How far our clock is from `CLOCK_MONOTONIC`: about to wrap.
const CLOCK: u32 = 0xffff_ff00;
/// Where the sender's is.
const THEIRS: u32 = 0x8000_0000;

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "learns_a_clock", learns);
}

/// The first goes on with our clock, later ones keep their distance to it; what the other side then
/// echoes comes back as it was sent.
fn learns(family: Family) -> Result<()> {
    let unknown = |shift| Shift { known: 0, ..shift };
    let flow = Spliced::with(family, unknown(UP), unknown(DOWN))?;
    flow.table
        .update(FLOW, &flow.up, |entry| entry.clock = CLOCK);

    let plain = Header::new(ACK, START_UP, ACKED_UP, 4096);
    flow.is_translated(&plain, b"")?;
    ensure!(
        flow.entry(&flow.up)?.shift.known == 0,
        "learned from nothing"
    );

    let before = milliseconds()?;
    let first = timestamp(&flow, THEIRS)?;
    let after = milliseconds()?;
    let on_our_clock = first.wrapping_sub(before.wrapping_add(CLOCK));
    ensure!(
        on_our_clock <= after.wrapping_sub(before),
        "{first:#x} between {before} and {after}"
    );
    let later = timestamp(&flow, THEIRS + 7)?;
    ensure!(
        later == first.wrapping_add(7),
        "{later:#x} 7 after {first:#x}"
    );
    ensure!(timestamp(&flow, THEIRS - 7)? == first.wrapping_sub(7));

    let (up, down) = (flow.entry(&flow.up)?, flow.entry(&flow.down)?);
    ensure!(up.shift.known == TS_VAL_KNOWN, "{up:?}");
    ensure!(down.shift.known == 0, "{down:?}");
    let echo = Header::new(ACK, START_DOWN, ACKED_DOWN, 512).with_options(&options(1, first));
    let (_, out) = flow.arrive(&frame::tcp(&flow.down, &echo, b"")?)?;
    ensure!(words(&out).1 == THEIRS, "{out:02x?}");
    let known = flow.entry(&flow.down)?.shift.known;
    ensure!(known == TS_VAL_KNOWN | TS_ECR_KNOWN, "{known}");
    Ok(())
}

/// What the timestamp of a segment becomes. Its echo is of no known clock, and becomes 0.
fn timestamp(flow: &Spliced, value: u32) -> Result<u32> {
    let header = Header::new(ACK, START_UP, ACKED_UP, 4096).with_options(&options(value, 99));
    let (verdict, out) = flow.arrive(&frame::tcp(&flow.up, &header, b"")?)?;
    ensure!(verdict == Verdict::Redirect, "{verdict:?}");
    let (value, echo) = words(&out);
    ensure!(echo == 0, "an echo of {echo:#x}");
    // And the rest as it should be, with the shift that has been learned.
    let shift = flow.entry(&flow.up)?.shift;
    ensure!(segment::timestamp(&header.translated(&shift).buffer, header.len) == Some(value));
    flow.becomes(&flow.up, &header, b"", &header.translated(&shift))?;
    Ok(value)
}

fn options(value: u32, echo: u32) -> Vec<u8> {
    [
        &[1, 1, 8, 10][..],
        &value.to_be_bytes(),
        &echo.to_be_bytes(),
    ]
    .concat()
}

/// Timestamp and echo, the last words of a segment without payload.
fn words(frame: &[u8]) -> (u32, u32) {
    debug_assert!(frame.len() > ETHERNET + 8, "a frame");
    let word = |from_end: usize| {
        let at = frame.len() - from_end;
        u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
    };
    (word(8), word(4))
}

/// The programs' clock, in the unit of timestamps.
fn milliseconds() -> Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let now = now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000;
    // Modulo 2^32, as timestamps are.
    Ok(now as u32)
}
