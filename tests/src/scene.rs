//! The scene of most scenarios: a limpid that accepts PROXY headers from the edge, and a backend that
//! is a socket in the test's hands.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::header::Version;
use crate::net::{Family, Plan, Topology};
use crate::process::eventually;
use crate::programs::{AccessLine, Engine, Limpid, Options};
use crate::suite::{Lab, scaled};
use crate::talk::Echo;

/// The port that limpid listens on.
pub const LISTEN: u16 = 8443;

/// The port that the backend listens on.
pub const UPSTREAM: u16 = 9000;

/// How long a connection may take to reach the backend, before scaling.
const ARRIVAL: Duration = Duration::from_secs(10);

/// A network with a daemon in it.
pub struct Scene {
    // limpid first: it is to end while its host is still there.
    /// The daemon, on the proxy host.
    pub limpid: Limpid,
    /// The backend's socket.
    pub backend: TcpListener,
    /// The hosts.
    pub net: Topology,
    /// Over which all connections run.
    pub family: Family,
    next_client: AtomicU32,
}

/// Both ends of a connection that limpid has in its hands.
#[derive(Debug)]
pub struct Pair {
    /// The downstream end, on the edge.
    pub client: TcpStream,
    /// The upstream end, on the backend.
    pub server: TcpStream,
    /// Whom the backend sees.
    pub peer: SocketAddr,
}

impl Scene {
    /// The usual: headers from anyone, the given engine, plain links.
    pub async fn start(lab: &Lab, family: Family, engine: Engine) -> Result<Self> {
        Self::with(lab, family, &Plan::default(), |options| {
            options.engine(engine)
        })
        .await
    }

    /// On another network, or with other options; `--accept-proxy` with trust in everyone is there.
    pub async fn with(
        lab: &Lab,
        family: Family,
        plan: &Plan,
        more: impl FnOnce(Options) -> Options,
    ) -> Result<Self> {
        let net = Topology::build(plan)?;
        Self::on(net, lab, family, |options| {
            more(options.accept_proxy(family.everything()))
        })
        .await
    }

    /// On a network that is there already, with no options but the two addresses.
    pub async fn on(
        net: Topology,
        lab: &Lab,
        family: Family,
        more: impl FnOnce(Options) -> Options,
    ) -> Result<Self> {
        let upstream = net.backend_addr(family, UPSTREAM);
        let backend = net.backend.listen(upstream).await?;
        let options = more(Options::new(net.proxy_addr(family, LISTEN), upstream));
        let limpid = Limpid::start(&net.proxy, lab, &options)?;
        Ok(Self {
            limpid,
            backend,
            net,
            family,
            next_client: AtomicU32::new(0),
        })
    }

    /// Where limpid listens.
    pub fn address(&self) -> SocketAddr {
        self.net.proxy_addr(self.family, LISTEN)
    }

    /// A client that no other connection of this scene has.
    pub fn new_client(&self) -> SocketAddr {
        const HOST: u8 = 77;
        const PORTS: std::ops::Range<u16> = 20_000..60_000;
        let n = self.next_client.fetch_add(1, Ordering::Relaxed);
        let ports = u32::from(PORTS.end - PORTS.start);
        // Both fit: the port by its range, the host for the millions of connections that no test makes.
        let host = HOST.wrapping_add((n / ports) as u8);
        let port = PORTS.start + (n % ports) as u16;
        SocketAddr::new(self.net.elsewhere(self.family, host), port)
    }

