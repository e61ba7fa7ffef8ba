//! Names of servers, and the addresses behind them.
//!
//! Names are looked up like the C library does it (resolv.conf(5), with `ndots` and `search`; `/etc/hosts`
//! first), because operators know that, and containers are set up for it. The questions themselves are
//! `hickory-resolver`'s. It keeps no answers here: whoever follows a name knows how long they hold.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use hickory_resolver::config::{
    NameServerConfigGroup, ResolveHosts, ResolverConfig, ServerOrderingStrategy,
};
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::proto::ProtoErrorKind;
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, Name, ResolveError, TokioResolver};
use thiserror::Error;

use super::server::Endpoint;
use crate::config::{Target, TargetPort};
use crate::lock::lock;

/// How long finding the addresses of a name may take, with all names that `search` makes of it.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// How long what is not from DNS holds: until the files change.
const UNTIL_CHANGED: Duration = Duration::from_secs(3600);

/// What the resolver is configured by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Name servers, `search` and `options`: resolv.conf(5). Missing: the name server of this host.
    pub resolv_conf: PathBuf,
    /// Names that are not asked for: hosts(5). It may be missing.
    pub hosts: PathBuf,
    /// The name servers' port.
    pub port: u16,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            port: 53,
        }
    }
}

/// Why a name has no addresses.
#[derive(Debug, Error)]
pub enum LookupError {
    /// It has none: there is no such name, or it has no record of the type.
    #[error("{0} does not exist, or has no address")]
    Absent(String),
    /// That could not be found out.
    #[error("cannot resolve {0}: {1}")]
    Failed(String, #[source] ResolveError),
    /// That could not be found out in time.
    #[error("cannot resolve {0}: no answer within {limit:?}", limit = TIME_LIMIT)]
    Timeout(String),
}

/// One server behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub endpoint: Endpoint,
    /// What its configured weight is multiplied by; 1 but for SRV records.
    pub weight: u32,
    /// Is it to be used only when others cannot? SRV records of a priority that is not the first.
    pub backup: bool,
}

/// The servers behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// In a stable order, each once.
    pub places: Vec<Place>,
    /// How long that holds.
    pub holds: Duration,
    /// Questions for addresses of IPv4 have failed: there may be more.
    pub v4_failed: bool,
    /// The same of IPv6.
    pub v6_failed: bool,
}

/// Finds addresses. Clones are the same resolver.
#[derive(Clone, Debug)]
pub struct Resolver {
    sources: Arc<Sources>,
    read: Arc<Mutex<Option<Arc<Names>>>>,
}

impl Default for Resolver {
    /// The one that the system's files describe.
    fn default() -> Self {
        Self::new(Sources::default())
    }
}

