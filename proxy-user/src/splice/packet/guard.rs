//! What the sockets of a flow still have to do after the switch: hand over what had reached them, and
//! see acknowledged what they have sent.
//!
//! The tc programs show them the acknowledgements, let their data out, and nothing else of them.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use proxy_common::flow::{Record, SEEN_FIN, SEEN_RST, SETTLED};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::super::progress::Carried;
use super::super::{End, Flow, Side};
use super::PacketEngine;
use crate::sys::{repair, splice as tcp};

/// How often the queues are looked at, at first and at most: they empty without an event.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Bytes handed over at once.
const PIECE: usize = 64 << 10;

/// Runs until neither socket has anything left to do, and closes both without a word. Returns how the flow
/// ended, if it did (its peers are to be told), and its record.
///
/// Until `grace_period` is over, packets that had passed the programs before the switch may reach them.
pub(super) async fn run(
    engine: &PacketEngine,
    flow: Flow<'_>,
    number: u64,
    mut record: Record,
    grace_period: impl Future<Output = ()>,
) -> (Option<End>, Record) {
    let sockets = [&flow.downstream, &flow.upstream];
    let mut guard = Guard {
        up: Handover::default(),
        down: Handover::default(),
    };
    let mut grace_period = Some(pin!(grace_period));
    let end = loop {
        let work = guard.work(engine, &flow, number, &record).await;
        for socket in sockets {
            let _ = repair::enter(socket);
        }
        record.handed_over = [guard.up.bytes, guard.down.bytes];
        if let Err(end) = work {
            break Some(end);
        }
        if let Some(grace_period) = grace_period.take() {
            grace_period.await;
        }
        let arrived = guard.up.has_more(sockets[0]) || guard.down.has_more(sockets[1]);
        if matches!(work, Ok(Work::Pointless)) || !arrived {
            // Killed from here on, the daemon leaves the flow as it is. Not earlier: what arrives at a socket
            // is acknowledged, and nobody would hand it over or send it again.
            record.state = SETTLED;
            engine.table.record(number, record);
            break None;
        }
        for socket in sockets {
            let _ = repair::leave(socket);
        }
    };
    // Both are in repair mode: they are closed without a word.
    drop(flow);
    (end, record)
}

/// Why a guard has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Nothing is left.
    Done,
    /// A reset has gone past it.
    Pointless,
}

/// Both directions of a handover.
struct Guard {
    up: Handover,
    down: Handover,
}

/// One direction.
#[derive(Default)]
struct Handover {
    /// Bytes so far.
    bytes: u64,
    /// The end of the source's stream was handed over too.
    ended: bool,
    /// Read and not written.
    carry: BytesMut,
}

impl Guard {
    /// Hands over and waits, until all is handed over and acknowledged.
    async fn work(
        &mut self,
        engine: &PacketEngine,
        flow: &Flow<'_>,
        number: u64,
        record: &Record,
    ) -> Result<Work, End> {
        let (down, up) = (&flow.downstream, &flow.upstream);
        let mut poll = POLL.0;
        let mut last_progress = Instant::now();
        loop {
            let moved_up = self
                .up
                .step(down, up, Side::Downstream, flow.progress.up())?;
            let moved_down = self
                .down
                .step(up, down, Side::Upstream, flow.progress.down())?;
            if moved_up || moved_down {
                (poll, last_progress) = (POLL.0, Instant::now());
                continue;
            }
            if self.up.is_empty() && self.down.is_empty() && is_done(down) && is_done(up) {
                for (handover, key) in [
                    (&self.up, &record.downstream),
                    (&self.down, &record.upstream),
                ] {
                    if handover.ended {
                        engine
                            .table
                            .update(number, key, |entry| entry.seen |= SEEN_FIN);
                    }
                }
                return Ok(Work::Done);
            }
            if poll > POLL.0 {
                if is_reset(engine, number, record)? {
                    return Ok(Work::Pointless);
                }
                for (side, socket) in [(Side::Downstream, down), (Side::Upstream, up)] {
                    if tcp::is_closed(socket).unwrap_or(true) && !self.both_ended() {
                        return Err(End::Failed(side));
                    }
                }
                if last_progress.elapsed() >= flow.limits.idle {
                    return Err(End::IdleTimeout);
                }
            }
            tokio::select! {
                () = sleep(poll) => poll = (poll * 2).min(POLL.1),
                () = flow.stop.cancelled() => return Err(End::Stopped),
            }
        }
    }

    fn both_ended(&self) -> bool {
        self.up.ended && self.down.ended
    }
}

/// Has a RST gone past us, to the other side?
fn is_reset(engine: &PacketEngine, number: u64, record: &Record) -> Result<bool, End> {
    let mut reset = false;
    for (side, key) in [
        (Side::Downstream, &record.downstream),
        (Side::Upstream, &record.upstream),
    ] {
        let entry = engine.table.get(number, key);
        reset |= entry.ok_or(End::Failed(side))?.seen & SEEN_RST != 0;
    }
    Ok(reset)
}

/// Is everything that it has sent acknowledged?
fn is_done(socket: &TcpStream) -> bool {
    tcp::send_queue(socket).is_ok_and(|bytes| bytes == 0)
}

impl Handover {
    /// Hands over what can be moved at once, or the end of the stream; false if there is nothing.
    ///
    /// Sockets are asked, not tokio: what it knows of them is from before the switch.
    fn step(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        source: Side,
        carried: &Carried,
    ) -> Result<bool, End> {
        if self.ended {
            return Ok(false);
        }
        if self.carry.is_empty() {
            // What is there; or nothing, which a byte's room tells from the end of the stream. An idle
            // flow is to hold no buffer.
            let arrived = tcp::receive_queue(from).unwrap_or_default();
            let length = usize::try_from(arrived).unwrap_or(PIECE).clamp(1, PIECE);
            self.carry.resize(length, 0);
            let read = (&*SockRef::from(from)).read(&mut self.carry);
            self.carry.truncate(*read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    self.ended = true;
                    // ENOTCONN: it is reset already, which will be seen.
                    let _ = SockRef::from(to).shutdown(Shutdown::Write);
                    return Ok(true);
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Err(End::Reset(source)),
            }
        }
        match (&*SockRef::from(to)).write(&self.carry) {
            Ok(written) => {
                self.carry.advance(written);
                self.bytes += written as u64;
                carried.handed_over(self.bytes);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(End::Reset(source.other())),
        }
    }

    /// Has something come from the source that is not handed over: bytes, or the end of the stream?
    fn has_more(&self, from: &TcpStream) -> bool {
        let bytes = tcp::receive_queue(from).is_ok_and(|bytes| bytes > 0);
        bytes || !self.ended && tcp::has_peer_ended(from).unwrap_or(false)
    }

    /// Is there nothing that has been read and not written?
    fn is_empty(&self) -> bool {
        self.carry.is_empty()
    }
}
