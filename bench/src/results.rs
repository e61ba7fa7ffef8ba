//! The readings of all rounds, and what is made of them.

use std::collections::BTreeMap;

use crate::contender::Kind;
use crate::load::Reading;
use crate::metric::{Better, Metric};

/// Median and extremes of the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// The middle one; of an even number the mean of the two middle ones.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[half - 1], sorted[half])
        } else {
            sorted[half]
        };
        Some(Self { median, min, max })
    }

    /// Half the range, as a part of the median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.max - self.min) / 2.0 / self.median.abs()
    }
}

/// All readings of a run.
#[derive(Debug, Default)]
pub(crate) struct Results {
    rounds: BTreeMap<(Metric, String), Vec<f64>>,
}

impl Results {
    /// Takes in what one measurement gave.
    pub(crate) fn add(&mut self, contender: &str, readings: &[Reading]) {
        for (metric, value) in readings {
            let key = (*metric, contender.to_owned());
            self.rounds.entry(key).or_default().push(*value);
        }
    }

    /// The rounds of a metric.
    pub(crate) fn rounds(&self, metric: Metric, contender: &str) -> &[f64] {
        let key = (metric, contender.to_owned());
        self.rounds.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Median and extremes, if there was a reading.
    pub(crate) fn summary(&self, metric: Metric, contender: &str) -> Option<Summary> {
        if metric == Metric::Idle {
            return self.idle(contender);
        }
        if metric == Metric::IdleProcess {
            return self.process(contender);
        }
        Summary::of(self.rounds(metric, contender))
    }

    /// A process keeps the pages that it once took: the round in which it took most tells what it
    /// needs, the others add nothing.
    fn process(&self, contender: &str) -> Option<Summary> {
        let rounds = self.rounds(Metric::IdleProcess, contender);
        let most = Summary::of(rounds)?.max;
        Summary::of(&[most])
    }

    /// What a connection without a proxy needs is taken off, so that the proxy host's part is left.
    fn idle(&self, contender: &str) -> Option<Summary> {
        let kernel = self.rounds(Metric::IdleKernel, contender);
        let process = self.process(contender)?.max;
        let without = Kind::Direct.name();
        if contender == without {
            return None;
        }
        let ends = self.summary(Metric::IdleKernel, &without)?.median;
        let proxy_host: Vec<f64> = kernel.iter().map(|all| all - ends + process).collect();
        Summary::of(&proxy_host)
    }

    /// The median as a multiple of `other`'s.
    pub(crate) fn ratio(&self, metric: Metric, contender: &str, other: &str) -> Option<f64> {
        let ours = self.summary(metric, contender)?.median;
        let theirs = self.summary(metric, other)?.median;
        (theirs > 0.0).then_some(ours / theirs)
    }

    /// Which of `names` does best.
    pub(crate) fn best<'a>(&self, metric: Metric, names: &[&'a str]) -> Option<&'a str> {
        let medians = names
            .iter()
            .filter_map(|name| Some((*name, self.summary(metric, name)?.median)));
        let best = match metric.better() {
            Better::Higher => medians.max_by(|a, b| a.1.total_cmp(&b.1)),
            Better::Lower => medians.min_by(|a, b| a.1.total_cmp(&b.1)),
        };
        best.map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).expect("three values");
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(odd.spread(), 0.5);
        assert_eq!(Summary::of(&[1.0, 4.0]).expect("two values").median, 2.5);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_best_is_the_fastest_or_the_smallest() {
        let mut results = Results::default();
        results.add("a", &[(Metric::Close, 10.0), (Metric::PacedP50, 5.0)]);
        results.add("b", &[(Metric::Close, 20.0), (Metric::PacedP50, 9.0)]);
        assert_eq!(results.best(Metric::Close, &["a", "b"]), Some("b"));
        assert_eq!(results.best(Metric::PacedP50, &["a", "b", "c"]), Some("a"));
        assert_eq!(results.ratio(Metric::Close, "a", "b"), Some(0.5));
        assert_eq!(results.ratio(Metric::Close, "a", "c"), None);
    }

    #[test]
    fn an_idle_connection_is_counted_without_its_ends() {
        let mut results = Results::default();
        let idle = |kernel, process| [(Metric::IdleKernel, kernel), (Metric::IdleProcess, process)];
        results.add("direct", &idle(5.0, 0.0));
        results.add("haproxy", &idle(9.0, 3.0));
        let summary = results.summary(Metric::Idle, "haproxy");
        assert_eq!(summary.map(|summary| summary.median), Some(7.0));
        // The process has its pages from the round before.
        results.add("haproxy", &idle(9.0, 0.0));
        let summary = results.summary(Metric::Idle, "haproxy");
        assert_eq!(summary.map(|summary| summary.median), Some(7.0));
    }
}
