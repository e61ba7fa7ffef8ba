//! Any header, by any constants: the program and the pure function agree.

use anyhow::{Context as _, Result};
use fastrand::Rng;
use limpid_tests::net::Family;
use limpid_tests::suite::{Suite, numerous};
use proxy_common::flow::SEEN_SWITCH;
use proxy_common::segment::{BUFFER, Shift, TS_ECR_KNOWN, TS_VAL_KNOWN};

use super::for_each_family;
use super::frame::Header;
use super::spliced::{FLOW, Spliced};

/// The same headers each time.
const SEED: u64 = 0x6c69_6d70_6964;

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "translates_as_the_pure_function", agrees);
}

fn agrees(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let mut rng = Rng::with_seed(SEED);
    // Nor can what the other direction's clock would tell.
    flow.table
        .update(FLOW, &flow.down, |entry| entry.shift.known = 0);
    for case in 0..numerous(4000, 400_000) {
        let (header, shift) = (header(&mut rng), shift(&mut rng));
        let payload: Vec<u8> = (0..payload_len(&mut rng)).map(|_| rng.u8(..)).collect();
        // As at the switch: what the last header has left says nothing about this one.
        flow.table.update(FLOW, &flow.up, |entry| {
            entry.shift = shift;
            entry.seen = SEEN_SWITCH;
        });
        flow.becomes(&flow.up, &header, &payload, &header.translated(&shift))
            .with_context(|| format!("case {case}, {shift:x?}"))?;
    }
    Ok(())
}

/// Half of them with the options that are translated, which chance alone would hardly make.
fn header(rng: &mut Rng) -> Header {
    let mut buffer = [0; BUFFER];
    rng.fill(&mut buffer);
    let words = rng.u8(5..=15);
    buffer[12] = words << 4 | buffer[12] & 0x0f;
    let len = usize::from(words) * 4;
    let mut at = 20;
    if len >= 32 && rng.bool() {
        buffer[20..24].copy_from_slice(&[1, 1, 8, 10]);
        at = 32;
    }
    if at + 12 <= len && rng.bool() {
        // To the end of the header, as it must be: not always a whole number of blocks.
        let size = u8::try_from(len - at - 2).unwrap_or(u8::MAX);
        buffer[at..at + 4].copy_from_slice(&[1, 1, 5, size]);
    }
    Header { buffer, len }
}

/// The timestamp's clock is known: else it would be learned.
fn shift(rng: &mut Rng) -> Shift {
    Shift {
        seq: rng.u32(..),
        ack: rng.u32(..),
        ts_val: rng.u32(..),
        ts_ecr: rng.u32(..),
        window_from: rng.u8(0..15),
        window_to: rng.u8(0..15),
        known: TS_VAL_KNOWN | if rng.bool() { TS_ECR_KNOWN } else { 0 },
        ecn: rng.u8(0..2),
    }
}

/// None, some, or as much as fits into 1500 bytes.
fn payload_len(rng: &mut Rng) -> usize {
    match rng.u8(0..3) {
        0 => 0,
        1 => rng.usize(1..64),
        _ => rng.usize(64..1400),
    }
}
