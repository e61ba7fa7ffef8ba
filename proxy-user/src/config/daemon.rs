//! `[daemon]`: what is not a listener's and not a pool's.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;

use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::words::{TimeOrNone, Within, WordError, socket_address, word};
use crate::bpf::attach::AttachMode;

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Format of the access lines, where they are not part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogFormat {
    /// One JSON object a line.
    Json,
    /// `key=value` pairs.
    Logfmt,
    /// HAProxy's `option tcplog`, for programs that read it.
    Tcplog,
}

/// Where access lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// To the log, in its format.
    Log,
    /// To standard output.
    Stdout,
    /// To the system's log, by `/dev/log`.
    Syslog,
    /// To the journal, by its native protocol.
    Journald,
    /// To the end of a file, which is opened again on SIGUSR1 and at each reload.
    File(PathBuf),
}

impl FromStr for LogTarget {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match text {
            "log" => Ok(Self::Log),
            "stdout" => Ok(Self::Stdout),
            "syslog" => Ok(Self::Syslog),
            "journald" => Ok(Self::Journald),
            // A misspelt name of the others is not taken for a file's.
            path if path.contains('/') => Ok(Self::File(path.into())),
            _ => Err(WordError::new(text, Self::ALLOWED)),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::Stdout => f.write_str("stdout"),
            Self::Syslog => f.write_str("syslog"),
            Self::Journald => f.write_str("journald"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

word!(
    LogTarget,
    "`log`, `stdout`, `syslog`, `journald` or a file's path, with a `/` in it"
);

/// What is the daemon's as a whole.
#[derive(Clone, Debug, PartialEq, Args, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    default,
    expecting = "a table"
)]
pub struct Daemon {
    /// Interface towards the backends [default: from the routing table, followed when it changes].
    #[arg(long, value_name = "NAME")]
    pub upstream_interface: Option<String>,

    /// How programs are put on interfaces.
    #[arg(long, value_enum, default_value_t = AttachMode::Auto)]
    pub attach: AttachMode,

    /// How long open flows may go on after SIGTERM or SIGINT, before they are reset. A second signal ends
    /// the wait.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub drain_timeout: TimeOrNone,

    /// Flows that the tables have room for. Connections beyond are refused with --source client, and take
    /// an engine with sockets with --source proxy.
    #[arg(long, value_name = "N", default_value = "262144")]
    pub max_flows: Within<1, 8_388_608>,

    /// Serve Prometheus metrics by HTTP at this address, below `/metrics` [default: nowhere].
    #[arg(long, value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "socket_address")]
    pub metrics: Option<SocketAddr>,

    /// Format of the log, on standard error. Levels are set by the environment variable `RUST_LOG` (default
    /// `info`; `access=off` silences the access lines in it).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Where access lines go, one a connection: `log` (as part of the log), `stdout`, `syslog`, `journald`,
    /// or a file's path, with a `/` in it.
    #[arg(long, value_name = "TARGET", default_value_t = LogTarget::Log)]
    pub access_log: LogTarget,

    /// Format of the access lines, where they are not part of the log.
    #[arg(long, value_enum, default_value_t = AccessLogFormat::Json)]
    pub access_log_format: AccessLogFormat,
}

impl Default for Daemon {
    fn default() -> Self {
        static DEFAULTS: LazyLock<Daemon> = LazyLock::new(defaults);
        DEFAULTS.clone()
    }
}
