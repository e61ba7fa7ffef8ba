//! What is not counted event by event, but read when somebody asks.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::readings::{Readings, ServerState, ServerView};
use super::text;
use super::totals::Share;
use crate::registry::Registry;

/// Reads flows and whatever else there is.
#[derive(Debug)]
pub(super) struct Collected<R> {
    pub(super) flows: Registry,
    pub(super) readings: R,
    /// When the process began, in seconds since 1970.
    pub(super) started: f64,
}

impl<R: Readings> Collector for Collected<R> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        process(encoder, self.started)?;
        flows(encoder, &self.flows)?;
        servers(encoder, &self.readings.servers())?;
        tables(encoder, &self.readings)?;
        packets(encoder, &self.readings)
    }
}

/// One metric and its values by labels; where there are none, it is left out.
fn write<L: EncodeLabelSet, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    metric_type: MetricType,
    values: impl IntoIterator<Item = (L, M)>,
) -> fmt::Result {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    // As the registry ends its own.
    let help = format!("{help}.");
    let mut metric = encoder.encode_descriptor(name, &help, unit, metric_type)?;
    for (labels, value) in values {
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counter<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    description: (&str, &str, Option<&Unit>),
    values: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let values = values
        .into_iter()
        .map(|(labels, value)| (labels, ConstCounter::new(value)));
    write(encoder, description, MetricType::Counter, values)
}

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    description: (&str, &str, Option<&Unit>),
    values: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let values = values
        .into_iter()
        .map(|(labels, value)| (labels, ConstGauge::new(value)));
    write(encoder, description, MetricType::Gauge, values)
}

fn process(encoder: &mut DescriptorEncoder<'_>, started: f64) -> fmt::Result {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    gauge(
        encoder,
        ("limpid_build_info", "What is running: always 1", None),
        [(version, 1)],
    )?;
    let description = (
        "process_start_time",
        "When the process began, since the beginning of 1970",
        Some(&Unit::Seconds),
    );
    let value: [([(&str, &str); 0], _); 1] = [([], ConstGauge::new(started))];
    write(encoder, description, MetricType::Gauge, value)
}

fn flows(encoder: &mut DescriptorEncoder<'_>, registry: &Registry) -> fmt::Result {
    let (open, mut totals) = registry.count();
    let mut listeners: BTreeMap<String, u64> = BTreeMap::new();
    let mut engines: BTreeMap<Share, u64> = BTreeMap::new();
    // Those that have none now have had some: 0 is a value.
    for share in totals.carried.keys() {
        listeners.entry(text(share.listener.as_ref())).or_default();
        engines.entry(share.clone()).or_default();
    }
    for flow in &open {
        totals.add_open(flow);
        *listeners.entry(text(flow.listener())).or_default() += 1;
        *engines.entry(Share::of(flow)).or_default() += 1;
    }
    let labels = |share: &Share| {
        [
            ("listener", text(share.listener.as_ref())),
            ("pool", text(share.pool.as_ref())),
            ("engine", share.engine.to_owned()),
        ]
    };
    gauge(
        encoder,
        (
            "limpid_connections_open",
            "Connections that are open, in whichever state",
            None,
        ),
        listeners
            .iter()
            .map(|(name, n)| ([("listener", name.as_str())], *n)),
    )?;
    gauge(
        encoder,
        (
            "limpid_flows_open",
            "Open connections by the engine that they have",
            None,
        ),
        engines.iter().map(|(share, n)| (labels(share), *n)),
    )?;
    counter(
        encoder,
        (
            "limpid_flows",
            "Connections by the engine that they got, open ones included",
            None,
        ),
        totals
            .carried
            .iter()
            .map(|(share, carried)| (labels(share), carried.flows)),
    )?;
    counter(
        encoder,
        (
            "limpid_transferred",
            "Payload that was carried, that of open connections included",
            Some(&Unit::Bytes),
        ),
        totals.carried.iter().flat_map(|(share, carried)| {
            let [listener, pool, engine] = labels(share);
            let [up, down] = carried.bytes;
            [("up", up), ("down", down)].map(|(direction, bytes)| {
                let direction = ("direction", direction.to_owned());
                let labels = [listener.clone(), pool.clone(), engine.clone(), direction];
                (labels, bytes)
            })
        }),
    )?;
    counter(
        encoder,
        (
            "limpid_fallbacks",
            "Connections that did not get the best engine, by the reason",
            None,
        ),
        totals.fallbacks.iter().map(|((listener, reason), n)| {
            let listener = text(listener.as_ref());
            (
                [("listener", listener), ("reason", (*reason).to_owned())],
                *n,
            )
        }),
    )
}

