//! HAProxy: the sender of PROXY headers, or their receiver.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;

use anyhow::Result;

use crate::net::Host;
use crate::process::Process;

/// A running HAProxy with one TCP listener and one server.
pub struct Haproxy(Process);

impl Haproxy {
    /// Listens on `bind` (with `bind_options`, such as `accept-proxy`) and connects to `server`
    /// (with `server_options`, such as `send-proxy-v2`). Each connection is logged as
    /// `client:port`, as HAProxy sees it.
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
                 \x20 log-format %ci\\ %cp\n  default_backend out\n\
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
}

impl Deref for Haproxy {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}
