//! Which way an accepted connection came: the interface, and the address before this host's netfilter
//! redirected it.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use tokio::net::TcpStream;

use super::splice::{check, set_int};

/// The index of the interface by which the handshake of an accepted connection came, if the kernel
/// has noted one.
///
/// Of a stream socket the kernel answers `IP_PKTOPTIONS` from what it noted when it made the socket
/// (`net/ipv4/ip_sockglue.c`; `tcp_v4_syn_recv_sock`: `newinet->mc_index = inet_iif(skb)`), and
/// `IPV6_2292PKTOPTIONS` likewise (`net/ipv6/ipv6_sockglue.c`, `mcast_oif`): for as long as the
/// information is asked for, no longer, since an IPv6 socket then keeps a copy of each packet.
pub fn interface_of(socket: &TcpStream) -> io::Result<Option<u32>> {
    let index = if is_ipv4(socket.local_addr()?) {
        set_int(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        let info = packet_info::<libc::in_pktinfo>(socket);
        set_int(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 0)?;
        info?.map(|info| info.ipi_ifindex.cast_unsigned())
    } else {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        let info = packet_info::<libc::in6_pktinfo>(socket);
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0)?;
        info?.map(|info| info.ipi6_ifindex)
    };
    Ok(index.filter(|index| *index != 0))
}

/// Where the connection went before this host's netfilter redirected it (DNAT, REDIRECT; Docker's
/// published ports); the address of the socket itself if it did not. `None` if conntrack does not
/// know the connection, or is not there.
pub fn original_destination(socket: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let original = if is_ipv4(socket.local_addr()?) {
        getsockopt(socket, OriginalDst).map(|found| SocketAddr::V4(ipv4(&found)))
    } else {
        getsockopt(socket, Ip6tOriginalDst).map(|found| SocketAddr::V6(ipv6(&found)))
    };
    match original {
        Ok(original) => Ok(Some(original)),
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What the kernel tells of a packet, and by which names.
trait PacketInfo {
    /// The level of the socket option and of the answer.
    const LEVEL: libc::c_int;
    /// The option that collects answers.
    const OPTION: libc::c_int;
    /// The type of the answer.
    const TYPE: libc::c_int;
}

impl PacketInfo for libc::in_pktinfo {
    const LEVEL: libc::c_int = libc::IPPROTO_IP;
    const OPTION: libc::c_int = libc::IP_PKTOPTIONS;
    const TYPE: libc::c_int = libc::IP_PKTINFO;
}

impl PacketInfo for libc::in6_pktinfo {
    const LEVEL: libc::c_int = libc::IPPROTO_IPV6;
    // RFC 2292's option is the one that stream sockets answer.
    const OPTION: libc::c_int = libc::IPV6_2292PKTOPTIONS;
    const TYPE: libc::c_int = libc::IPV6_PKTINFO;
}

/// A control message as cmsg(3) lays it out; both structs are of integers, and the second needs no
/// more alignment than the first leaves.
#[repr(C)]
struct Control<T> {
    header: libc::cmsghdr,
    info: T,
}

fn packet_info<T: PacketInfo>(socket: &impl AsFd) -> io::Result<Option<T>> {
    // SAFETY: `cmsghdr`, `in_pktinfo` and `in6_pktinfo` consist of integers: all zeroes is a value.
    let mut control: Control<T> = unsafe { std::mem::zeroed() };
    let mut len = size_of::<Control<T>>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `control`, and how many to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            T::LEVEL,
            T::OPTION,
            (&raw mut control).cast(),
            &raw mut len,
        )
    };
    check(result)?;
    let header = &control.header;
    // It is the first of the messages that the kernel writes, and there is room for no other.
    let answered = (header.cmsg_level, header.cmsg_type) == (T::LEVEL, T::TYPE)
        && header.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<T>();
    Ok(answered.then_some(control.info))
}

/// Is it an IPv4 connection, be it of an IPv6 socket (RFC 4291, 2.5.5.2)?
fn is_ipv4(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv4()
}

fn ipv4(address: &libc::sockaddr_in) -> SocketAddrV4 {
    let ip = u32::from_be(address.sin_addr.s_addr).into();
    SocketAddrV4::new(ip, u16::from_be(address.sin_port))
}

fn ipv6(address: &libc::sockaddr_in6) -> SocketAddrV6 {
    let ip = address.sin6_addr.s6_addr.into();
    // `getorigdst` sets the scope for link-local addresses only.
    SocketAddrV6::new(
        ip,
        u16::from_be(address.sin6_port),
        0,
        address.sin6_scope_id,
    )
}
