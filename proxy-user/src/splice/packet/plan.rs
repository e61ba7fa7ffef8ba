//! May two connections be joined, and what the entries of the joined flow say.

use proxy_common::flow::{Forward, Record, SEEN_ECN_ALONE};
use proxy_common::segment::Shift;

use super::super::Fallback;
use crate::paths::Way;
use crate::sys::repair::Negotiated;

/// One connection of a flow, as it is at the switch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) negotiated: Negotiated,
    /// Sequence number of the peer's next byte that userspace has not read.
    pub(super) read: u32,
    /// Sequence number of the next byte that is expected from the peer: what is before is acknowledged.
    pub(super) received: u32,
    /// Sequence number of the next byte that userspace will write.
    pub(super) write: u32,
    /// What, added to `CLOCK_MONOTONIC` in ms, is the timestamp that the peer knows us by.
    pub(super) clock: u32,
    /// Of our socket.
    pub(super) cookie: u64,
    /// How what comes from the peer leaves.
    pub(super) out: Way,
}

/// Both connections of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Legs {
    pub(super) downstream: Leg,
    pub(super) upstream: Leg,
}

impl Legs {
    /// Is every header of one connection translatable into one of the other?
    pub(super) fn may_be_joined(&self, ipv4: bool) -> Result<(), Fallback> {
        let (down, up) = (&self.downstream.negotiated, &self.upstream.negotiated);
        if down.timestamps != up.timestamps
            || down.sack != up.sack
            || down.usec_timestamps
            || up.usec_timestamps
        {
            return Err(Fallback::OptionsDiffer);
        }
        // A window below the unit that its receiver counts in would look closed for ever. The kernel's
        // scale follows the largest buffer allowed (`tcp_select_initial_window`).
        for (from, to) in [(down, up), (up, down)] {
            if from.window >> to.our_scale == 0 {
                return Err(Fallback::WindowTooSmall);
            }
        }
        // The backend was asked for no larger segments than the client takes (`Connecting::mss`). What
        // the client may send is known only now, and must fit our own link, where nobody would tell it, and
        // the maximum that the backend has asked for. A path that is narrower elsewhere is for path MTU
        // discovery to find, which works end to end.
        let headers = if ipv4 { 40 } else { 60 };
        let path_limits = up.largest_out + headers >= up.path_mtu;
        let fits_link = down.largest_in + headers <= self.downstream.out.mtu;
        if !fits_link || (down.largest_in > up.largest_out && !path_limits) {
            return Err(Fallback::SegmentsDiffer);
        }
        Ok(())
    }

    /// What becomes of packets from the client's side, and from the backend.
    pub(super) fn entries(&self, flow: u64, record: &Record) -> (Forward, Forward) {
        let (down, up) = (&self.downstream, &self.upstream);
        let to_upstream = up.write.wrapping_sub(down.read);
        let to_downstream = down.write.wrapping_sub(up.read);
        let both_ecn = down.negotiated.ecn && up.negotiated.ecn;
        let entry = |from: &Leg, to: &Leg, seq: u32, ack: u32| Forward {
            flow,
            packets: 0,
            bytes: 0,
            last_seen_ns: 0,
            guard: from.cookie,
            rewrite: record.downstream,
            shift: Shift {
                seq,
                // What acknowledges the other direction goes the other way.
                ack: 0u32.wrapping_sub(ack),
                ts_val: 0,
                ts_ecr: 0,
                window_from: from.negotiated.their_scale,
                window_to: to.negotiated.our_scale,
                known: 0,
                ecn: both_ecn.into(),
            },
            ifindex: from.out.ifindex,
            next_seq: from.read,
            acked: from.write,
            clock: to.clock,
            floor: to.received,
            below_floor: 1,
            window: u16::try_from(from.negotiated.window >> from.negotiated.their_scale)
                .unwrap_or(u16::MAX),
            seen: if from.negotiated.ecn && !both_ecn {
                SEEN_ECN_ALONE
            } else {
                0
            },
        };
        let downstream = Forward {
            rewrite: record.upstream.reversed(),
            ..entry(down, up, to_upstream, to_downstream)
        };
        let upstream = Forward {
            rewrite: record.downstream.reversed(),
            ..entry(up, down, to_downstream, to_upstream)
        };
        (downstream, upstream)
    }
}
