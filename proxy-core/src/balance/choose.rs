//! One server of several.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::source;

/// How a server is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Each in turn, as often as its weight says, and spread as evenly as can be.
    RoundRobin,
    /// The one with the fewest open connections for its weight; those that are equal, in turn.
    LeastConnections,
    /// By the client's IP address: a client keeps its server as long as that is there.
    Source,
}

/// Whether a server is offered connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Yes.
    Usable,
    /// Only where no usable one is left.
    LastResort,
    /// No.
    Unusable,
}

/// A server, as the choice sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What [`Method::Source`] knows it by: the same in all daemons ([`key`](super::key)).
    pub key: u64,
    /// Its address: of which family it is matters.
    pub ip: IpAddr,
    /// Does it wait until no primary is left?
    pub backup: bool,
    /// Its share of the connections, in any unit that is the same for all; 0: none.
    pub weight: u32,
    /// Its open connections.
    pub open: u32,
    /// Is it offered connections? A server that has failed this connection already is
    /// [`Standing::Unusable`] to it.
    pub standing: Standing,
    /// Smooth weighted round robin: how long it has waited.
    turn: i64,
}

impl Candidate {
    /// A server at `ip` that nothing is known of yet: it is not offered connections.
    #[must_use]
    pub fn new(key: u64, ip: IpAddr, backup: bool) -> Self {
        Self {
            key,
            ip,
            backup,
            weight: 0,
            open: 0,
            standing: Standing::Unusable,
            turn: 0,
        }
    }

    /// Its place in the order in which servers are taken, lowest first; `None`: it is not.
    fn rank(&self, client: IpAddr) -> Option<(Standing, bool, bool)> {
        let other_family = self.ip.is_ipv4() != client.is_ipv4();
        let takes = self.weight > 0 && self.standing != Standing::Unusable;
        takes.then_some((self.standing, other_family, self.backup))
    }

    /// Compares open connections for their weight.
    fn load_cmp(&self, (open, weight): (u32, u32)) -> Ordering {
        let mine = u64::from(self.open) * u64::from(weight);
        mine.cmp(&(u64::from(open) * u64::from(self.weight)))
    }
}

/// The index of the server that a connection of `client` goes to; `None` where none may take it. The order
/// of preference is in the [module's documentation](super).
///
/// Whatever a pool keeps for a server can stand in the list, as long as it has a [`Candidate`].
pub fn choose<C: AsMut<Candidate>>(
    method: Method,
    client: IpAddr,
    servers: &mut [C],
) -> Option<usize> {
    let ranks = servers.iter_mut().map(|s| s.as_mut().rank(client));
    let first = ranks.flatten().min()?;
    let eligible = |candidate: &Candidate| candidate.rank(client) == Some(first);
    match method {
        Method::RoundRobin => in_turn(servers, eligible),
        Method::LeastConnections => {
            let least = least_load(servers, eligible)?;
            in_turn(servers, |c| eligible(c) && c.load_cmp(least).is_eq())
        }
        Method::Source => highest_score(servers, client, eligible),
    }
}

/// nginx's smooth weighted round robin: everyone's claim grows by its weight, and whoever is chosen pays for
/// all. With weights 5, 1, 1 that is a a b a c a a.
fn in_turn<C: AsMut<Candidate>>(
    servers: &mut [C],
    eligible: impl Fn(&Candidate) -> bool,
) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<(usize, i64)> = None;
    for (index, server) in servers.iter_mut().enumerate() {
        let candidate = server.as_mut();
        if !eligible(candidate) {
            continue;
        }
        candidate.turn += i64::from(candidate.weight);
        total += i64::from(candidate.weight);
        if best.is_none_or(|(_, turn)| candidate.turn > turn) {
            best = Some((index, candidate.turn));
        }
    }
    let (index, _) = best?;
    servers.get_mut(index)?.as_mut().turn -= total;
    Some(index)
}

