//! limpid's BPF programs.
//!
//! This page is the entry points; each calls one function of the module that it belongs to:
//!
//! * [`steering`], [`syn`] (tc): the client's address on the wire, and the replies brought back.
//! * [`forward`], [`guard`] (tc): the engine `packet`.
//! * [`splice`] (sk_skb, socket filter): the engine `sockmap`.
//! * [`lookup`] (sk_lookup): ranges of ports that are listened on.
//! * [`packet`]: reading and rewriting packets.
//! * [`maps`]: every map.
//!
//! Decisions that can be made without a packet at hand live in `proxy-common`, where host tests
//! call them.
#![no_std]
#![no_main]

use aya_ebpf::macros::{classifier, sk_lookup, socket_filter, stream_verdict};
use aya_ebpf::programs::{SkBuffContext, SkLookupContext, TcContext};
use proxy_common::packet::ETHERNET;

mod forward;
mod guard;
mod lookup;
mod maps;
mod packet;
mod splice;
mod steering;
mod syn;

/// tc egress of an interface with Ethernet headers.
#[classifier]
pub fn steer_egress_l2(ctx: TcContext) -> i32 {
    steering::egress(&ctx, ETHERNET)
}

/// tc ingress of an interface with Ethernet headers.
#[classifier]
pub fn steer_ingress_l2(ctx: TcContext) -> i32 {
    steering::ingress(&ctx, ETHERNET)
}

/// tc egress of an interface whose packets start at IP (WireGuard, tun).
#[classifier]
pub fn steer_egress_l3(ctx: TcContext) -> i32 {
    steering::egress(&ctx, 0)
}

/// tc ingress of an interface whose packets start at IP (WireGuard, tun).
#[classifier]
pub fn steer_ingress_l3(ctx: TcContext) -> i32 {
    steering::ingress(&ctx, 0)
}

/// Verdict of the sockhash of sources: to the peer's socket, or to userspace.
#[stream_verdict]
pub fn splice_verdict(ctx: SkBuffContext) -> u32 {
    splice::verdict(&ctx)
}

/// Socket filter of each source: refuses data while too much is unread.
#[socket_filter]
pub fn splice_filter(ctx: SkBuffContext) -> i64 {
    splice::filter(&ctx)
}

/// The listening socket of a connection that is none yet.
#[sk_lookup]
pub fn listen_range(ctx: SkLookupContext) -> u32 {
    lookup::lookup(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel offers GPL-only helpers (`bpf_probe_read_kernel`, `bpf_ktime_get_ns`) to this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
