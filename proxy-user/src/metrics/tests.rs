//! What is exported, read as a scraper reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use proxy_common::flow::SteeringCounters;
use proxy_core::address::{Listener, Peer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::record::Record;
use crate::registry::Registry as Flows;
use crate::splice::{End, EngineKind, Fallback};

/// An address of a server.
fn address(server: &str, state: ServerState) -> ServerView {
    ServerView {
        pool: "out".to_owned(),
        server: server.to_owned(),
        state,
        weight: 1,
        connections: 2,
        connections_total: 3,
        connect_failures: 4,
        checks_ok: 5,
        checks_failed: 6,
        ejections: 7,
    }
}

/// A daemon in which everything has happened.
#[derive(Debug)]
struct Busy;

impl Readings for Busy {
    fn servers(&self) -> Vec<ServerView> {
        let server = "a \"quoted\" one";
        vec![
            address(server, ServerState::Ejected),
            address(server, ServerState::Up),
        ]
    }

    fn tables(&self) -> Vec<TableView> {
        vec![TableView {
            table: "flows",
            entries: 1,
            capacity: 2,
        }]
    }

    fn packets(&self) -> Option<SteeringCounters> {
        Some(SteeringCounters {
            steered_out: 1,
            ..SteeringCounters::default()
        })
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn record(flows: &Flows) -> Record {
    let peer = Peer::new("192.0.2.1:40000".parse().expect("an address"));
    Record::open(flows, &name("in"), peer, Listener::new(peer.socket_addr()))
}

/// A connection that bytes flow through.
fn spliced(flows: &Flows, engine: EngineKind) -> Record {
    let record = record(flows);
    let flow = record.flow();
    flow.header_took(Duration::from_micros(800));
    flow.goes_to(&name("out"));
    flow.retried();
    flow.served_by("a".into());
    flow.connect_took(Duration::from_millis(3));
    flow.progress.carried_by(engine);
    flow.progress.fell_back(Fallback::HalfClosed);
    record
}

/// Everything that can be exported.
fn everything() -> (Flows, Exporter) {
    let flows = Flows::default();
    spliced(&flows, EngineKind::Copy).close(End::Finished.into());
    spliced(&flows, EngineKind::Packet).hand_over();
    let exporter = Exporter::new(&flows, Busy);
    (flows, exporter)
}

/// A sample's name, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads `OpenMetrics` text as far as limpid writes it, and insists on its form.
fn parse(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let mut families = BTreeMap::new();
    let mut samples = Vec::new();
    let mut all_series = BTreeSet::new();
    let mut family = String::new();
    let body = text.strip_suffix("# EOF\n").expect("an end");
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words[..] {
                ["TYPE", name, kind] => {
                    let double = families.insert(name.to_owned(), kind.to_owned());
                    assert!(double.is_none(), "{name} is there twice");
                }
                ["HELP", name, help] => {
                    assert!(help.ends_with('.') && !help.ends_with(".."), "{help}");
                    family = name.to_owned();
                }
                ["UNIT", name, unit] => assert!(name.ends_with(&format!("_{unit}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        // Labels are always written in the same order.
        assert!(all_series.insert(series), "{series} is there twice");
        let (name, labels) = match series.split_once('{') {
            None => (series, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("all labels")),
        };
        let suffix = name.strip_prefix(&family).expect("a sample of its family");
        let allowed: &[&str] = match families[&family].as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{family} is a {other}"),
        };
        assert!(allowed.contains(&suffix), "{line}");
        samples.push((
            name.to_owned(),
            parse_labels(labels),
            value.parse().expect("a number"),
        ));
    }
    (families, samples)
}

fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((name, value)) = rest.split_once("=\"") {
        let mut end = None;
        let mut escaped = false;
        for (i, c) in value.char_indices() {
            match c {
                '"' if !escaped => {
                    end = Some(i);
                    break;
                }
                c => escaped = c == '\\' && !escaped,
            }
        }
        let end = end.expect("a closing quote");
        labels.insert(name.to_owned(), value[..end].to_owned());
        rest = value[end + 1..].trim_start_matches(',');
    }
    assert_eq!(rest, "");
    labels
}

fn value(samples: &[Sample], metric: &str, wanted: &[(&str, &str)]) -> f64 {
    let of = |sample: &&Sample| {
        let is = |(key, value): &(&str, &str)| sample.1.get(*key).is_some_and(|is| is == value);
        sample.0 == metric && wanted.iter().all(is)
    };
    let found: Vec<&Sample> = samples.iter().filter(of).collect();
    assert_eq!(found.len(), 1, "{metric} {wanted:?}: {found:?}");
    found[0].2
}

#[test]
fn what_has_happened_is_exported() {
    let (flows, exporter) = everything();
    let open = spliced(&flows, EngineKind::Packet);
    open.flow().progress.sent_up(70);
    let (_, samples) = parse(&exporter.encode());
    let is = |metric, labels: &[(&str, &str)]| value(&samples, metric, labels);
    assert_eq!(
        is("limpid_connections_accepted_total", &[("listener", "in")]),
        3.0
    );
    assert_eq!(is("limpid_connections_open", &[("listener", "in")]), 1.0);
    assert_eq!(is("limpid_connections_handed_over_total", &[]), 1.0);
    let finished = [("listener", "in"), ("pool", "out"), ("reason", "fin")];
    assert_eq!(is("limpid_connections_ended_total", &finished), 1.0);
    let packet = [("listener", "in"), ("pool", "out"), ("engine", "packet")];
    assert_eq!(is("limpid_flows_total", &packet), 2.0);
    assert_eq!(is("limpid_flows_open", &packet), 1.0);
    let up = [("engine", "packet"), ("direction", "up")];
    assert_eq!(is("limpid_transferred_bytes_total", &up), 70.0);
    assert_eq!(is("limpid_header_duration_seconds_count", &[]), 3.0);
    assert_eq!(
        is("limpid_header_duration_seconds_bucket", &[("le", "0.001")]),
        3.0
    );
    assert_eq!(
        is(
            "limpid_connect_duration_seconds_bucket",
            &[("le", "0.0025")]
        ),
        0.0
    );
    assert_eq!(
        is("limpid_connect_duration_seconds_bucket", &[("le", "0.005")]),
        3.0
    );
    assert_eq!(is("limpid_connect_retries_total", &[("pool", "out")]), 1.0);
    let server = ("server", r#"a \"quoted\" one"#);
    assert_eq!(
        is("limpid_server_state", &[server, ("state", "ejected")]),
        1.0
    );
    assert_eq!(is("limpid_server_state", &[server, ("state", "up")]), 1.0);
    assert_eq!(is("limpid_server_state", &[server, ("state", "down")]), 0.0);
    assert_eq!(is("limpid_server_connections_total", &[server]), 6.0);
    assert_eq!(
        is("limpid_packets_total", &[("action", "steered-out")]),
        1.0
    );
    assert_eq!(is("limpid_reloads_total", &[("result", "failed")]), 0.0);
    flows.observer().metrics().reloaded(false);
    flows.observer().metrics().listens(&name("new"));
    drop(open);
    let (_, samples) = parse(&exporter.encode());
    let failed = [("result", "failed")];
    assert_eq!(value(&samples, "limpid_reloads_total", &failed), 1.0);
    let new = [("listener", "new")];
    assert_eq!(
        value(&samples, "limpid_connections_accepted_total", &new),
        0.0
    );
    let open = "limpid_connections_open";
    assert_eq!(value(&samples, open, &[("listener", "in")]), 0.0);
    assert_eq!(value(&samples, "limpid_flows_open", &packet), 0.0);
    assert_eq!(value(&samples, "limpid_flows_total", &packet), 2.0);
}

#[test]
fn a_servers_addresses_are_summed() {
    let mut other_pool = address("a", ServerState::Up);
    other_pool.pool = "other".to_owned();
    let addresses = [
        address("a", ServerState::Up),
        address("b", ServerState::Drain),
        address("a", ServerState::Down),
        other_pool,
        address("a", ServerState::Up),
    ];
    let servers = collect::by_name(&addresses);
    let sums: Vec<_> = servers
        .iter()
        .map(|([(_, pool), (_, server)], addresses)| {
            let up = collect::sum(addresses, |view| (view.state == ServerState::Up).into());
            let total = collect::sum(addresses, |view| view.connections_total);
            (*pool, *server, up, total)
        })
        .collect();
    let expected = [("other", "a", 1, 3), ("out", "a", 2, 9), ("out", "b", 0, 3)];
    assert_eq!(sums, expected);
}

#[test]
fn counters_do_not_go_back_when_flows_end() {
    let flows = Flows::default();
    let exporter = Exporter::new(&flows, ());
    let done = AtomicBool::new(false);
    let mut scrapes = 0;
    std::thread::scope(|scope| {
        for engine in [EngineKind::Packet, EngineKind::Copy] {
            let (flows, done) = (&flows, &done);
            scope.spawn(move || {
                for i in 0..20_000 {
                    let record = spliced(flows, engine);
                    record.flow().progress.sent_up(i % 1000);
                    record.flow().progress.sent_up(i % 7);
                    record.close(End::Finished.into());
                }
                done.store(true, Relaxed);
            });
        }
        let mut before: BTreeMap<(String, String), f64> = BTreeMap::new();
        while !done.load(Relaxed) {
            let (_, samples) = parse(&exporter.encode());
            for (name, labels, value) in samples {
                if !name.ends_with("_total") && !name.ends_with("_count") {
                    continue;
                }
                let key = (name, format!("{labels:?}"));
                let last = before.insert(key.clone(), value).unwrap_or(0.0);
                assert!(value >= last, "{key:?} went from {last} to {value}");
            }
            scrapes += 1;
        }
    });
    assert!(scrapes > 1);
    let (_, samples) = parse(&exporter.encode());
    let bytes: u64 = (0..20_000).map(|i| i % 1000 + i % 7).sum();
    for engine in ["packet", "copy"] {
        let up = [("engine", engine), ("direction", "up")];
        assert_eq!(
            value(&samples, "limpid_transferred_bytes_total", &up),
            bytes as f64
        );
    }
}

/// Names of metrics, as queries name them, with their labels.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let (flows, exporter) = everything();
    let _open = spliced(&flows, EngineKind::Packet);
    let (families, samples) = parse(&exporter.encode());
    let mut exported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (sample, labels, _) in samples {
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| sample.strip_suffix(suffix))
            .filter(|name| families.get(*name).is_some_and(|kind| kind == "histogram"))
            .unwrap_or(&sample);
        let labels = labels.into_keys().filter(|label| label != "le");
        exported.entry(name.to_owned()).or_default().extend(labels);
    }
    assert!(families.len() == exported.len(), "a family without samples");
    exported
}

/// The text between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_documentation_has_every_metric_and_no_other() {
    let text = include_str!("../../../docs/metrics.md");
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, labels, ..] = cells[..] else {
            panic!("{row}")
        };
        let labels = quoted(labels).map(str::to_owned).collect();
        let name = quoted(name).next().expect("a name");
        if name.contains('_') {
            documented.insert(name.to_owned(), labels);
        }
    }
    assert_eq!(documented, exported());
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    let text = include_str!("../../../deploy/grafana/limpid.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let mut queries = Vec::new();
    find_queries(&dashboard, &mut queries);
    let exported = exported();
    let mut asked = BTreeSet::new();
    for query in &queries {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|w| w.starts_with("limpid_") || w.starts_with("process_")) {
            let base = word.strip_suffix("_bucket").unwrap_or(word);
            let known = exported.get(base);
            assert!(known.is_some(), "{word} of {query}");
            asked.insert(base.to_owned());
        }
    }
    // What a dashboard is for, at the least.
    for metric in [
        "limpid_connections_open",
        "limpid_connections_ended_total",
        "limpid_flows_total",
        "limpid_transferred_bytes_total",
        "limpid_connect_duration_seconds",
        "limpid_server_state",
        "limpid_table_entries",
    ] {
        assert!(asked.contains(metric), "no panel has {metric}");
    }
}