/// Open connections and weight of the server with the fewest of the one for the other.
fn least_load<C: AsMut<Candidate>>(
    servers: &mut [C],
    eligible: impl Fn(&Candidate) -> bool,
) -> Option<(u32, u32)> {
    let mut least = None;
    for candidate in servers.iter_mut().map(AsMut::as_mut) {
        if eligible(candidate) && least.is_none_or(|least| candidate.load_cmp(least).is_lt()) {
            least = Some((candidate.open, candidate.weight));
        }
    }
    least
}

fn highest_score<C: AsMut<Candidate>>(
    servers: &mut [C],
    client: IpAddr,
    eligible: impl Fn(&Candidate) -> bool,
) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, server) in servers.iter_mut().enumerate() {
        let candidate = server.as_mut();
        if eligible(candidate) {
            let score = source::score(candidate.key, candidate.weight, client);
            if best.is_none_or(|(_, highest)| score > highest) {
                best = Some((index, score));
            }
        }
    }
    best.map(|(index, _)| index)
}

impl AsMut<Self> for Candidate {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::key;
    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn server(number: u32, weight: u32) -> Candidate {
        let ip = Ipv4Addr::from(0x0a00_0000 + number).into();
        Candidate {
            weight,
            standing: Standing::Usable,
            ..Candidate::new(key(ip, Some(80)), ip, false)
        }
    }

    fn servers(weights: &[u32]) -> Vec<Candidate> {
        (0..).zip(weights).map(|(n, &w)| server(n, w)).collect()
    }

    fn clients(count: u32) -> impl Iterator<Item = IpAddr> {
        (0..count).map(|n| Ipv4Addr::from(0xc0a8_0000 + n).into())
    }

    fn picks(method: Method, servers: &mut [Candidate], times: usize) -> Vec<usize> {
        let pick = |_| choose(method, V4, servers).expect("a server");
        (0..times).map(pick).collect()
    }

    /// Who goes where, by the servers' keys.
    fn homes(servers: &mut [Candidate], clients: u32) -> Vec<u64> {
        let home = |client| {
            let index = choose(Method::Source, client, servers).expect("a server");
            servers[index].key
        };
        self::clients(clients).map(home).collect()
    }

