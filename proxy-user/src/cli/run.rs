//! `limpid run`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::{BpffsArgs, ControlArgs, InstanceArgs};
use crate::config::{Config, Daemon, Listener, Name, Pool};

/// Arguments of `limpid run`.
///
/// Times are written like `5s`, `500ms`, `2m`, `1h`. A file has the same options as keys, without the dashes
/// in front; `limpid check` reads one without running.
#[derive(Debug, Args)]
#[command(
    after_long_help = EXAMPLES,
    group = ArgGroup::new("from").args(["listen", "config"]).required(true).multiple(true),
    group = ArgGroup::new("to").args(["upstream", "config"]).required(true).multiple(true),
)]
pub struct RunArgs {
    /// Take listeners, pools and all else from this file (TOML) instead of options. It is read again on
    /// SIGHUP and by `limpid reload`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["Listener", "Pool", "Daemon"])]
    pub config: Option<PathBuf>,

    /// The listener.
    #[command(flatten, next_help_heading = "Listener")]
    pub listener: Listener,

    /// Its pool.
    #[command(flatten, next_help_heading = "Pool")]
    pub pool: Pool,

    /// The rest.
    #[command(flatten, next_help_heading = "Daemon")]
    pub daemon: Daemon,

    /// Take the place of the limpid that runs with the same --instance (and --control, --bpffs): its
    /// listening sockets and its flows. No connection is refused or reset. Flows that it must carry
    /// itself stay with it for as long as they want, and it ends after the last of them. Where none runs,
    /// this is an ordinary start.
    ///
    /// The other options may differ, except --listen and --downstream-interface. Until the new limpid has
    /// set everything up the old one goes on, and it keeps its place where the new one fails. Numbers of
    /// flows start again. A limpid whose pinned tables have another layout cannot be taken over.
    #[arg(long)]
    pub take_over: bool,

    /// Which limpid this is, if there are several on a host.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// Where it pins.
    #[command(flatten)]
    pub bpffs: BpffsArgs,

    /// Where it listens for commands.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl RunArgs {
    /// What the options say.
    #[must_use]
    pub fn options(&self) -> Config {
        Config {
            daemon: self.daemon.clone(),
            listeners: [(Name::default(), self.listener.clone())].into(),
            pools: [(Name::default(), self.pool.clone())].into(),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  Behind HAProxy with `send-proxy-v2`, in front of a game server that is to see its players:
    limpid run --listen 0.0.0.0:25565 --accept-proxy --trust 192.0.2.0/24 --upstream 172.18.0.2:25565

  The other end of that road, near the players:
    limpid run --listen 0.0.0.0:25565 --upstream origin.example.net:25565 --send-proxy v2

  A new version, or other options, while players play: the same command line once more, with
    limpid run --take-over ...";
