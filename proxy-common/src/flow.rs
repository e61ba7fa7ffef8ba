//! The flow table: what is done to a packet of a known connection.
//!
//! One hash map, `FLOWS`, holds a [`Translation`] for each [`Tuple`] that a packet of a flow can
//! carry. A steered flow has two entries:
//!
//! | key: the packet as it arrives at the program | translation |
//! |---|---|
//! | egress: proxy:p -> backend:b | [`STEER_OUT`]: source becomes client:c |
//! | ingress: backend:b -> client:c | [`STEER_IN`]: destination becomes proxy:p |
//!
//! Userspace reserves the ingress entry before `connect`; the egress program completes it and adds
//! the other one when the SYN leaves, since only then the kernel has chosen port p.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::segment::Shift;

/// Version of every layout in this crate that is pinned, kept in the pinned map `META`.
///
/// A daemon refuses to adopt maps of another version. Raise it with any change to a struct or to
/// the meaning of a field.
pub const LAYOUT_VERSION: u32 = 4;

/// An IPv4 or IPv6 address, in network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The 16 octets as they stand on the wire.
    pub octets: [u8; 16],
}

impl Address {
    /// `::`, also "not known yet".
    pub const UNSPECIFIED: Self = Self { octets: [0; 16] };

    /// The address that these four octets of an IPv4 header say.
    #[inline(always)]
    #[must_use]
    pub const fn from_ipv4([a, b, c, d]: [u8; 4]) -> Self {
        Self {
            octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        }
    }

    /// The last four octets: the IPv4 address, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(&self) -> [u8; 4] {
        [
            self.octets[12],
            self.octets[13],
            self.octets[14],
            self.octets[15],
        ]
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_ipv4(v4.octets()),
            IpAddr::V6(v6) => Self {
                octets: v6.octets(),
            },
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.octets).to_canonical()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// The addresses and ports of a TCP packet, as it is on the wire. Key of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Source port, host byte order (so that `bpftool` shows it as people write it).
    pub src_port: u16,
    /// Destination port, host byte order.
    pub dst_port: u16,
}

impl Tuple {
    /// The tuple of a packet from `src` to `dst`.
    #[must_use]
    pub fn new(src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            src: src.ip().into(),
            dst: dst.ip().into(),
            src_port: src.port(),
            dst_port: dst.port(),
        }
    }

    /// The tuple of a packet the other way.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }

    /// Source address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.src.into(), self.src_port)
    }

    /// Destination address and port.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.dst.into(), self.dst_port)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source(), self.destination())
    }
}

/// [`Translation::action`]: at egress, the source becomes the client.
pub const STEER_OUT: u16 = 1;
/// [`Translation::action`]: at ingress, the destination becomes the proxy's socket.
pub const STEER_IN: u16 = 2;

/// [`Translation::seen`]: the flow's SYN has left. Until then a [`STEER_IN`] entry is only a
/// reservation, and its `rewrite` is not valid.
pub const SEEN_SYN: u16 = 1 << 0;
/// [`Translation::seen`]: a FIN has passed in this direction.
pub const SEEN_FIN: u16 = 1 << 1;
/// [`Translation::seen`]: a RST has passed in this direction.
pub const SEEN_RST: u16 = 1 << 2;

/// [`Translation::seen`], of a [`STEER_IN`] entry: the backend has answered the SYN. Until then nothing
/// but an answer (SYN-ACK or RST) is taken: whatever else comes from the backend to this address and
/// port belongs to a connection that was there before.
pub const SEEN_ANSWER: u16 = 1 << 3;

/// What is done to the packets of one direction of a flow. Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The flow: the cookie of its upstream socket (`SO_COOKIE`), the same in all its entries.
    pub flow: u64,
    /// Packets translated. GSO and GRO packets count once.
    pub packets: u64,
    /// TCP payload in them, in bytes; retransmissions count again.
    pub bytes: u64,
    /// When the last packet passed, in ns of `CLOCK_MONOTONIC`; 0: none yet.
    pub last_seen_ns: u64,
    /// What the packet's addresses and ports become.
    pub rewrite: Tuple,
    /// [`STEER_OUT`] or [`STEER_IN`].
    pub action: u16,
    /// `SEEN_*` bits.
    pub seen: u16,
    /// Added, modulo 2^32, to the timestamp that leaves, or to its echo that comes back; 0: the
    /// connection has none. See [`wire_clock`].
    pub timestamp: u32,
    /// Padding, 0.
    pub reserved: u32,
}

