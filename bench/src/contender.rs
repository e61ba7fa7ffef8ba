//! The contenders: every way from client to backend that is measured.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use limpid_tests::net::Host;
use limpid_tests::process::Process;
use limpid_tests::programs::{Limpid, Options, limpid_binary};
use limpid_tests::suite::Lab;
use serde_json::Value;

use crate::bed::{Bed, LISTENER, SERVICE};
use crate::{peers, services};

/// The engines to measure, as `limpid run --splice` spells them. One more takes its name here.
const ENGINES: [&str; 3] = ["packet", "sockmap", "copy"];

/// How long a flow may take to be carried by its engine.
const SWITCH: Duration = Duration::from_secs(3);

/// What stands between client and backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Routing alone: what nothing can beat by much.
    Direct,
    /// Routing with iptables DNAT and connection tracking: a port that Docker publishes.
    Dnat,
    /// HAProxy, with `option splice-auto` or without.
    Haproxy {
        /// Whether it may splice.
        splice: bool,
    },
    /// nginx's stream module.
    Nginx,
    /// limpid.
    Limpid {
        /// `--splice`.
        engine: &'static str,
        /// `--source`.
        source: &'static str,
    },
}

impl Kind {
    /// All that this machine's limpid can be, and the engines that it does not know. The engines show
    /// backends the client's address; with `both_sources` they are measured with the proxy's as well.
    pub(crate) fn all(both_sources: bool) -> Result<(Vec<Self>, Vec<&'static str>)> {
        let (known, unknown): (Vec<_>, Vec<_>) = ENGINES
            .into_iter()
            .map(|engine| Ok((engine, knows(engine)?)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .partition(|(_, knows)| *knows);
        let mut kinds = vec![
            Self::Direct,
            Self::Dnat,
            Self::Haproxy { splice: false },
            Self::Haproxy { splice: true },
            Self::Nginx,
        ];
        for (engine, _) in known {
            kinds.push(Self::Limpid {
                engine,
                source: "client",
            });
            if both_sources {
                kinds.push(Self::Limpid {
                    engine,
                    source: "proxy",
                });
            }
        }
        Ok((
            kinds,
            unknown.into_iter().map(|(engine, _)| engine).collect(),
        ))
    }

    /// Its name in tables and files.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Direct => "direct".into(),
            Self::Dnat => "dnat".into(),
            Self::Haproxy { splice: false } => "haproxy".into(),
            Self::Haproxy { splice: true } => "haproxy-splice".into(),
            Self::Nginx => "nginx".into(),
            Self::Limpid {
                engine,
                source: "client",
            } => format!("limpid-{engine}"),
            Self::Limpid { engine, source } => format!("limpid-{engine}-source-{source}"),
        }
    }

    /// Whether it is another proxy: the best of these is what limpid is compared with.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self, Self::Haproxy { .. } | Self::Nginx)
    }

    /// Whether it is limpid.
    pub(crate) fn is_limpid(&self) -> bool {
        matches!(self, Self::Limpid { .. })
    }
}

/// Whether `limpid run --splice` accepts `engine`.
fn knows(engine: &str) -> Result<bool> {
    let binary = limpid_binary()?;
    let answer = Command::new(&binary)
        .args(["run", &format!("--splice={engine}"), "--help"])
        .output()
        .with_context(|| format!("could not start {}", binary.display()))?;
    Ok(answer.status.success())
}

/// A contender in its bed, ready for connections.
pub(crate) struct Contender {
    // First: programs go before the hosts that they run on.
    running: Running,
    /// Which one it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Where it was built.
    pub bed: Bed,
}

enum Running {
    Nothing,
    Process(Process),
    Limpid(Limpid),
}

