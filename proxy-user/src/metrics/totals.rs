//! Sums over flows. A flow is in the sum of those that have ended or among the open ones, never in both, so
//! what comes of both together does not go back when it ends.

use std::collections::BTreeMap;

use crate::config::Name;
use crate::registry::Flow;

/// Sums over flows that have ended, or over all.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub(super) carried: BTreeMap<Share, Carried>,
    pub(super) fallbacks: BTreeMap<(Option<Name>, &'static str), u64>,
}

/// Flows of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share {
    pub(super) listener: Option<Name>,
    pub(super) pool: Option<Name>,
    /// `none`: they had not got that far.
    pub(super) engine: &'static str,
}

impl Share {
    pub(super) fn of(flow: &Flow) -> Self {
        Self {
            engine: flow.progress.engine().map_or("none", |kind| kind.label()),
            listener: flow.listener().cloned(),
            pool: flow.pool().cloned(),
        }
    }
}

/// How many, and what they have carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) flows: u64,
    /// Bytes to the backend and to the client.
    pub(super) bytes: [u64; 2],
}

impl Totals {
    /// With this flow.
    pub fn add(&mut self, flow: &Flow) {
        if let Some(reason) = flow.progress.fallback() {
            let key = (flow.listener().cloned(), reason.label());
            *self.fallbacks.entry(key).or_default() += 1;
        }
        let carried = self.carried.entry(Share::of(flow)).or_default();
        carried.flows += 1;
        let [up, down] = flow.counted_bytes();
        carried.bytes[0] += up;
        carried.bytes[1] += down;
    }

    /// With this flow, which is still open. What has no engine yet is not counted: it would leave its place
    /// when it has one.
    pub(super) fn add_open(&mut self, flow: &Flow) {
        if flow.progress.engine().is_some() {
            self.add(flow);
        }
    }
}
