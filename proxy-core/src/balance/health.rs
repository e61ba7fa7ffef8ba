//! Whether a server is fit for connections, and for how many.

use std::time::{Duration, Instant};

use super::Standing;

/// What one unit of a configured weight is as an effective weight: a server of weight 1 that starts
/// slowly needs fractions.
pub const WEIGHT_UNIT: u32 = 256;

/// An ejection is doubled so many times: to 32 times its length.
const DOUBLINGS: u32 = 5;

/// What no ejection is longer than.
const LONGEST_EJECTION: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a pool asks of its servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Active checks; `None`: there are none, and what earlier ones have found does not count.
    pub checks: Option<Checks>,
    /// Passive ejection; `None`: never.
    pub ejection: Option<Ejection>,
    /// How long a server takes to get its full share, once it has come up.
    pub slow_start: Option<Duration>,
}

/// When checks change what is known.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    /// Successes in a row until a server is up again; at least 1.
    pub rise: u32,
    /// Failures in a row until a server is down; at least 1.
    pub fall: u32,
}

/// When clients' connections eject a server.
#[derive(Clone, Copy, Debug)]
pub struct Ejection {
    /// Failures in a row; at least 1.
    pub after: u32,
    /// For how long; doubled each time in a row, up to 32 times.
    pub time: Duration,
}

/// What an operator wants of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admin {
    /// To work.
    #[default]
    Ready,
    /// To take no new connections; it is still checked.
    Drain,
    /// To take no new connections, and not to be checked.
    Down,
}

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Fit for connections.
    Up,
    /// Several clients' connections in a row have failed.
    Ejected,
    /// Its checks fail.
    Down,
    /// Drained by an operator.
    Drain,
    /// Taken out of service by an operator.
    Disabled,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Up,
        Self::Ejected,
        Self::Down,
        Self::Drain,
        Self::Disabled,
    ];

    /// A stable name for the log and the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Drain => "drain",
            Self::Disabled => "disabled",
        }
    }

    /// Whether it is offered connections.
    #[must_use]
    pub fn standing(self) -> Standing {
        match self {
            Self::Up => Standing::Usable,
            Self::Ejected => Standing::LastResort,
            Self::Down | Self::Drain | Self::Disabled => Standing::Unusable,
        }
    }
}

/// A server has become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
}

/// What checks have found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing yet: it is taken to be up, and the first check decides.
    Nothing,
    Up,
    Down,
}

/// What is known of a server.
///
/// The methods that take `now` return the change of state that they have made, or have noticed: an
/// ejection ends by itself.
#[derive(Clone, Debug)]
pub struct Health {
    admin: Admin,
    found: Found,
    /// Checks in a row that say the contrary of `found`.
    contrary: u32,
    /// Clients' connections in a row that have failed.
    failures: u32,
    /// Ejections in a row, without a successful connection in between.
    ejections: u32,
    ejected_until: Option<Instant>,
    state: State,
    since: Instant,
    /// When a slow start began.
    came_up: Option<Instant>,
}

