//! The engine `packet`: a packet of one leg becomes a packet of the other, and leaves.
//!
//! The host's sockets, routing and netfilter do not see it. While a socket of the flow still has
//! something to hand over or to see acknowledged (a *guard*), it is shown each packet as one that
//! brings only old data, for the sake of its acknowledgement number; see `guard`.

use aya_ebpf::helpers::{
    bpf_ktime_get_ns, bpf_redirect_neigh, bpf_skb_change_head, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use proxy_common::flow::{
    Forward, SEEN_ECN_ALONE, SEEN_ENDED, SEEN_FIN, SEEN_RST, SEEN_SWITCH, Tuple,
};
use proxy_common::packet::{ACK, ETHERNET, FIN, RST, SYN, Tcp};
use proxy_common::segment::{self, BUFFER, MAX_HEADER, TS_ECR_KNOWN, TS_VAL_KNOWN};

use crate::guard;
use crate::maps::{EVENTS, FORWARDS, SCRATCH, count};
use crate::packet::{self, DROP, NEXT, Packet, RewriteFailed};

/// What the stack is too small for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch {
    /// The TCP header as it is, and as it will be.
    pub old: [u8; BUFFER],
    pub new: [u8; BUFFER],
    /// Of the packet in an ICMP error: replies to it, then it as it was sent.
    pub tuple: Tuple,
}

/// The entry for packets that look like `tuple`, if its flow is spliced.
#[inline(always)]
pub fn entry(tuple: &Tuple) -> Option<&'static mut Forward> {
    let entry = FORWARDS.get_ptr_mut(tuple)?;
    // SAFETY: an entry of the map, which stays readable until the program ends even if userspace
    // deletes it meanwhile (RCU). Fields that change are of this direction alone.
    let entry = unsafe { &mut *entry };
    (entry.seen & SEEN_SWITCH != 0).then_some(entry)
}

/// Forwards a packet of a spliced flow.
#[inline(always)]
pub fn forward(ctx: &TcContext, packet: &Packet, entry: &mut Forward, tcp: Tcp) -> i32 {
    if tcp.flags & (SYN | ACK) == SYN && is_over(entry) {
        // A new connection on the tuple of one that is over: for the listener. What the entry has
        // noted stays for the daemon to read.
        entry.seen &= !SEEN_SWITCH;
        return NEXT;
    }
    let len = tcp.header_len;
    if len > MAX_HEADER as u32 {
        return DROP;
    }
    let payload = packet::payload(ctx, packet, len);
    if load(ctx, packet, len) {
        note(entry, tcp.flags, payload);
    } else {
        return DROP;
    }
    if entry.seen & SEEN_ENDED != 0 {
        return DROP;
    }
    if entry.guard != 0 && tcp.flags & ACK != 0 {
        guard::show(ctx, packet, entry, len | payload << 8);
    }
    if translate(ctx, packet, entry, len).is_err() {
        count(|c| &mut c.rewrite_failed);
        return DROP;
    }
    count(|c| &mut c.forwarded);
    redirect(entry.ifindex)
}

/// Reads the TCP header, `len` bytes of it, into [`SCRATCH`].
#[inline(never)]
fn load(ctx: &TcContext, packet: &Packet, len: u32) -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    let len = bounded(len);
    // SAFETY: `len` is at most the size of the buffer.
    let result = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            packet.l4,
            scratch.old.as_mut_ptr().cast(),
            len as u32,
        )
    };
    result == 0
}

/// The headers of this CPU's current packet.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the map's value, of this CPU alone; tc programs do not interrupt one another.
    SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// A header's length so put that the verifier sees both bounds: 20 to 60, a multiple of 4.
#[inline(always)]
pub fn bounded(len: u32) -> usize {
    let options = (len.wrapping_sub(20) & 0x3c) as usize;
    if options > MAX_HEADER - 20 {
        return 20;
    }
    20 + options
}

