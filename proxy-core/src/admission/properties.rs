//! A gate against the plainest account of what it promises: every connection in a list, every bucket with its
//! tokens.

use proptest::prelude::*;

use super::*;

/// A few clients, so that they meet.
const CLIENTS: u8 = 4;

#[derive(Clone, Debug)]
enum Step {
    Admit(u8),
    Adopt(u8),
    /// The `n`th of those who are in.
    Release(usize),
    Wait(Duration),
    SetLimits(Plain),
}

/// Limits without networks.
#[derive(Clone, Copy, Debug)]
struct Plain {
    connections: Option<u32>,
    per_client: Option<u32>,
    rate: Option<(u32, Duration)>,
}

impl From<Plain> for Limits {
    fn from(plain: Plain) -> Self {
        Self {
            connections: plain.connections,
            connections_per_client: plain.per_client,
            rate_per_client: plain.rate.map(|(times, per)| Rate::new(times, per)),
            ..Self::default()
        }
    }
}

fn plain() -> impl Strategy<Value = Plain> {
    let rate = (1..6_u32, 1..5_u64).prop_map(|(times, secs)| (times, Duration::from_secs(secs)));
    (
        prop::option::of(1..8_u32),
        prop::option::of(1..4_u32),
        prop::option::of(rate),
    )
        .prop_map(|(connections, per_client, rate)| Plain {
            connections,
            per_client,
            rate,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..CLIENTS).prop_map(Step::Admit),
        1 => (0..CLIENTS).prop_map(Step::Adopt),
        4 => any::<usize>().prop_map(Step::Release),
        4 => (0..2000_u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        1 => plain().prop_map(Step::SetLimits),
    ]
}

fn client(n: u8) -> Client {
    Client::new(([192, 0, 2, n], 1).into())
}

/// Nanoseconds of a bucket: a connection takes one interval, and each nanosecond gives one.
#[derive(Debug)]
struct Account {
    limits: Plain,
    inside: Vec<u8>,
    missing: [Duration; CLIENTS as usize],
}

impl Account {
    fn admit(&mut self, who: u8) -> Result<(), Refusal> {
        let count =
            |limit: Option<u32>, open: usize| limit.is_some_and(|most| open >= most as usize);
        if count(self.limits.connections, self.inside.len()) {
            return Err(Refusal::TooManyConnections);
        }
        let open = self.inside.iter().filter(|one| **one == who).count();
        if count(self.limits.per_client, open) {
            return Err(Refusal::TooManyConnectionsOfClient);
        }
        if let Some(rate) = self.limits.rate {
            let Rate { interval, burst } = Rate::new(rate.0, rate.1);
            let missing = &mut self.missing[usize::from(who)];
            if *missing + interval > burst {
                return Err(Refusal::TooHighRate);
            }
            *missing += interval;
        }
        self.inside.push(who);
        Ok(())
    }

    fn wait(&mut self, time: Duration) {
        for missing in &mut self.missing {
            *missing = missing.saturating_sub(time);
        }
    }

    fn set_limits(&mut self, limits: Plain) {
        self.limits = limits;
        let most = limits
            .rate
            .map_or(Duration::ZERO, |(times, per)| Rate::new(times, per).burst);
        for missing in &mut self.missing {
            *missing = (*missing).min(most);
        }
    }
}

proptest! {
    #[test]
    fn a_gate_does_what_an_account_says(
        limits in plain(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut now = Instant::now();
        let mut gate = Gate::new(limits.into());
        let mut account = Account {
            limits,
            inside: Vec::new(),
            missing: Default::default(),
        };
        for step in steps {
            match step {
                Step::Admit(who) => {
                    prop_assert_eq!(gate.admit(client(who), now), account.admit(who));
                }
                Step::Adopt(who) => {
                    gate.adopt(client(who));
                    account.inside.push(who);
                }
                Step::Release(n) if !account.inside.is_empty() => {
                    let who = account.inside.swap_remove(n % account.inside.len());
                    gate.release(client(who), now);
                }
                Step::Release(_) => {}
                Step::Wait(time) => {
                    now += time;
                    account.wait(time);
                }
                Step::SetLimits(limits) => {
                    gate.set_limits(limits.into(), now);
                    account.set_limits(limits);
                }
            }
            prop_assert_eq!(gate.connections() as usize, account.inside.len());
            prop_assert!(gate.clients() <= CLIENTS.into());
        }
        // When all have gone and a long time has passed, nothing is left of them.
        for who in account.inside {
            gate.release(client(who), now);
        }
        gate.set_limits(Limits::default(), now + Duration::from_secs(60));
        prop_assert_eq!((gate.connections(), gate.clients()), (0, 0));
    }
}
