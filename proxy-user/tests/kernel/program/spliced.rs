//! A flow in the tables of programs that are run dry.

use anyhow::{Context as _, Result, ensure};
use futures_util::FutureExt as _;
use limpid_tests::net::Family;
use proxy_common::flow::{Forward, HANDING_OVER, Record, Tuple};
use proxy_common::segment::{Shift, TS_ECR_KNOWN, TS_VAL_KNOWN};
use proxy_user::bpf::dry_run::{DryRun, Verdict};
use proxy_user::bpf::forwards::{Events, ForwardTable};
use proxy_user::netlink::tc::Hook;

use super::frame::{self, Header};

pub(crate) const FLOW: u64 = 0x1234_5678_9abc;

/// Where the client's side is at the switch: its numbers are about to wrap.
pub(crate) const START_UP: u32 = 0xffff_ff00;
/// Where the backend is.
pub(crate) const START_DOWN: u32 = 0x7fff_fff0;

/// What segments of the client's side become: no constant but ECN's is neutral.
pub(crate) const UP: Shift = Shift {
    seq: 0x9000_0001,
    ack: 0x8765_4321,
    ts_val: 0xdead_beef,
    ts_ecr: 0x0bad_cafe,
    window_from: 7,
    window_to: 9,
    known: TS_VAL_KNOWN | TS_ECR_KNOWN,
    ecn: 1,
};

/// The way back.
pub(crate) const DOWN: Shift = Shift {
    seq: 0u32.wrapping_sub(UP.ack),
    ack: 0u32.wrapping_sub(UP.seq),
    ts_val: 0u32.wrapping_sub(UP.ts_ecr),
    ts_ecr: 0u32.wrapping_sub(UP.ts_val),
    window_from: UP.window_to,
    window_to: UP.window_from,
    ..UP
};

/// What the client's side has acknowledged, in its count.
pub(crate) const ACKED_UP: u32 = START_DOWN.wrapping_add(DOWN.seq);
/// What the backend has.
pub(crate) const ACKED_DOWN: u32 = START_UP.wrapping_add(UP.seq);

/// The flow, and the programs.
pub(crate) struct Spliced {
    programs: DryRun,
    pub(crate) table: ForwardTable,
    events: Events,
    /// What the client's side sends.
    pub(crate) up: Tuple,
    /// What the backend sends.
    pub(crate) down: Tuple,
}

impl Spliced {
    /// One that is translated by [`UP`] and [`DOWN`].
    pub(crate) fn new(family: Family) -> Result<Self> {
        Self::with(family, UP, DOWN)
    }

    /// Both entries, in force. The addresses are for benchmarks (RFC 2544, RFC 5180).
    pub(crate) fn with(family: Family, up_shift: Shift, down_shift: Shift) -> Result<Self> {
        let [client, listener, source, backend] = match family {
            Family::V4 => [
                "198.18.0.1:40000",
                "198.18.0.2:443",
                "198.18.1.1:50000",
                "198.18.1.2:8080",
            ],
            Family::V6 => [
                "[2001:2::1]:40000",
                "[2001:2::2]:443",
                "[2001:2:0:1::1]:50000",
                "[2001:2:0:1:ffff::2]:8080",
            ],
        };
        let tuple =
            |from: &str, to: &str| -> Result<Tuple> { Ok(Tuple::new(from.parse()?, to.parse()?)) };
        let up = tuple(client, listener)?;
        let down = tuple(backend, source)?;
        let mut programs = DryRun::load()?;
        let (table, events) = (programs.forwards()?, programs.events()?);
        let record = Record {
            accepted_ns: 0,
            early_bytes: 0,
            handed_over: [0; 2],
            downstream: up,
            upstream: down,
            client: up.src,
            client_port: up.src_port,
            state: HANDING_OVER,
            reserved: 0,
        };
        table.enter(
            record,
            forward(down.reversed(), up_shift, START_UP, ACKED_UP),
            forward(up.reversed(), down_shift, START_DOWN, ACKED_DOWN),
        )?;
        Ok(Self {
            programs,
            table,
            events,
            up,
            down,
        })
    }

    /// What becomes of a frame that arrives.
    pub(crate) fn arrive(&self, frame: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        self.run(Hook::Ingress, frame)
    }

    /// What becomes of a frame that this host sends.
    pub(crate) fn leave(&self, frame: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        self.run(Hook::Egress, frame)
    }

    fn run(&self, hook: Hook, frame: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let mut packet = frame.to_vec();
        let verdict = self.programs.run(hook, &mut packet)?;
        Ok((verdict, packet))
    }

    /// Passes when the frame goes on as it is.
    pub(crate) fn passes(&self, frame: &[u8]) -> Result<()> {
        let (verdict, after) = self.arrive(frame)?;
        ensure!(verdict == Verdict::Next, "{verdict:?}");
        ensure!(after == frame, "{after:02x?} of {frame:02x?}");
        Ok(())
    }

    /// Passes when a segment that arrives with `tuple` leaves with the header `expected`.
    pub(crate) fn becomes(
        &self,
        tuple: &Tuple,
        header: &Header,
        payload: &[u8],
        expected: &Header,
    ) -> Result<()> {
        let rewrite = self.entry(tuple)?.rewrite;
        let before = frame::tcp(tuple, header, payload)?;
        self.leaves_as(&before, &frame::tcp(&rewrite, expected, payload)?)
    }

    /// Passes when a frame that arrives leaves as `expected`.
    pub(crate) fn leaves_as(&self, before: &[u8], expected: &[u8]) -> Result<()> {
        let (verdict, after) = self.arrive(before)?;
        ensure!(verdict == Verdict::Redirect, "{verdict:?}: {before:02x?}");
        ensure!(
            after == expected,
            "{after:02x?} instead of {expected:02x?}, of {before:02x?}"
        );
        Ok(())
    }

    /// Passes when a segment of the client's side is translated.
    pub(crate) fn is_translated(&self, header: &Header, payload: &[u8]) -> Result<()> {
        self.becomes(&self.up, header, payload, &header.translated(&UP))
    }

    /// The entry of packets with `tuple`.
    pub(crate) fn entry(&self, tuple: &Tuple) -> Result<Forward> {
        self.table.get(FLOW, tuple).context("no entry")
    }

    /// Sets bits of an entry.
    pub(crate) fn mark(&self, tuple: &Tuple, seen: u16) {
        self.table.update(FLOW, tuple, |entry| entry.seen |= seen);
    }

    /// How many events there were since the last call; all must be of the flow.
    pub(crate) fn events(&mut self) -> Result<u32> {
        let mut events = 0;
        while let Some(flow) = self.events.next().now_or_never() {
            ensure!(flow == FLOW, "an event of {flow}");
            events += 1;
        }
        Ok(events)
    }
}

fn forward(rewrite: Tuple, shift: Shift, next_seq: u32, acked: u32) -> Forward {
    Forward {
        flow: FLOW,
        packets: 0,
        bytes: 0,
        last_seen_ns: 0,
        guard: 0,
        rewrite,
        shift,
        ifindex: 1,
        next_seq,
        acked,
        clock: 0,
        floor: 0,
        below_floor: 0,
        window: 0,
        seen: 0,
    }
}
