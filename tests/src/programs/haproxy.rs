//! HAProxy: the sender of PROXY headers, or their receiver.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;

use anyhow::{Context, Result};

use crate::net::Host;
use crate::process::{Process, eventually};

/// The end of the line that HAProxy logs of a connection whose header it refuses.
const INVALID_HEADER: &str = "Received an invalid PROXY protocol header";

/// A running HAProxy with one TCP listener and one server.
pub struct Haproxy(Process);

/// A connection as HAProxy has logged it, at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who it is for.
    pub client: SocketAddr,
    /// The unique ID that HAProxy has given to it, where it had to send one.
    pub unique_id: Option<String>,
    /// The unique ID of the header that was read.
    pub received_unique_id: Option<String>,
    /// The authority of the header that was read.
    pub received_authority: Option<String>,
}

impl Haproxy {
    /// Listens on `bind` (with `bind_options`, such as `accept-proxy`) and connects to `server`
    /// (with `server_options`, such as `send-proxy-v2`). Each connection is logged as a [`Connection`].
    pub fn start(
        host: &Host,
        directory: &Path,
        (bind, bind_options): (SocketAddr, &str),
        (server, server_options): (SocketAddr, &str),
    ) -> Result<Self> {
        let name = format!("haproxy-{}", host.name());
        let config = directory.join(format!("{name}.cfg"));
        // `unique-id-format` gives the TLV of that name something to carry.
        std::fs::write(
            &config,
            format!(
                "global\n  maxconn 8000\n  log stdout format raw local0\n\
                 defaults\n  mode tcp\n  log global\n  option dontlognull\n\
                 \x20 timeout connect 10s\n  timeout client 120s\n  timeout server 120s\n\
                 frontend in\n  bind {bind} {bind_options}\n\
                 \x20 unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts_%rt\n\
                 \x20 log-format %ci\\ %cp|%ID|%[fc_pp_unique_id]|%[fc_pp_authority]\n  default_backend out\n\
                 backend out\n  server backend {server} {server_options}\n"
            ),
        )?;
        let args = ["-db", "-f", &config.to_string_lossy()];
        let mut process = Process::start(
            host,
            directory,
            &name,
            Path::new("/usr/sbin/haproxy"),
            &args,
        )?;
        process.wait_until_listening(host, bind.port())?;
        Ok(Self(process))
    }

    /// The connections logged so far.
    pub fn connections(&self) -> Result<Vec<Connection>> {
        let text = self.stdout()?;
        let served = text.lines().filter(|line| !line.contains(INVALID_HEADER));
        served.map(Connection::parse).collect()
    }

    /// How many connections were refused for the header that they began with.
    pub fn invalid_headers(&self) -> Result<usize> {
        Ok(self.stdout()?.matches(INVALID_HEADER).count())
    }

    /// Waits until `count` connections are logged, and returns them.
    pub async fn wait_for_connections(&self, count: usize) -> Result<Vec<Connection>> {
        eventually(&format!("{count} lines in HAProxy's log"), || {
            Ok(self.connections()?.len() >= count)
        })
        .await?;
        self.connections()
    }
}

impl Connection {
    fn parse(line: &str) -> Result<Self> {
        let said = |word: &str| (!matches!(word, "" | "-")).then(|| word.to_owned());
        let parse = || {
            let [client, own, unique_id, authority] = line
                .split('|')
                .map(str::trim)
                .collect::<Vec<_>>()
                .try_into()
                .ok()?;
            let (ip, port) = client.split_once(' ')?;
            Some(Self {
                client: SocketAddr::new(ip.parse().ok()?, port.parse().ok()?),
                unique_id: said(own),
                received_unique_id: said(unique_id),
                received_authority: said(authority),
            })
        };
        parse().with_context(|| format!("HAProxy's line {line:?}"))
    }
}

impl Deref for Haproxy {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}