impl Translation {
    /// An entry of `flow` that has seen nothing yet.
    #[inline(always)]
    #[must_use]
    pub const fn new(flow: u64, action: u16, rewrite: Tuple) -> Self {
        Self {
            flow,
            packets: 0,
            bytes: 0,
            last_seen_ns: 0,
            rewrite,
            action,
            seen: 0,
            timestamp: 0,
            reserved: 0,
        }
    }
}

/// The timestamp (RFC 7323) that a steered connection shows at `now_ns` of `CLOCK_MONOTONIC`.
///
/// Linux starts each connection's timestamps at an offset that depends on its addresses and ports
/// (`secure_tcp_ts_off`). A client that comes again from the same port gets another port of ours, and
/// so another offset, and a backend that still has the last connection in TIME-WAIT would take the new
/// SYN for an old one (RFC 7323, 5; RFC 6191). So all steered connections show one clock, in ms since
/// `base`, which is the same for all daemons of a boot.
#[inline(always)]
#[must_use]
pub const fn wire_clock(now_ns: u64, base: u32) -> u32 {
    ((now_ns / 1_000_000) as u32).wrapping_add(base)
}

/// [`Forward::seen`]: the daemon has ended the flow. Its packets go nowhere; each is an event, so that
/// the daemon answers it with a RST.
pub const SEEN_ENDED: u16 = 1 << 4;
/// [`Forward::seen`]: the entry is in force. Before, packets take the way to the socket.
pub const SEEN_SWITCH: u16 = 1 << 5;

/// [`Forward::seen`]: the sender's connection has ECN (RFC 3168) and the receiver's has not: what the IP
/// header says of it is taken off.
pub const SEEN_ECN_ALONE: u16 = 1 << 6;

/// What a packet of a spliced flow becomes. Value of `FORWARDS`, whose key is the packet's tuple as it
/// arrives: a flow has one entry for what the client's side sends and one for what the backend sends.
///
/// The other entry's key is `rewrite` reversed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The flow: key of `RECORDS`, and of its entries in `FLOWS`.
    pub flow: u64,
    /// Packets forwarded. GSO and GRO packets count once.
    pub packets: u64,
    /// Payload from the sender of these packets, in bytes, each byte once; counted from the first
    /// that userspace had not read at the switch.
    pub bytes: u64,
    /// When the last packet came, in ns of `CLOCK_MONOTONIC`; 0: none yet.
    pub last_seen_ns: u64,
    /// Cookie of our own socket on this side, while it still has something to hand over or to see
    /// acknowledged; 0: it is gone.
    pub guard: u64,
    /// What the addresses and ports become.
    pub rewrite: Tuple,
    /// What the numbers in the TCP header become.
    pub shift: Shift,
    /// The interface that they leave by.
    pub ifindex: u32,
    /// Sequence number, in the sender's count, after the last byte seen.
    pub next_seq: u32,
    /// The last acknowledgement number seen, in the sender's count.
    pub acked: u32,
    /// What, added to `CLOCK_MONOTONIC` in ms, is the timestamp clock that the receiver knows us by.
    pub clock: u32,
    /// What our socket has acknowledged to the receiver, in the receiver's count. Nothing less is
    /// acknowledged while `below_floor`.
    pub floor: u32,
    /// 1 until the sender of these packets has acknowledged all that our socket has acknowledged in its
    /// stead, then 0. Not a bit of `seen`: two packets of a direction may be at two CPUs, and who clears a bit
    /// takes back what the other has set.
    pub below_floor: u32,
    /// The last window field seen, as it was sent.
    pub window: u16,
    /// `SEEN_*` bits.
    pub seen: u16,
}

/// What a daemon that adopts a spliced flow must know of it. Value of `RECORDS`, by flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the connection was accepted, in ns of `CLOCK_MONOTONIC`.
    pub accepted_ns: u64,
    /// Payload that went upstream before the splice, in bytes.
    pub early_bytes: u64,
    /// Payload of each direction that our sockets handed over themselves, in bytes, upstream and
    /// downstream. [`Forward::bytes`] has them too, if it has more.
    pub handed_over: [u64; 2],
    /// Key in `FORWARDS` of what the client's side sends: from the downstream peer to the listener.
    pub downstream: Tuple,
    /// Key in `FORWARDS` of what the backend sends: to the source that it sees.
    pub upstream: Tuple,
    /// Whom the flow is for, as the header said.
    pub client: Address,
    /// The client's port, host byte order.
    pub client_port: u16,
    /// [`HANDING_OVER`], [`SETTLED`] or [`LEFT`].
    pub state: u16,
    /// Padding, 0.
    pub reserved: u32,
}

