//! What each limit does, and what is forgotten.

use super::*;

fn client(ip: &str) -> Client {
    let ip: IpAddr = ip.parse().expect("an address");
    Client::new((ip, 1234).into())
}

/// The `n`th of many.
fn nth(n: u32) -> Client {
    Client::new((n.to_be_bytes(), 1).into())
}

fn networks(text: &[&str]) -> Networks {
    text.iter()
        .map(|net| net.parse().expect("a network"))
        .collect()
}

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

#[test]
fn denied_is_stronger_than_allowed() {
    for (allow, deny, ip, expected) in [
        (&[][..], &[][..], "192.0.2.1", true),
        (&["192.0.2.0/24"], &[], "192.0.2.1", true),
        (&["192.0.2.0/24"], &[], "198.51.100.1", false),
        (&["192.0.2.0/24"], &["192.0.2.1"], "192.0.2.1", false),
        (&["192.0.2.0/24"], &["192.0.2.1"], "::ffff:192.0.2.1", false),
        (&[], &["2001:db8::/32"], "2001:db8::1", false),
        (&[], &["2001:db8::/32"], "192.0.2.1", true),
    ] {
        let mut gate = Gate::new(Limits {
            allow: networks(allow),
            deny: networks(deny),
            ..Limits::default()
        });
        let let_in = gate.admit(client(ip), Instant::now());
        let expected = if expected {
            Ok(())
        } else {
            Err(Refusal::Denied)
        };
        assert_eq!(let_in, expected, "{allow:?} {deny:?} {ip}");
    }
}

#[test]
fn a_place_can_be_had_again() {
    let now = Instant::now();
    let mut gate = Gate::new(Limits {
        connections: Some(3),
        connections_per_client: Some(2),
        ..Limits::default()
    });
    let (one, other) = (client("192.0.2.1"), client("192.0.2.2"));
    assert_eq!(gate.admit(one, now), Ok(()));
    assert_eq!(gate.admit(one, now), Ok(()));
    let of_client = Err(Refusal::TooManyConnectionsOfClient);
    assert_eq!(gate.admit(one, now), of_client);
    assert_eq!(gate.admit(other, now), Ok(()));
    assert_eq!(gate.admit(other, now), Err(Refusal::TooManyConnections));
    gate.release(one, now);
    assert_eq!(gate.admit(other, now), Ok(()));
    assert_eq!((gate.connections(), gate.clients()), (3, 2));
}

#[test]
fn ipv6_clients_are_their_64() {
    let now = Instant::now();
    let mut gate = Gate::new(Limits {
        connections_per_client: Some(1),
        ..Limits::default()
    });
    assert_eq!(gate.admit(client("2001:db8::1"), now), Ok(()));
    let refused = Err(Refusal::TooManyConnectionsOfClient);
    assert_eq!(gate.admit(client("2001:db8::ffff:0:0:1"), now), refused);
    assert_eq!(gate.admit(client("2001:db8:0:1::1"), now), Ok(()));
    // But IPv4 clients are not all of ::ffff:0:0/96.
    assert_eq!(gate.admit(client("::ffff:192.0.2.1"), now), Ok(()));
    assert_eq!(gate.admit(client("192.0.2.2"), now), Ok(()));
}

#[test]
fn a_rate_is_a_burst_and_then_one_by_one() {
    let start = Instant::now();
    let mut gate = Gate::new(Limits {
        rate_per_client: Some(Rate::new(4, Duration::from_secs(1))),
        ..Limits::default()
    });
    let one = client("192.0.2.1");
    let mut admitted = |ms| {
        (0..9)
            .filter(|_| gate.admit(one, at(start, ms)).is_ok())
            .count()
    };
    assert_eq!(admitted(0), 4);
    assert_eq!(admitted(249), 0);
    assert_eq!(admitted(250), 1);
    assert_eq!(admitted(251), 0);
    assert_eq!(admitted(1000), 3);
    assert_eq!(admitted(60_000), 4);
}

/// The burst is what was asked for, and the rate not above it, also where they do not divide.
#[test]
fn a_rate_is_never_exceeded() {
    for (times, secs) in [(1, 1), (3, 1), (7, 60), (999_999, 1), (1_000_000, 3600)] {
        let rate = Rate::new(times, Duration::from_secs(secs));
        assert_eq!(rate.burst, rate.interval * times);
        assert!(rate.burst >= Duration::from_secs(secs), "{times} in {secs}");
        let error = rate.burst - Duration::from_secs(secs);
        assert!(
            error < Duration::from_nanos(times.into()),
            "{times} in {secs}"
        );
    }
}

