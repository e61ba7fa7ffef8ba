//! Resets of connections that have no socket here: segments made by hand, in the name of one end, for
//! the other.
//!
//! A forwarded flow that the daemon ends is a connection between two other hosts. Each is told by a RST
//! that seems to come from the other one.

use std::io;
use std::net::SocketAddr;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use proxy_common::flow::{Forward, Tuple};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// The usual hops that a packet may go (`net.ipv4.ip_default_ttl`).
const HOPS: u8 = 64;

/// Why RSTs cannot be sent.
#[derive(Debug, Error)]
pub enum ResetsError {
    /// The daemon may not make packets of its own.
    #[error("sending RSTs in the name of others needs the capability CAP_NET_RAW")]
    Capability,
    /// A raw socket could not be opened.
    #[error("cannot open a raw socket: {0}")]
    Socket(#[source] io::Error),
}

/// Sends RSTs from any address.
///
/// They are packets of this host otherwise: routed by their destination, and shown to netfilter's
/// OUTPUT, where conntrack knows no connection of theirs (INVALID), and to tc.
#[derive(Debug)]
pub struct Resets {
    ipv4: Socket,
    /// Without where the kernel has no IPv6.
    ipv6: Option<Socket>,
}

impl Resets {
    /// Opens the sockets.
    pub fn open() -> Result<Self, ResetsError> {
        let ipv4 = raw_socket(Domain::IPV4).map_err(refused)?;
        let ipv6 = match raw_socket(Domain::IPV6) {
            Ok(socket) => Some(socket),
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(e) => return Err(refused(e)),
        };
        Ok(Self { ipv4, ipv6 })
    }

    /// Sends `to` a RST that says it is from `from`. It does not wait.
    ///
    /// What is to be said is in `sequence`: the number that `to` expects next, which is its last
    /// acknowledgement. RFC 9293, 3.10.7.4 (RFC 5961, 3.2):
    ///
    /// > 1) If the RST bit is set and the sequence number is outside the current receive window,
    /// > silently drop the segment.
    /// >
    /// > 2) If the RST bit is set and the sequence number exactly matches the next expected sequence
    /// > number (RCV.NXT), then TCP endpoints MUST reset the connection in the manner prescribed below
    /// > according to the connection state.
    /// >
    /// > 3) If the RST bit is set and the sequence number does not exactly match the next expected
    /// > sequence value, yet is within the current receive window, TCP endpoints MUST send an
    /// > acknowledgment (challenge ACK).
    ///
    /// So a wrong number does no harm, and one that is only a little too high gets the right one told.
    /// `acknowledgement` is not looked at by `to`, which has reset the connection before it comes to
    /// that, but by firewalls on the way.
    pub fn send(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        sequence: u32,
        acknowledgement: u32,
    ) -> io::Result<()> {
        self.send_segment(from, to, Flag::Rst, sequence, acknowledgement)
    }

    /// Makes `to` say where its connection with `from` stands, of which this host knows nothing any more.
    /// The answer finds no socket here, and the kernel's RST to it has the right number.
    ///
    /// RFC 9293, 3.10.7.4: "If an incoming segment is not acceptable, an acknowledgment should be sent in
    /// reply". Of two numbers that are 2^31 apart one at least is in no window. A peer that insists on
    /// timestamps (RFC 7323, 3.2: "SHOULD silently drop") does not answer.
    pub fn provoke(&self, from: SocketAddr, to: SocketAddr) {
        for sequence in [0, 1 << 31] {
            if let Err(e) = self.send_segment(from, to, Flag::Ack, sequence, 0) {
                tracing::debug!("ACK to {to}: {e}");
            }
        }
    }

