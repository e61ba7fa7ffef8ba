//! The engine `sockmap`: the kernel moves the bytes, userspace sees that its queues stay bounded.
//!
//! The verdict program redirects what arrives on a socket to the other one's send queue while it
//! may (`Splice::admit`), and passes it to userspace otherwise. Passed data is charged to the
//! receive buffer, so a target that is full stops its source as in any proxy. (Behind data on its way
//! *to* the same socket it is charged late: a socket filter refuses segments while too much is unread,
//! [`proxy_common::splice::UNREAD_LIMIT`].) For each direction:
//!
//! 1. Passed data becomes readable. It may be sent on once all that was redirected before it has
//!    reached the target's TCP ("handed over"); then it is copied like any other.
//! 2. When userspace has sent all that was passed, and the target's send queue has room, it says so
//!    in the [`Gate`], and the program redirects again.
//! 3. The end of the stream is passed on when all that the source received has been through the
//!    program, all that was passed is sent, and all that was redirected is handed over. A shutdown
//!    before that would silently cut the stream short.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use proxy_common::splice::{Gate, SEND_BUFFER, Splice};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::end::{Broken, End, Side};
use super::progress::{Carried, State};
use super::pump::{Pump, Source};
use super::supervise::{Direction, supervise};
use super::{EngineKind, Fallback, Flow, bound_receive_buffer, copy};
use crate::bpf::sockmap::Sockmap;
use crate::sys::{self, splice as tcp};

/// A target with more than this in its send queue is not redirected to, in bytes.
const ROOM: u64 = SEND_BUFFER / 8;

/// How soon the kernel's queues are looked at again: they change without any event.
const SOON: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_millis(100);

/// Splices until the flow ends; copies where the kernel does not take its sockets.
pub(super) async fn run(sockmap: &Arc<Sockmap>, flow: Flow<'_>) -> End {
    let (mut up, mut down) = match enter(sockmap, &flow) {
        Ok(directions) => directions,
        Err(error) => {
            tracing::debug!("not spliced: {error}");
            flow.progress.fell_back(Fallback::of_insertion(&error));
            return copy::run(flow).await;
        }
    };
    flow.progress.carried_by(EngineKind::Sockmap);
    flow.progress.enter(State::Open);
    let end = supervise(&flow, &mut up, &mut down).await;
    // The sockets leave the maps by being closed, and the entries outlive them.
    let end = flow.close(end);
    drop((up, down));
    end
}

/// Gives both sockets to the kernel.
fn enter<'a>(sockmap: &Arc<Sockmap>, flow: &Flow<'a>) -> io::Result<(Spliced<'a>, Spliced<'a>)> {
    let downstream = Endpoint::prepare(&flow.downstream)?;
    let upstream = Endpoint::prepare(&flow.upstream)?;
    let (down_cookie, up_cookie) = (downstream.cookie, upstream.cookie);
    // A redirect to a socket that is not in the map is a loss: both are targets before either is a
    // source.
    let entered = [&downstream, &upstream]
        .into_iter()
        .try_for_each(|endpoint| sockmap.insert_target(endpoint.cookie, endpoint.socket))
        .and_then(|()| {
            let progress = flow.progress;
            let up = Pump::new(Side::Downstream, Source::Passed, progress.up());
            let down = Pump::new(Side::Upstream, Source::Passed, progress.down());
            Ok((
                Spliced::new(sockmap, &downstream, &upstream, up, progress.up())?,
                Spliced::new(sockmap, &upstream, &downstream, down, progress.down())?,
            ))
        })
        .and_then(|(mut up, mut down)| {
            sockmap.insert_source(down_cookie, &flow.downstream)?;
            up.spliced = true;
            // If only one side is taken, because the other has just ended its stream, the flow is
            // spliced in one direction and copied in the other: the first cannot be taken out again
            // without losing what arrives meanwhile.
            down.spliced = sockmap.insert_source(up_cookie, &flow.upstream).is_ok();
            Ok((up, down))
        });
    if entered.is_err() {
        sockmap.remove_target(down_cookie);
        sockmap.remove_target(up_cookie);
        return entered;
    }
    // What came before the insertion lies in the receive queue until the kernel looks at it.
    kick(&flow.downstream)?;
    kick(&flow.upstream)?;
    entered
}

