//! `limpid status` and `limpid reload`.

use std::time::Duration;

use clap::Args;

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
pub async fn reload(args: &ReloadArgs) -> Result<String, AskError> {
    client::order(&args.running.socket(), Command::Reload, RELOAD).await
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
