//! Which clients a listener lets in, and how many: `proxy_core::admission`, with places that connections hold.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use proxy_core::address::Client;
pub use proxy_core::admission::Refusal;
use proxy_core::admission::{Gate, Limits, Rate};

use crate::config::{self, Within};
use crate::lock::lock;

/// A listener's admission. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Mutex<Gate>>);

impl Admission {
    /// With nobody in yet.
    #[must_use]
    pub fn new(listener: &config::Listener) -> Self {
        Self(Arc::new(Mutex::new(Gate::new(limits(listener)))))
    }

    /// Lets a client in, or says why not.
    pub fn admit(&self, client: Client) -> Result<Place, Refusal> {
        lock(&self.0).admit(client, Instant::now())?;
        Ok(self.place(client))
    }

    /// A place for a flow that another daemon has let in, whatever the limits are.
    pub fn adopt(&self, client: Client) -> Place {
        lock(&self.0).adopt(client);
        self.place(client)
    }

    /// Other limits, from now on (a reload). Who has a place keeps it, and it counts.
    pub fn reconfigure(&self, listener: &config::Listener) {
        lock(&self.0).set_limits(limits(listener), Instant::now());
    }

    /// Places that are held.
    #[must_use]
    pub fn connections(&self) -> u32 {
        lock(&self.0).connections()
    }

    fn place(&self, client: Client) -> Place {
        Place {
            admission: self.clone(),
            client,
        }
    }
}

/// What an open connection holds. Dropping it gives the place back.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Place {
    admission: Admission,
    client: Client,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.admission.0).release(self.client, Instant::now());
    }
}

fn limits(listener: &config::Listener) -> Limits {
    Limits {
        allow: listener.allow.iter().copied().collect(),
        deny: listener.deny.iter().copied().collect(),
        connections: listener.max_connections.map(Within::get),
        connections_per_client: listener.max_connections_per_client.map(Within::get),
        rate_per_client: listener
            .max_rate_per_client
            .map(|rate| Rate::new(rate.times, rate.per)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_held_until_it_is_dropped() {
        let told = |most: i64, rate: Option<&str>| config::Listener {
            deny: vec!["192.0.2.9".parse().expect("a network")],
            max_connections: Some(most.try_into().expect("a number")),
            max_rate_per_client: rate.map(|rate| rate.parse().expect("a rate")),
            ..config::Listener::default()
        };
        let client = |n| Client::new(([192, 0, 2, n], 1).into());
        let admission = Admission::new(&told(1, None));
        let refused = |n| admission.admit(client(n)).err();
        assert_eq!(refused(9), Some(Refusal::Denied));
        let first = admission.admit(client(1));
        assert_eq!(refused(2), Some(Refusal::TooManyConnections));
        admission.reconfigure(&told(2, Some("1/h")));
        let second = admission.admit(client(2));
        assert_eq!(refused(1), Some(Refusal::TooManyConnections));
        drop(first);
        assert_eq!(refused(2), Some(Refusal::TooHighRate));
        let adopted = admission.adopt(client(2));
        assert_eq!(admission.connections(), 2);
        drop((second, adopted));
        assert_eq!(admission.connections(), 0);
    }
}
