//! What is wrong with a configuration whose values are all legal, in the words of a file and of a command
//! line.

use std::fmt;

use thiserror::Error;

use super::place::Place;
use super::{ListenAddress, Name, Target, Time};

/// Whether limpid runs all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It does not.
    Error,
    /// It does, though hardly as meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Whose words an option is named with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A file's: `` `trust` ``.
    File,
    /// A command line's: `--trust`.
    CommandLine,
}

impl Form {
    fn option(self, name: &str) -> String {
        match self {
            Self::File => format!("`{name}`"),
            Self::CommandLine => format!("--{name}"),
        }
    }

    fn setting(self, Setting(name, value): Setting) -> String {
        match (self, value) {
            (Self::File, Some(value)) => format!("`{name} = \"{value}\"`"),
            (Self::CommandLine, Some(value)) => format!("--{name} {value}"),
            (_, None) => self.option(name),
        }
    }
}

/// An option, or one value of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting(pub &'static str, pub Option<&'static str>);

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no listener.
    NoListener,
    /// A listener does not say where.
    NoListen,
    /// A pool has no server.
    NoServer,
    /// Headers are expected from nobody.
    NoTrust,
    /// An option that means nothing without another.
    Needs {
        /// The option.
        option: &'static str,
        /// What it needs.
        needed: Setting,
    },
    /// A pool that there is not.
    NoSuchPool {
        /// Its name.
        pool: Name,
        /// Those that there are.
        known: Vec<Name>,
    },
    /// An address that is listened on elsewhere.
    Overlap {
        /// The address.
        address: ListenAddress,
        /// The other.
        other: ListenAddress,
        /// The listener that has the other.
        listener: Name,
    },
    /// Metrics are served where a listener is.
    MetricsOverlap {
        /// The listener's address.
        other: ListenAddress,
        /// The listener.
        listener: Name,
    },
    /// No interface can have that name.
    InterfaceName(String),
    /// A check would not know which port to connect to.
    CheckWithoutPort(Target),
    /// No server gets connections.
    NoWeight,
    /// Two servers have one name.
    SameName(String),
    /// It leads back to the listener.
    Loop {
        /// The server.
        target: Target,
        /// The listener's address.
        address: ListenAddress,
    },
    /// It is no address to connect to.
    Unspecified(Target),
    /// Client addresses do not reach a server on this host.
    LoopbackWithClientSource(Target),

    /// No listener uses a pool.
    PoolUnused(Name),
    /// The time for a header is shorter than the PROXY specification asks for.
    ShortHeaderTimeout(Time),
    /// The engine does not take data that came with the SYN.
    FastOpenWithPacket,
    /// An option that changes nothing.
    NoEffect {
        /// The option.
        option: &'static str,
        /// What it takes for an effect.
        without: Setting,
    },
    /// Limits of which only one can be reached.
    LimitUnreachable {
        /// The one that cannot.
        option: &'static str,
        /// The one that is met first.
        before: &'static str,
    },
    /// Every connection will be refused.
    FamiliesDiffer,
}

