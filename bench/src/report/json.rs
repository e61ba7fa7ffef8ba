//! The numbers, every round of them.

use serde_json::{Map, Value, json};

use super::Report;
use crate::metric::{Better, Metric};

/// `metrics.ID.contenders.NAME` has the rounds in order, their median and extremes.
pub(super) fn numbers(report: &Report) -> Value {
    let (middle, most) = report.surroundings.company();
    let metrics: Map<String, Value> = Metric::ALL
        .into_iter()
        .map(|metric| (metric.id().to_owned(), one(report, metric)))
        .collect();
    json!({
        "machine": report.surroundings.machine,
        "programs": report.surroundings.programs,
        "settings": report.settings,
        "load_before": report.surroundings.load_before,
        "load_after": report.surroundings.load_after,
        "cpus_busy_otherwise": { "median": middle, "max": most },
        "notes": report.notes,
        "metrics": metrics,
    })
}

fn one(report: &Report, metric: Metric) -> Value {
    let contenders: Map<String, Value> = report
        .names()
        .into_iter()
        .filter_map(|name| {
            let summary = report.results.summary(metric, &name)?;
            let value = json!({
                "median": summary.median,
                "min": summary.min,
                "max": summary.max,
                "rounds": report.results.rounds(metric, &name),
            });
            Some((name, value))
        })
        .collect();
    json!({
        "title": metric.title(),
        "unit": metric.unit(),
        "better": match metric.better() {
            Better::Higher => "higher",
            Better::Lower => "lower",
        },
        "contenders": contenders,
    })
}
