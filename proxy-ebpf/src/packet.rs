//! Reading and rewriting the packet at hand. What the bytes mean is in `proxy_common::packet`.
//!
//! The larger functions are BPF subprograms (`inline(never)`): each has a stack frame of its own,
//! and the 512 bytes that BPF has in all are enough.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INVALIDATE_HASH, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update};
use aya_ebpf::programs::TcContext;
use proxy_common::flow::{Address, Tuple};
use proxy_common::packet::{self as headers, IPV6, Ip};

/// On to the next program of the interface (TCX: `TCX_NEXT`; clsact: the next filter).
pub const NEXT: i32 = TC_ACT_UNSPEC;
/// The packet goes nowhere.
pub const DROP: i32 = TC_ACT_SHOT;

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

// Offsets of fields in their headers (RFC 791, 8200, 9293, 792 with 4443).
const IPV4_CHECKSUM: u32 = 10;
const IPV4_SRC: u32 = 12;
const IPV4_DST: u32 = 16;
const IPV6_SRC: u32 = 8;
const IPV6_DST: u32 = 24;
const TCP_CHECKSUM: u32 = 16;
const ICMP_CHECKSUM: u32 = 2;

/// A packet of TCP or ICMP: what its headers say, and where they stand in bytes from its start.
pub struct Packet {
    /// Addresses; and ports, if it is TCP.
    pub tuple: Tuple,
    pub l3: u32,
    pub l4: u32,
    pub protocol: u8,
    pub ipv6: bool,
}

impl Packet {
    pub const EMPTY: Self = Self {
        tuple: Tuple {
            src: Address::UNSPECIFIED,
            dst: Address::UNSPECIFIED,
            src_port: 0,
            dst_port: 0,
        },
        l3: 0,
        l4: 0,
        protocol: 0,
        ipv6: false,
    };
}

/// The refusal of the kernel to change a packet: it may be half changed and must not go on.
pub struct RewriteFailed;

/// Is the packet IPv6? `None`: it is not IP at all.
#[inline(always)]
pub fn is_ipv6(ctx: &TcContext) -> Option<bool> {
    match ctx.skb.protocol() {
        ETH_P_IP => Some(false),
        ETH_P_IPV6 => Some(true),
        _ => None,
    }
}

/// Reads the headers from `l3` on: the packet's own, or those inside an ICMP error. False: it is
/// of no interest, and `packet` undefined.
#[inline(never)]
pub fn read(ctx: &TcContext, l3: u32, ipv6: bool, packet: &mut Packet) -> bool {
    read_into(ctx, l3, ipv6, packet).is_some()
}

#[inline(always)]
fn read_into(ctx: &TcContext, l3: u32, ipv6: bool, packet: &mut Packet) -> Option<()> {
    let ip: Ip = if ipv6 {
        headers::ipv6(&ctx.load(l3 as usize).ok()?)?
    } else {
        headers::ipv4(&ctx.load(l3 as usize).ok()?)?
    };
    packet.tuple.src = ip.src;
    packet.tuple.dst = ip.dst;
    packet.l3 = l3;
    packet.l4 = l3 + ip.header_len;
    packet.protocol = ip.protocol;
    packet.ipv6 = ipv6;
    if ip.protocol == headers::TCP {
        let ports = headers::ports(ctx.load(packet.l4 as usize).ok()?);
        (packet.tuple.src_port, packet.tuple.dst_port) = ports;
    }
    Some(())
}

/// Payload of a TCP packet whose header has `header_len` bytes: by what the IP header says, since a short
/// frame is padded (IEEE 802.3, 4.2.3.3), or all that there is, where the packet is too long to say.
#[inline(never)]
pub fn payload(ctx: &TcContext, packet: &Packet, header_len: u32) -> u32 {
    const IPV4_LENGTH: u32 = 2;
    const IPV6_LENGTH: u32 = 4;
    let headers = packet.l4 + header_len;
    let present = ctx.len().saturating_sub(headers);
    let (at, from) = if packet.ipv6 {
        (IPV6_LENGTH, packet.l3 + IPV6)
    } else {
        (IPV4_LENGTH, packet.l3)
    };
    let Ok(length) = ctx.load::<[u8; 2]>((packet.l3 + at) as usize) else {
        return present;
    };
    let length = u32::from(u16::from_be_bytes(length));
    let told = (from + length).saturating_sub(headers);
    if length == 0 || told > present {
        present
    } else {
        told
    }
}