/// The labels of a server's series.
type ServerLabels<'a> = [(&'static str, &'a str); 2];

/// The addresses of each server: a name may have several, and has one series all the same.
pub(super) fn by_name(addresses: &[ServerView]) -> BTreeMap<ServerLabels<'_>, Vec<&ServerView>> {
    let mut servers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for view in addresses {
        let labels = [("pool", &*view.pool), ("server", &*view.server)];
        servers.entry(labels).or_default().push(view);
    }
    servers
}

/// What a server's addresses come to together.
pub(super) fn sum(addresses: &[&ServerView], value: impl Fn(&ServerView) -> u64) -> u64 {
    addresses.iter().map(|view| value(view)).sum()
}

fn servers(encoder: &mut DescriptorEncoder<'_>, addresses: &[ServerView]) -> fmt::Result {
    let servers = &by_name(addresses);
    let each = |value: fn(&ServerView) -> u64| {
        let servers = servers.iter();
        servers.map(move |(labels, addresses)| (*labels, sum(addresses, value)))
    };
    gauge(
        encoder,
        (
            "limpid_server_state",
            "Addresses of a server that are in this state",
            None,
        ),
        servers.iter().flat_map(|([pool, server], addresses)| {
            ServerState::ALL.map(|state| {
                let labels = [*pool, *server, ("state", state.label())];
                (labels, sum(addresses, |view| (view.state == state).into()))
            })
        }),
    )?;
    gauge(
        encoder,
        (
            "limpid_server_weight",
            "A server's share of the connections",
            None,
        ),
        each(|view| view.weight.into()),
    )?;
    gauge(
        encoder,
        (
            "limpid_server_connections_open",
            "Connections that a server has",
            None,
        ),
        each(|view| view.connections),
    )?;
    counter(
        encoder,
        (
            "limpid_server_connections",
            "Connections that a server has got",
            None,
        ),
        each(|view| view.connections_total),
    )?;
    counter(
        encoder,
        (
            "limpid_server_connect_failures",
            "Clients' connections to a server that could not be made",
            None,
        ),
        each(|view| view.connect_failures),
    )?;
    counter(
        encoder,
        (
            "limpid_server_checks",
            "Checks of a server, by their result",
            None,
        ),
        servers.iter().flat_map(|([pool, server], addresses)| {
            let ok = sum(addresses, |view| view.checks_ok);
            let failed = sum(addresses, |view| view.checks_failed);
            [("ok", ok), ("failed", failed)]
                .map(|(result, n)| ([*pool, *server, ("result", result)], n))
        }),
    )?;
    counter(
        encoder,
        (
            "limpid_server_ejections",
            "How often a server was ejected",
            None,
        ),
        each(|view| view.ejections),
    )
}

fn tables(encoder: &mut DescriptorEncoder<'_>, readings: &impl Readings) -> fmt::Result {
    let tables = readings.tables();
    gauge(
        encoder,
        ("limpid_table_entries", "Entries of a table", None),
        tables
            .iter()
            .map(|view| ([("table", view.table)], view.entries)),
    )?;
    gauge(
        encoder,
        (
            "limpid_table_capacity",
            "Entries that a table has room for",
            None,
        ),
        tables
            .iter()
            .map(|view| ([("table", view.table)], view.capacity)),
    )
}

fn packets(encoder: &mut DescriptorEncoder<'_>, readings: &impl Readings) -> fmt::Result {
    let Some(packets) = readings.packets() else {
        return Ok(());
    };
    counter(
        encoder,
        (
            "limpid_packets",
            "Packets that the tc programs have changed",
            None,
        ),
        [
            ("steered-out", packets.steered_out),
            ("steered-in", packets.steered_in),
            ("icmp-in", packets.icmp_in),
            ("forwarded", packets.forwarded),
            ("icmp-forwarded", packets.icmp_forwarded),
        ]
        .map(|(action, n)| ([("action", action)], n)),
    )?;
    counter(
        encoder,
        (
            "limpid_packets_dropped",
            "Packets that the tc programs have dropped",
            None,
        ),
        [
            ("table-full", packets.table_full),
            ("upstream-rewritten", packets.upstream_rewritten),
            ("rewrite-failed", packets.rewrite_failed),
        ]
        .map(|(reason, n)| ([("reason", reason)], n)),
    )
}
