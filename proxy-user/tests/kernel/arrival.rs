//! `proxy_user::sys::arrival`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::{Family, Host, Topology};
use limpid_tests::suite::{Need, Suite};
use proxy_user::sys::arrival::{interface_of, original_destination};
use tokio::net::TcpStream;

use crate::pair::{loopback, pair};

/// What conntrack needs: the kernel's part, and a tool to make rules with.
pub(crate) const CONNTRACK: &[Need] = &[
    Need::File("/proc/sys/net/netfilter/nf_conntrack_count"),
    Need::Program("/usr/sbin/iptables"),
];

pub(crate) fn add_to(suite: &mut Suite) {
    for family in Family::ALL {
        suite.test(format!("interface_of_{family}"), &[], move |_| {
            interface_by_which_it_came(family)
        });
        suite.test(
            format!("original_destination_{family}"),
            CONNTRACK,
            move |_| destination_before_redirection(family),
        );
    }
    suite.test("interface_of_a_dual_stack_listener", &[], |_| dual_stack());
    suite.test("original_destination_without_conntrack", &[], |_| {
        destination_without_conntrack()
    });
}

/// A proxy with two interfaces tells by which of them each client came.
async fn interface_by_which_it_came(family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listener = net.proxy.listen(net.proxy_addr(family, 8080)).await?;
    let from_edge = net.edge.connect(net.proxy_addr(family, 8080)).await?;
    let accepted = listener.accept().await?.0;
    ensure!(interface_of(&accepted)? == Some(index(&net.proxy, "transit")?));
    drop(from_edge);

    let inside = SocketAddr::new(net.proxy_inside_ip(family), 8080);
    let listener = net.proxy.listen(inside).await?;
    let from_backend = net.backend.connect(inside).await?;
    let accepted = listener.accept().await?.0;
    ensure!(interface_of(&accepted)? == Some(index(&net.proxy, "inside")?));
    // Nor does the answer depend on how often it was asked for.
    ensure!(interface_of(&accepted)? == Some(index(&net.proxy, "inside")?));
    drop(from_backend);

    let (_client, server) = pair(&net.proxy, family).await?;
    ensure!(interface_of(&server)? == Some(index(&net.proxy, "lo")?));
    Ok(())
}

/// Clients of both versions at one IPv6 socket.
async fn dual_stack() -> Result<()> {
    let net = Topology::standard()?;
    let any = SocketAddr::from(([0u16; 8], 8080));
    let listener = net.proxy.listen(any).await?;
    for family in Family::ALL {
        let _client = net.edge.connect(net.proxy_addr(family, 8080)).await?;
        let accepted = listener.accept().await?.0;
        ensure!(accepted.local_addr()?.is_ipv6(), "no IPv6 socket");
        let found = interface_of(&accepted)?;
        ensure!(
            found == Some(index(&net.proxy, "transit")?),
            "{family}: {found:?}"
        );
    }
    Ok(())
}

/// REDIRECT is undone; a connection that was not redirected went where it is.
async fn destination_before_redirection(family: Family) -> Result<()> {
    let host = Host::new("host")?;
    let published = loopback(family, 80);
    let tool = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    host.sh(&format!(
        "{tool} -w -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8080"
    ))?;
    // On both versions' addresses, the IPv4 ones as IPv4 in IPv6 sockets.
    let listener = host.listen(SocketAddr::from(([0u16; 8], 8080))).await?;
    for asked in [published, loopback(family, 8080)] {
        let _client = host.connect(asked).await?;
        let accepted: TcpStream = listener.accept().await?.0;
        ensure!(accepted.local_addr()?.port() == 8080);
        let found = original_destination(&accepted)?;
        ensure!(found == Some(asked), "{asked} seen as {found:?}");
    }
    Ok(())
}

/// A namespace without rules does not track connections.
async fn destination_without_conntrack() -> Result<()> {
    let host = Host::new("host")?;
    for family in Family::ALL {
        let (client, server) = pair(&host, family).await?;
        ensure!(original_destination(&server)?.is_none());
        ensure!(original_destination(&client)?.is_none());
    }
    Ok(())
}

fn index(host: &Host, interface: &str) -> Result<u32> {
    let line = host.sh(&format!("ip -o link show {interface}"))?;
    let index = line.split(':').next().context("no index")?;
    Ok(index.parse()?)
}
