//! The last stage: one record a connection, made exactly once, whatever happens to it.
//!
//! A [`Record`] is opened with the connection. When it is dropped the flow leaves the registry, is
//! counted, and becomes an access line. [`Observer`] is who is told.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use proxy_core::address::{Listener, Peer};

use crate::access_log::{AccessLog, By, During, Line, OpenError, Termination};
use crate::admission::Place;
use crate::config::{AccessLogFormat, LogTarget, Name};
use crate::header::IdentifyError;
use crate::metrics::Metrics;
use crate::pool::Lease;
use crate::registry::{Flow, Registry};
use crate::splice::{End, Side};
use crate::steering::ClaimError;
use crate::upstream::ConnectError;

/// How a connection ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// A stable name.
    pub label: &'static str,
    /// How much it matters.
    pub weight: Weight,
    /// Words, where something went wrong.
    pub detail: Option<String>,
    /// The same for those who read HAProxy's log.
    pub termination: Termination,
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

impl Ending {
    /// A client that is not let in, by a stable reason.
    #[must_use]
    pub fn refused(label: &'static str, detail: String) -> Self {
        Self {
            label,
            weight: Weight::Warning,
            detail: Some(detail),
            termination: Termination::new(By::Proxy, During::Request),
        }
    }

    /// What is recorded if the task is dropped on the way.
    fn aborted() -> Self {
        Self {
            label: "aborted",
            weight: Weight::Warning,
            detail: None,
            termination: Termination::wherever(By::Proxy),
        }
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        let by = match end {
            End::Finished => By::Both,
            End::Reset(Side::Downstream)
            | End::Failed(Side::Downstream)
            | End::Unroutable(Side::Downstream) => By::Client,
            End::Reset(Side::Upstream)
            | End::Failed(Side::Upstream)
            | End::Unroutable(Side::Upstream) => By::Server,
            End::HandoverLost => By::Proxy,
            End::IdleTimeout | End::HalfCloseTimeout => By::ClientTimeout,
            End::Stopped | End::Killed | End::ListenerGone | End::NoLongerAllowed => By::Operator,
        };
        let (weight, detail) = match end {
            End::Finished
            | End::Reset(_)
            | End::IdleTimeout
            | End::HalfCloseTimeout
            | End::Stopped
            | End::Killed
            | End::ListenerGone
            | End::NoLongerAllowed => (Weight::Normal, None),
            End::Failed(_) | End::Unroutable(_) | End::HandoverLost => {
                (Weight::Warning, Some(end.to_string()))
            }
        };
        Self {
            label: end.label(),
            weight,
            detail,
            termination: Termination::wherever(by),
        }
    }
}

impl From<&IdentifyError> for Ending {
    fn from(error: &IdentifyError) -> Self {
        let (weight, by) = match error {
            IdentifyError::Closed(_) => (Weight::Trifle, By::Client),
            IdentifyError::Read(_) => (Weight::Warning, By::Client),
            IdentifyError::Timeout(..) => (Weight::Warning, By::ClientTimeout),
            IdentifyError::Untrusted | IdentifyError::Refused(_) => (Weight::Warning, By::Proxy),
        };
        Self {
            label: error.label(),
            weight,
            detail: Some(error.to_string()),
            termination: Termination::new(by, During::Request),
        }
    }
}

impl From<&ConnectError> for Ending {
    fn from(error: &ConnectError) -> Self {
        let by = match error {
            ConnectError::Claim(
                ClaimError::FamilyMismatch { .. } | ClaimError::ClientAddress { .. },
            )
            | ConnectError::NotSteered(_)
            | ConnectError::Header(_) => By::Proxy,
            ConnectError::Claim(
                ClaimError::PortsTaken { .. }
                | ClaimError::TooMany(_)
                | ClaimError::Table(_)
                | ClaimError::Cookie(_),
            )
            | ConnectError::Socket(..) => By::Resources,
            ConnectError::Connect(_, e) if e.kind() == std::io::ErrorKind::AddrNotAvailable => {
                By::Resources
            }
            ConnectError::NoServer(_) | ConnectError::Connect(..) | ConnectError::Send(..) => {
                By::Server
            }
            ConnectError::Timeout(..) | ConnectError::NoReply { .. } => By::ServerTimeout,
            ConnectError::Downstream(_) | ConnectError::Left => By::Client,
        };
        Self {
            label: error.label(),
            weight: Weight::Warning,
            detail: Some(error.to_string()),
            termination: Termination::new(by, During::Connect),
        }
    }
}

/// Who is told of connections: the metrics, and the access log. Clones are the same. That of a test needs
/// nothing: its metrics are nobody's, its access lines events of `tracing`.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    metrics: Metrics,
    access_log: Arc<ArcSwap<AccessLog>>,
}

impl Observer {
    /// One that writes access lines there.
    pub fn new(target: &LogTarget, format: AccessLogFormat) -> Result<Self, OpenError> {
        let observer = Self::default();
        observer.log_to(observer.open_log(target, format)?);
        Ok(observer)
    }

    /// A log for [`Self::log_to`], whose lost lines are counted here; a file is opened anew.
    pub fn open_log(
        &self,
        target: &LogTarget,
        format: AccessLogFormat,
    ) -> Result<AccessLog, OpenError> {
        AccessLog::open(target, format, self.metrics.access_lines_lost())
    }

    /// From now on access lines go there. Lines that wait are written to where they went before.
    pub fn log_to(&self, log: AccessLog) {
        self.access_log.store(Arc::new(log));
    }

    /// The same target is opened anew, for SIGUSR1: whoever rotates logs has renamed the file.
    pub fn reopen(&self) -> Result<(), OpenError> {
        let now = self.access_log.load_full();
        if let Some((target, format)) = now.target() {
            self.log_to(self.open_log(target, format)?);
        }
        Ok(())
    }

    /// Waits until all access lines so far are written, or for as long as is reasonable.
    pub async fn flush(&self) {
        let now = self.access_log.load_full();
        now.flush().await;
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
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
    /// Opens the record of a connection that this listener has just accepted.
    #[must_use]
    pub fn open(registry: &Registry, listener: &Name, peer: Peer, called: Listener) -> Self {
        let flow = registry.open(peer, called);
        flow.came_by(listener);
        registry.observer().metrics().accepted(listener);
        Self {
            flow,
            registry: registry.clone(),
            end: Some(Ending::aborted()),
            place: None,
            lease: None,
        }
    }

    /// Opens the record of a flow that an earlier daemon has left. [`Flow::came_by`] and
    /// [`Flow::count_from_here`] are the caller's.
    #[must_use]
    pub fn adopt(registry: &Registry, peer: Peer, called: Listener, accepted: Instant) -> Self {
        registry.observer().metrics().adopted();
        Self {
            flow: registry.adopt(peer, called, accepted),
            registry: registry.clone(),
            end: Some(Ending::aborted()),
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

impl Drop for Record {
    fn drop(&mut self) {
        let flow = &self.flow;
        let observer = self.registry.observer();
        let open = self.registry.close(flow);
        let Some(end) = &self.end else {
            return observer.metrics.handed_over();
        };
        observer.metrics.ended(flow, end);
        observer
            .access_log
            .load()
            .write(&Line::now(flow, end, open));
    }
}
