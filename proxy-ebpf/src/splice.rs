//! The engine `sockmap`: what arrives on a source goes to its target's send queue, or to userspace.
//!
//! Glue only: the decisions are [`Splice::taken`] and [`Splice::admit`]. The verdict runs for each skb
//! of a source, one at a time (under its socket lock); the socket filter for each segment before that.
//!
//! There is no stream parser. With one, kernels from 6.14 on set the socket's read position back by
//! what the last batch passed, not by all that userspace has not read yet; once userspace reads it,
//! the position is beyond what was received, and TCP tells nobody of further data.

use aya_ebpf::Global;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::helpers::{
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_probe_read_kernel,
    bpf_sk_release, bpf_skc_to_tcp_sock,
};
use aya_ebpf::programs::SkBuffContext;
use proxy_common::splice::{KernelOffsets, Splice, UNREAD_LIMIT};

use crate::maps::{GATES, SPLICES, TARGETS};

/// Set by the loader.
#[unsafe(no_mangle)]
static KERNEL_OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets {
    tcp_copied_seq: 0,
    tcp_rcv_nxt: 0,
    tcp_bytes_acked: 0,
    skb_seq: 0,
    skb_truesize: 0,
});

/// Most bytes that `bpf_skb_adjust_room` takes away at once.
const STEP: u32 = 4095;
/// `BPF_ADJ_ROOM_NET`; the only mode that it knows for sk_skb.
const BPF_ADJ_ROOM_NET: u32 = 0;

/// Redirects an skb if it may be, hands it to userspace if not.
#[inline(always)]
pub fn verdict(ctx: &SkBuffContext) -> u32 {
    let whole = ctx.len();
    if whole == 0 {
        // A FIN without data. Redirected, it would end the target's stream with EPIPE.
        return SK_DROP;
    }
    let Some(splice) = splice_of(ctx) else {
        return SK_PASS;
    };
    let sequence = sequence(ctx);
    let taken = taken(ctx, splice, whole);
    if taken > 0 && !trim(ctx, taken) {
        return SK_DROP;
    }
    let len = whole - taken;
    splice.trimmed += taken as u64;
    splice.next_sequence = sequence.wrapping_add(whole);
    splice.sequence_known = 1;
    // SAFETY: no arguments.
    splice.last_seen_ns = unsafe { bpf_ktime_get_ns() };

    let consumed = match GATES.get_ptr(splice.gate) {
        // SAFETY: a value of an array, which lives as long as the map; userspace changes it, hence
        // volatile.
        Some(gate) => unsafe { (&raw const (*gate).consumed).read_volatile() },
        None => return SK_DROP,
    };
    let mut target = splice.target;
    let Some(acked) = acknowledged(&target) else {
        // The target is gone; userspace sees its end and closes the flow.
        splice.passed += len as u64;
        return SK_PASS;
    };
    if splice.admit(len, truesize(ctx), consumed, acked) {
        TARGETS.redirect_skb(ctx, &mut target, 0) as u32
    } else {
        SK_PASS
    }
}

/// Takes a segment, or refuses it where its receiver has not read [`UNREAD_LIMIT`] bytes: its sender
/// will send it again.
#[inline(always)]
pub fn filter(ctx: &SkBuffContext) -> i64 {
    const ALL: i64 = u32::MAX as i64;
    // The data offset: four bits, in words.
    let Ok(offset) = ctx.load::<u8>(12) else {
        return ALL;
    };
    if ctx.len() <= u32::from(offset >> 4) * 4 {
        // Acknowledgements and window updates move the other direction.
        return ALL;
    }
    let offsets = KERNEL_OFFSETS.load();
    let received: u32 = of_source(ctx, offsets.tcp_rcv_nxt);
    let unread = received.wrapping_sub(of_source(ctx, offsets.tcp_copied_seq));
    // A difference in the upper half is negative: nothing is unread.
    if unread > UNREAD_LIMIT && unread < 1 << 31 {
        0
    } else {
        ALL
    }
}

/// Removes the first bytes of an skb.
#[inline(always)]
fn trim(ctx: &SkBuffContext, bytes: u32) -> bool {
    // The helper takes less than 4096 at a time, and an skb holds less than 20 times that.
    let mut left = bytes;
    for _ in 0..20 {
        if left == 0 {
            break;
        }
        let step = if left > STEP { STEP } else { left };
        if ctx
            .skb
            .adjust_room(-(step as i32), BPF_ADJ_ROOM_NET, 0)
            .is_err()
        {
            return false;
        }
        left -= step;
    }
    left == 0
}

/// The entry of the skb's socket.
#[inline(always)]
fn splice_of<'a>(ctx: &SkBuffContext) -> Option<&'a mut Splice> {
    // SAFETY: the context is an skb with a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    // SAFETY: userspace removes an entry only after its socket has left the map of sources, and the
    // programs run for one skb of a socket at a time: nobody else has this entry.
    SPLICES
        .get_ptr_mut(cookie)
        .map(|splice| unsafe { &mut *splice })
}

/// Bytes at the start of this skb that were taken before.
#[inline(always)]
fn taken(ctx: &SkBuffContext, splice: &Splice, len: u32) -> u32 {
    let next = if splice.sequence_known == 1 {
        splice.next_sequence
    } else {
        copied(ctx)
    };
    Splice::taken(next, sequence(ctx), len)
}

/// Sequence number of the skb's first byte.
#[inline(always)]
fn sequence(ctx: &SkBuffContext) -> u32 {
    read(ctx.skb.skb.cast(), KERNEL_OFFSETS.load().skb_seq)
}

/// Memory that the skb holds.
#[inline(always)]
fn truesize(ctx: &SkBuffContext) -> u32 {
    read(ctx.skb.skb.cast(), KERNEL_OFFSETS.load().skb_truesize)
}

/// How far the source was read; true until the first skb is passed or redirected, later the kernel
/// adjusts it after a batch.
#[inline(always)]
fn copied(ctx: &SkBuffContext) -> u32 {
    of_source(ctx, KERNEL_OFFSETS.load().tcp_copied_seq)
}

/// A field of the source's `tcp_sock`.
#[inline(always)]
fn of_source<T: Default>(ctx: &SkBuffContext, offset: u32) -> T {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return T::default();
    }
    // SAFETY: a socket that is not null; the helper checks its kind.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    if tcp.is_null() {
        return T::default();
    }
    read(tcp.cast(), offset)
}

/// Position up to which the target's peer has acknowledged; `None` if the target is gone.
#[inline(always)]
fn acknowledged(target: &u64) -> Option<u64> {
    // SAFETY: a map and a key of its type; the socket returned is released below.
    let sk = unsafe {
        bpf_map_lookup_elem(
            (&raw const TARGETS).cast_mut().cast(),
            (&raw const *target).cast(),
        )
    };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a socket that is not null; the helper checks its kind.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk) };
    let acked = if tcp.is_null() {
        None
    } else {
        Some(read(tcp.cast(), KERNEL_OFFSETS.load().tcp_bytes_acked))
    };
    // SAFETY: the reference taken above.
    unsafe { bpf_sk_release(sk) };
    acked
}

/// Reads a field of a kernel structure; zeroes where it cannot be read.
#[inline(always)]
fn read<T: Default>(structure: *const u8, offset: u32) -> T {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(structure.add(offset as usize).cast::<T>()) }.unwrap_or_default()
}
