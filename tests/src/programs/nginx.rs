//! nginx: an unmodified backend that logs who it thinks is calling.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};

use crate::net::Host;
use crate::process::{Process, eventually};
use crate::suite::Need;

const PROGRAM: &str = "/usr/sbin/nginx";

/// An nginx that tells of the TLVs of a header: the variables `$proxy_protocol_tlv_…` are there from 1.23.2
/// on.
pub const TLVS: Need = Need::Other(|| {
    let found = VERSION.map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"));
    let found = found.unwrap_or_else(|| "of no known version".to_owned());
    (!reads_tlvs()).then(|| format!("nginx is {found}, before 1.23.2 it keeps TLVs to itself"))
});

static VERSION: LazyLock<Option<(u32, u32, u32)>> = LazyLock::new(|| {
    let output = Command::new(PROGRAM).arg("-v").output().ok()?;
    let text = String::from_utf8(output.stderr).ok()?;
    let (_, version) = text.trim().split_once("nginx/")?;
    let mut numbers = version.split(['.', ' ']).map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?, numbers.next()?))
});

fn reads_tlvs() -> bool {
    VERSION.is_some_and(|version| version >= (1, 23, 2))
}

/// Where Debian keeps the module for `stream` blocks.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A running nginx that answers every request with the caller's address and port.
pub struct Nginx {
    process: Process,
    access_log: PathBuf,
}

/// A line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `$remote_addr` and `$remote_port`: the other end of nginx's socket.
    pub remote: SocketAddr,
    /// `$proxy_protocol_addr` and `$proxy_protocol_port`: what a header said, if one was read.
    pub proxied: Option<SocketAddr>,
    /// `$proxy_protocol_tlv_unique_id`, if a header had one and nginx tells of it ([`TLVS`]).
    pub unique_id: Option<String>,
}

impl Nginx {
    /// An HTTP server on `bind`; `listen_options` may be `proxy_protocol`.
    pub fn http(
        host: &Host,
        directory: &Path,
        bind: SocketAddr,
        listen_options: &str,
    ) -> Result<Self> {
        // The compiled-in places for temporary files belong to the system's own nginx.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| {
            format!(
                "{what}_temp_path {};",
                Self::path(what, directory, host).display()
            )
        });
        let body = format!(
            "http {{ {} {} server {{ listen {bind} {listen_options}; \
             location / {{ return 200 \"$remote_addr $remote_port\\n\"; }} }} }}",
            temporary.concat(),
            Self::logging("access.log", directory, host)
        );
        Self::start(host, directory, bind.port(), "", &body)
    }

    /// A TCP server on `bind` that answers with the caller's address and closes.
    pub fn stream(
        host: &Host,
        directory: &Path,
        bind: SocketAddr,
        listen_options: &str,
    ) -> Result<Self> {
        let body = format!(
            "stream {{ {} server {{ listen {bind} {listen_options}; \
             return \"$remote_addr $remote_port\\n\"; }} }}",
            Self::logging("access.log", directory, host)
        );
        Self::start(
            host,
            directory,
            bind.port(),
            &format!("load_module {STREAM_MODULE};"),
            &body,
        )
    }

    /// The requests logged so far.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = std::fs::read_to_string(&self.access_log)?;
        text.lines().map(Request::parse).collect()
    }

    /// Waits until `count` requests are logged, and returns them.
    pub async fn wait_for_requests(&self, count: usize) -> Result<Vec<Request>> {
        eventually(&format!("{count} lines in nginx's log"), || {
            Ok(self.requests()?.len() >= count)
        })
        .await?;
        self.requests()
    }

    fn logging(name: &str, directory: &Path, host: &Host) -> String {
        let unique_id = if reads_tlvs() {
            "$proxy_protocol_tlv_unique_id"
        } else {
            "-"
        };
        format!(
            "log_format who '$remote_addr $remote_port $proxy_protocol_addr $proxy_protocol_port \
             {unique_id}'; access_log {} who;",
            Self::path(name, directory, host).display()
        )
    }

    fn path(name: &str, directory: &Path, host: &Host) -> PathBuf {
        directory.join(format!("nginx-{}-{name}", host.name()))
    }

    fn start(host: &Host, directory: &Path, port: u16, preamble: &str, body: &str) -> Result<Self> {
        let config = Self::path("nginx.conf", directory, host);
        let pid = Self::path("pid", directory, host);
        std::fs::write(
            &config,
            format!(
                "{preamble} daemon off; master_process off; pid {}; error_log stderr; \
                 worker_rlimit_nofile 20000; events {{ worker_connections 8192; }} {body}",
                pid.display()
            ),
        )?;
        let args = ["-e", "stderr", "-c", &config.to_string_lossy()];
        let name = format!("nginx-{}", host.name());
        let mut process = Process::start(host, directory, &name, Path::new(PROGRAM), &args)?;
        process.wait_until_listening(host, port)?;
        Ok(Self {
            process,
            access_log: Self::path("access.log", directory, host),
        })
    }
}

impl Request {
    fn parse(line: &str) -> Result<Self> {
        let address = |ip: &str, port: &str| -> Result<SocketAddr> {
            Ok(SocketAddr::new(ip.parse::<IpAddr>()?, port.parse()?))
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let parse = || {
            let [ip, port, proxied_ip, proxied_port, unique_id] = words[..] else {
                bail!("five fields expected");
            };
            Ok(Self {
                remote: address(ip, port)?,
                proxied: match (proxied_ip, proxied_port) {
                    ("-", "-") => None,
                    _ => Some(address(proxied_ip, proxied_port)?),
                },
                unique_id: (unique_id != "-").then(|| unique_id.to_owned()),
            })
        };
        parse().with_context(|| format!("access line {line:?}"))
    }
}

impl Deref for Nginx {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