    #[test]
    fn round_robin_is_smooth() {
        let mut servers = servers(&[5, 1, 1]);
        let got = picks(Method::RoundRobin, &mut servers, 14);
        assert_eq!(got, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn the_order_of_preference() {
        let like = |standing, ip, backup| Candidate {
            standing,
            backup,
            ip,
            ..server(0, 1)
        };
        use Standing::{LastResort, Unusable, Usable};
        let mut all = [
            like(Unusable, V4, false),
            like(LastResort, V6, true),
            like(LastResort, V6, false),
            like(LastResort, V4, true),
            like(LastResort, V4, false),
            like(Usable, V6, true),
            like(Usable, V6, false),
            like(Usable, V4, true),
            like(Usable, V4, false),
        ];
        for method in [Method::RoundRobin, Method::LeastConnections, Method::Source] {
            let mut left = all.to_vec();
            for expected in (1..all.len()).rev() {
                assert_eq!(choose(method, V4, &mut left), Some(expected));
                left[expected].standing = Unusable;
            }
            assert_eq!(choose(method, V4, &mut left), None);
        }
        all[8].weight = 0;
        assert_eq!(choose(Method::RoundRobin, V4, &mut all), Some(7));
    }

    #[test]
    fn least_connections_counts_by_weight() {
        let mut servers = servers(&[1, 3]);
        for expected in [[0, 1], [1, 1], [1, 2], [1, 3]] {
            let index = choose(Method::LeastConnections, V4, &mut servers).expect("a server");
            servers[index].open += 1;
            assert_eq!([servers[0].open, servers[1].open], expected);
        }
        // Idle ones are equal, and take turns.
        let mut idle = self::servers(&[1, 1, 1]);
        let got = picks(Method::LeastConnections, &mut idle, 6);
        assert_eq!(got, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn source_shares_are_as_the_weights() {
        let mut servers = servers(&[1, 2, 5, 0]);
        let count = |key| {
            homes(&mut servers.clone(), 16_000)
                .iter()
                .filter(|&&k| k == key)
                .count()
        };
        for (server, expected) in servers.clone().iter().zip([2_000, 4_000, 10_000, 0]) {
            // More than four standard deviations (at most 62) to each side.
            let got = count(server.key);
            assert!(got.abs_diff(expected) <= 250, "{got} of {expected}");
        }
        // A client's port has no part in it, its address has: the same list for the same clients.
        assert_eq!(homes(&mut servers, 1000), homes(&mut servers.clone(), 1000));
    }

    proptest! {
        #[test]
        fn round_robin_spreads_exactly_by_weight(weights in vec(0_u32..=256, 1..12), rounds in 1_u32..3) {
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let mut servers = servers(&weights);
            let got = picks(Method::RoundRobin, &mut servers, (total * rounds) as usize);
            for (index, weight) in weights.iter().enumerate() {
                let count = got.iter().filter(|&&i| i == index).count();
                prop_assert_eq!(count, (weight * rounds) as usize);
            }
        }

        #[test]
        fn round_robin_recovers_from_whatever_was(
            weights in vec(1_u32..=16, 2..6),
            outages in vec(any::<u8>(), 0..200),
        ) {
            let mut servers = servers(&weights);
            for mask in outages {
                for (bit, server) in servers.iter_mut().enumerate() {
                    let out = mask & (1 << bit) != 0;
                    server.standing = if out { Standing::Unusable } else { Standing::Usable };
                }
                let chosen = choose(Method::RoundRobin, V4, &mut servers);
                prop_assert!(chosen.is_none_or(|i| servers[i].standing == Standing::Usable));
            }
            for server in &mut servers {
                server.standing = Standing::Usable;
            }
            // What is left of the past evens out within a number of rounds; from there on it is exact.
            let total: u32 = weights.iter().sum();
            picks(Method::RoundRobin, &mut servers, (total * 64) as usize);
            let got = picks(Method::RoundRobin, &mut servers, total as usize);
            for (index, weight) in weights.iter().enumerate() {
                prop_assert_eq!(got.iter().filter(|&&i| i == index).count(), *weight as usize);
            }
        }

        #[test]
        fn least_connections_never_passes_over_a_lesser_load(
            weights in vec(1_u32..=256, 1..8),
            open in vec(any::<u32>(), 8),
        ) {
            let mut servers = servers(&weights);
            for (server, open) in servers.iter_mut().zip(open) {
                server.open = open;
            }
            let chosen = choose(Method::LeastConnections, V4, &mut servers).expect("a server");
            let load = |c: &Candidate| u128::from(c.open) * (1 << 64) / u128::from(c.weight);
            let least = servers.iter().map(load).min();
            prop_assert_eq!(Some(load(&servers[chosen])), least);
        }

        #[test]
        fn source_moves_only_the_share_of_whoever_goes_or_comes(
            weights in vec(1_u32..=256, 2..10),
            which in any::<prop::sample::Index>(),
        ) {
            let mut all = servers(&weights);
            let before = homes(&mut all, 300);
            let gone = all.remove(which.index(all.len())).key;
            let after = homes(&mut all, 300);
            for (before, after) in before.into_iter().zip(after) {
                // Read from right to left, it is the one that comes.
                prop_assert!(before == after || before == gone);
            }
        }

        #[test]
        fn source_moves_clients_only_to_whoever_gains_weight(
            weights in vec(0_u32..=256, 2..10),
            gain in 1_u32..256,
            which in any::<prop::sample::Index>(),
        ) {
            let mut all = servers(&weights);
            prop_assume!(weights.iter().any(|&w| w > 0));
            let before = homes(&mut all, 300);
            let index = which.index(all.len());
            all[index].weight += gain;
            let after = homes(&mut all, 300);
            for (before, after) in before.into_iter().zip(after) {
                prop_assert!(before == after || after == all[index].key);
            }
        }

        #[test]
        fn source_does_not_know_the_order(weights in vec(1_u32..=256, 2..10), turn in 0_usize..10) {
            let mut all = servers(&weights);
            let before = homes(&mut all, 100);
            all.reverse();
            let len = all.len();
            all.rotate_left(turn % len);
            prop_assert_eq!(before, homes(&mut all, 100));
        }
    }
}