impl Problem {
    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::NoListener
            | Self::NoListen
            | Self::NoServer
            | Self::NoTrust
            | Self::Needs { .. }
            | Self::NoSuchPool { .. }
            | Self::Overlap { .. }
            | Self::MetricsOverlap { .. }
            | Self::InterfaceName(_)
            | Self::CheckWithoutPort(_)
            | Self::NoWeight
            | Self::SameName(_)
            | Self::Loop { .. }
            | Self::Unspecified(_)
            | Self::LoopbackWithClientSource(_) => Severity::Error,
            Self::PoolUnused(_)
            | Self::ShortHeaderTimeout(_)
            | Self::FastOpenWithPacket
            | Self::NoEffect { .. }
            | Self::LimitUnreachable { .. }
            | Self::FamiliesDiffer => Severity::Warning,
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self, form: Form) -> String {
        let option = |name| form.option(name);
        match self {
            Self::NoListener => "there is no listener".to_owned(),
            Self::NoListen => format!("the listener has no {}", option("listen")),
            Self::NoServer => format!("the pool has no server: {} is missing", option("upstream")),
            Self::NoTrust => format!("{} needs {}", option("accept-proxy"), option("trust")),
            Self::Needs {
                option: name,
                needed,
            } => format!("{} needs {}", option(name), form.setting(*needed)),
            Self::NoSuchPool { pool, .. } => format!("there is no pool `{pool}`"),
            Self::Overlap {
                address,
                other,
                listener,
            } => format!("{address} overlaps {other} of the listener `{listener}`"),
            Self::MetricsOverlap { other, listener } => {
                format!(
                    "{} overlaps {other} of the listener `{listener}`",
                    option("metrics")
                )
            }
            Self::InterfaceName(name) => format!("{name:?} is not the name of an interface"),
            Self::CheckWithoutPort(target) => {
                format!(
                    "{target} has no port of its own that {} could connect to",
                    option("check-interval")
                )
            }
            Self::NoWeight => "every server has weight 0: none gets connections".to_owned(),
            Self::SameName(name) => format!("two servers are called `{name}`"),
            Self::Loop { target, address } => {
                format!("{target} leads back to this pool: its listener is at {address}")
            }
            Self::Unspecified(target) => format!("{target} is not an address to connect to"),
            Self::LoopbackWithClientSource(target) => {
                format!(
                    "{} does not work with a server on this very host, {target}",
                    form.setting(Setting("source", Some("client")))
                )
            }
            Self::PoolUnused(name) => format!("no listener uses the pool `{name}`"),
            Self::ShortHeaderTimeout(time) => {
                format!("{} of {time} is short", option("header-timeout"))
            }
            Self::FastOpenWithPacket => format!(
                "{} keeps flows from the engine `packet`, which {} asks for",
                option("fast-open"),
                option("splice")
            ),
            Self::NoEffect {
                option: name,
                without,
            } => {
                format!(
                    "{} has no effect without {}",
                    option(name),
                    form.setting(*without)
                )
            }
            Self::LimitUnreachable {
                option: name,
                before,
            } => {
                format!(
                    "{} has no effect: {} is reached first",
                    option(name),
                    option(before)
                )
            }
            Self::FamiliesDiffer => format!(
                "clients and servers are of different IP versions, and {} refuses all of them",
                form.setting(Setting("source-mismatch", Some("refuse")))
            ),
        }
    }

    /// What is allowed, or what to do.
    #[must_use]
    pub fn help(&self, form: Form) -> Option<String> {
        let in_file = form == Form::File;
        Some(match self {
            Self::NoListener => {
                "a listener is a table `[listeners.NAME]` with `listen`, and its servers are `upstream` of \
                 `[pools.NAME]`"
                    .to_owned()
            }
            Self::NoListen if in_file => {
                "write `listen = [\"ADDR:PORT\"]`; `[::]:PORT` accepts IPv4 as well".to_owned()
            }
            Self::NoServer if in_file => "write `upstream = [\"HOST:PORT\"]`".to_owned(),
            Self::NoTrust => format!(
                "name the networks whose hosts may say who the client is ({} for anyone)",
                if in_file {
                    "`trust = [\"0.0.0.0/0\"]`"
                } else {
                    "--trust 0.0.0.0/0"
                }
            ),
            Self::NoSuchPool { known, .. } if known.is_empty() => {
                "there are no pools; one is a table `[pools.NAME]` with `upstream`".to_owned()
            }
            Self::NoSuchPool { known, .. } => {
                let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
                format!(
                    "a listener uses the pool of its own name, or the one that `pool` names: {}",
                    known.join(", ")
                )
            }
            Self::Overlap { address, other, .. } if address.ip != other.ip => {
                "`[::]` is every address, IPv4 too, and `0.0.0.0` every one of IPv4".to_owned()
            }
            Self::MetricsOverlap { .. } => "they need an address or a port of their own".to_owned(),
            Self::Overlap { .. } => {
                "a single port may lie within another listener's range, which it is then left out of; \
                 nothing else may overlap"
                    .to_owned()
            }
            Self::InterfaceName(_) => {
                "1 to 15 characters, without blanks, `/` and `:`".to_owned()
            }
            Self::CheckWithoutPort(_) => format!(
                "give the server a port, or leave {} out",
                form.option("check-interval")
            ),
            Self::NoWeight => "weights are shares, from 0 to 256; 1 is the default".to_owned(),
            Self::SameName(_) => {
                "a server without a name is called as its target; give one of the two a `name`".to_owned()
            }
            Self::LoopbackWithClientSource(_) => format!(
                "its replies to the client never reach an interface. Use {}, or run the service in a \
                 network namespace or container of its own",
                form.setting(Setting("source", Some("proxy")))
            ),
            Self::ShortHeaderTimeout(_) => {
                "the PROXY protocol asks for at least 3s: one retransmission of TCP".to_owned()
            }
            Self::FastOpenWithPacket => format!(
                "leave {} out, or choose another engine",
                form.option("fast-open")
            ),
            Self::FamiliesDiffer => format!(
                "with {} servers see the proxy's address instead",
                form.setting(Setting("source-mismatch", Some("proxy")))
            ),
            Self::NoListen
            | Self::NoServer
            | Self::Needs { .. }
            | Self::Loop { .. }
            | Self::Unspecified(_)
            | Self::PoolUnused(_)
            | Self::NoEffect { .. }
            | Self::LimitUnreachable { .. } => return None,
        })
    }

    /// Both, in one line.
    #[must_use]
    pub fn line(&self, form: Form) -> String {
        let message = self.message(form);
        match self.help(form) {
            Some(help) => format!("{message}: {help}"),
            None => message,
        }
    }
}

/// A command line that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", lines(.0))]
pub struct CheckError(Vec<Finding>);

fn lines(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings
        .iter()
        .map(|finding| finding.problem.line(Form::CommandLine))
        .collect();
    lines.join("\n")
}

/// All that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, place: Place, problem: Problem) {
        self.0.push(Finding { place, problem });
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }

    /// For options of a command line: an error if there is one, else what is to be warned of.
    pub fn of_command_line(self) -> Result<Vec<String>, CheckError> {
        let (errors, warnings): (Vec<_>, Vec<_>) = self
            .0
            .into_iter()
            .partition(|finding| finding.problem.severity() == Severity::Error);
        if !errors.is_empty() {
            return Err(CheckError(errors));
        }
        let line = |finding: &Finding| finding.problem.line(Form::CommandLine);
        Ok(warnings.iter().map(line).collect())
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
