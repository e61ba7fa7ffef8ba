//! What becomes of the header of a segment that is forwarded.

use anyhow::{Result, ensure};
use limpid_tests::net::Family;
use limpid_tests::suite::Suite;
use proxy_common::packet::{ACK, FIN};
use proxy_common::segment;

use super::for_each_family;
use super::frame::Header;
use super::spliced::{ACKED_DOWN, ACKED_UP, DOWN, START_DOWN, START_UP, Spliced, UP};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;

/// Two NOPs, timestamps (RFC 7323, appendix A).
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 9, 0xff, 0xff, 0xff, 7];
/// Two NOPs, three blocks of SACK (RFC 2018, 3), the first of which wraps.
const SACK: [u8; 28] = [
    1, 1, 5, 26, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9, 0, 0, 1, 0, 0, 0, 2, 0, 0x7f, 0, 0, 0, 0x80, 0,
    0, 0,
];

pub(crate) fn add_to(suite: &mut Suite) {
    for_each_family(suite, "forwards_data", data);
    for_each_family(suite, "moves_the_numbers", numbers);
    for_each_family(suite, "translates_options", options);
    for_each_family(suite, "leaves_the_urgent_pointer", urgent);
    for_each_family(suite, "acknowledges_no_less", acknowledges_no_less);
}

/// Both ways, and what the entries then say.
fn data(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let header = Header::new(ACK | PSH, START_UP, ACKED_UP, 4096);
    flow.is_translated(&header, b"GET / HTTP/1.1\r\n\r\n")?;
    let entry = flow.entry(&flow.up)?;
    ensure!((entry.packets, entry.bytes) == (1, 18), "{entry:?}");
    ensure!(entry.next_seq == START_UP.wrapping_add(18), "{entry:?}");
    ensure!((entry.acked, entry.window) == (ACKED_UP, 4096), "{entry:?}");
    ensure!(entry.last_seen_ns > 0 && flow.entry(&flow.down)?.last_seen_ns == 0);

    // An odd number of bytes, and about as many as an interface of 1500 bytes takes.
    let header = Header::new(ACK, START_DOWN, ACKED_DOWN.wrapping_add(18), 512);
    let payload: Vec<u8> = (0..1427u16).map(|n| n as u8).collect();
    flow.becomes(&flow.down, &header, &payload, &header.translated(&DOWN))?;
    let entry = flow.entry(&flow.down)?;
    ensure!((entry.packets, entry.bytes) == (1, 1427), "{entry:?}");
    ensure!(entry.window == 512 && entry.acked == ACKED_DOWN.wrapping_add(18));
    Ok(())
}

/// The numbers by hand, not by the code that is tested.
fn numbers(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    // 0xffff_fff0 + 0x9000_0001, 0x8000_0000 + 0x8765_4321; 3000 << 7 >> 9.
    let header = Header::new(ACK, 0xffff_fff0, 0x8000_0000, 3000);
    let expected = Header::new(ACK, 0x8fff_fff1, 0x0765_4321, 750);
    flow.becomes(&flow.up, &header, b"words", &expected)?;
    // 0x10 - 0x8765_4321, 0x20 - 0x9000_0001; 60000 << 9 >> 7 does not fit.
    let header = Header::new(ACK, 0x10, 0x20, 60_000);
    let expected = Header::new(ACK, 0x789a_bcef, 0x7000_001f, 0xffff);
    flow.becomes(&flow.down, &header, b"answer", &expected)
}

fn options(family: Family) -> Result<()> {
    // What is sent twice comes first, below the acknowledgement (RFC 2883, 4).
    let duplicate = [1, 1, 5, 10, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 9];
    // 60 bytes, the most that there can be.
    let both = [&TIMESTAMPS[..], &SACK].concat();
    let with_duplicate = [&TIMESTAMPS[..], &duplicate].concat();
    // Experimental (RFC 6994) and MPTCP (RFC 8684): padding on the other leg.
    let unknown = [&[253, 4, 0xf9, 0x89][..], &[30, 8, 0x20, 1, 2, 3, 4, 5]].concat();
    let unknown_last = [&TIMESTAMPS[..], &unknown].concat();
    let flow = Spliced::new(family)?;
    for options in [
        &TIMESTAMPS[..],
        &SACK,
        &both,
        &duplicate,
        &with_duplicate,
        &unknown,
        &unknown_last,
    ] {
        for payload in [&b""[..], b"some"] {
            let header = Header::new(ACK, START_UP, ACKED_UP, 4096).with_options(options);
            ensure!(
                header.translated(&UP).buffer[20..] != header.buffer[20..],
                "what is to be seen is that it changes"
            );
            flow.is_translated(&header, payload)?;
        }
    }
    Ok(())
}

/// It counts from the sequence number (RFC 9293, 3.8.5).
fn urgent(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let mut header = Header::new(ACK | URG, START_UP, ACKED_UP, 4096);
    header.buffer[18..20].copy_from_slice(&5u16.to_be_bytes());
    ensure!(header.translated(&UP).buffer[18..20] == [0, 5]);
    flow.is_translated(&header, b"urgent")
}

/// What our socket has acknowledged stays so, and no window reaches further for it.
fn acknowledges_no_less(family: Family) -> Result<()> {
    let flow = Spliced::new(family)?;
    let shown = ACKED_UP.wrapping_add(UP.ack);
    let floor = shown.wrapping_add(5000);
    flow.table.update(super::spliced::FLOW, &flow.up, |entry| {
        entry.floor = floor;
        entry.below_floor = 1;
    });
    let sequence = START_UP.wrapping_add(UP.seq);
    // 4096 << 7 bytes, less 5000, in units of 1 << 9; then less than was acknowledged.
    for (field, left) in [(4096, 1014), (16, 0)] {
        let header = Header::new(ACK, START_UP, ACKED_UP, field);
        let expected = Header::new(ACK, sequence, floor, left);
        flow.becomes(&flow.up, &header, b"x", &expected)?;
        ensure!(flow.entry(&flow.up)?.below_floor == 1);
        // Noted as it was sent.
        ensure!(flow.entry(&flow.up)?.acked == ACKED_UP);
    }
    // A segment that acknowledges nothing does not begin to.
    flow.is_translated(&Header::new(PSH, START_UP, 0, 4096), b"x")?;
    ensure!(flow.entry(&flow.up)?.below_floor == 1);
    // From here on its sender says it by itself, and may even be behind again (reordered).
    let caught_up = Header::new(ACK | FIN, START_UP, ACKED_UP.wrapping_add(5000), 4096);
    flow.is_translated(&caught_up, b"")?;
    ensure!(flow.entry(&flow.up)?.below_floor == 0);
    let translated = caught_up.translated(&UP);
    ensure!(segment::acknowledgement(&translated.buffer) == floor);
    flow.is_translated(&Header::new(ACK, START_UP, ACKED_UP, 4096), b"")
}