/// Makes the kernel look at a source's receive queue. (A peek does it too, from 6.4 on.)
fn kick(socket: &TcpStream) -> io::Result<()> {
    tcp::set_receive_low_water(socket, 1)
}

/// A socket about to be spliced, and how far its connection is.
struct Endpoint<'a> {
    socket: &'a TcpStream,
    cookie: u64,
    /// Bytes that its TCP was given to send.
    given: u64,
    /// Bytes read from it, in `tcp::Counters::received`.
    read: u64,
}

impl<'a> Endpoint<'a> {
    fn prepare(socket: &'a TcpStream) -> io::Result<Self> {
        // The kernel doubles what it is told.
        setsockopt(socket, sockopt::SndBufForce, &(SEND_BUFFER as usize / 2))?;
        bound_receive_buffer(socket)?;
        Ok(Self {
            socket,
            cookie: SockRef::from(socket).cookie()?,
            given: given(socket)?,
            read: read(socket)?,
        })
    }
}

/// Bytes that a socket's TCP was given to send, in `tcp::Counters::acked`.
fn given(socket: &TcpStream) -> io::Result<u64> {
    loop {
        let before = tcp::counters(socket)?.acked;
        let queued = tcp::send_queue(socket)?;
        // Bytes acknowledged in between would be missing from both.
        if tcp::counters(socket)?.acked == before {
            return Ok(before + queued);
        }
    }
}

/// Bytes that were read from a socket, in `tcp::Counters::received`.
fn read(socket: &TcpStream) -> io::Result<u64> {
    loop {
        let before = tcp::counters(socket)?.received;
        let queued = tcp::receive_queue(socket)?;
        if tcp::counters(socket)?.received == before {
            return Ok(before - queued);
        }
    }
}

/// Bytes given to a socket's TCP, or a few less while they are being acknowledged.
fn given_at_least(socket: &TcpStream) -> io::Result<u64> {
    let acked = tcp::counters(socket)?.acked;
    Ok(acked + tcp::send_queue(socket)?)
}

/// One direction.
struct Spliced<'a> {
    pump: Pump<'a>,
    kernel: Kernel,
    carried: &'a Carried,
    /// Is the source in the kernel's hands? If not, this is plain copying.
    spliced: bool,
    /// [`Endpoint::read`] of the source at the start.
    read: u64,
}

/// The kernel's part of a direction, as userspace sees it.
struct Kernel {
    sockmap: Arc<Sockmap>,
    /// The source's cookie, and which side it is.
    source: u64,
    side: Side,
    gate: u32,
    /// [`Endpoint::given`] of the target at the start.
    given: u64,
    /// Userspace has, or has sent, what the program does not know to be sent.
    closed: bool,
    /// What was redirected before the gate closed has reached the target's TCP.
    handed_over: bool,
    timer: Option<Pin<Box<Sleep>>>,
    wait: Duration,
}

impl<'a> Spliced<'a> {
    fn new(
        sockmap: &Arc<Sockmap>,
        source: &Endpoint<'_>,
        target: &Endpoint<'_>,
        pump: Pump<'a>,
        carried: &'a Carried,
    ) -> io::Result<Self> {
        let gate =
            sockmap.insert_splice(source.cookie, target.cookie, target.given, Gate::default())?;
        carried.attach(Arc::clone(sockmap), source.cookie);
        let kernel = Kernel {
            sockmap: Arc::clone(sockmap),
            source: source.cookie,
            side: pump.side(),
            gate,
            given: target.given,
            closed: false,
            handed_over: false,
            timer: None,
            wait: SOON,
        };
        Ok(Self {
            pump,
            kernel,
            carried,
            spliced: false,
            read: source.read,
        })
    }
}

