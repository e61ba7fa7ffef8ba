//! What limpid is told to do. Command line and file say the same things with the same words: each option is
//! a field of one of these types, from which clap makes the flag, serde the key, and schemars the schema.
//!
//! A file has tables for several listeners and pools; the command line has one of each, both named
//! [`Name::default`].

use std::collections::BTreeMap;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod check;
mod daemon;
mod file;
mod listener;
mod place;
mod pool;
mod problem;
mod reload;
mod report;
mod schema;
mod words;

#[cfg(test)]
mod tests;

pub use daemon::{AccessLogFormat, Daemon, LogFormat, LogTarget};
pub use file::{LoadError, Loaded, load, parse};
pub use listener::{Listener, Mismatch, Refuse, Source};
pub use place::Place;
pub use pool::{Balance, Pool, SendProxy, Server, Weight};
pub use problem::{CheckError, Finding, Findings, Form, Problem, Setting, Severity};
pub use reload::NotReloadable;
pub use report::{Cause, Diagnostic, Report};
pub use schema::schema;
pub use words::{
    KeepAlive, ListenAddress, Name, Ports, Rate, Target, TargetPort, Time, TimeOrNone, Within,
    WordError,
};

/// All that limpid is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    default,
    expecting = "a table"
)]
#[schemars(title = "A configuration file of limpid")]
pub struct Config {
    /// What is the daemon's as a whole.
    pub daemon: Daemon,
    /// Where connections are accepted, by name.
    pub listeners: BTreeMap<Name, Listener>,
    /// Where they go, by name.
    pub pools: BTreeMap<Name, Pool>,
}

impl Config {
    /// The name of the pool that a listener's connections go to: the one that it names, or that of its own
    /// name.
    #[must_use]
    pub fn pool_of<'a>(&'a self, name: &'a Name, listener: &'a Listener) -> &'a Name {
        listener.pool.as_ref().unwrap_or(name)
    }

    /// The listener of connections to `called`: one that has that very port before one with a range, and one
    /// that has the address before one with all.
    #[must_use]
    pub fn listener_at(&self, called: proxy_core::address::Listener) -> Option<(&Name, &Listener)> {
        let places = self.listeners.iter().flat_map(|(name, listener)| {
            let fitting = listener
                .listen
                .iter()
                .filter_map(move |place| place.fits(called));
            fitting.map(move |how_well| (how_well, name, listener))
        });
        let best = places.max_by_key(|(how_well, ..)| *how_well);
        best.map(|(_, name, listener)| (name, listener))
    }
}

/// The values of a command line that says nothing: a file's keys have the same defaults.
fn defaults<T: Args>() -> T {
    let command = T::augment_args(clap::Command::new("limpid").no_binary_name(true));
    let matches = command.get_matches_from(std::iter::empty::<&str>());
    T::from_arg_matches(&matches).expect("no option is required")
}
