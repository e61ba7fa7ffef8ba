//! The metrics, as Prometheus takes them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::Host;
use limpid_tests::process::{Process, eventually};
use limpid_tests::suite::{Lab, Need, Suite};
use proxy_common::flow::SteeringCounters;
use proxy_core::address::{Listener, Peer};
use proxy_user::metrics::{Exporter, Readings, ServerState, ServerView, TableView, http};
use proxy_user::record::Record;
use proxy_user::registry::Registry;
use proxy_user::splice::{End, EngineKind};
use serde_json::Value;

const NEEDS: [Need; 2] = [
    Need::Program("/usr/bin/prometheus"),
    Need::Program("/usr/bin/promtool"),
];

pub(crate) fn add_to(suite: &mut Suite) {
    suite.test(
        "promtool_has_nothing_to_say",
        &NEEDS[1..],
        promtool_has_nothing_to_say,
    );
    suite.test(
        "prometheus_takes_all_and_the_dashboard_asks_well",
        &NEEDS,
        prometheus_takes_all,
    );
}

#[derive(Debug)]
struct Whole;

impl Readings for Whole {
    fn servers(&self) -> Vec<ServerView> {
        [ServerState::Up, ServerState::Ejected]
            .map(|state| ServerView {
                pool: "out".to_owned(),
                server: "game.example:80".to_owned(),
                state,
                weight: 1,
                connections: 2,
                connections_total: 3,
                connect_failures: 4,
                checks_ok: 5,
                checks_failed: 6,
                ejections: 7,
            })
            .into()
    }

    fn tables(&self) -> Vec<TableView> {
        vec![TableView {
            table: "flows",
            entries: 1,
            capacity: 2,
        }]
    }

    fn packets(&self) -> Option<SteeringCounters> {
        Some(SteeringCounters::default())
    }
}

/// A registry with a flow that has ended and one that has not.
fn flows() -> Result<(Registry, Record)> {
    let registry = Registry::default();
    let connection = || -> Result<Record> {
        let peer = Peer::new("192.0.2.1:40000".parse()?);
        let record = Record::open(
            &registry,
            &"in".parse()?,
            peer,
            Listener::new(peer.socket_addr()),
        );
        let flow = record.flow();
        flow.header_took(Duration::from_micros(800));
        flow.goes_to(&"out".parse()?);
        flow.connect_took(Duration::from_millis(3));
        flow.progress.carried_by(EngineKind::Packet);
        flow.progress.sent_up(1000);
        Ok(record)
    };
    connection()?.close(End::Finished.into());
    let open = connection()?;
    Ok((registry, open))
}

async fn promtool_has_nothing_to_say(lab: Lab) -> Result<()> {
    let (registry, _open) = flows()?;
    let file = lab.path().join("metrics");
    std::fs::write(&file, older(&Exporter::new(&registry, Whole).encode()))?;
    let host = Host::new("observe")?;
    let command = format!("/usr/bin/promtool check metrics < {} 2>&1", file.display());
    let said = host.run("/bin/sh", &["-c", &command])?;
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

/// The text in Prometheus' older format, which is what `check metrics` reads: there a counter's family bears
/// the suffix of its samples.
fn older(text: &str) -> String {
    let counters: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let line = |line: &str| {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "EOF"] | ["#", "UNIT", ..] => String::new(),
            ["#", what, name, rest] if counters.contains(&name) => {
                format!("# {what} {name}_total {rest}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// Prometheus itself scrapes them, and answers the dashboard's queries.
async fn prometheus_takes_all(lab: Lab) -> Result<()> {
    let host = Host::new("observe")?;
    let (registry, _open) = flows()?;
    let listener = host.listen(([127, 0, 0, 1], 9100).into()).await?;
    let serving = tokio::spawn(http::serve(listener, Exporter::new(&registry, Whole)));

    let config = lab.path().join("prometheus.yml");
    std::fs::write(
        &config,
        "global:\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\n\
         scrape_configs:\n  - job_name: limpid\n    static_configs:\n      - targets: [\"127.0.0.1:9100\"]\n",
    )?;
    let args = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", lab.path().join("tsdb").display()),
        "--web.listen-address=127.0.0.1:9090".to_owned(),
    ];
    let program = Path::new("/usr/bin/prometheus");
    let mut prometheus = Process::start(&host, lab.path(), "prometheus", program, &args)?;
    prometheus.wait_until_listening(&host, 9090)?;

    let query = |query: &str| -> Result<Vec<Value>> {
        let args = [
            "query",
            "instant",
            "-o",
            "json",
            "http://127.0.0.1:9090",
            query,
        ];
        let answer = host.run("/usr/bin/promtool", &args)?;
        serde_json::from_str(&answer).with_context(|| answer)
    };
    let is = |asked: &str, value: &str| -> Result<bool> {
        let answer = query(asked)?;
        Ok(matches!(&answer[..], [only] if only["value"][1] == value))
    };
    // 1: it could be read to its end, as what it says that it is.
    eventually("a scrape", || is("up{job='limpid'}", "1")).await?;
    for (asked, value) in [
        ("limpid_connections_accepted_total{listener='in'}", "2"),
        ("limpid_connections_ended_total{reason='fin'}", "1"),
        (
            "limpid_transferred_bytes_total{engine='packet',direction='up'}",
            "2000",
        ),
        ("limpid_connect_duration_seconds_bucket{le='0.005'}", "2"),
        (
            "limpid_server_state{server='game.example:80',state='up'}",
            "1",
        ),
        (
            "limpid_server_connections_total{server='game.example:80'}",
            "6",
        ),
    ] {
        ensure!(is(asked, value)?, "{asked}: {:?}", query(asked)?);
    }

    let dashboard: Value =
        serde_json::from_str(include_str!("../../../deploy/grafana/limpid.json"))?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let mut asked = 0;
    for target in targets.flatten() {
        let written = target["expr"].as_str().context("an expression")?;
        let filled = ["$instance", "$listener", "$pool"]
            .iter()
            .fold(written.to_owned(), |text, variable| {
                text.replace(variable, ".*")
            })
            .replace("$__rate_interval", "1m");
        query(&filled).with_context(|| written.to_owned())?;
        asked += 1;
    }
    ensure!(asked > 20, "{asked} queries");
    serving.abort();
    Ok(())
}
