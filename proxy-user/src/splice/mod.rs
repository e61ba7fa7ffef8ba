//! Moves the bytes of a connected flow between its two sockets until it ends.
//!
//! The engines share the seam [`run`] and the supervision; they differ in who moves bytes.
//!
//! * [`engines`]: which engine a flow gets, and why not a better one.
//! * [`mod@trust`]: kernels whose sockmap can be relied on.
//! * [`packet`]: the engine `packet`: nobody above tc does.
//! * [`copy`]: the engine `copy`: userspace moves everything.
//! * [`sockmap`]: the engine `sockmap`: the kernel does, and userspace keeps its queues bounded.
//! * [`pump`], [`pipe`]: one direction through userspace; both engines use it.
//! * [`supervise`]: timeouts, resets and the stop signal, the same for every engine that has sockets.
//! * [`progress`]: what `limpid flows` sees of a flow. [`end`]: how it ended.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use proxy_common::splice::RECEIVE_BUFFER;
use proxy_core::address::Client;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::config::Listener;
use crate::steering::Identity;
use crate::sys;
use crate::sys::splice as tcp;

mod copy;
mod end;
mod engines;
mod packet;
mod pipe;
mod progress;
mod pump;
mod sockmap;
mod supervise;
mod trust;

pub use end::{End, Side};
pub use engines::{Choice, EngineKind, Engines, EnginesError, Fallback};
pub use packet::{Forwarding, GracePeriods, PacketEngine};
pub use progress::{Progress, State};
pub use trust::{Doubt, Trust, trust};

/// A flow whose header is read and whose upstream is connected.
#[derive(Debug)]
pub struct Connected<'a> {
    /// The connection that was accepted. Closing it resets it, as with the other.
    pub downstream: TcpStream,
    /// When, in ns of `CLOCK_MONOTONIC`.
    pub accepted_ns: u64,
    /// Whom it is for.
    pub client: Client,
    /// The connection to the backend.
    pub upstream: TcpStream,
    /// The address that this carries, where it is steered.
    pub identity: Option<&'a mut Identity>,
}

/// What became of a flow.
#[derive(Debug)]
pub enum Spliced {
    /// It is over.
    Ended(End),
    /// It goes on without sockets.
    Forwarded(Forwarding),
}

/// How long a flow may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// While both sides may send.
    pub idle: Duration,
    /// After one side has ended its stream.
    pub half_close: Duration,
}

impl Limits {
    /// Those of a listener's flows.
    #[must_use]
    pub fn of(listener: &Listener) -> Self {
        Self {
            idle: listener.idle_timeout.get(),
            half_close: listener.half_close_timeout.get(),
        }
    }
}

/// Splices a flow until it ends, and closes both sockets: in order where it ended in order, with a
/// reset on both where it did not. Or until it needs them no longer.
pub async fn run(
    engines: &Engines,
    connected: Connected<'_>,
    limits: &Limits,
    progress: &Progress,
    stop: CancellationToken,
) -> Spliced {
    let Connected {
        downstream,
        accepted_ns,
        client,
        upstream,
        identity,
    } = connected;
    let mut flow = Flow {
        downstream,
        accepted_ns,
        client,
        upstream,
        limits,
        progress,
        stop,
    };
    match engines.packet() {
        Ok(engine) => match packet::run(engine, flow, identity).await {
            Ok(forwarding) => return Spliced::Forwarded(forwarding),
            Err((back, fallback)) => {
                progress.fell_back(fallback);
                flow = back;
            }
        },
        Err(Some(fallback)) => progress.fell_back(fallback),
        Err(None) => {}
    }
    // As long as a socket may be all that there is of the flow, its end is the flow's: in order.
    for socket in [&flow.downstream, &flow.upstream] {
        sys::reset_on_close(socket, false);
    }
    // Fails only on a socket that is reset already, which the engine will see.
    let _ = sys::repair::stay(&flow.downstream);
    let end = match engines.sockmap() {
        Ok(sockmap) => sockmap::run(sockmap, flow).await,
        Err(fallback) => {
            if let Some(fallback) = fallback {
                progress.fell_back(fallback);
            }
            copy::run(flow).await
        }
    };
    progress.enter(State::Closed);
    Spliced::Ended(end)
}

/// What every engine is handed.
struct Flow<'a> {
    downstream: TcpStream,
    accepted_ns: u64,
    client: Client,
    upstream: TcpStream,
    limits: &'a Limits,
    progress: &'a Progress,
    stop: CancellationToken,
}

impl Flow<'_> {
    /// Closes both connections: in order where the flow ended so, else with a RST, lest whoever is still there takes the end of the bytes for the end of the stream.
    fn close(self, end: End) -> End {
        match end {
            End::Finished => {}
            End::Reset(_)
            | End::Failed(_)
            | End::Unroutable(_)
            | End::HandoverLost
            | End::IdleTimeout
            | End::HalfCloseTimeout
            | End::Stopped
            | End::Killed
            | End::ListenerGone
            | End::NoLongerAllowed => {
                for socket in [&self.downstream, &self.upstream] {
                    sys::reset_on_close(socket, true);
                }
            }
        }
        end
    }
}

/// Bounds what a socket can receive and nobody has read.
///
/// The kernel lets the buffer of a socket that is read fast grow to `tcp_rmem`'s maximum, which on
/// servers is tens of MiB: all of it fills when the other side stops reading.
fn bound_receive_buffer(socket: &TcpStream) -> io::Result<()> {
    // The kernel doubles what it is told.
    setsockopt(socket, sockopt::RcvBufForce, &(RECEIVE_BUFFER as usize / 2))?;
    // A fixed buffer ends the window's growth, unless it is told where to grow to.
    tcp::set_window_clamp(socket, RECEIVE_BUFFER as libc::c_int / 2)
}
