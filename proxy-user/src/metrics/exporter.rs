//! All metrics as text.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::collect::Collected;
use super::readings::Readings;
use crate::registry;

/// Writes all metrics.
#[derive(Debug)]
pub struct Exporter(Registry);

impl Exporter {
    /// One for these flows and what was told to their observer, and for what else there is to be read.
    #[must_use]
    pub fn new(flows: &registry::Registry, readings: impl Readings) -> Self {
        let metrics = flows.observer().metrics();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        registry.register_collector(Box::new(Collected {
            flows: flows.clone(),
            readings,
            started: metrics.started,
        }));
        Self(registry)
    }

    /// The metrics of this moment, as `OpenMetrics` 1.0 text. With many flows it takes a while: of those in the
    /// kernel's hands it asks the kernel, some microseconds each.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Fails where memory cannot be written to only.
        let _ = text::encode(&mut text, &self.0);
        text
    }
}
