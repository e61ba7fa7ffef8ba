//! What other parts of the daemon know, read at each scrape.

use std::fmt;

use proxy_common::flow::SteeringCounters;

/// What there is to be read. Called from a thread that may block for a moment; each is called once a scrape.
pub trait Readings: fmt::Debug + Send + Sync + 'static {
    /// The servers of all pools: each address that a server has is one of them.
    fn servers(&self) -> Vec<ServerView> {
        Vec::new()
    }

    /// The tables that flows may fill.
    fn tables(&self) -> Vec<TableView> {
        Vec::new()
    }

    /// What the tc programs have done; `None` where they are not loaded.
    fn packets(&self) -> Option<SteeringCounters> {
        None
    }
}

/// There is nothing to be read.
impl Readings for () {}

/// A server of a pool, at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerView {
    /// Its pool's name.
    pub pool: String,
    /// Its own.
    pub server: String,
    /// Whether it gets connections.
    pub state: ServerState,
    /// Its share of them.
    pub weight: u32,
    /// Those that are open.
    pub connections: u64,
    /// Those that it has got since it is known.
    pub connections_total: u64,
    /// Those of clients that could not be made.
    pub connect_failures: u64,
    /// Checks that have succeeded.
    pub checks_ok: u64,
    /// Checks that have failed.
    pub checks_failed: u64,
    /// How often it was ejected.
    pub ejections: u64,
}

/// Whether a server gets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It does.
    Up,
    /// Its checks fail.
    Down,
    /// Clients' connections to it have failed: not for a while.
    Ejected,
    /// By command: those that it has may stay.
    Drain,
    /// By command.
    Disabled,
}

impl ServerState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Up,
        Self::Down,
        Self::Ejected,
        Self::Drain,
        Self::Disabled,
    ];

    /// Stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Drain => "drain",
            Self::Disabled => "disabled",
        }
    }
}

/// A table that flows may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableView {
    /// Stable name.
    pub table: &'static str,
    /// Entries that are in it.
    pub entries: u64,
    /// Entries that it has room for.
    pub capacity: u64,
}
