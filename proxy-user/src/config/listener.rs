//! `[listeners.NAME]`: where connections are accepted, from whom, and what is done with them.

use std::sync::LazyLock;

use clap::{Args, ValueEnum};
use proxy_core::address::Client;
use proxy_core::network::Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::{DisplayFromStr, serde_as};

use super::words::Within;
use super::{KeepAlive, ListenAddress, Name, Rate, Time, defaults};
use crate::splice::Choice;

/// Whose address backends see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The client's, put on the wire by tc programs.
    Client,
    /// The proxy's own. Flows that the engine `packet` is to take get a port outside
    /// `net.ipv4.ip_local_port_range`.
    Proxy,
}

/// What to do where client and upstream are of different families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mismatch {
    /// Refuse the connection.
    Refuse,
    /// Use the proxy's own address.
    Proxy,
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Refuse {
    /// With a FIN, as any server that has nothing to say.
    Close,
    /// With a RST: nothing of it stays on this host.
    Reset,
}

/// A listener.
#[serde_as]
#[derive(Clone, Debug, PartialEq, Args, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    default,
    expecting = "a table"
)]
pub struct Listener {
    /// Address and port to accept connections on; repeat for more. `[::]:PORT` accepts IPv4 as well. A range
    /// of ports is `ADDR:FIRST-LAST`, all ports are `ADDR:*`. The engine `packet` takes connections that
    /// come by an interface which has the address.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<ListenAddress>,

    /// The pool that connections go to [default: the one with the listener's name].
    #[arg(skip)]
    pub pool: Option<Name>,

    /// Expect a PROXY protocol header (version 1 or 2) on every connection. Needs --trust.
    #[arg(long)]
    pub accept_proxy: bool,

    /// Network whose hosts may send a PROXY header; repeat for more. Whoever is trusted can claim to be
    /// any client. `0.0.0.0/0` means anyone, by IPv6 too.
    #[arg(long, value_name = "CIDR")]
    #[serde_as(as = "Vec<DisplayFromStr>")]
    pub trust: Vec<Network>,

    /// How long a PROXY header may take (the specification asks for at least 3 s).
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub header_timeout: Time,

    /// Largest PROXY header of version 2 that is read, in bytes: 536 to 65551.
    #[arg(long, value_name = "BYTES", default_value = "4096")]
    pub max_header: Within<536, 65_551>,

    /// Whose address backends see [default: client with --accept-proxy, else proxy].
    #[arg(long, value_enum)]
    pub source: Option<Source>,

    /// What to do where the client has an IPv4 address and the upstream an IPv6 one, or the reverse.
    #[arg(long, value_enum, default_value_t = Mismatch::Refuse)]
    pub source_mismatch: Mismatch,

    /// What moves the bytes, once both sides are connected. `auto` takes the best that the kernel and the
    /// flow allow: `packet`, `sockmap`, `copy`; `limpid flows` says why where that was not the first.
    ///
    /// Flows of `packet` have no socket on this host: its netfilter, conntrack and `ss` do not see them, and
    /// they go on when limpid is killed.
    #[arg(long, value_enum, default_value_t)]
    pub splice: Choice,

    /// Interface towards the clients [default: any; for the engine `packet` those that have the address of
    /// --listen]. Connections that arrive elsewhere are not accepted (`SO_BINDTODEVICE`).
    #[arg(long, value_name = "NAME")]
    pub downstream_interface: Option<String>,

    /// Network whose clients are let in; repeat for more [default: all]. The client is the one that the
    /// PROXY header names.
    #[arg(long, value_name = "CIDR")]
    #[serde_as(as = "Vec<DisplayFromStr>")]
    pub allow: Vec<Network>,

    /// Network whose clients are refused, even if --allow names them; repeat for more.
    #[arg(long, value_name = "CIDR")]
    #[serde_as(as = "Vec<DisplayFromStr>")]
    pub deny: Vec<Network>,

    /// Connections that may be open at once; more are refused [default: as many as there are descriptors].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<Within<1, { u32::MAX }>>,

    /// Connections that one client address (of IPv6: one /64) may have open at once; more are refused
    /// [default: any number].
    #[arg(long, value_name = "N")]
    pub max_connections_per_client: Option<Within<1, { u32::MAX }>>,

    /// New connections that one client address (of IPv6: one /64) may make, as `N/s`, `N/m` or `N/h`; more are refused
    /// [default: any number].
    #[arg(long, value_name = "RATE")]
    pub max_rate_per_client: Option<Rate>,

    /// How clients are refused that --allow, --deny or a limit does not let in.
    #[arg(long, value_enum, default_value_t = Refuse::Reset)]
    pub refuse_with: Refuse,

    /// How long a flow may stay without a byte in either direction (engine `packet`: without a packet, and a
    /// keep-alive probe is one).
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub idle_timeout: Time,

    /// How long a flow may stay without a byte, or packet, once one side has closed.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub half_close_timeout: Time,

    /// Send TCP keep-alive probes to clients, for flows with sockets: `on` (as the kernel is set), or
    /// `idle=TIME,interval=TIME,count=N`, any of them [default: none].
    #[arg(long, value_name = "SETTING")]
    pub downstream_keep_alive: Option<KeepAlive>,

    /// How long what was sent to a client may stay unacknowledged (`TCP_USER_TIMEOUT`) [default: as the
    /// kernel is set].
    #[arg(long, value_name = "TIME")]
    pub downstream_user_timeout: Option<Time>,

    /// Connections that may wait to be accepted; `net.core.somaxconn` may cap it.
    #[arg(long, value_name = "N", default_value = "4096")]
    pub backlog: Within<1, 65_535>,

    /// Accept data with the SYN (TCP Fast Open), from up to N connections at once whose handshake is not
    /// complete [default: not]. Such flows do not take the engine `packet`.
    #[arg(long, value_name = "N")]
    pub fast_open: Option<Within<1, 65_535>>,
}

impl Default for Listener {
    fn default() -> Self {
        static DEFAULTS: LazyLock<Listener> = LazyLock::new(defaults);
        DEFAULTS.clone()
    }
}

impl Listener {
    /// Is the client let in by --allow and --deny?
    #[must_use]
    pub fn allows(&self, client: Client) -> bool {
        let among = |networks: &[Network]| networks.iter().any(|net| net.contains(client.ip()));
        !among(&self.deny) && (self.allow.is_empty() || among(&self.allow))
    }

    /// Do backends see the clients' addresses?
    #[must_use]
    pub fn steers(&self) -> bool {
        match self.source {
            Some(source) => source == Source::Client,
            None => self.accept_proxy,
        }
    }
}