impl Resolver {
    /// The one that `sources` describe. They are read at the first question, and again when they have changed.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        Self {
            sources: Arc::new(sources),
            read: Arc::default(),
        }
    }

    /// The servers behind `target`. An address is not looked up.
    pub async fn locate(&self, target: &Target) -> Result<Located, LookupError> {
        let name = match target {
            Target::Host { host, port } => {
                if let Ok(ip) = host.parse() {
                    return Ok(at(ip, *port));
                }
                host
            }
            Target::Service(name) => name,
        };
        let names = self.names();
        let locating = async {
            match target {
                Target::Host { host, port } => names.host(host, *port).await,
                Target::Service(name) => names.service(name).await,
            }
        };
        tokio::time::timeout(TIME_LIMIT, locating)
            .await
            .unwrap_or_else(|_| Err(LookupError::Timeout(name.clone())))
    }

    /// What the files are now: it differs when they have been changed.
    pub(super) fn version(&self) -> Version {
        [&self.sources.resolv_conf, &self.sources.hosts].map(|path| {
            let found = path.metadata().ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
    }

    fn names(&self) -> Arc<Names> {
        let version = self.version();
        let mut read = lock(&self.read);
        match &*read {
            Some(names) if names.version == version => Arc::clone(names),
            _ => Arc::clone(read.insert(Arc::new(Names::read(&self.sources, version)))),
        }
    }
}

/// Inode, size and time of both files, where they exist.
pub(super) type Version = [Option<(u64, u64, i64, i64)>; 2];

fn at(ip: IpAddr, port: TargetPort) -> Located {
    let place = Place {
        endpoint: Endpoint::new(ip, port),
        weight: 1,
        backup: false,
    };
    Located {
        places: vec![place],
        holds: UNTIL_CHANGED,
        v4_failed: false,
        v6_failed: false,
    }
}

/// The files, as they have been read.
#[derive(Debug)]
struct Names {
    version: Version,
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
    dns: TokioResolver,
}

/// What a question for one type of record has brought.
enum Reply {
    Records(Vec<RData>, Instant),
    Nothing,
    Failed(ResolveError),
}

/// The addresses of a name.
struct Addresses {
    ips: BTreeSet<IpAddr>,
    until: Instant,
    v4_failed: bool,
    v6_failed: bool,
}

impl Names {
    fn read(sources: &Sources, version: Version) -> Self {
        let text = |path: &Path| match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "cannot be read, and is taken to be empty");
                String::new()
            }
        };
        let mut hosts = Hosts::default();
        if let Err(error) = hosts.read_hosts_conf(text(&sources.hosts).as_bytes()) {
            tracing::warn!(path = %sources.hosts.display(), %error, "cannot be read to its end");
        }
        let (system, mut options) = parse_resolv_conf(understood(&text(&sources.resolv_conf)))
            .unwrap_or_else(|error| {
                tracing::warn!(path = %sources.resolv_conf.display(), %error, "is not used");
                (ResolverConfig::new(), <_>::default())
            });
        let mut ips = Vec::new();
        for server in system.name_servers() {
            // Each is there twice, for UDP and for TCP.
            if !ips.contains(&server.socket_addr.ip()) {
                ips.push(server.socket_addr.ip());
            }
        }
        let servers = NameServerConfigGroup::from_ips_clear(&ips, sources.port, true);
        // One after the other, in the order of the file; names are made, and answers kept, by whoever asks.
        options.num_concurrent_reqs = 1;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        options.preserve_intermediates = false;
        let ndots = options.ndots;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let provider = TokioConnectionProvider::default();
        let dns = TokioResolver::builder_with_config(config, provider).with_options(options);
        Self {
            version,
            hosts,
            search: match system.search() {
                [] => system.domain().cloned().into_iter().collect(),
                search => search.to_vec(),
            },
            ndots,
            dns: dns.build(),
        }
    }

    async fn host(&self, host: &str, port: TargetPort) -> Result<Located, LookupError> {
        let found = self.addresses(host).await?;
        let place = |ip| Place {
            endpoint: Endpoint::new(ip, port),
            weight: 1,
            backup: false,
        };
        Ok(Located {
            places: found.ips.into_iter().map(place).collect(),
            holds: found.until.saturating_duration_since(Instant::now()),
            v4_failed: found.v4_failed,
            v6_failed: found.v6_failed,
        })
    }

    /// The servers of SRV records (RFC 2782).
    async fn service(&self, service: &str) -> Result<Located, LookupError> {
        let (records, mut until) = self.service_records(service).await?;
        let targets = join_all(records.iter().map(|record| async {
            // It is a whole name, which no suffix is put to.
            let name = format!("{}.", record.target().to_ascii().trim_end_matches('.'));
            self.addresses(&name).await
        }));
        let primary = records.iter().map(SRV::priority).min().unwrap_or(0);
        let (mut places, mut failed, mut error) = (Vec::<Place>::new(), [false; 2], None);
        for (record, found) in records.iter().zip(targets.await) {
            let found = match found {
                Ok(found) => found,
                Err(e) => {
                    let unknown = !matches!(e, LookupError::Absent(_));
                    failed = failed.map(|failed| failed || unknown);
                    // One that may be there says more than one that is not.
                    if unknown || error.is_none() {
                        error = Some(e);
                    }
                    continue;
                }
            };
            until = until.min(found.until);
            failed = [failed[0] || found.v4_failed, failed[1] || found.v6_failed];
            for ip in found.ips {
                let endpoint = Endpoint::new(ip, TargetPort::Is(record.port()));
                if places.iter().all(|known| known.endpoint != endpoint) {
                    places.push(Place {
                        endpoint,
                        // A weight of 0 asks for a very small share, not for none.
                        weight: u32::from(record.weight()).max(1),
                        backup: record.priority() > primary,
                    });
                }
            }
        }
        match error {
            Some(error) if places.is_empty() => Err(error),
            _ => Ok(Located {
                places,
                holds: until.saturating_duration_since(Instant::now()),
                v4_failed: failed[0],
                v6_failed: failed[1],
            }),
        }
    }

    /// In order of their priority.
    async fn service_records(&self, service: &str) -> Result<(Vec<SRV>, Instant), LookupError> {
        let mut error = LookupError::Absent(service.to_owned());
        for name in self.candidates(service) {
            match self.ask(&name, RecordType::SRV).await {
                Reply::Records(records, until) => {
                    let service = |record| match record {
                        // A root as the target: there is no such service.
                        RData::SRV(record) => (!record.target().is_root()).then_some(record),
                        _ => None,
                    };
                    let mut records: Vec<SRV> = records.into_iter().filter_map(service).collect();
                    records.sort_by_key(|r| (r.priority(), r.port(), r.target().clone()));
                    if !records.is_empty() {
                        return Ok((records, until));
                    }
                }
                Reply::Nothing => {}
                Reply::Failed(e) => {
                    let answered = is_answer(&e);
                    error = LookupError::Failed(service.to_owned(), e);
                    if !answered {
                        break;
                    }
                }
            }
        }
        Err(error)
    }

    /// The addresses of both families, of the first name that has some.
    async fn addresses(&self, host: &str) -> Result<Addresses, LookupError> {
        if let Some(found) = self.in_hosts(host) {
            return Ok(found);
        }
        let mut error = LookupError::Absent(host.to_owned());
        for name in self.candidates(host) {
            let replies = join(
                self.ask(&name, RecordType::A),
                self.ask(&name, RecordType::AAAA),
            );
            let (v4, v6) = replies.await;
            let mut found = Addresses {
                ips: BTreeSet::new(),
                until: Instant::now() + UNTIL_CHANGED,
                v4_failed: matches!(v4, Reply::Failed(_)),
                v6_failed: matches!(v6, Reply::Failed(_)),
            };
            let mut answered = true;
            for reply in [v4, v6] {
                match reply {
                    Reply::Records(records, until) => {
                        let ips = records.iter().filter_map(RData::ip_addr);
                        // Some name servers say "nobody" so; connecting there would be to ourselves.
                        let ips = ips.filter(|ip| !ip.is_unspecified());
                        found.ips.extend(ips.map(|ip| ip.to_canonical()));
                        found.until = found.until.min(until);
                    }
                    Reply::Nothing => {}
                    Reply::Failed(e) => {
                        answered = answered && is_answer(&e);
                        error = LookupError::Failed(host.to_owned(), e);
                    }
                }
            }
            if !found.ips.is_empty() {
                return Ok(found);
            }
            if !answered {
                break;
            }
        }
        Err(error)
    }

    fn in_hosts(&self, host: &str) -> Option<Addresses> {
        let name = Name::from_ascii(host).ok()?;
        let types = [RecordType::A, RecordType::AAAA];
        let ask = |kind| {
            self.hosts
                .lookup_static_host(&Query::query(name.clone(), kind))
        };
        let found = types.into_iter().filter_map(ask);
        let ips: BTreeSet<IpAddr> = found
            .flat_map(|lookup| lookup.iter().filter_map(RData::ip_addr).collect::<Vec<_>>())
            .map(|ip| ip.to_canonical())
            .collect();
        (!ips.is_empty()).then(|| Addresses {
            ips,
            until: Instant::now() + UNTIL_CHANGED,
            v4_failed: false,
            v6_failed: false,
        })
    }

    /// The names that `name` may stand for, in the order in which they are asked for (resolv.conf(5)).
    fn candidates(&self, name: &str) -> Vec<Name> {
        let Ok(name) = Name::from_ascii(name) else {
            return Vec::new();
        };
        let mut whole = name.clone();
        whole.set_fqdn(true);
        if name.is_fqdn() {
            return vec![whole];
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let mut names: Vec<Name> = self
            .search
            .iter()
            .filter_map(|suffix| name.clone().append_domain(suffix).ok())
            .collect();
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, whole);
        names
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Reply {
        match self.dns.lookup(name.clone(), kind).await {
            Ok(found) => Reply::Records(found.iter().cloned().collect(), found.valid_until()),
            Err(e) => match response_code(&e) {
                Some(ResponseCode::NXDomain | ResponseCode::NoError) => Reply::Nothing,
                _ => Reply::Failed(e),
            },
        }
    }
}

