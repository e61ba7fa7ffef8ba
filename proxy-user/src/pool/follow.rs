//! A name's addresses, as they change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::resolve::{Located, LookupError, Place, Resolver, Version};
use crate::config::Target;

/// Between questions: however short the time to live is, and however long.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// How often the resolver's files are looked at.
const FILES: Duration = Duration::from_secs(5);

/// How long a name that has no address any more keeps those that it had (HAProxy: `hold nx`). A name
/// server that is just starting, or does not reach its own servers, says so of names that are there.
const HOLD: Duration = Duration::from_secs(30);

/// One name, followed.
#[derive(Debug)]
pub(super) struct Following {
    target: Target,
    resolver: Resolver,
    changed: Arc<Notify>,
    /// The resolver's files, as they were when the name was last looked up.
    version: Option<Version>,
    lookups: Lookups,
}

/// How looking a name up has gone.
#[derive(Clone, Copy, Debug, Default)]
struct Lookups {
    /// Since when it has no address.
    absent: Option<Instant>,
    /// The last one has failed.
    failing: bool,
}

/// What follows from a lookup.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// The addresses, where they are known.
    places: Option<Vec<Place>>,
    /// How long to wait.
    wait: Duration,
}

impl Following {
    /// Follows `target`.
    pub(super) fn new(target: Target, resolver: Resolver, changed: Arc<Notify>) -> Self {
        Self {
            target,
            resolver,
            changed,
            version: None,
            lookups: Lookups::default(),
        }
    }

    /// Can what is behind it change?
    pub(super) fn is_a_name(&self) -> bool {
        match &self.target {
            Target::Host { host, .. } => host.parse::<IpAddr>().is_err(),
            Target::Service(_) => true,
        }
    }

    /// The first lookup, which is for the pool to take and to log.
    pub(super) async fn first(&mut self) -> Result<Located, LookupError> {
        let found = self.look_up().await;
        self.lookups.failing = found.is_err();
        found
    }

    /// Follows the name, which is server `index` of the pool, for ever; `first` is what the first lookup
    /// has found.
    pub(super) async fn run(mut self, shared: Arc<Shared>, index: usize, first: Option<Located>) {
        let mut wait = first.as_ref().map_or(RETRY, wait_after);
        loop {
            self.elapsed(wait).await;
            let found = self.look_up().await;
            self.log(&shared, &found);
            let known = shared.places(index);
            let outcome = self.lookups.take(found, &known, Instant::now());
            if let Some(places) = outcome.places
                && shared.update(index, places, None)
            {
                self.changed.notify_one();
            }
            wait = outcome.wait;
        }
    }

    async fn look_up(&mut self) -> Result<Located, LookupError> {
        // What changes from here on is seen, and asked for again.
        self.version = Some(self.resolver.version());
        self.resolver.locate(&self.target).await
    }

    /// Waits, but not much longer than until the resolver's files change.
    async fn elapsed(&self, wait: Duration) {
        let files_changed = async {
            while self.version == Some(self.resolver.version()) {
                sleep(FILES).await;
            }
        };
        let _ = timeout(wait, files_changed).await;
    }

    fn log(&self, shared: &Shared, found: &Result<Located, LookupError>) {
        let (pool, target) = (&shared.name, &self.target);
        match found {
            Ok(_) if self.lookups.failing => tracing::info!(%pool, %target, "resolved again"),
            Err(error) if !self.lookups.failing => {
                tracing::warn!(%pool, %target, %error, "not resolved: its servers stay for the time being");
            }
            Err(error) => tracing::debug!(%pool, %target, %error, "not resolved"),
            Ok(_) => {}
        }
    }
}

