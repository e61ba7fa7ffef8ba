//! What listens on the backend: one service at a time, on the one port that contenders know.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::Host;
use limpid_tests::process::Process;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::bed::{PORT, SERVICE};
use crate::peers;

/// How long the port may take to be free, and a connection to be made and answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program on the backend. The port is free again once it is dropped.
pub(crate) struct Program<'a> {
    process: Option<Process>,
    backend: &'a Host,
}

impl<'a> Program<'a> {
    /// A web server.
    pub(crate) fn web(backend: &'a Host, directory: &Path) -> Result<Self> {
        let process = peers::nginx_web(backend, directory, "web")?;
        Ok(Self::of(process, backend))
    }

    /// iperf3's server.
    pub(crate) fn iperf(backend: &'a Host, directory: &Path) -> Result<Self> {
        let port = PORT.to_string();
        let args = ["-s", "-p", &port];
        let program = "/usr/bin/iperf3".as_ref();
        let mut process = Process::start(backend, directory, "iperf3", program, &args)?;
        process.wait_until_listening(backend, PORT)?;
        Ok(Self::of(process, backend))
    }

    fn of(process: Process, backend: &'a Host) -> Self {
        Self {
            process: Some(process),
            backend,
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        drop(self.process.take());
        // Who comes next says so if the port is still taken.
        let end = Instant::now() + PATIENCE;
        while self.backend.listens(PORT).unwrap_or(false) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A server that says again what it is told.
pub(crate) fn echo(backend: &Host) -> Result<Service> {
    Service::start(backend, |mut stream| async move {
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    })
}

/// A server that accepts and never reads.
pub(crate) fn deaf(backend: &Host) -> Result<Service> {
    Service::start(backend, |stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
}

/// A server in this process. It accepts until it is dropped; its connections are closed then.
pub(crate) struct Service {
    accepting: AbortHandle,
}

impl Service {
    fn start<F>(
        backend: &Host,
        each: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = backend.block(|| -> std::io::Result<TcpListener> {
            let listener = std::net::TcpListener::bind(SERVICE)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })?;
        let listener = listener.context("a service on the backend")?;
        let accepting = backend.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(each(stream));
            }
        });
        Ok(Self {
            accepting: accepting.abort_handle(),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
        // The listener goes when the runtime gets round to it.
        let end = Instant::now() + PATIENCE;
        while !self.accepting.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Connects `count` times to an [`echo`] at `target`; each connection has carried a message each way.
pub(crate) fn open(client: &Host, target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    client.block(move || {
        (0..count)
            .map(|n| greet(target).with_context(|| format!("connection {n} to {target}")))
            .collect()
    })?
}

fn greet(target: SocketAddr) -> Result<TcpStream> {
    const HELLO: &[u8] = b"hello";
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(HELLO)?;
    let mut answer = [0; HELLO.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == HELLO, "the echo said {answer:?}");
    Ok(stream)
}
