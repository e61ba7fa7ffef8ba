//! nginx: an unmodified backend that logs who it thinks is calling.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::net::Host;
use crate::process::{Process, eventually};

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
        format!(
            "log_format who '$remote_addr $remote_port $proxy_protocol_addr $proxy_protocol_port'; \
             access_log {} who;",
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
        let mut process =
            Process::start(host, directory, &name, Path::new("/usr/sbin/nginx"), &args)?;
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
        let parsed = match words[..] {
            [ip, port, "-", "-"] => address(ip, port).map(|remote| (remote, None)),
            [ip, port, ip2, port2] => {
                address(ip, port).and_then(|remote| Ok((remote, Some(address(ip2, port2)?))))
            }
            _ => Err(anyhow::anyhow!("four fields expected")),
        };
        let (remote, proxied) = parsed.with_context(|| format!("access line {line:?}"))?;
        Ok(Self { remote, proxied })
    }
}

impl Deref for Nginx {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
