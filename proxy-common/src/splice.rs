//! The sockmap engine's table, and the decisions of its programs.
//!
//! A spliced flow has one [`Splice`] for each direction, keyed by the cookie of the socket that the
//! bytes arrive on (the *source*); they leave on its *target*. The verdict program owns a `Splice`
//! once it is inserted: userspace only reads it. What userspace has to tell the program goes the
//! other way, in a [`Gate`].

/// Most kernel memory, in bytes, that redirected data may hold on the way to one target.
///
/// A target's send buffer is made twice as large ([`SEND_BUFFER`]), so that what is redirected
/// always fits it: the queue before it (`sk_psock.ingress_skb`, which has no bound of its own and
/// is shared with the opposite direction's passed data) empties whether or not the target's peer
/// reads.
pub const REDIRECT_LIMIT: u64 = 3 << 20;

/// Send buffer of a target, in bytes of kernel memory.
pub const SEND_BUFFER: u64 = 2 * REDIRECT_LIMIT;

/// Receive buffer of a source, in bytes of kernel memory: what passed data can hold.
pub const RECEIVE_BUFFER: u64 = 6 << 20;

/// Bytes that a source may have received and userspace not read: more is refused before TCP takes
/// it, and so acknowledges it.
///
/// Passed data closes the source's window by being charged to the receive buffer. But behind data
/// that was redirected *to* the source it waits in the same queue, and is charged to nobody until a
/// kernel thread gets there; meanwhile the window stays open.
pub const UNREAD_LIMIT: u32 = RECEIVE_BUFFER as u32;

/// Least that an skb is taken to cost: a small write occupies this much of a send buffer.
pub const LEAST_COST: u32 = 2048;

/// One direction of a spliced flow. Value of `SPLICES`; its key is the source's socket cookie.
///
/// Positions count the bytes of the target's stream as its `tcp_sock.bytes_acked` does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splice {
    /// The target: its socket cookie.
    pub target: u64,
    /// Bytes sent on to the target by the kernel.
    pub redirected: u64,
    /// Bytes handed to userspace, since the kernel might not send them on.
    pub passed: u64,
    /// Bytes left out because a retransmitted segment began with data that was already taken.
    pub trimmed: u64,
    /// Position of the target when this entry was made: that of its next byte.
    pub base: u64,
    /// Position at which the current epoch began; see [`Splice::admit`].
    pub epoch: u64,
    /// Kernel memory, in bytes, of what was redirected in the epoch before the current one.
    pub cost_before: u64,
    /// Kernel memory, in bytes, of what was redirected in the current epoch.
    pub cost: u64,
    /// When data last arrived, in ns of `CLOCK_MONOTONIC`.
    pub last_seen_ns: u64,
    /// Sequence number that the source's next byte has on the wire, host byte order; valid where
    /// `sequence_known` is 1.
    pub next_sequence: u32,
    /// 1: `next_sequence` is valid.
    pub sequence_known: u32,
    /// Index of this direction's [`Gate`].
    pub gate: u32,
    /// Padding, 0.
    pub reserved: u32,
}

/// What userspace tells the verdict program about one direction. Value of the array `GATES`.
///
/// A value of an array is written in place, that of a hash is replaced and its memory used again at
/// once: the program could read another flow's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Bytes that were passed and that userspace has sent on to the target, or [`Gate::CLOSED`].
    pub consumed: u64,
}

impl Gate {
    /// A `consumed` that no `passed` equals: nothing is redirected.
    pub const CLOSED: Self = Self { consumed: u64::MAX };
}

/// Where the verdict program reads kernel memory that no helper offers, in bytes from the start of
/// the structure named. Filled in from the running kernel's BTF when the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `tcp_sock.rcv_nxt`
    pub tcp_rcv_nxt: u32,
    /// `tcp_sock.bytes_acked`
    pub tcp_bytes_acked: u32,
    /// `sk_buff.cb`, of a TCP skb `tcp_skb_cb`, plus `tcp_skb_cb.seq`
    pub skb_seq: u32,
    /// `sk_buff.truesize`
    pub skb_truesize: u32,
}

impl Splice {
    /// How many bytes at the start of an skb were already taken, when its first byte has the
    /// sequence number `sequence` and the source's next byte is `next`.
    ///
    /// TCP queues a segment that begins before and ends after what it has (RFC 9293, 3.10.7.4: "trim
    /// off any portions that lie outside the window" is left to the reader), and a read can have
    /// stopped inside an skb. The program is shown the whole skb in both cases.
    #[inline(always)]
    #[must_use]
    pub const fn taken(next: u32, sequence: u32, len: u32) -> u32 {
        let taken = next.wrapping_sub(sequence);
        // A difference in the upper half is negative: the skb begins after `next`.
        if taken < 1 << 31 && taken <= len {
            taken
        } else {
            0
        }
    }

