//! `limpid run`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use proxy_core::network::Network;

use super::{BpffsArgs, ControlArgs, InstanceArgs};
use crate::bpf::attach::AttachMode;
use crate::resolve::HostPort;
use crate::splice::Choice;
use crate::upstream::SendProxy;

/// Whose address backends see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// The client's, put on the wire by tc programs.
    Client,
    /// The proxy's own. Flows that the engine `packet` is to take get a port outside
    /// `net.ipv4.ip_local_port_range`.
    Proxy,
}

/// What to do where client and upstream are of different families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MismatchArg {
    /// Refuse the connection.
    Refuse,
    /// Use the proxy's own address.
    Proxy,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Arguments of `limpid run`.
///
/// Times are written like `5s`, `500ms`, `2m`, `1h`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RunArgs {
    /// Address and port to accept connections on. `[::]:PORT` accepts IPv4 as well. The engine `packet`
    /// takes connections that come by an interface which has the address.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,

    /// Backend to connect to. A name is resolved once, at start; of its addresses the first of the
    /// client's family is used.
    #[arg(long, value_name = "HOST:PORT")]
    pub upstream: HostPort,

    /// Expect a PROXY protocol header (version 1 or 2) on every connection. Needs --trust.
    #[arg(long)]
    pub accept_proxy: bool,

    /// Network whose hosts may send a PROXY header; repeat for more. Whoever is trusted can claim to be
    /// any client. `0.0.0.0/0` means anyone, by IPv6 too.
    #[arg(long, value_name = "CIDR", requires = "accept_proxy")]
    pub trust: Vec<Network>,

    /// Whose address backends see [default: client with --accept-proxy, else proxy].
    #[arg(long, value_enum)]
    pub source: Option<SourceArg>,

    /// What to do where the client has an IPv4 address and the upstream an IPv6 one, or the reverse.
    #[arg(long, value_enum, default_value_t = MismatchArg::Refuse)]
    pub source_mismatch: MismatchArg,

    /// Send a PROXY protocol header to the backend: limpid as the edge of a chain.
    #[arg(long, value_enum, value_name = "VERSION")]
    pub send_proxy: Option<SendProxy>,

    /// What moves the bytes, once both sides are connected. `auto` takes the best that the kernel and the
    /// flow allow: `packet`, `sockmap`, `copy`; `limpid flows` says why where that was not the first.
    ///
    /// Flows of `packet` have no socket on this host: its netfilter, conntrack and `ss` do not see them, and
    /// they go on when limpid is killed.
    #[arg(long, value_enum, default_value_t)]
    pub splice: Choice,

    /// Interface towards the backends [default: from the routing table, followed when it changes].
    #[arg(long, value_name = "NAME")]
    pub upstream_interface: Option<String>,

    /// Interface towards the clients [default: any; for the engine `packet` those that have the address of
    /// --listen]. Connections that arrive elsewhere are not accepted (`SO_BINDTODEVICE`).
    #[arg(long, value_name = "NAME")]
    pub downstream_interface: Option<String>,

    /// How programs are put on interfaces.
    #[arg(long, value_enum, default_value_t = AttachMode::Auto)]
    pub attach: AttachMode,

    /// How long a PROXY header may take (the specification asks for at least 3 s).
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive_duration)]
    pub header_timeout: Duration,

    /// Largest PROXY header of version 2 that is read, in bytes: 536 to 65551.
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(536..=65_551))]
    pub max_header: u32,

    /// How long connecting to the backend may take.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive_duration)]
    pub connect_timeout: Duration,

    /// How long a flow may stay without a byte in either direction (engine `packet`: without a packet, and a
    /// keep-alive probe is one).
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = positive_duration)]
    pub idle_timeout: Duration,

    /// How long a flow may stay without a byte, or packet, once one side has closed.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = positive_duration)]
    pub half_close_timeout: Duration,

    /// How long open flows may go on after SIGTERM, SIGINT or SIGHUP, before they are reset. A second signal
    /// ends the wait.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,

    /// Flows that the tables have room for. Connections beyond are refused with --source client, and take
    /// an engine with sockets with --source proxy.
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..=8_388_608))]
    pub max_flows: u32,

    /// Take the place of the limpid that runs with the same --instance (and --control, --bpffs): its
    /// listening socket and its flows. No connection is refused or reset. Flows that it must carry
    /// itself stay with it for as long as they want, and it ends after the last of them. Where none runs,
    /// this is an ordinary start.
    ///
    /// The other options may differ, except --listen and --downstream-interface. Until the new limpid has
    /// set everything up the old one goes on, and it keeps its place where the new one fails. Numbers of
    /// flows start again. A limpid whose pinned tables have another layout cannot be taken over.
    #[arg(long)]
    pub take_over: bool,

    /// Format of the log and of the access lines in it, on standard error. Levels are set by the environment
    /// variable `RUST_LOG` (default `info`; `access=off` silences the access lines).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

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

fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be more than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(e) => Err(format!("{e}; write 500ms, 5s, 2m, 1h")),
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