fn find_queries(value: &serde_json::Value, queries: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                match value.as_str() {
                    Some(text) if key == "expr" || key == "query" => queries.push(text.to_owned()),
                    _ => find_queries(value, queries),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| find_queries(v, queries)),
        _ => {}
    }
}

/// What comes back for a request, and how long that took.
async fn ask(address: SocketAddr, request: &str) -> (String, Duration) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    // A reset after what was said is an end too.
    let _ = stream.read_to_string(&mut answer).await;
    (answer, started.elapsed())
}

async fn served() -> (Flows, SocketAddr) {
    let (flows, exporter) = everything();
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = http::bind(any).await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(http::serve(listener, exporter));
    (flows, address)
}

#[tokio::test]
async fn metrics_are_got_at_their_path() {
    let (_flows, address) = served().await;
    let (answer, _) = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(parse(body).1.len() > 20);
    let (answer, _) = ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let (answer, _) = ask(address, "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("allow: GET\r\n"), "{answer}");
    let (answer, _) = ask(address, "nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let taken = http::bind(address).await.expect_err("it is taken");
    assert!(
        taken
            .to_string()
            .starts_with(&format!("--metrics {address}: "))
    );
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let (_flows, address) = served().await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    // All places are taken, until those who have them are given up.
    let (answer, took) = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(took >= Duration::from_secs(4), "after {took:?}");
    for stream in &mut silent {
        let end = stream.read(&mut [0; 512]).await;
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn many_scrapes_are_one_reading() {
    /// Counts how often it is read.
    #[derive(Debug, Clone, Default)]
    struct Counting(Arc<std::sync::atomic::AtomicU64>);
    impl Readings for Counting {
        fn packets(&self) -> Option<SteeringCounters> {
            self.0.fetch_add(1, Relaxed);
            None
        }
    }
    let counting = Counting::default();
    let exporter = Exporter::new(&Flows::default(), counting.clone());
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = http::bind(any).await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(http::serve(listener, exporter));
    let started = Instant::now();
    for _ in 0..50 {
        let (answer, _) = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.ends_with("# EOF\n"));
    }
    let most = started.elapsed().as_secs() + 1;
    let readings = counting.0.load(Relaxed);
    assert!((1..=most).contains(&readings), "{readings} readings");
}
