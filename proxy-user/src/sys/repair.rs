//! Where a TCP connection stands in its sequence space, what it has negotiated, and how to let go of
//! it without a word: `TCP_REPAIR` (net/ipv4/tcp.c, `do_tcp_setsockopt`; tcp(7) is silent).
//!
//! Repair mode was made for moving connections to another machine. It needs `CAP_NET_ADMIN`. While it
//! lasts, the socket takes segments as ever, but reading and writing fail, so nobody else may use it
//! meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::net::{
    TCP_REPAIR_OFF_NO_WP, TCP_REPAIR_ON, TCPI_OPT_ECN, TCPI_OPT_SACK, TCPI_OPT_TIMESTAMPS,
    TCPI_OPT_USEC_TS, TCPI_OPT_WSCALE,
};
use socket2::{Domain, SockRef, Socket, Type};

use super::splice::{check, info, receive_queue, set_int};

/// Where a connection stands, in sequence numbers as they are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Of the next byte from the peer that userspace has not read.
    pub read: u32,
    /// Of the next byte that is expected from the peer (`RCV.NXT`).
    pub received: u32,
    /// Of the next byte that userspace will write (`SND.NXT` of RFC 9293, 3.3.1, with nothing queued).
    pub write: u32,
}

/// Reads the positions of a connection. If it is not ESTABLISHED, then and after, a SYN or FIN has its
/// place among the bytes ([`Negotiated::established`]).
///
/// Nothing is sent, and data may be arriving. Urgent data are in line from now on: the length of the
/// receive queue is otherwise told up to the urgent byte only (`tcp_inq`), and RFC 6093, 6, wants
/// nothing else of an application.
///
/// Leaving repair mode clears `SO_REUSEADDR`: [`stay`] is for a socket that is to live on.
pub fn positions(socket: &impl AsFd) -> io::Result<Positions> {
    SockRef::from(socket).set_out_of_band_inline(true)?;
    in_repair_mode(socket, || {
        // The send queue comes last. While it is selected, an acknowledgement that arrives makes
        // TCP take queued data for sent (`tcp_write_xmit`, "repair"), and they wait for the
        // retransmission timer.
        let (read, received) = read_position(socket)?;
        let write = position(socket, Queue::Send)?;
        Ok(Positions {
            read,
            received,
            write,
        })
    })
}

/// Makes an accepted connection what it was before its positions were read: what it leaves behind, in
/// TIME-WAIT, would else keep the next daemon from listening on its port.
pub fn stay(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_reuse_address(true)
}

/// The receive queue ends at `RCV.NXT`, and its length is what is unread. A segment may arrive between
/// the two questions, so the first is asked again; this ends at the latest when the window is full.
fn read_position(socket: &impl AsFd) -> io::Result<(u32, u32)> {
    let mut end = position(socket, Queue::Receive)?;
    loop {
        let unread = receive_queue(socket)?;
        let now = position(socket, Queue::Receive)?;
        if now == end {
            // At most a window, and sequence numbers are modulo 2^32.
            return Ok((end.wrapping_sub(unread as u32), end));
        }
        end = now;
    }
}

/// The timestamp that the connection would send now, in ms (RFC 7323, 3.2).
///
/// Since Linux 6.7 the lowest bit is not part of it: it says whether the unit is 1 us instead.
pub fn timestamp(socket: &impl AsFd) -> io::Result<u32> {
    get_u32(socket, libc::TCP_TIMESTAMP)
}

/// Sends a delayed acknowledgement now (`TCP_QUICKACK`), if there is one.
pub fn acknowledge(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1)
}

