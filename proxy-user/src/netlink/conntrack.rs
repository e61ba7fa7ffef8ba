//! Entries of conntrack that nobody else would take away, by ctnetlink.
//!
//! A forwarded flow passes below netfilter: conntrack sees neither its packets nor its end, and would
//! keep what it noted of both connections for five days (`nf_conntrack_tcp_timeout_established`).

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddr};
use thiserror::Error;

use crate::lock::lock;

/// There where the kernel has conntrack.
const SIGN: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Why an entry could not be deleted.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket to netfilter: {0}")]
    Open(#[source] io::Error),
    /// The request failed. It needs `CAP_NET_ADMIN`, and ctnetlink in the kernel.
    #[error("netlink request `conntrack -D -p tcp {from} -> {to}` failed: {source}")]
    Request {
        /// The source that was asked for.
        from: SocketAddr,
        /// The destination.
        to: SocketAddr,
        /// What went wrong, or what the kernel answered.
        #[source]
        source: io::Error,
    },
}

/// The connections that this network namespace tracks, if it does.
///
/// Conntrack may be loaded at any time, by a firewall rule; but not by us. So the socket is opened,
/// which would load it, when there is something to be forgotten.
#[derive(Debug, Default)]
pub struct Conntrack {
    // Whoever holds the lock has no answer outstanding but its own.
    socket: Mutex<Option<Socket>>,
}

impl Conntrack {
    /// Opens nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the TCP connection whose packets go from `from` to `to`: was there an entry?
    ///
    /// The addresses are a socket's own and its peer's, in this order. That is a tuple of the entry
    /// whatever NAT it has: the original one if the socket connected, and the reply's if it was
    /// accepted (`nf_conntrack_find_get` finds either). It is to be called after the socket's last
    /// packet, which would make the entry anew. Entries in zones (`ct zone set`) are not looked for.
    ///
    /// It does not wait: the kernel answers a request before the call that sends it returns
    /// (`netlink_unicast_kernel`).
    pub fn forget(&self, from: SocketAddr, to: SocketAddr) -> Result<bool, ConntrackError> {
        let mut socket = lock(&self.socket);
        let socket = match &mut *socket {
            Some(socket) => socket,
            None if !Path::new(SIGN).exists() => return Ok(false),
            empty => empty.insert(open().map_err(ConntrackError::Open)?),
        };
        match delete(socket, from, to) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(ConntrackError::Request { from, to, source }),
        }
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    // An answer without the request in it.
    socket.set_cap_ack(true)?;
    Ok(socket)
}

fn delete(socket: &Socket, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let (family, tuple) = tuple(from, to).ok_or(io::ErrorKind::InvalidInput)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    // Without the tuple this request would delete every entry.
    let message = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(tuple)]);
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answer = [0; 256];
    let len = socket.recv(&mut &mut answer[..], libc::MSG_DONTWAIT)?;
    let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer[..len])
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    match answer.payload {
        NetlinkPayload::Error(answer) if answer.code.is_none() => Ok(()),
        NetlinkPayload::Error(answer) => Err(answer.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The attributes of a tuple; `None` if it is of two families.
fn tuple(from: SocketAddr, to: SocketAddr) -> Option<(NetfilterProtoFamily, Vec<Tuple>)> {
    // A dual-stack socket's IPv4 connections are IPv4 to netfilter.
    let (source, destination) = (from.ip().to_canonical(), to.ip().to_canonical());
    let family = match (source.is_ipv4(), destination.is_ipv4()) {
        (true, true) => NetfilterProtoFamily::IPv4,
        (false, false) => NetfilterProtoFamily::IPv6,
        (true, false) | (false, true) => return None,
    };
    let addresses = vec![
        IPTuple::SourceAddress(source),
        IPTuple::DestinationAddress(destination),
    ];
    let ports = vec![
        ProtoTuple::Protocol(Protocol::Tcp),
        ProtoTuple::SourcePort(from.port()),
        ProtoTuple::DestinationPort(to.port()),
    ];
    Some((family, vec![Tuple::Ip(addresses), Tuple::Proto(ports)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_that_of_the_packets() {
        let v4: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.2]:81".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:82".parse().unwrap();
        let family = |from, to| tuple(from, to).map(|(family, _)| family);
        assert_eq!(family(v4, mapped), Some(NetfilterProtoFamily::IPv4));
        assert_eq!(family(v6, v6), Some(NetfilterProtoFamily::IPv6));
        assert_eq!(family(v4, v6), None);
    }
}
