//! `limpid status` and `limpid reload`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{Running, age, json, table};
use crate::control::client::{self, AskError};
use crate::control::{Command, StatusView};

/// How long a reload may take: names are resolved.
const RELOAD: Duration = Duration::from_secs(60);

/// Arguments of `limpid status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON: one object.
    #[arg(long)]
    pub json: bool,

    /// Which limpid.
    #[command(flatten)]
    pub running: Running,
}

/// Arguments of `limpid reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Print JSON: an object with what was done (`done`), and the warnings about the file (`warnings`).
    #[arg(long)]
    pub json: bool,

    /// Which limpid.
    #[command(flatten)]
    pub running: Running,
}

/// What `limpid status` prints.
pub async fn status(args: &StatusArgs) -> Result<String, AskError> {
    let socket = args.running.socket();
    let status = client::status(&socket).await?;
    if args.json {
        return json(&status, socket);
    }
    Ok(text(&status))
}

/// What `limpid reload` prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// For standard output.
    pub text: String,
    /// For standard error: a line for each warning.
    pub warnings: String,
}

/// Has the file read again.
pub async fn reload(args: &ReloadArgs) -> Result<Reloaded, AskError> {
    let socket = args.running.socket();
    let answer = client::order(&socket, Command::Reload, RELOAD).await?;
    let (done, warnings) = answer.split_once('\n').unwrap_or((&answer, ""));
    if args.json {
        let warnings: Vec<&str> = warnings.lines().collect();
        let told = json!({ "done": done, "warnings": warnings });
        return Ok(Reloaded {
            text: json(&told, socket)?,
            warnings: String::new(),
        });
    }
    Ok(Reloaded {
        text: done.to_owned(),
        warnings: warnings.to_owned(),
    })
}

fn text(status: &StatusView) -> String {
    let flows = status.flows.iter();
    let flows: Vec<String> = flows.map(|(by, count)| format!("{count} {by}")).collect();
    let mut listeners = table([
        "LISTENER",
        "LISTEN",
        "POOL",
        "SOURCE",
        "SPLICE",
        "CONNECTIONS",
    ]);
    for listener in &status.listeners {
        listeners.add_row([
            listener.name.clone(),
            listener.listen.join(" "),
            listener.pool.clone(),
            listener.source.clone(),
            listener.splice.clone(),
            listener.connections.to_string(),
        ]);
    }
    format!(
        "limpid {} ({}), process {}, {} for {}\nconfiguration: {}\nflows: {}\n\n{}",
        status.version,
        status.instance,
        status.pid,
        if status.ending { "ending; up" } else { "up" },
        age(status.uptime_ms),
        status.config.as_deref().unwrap_or("the command line"),
        if flows.is_empty() {
            "none".to_owned()
        } else {
            flows.join(", ")
        },
        listeners.trim_fmt(),
    )
}
