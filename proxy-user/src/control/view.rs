//! A daemon, in the words of the protocol.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use super::{FlowView, ListenerView, ServerView, StatusView};
use crate::daemon::shared::Shared;
use crate::pool::{self, Pool};
use crate::registry::Flow;
use crate::splice::EngineKind;

pub(super) fn status(shared: &Shared) -> StatusView {
    let config = shared.config();
    let flows = shared.registry.list();
    let mut by_engine = BTreeMap::new();
    let mut by_listener = BTreeMap::new();
    for flow in &flows {
        let engine = flow.progress.engine().map(EngineKind::label);
        *by_engine
            .entry(engine.unwrap_or_else(|| flow.state()).to_owned())
            .or_insert(0) += 1;
        if let Some((name, _)) = config.listener_at(flow.called) {
            *by_listener.entry(name).or_insert(0) += 1;
        }
    }
    let listeners = config
        .listeners
        .iter()
        .map(|(name, listener)| ListenerView {
            name: name.to_string(),
            listen: listener.listen.iter().map(ToString::to_string).collect(),
            pool: config.pool_of(name, listener).to_string(),
            source: if listener.steers() { "client" } else { "proxy" }.to_owned(),
            splice: listener.splice.to_string(),
            connections: by_listener.get(name).copied().unwrap_or(0),
        });
    StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: shared.instance.clone(),
        pid: std::process::id(),
        uptime_ms: age_ms(shared.started),
        ending: shared.is_ending(),
        config: shared.file.as_ref().map(|file| file.display().to_string()),
        flows: by_engine,
        listeners: listeners.collect(),
    }
}

pub(super) fn servers(pool: &Pool) -> Vec<ServerView> {
    let view = |server: pool::ServerView| {
        let last = server.checks.last;
        ServerView {
            pool: pool.name().to_string(),
            server: server.name.to_string(),
            address: server.endpoint.to_string(),
            state: server.state.label().to_owned(),
            unchanged_ms: whole_ms(server.unchanged),
            weight: server.weight,
            effective_weight: server.effective_weight,
            backup: server.backup,
            connections: server.counts.open,
            connections_total: server.counts.total,
            connect_failures: server.counts.failed,
            checks_ok: server.checks.succeeded,
            checks_failed: server.checks.failed,
            last_check_ms: last.as_ref().map(|check| check.took.as_secs_f64() * 1000.0),
            last_check_error: last.and_then(|check| check.error),
        }
    };
    pool.servers().into_iter().map(view).collect()
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn age_ms(since: Instant) -> u64 {
    whole_ms(since.elapsed())
}

pub(super) fn flow(flow: &Flow) -> FlowView {
    let text = |address: Option<&dyn Display>| address.map(ToString::to_string);
    FlowView {
        id: flow.id,
        client: text(flow.client.get().map(|a| a as _)),
        downstream: flow.peer.to_string(),
        listener: flow.listener().map(ToString::to_string),
        pool: flow.pool().map(ToString::to_string),
        server: flow.server().map(str::to_owned),
        upstream: text(flow.upstream.get().map(|a| a as _)),
        source: text(flow.source.get().map(|a| a as _)),
        engine: flow
            .progress
            .engine()
            .map(|engine| engine.label().to_owned()),
        state: flow.state().to_owned(),
        bytes_up: flow.progress.bytes_up(),
        bytes_down: flow.progress.bytes_down(),
        age_ms: age_ms(flow.accepted),
        fallback: flow
            .progress
            .fallback()
            .map(|reason| reason.label().to_owned()),
    }
}