/// Reads the rest of a TCP header.
#[inline(always)]
pub fn tcp(ctx: &TcContext, packet: &Packet) -> Option<headers::Tcp> {
    headers::tcp(ctx.load((packet.l4 + 12) as usize).ok()?)
}

/// Where the timestamps option of a TCP header has its two words, from the packet's start; 0: it has
/// none.
#[inline(never)]
pub fn timestamps(ctx: &TcContext, l4: u32, header_len: u32) -> u32 {
    /// Two NOPs, kind 8, length 10: where every stack puts it, once connected (RFC 7323, appendix A).
    const ALIGNED: [u8; 4] = [NOP, NOP, TIMESTAMPS, 10];
    const NOP: u8 = 1;
    const TIMESTAMPS: u8 = 8;
    const END: u8 = 0;
    if header_len >= 32 && ctx.load::<[u8; 4]>((l4 + 20) as usize) == Ok(ALIGNED) {
        return l4 + 24;
    }
    let mut at = 20;
    for _ in 0..16 {
        if at + 10 > header_len {
            return 0;
        }
        let Ok([kind, len]) = ctx.load::<[u8; 2]>((l4 + at) as usize) else {
            return 0;
        };
        at += match (kind, len) {
            (NOP, _) => 1,
            (TIMESTAMPS, 10) => return l4 + at + 2,
            (END, _) | (_, 0 | 1) => return 0,
            (_, len) => u32::from(len),
        };
    }
    0
}

/// The big-endian word at `at`.
#[inline(always)]
pub fn word(ctx: &TcContext, at: u32) -> Option<u32> {
    ctx.load(at as usize).ok().map(u32::from_be_bytes)
}

/// Adds to the big-endian word at `at` of a TCP header, unless it is 0.
#[inline(never)]
pub fn add_to_word(ctx: &TcContext, l4: u32, at: u32, add: u32) -> Result<(), RewriteFailed> {
    let old = word(ctx, at).ok_or(RewriteFailed)?;
    if old == 0 {
        return Ok(());
    }
    let (old, new) = (old.to_be(), old.wrapping_add(add).to_be());
    // The sum is over pairs of bytes: a word that begins in the middle of one counts turned by a byte.
    let turn = |word: u32| {
        if (at - l4) & 1 == 0 {
            word
        } else {
            word.rotate_right(8)
        }
    };
    replace_l4_word(ctx, l4 + TCP_CHECKSUM, turn(old), turn(new))?;
    store(ctx, at, &new)
}

/// Gives a TCP packet other addresses and ports, checksums included.
///
/// Right with and without checksum offload: the pseudo header's part goes in with
/// `BPF_F_PSEUDO_HDR`, which under `CHECKSUM_PARTIAL` is the only part that the field holds; ports
/// go in without it (net/core/utils.c, `inet_proto_csum_replace_by_diff`).
#[inline(never)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, new: &Tuple) -> Result<(), RewriteFailed> {
    let old = &packet.tuple;
    let checksum = packet.l4 + TCP_CHECKSUM;
    let diff = if packet.ipv6 {
        csum_diff(addresses(old), addresses(new))
    } else {
        csum_diff(
            &[old.src.ipv4(), old.dst.ipv4()],
            &[new.src.ipv4(), new.dst.ipv4()],
        )
    };
    replace_l4_pseudo(ctx, packet.ipv6, checksum, diff)?;
    if ports(old) != ports(new) {
        replace_l4_word(ctx, checksum, ports(old), ports(new))?;
        store(ctx, packet.l4, &ports(new))?;
    }
    if packet.ipv6 {
        return store(ctx, packet.l3 + IPV6_SRC, addresses(new));
    }
    replace_l3(ctx, packet.l3, diff)?;
    store(ctx, packet.l3 + IPV4_SRC, &[new.src.ipv4(), new.dst.ipv4()])
}

