//! `proxy_user::netlink::conntrack`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::{Family, Host};
use limpid_tests::suite::Suite;
use proxy_user::netlink::conntrack::{Conntrack, ConntrackError};
use tokio::net::TcpStream;

use crate::arrival::CONNTRACK;
use crate::pair::{loopback, pair};

pub(crate) fn add_to(suite: &mut Suite) {
    for family in Family::ALL {
        suite.test(format!("forget_{family}"), CONNTRACK, move |_| {
            one_of_two(family)
        });
        suite.test(
            format!("forget_redirected_{family}"),
            CONNTRACK,
            move |_| redirected(family),
        );
    }
    suite.test("forget_where_nothing_is_tracked", CONNTRACK, |_| {
        untracked()
    });
    suite.test("forget_two_families", CONNTRACK, |_| two_families());
}

/// One connection is forgotten, once, by either end; the other stays.
async fn one_of_two(family: Family) -> Result<()> {
    let host = tracking(family)?;
    let conntrack = Arc::new(Conntrack::new());
    let (client, server) = pair(&host, family).await?;
    let (other_client, other_server) = pair(&host, family).await?;
    ensure!(count(&host)? == 2, "{} entries", count(&host)?);

    ensure!(
        forget(&host, &conntrack, &client)?,
        "no entry of the client"
    );
    ensure!(count(&host)? == 1);
    ensure!(!forget(&host, &conntrack, &client)?, "forgotten twice");
    ensure!(!forget(&host, &conntrack, &server)?, "forgotten twice");
    ensure!(count(&host)? == 1);

    ensure!(forget(&host, &conntrack, &other_server)?, "no entry");
    ensure!(count(&host)? == 0);
    drop(other_client);
    Ok(())
}

/// The accepted socket knows nothing of the address that the client asked for, and needs not.
async fn redirected(family: Family) -> Result<()> {
    let host = tracking(family)?;
    let tool = tool(family);
    host.sh(&format!(
        "{tool} -w -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8080"
    ))?;
    // Of an IPv6 socket, so that IPv4 addresses come in their mapped form.
    let listener = host.listen(SocketAddr::from(([0u16; 8], 8080))).await?;
    let conntrack = Arc::new(Conntrack::new());
    for _ in 0..2 {
        let _client = host.connect(loopback(family, 80)).await?;
        let (server, _) = listener.accept().await?;
        ensure!(count(&host)? == 1);
        ensure!(forget(&host, &conntrack, &server)?, "no entry");
        ensure!(count(&host)? == 0);
    }
    Ok(())
}

async fn untracked() -> Result<()> {
    let host = Host::new("host")?;
    let (client, _server) = pair(&host, Family::V4).await?;
    ensure!(!forget(&host, &Arc::new(Conntrack::new()), &client)?);
    Ok(())
}

/// Nothing is sent, since a request without a tuple empties the table.
async fn two_families() -> Result<()> {
    let host = tracking(Family::V4)?;
    let _connection = pair(&host, Family::V4).await?;
    let mixed =
        host.block(|| Conntrack::new().forget(loopback(Family::V4, 1), loopback(Family::V6, 2)))?;
    ensure!(
        matches!(mixed, Err(ConntrackError::Request { .. })),
        "{mixed:?}"
    );
    ensure!(count(&host)? == 1);
    Ok(())
}

/// A host whose rules make it track connections.
fn tracking(family: Family) -> Result<Host> {
    let host = Host::new("host")?;
    let tool = tool(family);
    host.sh(&format!(
        "{tool} -w -A INPUT -m conntrack --ctstate INVALID -j DROP"
    ))?;
    Ok(host)
}

fn tool(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn count(host: &Host) -> Result<u32> {
    let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    let count = host.block(read)?.context("nf_conntrack_count")?;
    Ok(count.trim().parse()?)
}

/// On the host's thread, whose namespace counts when the socket is opened.
fn forget(host: &Host, conntrack: &Arc<Conntrack>, socket: &TcpStream) -> Result<bool> {
    let (from, to) = (socket.local_addr()?, socket.peer_addr()?);
    let conntrack = Arc::clone(conntrack);
    Ok(host.block(move || conntrack.forget(from, to))??)
}