    fn send_segment(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        flag: Flag,
        sequence: u32,
        acknowledgement: u32,
    ) -> io::Result<()> {
        let ip = ip_header(from, to).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = match &ip {
            IpHeaders::Ipv4(..) => Some(&self.ipv4),
            IpHeaders::Ipv6(..) => self.ipv6.as_ref(),
        };
        let socket = socket.ok_or(io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
        let segment = segment(
            ip,
            [from.port(), to.port()],
            flag,
            sequence,
            acknowledgement,
        )?;
        let mut address = to;
        address.set_ip(to.ip().to_canonical());
        // Of a raw socket the port is the protocol's number (raw(7)).
        address.set_port(0);
        socket.send_to(&segment, &address.into()).map(drop)
    }

    /// Tells the sender of packets of `tuple` that their flow is over, with the numbers that `entry` has
    /// noted.
    pub fn answer(&self, tuple: &Tuple, entry: &Forward) {
        let (peer, us) = (tuple.source(), tuple.destination());
        if let Err(e) = self.send(us, peer, entry.acked, entry.next_seq) {
            tracing::debug!("RST to {peer}: {e}");
        }
    }
}

/// `IPPROTO_RAW` implies that packets bring their header, for IPv4 (raw(7), `IP_HDRINCL`) and IPv6
/// (`inet6_create`), and that none is received: a socket for TCP would get a copy of each segment of the host.
fn raw_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn refused(error: io::Error) -> ResetsError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ResetsError::Capability,
        _ => ResetsError::Socket(error),
    }
}

/// `None` if the addresses are of two families.
fn ip_header(from: SocketAddr, to: SocketAddr) -> Option<IpHeaders> {
    use std::net::IpAddr::{V4, V6};

    // Lengths, checksum and the protocol's number are the builder's.
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (V4(from), V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let header = Ipv4Header::new(0, HOPS, IpNumber::TCP, from, to).ok()?;
            Some(IpHeaders::Ipv4(header, Default::default()))
        }
        (V6(from), V6(to)) => {
            let header = Ipv6Header {
                hop_limit: HOPS,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            Some(IpHeaders::Ipv6(header, Default::default()))
        }
        (V4(_), V6(_)) | (V6(_), V4(_)) => None,
    }
}

/// What a segment is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    Rst,
    Ack,
}

/// A segment without data that acknowledges. "When an `<RST>` segment is received, it MUST NOT be subjected
/// to the PAWS check" (RFC 7323, 5.2), so it needs no timestamp.
fn segment(
    ip: IpHeaders,
    [from, to]: [u16; 2],
    flag: Flag,
    sequence: u32,
    acknowledgement: u32,
) -> io::Result<Vec<u8>> {
    const NO_WINDOW: u16 = 0;
    let mut builder = PacketBuilder::ip(ip)
        .tcp(from, to, sequence, NO_WINDOW)
        .ack(acknowledgement);
    if flag == Flag::Rst {
        builder = builder.rst();
    }
    let mut segment = Vec::with_capacity(builder.size(0));
    builder.write(&mut segment, &[]).map_err(io::Error::other)?;
    Ok(segment)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn parsed(from: &str, to: &str) -> Option<Vec<u8>> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let ip = ip_header(from, to)?;
        Some(segment(ip, [from.port(), to.port()], Flag::Rst, 0xffff_fff0, 7).unwrap())
    }

    #[test]
    fn a_bare_rst_with_these_numbers() {
        for (from, to) in [
            ("192.0.2.1:443", "[::ffff:192.0.2.9]:50000"),
            ("[2001:db8::1]:443", "[2001:db8::9]:50000"),
        ] {
            let bytes = parsed(from, to).unwrap();
            let packet = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                panic!("no TCP: {packet:?}")
            };
            assert_eq!((tcp.source_port(), tcp.destination_port()), (443, 50000));
            assert_eq!(tcp.sequence_number(), 0xffff_fff0);
            assert_eq!(tcp.acknowledgment_number(), 7);
            assert!(tcp.rst() && tcp.ack() && !tcp.fin() && !tcp.syn());
            assert_eq!(tcp.payload(), b"");
            let sum = match packet.net {
                Some(NetSlice::Ipv4(ip)) => tcp
                    .to_header()
                    .calc_checksum_ipv4(&ip.header().to_header(), &[]),
                Some(NetSlice::Ipv6(ip)) => tcp
                    .to_header()
                    .calc_checksum_ipv6(&ip.header().to_header(), &[]),
                other => panic!("no IP: {other:?}"),
            };
            assert_eq!(tcp.checksum(), sum.unwrap());
        }
    }

    #[test]
    fn two_families_make_no_packet() {
        assert_eq!(parsed("192.0.2.1:1", "[2001:db8::9]:2"), None);
    }
}