/// Brings an ICMP error about a TCP packet that we sent in another's name, or changed, back to whoever
/// sent it: the inner packet becomes one of the tuple `sent`, its sequence number moves by `seq`, and
/// the error goes to where that came from.
///
/// The inner TCP checksum is left: RFC 792 promises 8 bytes of the header, and nobody verifies it.
#[inline(never)]
pub fn rewrite_icmp_error(
    ctx: &TcContext,
    outer: &Packet,
    inner: &Packet,
    sent: &Tuple,
    seq: u32,
) -> Result<(), RewriteFailed> {
    let checksum = outer.l4 + ICMP_CHECKSUM;
    let received = &inner.tuple;
    let to_diff = if outer.ipv6 {
        csum_diff(&outer.tuple.dst, &sent.src)
    } else {
        csum_diff(&outer.tuple.dst.ipv4(), &sent.src.ipv4())
    };
    if outer.ipv6 {
        // RFC 4443, 2.3: the checksum covers a pseudo header and the message, so it sees the
        // outer destination and the inner addresses.
        replace_l4_pseudo(ctx, true, checksum, to_diff)?;
        let diff = csum_diff(addresses(received), addresses(sent));
        replace_l4(ctx, checksum, diff, 0)?;
    }
    // RFC 792: no pseudo header, and a change of the inner IPv4 addresses is undone by that of the
    // inner header's checksum. Only the ports and the sequence number remain.
    replace_l4_word(ctx, checksum, ports(received), ports(sent))?;
    store(ctx, inner.l4, &ports(sent))?;
    if seq != 0 {
        let old = word(ctx, inner.l4 + 4).ok_or(RewriteFailed)?;
        let (old, new) = (old.to_be(), old.wrapping_add(seq).to_be());
        replace_l4_word(ctx, checksum, old, new)?;
        store(ctx, inner.l4 + 4, &new)?;
    }
    if outer.ipv6 {
        store(ctx, inner.l3 + IPV6_SRC, addresses(sent))?;
        return store(ctx, outer.l3 + IPV6_DST, &sent.src);
    }
    let (old, new) = (
        [received.src.ipv4(), received.dst.ipv4()],
        [sent.src.ipv4(), sent.dst.ipv4()],
    );
    replace_l3(ctx, inner.l3, csum_diff(&old, &new))?;
    store(ctx, inner.l3 + IPV4_SRC, &new)?;
    replace_l3(ctx, outer.l3, to_diff)?;
    store(ctx, outer.l3 + IPV4_DST, &sent.src.ipv4())
}

/// Makes a packet one of a connection without ECN (RFC 3168, 5). Fails where a router has marked it:
/// then the receiver is to see a loss, since it would not tell of a mark (RFC 6040, 4.2).
#[inline(never)]
pub fn clear_ecn(ctx: &TcContext, packet: &Packet) -> Result<(), RewriteFailed> {
    // The traffic class is the second byte of an IPv4 header, and bits 4 to 11 of an IPv6 header.
    let marked = if packet.ipv6 {
        0x0030_0000
    } else {
        0x0003_0000
    };
    let old = word(ctx, packet.l3).ok_or(RewriteFailed)?;
    let ecn = old & marked;
    if ecn == 0 {
        return Ok(());
    }
    if ecn == marked {
        return Err(RewriteFailed);
    }
    let new = old & !marked;
    if !packet.ipv6 {
        let at = (packet.l3 + IPV4_CHECKSUM) as usize;
        ctx.l3_csum_replace(at, old.to_be().into(), new.to_be().into(), 4)
            .map_err(|_| RewriteFailed)?;
    }
    if packet.ipv6 {
        // No checksum of its own makes up for the change; see `replace_l4_pseudo`.
        let diff = csum_diff(&old.to_be(), &new.to_be());
        // SAFETY: the program's own context.
        unsafe { bpf_csum_update(ctx.as_ptr().cast(), diff as u32) };
    }
    store(ctx, packet.l3, &new.to_be())
}

/// Gives a TCP packet another acknowledgement number and window.
#[inline(always)]
pub fn acknowledge(
    ctx: &TcContext,
    packet: &Packet,
    (ack, window): (u32, u16),
) -> Result<(), RewriteFailed> {
    const ACKNOWLEDGEMENT: u32 = 8;
    const OFFSET_FLAGS_WINDOW: u32 = 12;
    set_word(ctx, packet.l4, ACKNOWLEDGEMENT, ack)?;
    let old = word(ctx, packet.l4 + OFFSET_FLAGS_WINDOW).ok_or(RewriteFailed)?;
    let new = old & 0xffff_0000 | u32::from(window);
    set_word(ctx, packet.l4, OFFSET_FLAGS_WINDOW, new)
}

/// Replaces the big-endian word at `at`, an even offset in the TCP header, checksum included.
#[inline(always)]
pub fn set_word(ctx: &TcContext, l4: u32, at: u32, value: u32) -> Result<(), RewriteFailed> {
    let old = word(ctx, l4 + at).ok_or(RewriteFailed)?;
    replace_l4_word(ctx, l4 + TCP_CHECKSUM, old.to_be(), value.to_be())?;
    store(ctx, l4 + at, &value.to_be())
}

