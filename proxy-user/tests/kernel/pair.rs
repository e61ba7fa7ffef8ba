//! A connection of a host with itself.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::{Family, Host};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The loopback address of `family`, and a port.
pub(crate) fn loopback(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => ([127, 0, 0, 1], port).into(),
        Family::V6 => ([0, 0, 0, 0, 0, 0, 0, 1], port).into(),
    }
}

/// Connects `host` with itself: the socket that connected, and the one that was accepted.
pub(crate) async fn pair(host: &Host, family: Family) -> Result<(TcpStream, TcpStream)> {
    let listener = host.listen(loopback(family, 0)).await?;
    let client = host.connect(listener.local_addr()?).await?;
    let (server, _) = listener.accept().await?;
    Ok((client, server))
}

/// Passes when bytes written to one end come out of the other, both ways.
pub(crate) async fn works(one: &mut TcpStream, other: &mut TcpStream) -> Result<()> {
    says(one, other).await?;
    says(other, one).await
}

async fn says(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"still there?").await.context("write")?;
    let mut seen = [0; 12];
    to.read_exact(&mut seen).await.context("read")?;
    ensure!(&seen == b"still there?", "{seen:?}");
    Ok(())
}

/// How many TCP segments the host has sent, from its /proc/net/snmp.
pub(crate) fn segments_sent(host: &Host) -> Result<u64> {
    let table = host.proc_net("snmp")?;
    let mut tcp = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = tcp.next().zip(tcp.next()).context("no Tcp in snmp")?;
    let column = |name| names.split(' ').position(|found| found == name);
    // A RST is not among the segments that "OutSegs" counts.
    let mut sum = 0;
    for name in ["OutSegs", "OutRsts"] {
        let at = column(name).context("no such column")?;
        sum += values.split(' ').nth(at).context("short")?.parse::<u64>()?;
    }
    Ok(sum)
}
