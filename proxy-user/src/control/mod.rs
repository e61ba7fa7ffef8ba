//! The control socket: how `limpid flows` asks a running daemon.
//!
//! One request and one response a connection, each a line of JSON with the protocol's version. The
//! socket is its owner's alone (mode 0600).
//!
//! A request that is not understood gets an answer that says so.

use serde::{Deserialize, Serialize};

pub mod client;
pub mod server;

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
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The open flows, oldest first.
    Flows(Vec<FlowView>),
    /// The request was not understood, or is of another version.
    Error(String),
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
