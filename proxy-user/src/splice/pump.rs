//! One direction of a flow through userspace.
//!
//! Bytes are read only when nothing is waiting to be sent, so a target that does not take them stops
//! its source by TCP's own means. The read buffer is the thread's, not the flow's: a flow owns memory
//! only while its target is full. Bulk goes through a pipe by splice(2), which saves both copies;
//! for small messages a read and a write are cheaper than two splices.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::end::{Broken, Side};
use super::pipe::Pipe;
use super::progress::Carried;

/// Length of the thread's read buffer.
const BUFFER: usize = 64 << 10;

/// Reads that fill the buffer, one after the other, before a flow is taken to be bulk.
const FULL_READS: u8 = 2;

/// A splice that moves less than this ends bulk.
const BULK: usize = BUFFER / 4;

/// Messages moved before other flows get their turn.
const FAIR: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// What a pump reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// TCP's receive queue. A read that does not fill the buffer has emptied it.
    Socket,
    /// The data that a sockmap's verdict program passed. splice(2) would read around it, and a read
    /// can be short while there is more.
    Passed,
}

/// One direction of a flow through userspace.
#[derive(Debug)]
pub(super) struct Pump<'a> {
    side: Side,
    source: Source,
    carried: &'a Carried,
    carry: Carry,
    splices: bool,
    full_reads: u8,
    total: u64,
    last_activity: Instant,
}

/// What was read and is not sent yet.
#[derive(Debug)]
enum Carry {
    Nothing,
    Bytes(Bytes),
    Pipe(Pipe),
}

impl<'a> Pump<'a> {
    /// A pump from `side` to the other one.
    pub(super) fn new(side: Side, source: Source, carried: &'a Carried) -> Self {
        Self {
            side,
            source,
            carried,
            carry: Carry::Nothing,
            splices: source == Source::Socket,
            full_reads: 0,
            total: 0,
            last_activity: Instant::now(),
        }
    }

    /// The side that it reads from.
    pub(super) fn side(&self) -> Side {
        self.side
    }

    /// When the last byte was sent.
    pub(super) fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// Bytes sent.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Is nothing read that is not sent?
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.carry, Carry::Nothing)
    }

    /// Moves what there is. Ready when the source has ended and all of it is sent; pending with the
    /// task to be woken when there is more to do.
    ///
    /// `may_send` is asked before each send, after what is to be sent was read, and told how many
    /// bytes were sent before.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        mut may_send: impl FnMut(&mut Context<'_>, u64) -> Poll<Result<(), Broken>>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..FAIR {
            if !self.is_empty() {
                ready!(may_send(cx, self.total))?;
                ready!(self.poll_send_carry(cx, to)).map_err(|e| self.target_broke(e))?;
            }
            let received = if self.full_reads >= FULL_READS {
                self.poll_splice(cx, from)
            } else {
                self.poll_copy(cx, from, to, &mut may_send)
            };
            if ready!(received)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads into the thread's buffer and sends from it; only what the target does not take is kept.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        may_send: &mut impl FnMut(&mut Context<'_>, u64) -> Poll<Result<(), Broken>>,
    ) -> Poll<Result<usize, Broken>> {
        SCRATCH.with_borrow_mut(|buffer| {
            let read = ready!(poll_read(cx, from, self.source, buffer))
                .map_err(|e| self.source_broke(e))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            let full = read == buffer.len() && self.splices;
            self.full_reads = if full { self.full_reads + 1 } else { 0 };
            let message = &buffer[..read];
            let sent = match may_send(cx, self.total)? {
                Poll::Ready(()) => try_write(to, message).map_err(|e| self.target_broke(e))?,
                Poll::Pending => 0,
            };
            self.sent(sent);
            if sent < read {
                self.carry = Carry::Bytes(Bytes::copy_from_slice(&message[sent..]));
            }
            Poll::Ready(Ok(read))
        })
    }

    /// Takes what the source has into a pipe.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
    ) -> Poll<Result<usize, Broken>> {
        let Ok(mut pipe) = Pipe::get() else {
            // Out of descriptors: the buffer will do.
            self.splices = false;
            self.full_reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let moved = loop {
            let ready = from.poll_read_ready(cx);
            if ready.is_pending() {
                pipe.put();
                return Poll::Pending;
            }
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                moved => break moved.map_err(|e| self.source_broke(e))?,
            }
        };
        if moved < BULK {
            self.full_reads = 0;
        }
        if moved == 0 {
            pipe.put();
        } else {
            self.carry = Carry::Pipe(pipe);
        }
        Poll::Ready(Ok(moved))
    }

    fn poll_send_carry(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let sent = match &mut self.carry {
                Carry::Nothing => return Poll::Ready(Ok(())),
                Carry::Bytes(bytes) => {
                    let sent = ready!(poll_io(cx, to, || try_write(to, bytes)))?;
                    bytes.advance(sent);
                    if bytes.is_empty() {
                        self.carry = Carry::Nothing;
                    }
                    sent
                }
                Carry::Pipe(pipe) => {
                    let sent = ready!(poll_io(cx, to, || would_be_0(
                        to.try_io(Interest::WRITABLE, || pipe.drain(to))
                    )))?;
                    if pipe.is_empty()
                        && let Carry::Pipe(pipe) =
                            std::mem::replace(&mut self.carry, Carry::Nothing)
                    {
                        pipe.put();
                    }
                    sent
                }
            };
            self.sent(sent);
        }
    }

    fn sent(&mut self, bytes: usize) {
        self.total += bytes as u64;
        self.carried.add(bytes as u64);
        self.last_activity = Instant::now();
    }

    fn source_broke(&self, error: io::Error) -> Broken {
        Broken {
            side: self.side,
            error,
        }
    }

    fn target_broke(&self, error: io::Error) -> Broken {
        Broken {
            side: self.side.other(),
            error,
        }
    }
}

/// Reads once. After a read that has emptied the socket the next event tells when there is more; no
/// call is spent on being told that there is nothing.
fn poll_read(
    cx: &mut Context<'_>,
    from: &TcpStream,
    source: Source,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(from.poll_read_ready(cx))?;
        let mut read = None;
        let result = from.try_io(Interest::READABLE, || {
            let bytes = (&*SockRef::from(from)).read(buffer)?;
            read = Some(bytes);
            let emptied = source == Source::Socket && bytes != 0 && bytes < buffer.len();
            if emptied { Err(would_block()) } else { Ok(()) }
        });
        match (read, result) {
            (Some(bytes), _) => return Poll::Ready(Ok(bytes)),
            (None, Err(e)) if e.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
            (None, _) => {}
        }
    }
}

/// Writes once; 0 where the socket takes nothing. As with reading, a short write says that the
/// socket is full.
fn try_write(to: &TcpStream, message: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    let result = to.try_io(Interest::WRITABLE, || {
        written = (&*SockRef::from(to)).write(message)?;
        if written == message.len() {
            Ok(())
        } else {
            Err(would_block())
        }
    });
    would_be_0(result.map(|()| written)).map(|_| written)
}

/// Calls `io` when the socket is writable, until it moves something.
fn poll_io(
    cx: &mut Context<'_>,
    to: &TcpStream,
    mut io: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(to.poll_write_ready(cx))?;
        match io()? {
            0 => {}
            moved => return Poll::Ready(Ok(moved)),
        }
    }
}

fn would_be_0(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}
