//! `limpid flows` and `limpid flow`.

use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::Table;
use serde_json::json;

use super::{Running, age, json, table};
use crate::config::Time;
use crate::control::client::{self, AskError, TIMEOUT};
use crate::control::{Command, FlowView};

/// Arguments of `limpid flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Print JSON: an array with one object a flow.
    #[arg(long)]
    pub json: bool,

    /// Print the list again and again, every second or that often, until interrupted. On a terminal the
    /// last list is overwritten; with --json each is one line.
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "1s")]
    pub watch: Option<Time>,

    /// Which limpid.
    #[command(flatten)]
    pub running: Running,
}

impl FlowsArgs {
    /// How often it is printed; `None`: once.
    #[must_use]
    pub fn every(&self) -> Option<Duration> {
        self.watch.map(Time::get)
    }
}

/// Arguments of `limpid flow`.
#[derive(Debug, Args)]
pub struct FlowArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: FlowCommand,
}

/// What can be done to a flow.
#[derive(Debug, Subcommand)]
pub enum FlowCommand {
    /// Reset it: both sides get a RST, and its record says `killed`.
    Kill {
        /// Its number in `limpid flows`.
        id: u64,

        /// Print JSON: an object with `id`, and what was done (`done`).
        #[arg(long)]
        json: bool,

        /// Which limpid.
        #[command(flatten)]
        running: Running,
    },
}

/// What `limpid flows` prints.
pub async fn flows(args: &FlowsArgs) -> Result<String, AskError> {
    let socket = args.running.socket();
    let flows = client::flows(&socket).await?;
    match (args.json, args.watch) {
        (true, Some(_)) => serde_json::to_string(&flows).map_err(|e| AskError::Answer(socket, e)),
        (true, None) => json(&flows, socket),
        (false, _) => Ok(list(&flows).trim_fmt()),
    }
}

/// What `limpid flow` prints.
pub async fn flow(args: &FlowArgs) -> Result<String, AskError> {
    let FlowCommand::Kill {
        id,
        json: as_json,
        running,
    } = &args.command;
    let socket = running.socket();
    let done = client::order(&socket, Command::KillFlow(*id), TIMEOUT).await?;
    if *as_json {
        return json(&json!({ "id": id, "done": done }), socket);
    }
    Ok(done)
}

fn list(flows: &[FlowView]) -> Table {
    let mut table = table([
        "ID",
        "CLIENT",
        "DOWNSTREAM",
        "UPSTREAM",
        "ENGINE",
        "STATE",
        "UP",
        "DOWN",
        "AGE",
        "FALLBACK",
    ]);
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    for flow in flows {
        table.add_row([
            flow.id.to_string(),
            text(&flow.client),
            flow.downstream.clone(),
            text(&flow.upstream),
            text(&flow.engine),
            flow.state.clone(),
            flow.bytes_up.to_string(),
            flow.bytes_down.to_string(),
            age(flow.age_ms),
            text(&flow.fallback),
        ]);
    }
    table
}
