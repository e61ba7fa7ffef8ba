//! The sockets of a flow that is spliced past them, while they still have something to do: hand over
//! what had reached them, and see acknowledged what they have sent.
//!
//! They must see acknowledgements and send data, and nothing else of them may show: the two ends talk
//! to each other now.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_get_socket_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_tcp_sock,
};
use aya_ebpf::programs::TcContext;
use proxy_common::flow::{Forward, SEEN_ENDED, STEER_IN, Tuple};
use proxy_common::packet::{FIN, RST, Tcp};
use proxy_common::segment;

use crate::forward::{self, bounded, scratch};
use crate::maps::FLOWS;
use crate::packet::{self, DROP, Packet};

/// `tc_index` of a packet that is shown to a guard, so that it is not forwarded once more.
const SHOWN: u32 = 0x6c70;

/// Is this packet one that [`show`] made? The mark stays on it: another instance's program may come
/// before this one.
#[inline(always)]
pub fn is_shown(ctx: &TcContext) -> bool {
    // SAFETY: a field of the program's own context.
    unsafe { (*ctx.skb.skb).tc_index == SHOWN }
}

/// Shows the guard a packet, whose header is in `SCRATCH`, as one that it has seen before: the
/// acknowledgement counts, the payload does not (RFC 9293, 3.10.7.4: a segment left of the window is
/// acknowledged and dropped). `lengths`: of the header, and << 8 of the payload.
#[inline(never)]
pub fn show(ctx: &TcContext, packet: &Packet, entry: &mut Forward, lengths: u32) {
    let mut edges = Edges::default();
    if !edges_of(ctx, &packet.tuple, packet.ipv6, &mut edges, entry.flow) {
        entry.guard = 0;
        return;
    }
    let Some(scratch) = scratch() else { return };
    let (len, payload) = (lengths & 0xff, lengths >> 8);
    scratch.new = scratch.old;
    segment::set_sequence(&mut scratch.new, edges.rcv_nxt.wrapping_sub(payload));
    segment::limit_acknowledgement(&mut scratch.new, edges.snd_nxt);
    segment::bare_flags(&mut scratch.new);
    // What has gone past the guard may be acknowledged out of order while what it has to send is still missing. To
    // conntrack a SACK of data that it has not seen is INVALID (`tcp_in_window()`), and many firewalls drop that.
    segment::only_timestamps(&mut scratch.new, bounded(len));
    if forward::replace(ctx, packet, scratch, len).is_err() {
        return;
    }
    // SAFETY: the program's own context.
    unsafe {
        (*ctx.skb.skb).tc_index = SHOWN;
        let _ = bpf_clone_redirect(
            ctx.skb.skb,
            (*ctx.skb.skb).ifindex,
            u64::from(BPF_F_INGRESS),
        );
        (*ctx.skb.skb).tc_index = 0;
    }
    // And back to what it was.
    core::mem::swap(&mut scratch.old, &mut scratch.new);
    let _ = forward::replace(ctx, packet, scratch, len);
    core::mem::swap(&mut scratch.old, &mut scratch.new);
}

/// Where a guard's two streams are.
#[derive(Default)]
struct Edges {
    rcv_nxt: u32,
    snd_nxt: u32,
}

/// Did the guard send this packet, which an ICMP error has brought back? `reply` and `entry` are those of
/// packets from whom it was sent to.
#[inline(never)]
pub fn has_sent(ctx: &TcContext, sent: &Packet, reply: &Tuple, entry: &Forward) -> bool {
    let mut edges = Edges::default();
    if entry.guard == 0 || !edges_of(ctx, reply, sent.ipv6, &mut edges, entry.flow) {
        return false;
    }
    let Some(sequence) = packet::word(ctx, sent.l4 + 4) else {
        return false;
    };
    sequence.wrapping_sub(edges.snd_nxt) >= 1 << 31
}

/// Finds the guard that a packet of `tuple` would have reached; false where it is gone.
#[inline(never)]
fn edges_of(ctx: &TcContext, tuple: &Tuple, ipv6: bool, edges: &mut Edges, flow: u64) -> bool {
    let mut to = *tuple;
    if let Some(steered) = FLOWS.get_ptr(tuple) {
        // SAFETY: as in `steering::egress`; the tuple is written once, when the SYN leaves.
        let steered = unsafe { &*steered };
        if steered.action == STEER_IN {
            to = steered.rewrite;
            // The socket's port may have got another owner since it was closed.
            let owner = FLOWS.get_ptr(to.reversed());
            // SAFETY: as above.
            if !owner.is_some_and(|owner| unsafe { (*owner).flow == flow }) {
                return false;
            }
        }
    }
    look_up(ctx, ipv6, &to, edges)
}

