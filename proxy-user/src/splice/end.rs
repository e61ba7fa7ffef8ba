//! How a flow ended.

use std::fmt;
use std::io;

/// One of a flow's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was accepted.
    Downstream,
    /// The one to the backend.
    Upstream,
}

impl Side {
    /// The flow's other connection.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides ended their streams, and everything was delivered.
    Finished,
    /// This side sent a RST.
    Reset(Side),
    /// This side's connection broke otherwise: its host no longer answers, or is unreachable.
    Failed(Side),
    /// There was no way to this side any more: its interface or its route was gone.
    Unroutable(Side),
    /// The daemon died while it switched the flow to the engine `packet`.
    HandoverLost,
    /// Nothing was sent for the idle timeout.
    IdleTimeout,
    /// One side had ended its stream, and the other sent nothing for the half-close timeout.
    HalfCloseTimeout,
    /// The daemon ended, and did not wait for it any longer.
    Stopped,
    /// By `limpid flow kill`.
    Killed,
    /// A reload has removed its listener.
    ListenerGone,
    /// After a reload its listener would not let its client in.
    NoLongerAllowed,
}

impl End {
    /// Every end, for documentation and metrics.
    pub const ALL: [Self; 14] = [
        Self::Finished,
        Self::Reset(Side::Downstream),
        Self::Reset(Side::Upstream),
        Self::Failed(Side::Downstream),
        Self::Failed(Side::Upstream),
        Self::Unroutable(Side::Downstream),
        Self::Unroutable(Side::Upstream),
        Self::HandoverLost,
        Self::IdleTimeout,
        Self::HalfCloseTimeout,
        Self::Stopped,
        Self::Killed,
        Self::ListenerGone,
        Self::NoLongerAllowed,
    ];

    /// Stable name, for logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Finished => "fin",
            Self::Reset(Side::Downstream) => "downstream-reset",
            Self::Reset(Side::Upstream) => "upstream-reset",
            Self::Failed(Side::Downstream) => "downstream-failed",
            Self::Failed(Side::Upstream) => "upstream-failed",
            Self::Unroutable(Side::Downstream) => "downstream-unroutable",
            Self::Unroutable(Side::Upstream) => "upstream-unroutable",
            Self::HandoverLost => "handover-lost",
            Self::IdleTimeout => "idle-timeout",
            Self::HalfCloseTimeout => "half-close-timeout",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::ListenerGone => "listener-gone",
            Self::NoLongerAllowed => "no-longer-allowed",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A connection that broke while something was done with it.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) side: Side,
    pub(super) error: io::Error,
}

impl From<Broken> for End {
    fn from(Broken { side, error }: Broken) -> Self {
        // EPIPE: written to a connection that had been reset.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) {
            Self::Reset(side)
        } else {
            tracing::debug!(?side, "connection failed: {error}");
            Self::Failed(side)
        }
    }
}
