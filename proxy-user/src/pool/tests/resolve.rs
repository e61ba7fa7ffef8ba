//! The resolver, and a name server.

use std::time::Duration;

use hickory_resolver::proto::rr::{RData, RecordType};

use super::dns::{Dns, cname, srv};
use crate::pool::resolve::{Located, LookupError, Resolver};

async fn locate(resolver: &Resolver, target: &str) -> Result<Located, LookupError> {
    resolver.locate(&target.parse().unwrap()).await
}

/// The endpoints, as they are shown.
async fn endpoints(resolver: &Resolver, target: &str) -> Vec<String> {
    let located = locate(resolver, target).await.unwrap();
    let places = located.places.iter();
    places.map(|place| place.endpoint.to_string()).collect()
}

#[tokio::test]
async fn all_addresses_of_both_families() {
    let dns = Dns::start().await;
    dns.set_ips("game.test", 30, &["192.0.2.2", "2001:db8::1", "192.0.2.1"]);
    let located = locate(&dns.resolver(), "game.test:80").await.unwrap();
    let places: Vec<String> = located
        .places
        .iter()
        .map(|p| p.endpoint.to_string())
        .collect();
    assert_eq!(places, ["192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80"]);
    assert!(located.places.iter().all(|p| p.weight == 1 && !p.backup));
    assert!(!located.v4_failed && !located.v6_failed);
    let holds = located.holds;
    assert!(
        holds > Duration::from_secs(25) && holds <= Duration::from_secs(30),
        "{holds:?}"
    );
    // Nothing is remembered here.
    dns.set_ips("game.test", 30, &["192.0.2.3"]);
    assert_eq!(
        endpoints(&dns.resolver(), "game.test:same").await,
        ["192.0.2.3:same"]
    );
}

#[tokio::test]
async fn an_address_is_not_looked_up() {
    let dns = Dns::start().await;
    dns.fall_silent();
    for (target, expected) in [
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("[::ffff:192.0.2.1]:same", "192.0.2.1:same"),
    ] {
        assert_eq!(endpoints(&dns.resolver(), target).await, [expected]);
    }
    assert!(dns.asked().is_empty());
}

#[tokio::test]
async fn names_are_made_like_the_c_library_makes_them() {
    let dns = Dns::start().await;
    dns.set_ips("exists.b.test", 5, &["192.0.2.1"]);
    dns.resolv_conf("search a.test b.test\noptions ndots:2\n");
    let resolver = dns.resolver();
    for (target, expected) in [
        // Fewer dots than ndots: with the suffixes first.
        ("none:1", &["none.a.test.", "none.b.test.", "none."][..]),
        ("x.y:1", &["x.y.a.test.", "x.y.b.test.", "x.y."]),
        ("x.y.z:1", &["x.y.z.", "x.y.z.a.test.", "x.y.z.b.test."]),
        ("none.:1", &["none."]),
        ("exists:1", &["exists.a.test.", "exists.b.test."]),
    ] {
        let _ = locate(&resolver, target).await;
        assert_eq!(dns.asked(), expected, "{target}");
    }
}

#[tokio::test]
async fn a_container_has_short_names() {
    // What Docker and Kubernetes write, and words that only others know.
    let dns = Dns::start().await;
    dns.set_ips("backend", 600, &["172.18.0.3"]);
    dns.set_ips("my_db.default.svc.cluster.local", 5, &["10.96.0.7"]);
    dns.resolv_conf("options edns0 trust-ad ndots:0 no-aaaa what-is-this:7\nsortlist 10.0.0.0\n");
    let resolver = dns.resolver();
    assert_eq!(endpoints(&resolver, "backend:80").await, ["172.18.0.3:80"]);
    assert_eq!(dns.asked(), ["backend."]);
    dns.resolv_conf("search default.svc.cluster.local svc.cluster.local\noptions ndots:5\n");
    assert_eq!(endpoints(&resolver, "my_db:80").await, ["10.96.0.7:80"]);
}

#[tokio::test]
async fn hosts_come_first_and_are_read_again() {
    let dns = Dns::start().await;
    dns.set_ips("game", 5, &["192.0.2.1"]);
    dns.hosts("# comment\n127.0.0.9 other\n192.0.2.7 Game game.test\n2001:db8::7 game\n");
    let resolver = dns.resolver();
    let expected = ["192.0.2.7:80", "[2001:db8::7]:80"];
    assert_eq!(endpoints(&resolver, "game:80").await, expected);
    assert!(dns.asked().is_empty());
    dns.hosts("192.0.2.8 game\n");
    assert_eq!(endpoints(&resolver, "game:80").await, ["192.0.2.8:80"]);
    dns.hosts("");
    assert_eq!(endpoints(&resolver, "game:80").await, ["192.0.2.1:80"]);
}

