//! What every engine with sockets does besides moving bytes: half-close, timeouts, resets, stopping.

use std::future::{Future as _, poll_fn};
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::end::{Broken, End, Side};
use super::progress::State;
use super::{Flow, Progress};
use crate::sys::splice as tcp;

/// One direction of a flow, as an engine moves it.
pub(super) trait Direction {
    /// Does what there is to do. Ready when the source has ended its stream and the target has got
    /// all of it, so that it may be told of the end.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<Result<(), Broken>>;

    /// Does it wait for its source to be readable? Then it will be told of the source's reset.
    fn waits_for_source(&self) -> bool;

    /// When bytes were last seen to move.
    fn last_activity(&self) -> Instant;
}

/// Runs both directions until the flow ends.
pub(super) async fn supervise<D: Direction>(flow: &Flow<'_>, up: &mut D, down: &mut D) -> End {
    let Flow {
        downstream,
        upstream,
        limits,
        progress,
        stop,
        ..
    } = flow;
    let mut stopped = pin!(stop.cancelled());
    // A direction waits for its source to be readable or its target to be writable, not for both:
    // only an error tells that a peer of whom nothing is expected has reset its connection. (Asked
    // only then: the wait costs a lock or two, as much as the rest of the daemon's part in moving a
    // small message.)
    let mut downstream_error = pin!(downstream.ready(Interest::ERROR));
    let mut upstream_error = pin!(upstream.ready(Interest::ERROR));
    let mut deadline = pin!(sleep(limits.idle));
    let mut up = Half {
        source: Side::Downstream,
        direction: up,
        open: true,
    };
    let mut down = Half {
        source: Side::Upstream,
        direction: down,
        open: true,
    };
    poll_fn(|cx| {
        let was_open = (up.open, down.open);
        // The first failure is the end: an error is told once, and whoever reads after that is told
        // of an end of the stream.
        let moved = up
            .poll(cx, downstream, upstream, down.open)
            .and_then(|()| down.poll(cx, upstream, downstream, up.open));
        if let Err(broken) = moved {
            return Poll::Ready(End::from(broken));
        }
        if !up.open && !down.open {
            return Poll::Ready(End::Finished);
        }
        for (half, socket, error) in [
            (&up, downstream, downstream_error.as_mut()),
            (&down, upstream, upstream_error.as_mut()),
        ] {
            let told = half.open && half.direction.waits_for_source();
            if !told && error.poll(cx).is_ready() {
                return Poll::Ready(End::from(Broken {
                    side: half.source,
                    error: pending_error(socket),
                }));
            }
        }
        if stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Stopped);
        }
        let both_open = up.open && down.open;
        let limit = if both_open {
            limits.idle
        } else {
            limits.half_close
        };
        if (up.open, down.open) != was_open {
            note(progress, up.open);
            deadline.as_mut().reset(later(Instant::now(), limit));
        }
        while deadline.as_mut().poll(cx).is_ready() {
            let last = up
                .direction
                .last_activity()
                .max(down.direction.last_activity());
            if last.elapsed() >= limit {
                return Poll::Ready(if both_open {
                    End::IdleTimeout
                } else {
                    End::HalfCloseTimeout
                });
            }
            deadline.as_mut().reset(later(last, limit));
        }
        Poll::Pending
    })
    .await
}

struct Half<'a, D> {
    source: Side,
    direction: &'a mut D,
    open: bool,
}

impl<D: Direction> Half<'_, D> {
    /// Moves bytes while the source may send; passes its end on once all of them are delivered.
    /// `other_open`: is the other direction open?
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        other_open: bool,
    ) -> Result<(), Broken> {
        if self.open && self.direction.poll(cx, from, to)?.is_ready() {
            Self::end_of(from, other_open).map_err(|error| Broken {
                side: self.source,
                error,
            })?;
            self.open = false;
            // ENOTCONN: it is reset already, which will be seen.
            let _ = SockRef::from(to).shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Was what reads as the end of a stream a FIN? A reset reads so too, once its error was told:
    /// by a splice(2) that had moved something before, for one, which returns that.
    fn end_of(from: &TcpStream, other_open: bool) -> io::Result<()> {
        // Where the source has got our FIN, its own closes the connection.
        if other_open && tcp::is_closed(from)? {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }
}

/// One direction has ended: which?
fn note(progress: &Progress, up_open: bool) {
    progress.enter(if up_open {
        State::UpstreamClosed
    } else {
        State::DownstreamClosed
    });
}

/// The error that a socket was said to have.
fn pending_error(socket: &TcpStream) -> io::Error {
    match socket.take_error() {
        Ok(Some(error)) | Err(error) => error,
        // Somebody has been told of it already; what breaks a connection at once is a reset.
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}

fn later(from: Instant, by: Duration) -> tokio::time::Instant {
    // A timeout beyond what the clock can say is no timeout.
    let never = Duration::from_secs(365 * 24 * 3600);
    from.checked_add(by).unwrap_or(from + never).into()
}