    /// May `len` bytes of an skb that holds `truesize` bytes of memory be redirected, where the
    /// target's peer has acknowledged everything before position `acked` and userspace has sent on
    /// `consumed` of the passed bytes? Counts them either way.
    ///
    /// Two conditions. Order: nothing that was passed is still on its way through userspace. Memory:
    /// what was redirected and not acknowledged stays below [`REDIRECT_LIMIT`]. TCP tells which
    /// bytes are acknowledged, not what memory they held, so memory is counted by epochs: when all
    /// that was redirected before the current epoch is acknowledged, the epoch before it is over and
    /// the next one begins. The sum of both is never less than the memory held.
    #[inline(always)]
    pub fn admit(&mut self, len: u32, truesize: u32, consumed: u64, acked: u64) -> bool {
        let position = self
            .base
            .wrapping_add(self.redirected)
            .wrapping_add(self.passed);
        // Positions are compared as TCP compares sequence numbers.
        if acked.wrapping_sub(self.epoch) < 1 << 63 {
            self.cost_before = self.cost;
            self.cost = 0;
            self.epoch = position;
        }
        let cost = if truesize > LEAST_COST {
            truesize
        } else {
            LEAST_COST
        };
        let held = self.cost_before + self.cost + u64::from(cost);
        if self.passed == consumed && held <= REDIRECT_LIMIT {
            self.cost += u64::from(cost);
            self.redirected += u64::from(len);
            true
        } else {
            self.passed += u64::from(len);
            false
        }
    }
}

const _: () = assert!(size_of::<Splice>() == 88);
const _: () = assert!(size_of::<Gate>() == 8);
const _: () = assert!(size_of::<KernelOffsets>() == 20);

#[cfg(feature = "aya")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
    use super::{Gate, KernelOffsets, Splice};

    // SAFETY: `repr(C)`, integers only, and no padding (the sizes asserted above are the sums of the
    // fields), so every bit pattern is a value and every byte is initialised.
    unsafe impl aya::Pod for Splice {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Gate {}
    // SAFETY: as above.
    unsafe impl aya::Pod for KernelOffsets {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An skb that costs its length.
    fn admit(splice: &mut Splice, len: u32, consumed: u64, acked: u64) -> bool {
        splice.admit(len, len, consumed, acked)
    }

    #[test]
    fn only_an_overlap_counts_as_taken() {
        assert_eq!(Splice::taken(1000, 1000, 500), 0, "in order");
        assert_eq!(Splice::taken(1000, 600, 500), 400, "overlap");
        assert_eq!(Splice::taken(1000, 500, 500), 500, "nothing new");
        assert_eq!(
            Splice::taken(1000, 400, 500),
            0,
            "not of this stream's present"
        );
        assert_eq!(Splice::taken(1000, 1200, 500), 0, "after a gap");
        assert_eq!(
            Splice::taken(100, u32::MAX - 99, 500),
            200,
            "across the wrap"
        );
    }

    #[test]
    fn passed_bytes_close_the_gate_until_all_are_consumed() {
        let mut splice = Splice::default();
        assert!(admit(&mut splice, 10, 0, 0));
        assert!(
            !admit(&mut splice, 10, Gate::CLOSED.consumed, 0),
            "userspace holds it"
        );
        assert!(
            !admit(&mut splice, 10, 0, 0),
            "10 bytes are on their way through userspace"
        );
        assert!(
            !admit(&mut splice, 10, 10, 0),
            "userspace has not seen the last 10"
        );
        assert!(admit(&mut splice, 10, 30, 0));
        assert_eq!((splice.redirected, splice.passed), (20, 30));
    }

    #[test]
    fn an_unacknowledging_target_gets_no_more_than_the_limit() {
        let mut splice = Splice::default();
        let mut held = 0;
        while admit(&mut splice, 1 << 16, 0, 0) {
            held += 1 << 16;
        }
        assert!(
            held <= REDIRECT_LIMIT && held + (2 << 16) > REDIRECT_LIMIT,
            "{held}"
        );
    }

    #[test]
    fn small_writes_cost_what_they_occupy() {
        let mut splice = Splice::default();
        let mut skbs = 0;
        while splice.admit(1, 1, 0, 0) {
            skbs += 1;
        }
        assert!(skbs <= REDIRECT_LIMIT / u64::from(LEAST_COST));
    }

    /// The bound holds whatever is acknowledged when: a reader that acknowledges a random part of
    /// what is outstanding never has more than the limit on its way, and never starves.
    #[test]
    fn the_memory_held_never_exceeds_the_limit() {
        let mut splice = Splice {
            base: u64::MAX - 100_000,
            ..Splice::default()
        };
        splice.epoch = splice.base;
        let mut queue = std::collections::VecDeque::new();
        let (mut acked, mut position) = (splice.base, splice.base);
        let (mut random, mut consumed) = (1u64, 0);
        for _ in 0..200_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let (len, waste) = (
                (random >> 33) as u32 % 60_000 + 1,
                (random >> 20) as u32 % 9000,
            );
            position = position.wrapping_add(u64::from(len));
            if splice.admit(len, len + waste, consumed, acked) {
                queue.push_back((position, u64::from(len + waste)));
            } else {
                // Userspace sends it on; whoever copies waits for the queue first.
                consumed += u64::from(len);
                queue.clear();
                acked = position;
            }
            let held: u64 = queue.iter().map(|(_, cost)| cost).sum();
            assert!(held <= REDIRECT_LIMIT);
            for _ in 0..(random >> 40) % 3 {
                if let Some((end, _)) = queue.pop_front() {
                    acked = end;
                }
            }
        }
        assert!(splice.redirected > splice.passed, "{splice:?}");
    }
}
