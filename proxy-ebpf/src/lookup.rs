//! Ranges of ports: a SYN to any port of one is led to the one socket that listens for it.
//!
//! The kernel asks before it looks for a listening socket itself (`inet_lookup_run_sk_lookup`), and not for
//! packets of connections. Whoever listens on one port of a range keeps it: a program of this kind may not
//! look for sockets (`sk_lookup_func_proto` has no `bpf_sk_lookup_tcp`), so userspace tells where there are any.

use aya_ebpf::Global;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::programs::SkLookupContext;
use proxy_common::lookup::{self, Place, RANGES_LIMIT};

use crate::maps::{LISTENING, RANGES, SOCKETS};

/// Set by the loader: 1 where a range is one of an interface. Linux before 5.17 does not tell the program by
/// which one a SYN came, and refuses a program that asks.
#[unsafe(no_mangle)]
static ASK_INTERFACE: Global<u32> = Global::new(0);

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;

/// Never refuses: where it chooses no socket the kernel looks for one as ever.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> u32 {
    // SAFETY: a field of the context.
    if unsafe { (*ctx.lookup).protocol } != IPPROTO_TCP {
        return SK_PASS;
    }
    let place = called(ctx);
    let interface = interface(ctx);
    for slot in 0..RANGES_LIMIT {
        let Some(range) = RANGES.get(slot) else {
            break;
        };
        if !range.holds(&place, interface) {
            continue;
        }
        if !is_listened_on(&place) && !is_listened_on(&place.of_any_address()) {
            // It fails where another program has chosen already, whose choice stays, or where the socket
            // is gone.
            let _ = SOCKETS.redirect_sk_lookup(ctx, slot, 0);
        }
        break;
    }
    SK_PASS
}

/// The address and port that the SYN is for.
#[inline(always)]
fn called(ctx: &SkLookupContext) -> Place {
    // Volatile, and whether needed or not: the verifier wants each field of a context to be read by its own
    // instruction, where the compiler would read one or the other by a pointer that it computes.
    // SAFETY: fields of the context.
    let (family, ipv4, ipv6, port) = unsafe {
        (
            (&raw const (*ctx.lookup).family).read_volatile(),
            (&raw const (*ctx.lookup).local_ip4).read_volatile(),
            (&raw const (*ctx.lookup).local_ip6).read_volatile(),
            (&raw const (*ctx.lookup).local_port).read_volatile(),
        )
    };
    let address = if family == AF_INET {
        lookup::ipv4(ipv4)
    } else {
        ipv6
    };
    Place { address, port }
}

/// The interface that it came by.
#[inline(always)]
fn interface(ctx: &SkLookupContext) -> u32 {
    if ASK_INTERFACE.load() == 0 {
        return 0;
    }
    // SAFETY: a field of the context.
    unsafe { (*ctx.lookup).ingress_ifindex }
}

/// Does somebody listen there, and nowhere else?
#[inline(always)]
fn is_listened_on(place: &Place) -> bool {
    LISTENING.get_ptr(place).is_some()
}