/// What a connection has negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The connection is in the state ESTABLISHED: neither side has ended its stream.
    pub established: bool,
    /// Timestamps (RFC 7323, 3).
    pub timestamps: bool,
    /// They tick every microsecond (a route's feature `tcp_usec_ts`), not every millisecond.
    pub usec_timestamps: bool,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// ECN (RFC 3168).
    pub ecn: bool,
    /// Scale of the windows that the peer sends (RFC 7323, 2); 0 without.
    pub their_scale: u8,
    /// Scale of the windows that we send; 0 without.
    pub our_scale: u8,
    /// Payload of the largest segment without options that the peer may send us, in bytes: our MSS
    /// option.
    pub largest_in: u32,
    /// Payload of the largest segment without options that we send now: the peer's MSS option, or
    /// what the path carries, or half of the peer's largest window.
    pub largest_out: u32,
    /// The peer's window as it was last told, in bytes.
    pub window: u32,
    /// What the path carries as far as is known, in bytes with IP header.
    pub path_mtu: u32,
}

/// Reads from `TCP_INFO` what a connection has negotiated. It is no MPTCP connection: those are
/// sockets of another protocol.
pub fn negotiated(socket: &impl AsFd) -> io::Result<Negotiated> {
    // With its padding (RFC 7323, appendix A). It is on every segment, and TCP has taken it off both
    // sizes (`tcp_finish_connect`, `tcp_mtu_to_mss`).
    const TIMESTAMP_OPTION: u32 = 12;

    let info = info(socket)?;
    let has = |option: u32| u32::from(info.tcpi_options) & option != 0;
    let scaled = has(TCPI_OPT_WSCALE);
    let timestamps = has(TCPI_OPT_TIMESTAMPS);
    let options = if timestamps { TIMESTAMP_OPTION } else { 0 };
    // `TCP_ESTABLISHED` of the kernel's net/tcp_states.h.
    const ESTABLISHED: u8 = 1;
    Ok(Negotiated {
        established: info.tcpi_state == ESTABLISHED,
        timestamps,
        usec_timestamps: has(TCPI_OPT_USEC_TS),
        sack: has(TCPI_OPT_SACK),
        ecn: has(TCPI_OPT_ECN),
        their_scale: if scaled { info.tcpi_snd_wscale() } else { 0 },
        our_scale: if scaled { info.tcpi_rcv_wscale() } else { 0 },
        largest_in: info.tcpi_advmss + options,
        largest_out: info.tcpi_snd_mss + options,
        window: info.tcpi_snd_wnd,
        path_mtu: info.tcpi_pmtu,
    })
}

/// A queue of a connection, as repair mode calls them (linux/tcp.h).
#[derive(Clone, Copy)]
enum Queue {
    /// What the peer has sent: `TCP_RECV_QUEUE`.
    Receive = 1,
    /// What we send: `TCP_SEND_QUEUE`.
    Send = 2,
}

/// In repair mode: the sequence number after the last byte of a queue.
fn position(socket: &impl AsFd, queue: Queue) -> io::Result<u32> {
    let queue = queue as libc::c_int;
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue)?;
    get_u32(socket, libc::TCP_QUEUE_SEQ)
}

/// May this process use repair mode? Tried on a socket of its own.
pub fn probe() -> io::Result<()> {
    enter(&Socket::new(Domain::IPV4, Type::STREAM, None)?)
}

/// Leaves repair mode, without the window probe that is usual then.
pub fn leave(socket: &impl AsFd) -> io::Result<()> {
    let off = TCP_REPAIR_OFF_NO_WP;
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, off)
}

fn in_repair_mode<T>(socket: &impl AsFd, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    enter(socket)?;
    let result = read();
    leave(socket)?;
    result
}

/// Enters repair mode, for longer than a call: whoever closes the socket from now on, the peer is not
/// told, whatever is queued, and a segment that arrives later finds no socket.
///
/// `__tcp_close` looks at it before anything else: "if (unlikely(tcp_sk(sk)->repair))
/// sk->sk_prot->disconnect(sk, 0)", which sends nothing.
pub fn enter(socket: &impl AsFd) -> io::Result<()> {
    let on = TCP_REPAIR_ON as libc::c_int;
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, on)
}

fn get_u32(socket: &impl AsFd, option: libc::c_int) -> io::Result<u32> {
    let mut value = 0u32;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, and how many to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    check(result)?;
    Ok(value)
}
