//! The command line: what can be said, and what is done with it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::bpf::pins::BPFFS;
use crate::control;
use crate::control::client::AskError;

pub mod check;
pub mod cleanup;
pub mod flows;
pub mod run;
pub mod servers;
pub mod status;

/// An eBPF-accelerated transparent TCP proxy.
///
/// limpid stands on the gateway of a service. It reads the PROXY protocol header of a connection
/// once; after that the kernel moves the bytes, and the service sees the client's own address.
/// The service, its container, iptables and routes stay as they are.
#[derive(Debug, Parser)]
#[command(name = "limpid", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// limpid's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Proxy connections until SIGTERM or SIGINT.
    Run(Box<run::RunArgs>),
    /// Show how a running limpid does: its listeners, and how many flows each engine carries.
    Status(status::StatusArgs),
    /// Read a configuration file as `limpid run --config` would, and say what is wrong with it, without
    /// touching anything. Exit code 0: it can be run; 1: it cannot.
    Check(check::CheckArgs),
    /// List the open flows of a running limpid.
    Flows(flows::FlowsArgs),
    /// Do something to one open flow.
    Flow(flows::FlowArgs),
    /// List the servers of its pools: their states, checks and connections.
    Servers(servers::ServersArgs),
    /// Do something to one server.
    Server(servers::ServerArgs),
    /// Have a running limpid read its file again. A file that cannot be used changes nothing, and is
    /// reported here.
    ///
    /// Open flows go on as they are, except those whose listener is gone or whose client is no longer
    /// allowed: they are reset.
    Reload(status::ReloadArgs),
    /// Remove what a limpid that was killed has left on this host: its pins, filters, qdiscs and control
    /// socket, and nothing else. Filters are those of this network namespace.
    ///
    /// A limpid that ends by SIGTERM removes all of it itself. After SIGKILL the programs stay: flows of
    /// the engine packet go on, and the kernel can close other connections in their clients' names. The
    /// next start with the same --instance adopts them; this ends them.
    Cleanup(cleanup::CleanupArgs),
    /// Show what this kernel offers, engine by engine, and what is missing.
    Probe(ProbeArgs),
}

/// Arguments of `limpid probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Print JSON: an object with what was found of features, programs and engines.
    #[arg(long)]
    pub json: bool,
}

/// Which limpid of this host is meant.
#[derive(Clone, Debug, Args)]
pub struct InstanceArgs {
    /// Name of the instance: letters, digits, `-` and `_`, up to 64.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = instance_name)]
    pub instance: String,
}

/// Where an instance pins.
#[derive(Clone, Debug, Args)]
pub struct BpffsArgs {
    /// The BPF file system to pin in, at `PATH/limpid/NAME`. Mounted if it is not, and unmounted by
    /// the last limpid that ends.
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    pub bpffs: PathBuf,
}

/// Where an instance listens for commands.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Unix socket for commands like `limpid flows`, its owner's alone [default: /run/limpid/NAME.sock].
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

impl ControlArgs {
    /// The socket's path for an instance.
    #[must_use]
    pub fn path(&self, instance: &InstanceArgs) -> PathBuf {
        let default = || PathBuf::from(control::FOLDER).join(format!("{}.sock", instance.instance));
        self.control.clone().unwrap_or_else(default)
    }
}

/// Which running limpid is meant.
#[derive(Clone, Debug, Args)]
pub struct Running {
    /// Which limpid.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// Where it listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl Running {
    /// The path of its control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.control.path(&self.instance)
    }
}

/// `things` as JSON for people.
fn json(things: &impl Serialize, socket: PathBuf) -> Result<String, AskError> {
    serde_json::to_string_pretty(things).map_err(|e| AskError::Answer(socket, e))
}

/// A table without lines.
fn table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table
}

/// Milliseconds as a time for people, in whole seconds.
fn age(ms: u64) -> String {
    humantime::format_duration(Duration::from_secs(ms / 1000)).to_string()
}

fn instance_name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=64).contains(&text.len()) && text.chars().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 letters, digits, `-` and `_` are allowed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn instance_names_are_safe_as_file_names() {
        assert!(instance_name("site-1_a").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert!(instance_name(bad).is_err(), "{bad:?}");
        }
    }
}
