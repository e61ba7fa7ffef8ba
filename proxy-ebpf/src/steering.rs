//! Steering: the client's address on the wire, and the replies brought back.
//!
//! Egress turns proxy -> backend into client -> backend; ingress turns backend -> client into
//! backend -> proxy, before routing and netfilter see the packet, so that they only ever see
//! proxy <-> backend. Packets of no flow pass untouched.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::{debug, warn};
use proxy_common::flow::{
    Connecting, SEEN_ANSWER, SEEN_FIN, SEEN_RST, SEEN_SYN, STEER_IN, STEER_OUT, Translation, Tuple,
    wire_clock,
};
use proxy_common::packet::{ACK, FIN, RST, SYN, TCP, Tcp, is_icmp_error};

use crate::maps::{CONNECTING, FLOWS, count};
use crate::packet::{self, DROP, NEXT, Packet, RewriteFailed};
use crate::{forward, guard, syn};

/// See [`wire_clock`]. Set by the loader.
#[unsafe(no_mangle)]
static TIMESTAMP_BASE: Global<u32> = Global::new(0);

/// Packets that leave: those of our upstream sockets get the client's address, those of guards are
/// looked at. What did not start here has nothing to do with either.
#[inline(always)]
pub fn egress(ctx: &TcContext, l3: u32) -> i32 {
    let mut packet = Packet::EMPTY;
    // SAFETY: a field of the program's own context.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } != 0 {
        return NEXT;
    }
    let Some(ipv6) = packet::is_ipv6(ctx) else {
        return NEXT;
    };
    if !packet::read(ctx, l3, ipv6, &mut packet) || packet.protocol != TCP {
        return NEXT;
    }
    let Some(tcp) = packet::tcp(ctx, &packet) else {
        return NEXT;
    };
    if tcp.flags & (SYN | ACK) == SYN {
        match open(ctx, &packet, tcp.header_len) {
            Opened::Steered => {}
            Opened::NotOurs => return NEXT,
            Opened::Refused => return DROP,
        }
    }
    let Some(entry) = FLOWS.get_ptr_mut(packet.tuple) else {
        return guard::egress(ctx, &packet, &packet.tuple, guard::packed(tcp)).unwrap_or(NEXT);
    };
    // SAFETY: an entry of the map, which stays readable until the program ends even if userspace
    // deletes it meanwhile (RCU). Fields that change are counters and flags of this direction.
    let entry = unsafe { &mut *entry };
    if entry.action != STEER_OUT {
        return NEXT;
    }
    if let Some(verdict) = guard::egress(ctx, &packet, &entry.rewrite, guard::packed(tcp)) {
        return verdict;
    }
    record(ctx, &packet, tcp, entry);
    let at = match entry.timestamp {
        0 => 0,
        _ => syn::own_timestamps(ctx, packet.l4, tcp.header_len),
    };
    let done = translate(ctx, &packet, at, entry);
    count(|c| match done {
        Ok(()) => &mut c.steered_out,
        Err(RewriteFailed) => &mut c.rewrite_failed,
    });
    done.map_or(DROP, |()| NEXT)
}

/// Packets that arrive: those of a spliced flow are forwarded, other replies to a client of ours go to
/// our socket.
#[inline(always)]
pub fn ingress(ctx: &TcContext, l3: u32) -> i32 {
    let mut packet = Packet::EMPTY;
    // SAFETY: a field of the program's own context.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return NEXT; // It will come by again, on the VLAN's own interface and without the tag.
    }
    let Some(ipv6) = packet::is_ipv6(ctx) else {
        return NEXT;
    };
    if !packet::read(ctx, l3, ipv6, &mut packet) {
        return NEXT;
    }
    if packet.protocol != TCP {
        return icmp_error(ctx, &packet);
    }
    let Some(tcp) = packet::tcp(ctx, &packet) else {
        return NEXT;
    };
    if let Some(entry) = forward::entry(&packet.tuple)
        && !guard::is_shown(ctx)
    {
        return forward::forward(ctx, &packet, entry, tcp);
    }
    let Some(entry) = reply_entry(&packet.tuple) else {
        return NEXT;
    };
    if entry.seen & SEEN_ANSWER == 0 {
        if tcp.flags & (SYN | ACK) != SYN | ACK && tcp.flags & RST == 0 {
            return NEXT;
        }
        entry.seen |= SEEN_ANSWER;
    }
    record(ctx, &packet, tcp, entry);
    // Of what comes back it is the echo that is ours.
    let at = match entry.timestamp {
        0 => 0,
        _ => match packet::timestamps(ctx, packet.l4, tcp.header_len) {
            0 => 0,
            value => value + 4,
        },
    };
    let done = translate(ctx, &packet, at, entry);
    count(|c| match done {
        Ok(()) => &mut c.steered_in,
        Err(RewriteFailed) => &mut c.rewrite_failed,
    });
    done.map_or(DROP, |()| NEXT)
}

