//! Who listens on this host: `sock_diag(7)`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddr};

/// What the kernel fills at once, at most (`netlink_dump`).
const PART: usize = 32 * 1024;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listening {
    /// Where it is bound.
    pub(super) address: SocketAddr,
    /// Its cookie (`SO_COOKIE`).
    pub(super) cookie: u64,
    /// It takes IPv6 only (`IPV6_V6ONLY`).
    only_v6: bool,
}

impl Listening {
    /// What it listens on: `::` is all of IPv4 as well, unless the socket is for IPv6 only.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ip = self.address.ip().to_canonical();
        let ipv4 = (ip.is_ipv6() && ip.is_unspecified() && !self.only_v6)
            .then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        [Some(ip), ipv4].into_iter().flatten()
    }
}

/// A netlink socket that asks, in the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Survey {
    socket: Socket,
    sequence: u32,
}

impl Survey {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The TCP sockets that listen. One may be missing if another was closed meanwhile.
    ///
    /// It does not wait: the kernel writes the next part of its answer when the last was read.
    pub(super) fn listening(&mut self) -> io::Result<Vec<Listening>> {
        let mut found = Vec::new();
        for (family, any) in [
            (AF_INET, SocketId::new_v4()),
            (AF_INET6, SocketId::new_v6()),
        ] {
            self.ask(family, any)?;
            self.read(&mut found)?;
        }
        Ok(found)
    }

    fn ask(&mut self, family: u8, any: SocketId) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = self.sequence;
        let request = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: any,
        });
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(request));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn read(&self, found: &mut Vec<Listening>) -> io::Result<()> {
        let mut part = vec![0; PART];
        loop {
            let len = self.socket.recv(&mut &mut part[..], libc::MSG_DONTWAIT)?;
            let mut rest = &part[..len];
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                let size = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(size..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue; // Of a question that was given up.
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        found.push((&*socket).into());
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    _ => {}
                }
            }
        }
    }
}

impl From<&InetResponse> for Listening {
    fn from(socket: &InetResponse) -> Self {
        let id = &socket.header.socket_id;
        // Two words, the lower one first (`sock_diag_save_cookie`).
        let [a, b, c, d, e, f, g, h] = id.cookie;
        let (low, high) = (
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
        );
        Self {
            address: SocketAddr::new(id.source_address, id.source_port),
            cookie: u64::from(high) << 32 | u64::from(low),
            only_v6: socket
                .nlas
                .iter()
                .any(|nla| matches!(nla, Nla::SkV6Only(true))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, SockRef, Type};

    use super::*;

    #[test]
    fn finds_sockets_of_both_families() {
        let v4 = TcpListener::bind("127.0.0.1:0").expect("bound");
        let only_v6 = socket2::Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        only_v6.set_only_v6(true).expect("set");
        let any: SocketAddr = "[::]:0".parse().expect("an address");
        only_v6.bind(&any.into()).expect("bound");
        only_v6.listen(1).expect("listening");
        let only_v6 = TcpListener::from(only_v6);
        let both = TcpListener::bind("[::]:0").expect("bound");
        let mut survey = Survey::open().expect("a socket");
        // Twice: what was asked first is not in the way.
        for _ in 0..2 {
            let found = survey.listening().expect("told");
            for (socket, addresses) in [
                (&v4, &["127.0.0.1"][..]),
                (&only_v6, &["::"]),
                (&both, &["::", "0.0.0.0"]),
            ] {
                let cookie = SockRef::from(socket).cookie().expect("a cookie");
                let found: Vec<_> = found.iter().filter(|one| one.cookie == cookie).collect();
                let [found] = found[..] else {
                    panic!("{found:?}")
                };
                assert_eq!(found.address, socket.local_addr().expect("told"));
                let ips: Vec<String> = found.addresses().map(|ip| ip.to_string()).collect();
                assert_eq!(ips, addresses);
            }
        }
    }
}
