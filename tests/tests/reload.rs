//! What a reload changes that connections notice: where is listened, how clients are refused.

use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::net::{Family, Topology};
use limpid_tests::process::{PATIENCE, eventually};
use limpid_tests::programs::{Limpid, Options, show};
use limpid_tests::scene::{LISTEN, UPSTREAM};
use limpid_tests::suite::{Lab, Suite, scaled};
use limpid_tests::talk::Echo;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        suite.test(format!("address_exchanged_{family}"), &[], move |lab| {
            address_exchanged(lab, family)
        });
        suite.test(format!("refused_by_a_fin_{family}"), &[], move |lab| {
            refused_by_a_fin(lab, family)
        });
    }
    suite.test("file_that_blocks", &[], file_that_blocks);
    suite.run()
}

/// A daemon with a file, and a backend that says what it hears.
struct Reloading {
    limpid: Limpid,
    file: PathBuf,
    net: Topology,
    listen: SocketAddr,
    upstream: SocketAddr,
    _echo: Echo,
}

impl Reloading {
    /// With the listener `described` for where limpid is to listen.
    async fn start(
        lab: &Lab,
        family: Family,
        described: impl FnOnce(SocketAddr) -> String,
    ) -> Result<Self> {
        let net = Topology::standard()?;
        let upstream = net.backend_addr(family, UPSTREAM);
        let echo = Echo::start(&net.backend, &net.backend.listen(upstream).await?)?;
        let file = lab.path().join("limpid.toml");
        let listen = net.proxy_addr(family, LISTEN);
        write(&file, &described(listen), upstream)?;
        let limpid = Limpid::start(&net.proxy, lab, &Options::from_file(listen, &file))?;
        Ok(Self {
            limpid,
            file,
            net,
            listen,
            upstream,
            _echo: echo,
        })
    }

    /// Another listener by the same name.
    fn reload(&self, listener: &str) -> Result<()> {
        write(&self.file, listener, self.upstream)?;
        self.limpid.tell(&self.net.proxy, &["reload"]).map(drop)
    }

    async fn connect(&self) -> Result<TcpStream> {
        self.net.edge.connect(self.listen).await
    }
}

fn write(file: &Path, listener: &str, upstream: SocketAddr) -> Result<()> {
    let text = format!(
        "[daemon]\nlog-format = \"json\"\n[listeners.game]\n{listener}\n[pools.game]\nupstream = [\"{upstream}\"]\n"
    );
    Ok(std::fs::write(file, text)?)
}

/// A listener at an address.
fn at(listen: SocketAddr) -> String {
    format!("listen = [\"{listen}\"]")
}

async fn ask(stream: &mut TcpStream) -> Result<()> {
    const WORD: &[u8; 4] = b"word";
    stream.write_all(WORD).await?;
    let mut heard = [0; WORD.len()];
    timeout(scaled(PATIENCE), stream.read_exact(&mut heard))
        .await
        .context("no answer")??;
    ensure!(&heard == WORD, "{heard:?}");
    Ok(())
}

/// A listener goes from one address to all, and back, with the same port: what is open goes on, who comes
/// finds it.
async fn address_exchanged(lab: Lab, family: Family) -> Result<()> {
    /// Each way.
    const EXCHANGES: usize = 5;
    let any = SocketAddr::new(family.unspecified(), LISTEN);
    let scene = Reloading::start(&lab, family, at).await?;
    let (narrow, wide) = (at(scene.listen), at(any));
    let mut open = vec![scene.connect().await?];
    for _ in 0..EXCHANGES {
        for listener in [&wide, &narrow] {
            scene.reload(listener)?;
            let mut stream = scene.connect().await?;
            ask(&mut stream).await?;
            open.push(stream);
        }
    }
    for stream in &mut open {
        ask(stream).await?;
    }
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let elsewhere = SocketAddr::new(loopback, LISTEN);
    ensure!(
        scene.net.proxy.connect(elsewhere).await.is_err(),
        "it listens at {elsewhere} still"
    );
    scene.reload(&wide)?;
    ask(&mut scene.net.proxy.connect(elsewhere).await?).await?;
    let other = scene.net.proxy.listen(scene.listen).await;
    ensure!(other.is_err(), "another socket shares the port");
    Ok(())
}

/// With `refuse-with = "close"` a client that has sent something sees the end of the stream, as a silent one
/// does.
async fn refused_by_a_fin(lab: Lab, family: Family) -> Result<()> {
    let denying = |listen: SocketAddr, how: &str| {
        let everything = family.everything();
        format!(
            "{}\ndeny = [\"{everything}\"]\nrefuse-with = \"{how}\"",
            at(listen)
        )
    };
    let scene = Reloading::start(&lab, family, |listen| denying(listen, "close")).await?;
    for first in [&b""[..], b"hello\n", &[0; 10_000]] {
        let end = refused(&scene, first).await?;
        ensure!(end, "{} bytes: reset", first.len());
    }
    scene.reload(&denying(scene.listen, "reset"))?;
    let end = refused(&scene, b"").await?;
    ensure!(!end, "it ended without a RST");
    Ok(())
}

/// How a refusal looks to who has sent `first`: true, if it is the end of the stream.
async fn refused(scene: &Reloading, first: &[u8]) -> Result<bool> {
    let mut stream = match scene.connect().await {
        // A RST may come before `connect()` has told of the connection.
        Err(e) if is_reset(&e) => return Ok(false),
        connected => connected?,
    };
    // It may be refused before all is sent.
    let _ = stream.write_all(first).await;
    let read = timeout(scaled(PATIENCE), stream.read(&mut [0; 1])).await;
    Ok(read.context("not refused")?.is_ok_and(|bytes| bytes == 0))
}

fn is_reset(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

/// A file that cannot be read at once is given up; meanwhile the daemon answers and serves, and it ends when
/// it is told to.
async fn file_that_blocks(lab: Lab) -> Result<()> {
    let mut scene = Reloading::start(&lab, Family::V4, at).await?;
    std::fs::remove_file(&scene.file)?;
    nix::unistd::mkfifo(&scene.file, Mode::S_IRWXU)?;
    scene.limpid.process().signal(Signal::SIGHUP)?;
    // While it waits for the file.
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(!scene.limpid.log()?.contains("not reloaded"), "too early");
    scene.limpid.json(&scene.net.proxy, "status")?;
    ask(&mut scene.connect().await?).await?;
    let refused = scene.limpid.ask(&scene.net.proxy, &["reload"])?;
    ensure!(
        !refused.status.success() && show(&refused).contains("timed out"),
        "{}",
        show(&refused)
    );
    eventually("both are given up", || {
        Ok(scene.limpid.log()?.matches("not reloaded").count() == 2)
    })
    .await?;
    // Whoever writes at last is not heard, and stops nobody.
    let mut late = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&scene.file)?;
    late.write_all(b"nonsense")?;
    ensure!(scene.limpid.terminate(PATIENCE)?.success(), "its end");
    Ok(())
}
