//! `proxy_user::reset`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caps::{CapSet, Capability};
use limpid_tests::net::{Family, Host, Topology};
use limpid_tests::suite::Suite;
use proxy_user::reset::{Resets, ResetsError};
use proxy_user::sys::repair::positions;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pair::{loopback, works};

pub(crate) fn add_to(suite: &mut Suite) {
    for family in Family::ALL {
        suite.test(format!("resets_end_both_sides_{family}"), &[], move |_| {
            both_sides(family)
        });
        suite.test(
            format!("resets_with_a_wrong_number_{family}"),
            &[],
            move |_| wrong_number(family),
        );
    }
    suite.test("resets_need_a_capability", &[], |_| async {
        without_capability()
    });
    suite.test("resets_of_two_families", &[], |_| async { two_families() });
}

/// A host between client and backend ends their connection; each thinks that it was the other.
async fn both_sides(family: Family) -> Result<()> {
    let (net, [mut client, mut backend]) = routed(family).await?;
    let resets = net.proxy.block(Resets::open)??;
    let (from, to) = (backend.local_addr()?, client.local_addr()?);
    let (clients, backends) = (positions(&client)?, positions(&backend)?);
    resets.send(from, to, clients.read, clients.write)?;
    is_reset(&mut client).await.context("client")?;
    resets.send(to, from, backends.read, backends.write)?;
    is_reset(&mut backend).await.context("backend")
}

/// Neither a number that the window has passed, nor one further on in it, ends a connection.
async fn wrong_number(family: Family) -> Result<()> {
    let (net, [mut client, mut backend]) = routed(family).await?;
    let resets = net.proxy.block(Resets::open)??;
    let (from, to) = (backend.local_addr()?, client.local_addr()?);
    let now = positions(&client)?;
    for wrong in [now.read.wrapping_sub(1), now.read.wrapping_add(1000)] {
        resets.send(from, to, wrong, now.write)?;
    }
    works(&mut client, &mut backend).await
}

fn without_capability() -> Result<()> {
    let host = Host::new("host")?;
    // Capabilities belong to a thread, and this one ends with the test.
    let opened = host.block(|| {
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_RAW)?;
        anyhow::Ok(Resets::open())
    })??;
    ensure!(matches!(opened, Err(ResetsError::Capability)), "{opened:?}");
    Ok(())
}

fn two_families() -> Result<()> {
    let host = Host::new("host")?;
    let resets = host.block(Resets::open)??;
    let (from, to) = (loopback(Family::V4, 1), loopback(Family::V6, 2));
    let error = resets.send(from, to, 0, 0).err().context("sent")?;
    ensure!(error.kind() == ErrorKind::InvalidInput, "{error}");
    Ok(())
}

/// The client's connection to the backend, past the proxy, used both ways.
async fn routed(family: Family) -> Result<(Topology, [TcpStream; 2])> {
    let net = Topology::standard()?;
    net.enable_forwarding()?;
    let at: SocketAddr = net.backend_addr(family, 9000);
    let listener = net.backend.listen(at).await?;
    let mut client = net.client.connect(at).await?;
    let (mut backend, _) = listener.accept().await?;
    works(&mut client, &mut backend).await?;
    Ok((net, [client, backend]))
}

async fn is_reset(socket: &mut TcpStream) -> Result<()> {
    let read = timeout(Duration::from_secs(5), socket.read(&mut [0; 1])).await;
    let error = read.context("not reset")?.err().context("an orderly end")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    Ok(())
}