#[inline(never)]
fn translate(
    ctx: &TcContext,
    packet: &Packet,
    entry: &mut Forward,
    len: u32,
) -> Result<(), RewriteFailed> {
    let Some(scratch) = scratch() else {
        return Err(RewriteFailed);
    };
    learn_clock(entry, scratch, bounded(len));
    if entry.shift.known & TS_VAL_KNOWN == 0
        && segment::timestamp(&scratch.old, bounded(len)).is_some()
    {
        // The receiver would remember a clock that is not ours (RFC 7323, 5.3).
        return Err(RewriteFailed);
    }
    scratch.new = scratch.old;
    segment::translate(&mut scratch.new, bounded(len), &entry.shift);
    if entry.below_floor != 0
        && segment::has_acknowledgement(&scratch.new)
        && segment::raise_acknowledgement(&mut scratch.new, entry.floor, entry.shift.window_to)
    {
        entry.below_floor = 0;
    }
    if entry.seen & SEEN_ECN_ALONE != 0 {
        packet::clear_ecn(ctx, packet)?;
    }
    replace(ctx, packet, scratch, len)?;
    packet::rewrite(ctx, packet, &entry.rewrite)?;
    link_header(ctx, packet.l3)
}

/// Writes the new header over the old one, ports and addresses aside.
#[inline(always)]
pub fn replace(
    ctx: &TcContext,
    packet: &Packet,
    scratch: &mut Scratch,
    len: u32,
) -> Result<(), RewriteFailed> {
    let len = bounded(len);
    // The checksum is made right by difference, so it is not one that the header brings.
    [scratch.new[16], scratch.new[17]] = [scratch.old[16], scratch.old[17]];
    let diff = packet::csum_diff_bytes(&scratch.old, &scratch.new, len);
    // SAFETY: `len` bytes of a map's value.
    let stored = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb.cast(),
            packet.l4,
            scratch.new.as_ptr().cast(),
            len as u32,
            0,
        )
    };
    if stored != 0 {
        return Err(RewriteFailed);
    }
    packet::replace_checksum(ctx, packet, diff)
}

/// Out of the other interface, to whatever next hop routing has there.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: no parameters are passed.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// `bpf_redirect_neigh` takes packets with an Ethernet header only (it fills it in); one that came
/// without gets room for it.
#[inline(always)]
pub fn link_header(ctx: &TcContext, l3: u32) -> Result<(), RewriteFailed> {
    if l3 != 0 {
        return Ok(());
    }
    // SAFETY: the program's own context.
    let result = unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(RewriteFailed)
    }
}

/// Learns how far the sender's timestamp clock is from the one that the receiver knows us by, from the
/// first packet that has one and may be the sender's; and from the other direction what its echoes are.
#[inline(always)]
fn learn_clock(entry: &mut Forward, scratch: &Scratch, len: usize) {
    if entry.shift.known & (TS_VAL_KNOWN | TS_ECR_KNOWN) == TS_VAL_KNOWN | TS_ECR_KNOWN {
        return;
    }
    let Some(theirs) = segment::timestamp(&scratch.old, len) else {
        return;
    };
    if entry.shift.known & TS_VAL_KNOWN == 0 && is_near(entry, segment::sequence(&scratch.old)) {
        // SAFETY: no memory is involved.
        let now_ms = (unsafe { bpf_ktime_get_ns() } / 1_000_000) as u32;
        entry.shift.ts_val = now_ms.wrapping_add(entry.clock).wrapping_sub(theirs);
        entry.shift.known |= TS_VAL_KNOWN;
    }
    if entry.shift.known & TS_ECR_KNOWN == 0
        && let Some(opposite) = opposite(entry)
        && opposite.shift.known & TS_VAL_KNOWN != 0
    {
        entry.shift.ts_ecr = 0u32.wrapping_sub(opposite.shift.ts_val);
        entry.shift.known |= TS_ECR_KNOWN;
    }
}

