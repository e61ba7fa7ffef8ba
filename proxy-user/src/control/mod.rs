//! The control socket: how `limpid flows` asks a running daemon.
//!
//! One request and one response a connection, each a line of JSON with the protocol's version. The
//! socket is its owner's alone (mode 0600). A daemon that takes over goes on talking: [`crate::takeover`].
//!
//! A request that is not understood gets an answer that says so.

use std::io;

use serde::{Deserialize, Serialize};

use crate::takeover::Offer;

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
    /// The place of this daemon.
    TakeOver,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The open flows, oldest first.
    Flows(Vec<FlowView>),
    /// What comes with this line, and is shared from now on.
    TakeOver(Offer),
    /// The request was not understood, is of another version, or cannot be answered now.
    Error(String),
}

/// A message as it is sent: JSON, and the end of the line.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
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
