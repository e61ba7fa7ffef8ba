//! `limpid servers` and `limpid server`.

use clap::{Args, Subcommand};

use super::{Running, json, table};
use crate::control::Command;
use crate::control::client::{self, AskError, TIMEOUT};
use crate::pool::AdminState;

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
        state: AdminState,

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
        "POOL", "SERVER", "ADDRESS", "STATE", "WEIGHT", "OPEN", "TOTAL", "FAILED", "CHECKS",
    ]);
    for server in servers {
        table.add_row(server.row());
    }
    Ok(table.trim_fmt())
}

/// What `limpid server` prints.
pub async fn server(args: &ServerArgs) -> Result<String, AskError> {
    let ServerCommand::Set {
        server,
        state,
        running,
    } = &args.command;
    let (pool, server) = server.split_once('/').unwrap_or(("default", server));
    let command = Command::SetServer {
        pool: pool.to_owned(),
        server: server.to_owned(),
        state: *state,
    };
    client::order(&running.socket(), command, TIMEOUT).await
}