#[inline(never)]
fn look_up(ctx: &TcContext, ipv6: bool, tuple: &Tuple, edges: &mut Edges) -> bool {
    /// As in `struct bpf_sock_tuple`: `saddr`, `daddr`, `sport`, `dport`, in network byte order.
    #[repr(C)]
    struct V4([u8; 4], [u8; 4], u16, u16);
    #[repr(C)]
    struct V6([u8; 16], [u8; 16], u16, u16);
    /// This network namespace, `BPF_F_CURRENT_NETNS`.
    const HERE: u64 = u64::MAX;
    /// States of `net/tcp_states.h` that have positions: all but LISTEN, TIME-WAIT and those before
    /// the connection is made.
    const POSITIONED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
    let (sport, dport) = (tuple.src_port.to_be(), tuple.dst_port.to_be());
    // SAFETY: the program's own context; a tuple of the size given, which the helper only reads; the
    // socket is released below.
    let sk = unsafe {
        if ipv6 {
            let mut key = V6(tuple.src.octets, tuple.dst.octets, sport, dport);
            let key: *mut bpf_sock_tuple = (&raw mut key).cast();
            bpf_sk_lookup_tcp(ctx.as_ptr(), key, size_of::<V6>() as u32, HERE, 0)
        } else {
            let mut key = V4(tuple.src.ipv4(), tuple.dst.ipv4(), sport, dport);
            let key: *mut bpf_sock_tuple = (&raw mut key).cast();
            bpf_sk_lookup_tcp(ctx.as_ptr(), key, size_of::<V4>() as u32, HERE, 0)
        }
    };
    if sk.is_null() {
        return false;
    }
    let mut found = false;
    // SAFETY: a socket that is not null; the helper returns null for one that is no full socket.
    unsafe {
        let tcp = bpf_tcp_sock(sk);
        if !tcp.is_null() && (*sk).state < 32 && POSITIONED & 1 << (*sk).state != 0 {
            edges.rcv_nxt = (*tcp).rcv_nxt;
            edges.snd_nxt = (*tcp).snd_nxt;
            found = true;
        }
        bpf_sk_release(sk.cast());
    }
    found
}

/// What this host's own sockets send on the tuple of a spliced flow, at egress; `tuple` is as on the
/// wire. `None`: it may leave.
///
/// A guard's data leaves, with the acknowledgement that its receiver has had last: with an old one TCP
/// takes it for an attack once the other direction has gone on (RFC 5961, 5). A bare acknowledgement does
/// not, for beside newer ones it would look like a duplicate. Nor does a RST, the kernel's answer to a
/// packet that came when the guard had gone; but for one of the guard itself, which died (its daemon was
/// killed) before its work was done.
#[inline(never)]
pub fn egress(ctx: &TcContext, packet: &Packet, tuple: &Tuple, tcp: u32) -> Option<i32> {
    let flags = tcp as u8;
    let entry = forward::entry(&tuple.reversed())?;
    if flags & RST != 0 {
        if entry.seen & SEEN_ENDED != 0 {
            return None; // The daemon's.
        }
        // SAFETY: the program's own context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        return (entry.guard == 0 || cookie != entry.guard).then_some(DROP);
    }
    let payload = packet::payload(ctx, packet, tcp >> 8);
    if payload == 0 && flags & FIN == 0 && !is_probe(ctx, packet, entry) {
        return Some(DROP);
    }
    if let Some(opposite) = forward::opposite(entry)
        && opposite.packets > 0
    {
        let latest = segment::acknowledging(opposite.acked, opposite.window, &opposite.shift);
        let own = packet::word(ctx, packet.l4 + 8).unwrap_or(latest.0);
        let newer = latest.0.wrapping_sub(own);
        if newer != 0 && newer < 1 << 31 && packet::acknowledge(ctx, packet, latest).is_err() {
            return Some(DROP);
        }
    }
    None
}

/// Does a guard ask whether the window is still closed (RFC 9293, 3.8.6.1)? Linux does so with a number
/// that is acknowledged already (`tcp_xmit_probe_skb`), which no other bare acknowledgement has.
#[inline(always)]
fn is_probe(ctx: &TcContext, packet: &Packet, entry: &Forward) -> bool {
    packet::word(ctx, packet.l4 + 4)
        .is_some_and(|sequence| sequence.wrapping_sub(entry.acked) >= 1 << 31)
}

/// What [`egress`] wants to know of a TCP header, in one register.
#[inline(always)]
pub const fn packed(tcp: Tcp) -> u32 {
    tcp.header_len << 8 | tcp.flags as u32
}
