//! `limpid servers` and `limpid server`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Running, age, json, table};
use crate::control::client::{self, AskError, TIMEOUT};
use crate::control::{Command, ServerSetting, ServerView};

/// Arguments of `limpid servers`.
#[derive(Debug, Args)]
pub struct ServersArgs {
    /// Print JSON: an array with one object a server and address.
    #[arg(long)]
    pub json: bool,

    /// Which limpid.
    #[command(flatten)]
    pub running: Running,
}

/// Arguments of `limpid server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ServerCommand,
}

/// What can be done to a server.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Say whether it gets connections. Open ones go on in any case. It is so until said otherwise, or the
    /// daemon ends; a reload does not change it.
    Set {
        /// The server: `POOL/SERVER`, or `POOL/SERVER/ADDRESS` for one of several addresses.
        #[arg(value_name = "POOL/SERVER")]
        server: String,

        /// What it is to be.
        #[arg(value_enum)]
        state: ServerSetting,

        /// Print JSON: an object with `pool`, `server` and `state` as they were said, and what was done
        /// (`done`).
        #[arg(long)]
        json: bool,

        /// Which limpid.
        #[command(flatten)]
        running: Running,
    },
}

/// What `limpid servers` prints.
pub async fn servers(args: &ServersArgs) -> Result<String, AskError> {
    let socket = args.running.socket();
    let servers = client::servers(&socket).await?;
    if args.json {
        return json(&servers, socket);
    }
    let mut table = table([
        "POOL",
        "SERVER",
        "ADDRESS",
        "STATE",
        "WEIGHT",
        "OPEN",
        "TOTAL",
        "FAILED",
        "LAST CHECK",
    ]);
    for server in servers {
        table.add_row(row(server));
    }
    Ok(table.trim_fmt())
}

fn row(server: ServerView) -> [String; 9] {
    let checks = match (server.last_check_ms, &server.last_check_error) {
        (None, _) => "-".to_owned(),
        (Some(_), Some(error)) => error.clone(),
        (Some(ms), None) => format!("{ms:.1} ms"),
    };
    let backup = if server.backup { " backup" } else { "" };
    [
        server.pool,
        server.server,
        server.address,
        format!("{} {}", server.state, age(server.unchanged_ms)),
        format!("{:.1}{backup}", server.effective_weight),
        server.connections.to_string(),
        server.connections_total.to_string(),
        server.connect_failures.to_string(),
        checks,
    ]
}

/// What `limpid server` prints.
pub async fn server(args: &ServerArgs) -> Result<String, AskError> {
    let ServerCommand::Set {
        server,
        state,
        json: as_json,
        running,
    } = &args.command;
    let socket = running.socket();
    let (pool, server) = server.split_once('/').unwrap_or(("default", server));
    let command = Command::SetServer {
        pool: pool.to_owned(),
        server: server.to_owned(),
        state: *state,
    };
    let done = client::order(&socket, command, TIMEOUT).await?;
    if *as_json {
        let told = json!({ "pool": pool, "server": server, "state": state, "done": done });
        return json(&told, socket);
    }
    Ok(done)
}