/// An ICMP error about a packet that we sent as the client ("fragmentation needed" above all: path
/// MTU discovery of our socket depends on it), or that we forwarded.
#[inline(never)]
fn icmp_error(ctx: &TcContext, outer: &Packet) -> i32 {
    const ICMP_HEADER: u32 = 8;
    let Ok(icmp_type) = ctx.load::<u8>(outer.l4 as usize) else {
        return NEXT;
    };
    if !is_icmp_error(outer.protocol, icmp_type) {
        return NEXT;
    }
    let mut inner = Packet::EMPTY;
    let read = packet::read(ctx, outer.l4 + ICMP_HEADER, outer.ipv6, &mut inner);
    if !read || inner.protocol != TCP {
        return NEXT;
    }
    let Some(scratch) = forward::scratch() else {
        return NEXT;
    };
    scratch.tuple = inner.tuple.reversed();
    if let Some(entry) = forward::entry(&scratch.tuple)
        && !guard::has_sent(ctx, &inner, &scratch.tuple, entry)
    {
        return forward::icmp_error(ctx, outer, &inner, entry);
    }
    let Some(entry) = reply_entry(&scratch.tuple) else {
        return NEXT;
    };
    scratch.tuple = entry.rewrite.reversed();
    let done = packet::rewrite_icmp_error(ctx, outer, &inner, &scratch.tuple, 0);
    count(|c| match done {
        Ok(()) => &mut c.icmp_in,
        Err(RewriteFailed) => &mut c.rewrite_failed,
    });
    done.map_or(DROP, |()| NEXT)
}

/// The entry for replies that look like `tuple`, once its SYN has left.
#[inline(always)]
fn reply_entry(tuple: &Tuple) -> Option<&'static mut Translation> {
    let entry = FLOWS.get_ptr_mut(tuple)?;
    // SAFETY: as in `egress`.
    let entry = unsafe { &mut *entry };
    (entry.action == STEER_IN && entry.seen & SEEN_SYN != 0).then_some(entry)
}

/// Gives a packet the addresses of its entry, and the timestamp at `at` (0: none) the flow's clock.
#[inline(always)]
fn translate(
    ctx: &TcContext,
    packet: &Packet,
    at: u32,
    entry: &Translation,
) -> Result<(), RewriteFailed> {
    if at != 0 {
        packet::add_to_word(ctx, packet.l4, at, entry.timestamp)?;
    }
    packet::rewrite(ctx, packet, &entry.rewrite)
}

/// Notes a packet in its entry.
#[inline(always)]
fn record(ctx: &TcContext, packet: &Packet, tcp: Tcp, entry: &mut Translation) {
    let payload = packet::payload(ctx, packet, tcp.header_len);
    // Plain additions (the BPF target of Rust has no atomic ones): packets of one direction of a
    // flow pass one after the other, under the socket's lock or in one receive queue.
    entry.packets += 1;
    entry.bytes += u64::from(payload);
    // SAFETY: no memory is involved.
    entry.last_seen_ns = unsafe { bpf_ktime_get_ns() };
    if tcp.flags & FIN != 0 {
        entry.seen |= SEEN_FIN;
    }
    if tcp.flags & RST != 0 {
        entry.seen |= SEEN_RST;
    }
}

/// What became of a SYN.
enum Opened {
    /// Its flow has both entries.
    Steered,
    /// It is of a socket that limpid did not announce.
    NotOurs,
    /// It must not leave: it would show the proxy's address.
    Refused,
}

/// Completes the flow of an upstream socket when its SYN leaves.
#[inline(never)]
fn open(ctx: &TcContext, packet: &Packet, header_len: u32) -> Opened {
    let tuple = &packet.tuple;
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let mut again = false;
    if let Some(entry) = FLOWS.get_ptr_mut(tuple) {
        // SAFETY: as in `egress`.
        again = unsafe { (*entry).flow } == cookie;
        if !again {
            // A lingering entry of an earlier socket with this address and port.
            let _ = FLOWS.remove(tuple);
        }
    }
    // SAFETY: the value is copied out at once; userspace writes it once, before `connect`.
    let connecting = unsafe { CONNECTING.get(cookie) }.copied();
    let Some(Connecting { reply, mss, offer }) = connecting else {
        return Opened::NotOurs;
    };
    if syn::adapt(ctx, packet.l4, mss, offer).is_err() {
        return Opened::Refused;
    }
    if again {
        return Opened::Steered; // A retransmission.
    }
    let reserved = reply;
    let Some(reply) = FLOWS.get_ptr_mut(reserved) else {
        return Opened::Refused; // Userspace has given up on it.
    };
    if reserved.src != tuple.dst || reserved.src_port != tuple.dst_port {
        count(|c| &mut c.upstream_rewritten);
        warn!(
            ctx,
            "flow {}: this host rewrites the upstream's address, SYN dropped", cookie
        );
        return Opened::Refused;
    }
    let mut out = Translation::new(cookie, STEER_OUT, reserved.reversed());
    out.seen = SEEN_SYN;
    out.timestamp = timestamp_shift(ctx, packet, header_len);
    if FLOWS.insert(tuple, out, u64::from(BPF_ANY)).is_err() {
        count(|c| &mut c.table_full);
        warn!(ctx, "flow {}: flow table full, SYN dropped", cookie);
        return Opened::Refused;
    }
    // SAFETY: as in `egress`. `rewrite` is read by ingress only once SEEN_SYN is set, and a reply
    // cannot come before this SYN has left.
    let reply = unsafe { &mut *reply };
    reply.rewrite = tuple.reversed();
    reply.timestamp = 0u32.wrapping_sub(out.timestamp);
    reply.seen |= SEEN_SYN;
    debug!(ctx, "flow {}: steered", cookie);
    Opened::Steered
}

/// What makes the timestamps of the connection that this SYN opens those of [`wire_clock`].
#[inline(always)]
fn timestamp_shift(ctx: &TcContext, packet: &Packet, header_len: u32) -> u32 {
    let at = syn::own_timestamps(ctx, packet.l4, header_len);
    if at == 0 {
        return 0;
    }
    let Some(ours) = packet::word(ctx, at) else {
        return 0;
    };
    // SAFETY: no memory is involved.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    wire_clock(now_ns, TIMESTAMP_BASE.load()).wrapping_sub(ours)
}
