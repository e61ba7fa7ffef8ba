//! Which clients a listener lets in, and how many.
//!
//! The client is the one that the PROXY header names, so this is asked once the header is read. An IPv6
//! client is its /64 (RFC 6177: what one site has at the least, and any host of it can use all of), an IPv4
//! client its address.
//!
//! The time is an argument. The caller sees to it that each connection that is let in is [released](Gate::release)
//! once.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::address::Client;
use crate::network::Networks;

/// Clients without a connection that are remembered at once, for their rate. Where more come, those that have
/// most of their rate left are forgotten.
pub const REMEMBERED: usize = 1 << 18;

/// Clients that are not worth looking through.
const FEW: usize = 1 << 10;

/// Bits of an IPv6 address that are the client's.
const PREFIX: u32 = 64;

/// What a listener allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Networks whose clients are let in; empty: all.
    pub allow: Networks,
    /// Networks whose clients are not, even if they are allowed.
    pub deny: Networks,
    /// Connections that may be open.
    pub connections: Option<u32>,
    /// Connections that one client may have open.
    pub connections_per_client: Option<u32>,
    /// New connections that one client may make.
    pub rate_per_client: Option<Rate>,
}

/// How often something may happen, on average; as often at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
    burst: Duration,
}

impl Rate {
    /// `times` in each `per`. 0 counts as 1.
    #[must_use]
    pub fn new(times: u32, per: Duration) -> Self {
        let times = times.max(1);
        // Rounded up, to whole ns: never more often than that.
        let interval = per
            .saturating_sub(Duration::from_nanos(1))
            .checked_div(times)
            .unwrap_or_default()
            + Duration::from_nanos(1);
        Self {
            interval,
            burst: interval.saturating_mul(times),
        }
    }
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Its address is denied, or not among those that are allowed.
    #[error("the client's address is not allowed")]
    Denied,
    /// The listener has as many connections as it may.
    #[error("the listener has as many connections as it may have")]
    TooManyConnections,
    /// The client has as many connections as it may.
    #[error("the client has as many connections as it may have")]
    TooManyConnectionsOfClient,
    /// The client makes connections faster than it may.
    #[error("the client makes new connections faster than it may")]
    TooHighRate,
}

impl Refusal {
    /// Every one there is.
    pub const ALL: [Self; 4] = [
        Self::Denied,
        Self::TooManyConnections,
        Self::TooManyConnectionsOfClient,
        Self::TooHighRate,
    ];

    /// Its stable name, for logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::TooManyConnections => "too-many-connections",
            Self::TooManyConnectionsOfClient => "too-many-connections-of-client",
            Self::TooHighRate => "too-high-rate",
        }
    }
}

/// Whom a limit is for: an IPv4 address, or an IPv6 network of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(IpAddr);

impl From<Client> for Key {
    fn from(client: Client) -> Self {
        Self(match client.ip() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => {
                let kept = u128::MAX << (Ipv6Addr::BITS - PREFIX);
                Ipv6Addr::from_bits(v6.to_bits() & kept).into()
            }
        })
    }
}

/// What is known of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    connections: u32,
    /// When its token bucket is full again; `None`, or past: it is.
    ///
    /// That is the "theoretical arrival time" of the generic cell rate algorithm (ITU-T I.371), which is a
    /// token bucket without a counter: each connection puts it off by one interval.
    full_at: Option<Instant>,
}

impl Known {
    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

/// A listener's limits, and what counts towards them.
#[derive(Debug, Default)]
pub struct Gate {
    limits: Limits,
    connections: u32,
    clients: HashMap<Key, Known>,
    /// Clients at which those that need no remembering are looked for.
    look_at: usize,
}

impl Gate {
    /// With nobody in yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Other limits, from now on. Who is in stays in, and counts. Of its rate a client has at most used up all.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        let latest = limits
            .rate_per_client
            .and_then(|rate| now.checked_add(rate.burst));
        for known in self.clients.values_mut() {
            known.full_at = known.full_at.min(latest);
        }
        self.limits = limits;
        self.forget(now);
    }

    /// Lets a client in, or says why not. A refusal counts towards nothing.
    pub fn admit(&mut self, client: Client, now: Instant) -> Result<(), Refusal> {
        let ip = client.ip();
        let Limits { allow, deny, .. } = &self.limits;
        if deny.contains(ip) || !(allow.is_empty() || allow.contains(ip)) {
            return Err(Refusal::Denied);
        }
        if self
            .limits
            .connections
            .is_some_and(|most| self.connections >= most)
        {
            return Err(Refusal::TooManyConnections);
        }
        let key = client.into();
        let known = self.clients.get(&key).copied().unwrap_or_default();
        let most = self.limits.connections_per_client;
        if most.is_some_and(|most| known.connections >= most) {
            return Err(Refusal::TooManyConnectionsOfClient);
        }
        let full_at = match self.limits.rate_per_client {
            None => None,
            Some(rate) => Some(full_at(known.full_at, rate, now).ok_or(Refusal::TooHighRate)?),
        };
        if self.clients.len() >= self.look_at.max(FEW) {
            self.forget(now);
        }
        self.enter(key, full_at);
        Ok(())
    }

    /// Counts a connection that was let in before, by another process: whatever the limits are.
    pub fn adopt(&mut self, client: Client) {
        self.enter(client.into(), None);
    }

    fn enter(&mut self, key: Key, full_at: Option<Instant>) {
        let known = self.clients.entry(key).or_default();
        known.connections += 1;
        known.full_at = known.full_at.max(full_at);
        self.connections += 1;
    }

    /// A connection that was let in is over.
    pub fn release(&mut self, client: Client, now: Instant) {
        let key = client.into();
        if let Some(known) = self.clients.get_mut(&key)
            && known.connections > 0
        {
            known.connections -= 1;
            self.connections -= 1;
            if known.connections == 0 && known.is_full(now) {
                self.clients.remove(&key);
            }
        }
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Clients that something is known of: that have connections, or have used of their rate.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Forgets clients that are as if they had never been here, and, where there are very many others without a
    /// connection, half of these.
    fn forget(&mut self, now: Instant) {
        self.clients
            .retain(|_, known| known.connections > 0 || !known.is_full(now));
        let idle = |known: &Known| known.full_at.filter(|_| known.connections == 0);
        let mut times: Vec<Instant> = self.clients.values().filter_map(idle).collect();
        if times.len() > REMEMBERED {
            let middle = times.len() / 2;
            let (_, &mut middle, _) = times.select_nth_unstable(middle);
            self.clients
                .retain(|_, known| idle(known).is_none_or(|full_at| full_at > middle));
        }
        // So that on average each new client pays for looking at two.
        self.look_at = self.clients.len() * 2;
    }
}

/// When a bucket that is full at `before` is full after one more connection; `None` if it has no token for that.
fn full_at(before: Option<Instant>, rate: Rate, now: Instant) -> Option<Instant> {
    let from = before.map_or(now, |before| before.max(now));
    let after = from.checked_add(rate.interval)?;
    (after.duration_since(now) <= rate.burst).then_some(after)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