#[tokio::test]
async fn srv_records_are_names_with_ports_weights_and_priorities() {
    let dns = Dns::start().await;
    let records = [
        srv(20, 7, 9002, "backup.test"),
        srv(10, 3, 9000, "a.test"),
        srv(10, 0, 9001, "b.test"),
        srv(10, 1, 9003, "gone.test"),
    ];
    dns.set("_game._tcp.test", 60, records);
    dns.set_ips("a.test", 60, &["192.0.2.1", "192.0.2.2"]);
    dns.set_ips("b.test", 10, &["192.0.2.3"]);
    dns.set_ips("backup.test", 60, &["2001:db8::9"]);
    dns.resolv_conf("search example.test\noptions ndots:5\n");
    let located = locate(&dns.resolver(), "_game._tcp.test").await.unwrap();
    let places = located.places.iter();
    let places: Vec<_> = places
        .map(|p| (p.endpoint.to_string(), p.weight, p.backup))
        .collect();
    let expected = [
        ("192.0.2.1:9000", 3, false),
        ("192.0.2.2:9000", 3, false),
        ("192.0.2.3:9001", 1, false),
        ("[2001:db8::9]:9002", 7, true),
    ];
    assert_eq!(places, expected.map(|(e, w, b)| (e.to_owned(), w, b)));
    // The least of all that was asked for.
    assert!(
        located.holds <= Duration::from_secs(10),
        "{:?}",
        located.holds
    );
    assert!(!located.v4_failed && !located.v6_failed);
    // A target is a whole name: nothing of `search` is put to it.
    assert!(
        !dns.asked()
            .iter()
            .any(|name| name == "a.test.example.test.")
    );
    // "." says that there is no such service (RFC 2782).
    dns.set("_none._tcp.test", 60, [srv(0, 0, 0, ".")]);
    let none = locate(&dns.resolver(), "_none._tcp.test").await;
    assert!(matches!(none, Err(LookupError::Absent(_))), "{none:?}");
}

#[tokio::test]
async fn failures_are_told_from_answers() {
    let dns = Dns::start().await;
    dns.set_ips("game.test", 60, &["192.0.2.1", "2001:db8::1"]);
    dns.set("text.test", 60, [cname("nowhere.test")]);
    let resolver = dns.resolver();
    for nothing in ["none.test:1", "text.test:1", "_game._tcp.test"] {
        let found = locate(&resolver, nothing).await;
        assert!(matches!(found, Err(LookupError::Absent(_))), "{found:?}");
    }
    dns.fail(&[
        ("game.test", RecordType::A),
        ("game.test", RecordType::AAAA),
    ]);
    let found = locate(&resolver, "game.test:1").await;
    assert!(matches!(found, Err(LookupError::Failed(..))), "{found:?}");
    // One family can be asked for, the other not.
    dns.fail(&[("game.test", RecordType::AAAA)]);
    let located = locate(&resolver, "game.test:1").await.unwrap();
    assert_eq!(located.places.len(), 1);
    assert!(!located.v4_failed && located.v6_failed);
    // And a target of several.
    dns.set(
        "_game._tcp.test",
        60,
        [srv(0, 1, 1, "game.test"), srv(0, 1, 2, "bad.test")],
    );
    dns.fail(&[("bad.test", RecordType::A), ("bad.test", RecordType::AAAA)]);
    let located = locate(&resolver, "_game._tcp.test").await.unwrap();
    assert_eq!(located.places.len(), 2);
    assert!(located.v4_failed && located.v6_failed);
    // Where none is known, it is not that there is none.
    let records = [srv(0, 1, 1, "bad.test"), srv(0, 1, 2, "none.test")];
    dns.set("_game._tcp.test", 60, records);
    let found = locate(&resolver, "_game._tcp.test").await;
    assert!(matches!(found, Err(LookupError::Failed(..))), "{found:?}");
}

#[tokio::test]
async fn a_suffix_whose_server_fails_does_not_end_the_search() {
    let dns = Dns::start().await;
    dns.resolv_conf("search bad.test good.test\n");
    let bad = "game.bad.test";
    dns.fail(&[(bad, RecordType::A), (bad, RecordType::AAAA)]);
    dns.set_ips("game.good.test", 5, &["192.0.2.1"]);
    assert_eq!(
        endpoints(&dns.resolver(), "game:80").await,
        ["192.0.2.1:80"]
    );
    // But what is nowhere else may have been there.
    dns.remove("game.good.test");
    let found = locate(&dns.resolver(), "game:80").await;
    assert!(matches!(found, Err(LookupError::Failed(..))), "{found:?}");
}

#[tokio::test]
async fn a_silent_server_is_a_failure() {
    let dns = Dns::start().await;
    dns.resolv_conf("search a.test b.test\noptions timeout:1 attempts:1\n");
    dns.fall_silent();
    let found = locate(&dns.resolver(), "game:80").await;
    assert!(matches!(found, Err(LookupError::Failed(..))), "{found:?}");
    assert!(!dns.asked().iter().any(|name| name == "game.b.test."));
}

#[tokio::test]
async fn aliases_and_long_answers() {
    let dns = Dns::start().await;
    let ips: Vec<String> = (1..=60).map(|n| format!("192.0.2.{n}")).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    dns.set_ips("many.test", 60, &ips);
    dns.set("alias.test", 3, [cname("many.test")]);
    let located = locate(&dns.resolver(), "alias.test:80").await.unwrap();
    // Too many for a datagram.
    assert_eq!(located.places.len(), 60);
    assert!(
        located.holds <= Duration::from_secs(3),
        "{:?}",
        located.holds
    );
}

#[tokio::test]
async fn nobody_is_no_address() {
    let dns = Dns::start().await;
    dns.set_ips("blocked.test", 60, &["0.0.0.0", "::"]);
    let found = locate(&dns.resolver(), "blocked.test:80").await;
    assert!(matches!(found, Err(LookupError::Absent(_))), "{found:?}");
    dns.set(
        "mapped.test",
        60,
        ["::ffff:192.0.2.1"].map(|ip| RData::AAAA(ip.parse().unwrap())),
    );
    assert_eq!(
        endpoints(&dns.resolver(), "mapped.test:80").await,
        ["192.0.2.1:80"]
    );
}
