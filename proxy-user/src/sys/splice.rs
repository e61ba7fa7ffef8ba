//! What the splice engines ask of TCP sockets and no crate offers safely.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::net::tcp_info;

/// How far a TCP connection is, in bytes of payload since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Sent and acknowledged by the peer (RFC 4898, tcpEStatsAppHCThruOctetsAcked); starts at 1 on
    /// a socket that connected.
    pub acked: u64,
    /// Received in order (tcpEStatsAppHCThruOctetsReceived); a FIN counts as one.
    pub received: u64,
}

/// Reads the counters of a TCP socket.
pub fn counters(socket: &impl AsFd) -> io::Result<Counters> {
    let info = info(socket)?;
    Ok(Counters {
        acked: info.tcpi_bytes_acked,
        received: info.tcpi_bytes_received,
    })
}

/// Is the connection in the state CLOSED (RFC 9293, 3.3.2)? A reset puts it there at once, a FIN only
/// after one in the other direction.
pub fn is_closed(socket: &impl AsFd) -> io::Result<bool> {
    // `TCP_CLOSE` of the kernel's net/tcp_states.h.
    const CLOSED: u8 = 7;
    Ok(info(socket)?.tcpi_state == CLOSED)
}

/// Is the connection in the state ESTABLISHED: has neither side ended its stream?
pub fn is_established(socket: &impl AsFd) -> io::Result<bool> {
    // `TCP_ESTABLISHED` of the kernel's net/tcp_states.h.
    const ESTABLISHED: u8 = 1;
    Ok(info(socket)?.tcpi_state == ESTABLISHED)
}

/// Has the other side ended its stream, or reset the connection?
pub fn has_peer_ended(socket: &impl AsFd) -> io::Result<bool> {
    // Of the kernel's net/tcp_states.h: `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`,
    // `TCP_CLOSING`.
    const ENDED: [u8; 5] = [6, 7, 8, 9, 11];
    Ok(ENDED.contains(&info(socket)?.tcpi_state))
}

pub(super) fn info(socket: &impl AsFd) -> io::Result<tcp_info> {
    // SAFETY: `tcp_info` consists of integers: all zeroes is a value.
    let mut info: tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, and how many to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    check(result)?;
    Ok(info)
}

/// Bytes in the send queue: not sent, or sent and not acknowledged (`SIOCOUTQ`).
pub fn send_queue(socket: &impl AsFd) -> io::Result<u64> {
    queue_length(socket, libc::TIOCOUTQ)
}

/// Bytes in the receive queue (`SIOCINQ`).
pub fn receive_queue(socket: &impl AsFd) -> io::Result<u64> {
    queue_length(socket, libc::FIONREAD)
}

fn queue_length(socket: &impl AsFd, request: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one `int` to the address given.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) })?;
    // Never negative on a TCP socket.
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Sets `SO_RCVLOWAT`: the kernel then looks whether the socket is readable, and calls whoever is
/// to be told of it.
pub fn set_receive_low_water(socket: &impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Sets `TCP_WINDOW_CLAMP`: the largest window offered to the peer.
pub fn set_window_clamp(socket: &impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// Runs a BPF program of the type socket filter for what the socket is to receive (`SO_ATTACH_BPF`).
pub fn attach_filter(socket: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let program = program.as_fd().as_raw_fd();
    set_int(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
}

pub(super) fn set_int(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the options that this is called with read one `int`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    check(result)
}

pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
