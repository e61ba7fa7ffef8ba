//! What is told of a connection.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tracing::Level;

use crate::config::Name;
use crate::record::{Ending, Weight};
use crate::registry::Flow;
use crate::splice::{EngineKind, Fallback};

/// One connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub(super) flow: &'a Flow,
    pub(super) end: &'a Ending,
    /// When it ended.
    pub(super) time: Timestamp,
    /// How long it was open.
    pub(super) total: Duration,
    pub(super) open: Concurrency,
}

/// Connections that were open when this one ended, it included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concurrency {
    /// All of the daemon's.
    pub process: u64,
    /// Those of its listener.
    pub listener: u64,
    /// Those to its pool.
    pub pool: u64,
    /// Those to its server.
    pub server: u64,
}

/// The value of a field.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    /// Milliseconds, with the microseconds behind the point.
    Milliseconds(f64),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Milliseconds(ms) => ms.fmt(f),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

impl<'a> Line<'a> {
    /// A connection that has ended now.
    #[must_use]
    pub fn now(flow: &'a Flow, end: &'a Ending, open: Concurrency) -> Self {
        Self {
            flow,
            end,
            time: Timestamp::now(),
            total: flow.accepted.elapsed(),
            open,
        }
    }

    /// When it was accepted.
    pub(super) fn accepted(&self) -> Timestamp {
        // A clock that was set, and a connection older than it can tell.
        self.time
            .checked_sub(self.total)
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Its fields, as all formats but HAProxy's name them; those that are not known are left out.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, Value<'a>)> + use<'a> {
        fn text<'a>(value: Option<impl fmt::Display>) -> Option<Value<'a>> {
            Some(Value::Text(value?.to_string().into()))
        }
        let (flow, end) = (self.flow, self.end);
        let name = |name: Option<&'a str>| name.map(|name| Value::Text(name.into()));
        let time = |time: Option<Duration>| time.map(|time| Value::Milliseconds(ms(time)));
        let progress = &flow.progress;
        [
            ("id", Some(Value::Number(flow.id))),
            ("client", text(flow.client.get())),
            ("peer", text(Some(flow.peer))),
            ("listener", name(flow.listener().map(Name::as_str))),
            ("pool", name(flow.pool().map(Name::as_str))),
            ("server", name(flow.server())),
            ("upstream", text(flow.upstream.get())),
            ("source", text(flow.source.get())),
            ("unique_id", text(flow.unique_id.get())),
            ("engine", name(progress.engine().map(EngineKind::label))),
            ("fallback", name(progress.fallback().map(Fallback::label))),
            ("retries", Some(Value::Number(flow.retries().into()))),
            ("bytes_up", Some(Value::Number(progress.bytes_up()))),
            ("bytes_down", Some(Value::Number(progress.bytes_down()))),
            ("header_ms", time(flow.header())),
            ("connect_ms", time(flow.connect())),
            ("total_ms", time(Some(self.total))),
            ("end", name(Some(end.label))),
            ("detail", name(end.detail.as_deref())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }

    /// The level of the same in the log.
    pub(super) fn level(&self) -> Level {
        match self.end.weight {
            Weight::Normal => Level::INFO,
            Weight::Warning => Level::WARN,
            Weight::Trifle => Level::DEBUG,
        }
    }

    /// Does somebody want to know? Of trifles only where the log is to have them too.
    pub(super) fn matters(&self) -> bool {
        match self.end.weight {
            Weight::Normal | Weight::Warning => true,
            Weight::Trifle => tracing::enabled!(target: "access", Level::DEBUG),
        }
    }

    /// Its severity for syslog and the journal (RFC 5424, 6.2.1).
    pub(super) fn severity(&self) -> u8 {
        match self.end.weight {
            Weight::Warning => 4,
            Weight::Normal => 6,
            Weight::Trifle => 7,
        }
    }

    /// As an event of target `access`.
    pub(super) fn log(&self) {
        let (flow, end) = (self.flow, self.end);
        macro_rules! access {
            ($level:expr) => {
                tracing::event!(
                    target: "access",
                    $level,
                    id = flow.id,
                    client = flow.client.get().map(display),
                    peer = %flow.peer,
                    listener = flow.listener().map(display),
                    pool = flow.pool().map(display),
                    server = flow.server(),
                    upstream = flow.upstream.get().map(display),
                    source = flow.source.get().map(display),
                    unique_id = flow.unique_id.get().map(display),
                    engine = flow.progress.engine().map(|engine| engine.label()),
                    fallback = flow.progress.fallback().map(|reason| reason.label()),
                    retries = flow.retries(),
                    bytes_up = flow.progress.bytes_up(),
                    bytes_down = flow.progress.bytes_down(),
                    header_ms = flow.header().map(ms),
                    connect_ms = flow.connect().map(ms),
                    total_ms = ms(self.total),
                    end = end.label,
                    detail = end.detail,
                )
            };
        }
        match end.weight {
            Weight::Normal => access!(Level::INFO),
            Weight::Warning => access!(Level::WARN),
            Weight::Trifle => access!(Level::DEBUG),
        }
    }
}