impl Contender {
    /// Builds a bed, and what stands in its middle.
    pub(crate) fn start(kind: Kind, lab: &Lab) -> Result<Self> {
        let bed = Bed::new()?;
        let name = kind.name();
        let running = match kind {
            Kind::Direct => {
                forward(&bed.proxy)?;
                Running::Nothing
            }
            Kind::Dnat => {
                forward(&bed.proxy)?;
                publish(&bed.proxy)?;
                Running::Nothing
            }
            Kind::Haproxy { splice } => {
                Running::Process(peers::haproxy(&bed.proxy, lab.path(), &name, splice)?)
            }
            Kind::Nginx => Running::Process(peers::nginx_stream(&bed.proxy, lab.path(), &name)?),
            Kind::Limpid { engine, source } => {
                // The others log no connections either.
                let options = Options::new(LISTENER, SERVICE)
                    .under(&["/usr/bin/env", "RUST_LOG=warn,access=off"])
                    .with(format!("--splice={engine}"))
                    .with(format!("--source={source}"));
                Running::Limpid(Limpid::start_as(&name, &bed.proxy, lab, &options)?)
            }
        };
        let contender = Self {
            running,
            kind,
            name,
            bed,
        };
        contender.check().with_context(|| contender.name.clone())?;
        Ok(contender)
    }

    /// Where clients connect to.
    pub(crate) fn target(&self) -> SocketAddr {
        match self.kind {
            Kind::Direct => SERVICE,
            Kind::Dnat | Kind::Haproxy { .. } | Kind::Nginx | Kind::Limpid { .. } => LISTENER,
        }
    }

    /// The process in the middle, if there is one. It may have children.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Nothing => None,
            Running::Process(process) => Some(process.pid()),
            Running::Limpid(limpid) => Some(limpid.pid()),
        }
    }

    /// The last line that the program in the middle wrote, if it wrote any.
    pub(crate) fn last_words(&self) -> String {
        let output = match &self.running {
            Running::Nothing => return String::new(),
            Running::Process(process) => process.output(),
            Running::Limpid(limpid) => limpid.log(),
        };
        match output.unwrap_or_default().trim_end().lines().last() {
            Some(line) if !line.is_empty() => format!("({} said: {line})", self.name),
            Some(_) | None => String::new(),
        }
    }

    /// One connection that works, and that is carried as it should be: what falls back to another
    /// engine would be measured under the wrong name.
    fn check(&self) -> Result<()> {
        let echo = services::echo(&self.bed.backend)?;
        let mut connections = services::open(&self.bed.client, self.target(), 1)?;
        let carried = match (&self.running, &self.kind) {
            (Running::Limpid(limpid), Kind::Limpid { engine, .. }) => {
                carried_by(engine, limpid, &self.bed.proxy)
            }
            _ => Ok(()),
        };
        carried.with_context(|| self.last_words())?;
        connections.clear();
        drop(echo);
        Ok(())
    }
}

fn carried_by(engine: &str, limpid: &Limpid, host: &Host) -> Result<()> {
    let end = Instant::now() + SWITCH;
    loop {
        let flows = limpid.flows(host)?;
        if !flows.is_empty() && flows.iter().all(|flow| flow["engine"] == engine) {
            return Ok(());
        }
        ensure!(
            !flows.iter().any(|flow| flow["fallback"] != Value::Null),
            "not carried by {engine}: {flows:?}"
        );
        if Instant::now() >= end {
            bail!("not carried by {engine} after {SWITCH:?}: {flows:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn forward(host: &Host) -> Result<()> {
    host.sysctl("net/ipv4/ip_forward", "1")
}

/// What Docker does to publish a port: a DNAT rule; what is forwarded is checked for its state.
fn publish(host: &Host) -> Result<()> {
    for rule in [
        "-t nat -N DOCKER".to_owned(),
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        format!(
            "-t nat -A DOCKER ! -i inside -p tcp --dport {} -j DNAT --to-destination {SERVICE}",
            LISTENER.port()
        ),
        "-t nat -A POSTROUTING -s 192.0.2.0/24 ! -o inside -j MASQUERADE".to_owned(),
        "-A FORWARD -o inside -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
        format!(
            "-A FORWARD -d {} ! -i inside -o inside -p tcp --dport {} -j ACCEPT",
            SERVICE.ip(),
            SERVICE.port()
        ),
        "-A FORWARD -i inside ! -o inside -j ACCEPT".to_owned(),
        "-P FORWARD DROP".to_owned(),
    ] {
        host.sh(&format!("iptables -w {rule}"))?;
    }
    Ok(())
}