impl Lookups {
    /// Takes a lookup's result; `known` is what the name had before.
    fn take(
        &mut self,
        found: Result<Located, LookupError>,
        known: &[Place],
        now: Instant,
    ) -> Outcome {
        self.failing = found.is_err();
        match found {
            Ok(located) => {
                self.absent = None;
                let wait = wait_after(&located);
                Outcome {
                    places: Some(with_unsure(located, known)),
                    wait,
                }
            }
            Err(LookupError::Absent(_)) => {
                let since = *self.absent.get_or_insert(now);
                let gone = now.saturating_duration_since(since) >= HOLD;
                Outcome {
                    places: gone.then(Vec::new),
                    wait: RETRY,
                }
            }
            Err(LookupError::Failed(..) | LookupError::Timeout(_)) => Outcome {
                places: None,
                wait: RETRY,
            },
        }
    }
}

fn wait_after(located: &Located) -> Duration {
    let longest = if located.v4_failed || located.v6_failed {
        RETRY
    } else {
        LONGEST
    };
    located.holds.clamp(SHORTEST, longest)
}

/// What has been found, and what was `known` and may still be there.
fn with_unsure(located: Located, known: &[Place]) -> Vec<Place> {
    let Located {
        mut places,
        v4_failed,
        v6_failed,
        ..
    } = located;
    for place in known {
        let is_v4 = place.endpoint.ip().is_ipv4();
        let unsure = if is_v4 { v4_failed } else { v6_failed };
        if unsure && places.iter().all(|p| p.endpoint != place.endpoint) {
            places.push(place.clone());
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::server::Endpoint;
    use super::*;
    use crate::config::TargetPort;

    fn place(ip: &str) -> Place {
        Place {
            endpoint: Endpoint::new(ip.parse().unwrap(), TargetPort::Is(80)),
            weight: 1,
            backup: false,
        }
    }

    fn located(ips: &[&str], holds: u64) -> Located {
        Located {
            places: ips.iter().map(|ip| place(ip)).collect(),
            holds: Duration::from_secs(holds),
            v4_failed: false,
            v6_failed: false,
        }
    }

    #[test]
    fn waits_are_neither_too_short_nor_too_long() {
        for (holds, expected) in [(0, 1), (1, 1), (60, 60), (86_400, 3600)] {
            let wait = wait_after(&located(&[], holds));
            assert_eq!(wait, Duration::from_secs(expected));
        }
    }

    #[test]
    fn a_family_that_could_not_be_asked_for_stays() {
        let known = [place("192.0.2.1"), place("2001:db8::1")];
        let now = Instant::now();
        let mut found = located(&["192.0.2.2"], 60);
        found.v6_failed = true;
        let outcome = Lookups::default().take(Ok(found), &known, now);
        let expected = vec![place("192.0.2.2"), place("2001:db8::1")];
        assert_eq!(outcome.places, Some(expected));
        assert_eq!(outcome.wait, RETRY);
        let outcome = Lookups::default().take(Ok(located(&["192.0.2.2"], 60)), &known, now);
        assert_eq!(outcome.places, Some(vec![place("192.0.2.2")]));
    }

    #[test]
    fn a_name_that_is_gone_keeps_its_addresses_for_a_while() {
        let known = [place("192.0.2.1")];
        let gone = || Err(LookupError::Absent("game".to_owned()));
        let now = Instant::now();
        let mut lookups = Lookups::default();
        let keeps = |outcome: Outcome| outcome.places.is_none();
        assert!(keeps(lookups.take(gone(), &known, now)));
        let later = now + Duration::from_secs(29);
        assert!(keeps(lookups.take(gone(), &known, later)));
        // It was there in between.
        let found = lookups.take(Ok(located(&["192.0.2.1"], 5)), &known, later);
        assert_eq!(found.places, Some(known.to_vec()));
        let later = now + Duration::from_secs(40);
        assert!(keeps(lookups.take(gone(), &known, later)));
        let later = later + HOLD;
        assert_eq!(lookups.take(gone(), &known, later).places, Some(Vec::new()));
    }

    #[test]
    fn a_failure_changes_nothing() {
        let known = [place("192.0.2.1")];
        let mut lookups = Lookups::default();
        for _ in 0..100 {
            let timeout = Err(LookupError::Timeout("game".to_owned()));
            let outcome = lookups.take(timeout, &known, Instant::now());
            assert_eq!((outcome.places, outcome.wait), (None, RETRY));
        }
    }
}
