//! Reading and rewriting the packet at hand. What the bytes mean is in `proxy_common::packet`.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INVALIDATE_HASH, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update};
use aya_ebpf::programs::TcContext;
use proxy_common::flow::{Address, Tuple};
use proxy_common::packet::{self as headers, Ip};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Where the headers of a packet stand, in bytes from its start.
#[derive(Clone, Copy)]
pub struct Offsets {
    pub l3: u32,
    pub l4: u32,
    pub ipv6: bool,
}

/// The refusal of the kernel to change a packet: it may be half changed and must not go on.
pub struct RewriteFailed;

/// Reads the IP header at `l3`. `None`: not IP, or of no interest.
#[inline(always)]
pub fn ip(ctx: &TcContext, l3: u32) -> Option<(Ip, Offsets)> {
    match ctx.skb.protocol() {
        ETH_P_IP => ip_at(ctx, l3, false),
        ETH_P_IPV6 => ip_at(ctx, l3, true),
        _ => None,
    }
}

/// Reads the IP header of the given version at `l3`: the packet's own, or one inside an ICMP error.
#[inline(always)]
pub fn ip_at(ctx: &TcContext, l3: u32, ipv6: bool) -> Option<(Ip, Offsets)> {
    let ip = if ipv6 {
        headers::ipv6(&ctx.load(l3 as usize).ok()?)?
    } else {
        headers::ipv4(&ctx.load(l3 as usize).ok()?)?
    };
    Some((ip, Offsets { l3, l4: l3 + ip.header_len, ipv6 }))
}

/// Reads the TCP header that follows `ip`.
#[inline(always)]
pub fn tcp(ctx: &TcContext, ip: &Ip, at: Offsets) -> Option<headers::Tcp> {
    headers::tcp(ip, &ctx.load(at.l4 as usize).ok()?)
}

/// Gives a TCP packet other addresses and ports, checksums included.
///
/// Right with and without checksum offload: the pseudo header's part goes in with
/// `BPF_F_PSEUDO_HDR`, which under `CHECKSUM_PARTIAL` is the only part that the field holds; ports
/// go in without it (net/core/utils.c, `inet_proto_csum_replace_by_diff`).
#[inline(always)]
pub fn rewrite(ctx: &TcContext, at: Offsets, old: &Tuple, new: &Tuple) -> Result<(), RewriteFailed> {
    const TCP_CHECKSUM: u32 = 16;
    let addresses = address_diff(at.ipv6, old, new);
    let checksum = (at.l4 + TCP_CHECKSUM) as usize;
    replace_l4(ctx, checksum, addresses, u64::from(BPF_F_PSEUDO_HDR))?;
    if at.ipv6 {
        cancel_ipv6_complete(ctx, addresses);
    }
    if ports(old) != ports(new) {
        ctx.l4_csum_replace(checksum, u64::from(ports(old)), u64::from(ports(new)), 4)
            .map_err(|_| RewriteFailed)?;
        store(ctx, at.l4, &ports(new))?;
    }
    rewrite_ip(ctx, at, addresses, new)
}

