//! The last stage: one record a connection, made exactly once, whatever happens to it.
//!
//! A [`Record`] is opened with the connection. When it is dropped the flow leaves the registry and
//! becomes an access line (target `access`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_core::address::{Listener, Peer};

use crate::admission::Place;
use crate::pool::Lease;
use crate::registry::{Flow, Registry};

/// How a connection ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// A stable name.
    pub label: &'static str,
    /// How much it matters.
    pub weight: Weight,
    /// Words, where something went wrong.
    pub detail: Option<String>,
}

/// How much a connection's end matters to whoever reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
    /// Nobody wants to know: health checks (rule 8).
    Trifle,
}

/// A connection's place in the registry and, at its end, in the log.
#[derive(Debug)]
pub struct Record {
    flow: Arc<Flow>,
    registry: Registry,
    /// `None`: nothing is logged.
    end: Option<Ending>,
    /// Given back with the record: its share of what its listener lets in, and of its server.
    place: Option<Place>,
    lease: Option<Lease>,
}

impl Record {
    /// Opens the record of a connection that has just been accepted.
    #[must_use]
    pub fn open(registry: &Registry, peer: Peer, called: Listener) -> Self {
        // What is logged if the task is dropped on the way.
        let end = Ending {
            label: "aborted",
            weight: Weight::Warning,
            detail: None,
        };
        Self {
            flow: registry.open(peer, called),
            registry: registry.clone(),
            end: Some(end),
            place: None,
            lease: None,
        }
    }

    /// Opens the record of a flow that an earlier daemon has left.
    #[must_use]
    pub fn adopt(registry: &Registry, peer: Peer, called: Listener, accepted: Instant) -> Self {
        let end = Ending {
            label: "aborted",
            weight: Weight::Warning,
            detail: None,
        };
        Self {
            flow: registry.adopt(peer, called, accepted),
            registry: registry.clone(),
            end: Some(end),
            place: None,
            lease: None,
        }
    }

    /// Forgets the flow without a word: another daemon will record its end.
    pub fn hand_over(mut self) {
        self.end = None;
    }

    /// Its listener has let it in.
    pub fn admitted(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Its server has taken it.
    pub fn served_by(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    /// The flow that it records.
    #[must_use]
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Says how it ended.
    pub fn close(mut self, end: Ending) {
        self.end = Some(end);
    }
}

/// Milliseconds, with the microseconds behind the point.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

impl Drop for Record {
    fn drop(&mut self) {
        let flow = &self.flow;
        self.registry.close(flow.id);
        let Some(end) = &self.end else { return };
        macro_rules! access {
            ($level:expr) => {
                tracing::event!(
                    target: "access",
                    $level,
                    id = flow.id,
                    client = flow.client.get().map(display),
                    peer = %flow.peer,
                    upstream = flow.upstream.get().map(display),
                    source = flow.source.get().map(display),
                    engine = flow.progress.engine().map(|engine| engine.label()),
                    fallback = flow.progress.fallback().map(|reason| reason.label()),
                    bytes_up = flow.progress.bytes_up(),
                    bytes_down = flow.progress.bytes_down(),
                    header_ms = flow.header.get().copied().map(ms),
                    connect_ms = flow.connect.get().copied().map(ms),
                    total_ms = ms(flow.accepted.elapsed()),
                    end = end.label,
                    detail = end.detail,
                )
            };
        }
        match end.weight {
            Weight::Normal => access!(tracing::Level::INFO),
            Weight::Warning => access!(tracing::Level::WARN),
            Weight::Trifle => access!(tracing::Level::DEBUG),
        }
    }
}