/// Whether a name server has answered, though with an error: glibc goes on to the next name then.
fn is_answer(error: &ResolveError) -> bool {
    response_code(error).is_some()
}

fn response_code(error: &ResolveError) -> Option<ResponseCode> {
    match error.proto()?.kind() {
        ProtoErrorKind::NoRecordsFound { response_code, .. } => Some(*response_code),
        _ => None,
    }
}

/// Those words of a resolv.conf that matter here. The C library passes over what it does not know, where the
/// parser would refuse the whole file. Without a name server, it is the one of this host.
fn understood(text: &str) -> String {
    let mut kept = String::new();
    let mut has_server = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words) {
            (Some("nameserver"), mut words) => {
                if let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) {
                    kept += &format!("nameserver {ip}\n");
                    has_server = true;
                }
            }
            (Some("options"), words) => {
                let known = |word: &&str| match word.split_once(':') {
                    Some(("ndots" | "timeout" | "attempts", n)) => n.parse::<u8>().is_ok(),
                    Some(_) => false,
                    None => *word == "edns0",
                };
                let words: Vec<&str> = words.filter(known).collect();
                kept += &format!("options {}\n", words.join(" "));
            }
            (Some("search" | "domain"), _) => {
                kept += line.trim();
                kept.push('\n');
            }
            (_, _) => {}
        }
    }
    if !has_server {
        kept += "nameserver 127.0.0.1\n";
    }
    kept
}
