//! What a bad wire does to frames, decided by a seeded generator. Pure: frames go in, frames and
//! their delays come out.
//!
//! Loss, repetition and late arrival are what any network may do. The overlap is what a sender that
//! collapses its retransmit queue does after a loss: a segment that starts before what the receiver
//! expects and ends after it (seq < `rcv_nxt` < `end_seq`). It is made here from two contiguous
//! segments A and B: A goes through, then A‖B in B's place.

use std::collections::HashMap;
use std::time::Duration;

use super::super::frame::{Segment, StreamKey};

/// How a wire treats the frames of each direction. The default is a good wire.
#[derive(Clone, Debug, Default)]
pub struct Impairment {
    /// Seeds every decision. The kernels' timing is not part of it.
    pub seed: u64,
    /// Share of frames lost, 0.0 to 1.0.
    pub loss: f64,
    /// Share of frames delivered twice.
    pub duplicate: f64,
    /// Share of frames that arrive late by [`Self::LATE`], behind those that follow them.
    pub reorder: f64,
    /// Share of contiguous segments replaced by one that repeats the segment before it.
    pub overlap: f64,
    /// Every frame is this late.
    pub delay: Duration,
    /// The MSS option of SYNs is lowered to this, so segments are small, and two of them still fit
    /// into one packet.
    pub mss: Option<u16>,
}

impl Impairment {
    /// Some loss, and nothing else.
    pub const LOSSY: Self = Self {
        seed: 6,
        loss: 0.01,
        duplicate: 0.0,
        reorder: 0.0,
        overlap: 0.0,
        delay: Duration::from_micros(500),
        mss: None,
    };

    /// How late a reordered frame comes: some segments at any load, and below every timeout.
    const LATE: Duration = Duration::from_millis(3);

    /// The largest packet that a made-up segment may be: the MTU of every link here.
    const LARGEST_PACKET: usize = 1500;
}

/// One direction's decisions, and its memory of the streams.
pub(super) struct Mangler {
    plan: Impairment,
    random: fastrand::Rng,
    /// Where the IP header starts.
    offset: usize,
    /// The last data segment seen of each stream.
    last: HashMap<StreamKey, Segment>,
    /// How many frames each impairment has touched.
    pub(super) counts: Counts,
}

/// How many frames each impairment has touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All frames that came in.
    pub frames: u64,
    /// Lost.
    pub lost: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Delivered late.
    pub reordered: u64,
    /// Replaced by an overlapping segment.
    pub overlapped: u64,
}

impl Mangler {
    pub(super) fn new(plan: &Impairment, direction: u64, offset: usize) -> Self {
        let random = fastrand::Rng::with_seed(plan.seed.wrapping_mul(2).wrapping_add(direction));
        Self {
            plan: plan.clone(),
            random,
            offset,
            last: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// What becomes of `frame`: frames to deliver, each after a delay.
    pub(super) fn pass(&mut self, frame: Vec<u8>) -> Vec<(Duration, Vec<u8>)> {
        self.counts.frames += 1;
        // Every decision is drawn for every frame, so that one does not shift the others.
        let [lose, duplicate, reorder, overlap] = [
            self.plan.loss,
            self.plan.duplicate,
            self.plan.reorder,
            self.plan.overlap,
        ]
        .map(|share| self.random.f64() < share);
        let frame = self.rewrite(frame, overlap);
        if lose {
            self.counts.lost += 1;
            return Vec::new();
        }
        let mut delay = self.plan.delay;
        if reorder {
            self.counts.reordered += 1;
            delay += Impairment::LATE;
        }
        if duplicate {
            self.counts.duplicated += 1;
            return vec![(delay, frame.clone()), (delay, frame)];
        }
        vec![(delay, frame)]
    }

    fn rewrite(&mut self, frame: Vec<u8>, overlap: bool) -> Vec<u8> {
        if self.plan.mss.is_none() && self.plan.overlap == 0.0 {
            return frame;
        }
        let Some(mut segment) = Segment::parse(&frame, self.offset) else {
            return frame;
        };
        if segment.tcp.syn {
            let clamped = self.plan.mss.is_some_and(|mss| segment.clamp_mss(mss));
            return if clamped {
                segment.to_frame().unwrap_or(frame)
            } else {
                frame
            };
        }
        if segment.payload.is_empty() {
            return frame;
        }
        let before = self.last.insert(segment.key(), segment.clone());
        match before {
            Some(before) if overlap && before.end_of_payload() == segment.tcp.sequence_number => {
                segment.tcp.sequence_number = before.tcp.sequence_number;
                segment.payload = [before.payload, segment.payload].concat();
                if segment.packet_len() > Impairment::LARGEST_PACKET {
                    return frame;
                }
                self.counts.overlapped += 1;
                segment.to_frame().unwrap_or(frame)
            }
            Some(_) | None => frame,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(seq: u32, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 10], 64)
            .tcp(40000, 80, seq, 65535)
            .ack(1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("a vector takes it");
        frame
    }

    #[test]
    fn an_overlap_repeats_the_segment_before() {
        let plan = Impairment {
            overlap: 1.0,
            ..Impairment::default()
        };
        let mut mangler = Mangler::new(&plan, 0, 14);
        assert_eq!(
            mangler.pass(frame(1000, b"abc")),
            [(Duration::ZERO, frame(1000, b"abc"))]
        );
        // The expected frame is built from scratch: lengths and checksums must be right.
        assert_eq!(
            mangler.pass(frame(1003, b"de")),
            [(Duration::ZERO, frame(1000, b"abcde"))]
        );
        // Not contiguous: left alone.
        assert_eq!(
            mangler.pass(frame(2000, b"f")),
            [(Duration::ZERO, frame(2000, b"f"))]
        );
        assert_eq!(mangler.counts.overlapped, 1);
    }

    #[test]
    fn mss_is_clamped_in_syns() {
        let syn = |mss| {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6([1; 16], [2; 16], 64)
                .tcp(40000, 80, 7, 65535)
                .syn()
                .options(&[
                    etherparse::TcpOptionElement::Noop,
                    etherparse::TcpOptionElement::MaximumSegmentSize(mss),
                ])
                .expect("options fit")
                .write(&mut frame, &[])
                .expect("a vector takes it");
            frame
        };
        let plan = Impairment {
            mss: Some(500),
            ..Impairment::default()
        };
        let mut mangler = Mangler::new(&plan, 0, 14);
        assert_eq!(mangler.pass(syn(1460)), [(Duration::ZERO, syn(500))]);
        assert_eq!(mangler.pass(syn(400)), [(Duration::ZERO, syn(400))]);
    }

    #[test]
    fn the_same_seed_decides_the_same() {
        let plan = Impairment {
            seed: 7,
            loss: 0.3,
            duplicate: 0.3,
            ..Impairment::default()
        };
        let run = || {
            let mut mangler = Mangler::new(&plan, 0, 14);
            (0..200)
                .map(|n| mangler.pass(frame(n, b"x")).len())
                .collect::<Vec<_>>()
        };
        let first = run();
        assert_eq!(first, run());
        assert!([0, 1, 2].iter().all(|n| first.contains(n)));
    }
}