impl Health {
    /// A server that is there from the beginning: it is up, with its full share.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            admin: Admin::Ready,
            found: Found::Nothing,
            contrary: 0,
            failures: 0,
            ejections: 0,
            ejected_until: None,
            state: State::Up,
            since: now,
            came_up: None,
        }
    }

    /// A server that joins others: it has just come up.
    #[must_use]
    pub fn joining(now: Instant) -> Self {
        Self {
            came_up: Some(now),
            ..Self::new(now)
        }
    }

    /// What it is, or was when a method was last told the time.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it is that.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// What an operator wants of it.
    #[must_use]
    pub fn admin(&self) -> Admin {
        self.admin
    }

    /// Sees what the time has changed.
    pub fn refresh(&mut self, now: Instant, policy: &Policy) -> Option<Change> {
        let ended = self.ejected_until.take_if(|until| *until <= now);
        let (from, to) = (self.state, self.judge(policy));
        if from == to {
            return None;
        }
        self.state = to;
        self.since = match (from, ended) {
            (State::Ejected, Some(end)) => end,
            (_, _) => now,
        };
        if to == State::Up {
            self.came_up = Some(self.since);
        }
        Some(Change { from, to })
    }

    /// A check has succeeded or failed. The first one decides alone, the others by their number in a row.
    pub fn checked(&mut self, success: bool, now: Instant, policy: &Policy) -> Option<Change> {
        let Some(Checks { rise, fall }) = policy.checks else {
            return self.refresh(now, policy);
        };
        let needed = match (self.found, success) {
            (Found::Nothing, _) => 1,
            (Found::Up, true) | (Found::Down, false) => {
                self.contrary = 0;
                return self.refresh(now, policy);
            }
            (Found::Up, false) => fall,
            (Found::Down, true) => rise,
        };
        self.contrary += 1;
        if self.contrary >= needed {
            self.contrary = 0;
            if self.found == Found::Down {
                self.forgive();
            }
            self.found = if success { Found::Up } else { Found::Down };
        }
        self.refresh(now, policy)
    }

    /// A client's connection to it has been made. That ends an ejection, too.
    ///
    /// A check that succeeds does not: it comes from the proxy's own address, and the clients' may be
    /// what fails.
    pub fn connected(&mut self, now: Instant, policy: &Policy) -> Option<Change> {
        self.forgive();
        self.refresh(now, policy)
    }

    /// A client's connection to it has failed. An ejection that is over has not made up for the failures
    /// before it: the next one ejects again.
    pub fn failed(&mut self, now: Instant, policy: &Policy) -> Option<Change> {
        let noticed = self.refresh(now, policy);
        self.failures = self.failures.saturating_add(1);
        if let Some(Ejection { after, time }) = policy.ejection
            && self.failures >= after
            && self.ejected_until.is_none()
        {
            let time = time.saturating_mul(1 << self.ejections.min(DOUBLINGS));
            self.ejected_until = now.checked_add(time.min(LONGEST_EJECTION));
            self.ejections = self.ejections.saturating_add(1);
        }
        self.refresh(now, policy).or(noticed)
    }

    /// An operator says what is wanted of it. One that comes back into service is as good as a new one.
    pub fn set(&mut self, admin: Admin, now: Instant, policy: &Policy) -> Option<Change> {
        if self.admin == Admin::Down && admin != Admin::Down {
            self.found = Found::Nothing;
            self.contrary = 0;
            self.forgive();
        }
        self.admin = admin;
        self.refresh(now, policy)
    }

    /// The effective weight of a server whose configured one is `weight`, in units of 1/[`WEIGHT_UNIT`]. It
    /// grows linearly while it starts slowly, from the least that there is.
    #[must_use]
    pub fn weight(&self, weight: u32, now: Instant, policy: &Policy) -> u32 {
        let full = weight.saturating_mul(WEIGHT_UNIT);
        let (Some(came_up), Some(slow_start)) = (self.came_up, policy.slow_start) else {
            return full;
        };
        let elapsed = now.saturating_duration_since(came_up);
        if full == 0 || elapsed >= slow_start {
            return full;
        }
        let grown = u128::from(full) * elapsed.as_nanos() / slow_start.as_nanos();
        u32::try_from(grown).unwrap_or(full).max(1)
    }

    fn forgive(&mut self) {
        self.failures = 0;
        self.ejections = 0;
        self.ejected_until = None;
    }

    fn judge(&self, policy: &Policy) -> State {
        match self.admin {
            Admin::Down => State::Disabled,
            Admin::Drain => State::Drain,
            Admin::Ready if policy.checks.is_some() && self.found == Found::Down => State::Down,
            Admin::Ready if policy.ejection.is_some() && self.ejected_until.is_some() => {
                State::Ejected
            }
            Admin::Ready => State::Up,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy {
            checks: Some(Checks { rise: 2, fall: 3 }),
            ejection: Some(Ejection {
                after: 3,
                time: 10 * S,
            }),
            slow_start: Some(20 * S),
        }
    }

    #[test]
    fn the_first_check_decides_alone() {
        let now = Instant::now();
        let mut server = Health::new(now);
        let change = server.checked(false, now, &policy());
        let (from, to) = (State::Up, State::Down);
        assert_eq!(change, Some(Change { from, to }));
        assert_eq!(server.checked(true, now, &policy()), None);
        let (from, to) = (to, from);
        assert_eq!(
            server.checked(true, now, &policy()),
            Some(Change { from, to })
        );
    }

    #[test]
    fn fall_and_rise_are_in_a_row() {
        let now = Instant::now();
        let mut server = Health::new(now);
        let mut states = Vec::new();
        // Up: two failures are not enough, three are. Down: one success is not enough, two are.
        for c in "+--+--+---+-++".chars() {
            server.checked(c == '+', now, &policy());
            states.push(if server.state() == State::Up {
                '+'
            } else {
                '-'
            });
        }
        assert_eq!(String::from_iter(states), "+++++++++----+");
    }

    #[test]
    fn ejections_double_until_one_succeeds() {
        let mut now = Instant::now();
        let mut server = Health::new(now);
        assert_eq!(server.failed(now, &policy()), None);
        server.connected(now, &policy());
        assert_eq!(server.failed(now, &policy()), None);
        assert_eq!(server.failed(now, &policy()), None);
        for factor in [1, 2, 4, 8, 16, 32, 32, 32] {
            assert!(server.failed(now, &policy()).is_some());
            assert_eq!(server.state(), State::Ejected);
            // Failures on the way change nothing.
            assert_eq!(server.failed(now + S, &policy()), None);
            let end = now + factor * 10 * S;
            let before = end.checked_sub(Duration::from_nanos(1)).expect("later");
            assert_eq!(server.refresh(before, &policy()), None);
            assert!(server.refresh(end + S, &policy()).is_some());
            assert_eq!((server.state(), server.since()), (State::Up, end));
            now = end + S;
        }
        server.connected(now, &policy());
        for expected in [None, None, Some(State::Ejected)] {
            let change = server.failed(now, &policy());
            assert_eq!(change.map(|c| c.to), expected);
        }
        assert!(server.refresh(now + 10 * S, &policy()).is_some());
    }

    #[test]
    fn a_connection_ends_an_ejection_and_a_check_does_not() {
        let now = Instant::now();
        let mut server = Health::new(now);
        server.checked(true, now, &policy());
        for _ in 0..3 {
            server.failed(now, &policy());
        }
        server.checked(true, now, &policy());
        server.checked(true, now, &policy());
        assert_eq!(server.state(), State::Ejected);
        server.connected(now, &policy());
        assert_eq!(server.state(), State::Up);
    }

    #[test]
    fn coming_up_by_checks_forgives() {
        let now = Instant::now();
        let mut server = Health::new(now);
        for _ in 0..3 {
            server.failed(now, &policy());
        }
        server.checked(false, now, &policy());
        assert_eq!(server.state(), State::Down);
        server.checked(true, now, &policy());
        server.checked(true, now, &policy());
        assert_eq!(server.state(), State::Up);
        assert_eq!(server.failed(now, &policy()), None);
    }

    #[test]
    fn what_an_operator_says_comes_first() {
        let now = Instant::now();
        let mut server = Health::new(now);
        server.checked(false, now, &policy());
        for (admin, state) in [
            (Admin::Drain, State::Drain),
            (Admin::Ready, State::Down),
            (Admin::Down, State::Disabled),
            // What was found before is old.
            (Admin::Ready, State::Up),
        ] {
            server.set(admin, now, &policy());
            assert_eq!(server.state(), state);
            assert_eq!(server.admin(), admin);
        }
    }

    #[test]
    fn without_checks_or_ejection_nothing_of_them_counts() {
        let now = Instant::now();
        let mut server = Health::new(now);
        server.checked(false, now, &policy());
        for _ in 0..3 {
            server.failed(now, &policy());
        }
        let neither = Policy::default();
        let (from, to) = (State::Down, State::Up);
        assert_eq!(server.refresh(now, &neither), Some(Change { from, to }));
        assert_eq!(server.failed(now, &neither), None);
    }

    #[test]
    fn a_slow_start_is_linear() {
        let now = Instant::now();
        let start = Health::joining(now);
        let at = |seconds| start.weight(10, now + seconds * S, &policy());
        assert_eq!(at(0), 1);
        assert_eq!(at(5), 10 * WEIGHT_UNIT / 4);
        assert_eq!(at(10), 10 * WEIGHT_UNIT / 2);
        assert_eq!(at(20), 10 * WEIGHT_UNIT);
        assert_eq!(start.weight(0, now + S, &policy()), 0);
        assert_eq!(start.weight(10, now, &Policy::default()), 10 * WEIGHT_UNIT);
        // Who was there from the beginning has no start.
        let first = Health::new(now);
        assert_eq!(first.weight(10, now, &policy()), 10 * WEIGHT_UNIT);
    }

    #[test]
    fn whoever_comes_back_starts_slowly() {
        let now = Instant::now();
        let mut server = Health::new(now);
        server.set(Admin::Drain, now, &policy());
        server.set(Admin::Ready, now + S, &policy());
        assert_eq!(server.weight(1, now + S, &policy()), 1);
        assert_eq!(server.weight(1, now + 21 * S, &policy()), WEIGHT_UNIT);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Check(bool),
        Connect(bool),
        Set(Admin),
    }

    fn event() -> impl Strategy<Value = Event> {
        let admin = prop_oneof![Just(Admin::Ready), Just(Admin::Drain), Just(Admin::Down)];
        prop_oneof![
            4 => any::<bool>().prop_map(Event::Check),
            4 => any::<bool>().prop_map(Event::Connect),
            1 => admin.prop_map(Event::Set),
        ]
    }

    fn tell(server: &mut Health, event: Event, now: Instant, policy: &Policy) -> Option<Change> {
        match event {
            Event::Check(success) => server.checked(success, now, policy),
            Event::Connect(true) => server.connected(now, policy),
            Event::Connect(false) => server.failed(now, policy),
            Event::Set(admin) => server.set(admin, now, policy),
        }
    }

    proptest! {
        #[test]
        fn every_change_is_told(events in vec((event(), 0_u64..30_000), 0..200)) {
            let mut now = Instant::now();
            let mut server = Health::new(now);
            let mut told = State::Up;
            for (event, ms) in events {
                now += Duration::from_millis(ms);
                if let Some(change) = server.refresh(now, &policy()) {
                    prop_assert_eq!(change.from, told);
                    told = change.to;
                }
                if let Some(change) = tell(&mut server, event, now, &policy()) {
                    prop_assert_eq!(change.from, told);
                    prop_assert_ne!(change.from, change.to);
                    told = change.to;
                }
                prop_assert_eq!(server.state(), told);
                prop_assert!(server.since() <= now);
            }
        }

        #[test]
        fn whatever_was_a_good_server_is_up_again(events in vec((event(), 0_u64..30_000), 0..200)) {
            let mut now = Instant::now();
            let mut server = Health::new(now);
            for (event, ms) in events {
                now += Duration::from_millis(ms);
                tell(&mut server, event, now, &policy());
            }
            server.set(Admin::Ready, now, &policy());
            for _ in 0..2 {
                server.checked(true, now, &policy());
            }
            // The longest ejection, and the slow start after it.
            now += 320 * S;
            server.refresh(now, &policy());
            prop_assert_eq!(server.state(), State::Up);
            prop_assert_eq!(server.weight(3, now + 20 * S, &policy()), 3 * WEIGHT_UNIT);
        }

        #[test]
        fn fewer_failures_than_asked_for_never_eject(runs in vec(0_usize..3, 0..50)) {
            let now = Instant::now();
            let mut server = Health::new(now);
            for failures in runs {
                for _ in 0..failures {
                    prop_assert_eq!(server.failed(now, &policy()), None);
                }
                prop_assert_eq!(server.connected(now, &policy()), None);
            }
        }

        #[test]
        fn a_weight_only_grows(weight in 1_u32..=256, mut at in vec(0_u64..25_000, 2..20)) {
            at.sort_unstable();
            let now = Instant::now();
            let server = Health::joining(now);
            let weights = at.iter().map(|&ms| server.weight(weight, now + Duration::from_millis(ms), &policy()));
            let weights: Vec<u32> = weights.collect();
            prop_assert!(weights.is_sorted());
            prop_assert!(weights.iter().all(|&w| (1..=weight * WEIGHT_UNIT).contains(&w)));
        }
    }
}