impl Direction for Spliced<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<Result<(), Broken>> {
        let Self {
            pump,
            kernel,
            spliced,
            read,
            ..
        } = self;
        if !*spliced {
            return pump.poll(cx, from, to, |_, _| Poll::Ready(Ok(())));
        }
        loop {
            let pumped = pump.poll(cx, from, to, |cx, sent| {
                kernel.poll_handed_over(cx, to, sent)
            });
            if pumped?.is_ready() {
                if ready!(kernel.poll_delivered(cx, from, to, *read, pump.total()))? {
                    return Poll::Ready(Ok(()));
                }
            } else {
                if pump.is_empty() {
                    ready!(kernel.poll_reopen(cx, to, pump.total()))?;
                }
                return Poll::Pending;
            }
        }
    }

    fn waits_for_source(&self) -> bool {
        // It may wait for a queue or a timer, and has no small messages to be quick with.
        false
    }

    fn last_activity(&self) -> Instant {
        let redirected = self.kernel.splice().ok().and_then(|splice| {
            let age = sys::monotonic_ns().checked_sub(splice.last_seen_ns)?;
            Instant::now().checked_sub(Duration::from_nanos(age))
        });
        redirected
            .into_iter()
            .fold(self.pump.last_activity(), Instant::max)
    }
}

impl Drop for Spliced<'_> {
    fn drop(&mut self) {
        self.carried.detach();
        self.kernel
            .sockmap
            .remove_splice(self.kernel.source, self.kernel.gate);
    }
}

impl Kernel {
    /// Ready when userspace may send: all that was redirected before is with the target's TCP.
    ///
    /// Asked when passed data has been read; from then on nothing more is redirected.
    fn poll_handed_over(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        sent: u64,
    ) -> Poll<Result<(), Broken>> {
        self.closed = true;
        while !self.handed_over {
            let splice = self.splice()?;
            let given = given_at_least(to).map_err(|error| self.target_broke(error))?;
            if given >= self.given + splice.redirected + sent {
                (self.handed_over, self.wait) = (true, SOON);
            } else {
                ready!(self.poll_timer(cx));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Opens the gate again when nothing is on its way through userspace and the target has room.
    fn poll_reopen(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        sent: u64,
    ) -> Poll<Result<(), Broken>> {
        while self.closed && self.splice()?.passed == sent {
            if tcp::send_queue(to).map_err(|error| self.target_broke(error))? <= ROOM {
                let open = Gate { consumed: sent };
                self.sockmap
                    .set_gate(self.gate, open)
                    .map_err(|error| self.broke(error))?;
                (self.closed, self.handed_over, self.wait) = (false, false, SOON);
            } else {
                ready!(self.poll_timer(cx));
            }
        }
        // Where more was passed meanwhile, it is about to be readable.
        Poll::Ready(Ok(()))
    }

    /// Ready with true when a source that has ended is empty, and all of it is with the target's
    /// TCP; with false when it was not, and it is time to look again.
    fn poll_delivered(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        read: u64,
        sent: u64,
    ) -> Poll<Result<bool, Broken>> {
        let splice = self.splice()?;
        let counters = tcp::counters(from).map_err(|error| self.broke(error))?;
        // A FIN counts as a byte received.
        let received = counters.received.saturating_sub(read + 1);
        let given = given_at_least(to).map_err(|error| self.target_broke(error))?;
        let delivered = splice.redirected + splice.passed >= received
            && splice.passed == sent
            && given >= self.given + splice.redirected + sent;
        if !delivered {
            kick(from).map_err(|error| self.broke(error))?;
            ready!(self.poll_timer(cx));
        }
        Poll::Ready(Ok(delivered))
    }

    fn splice(&self) -> Result<Splice, Broken> {
        self.sockmap
            .splice(self.source)
            .ok_or_else(|| self.broke(io::ErrorKind::NotFound.into()))
    }

    /// Waits a while; longer each time.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = self.wait;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(wait)));
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        self.wait = (wait * 2).min(LATE);
        Poll::Ready(())
    }

    fn broke(&self, error: io::Error) -> Broken {
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