    /// Connects to limpid from the edge, and says nothing yet.
    pub async fn connect(&self) -> Result<TcpStream> {
        let stream = self.net.edge.connect(self.address()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Connects from the edge and sends a new client's header.
    pub async fn enter(&self) -> Result<TcpStream> {
        let mut stream = self.connect().await?;
        stream.write_all(&self.header()).await?;
        Ok(stream)
    }

    /// The connection that reaches the backend next.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = timeout(scaled(ARRIVAL), self.backend.accept())
            .await
            .context("nothing reached the backend")??;
        stream.set_nodelay(true)?;
        Ok((stream, peer))
    }

    /// Nothing may reach the backend for `time`.
    pub async fn expect_no_arrival(&self, time: Duration) -> Result<()> {
        let arrived = timeout(time, self.backend.accept()).await;
        ensure!(
            arrived.is_err(),
            "something reached the backend: {arrived:?}"
        );
        Ok(())
    }

    /// A whole connection for `client`, its header sent alone.
    pub async fn open_as(&self, version: Version, client: SocketAddr) -> Result<Pair> {
        self.open_with(&version.header(client, self.address()))
            .await
    }

    /// A whole connection for a new client.
    pub async fn open(&self) -> Result<Pair> {
        self.open_as(Version::V2, self.new_client()).await
    }

    /// A whole connection that begins with `bytes`.
    pub async fn open_with(&self, bytes: &[u8]) -> Result<Pair> {
        let client = self.connect().await?;
        self.open_over(client, bytes).await
    }

    /// The same over a connection that is there already.
    pub async fn open_over(&self, mut client: TcpStream, bytes: &[u8]) -> Result<Pair> {
        client.set_nodelay(true)?;
        client.write_all(bytes).await?;
        let (server, peer) = self.accept().await?;
        Ok(Pair {
            client,
            server,
            peer,
        })
    }

    /// Waits until limpid has sent `count` SYNs that nobody answers.
    pub async fn wait_for_unanswered(&self, count: usize) -> Result<()> {
        eventually(&format!("{count} SYNs wait for an answer"), || {
            let sockets = self.net.proxy.sh("ss -tnH state syn-sent")?;
            Ok(sockets.lines().count() == count)
        })
        .await
    }

    /// The header of a new client.
    pub fn header(&self) -> Vec<u8> {
        Version::V2.header(self.new_client(), self.address())
    }

    /// From now on the backend answers every connection with its own bytes.
    pub fn echo(&self) -> Result<Echo> {
        Echo::start(&self.net.backend, &self.backend)
    }

    /// Waits for the record of the only flow so far.
    pub async fn record(&self) -> Result<AccessLine> {
        let mut lines = self.limpid.wait_for_access_lines(1).await?;
        ensure!(lines.len() == 1, "one record a flow: {lines:?}");
        lines.pop().context("no record")
    }

    /// Waits until every open flow is in the hands of `engine`.
    pub async fn wait_for_engine(&self, engine: Engine) -> Result<()> {
        self.limpid.wait_for_engine(&self.net.proxy, engine).await
    }

    /// Waits until every open flow is in the hands of the packet engine, and the proxy's host has no socket
    /// of it any more: what had come before the switch is handed over.
    pub async fn wait_for_no_sockets(&self) -> Result<()> {
        self.wait_for_engine(Engine::Packet).await?;
        eventually("the proxy has no socket but listeners", || {
            let sockets = self.net.proxy.sh("ss -tanH")?;
            Ok(sockets.lines().all(|line| line.starts_with("LISTEN")))
        })
        .await
    }

    /// Waits for `count` records, each of which must name `engine` and no fallback.
    pub async fn records_of(&self, count: usize, engine: Engine) -> Result<Vec<AccessLine>> {
        let lines = self.records(count).await?;
        for line in &lines {
            line.ensure_carried_by(engine)?;
        }
        Ok(lines)
    }

    /// Waits for the record of the only flow so far, which `engine` carried.
    pub async fn record_of(&self, engine: Engine) -> Result<AccessLine> {
        let line = self.record().await?;
        line.ensure_carried_by(engine)?;
        Ok(line)
    }

    /// Waits for `count` records of flows that may have been half closed before any engine had
    /// them: those may have been copied, and say why; not all of them.
    pub async fn records_of_short_flows(&self, count: usize, engine: Engine) -> Result<()> {
        let lines = self.records(count).await?;
        let mut by_engine = 0;
        for line in &lines {
            by_engine += usize::from(line.carried_by(engine)?);
        }
        ensure!(by_engine > 0, "none of {count} flows by {engine}");
        Ok(())
    }

    async fn records(&self, count: usize) -> Result<Vec<AccessLine>> {
        let lines = self.limpid.wait_for_access_lines(count).await?;
        ensure!(
            lines.len() == count,
            "{} records of {count} flows",
            lines.len()
        );
        Ok(lines)
    }
}