/// [`Record::state`]: our sockets have still something to hand over or to see acknowledged.
pub const HANDING_OVER: u16 = 0;
/// [`Record::state`]: they have not.
pub const SETTLED: u16 = 1;
/// [`Record::state`]: its daemon was taken over meanwhile, and has left it to the other.
pub const LEFT: u16 = 2;

/// What userspace tells the egress program of a socket that is about to connect. Value of
/// `CONNECTING`, by the socket's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connecting {
    /// Key of the reserved [`STEER_IN`] entry.
    pub reply: Tuple,
    /// Largest segment that the SYN may ask for, in bytes (RFC 9293, 3.7.1); 0: as the kernel wants.
    pub mss: u16,
    /// `OFFER_*` bits: TCP options that the SYN may offer, if the kernel does.
    pub offer: u16,
}

/// [`Connecting::offer`]: timestamps (RFC 7323).
pub const OFFER_TIMESTAMPS: u16 = 1 << 0;
/// [`Connecting::offer`]: selective acknowledgements (RFC 2018).
pub const OFFER_SACK: u16 = 1 << 1;
/// [`Connecting::offer`]: everything.
pub const OFFER_ALL: u16 = OFFER_TIMESTAMPS | OFFER_SACK;

/// The single value of the pinned array `META`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// [`LAYOUT_VERSION`] of the daemon that made the pins.
    pub layout_version: u32,
    /// Padding, 0.
    pub reserved: u32,
}

/// What the steering programs count, each a number of packets since they were loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteeringCounters {
    /// Packets that left with the client's address.
    pub steered_out: u64,
    /// Replies brought back to the proxy's sockets.
    pub steered_in: u64,
    /// ICMP errors about a flow brought back to the proxy's sockets.
    pub icmp_in: u64,
    /// Packets forwarded from one leg of a flow to the other.
    pub forwarded: u64,
    /// ICMP errors about a flow forwarded likewise.
    pub icmp_forwarded: u64,
    /// SYNs dropped since the flow table was full.
    pub table_full: u64,
    /// SYNs dropped since the host itself (DNAT in OUTPUT) changed where they go.
    pub upstream_rewritten: u64,
    /// Packets of flows that could not be changed (the kernel refused the write), dropped.
    pub rewrite_failed: u64,
}

impl core::ops::Add for SteeringCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            steered_out: self.steered_out + other.steered_out,
            steered_in: self.steered_in + other.steered_in,
            icmp_in: self.icmp_in + other.icmp_in,
            forwarded: self.forwarded + other.forwarded,
            icmp_forwarded: self.icmp_forwarded + other.icmp_forwarded,
            table_full: self.table_full + other.table_full,
            upstream_rewritten: self.upstream_rewritten + other.upstream_rewritten,
            rewrite_failed: self.rewrite_failed + other.rewrite_failed,
        }
    }
}

const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<Translation>() == 80);
const _: () = assert!(size_of::<Forward>() == 128);
const _: () = assert!(size_of::<Record>() == 128);
const _: () = assert!(size_of::<Connecting>() == 40);
const _: () = assert!(size_of::<Meta>() == 8);
const _: () = assert!(size_of::<SteeringCounters>() == 64);

#[cfg(feature = "aya")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
    use super::{Connecting, Forward, Meta, Record, SteeringCounters, Translation, Tuple};

    // SAFETY: `repr(C)`, integers and arrays of them only, and no padding (the sizes asserted above
    // are the sums of the fields), so every bit pattern is a value and every byte is initialised.
    unsafe impl aya::Pod for Tuple {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Translation {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Forward {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Record {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Connecting {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Meta {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SteeringCounters {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString as _;

    #[test]
    fn addresses_survive_the_table() {
        for text in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "::1"] {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(IpAddr::from(Address::from(ip)).to_string(), text);
        }
    }

    #[test]
    fn reversing_twice_changes_nothing() {
        let tuple = Tuple::new(
            "192.0.2.1:1".parse().expect("an address"),
            "198.51.100.2:2".parse().expect("an address"),
        );
        assert_eq!(tuple.reversed().reversed(), tuple);
        assert_eq!(tuple.reversed().source().to_string(), "198.51.100.2:2");
    }
}
