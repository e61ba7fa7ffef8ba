//! The control socket: how commands like `limpid flows` ask a running daemon.
//!
//! One request and one response a connection, each a line of JSON. The request says the protocol's version;
//! the response is of the same one, or an error. The socket is its owner's alone (mode 0600). A daemon that takes over goes on talking: [`crate::takeover`].
//!
//! A request that is not understood gets an answer that says so.

use std::collections::BTreeMap;
use std::io;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::takeover::Offer;

pub mod client;
pub mod server;
mod view;

/// Version of the protocol; raised when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Where the sockets are, unless `--control` says otherwise.
pub const FOLDER: &str = "/run/limpid";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the asker.
    pub version: u32,
    /// What it wants.
    pub command: Command,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// The open flows.
    Flows,
    /// The place of this daemon.
    TakeOver,
    /// How it does.
    Status,
    /// The servers of its pools.
    Servers,
    /// That a server gets connections, or none.
    SetServer {
        /// The pool.
        pool: String,
        /// The server's name, or `NAME/ADDRESS` for one of several addresses.
        server: String,
        /// What it is to be.
        state: ServerSetting,
    },
    /// The end of a flow, by its number.
    KillFlow(u64),
    /// That it reads its file again.
    Reload,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The open flows, oldest first.
    Flows(Vec<FlowView>),
    /// What comes with this line, and is shared from now on.
    TakeOver(Offer),
    /// How it does.
    Status(Box<StatusView>),
    /// The servers of its pools.
    Servers(Vec<ServerView>),
    /// It is done: what, and a further line for each warning.
    Done(String),
    /// The request was not understood, is of another version, or cannot be answered now.
    Error(String),
}

/// A message as it is sent: JSON, and the end of the line.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// How a daemon does, as `limpid status --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// Its version.
    pub version: String,
    /// Its name.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// Since it was started, in milliseconds.
    pub uptime_ms: u64,
    /// It accepts no connections any more.
    pub ending: bool,
    /// The file that it reads; absent where it was started with options.
    pub config: Option<String>,
    /// Its open flows, by engine, or by state where they have none yet.
    pub flows: BTreeMap<String, u64>,
    /// Its listeners.
    pub listeners: Vec<ListenerView>,
}

/// A listener, as `limpid status --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerView {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Where its connections go.
    pub pool: String,
    /// Whose address backends see.
    pub source: String,
    /// What moves the bytes.
    pub splice: String,
    /// Its open connections.
    pub connections: u64,
}

/// What an operator wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ServerSetting {
    /// It gets connections.
    Ready,
    /// It gets no new connections; it is still checked.
    Drain,
    /// It gets no new connections, and is not checked.
    Down,
}

/// A server, as `limpid servers --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerView {
    /// Its pool.
    pub pool: String,
    /// Its name there.
    pub server: String,
    /// One of its addresses, with the port.
    pub address: String,
    /// `up`, `ejected`, `down`, `drain` or `disabled`.
    pub state: String,
    /// Since it is that, in milliseconds.
    pub unchanged_ms: u64,
    /// Its share of the connections.
    pub weight: u32,
    /// Its share now: less while it starts slowly.
    pub effective_weight: f64,
    /// It gets connections only while no other can take them.
    pub backup: bool,
    /// Open connections.
    pub connections: u32,
    /// Connections that it was to get.
    pub connections_total: u64,
    /// Those of them that could not be made.
    pub connect_failures: u64,
    /// Checks that have succeeded.
    pub checks_ok: u64,
    /// Checks that have failed.
    pub checks_failed: u64,
    /// How long the last one took, in milliseconds; absent before the first.
    pub last_check_ms: Option<f64>,
    /// Why it failed; absent where it did not.
    pub last_check_error: Option<String>,
}

/// A flow, as `limpid flows --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// Its number in this daemon.
    pub id: u64,
    /// Whom it is for; absent until the header is read.
    pub client: Option<String>,
    /// Who connected to us.
    pub downstream: String,
    /// The name of its listener; absent of one that an earlier daemon has left, where that is gone.
    pub listener: Option<String>,
    /// The name of its pool; absent until the header is read.
    pub pool: Option<String>,
    /// The name of its server there; absent until it is connected.
    pub server: Option<String>,
    /// The backend; absent until it is connected.
    pub upstream: Option<String>,
    /// The source that the backend sees; absent until it is connected.
    pub source: Option<String>,
    /// What moves its bytes; absent before the splice.
    pub engine: Option<String>,
    /// Where it stands.
    pub state: String,
    /// Payload from client to backend, in bytes.
    pub bytes_up: u64,
    /// Payload from backend to client, in bytes.
    pub bytes_down: u64,
    /// Since it was accepted, in milliseconds.
    pub age_ms: u64,
    /// Why `--splice auto` did not take the best engine; absent where it did.
    pub fallback: Option<String>,
}
