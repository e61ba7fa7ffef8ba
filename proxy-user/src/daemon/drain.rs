//! The end of a daemon: open flows get time to end by themselves.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::shared::Shared;
use super::signals::{Signals, Told};
use crate::takeover::{Predecessor, Successor};

/// How long a daemon that was taken over may take to reset its flows.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// The end of a daemon.
pub(super) struct Drain<'a> {
    pub(super) shared: &'a Shared,
    pub(super) signals: &'a mut Signals,
    pub(super) predecessor: Option<&'a mut Predecessor>,
}

impl Drain<'_> {
    /// Lets open flows end by themselves until the deadline, then resets them. After another daemon has
    /// taken over there is none: flows may take as long as they want.
    pub(super) async fn run(mut self, successor: Option<Successor>, mut deadline: Duration) {
        let registry = &self.shared.registry;
        let predecessor = self.predecessor.as_ref().map(|other| other.gone());
        let mut ended = pin!(async {
            self.shared.serving.wait().await;
            if let Some(gone) = predecessor {
                gone.await;
            }
            // Not before: a flow that is still to be adopted is nowhere yet.
            self.shared.forwarded.settled().await;
            registry.emptied().await;
        });
        if let Some(mut successor) = successor {
            tokio::select! {
                () = &mut ended => return,
                name = asked_to_end(self.signals, self.shared) => {
                    tracing::info!("{name}: flows have {deadline:?} to end");
                }
                () = successor.wants_end() => deadline = Duration::ZERO,
            }
        }
        tokio::select! {
            () = ended => return,
            () = sleep(deadline) => tracing::info!("{} flow(s) left after {deadline:?}: reset", registry.len()),
            name = asked_to_end(self.signals, self.shared) => {
                tracing::info!("{name} again: {} flow(s) reset", registry.len());
            }
        }
        self.reset().await;
    }

    async fn reset(&mut self) {
        self.shared.registry.stop();
        self.shared.forwarded.stop();
        self.shared.serving.wait().await;
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.end().await;
            if timeout(PREDECESSOR, predecessor.gone()).await.is_err() {
                tracing::warn!("the limpid that was taken over does not end");
            }
        }
        // Those that were just being handed over.
        self.shared.forwarded.stop();
        self.shared.registry.emptied().await;
    }
}

/// Waits for a signal that asks for the end.
async fn asked_to_end(signals: &mut Signals, shared: &Shared) -> &'static str {
    loop {
        match signals.next().await {
            Told::End(name) => return name,
            Told::Reload => tracing::warn!("SIGHUP: it is ending; nothing is reloaded"),
            Told::Reopen => shared.reopen_logs(),
        }
    }
}
