//! Sockets that are where a test wants them: `TCP_REPAIR` sets sequence numbers and timestamps.
//!
//! Linux lets a socket in repair mode be told its numbers, to restore connections elsewhere. A socket
//! that is then connected as usual keeps the initial sequence number (`tcp_v4_connect` chooses one only
//! if there is none), and a connected one keeps the timestamp.

use std::io;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt::TcpRepair};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use tokio::net::{TcpSocket, TcpStream};

/// `TCP_SEND_QUEUE` of linux/tcp.h.
const SEND_QUEUE: libc::c_int = 2;

sockopt_impl!(
    /// Which of a socket's queues the next option is about.
    RepairQueue,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_REPAIR_QUEUE,
    libc::c_int
);
sockopt_impl!(
    /// The queue's sequence number; of a socket that is not connected, the initial one.
    QueueSequence,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_QUEUE_SEQ,
    u32
);
sockopt_impl!(
    /// The timestamp (RFC 7323) that the connection's next segment has; it goes on from there.
    Timestamp,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_TIMESTAMP,
    u32
);

/// To be done with a socket before it connects, so that its initial sequence number is `sequence`.
pub fn begin_at(sequence: u32) -> impl FnOnce(&TcpSocket) -> io::Result<()> + Send {
    move |socket| {
        setsockopt(socket, TcpRepair, &1)?;
        setsockopt(socket, RepairQueue, &SEND_QUEUE)?;
        setsockopt(socket, QueueSequence, &sequence)?;
        setsockopt(socket, TcpRepair, &0)?;
        Ok(())
    }
}

/// The timestamp that a segment of this connection would have now.
pub fn timestamp(stream: &TcpStream) -> io::Result<u32> {
    Ok(getsockopt(stream, Timestamp)?)
}

/// Lets the connection's timestamps go on from `value`.
///
/// Its peer takes nothing that is more than 2^31 ahead of what it saw last (RFC 7323, 5.3): see
/// [`steps_to`].
pub fn set_timestamp(stream: &TcpStream, value: u32) -> io::Result<()> {
    setsockopt(stream, TcpRepair, &1)?;
    setsockopt(stream, Timestamp, &value)?;
    Ok(setsockopt(stream, TcpRepair, &0)?)
}

/// Values on the way from the connection's timestamp to `value`, in steps that its peer takes. A segment
/// must be received after each.
pub fn steps_to(stream: &TcpStream, value: u32) -> io::Result<[u32; 3]> {
    let now = timestamp(stream)?;
    let third = value.wrapping_sub(now) / 3;
    let first = now.wrapping_add(third);
    Ok([first, first.wrapping_add(third), value])
}
