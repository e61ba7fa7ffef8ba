//! `[pools.NAME]`: servers, and how connections are made to them.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use clap::{Args, ValueEnum};
use schemars::{JsonSchema, Schema, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::words::{Within, WordError};
use super::{KeepAlive, Name, Target, Time, defaults};

/// Which server a connection goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest open connections for its weight.
    LeastConnections,
    /// Chosen by the client's address: a client keeps its server as long as that is there, and others keep
    /// theirs when one goes or comes.
    Source,
}

/// The version of the PROXY header that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SendProxy {
    /// The text form.
    V1,
    /// The binary form.
    V2,
}

/// A server of a pool: a table, or the string of the command line, `TARGET[,weight=N][,backup][,name=NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(!remote, transform = or_a_string)]
pub struct Server {
    /// Where it is: `HOST:PORT`; `HOST:same`, the port that the client has called; or the name of SRV
    /// records, `_service._tcp.example.net`. A name with several addresses is several servers.
    pub target: Target,
    /// What it is called [default: its target].
    #[serde(default)]
    pub name: Option<Name>,
    /// Its share of the connections: 0 (none) to 256.
    #[serde(default = "one")]
    pub weight: Weight,
    /// It gets connections only while no other server can take them.
    #[serde(default)]
    pub backup: bool,
}

/// A server's share of the connections.
pub type Weight = Within<0, 256>;

fn one() -> Weight {
    Weight::new(1)
}

impl Server {
    /// What it is called.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => self.target.to_string(),
        }
    }
}

impl Serialize for Server {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StringOrTable)
    }
}

/// What reads a [`Server`].
struct StringOrTable;

impl<'de> Visitor<'de> for StringOrTable {
    type Value = Server;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a server: \"TARGET\" or a table with `target`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Server, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Server, A::Error> {
        // Not the trait's: the one that is derived, of the table.
        Server::deserialize(MapAccessDeserializer::new(table))
    }
}

/// The schema of a server, from that of its table.
fn or_a_string(schema: &mut Schema) {
    let table = std::mem::take(schema);
    *schema = json_schema!({ "anyOf": [{ "type": "string" }, table] });
}

impl FromStr for Server {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let mut server = Self {
            target: words.next().unwrap_or_default().parse()?,
            name: None,
            weight: one(),
            backup: false,
        };
        for word in words {
            match word.split_once('=') {
                None if word == "backup" => server.backup = true,
                Some(("weight", weight)) => server.weight = weight.parse()?,
                Some(("name", name)) => server.name = Some(name.parse()?),
                _ => {
                    return Err(WordError::new(
                        word,
                        "an option of a server: weight=N, backup, name=NAME",
                    ));
                }
            }
        }
        Ok(server)
    }
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Args, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    default,
    expecting = "a table"
)]
pub struct Pool {
    /// Server to connect to; repeat for more: `HOST:PORT`, `HOST:same` (the port that the client has called),
    /// or the name of SRV records, `_service._tcp.example.net`. Options may follow:
    /// `HOST:PORT,weight=N,backup,name=NAME`. Each address of a name is a server, of those of the client's
    /// family if there are any; names are resolved again when their time to live ends.
    #[arg(long, value_name = "TARGET")]
    pub upstream: Vec<Server>,

    /// Which server a connection goes to.
    #[arg(long, value_enum, default_value_t = Balance::RoundRobin)]
    pub balance: Balance,

    /// How long connecting to a server may take.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub connect_timeout: Time,

    /// How many other servers are tried where connecting fails, before the client notices.
    #[arg(long, value_name = "N", default_value = "3")]
    pub retries: Within<0, 100>,

    /// Check every server that often, by connecting to it [default: not].
    #[arg(long, value_name = "TIME")]
    pub check_interval: Option<Time>,

    /// How long a check may take.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub check_timeout: Time,

    /// Checks in a row that must succeed before a server is up again.
    #[arg(long, value_name = "N", default_value = "2")]
    pub rise: Within<1, 1000>,

    /// Checks in a row that must fail before a server is down.
    #[arg(long, value_name = "N", default_value = "3")]
    pub fall: Within<1, 1000>,

    /// Clients' connections in a row that must fail before a server is ejected for --eject-time; 0: never.
    #[arg(long, value_name = "N", default_value = "3")]
    pub eject_after: Within<0, 1000>,

    /// How long an ejected server gets no connections; doubled each time in a row, up to 32 times.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub eject_time: Time,

    /// How long a server that has come up takes to get its full share [default: none].
    #[arg(long, value_name = "TIME")]
    pub slow_start: Option<Time>,

    /// Send a PROXY protocol header to the servers: limpid as the edge of a chain.
    #[arg(long, value_enum, value_name = "VERSION")]
    pub send_proxy: Option<SendProxy>,

    /// Put a CRC-32C into the header (version 2).
    #[arg(long)]
    pub send_proxy_crc32c: bool,

    /// Put a unique ID into the header (version 2): the one of the header that came, or one of our own.
    #[arg(long)]
    pub send_proxy_unique_id: bool,

    /// Pass the TLVs of the header that came on (version 2). Its CRC-32C is never copied.
    #[arg(long)]
    pub send_proxy_tlvs: bool,

    /// Send TCP keep-alive probes to servers, for flows with sockets: `on` (as the kernel is set), or
    /// `idle=TIME,interval=TIME,count=N`, any of them [default: none].
    #[arg(long, value_name = "SETTING")]
    pub upstream_keep_alive: Option<KeepAlive>,

    /// How long what was sent to a server may stay unacknowledged (`TCP_USER_TIMEOUT`) [default: as the
    /// kernel is set].
    #[arg(long, value_name = "TIME")]
    pub upstream_user_timeout: Option<Time>,
}

impl Default for Pool {
    fn default() -> Self {
        static DEFAULTS: LazyLock<Pool> = LazyLock::new(defaults);
        DEFAULTS.clone()
    }
}