/// Notes a packet in its entry; tells userspace when something has ended.
#[inline(never)]
fn note(entry: &mut Forward, flags: u8, payload: u32) {
    let Some(scratch) = scratch() else { return };
    let header = &scratch.old;
    entry.packets += 1;
    // SAFETY: no memory is involved.
    entry.last_seen_ns = unsafe { bpf_ktime_get_ns() };
    let end = segment::sequence(header).wrapping_add(payload);
    let new = end.wrapping_sub(entry.next_seq);
    let ended = entry.seen & SEEN_ENDED != 0;
    // Only payload tells where it ends: a FIN takes a number too, and may be seen late.
    if payload > 0 && new < 1 << 31 && flags & RST == 0 && !ended {
        entry.bytes += u64::from(new);
        entry.next_seq = end;
    }
    if flags & (ACK | RST) == ACK {
        let acked = segment::acknowledgement(header);
        if acked.wrapping_sub(entry.acked) < 1 << 31 {
            entry.acked = acked;
            entry.window = segment::window(header);
        }
    }
    let ends = if flags & RST != 0 {
        SEEN_RST
    } else if flags & FIN != 0 {
        SEEN_FIN
    } else {
        0
    };
    let first = ends != 0 && entry.seen & ends == 0 && is_plausible(entry, end);
    if first || (ended && flags & RST == 0) {
        entry.seen |= if first { ends } else { 0 };
        tell(entry.flow);
    }
}

/// Is a number near what the receiver has acknowledged? It may be of old data, sent once more.
#[inline(never)]
fn is_near(entry: &Forward, sequence: u32) -> bool {
    const NEAR: u32 = 16 << 20;
    opposite(entry).is_none_or(|opposite| {
        let beyond = sequence.wrapping_sub(acknowledged(opposite));
        beyond.wrapping_add(NEAR) <= 2 * NEAR
    })
}

/// The last acknowledgement number of `back`, in the count of those whose data it acknowledges.
#[inline(always)]
fn acknowledged(back: &Forward) -> u32 {
    back.acked.wrapping_add(back.shift.ack)
}

/// May the receiver take what ends at `end`, in the sender's count? It is forwarded either way; but who
/// only knows addresses and ports shall not make us take a flow for over (RFC 5961, 3).
#[inline(never)]
fn is_plausible(entry: &Forward, end: u32) -> bool {
    /// What guards have acknowledged and not yet handed over.
    const HANDOVER: u32 = 16 << 20;
    let Some(opposite) = opposite(entry) else {
        return true;
    };
    let window = u32::from(opposite.window) << (opposite.shift.window_from & 15);
    let slack = if entry.guard != 0 { HANDOVER } else { 0 };
    end.wrapping_sub(acknowledged(opposite)) <= window.wrapping_add(slack)
}

/// Makes an event. Where there is no room for it, the daemon's next look at the table must do.
#[inline(always)]
fn tell(flow: u64) {
    if let Some(mut event) = EVENTS.reserve(0) {
        event.write(flow);
        event.submit(0);
    }
}

/// The entry of the other direction.
#[inline(always)]
pub fn opposite(entry: &Forward) -> Option<&'static mut Forward> {
    // SAFETY: as in `entry`.
    FORWARDS
        .get_ptr_mut(entry.rewrite.reversed())
        .map(|opposite| unsafe { &mut *opposite })
}

/// Reset by either side, or ended by both.
#[inline(never)]
fn is_over(entry: &Forward) -> bool {
    const RESET: u16 = SEEN_RST | SEEN_ENDED;
    let other = opposite(entry).map_or(SEEN_FIN, |opposite| opposite.seen);
    (entry.seen | other) & RESET != 0 || entry.seen & other & SEEN_FIN != 0
}

/// An ICMP error about a packet that was forwarded: for whoever sent it ("fragmentation needed" above
/// all: the path MTU is discovered end to end).
#[inline(never)]
pub fn icmp_error(ctx: &TcContext, outer: &Packet, inner: &Packet, entry: &Forward) -> i32 {
    let Some(scratch) = scratch() else {
        return DROP;
    };
    // What was sent had this direction's opposite as its way in.
    scratch.tuple = entry.rewrite.reversed();
    let done = packet::rewrite_icmp_error(ctx, outer, inner, &scratch.tuple, entry.shift.ack)
        .and_then(|()| link_header(ctx, outer.l3));
    if done.is_err() {
        count(|c| &mut c.rewrite_failed);
        return DROP;
    }
    count(|c| &mut c.icmp_forwarded);
    redirect(entry.ifindex)
}