/// Gives the TCP packet inside an ICMP error other addresses and ports, and the error another
/// destination.
///
/// `outer` and `inner` stand where the two IP headers are; `old` and `new` are the inner packet's.
/// The inner TCP checksum is left: RFC 792 promises 8 bytes of the header, and nobody verifies it.
#[inline(always)]
pub fn rewrite_icmp_error(
    ctx: &TcContext,
    outer: Offsets,
    inner: Offsets,
    outer_src: Address,
    old: &Tuple,
    new: &Tuple,
) -> Result<(), RewriteFailed> {
    const ICMP_CHECKSUM: u32 = 2;
    let checksum = (outer.l4 + ICMP_CHECKSUM) as usize;
    let outer_old = Tuple { src: outer_src, dst: old.src, src_port: 0, dst_port: 0 };
    let outer_new = Tuple { src: outer_src, dst: new.src, src_port: 0, dst_port: 0 };
    let outer_addresses = address_diff(outer.ipv6, &outer_old, &outer_new);
    let inner_addresses = address_diff(inner.ipv6, old, new);
    if outer.ipv6 {
        // RFC 4443, 2.3: the checksum covers a pseudo header and the message, so it sees the outer
        // destination and the inner source.
        replace_l4(ctx, checksum, outer_addresses, u64::from(BPF_F_PSEUDO_HDR))?;
        cancel_ipv6_complete(ctx, outer_addresses);
        replace_l4(ctx, checksum, inner_addresses, 0)?;
    }
    // RFC 792: no pseudo header, and a change of the inner IPv4 address is undone by that of the
    // inner header's checksum. Only the ports remain.
    ctx.l4_csum_replace(checksum, u64::from(ports(old)), u64::from(ports(new)), 4)
        .map_err(|_| RewriteFailed)?;
    store(ctx, inner.l4, &ports(new))?;
    rewrite_ip(ctx, inner, inner_addresses, new)?;
    rewrite_ip(ctx, outer, outer_addresses, &outer_new)
}

/// Writes the addresses of an IP header, and its checksum where it has one.
#[inline(always)]
fn rewrite_ip(
    ctx: &TcContext,
    at: Offsets,
    addresses: u64,
    new: &Tuple,
) -> Result<(), RewriteFailed> {
    const IPV4_CHECKSUM: u32 = 10;
    const IPV4_ADDRESSES: u32 = 12;
    const IPV6_ADDRESSES: u32 = 8;
    if at.ipv6 {
        return store(ctx, at.l3 + IPV6_ADDRESSES, &[new.src, new.dst]);
    }
    ctx.l3_csum_replace((at.l3 + IPV4_CHECKSUM) as usize, 0, addresses, 0)
        .map_err(|_| RewriteFailed)?;
    store(ctx, at.l3 + IPV4_ADDRESSES, &[new.src.ipv4(), new.dst.ipv4()])
}

/// The ports as the 4 bytes at the start of a TCP header.
#[inline(always)]
fn ports(tuple: &Tuple) -> u32 {
    u32::from(tuple.src_port.to_be()) | u32::from(tuple.dst_port.to_be()) << 16
}

/// What the change of addresses adds to a one's complement sum over them.
#[inline(always)]
fn address_diff(ipv6: bool, old: &Tuple, new: &Tuple) -> u64 {
    if ipv6 {
        csum_diff(&[old.src, old.dst], &[new.src, new.dst])
    } else {
        csum_diff(&[old.src.ipv4(), old.dst.ipv4()], &[new.src.ipv4(), new.dst.ipv4()])
    }
}

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
fn replace_l4(ctx: &TcContext, at: usize, diff: u64, flags: u64) -> Result<(), RewriteFailed> {
    ctx.l4_csum_replace(at, 0, diff, flags).map_err(|_| RewriteFailed)
}

/// Under `CHECKSUM_COMPLETE`, `BPF_F_PSEUDO_HDR` takes the change out of `skb->csum`, as it must
/// for IPv4, where the IP header's checksum makes up for it. IPv6 has none, so it is put back.
/// (Linux 6.16 has a flag for it, `BPF_F_IPV6`; this works on all.)
#[inline(always)]
fn cancel_ipv6_complete(ctx: &TcContext, addresses: u64) {
    // SAFETY: the program's own context. The helper refuses (harmlessly) where the packet is not
    // `CHECKSUM_COMPLETE`.
    unsafe { bpf_csum_update(ctx.as_ptr().cast(), addresses as u32) };
}

#[inline(always)]
fn store<T>(ctx: &TcContext, at: u32, value: &T) -> Result<(), RewriteFailed> {
    ctx.store(at as usize, value, u64::from(BPF_F_INVALIDATE_HASH)).map_err(|_| RewriteFailed)
}
