//! What is counted, for Prometheus. docs/metrics.md has the list.
//!
//! Counters of single events are [`Metrics`]. What flows carry is counted where it is, in the flows
//! themselves ([`totals`]), and collected at each scrape ([`collect`]) together with what other parts of the
//! daemon know ([`readings`]). [`http`] serves it.
//!
//! No label has values that clients choose: names of the configuration, and stable names of limpid's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::access_log::Lost;
use crate::config::Name;
use crate::record::Ending;
use crate::registry::Flow;

mod collect;
mod exporter;
pub mod http;
mod readings;
mod totals;

pub use exporter::Exporter;
pub use readings::{Readings, ServerState, ServerView, TableView};
pub use totals::Totals;

/// Upper ends of the latencies' buckets, in seconds: from a hop within a data centre to a lost SYN's third
/// repetition.
const LATENCIES: [f64; 15] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    listener: String,
    pool: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

type Latencies<L> = Family<L, Histogram, fn() -> Histogram>;

fn latencies() -> Histogram {
    Histogram::new(LATENCIES)
}

/// Counters of events. Clones are the same counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    accepted: Family<ListenerLabel, Counter>,
    adopted: Counter,
    handed_over: Counter,
    ended: Family<EndLabels, Counter>,
    retries: Family<PoolLabel, Counter>,
    header: Latencies<ListenerLabel>,
    connect: Latencies<PoolLabel>,
    reloads: Family<ResultLabel, Counter>,
    access_lines_lost: Lost,
    /// When this process began, in seconds since 1970.
    started: f64,
}

impl Default for Metrics {
    fn default() -> Self {
        let reloads = Family::default();
        // There from the start: whoever watches for the first failure needs the 0 before it.
        for result in [RELOADED, NOT_RELOADED] {
            drop(reloads.get_or_create(&result));
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            accepted: Family::default(),
            adopted: Counter::default(),
            handed_over: Counter::default(),
            ended: Family::default(),
            retries: Family::default(),
            header: Family::new_with_constructor(latencies),
            connect: Family::new_with_constructor(latencies),
            reloads,
            access_lines_lost: Lost::default(),
            started: started.unwrap_or_default().as_secs_f64(),
        }
    }
}

const RELOADED: ResultLabel = ResultLabel { result: "ok" };
const NOT_RELOADED: ResultLabel = ResultLabel { result: "failed" };

impl Metrics {
    /// There is such a listener: its counters begin with 0, so that the first connection is an increase.
    pub fn listens(&self, listener: &Name) {
        let label = ListenerLabel {
            listener: listener.to_string(),
        };
        drop(self.accepted.get_or_create(&label));
        drop(self.header.get_or_create(&label));
    }

    /// A connection was accepted.
    pub fn accepted(&self, listener: &Name) {
        let listener = listener.to_string();
        self.accepted
            .get_or_create(&ListenerLabel { listener })
            .inc();
    }

    /// A flow came from an earlier daemon.
    pub fn adopted(&self) {
        self.adopted.inc();
    }

    /// A flow went to another daemon.
    pub fn handed_over(&self) {
        self.handed_over.inc();
    }

    /// A connection has ended.
    pub fn ended(&self, flow: &Flow, end: &Ending) {
        let pool = text(flow.pool());
        let retries = flow.retries();
        if retries > 0 {
            let label = PoolLabel { pool: pool.clone() };
            self.retries.get_or_create(&label).inc_by(retries.into());
        }
        let labels = EndLabels {
            listener: text(flow.listener()),
            pool,
            reason: end.label,
        };
        self.ended.get_or_create(&labels).inc();
    }

    /// A header was read.
    pub fn header_took(&self, listener: Option<&Name>, time: Duration) {
        let listener = text(listener);
        let latencies = self.header.get_or_create(&ListenerLabel { listener });
        latencies.observe(time.as_secs_f64());
    }

    /// A server was connected to.
    pub fn connect_took(&self, pool: Option<&Name>, time: Duration) {
        let pool = text(pool);
        let latencies = self.connect.get_or_create(&PoolLabel { pool });
        latencies.observe(time.as_secs_f64());
    }

    /// A new configuration came: it is in force, or was refused.
    pub fn reloaded(&self, ok: bool) {
        let result = if ok { RELOADED } else { NOT_RELOADED };
        self.reloads.get_or_create(&result).inc();
    }

    /// Where the access log counts what it loses.
    #[must_use]
    pub fn access_lines_lost(&self) -> Lost {
        self.access_lines_lost.clone()
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "limpid_connections_accepted",
            "Connections that were accepted",
            self.accepted.clone(),
        );
        registry.register(
            "limpid_connections_adopted",
            "Flows that an earlier daemon has left",
            self.adopted.clone(),
        );
        registry.register(
            "limpid_connections_handed_over",
            "Flows that were left to another daemon",
            self.handed_over.clone(),
        );
        registry.register(
            "limpid_connections_ended",
            "Connections that have ended, refused ones included, by the reason of the access log",
            self.ended.clone(),
        );
        registry.register(
            "limpid_connect_retries",
            "Servers that were tried in vain, of connections that have ended",
            self.retries.clone(),
        );
        registry.register_with_unit(
            "limpid_header_duration",
            "How long reading the PROXY header took",
            Unit::Seconds,
            self.header.clone(),
        );
        registry.register_with_unit(
            "limpid_connect_duration",
            "How long connecting to a server took, retries included",
            Unit::Seconds,
            self.connect.clone(),
        );
        registry.register(
            "limpid_reloads",
            "Configurations that were read while the daemon ran",
            self.reloads.clone(),
        );
        registry.register(
            "limpid_access_lines_lost",
            "Access lines that could not be written",
            self.access_lines_lost.clone(),
        );
    }
}

/// A label's value; a label without one is absent.
fn text(name: Option<&Name>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