#[test]
fn limits_change_under_those_who_are_in() {
    let now = Instant::now();
    let one = client("192.0.2.1");
    let mut gate = Gate::new(Limits::default());
    for _ in 0..3 {
        assert_eq!(gate.admit(one, now), Ok(()));
    }
    gate.adopt(client("192.0.2.2"));
    let limit = |connections, connections_per_client| Limits {
        connections,
        connections_per_client,
        ..Limits::default()
    };
    gate.set_limits(limit(None, Some(3)), now);
    assert_eq!(
        gate.admit(one, now),
        Err(Refusal::TooManyConnectionsOfClient)
    );
    gate.set_limits(limit(Some(4), None), now);
    assert_eq!(gate.admit(one, now), Err(Refusal::TooManyConnections));
    gate.set_limits(limit(Some(5), Some(4)), now);
    assert_eq!(gate.admit(one, now), Ok(()));
}

/// Who has used up an hour's connections is not shut out for an hour once there are a hundred a second.
#[test]
fn a_higher_rate_is_there_at_once() {
    let start = Instant::now();
    let one = client("192.0.2.1");
    let limits = |times, secs| Limits {
        rate_per_client: Some(Rate::new(times, Duration::from_secs(secs))),
        ..Limits::default()
    };
    let mut gate = Gate::new(limits(2, 3600));
    while gate.admit(one, start).is_ok() {}
    gate.set_limits(limits(100, 1), start);
    assert_eq!(gate.admit(one, start), Err(Refusal::TooHighRate));
    assert_eq!(gate.admit(one, at(start, 10)), Ok(()));
}

#[test]
fn who_leaves_nothing_is_forgotten() {
    let start = Instant::now();
    let mut gate = Gate::new(Limits::default());
    for n in 0..5000 {
        assert_eq!(gate.admit(nth(n), start), Ok(()));
    }
    assert_eq!(gate.clients(), 5000);
    for n in 0..5000 {
        gate.release(nth(n), start);
    }
    assert_eq!((gate.connections(), gate.clients()), (0, 0));
    // Released once too often.
    gate.release(nth(1), start);
    assert_eq!(gate.connections(), 0);
}

/// One connection each, of ever new clients: those with a full bucket are not kept.
#[test]
fn who_comes_once_is_forgotten_when_the_bucket_is_full() {
    let start = Instant::now();
    let mut gate = Gate::new(Limits {
        rate_per_client: Some(Rate::new(1, Duration::from_secs(1))),
        ..Limits::default()
    });
    // 10 clients a ms: 10000 of them have used something.
    let mut most = 0;
    for n in 0..100_000 {
        let now = at(start, u64::from(n / 10));
        assert_eq!(gate.admit(nth(n), now), Ok(()));
        gate.release(nth(n), now);
        most = most.max(gate.clients());
    }
    assert!((10_000..=20_001).contains(&most), "{most}");
}

/// Where there are too many to remember, those who have used least are forgotten, and nobody who is in.
#[test]
fn memory_is_bounded() {
    let now = Instant::now();
    let limits = Limits {
        connections_per_client: Some(1),
        rate_per_client: Some(Rate::new(2, Duration::from_secs(3600))),
        ..Limits::default()
    };
    let mut gate = Gate::new(limits);
    let (inside, busy) = (nth(u32::MAX), nth(u32::MAX - 1));
    assert_eq!(gate.admit(inside, now), Ok(()));
    for _ in 0..2 {
        assert_eq!(gate.admit(busy, now), Ok(()));
        gate.release(busy, now);
    }
    let many = u32::try_from(REMEMBERED * 4).expect("a number");
    for n in 0..many {
        assert_eq!(gate.admit(nth(n), now), Ok(()));
        gate.release(nth(n), now);
    }
    assert!(gate.clients() <= REMEMBERED * 2 + 2, "{}", gate.clients());
    assert_eq!(gate.admit(busy, now), Err(Refusal::TooHighRate));
    let refused = Err(Refusal::TooManyConnectionsOfClient);
    assert_eq!(gate.admit(inside, now), refused);
}

#[test]
fn labels_are_distinct() {
    let labels: std::collections::HashSet<_> = Refusal::ALL.map(Refusal::label).into();
    assert_eq!(labels.len(), Refusal::ALL.len());
}