/// What the change of `old` to `new` adds to a sum over their first `len` bytes, a multiple of 4.
#[inline(always)]
pub fn csum_diff_bytes<const N: usize>(old: &[u8; N], new: &[u8; N], len: usize) -> u64 {
    // SAFETY: both have `N` readable bytes, and `len` is at most `N`, as the callers see to.
    let diff = unsafe {
        bpf_csum_diff(
            old.as_ptr().cast_mut().cast(),
            len as u32,
            new.as_ptr().cast_mut().cast(),
            len as u32,
            0,
        )
    };
    diff as u64
}

/// Makes the TCP checksum right after a change of what is not in the pseudo header.
#[inline(always)]
pub fn replace_checksum(ctx: &TcContext, packet: &Packet, diff: u64) -> Result<(), RewriteFailed> {
    replace_l4(ctx, packet.l4 + TCP_CHECKSUM, diff, 0)
}

/// Source and destination of a tuple, as they stand in an IPv6 header.
#[inline(always)]
fn addresses(tuple: &Tuple) -> &[Address; 2] {
    // SAFETY: `Tuple` is `repr(C)` and begins with `src` and `dst`, both `Address`, without padding.
    unsafe { &*core::ptr::from_ref(tuple).cast() }
}

/// The ports as the 4 bytes at the start of a TCP header.
#[inline(always)]
fn ports(tuple: &Tuple) -> u32 {
    u32::from(tuple.src_port.to_be()) | u32::from(tuple.dst_port.to_be()) << 16
}

/// What the change of `old` to `new` adds to a one's complement sum over them.
#[inline(always)]
fn csum_diff<T>(old: &T, new: &T) -> u64 {
    // SAFETY: both point to `size_of::<T>()` readable bytes, a multiple of 4; the helper reads them
    // and keeps neither.
    let diff = unsafe {
        bpf_csum_diff(
            core::ptr::from_ref(old).cast_mut().cast(),
            size_of::<T>() as u32,
            core::ptr::from_ref(new).cast_mut().cast(),
            size_of::<T>() as u32,
            0,
        )
    };
    diff as u64
}

#[inline(always)]
fn replace_l3(ctx: &TcContext, l3: u32, diff: u64) -> Result<(), RewriteFailed> {
    let at = (l3 + IPV4_CHECKSUM) as usize;
    ctx.l3_csum_replace(at, 0, diff, 0)
        .map_err(|_| RewriteFailed)
}

#[inline(always)]
fn replace_l4(ctx: &TcContext, at: u32, diff: u64, flags: u64) -> Result<(), RewriteFailed> {
    ctx.l4_csum_replace(at as usize, 0, diff, flags)
        .map_err(|_| RewriteFailed)
}

#[inline(always)]
fn replace_l4_word(ctx: &TcContext, at: u32, old: u32, new: u32) -> Result<(), RewriteFailed> {
    ctx.l4_csum_replace(at as usize, old.into(), new.into(), 4)
        .map_err(|_| RewriteFailed)
}

/// A change of addresses, as the transport's checksum sees it through the pseudo header.
///
/// Under `CHECKSUM_COMPLETE`, `BPF_F_PSEUDO_HDR` takes the change out of `skb->csum`, as it must for
/// IPv4, where the IP header's checksum makes up for it. IPv6 has none, so it is put back. (Linux
/// 6.16 has a flag for it, `BPF_F_IPV6`; this works on all.)
#[inline(always)]
fn replace_l4_pseudo(ctx: &TcContext, ipv6: bool, at: u32, diff: u64) -> Result<(), RewriteFailed> {
    replace_l4(ctx, at, diff, u64::from(BPF_F_PSEUDO_HDR))?;
    if ipv6 {
        // SAFETY: the program's own context. The helper refuses (harmlessly) where the packet is
        // not `CHECKSUM_COMPLETE`.
        unsafe { bpf_csum_update(ctx.as_ptr().cast(), diff as u32) };
    }
    Ok(())
}

#[inline(always)]
fn store<T>(ctx: &TcContext, at: u32, value: &T) -> Result<(), RewriteFailed> {
    ctx.store(at as usize, value, u64::from(BPF_F_INVALIDATE_HASH))
        .map_err(|_| RewriteFailed)
}
