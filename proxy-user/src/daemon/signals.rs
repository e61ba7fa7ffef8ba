//! What the daemon is told by signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// To end in order, by this signal.
    End(&'static str),
    /// To read the file again (SIGHUP).
    Reload,
    /// To open log files again (SIGUSR1), for whoever rotates them.
    Reopen,
}

/// The signals that the daemon waits for.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
    /// There is a file to be read again. Where there is none a hangup asks for the end: a terminal was
    /// closed.
    reloads: bool,
}

impl Signals {
    /// Waits for them from now on.
    pub(super) fn new(reloads: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
            reloads,
        })
    }

    /// The next one. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End("SIGTERM"),
            _ = self.interrupt.recv() => Told::End("SIGINT"),
            _ = self.hangup.recv() => if self.reloads { Told::Reload } else { Told::End("SIGHUP") },
            _ = self.user.recv() => Told::Reopen,
        }
    }
}
