//! What limpid sends, read by others: by another limpid, by HAProxy, by nginx.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use limpid_tests::header::Version;
use limpid_tests::net::{Family, Plan, Topology};
use limpid_tests::programs::{Engine, Haproxy, Limpid, Nginx, Options};
use limpid_tests::scene::{LISTEN, Scene};
use limpid_tests::suite::{HAPROXY, Lab, NGINX, Suite};
use limpid_tests::transfer::{self, Flow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for version in Version::ALL {
            for engine in Engine::ALL {
                suite.test(
                    format!("limpid_to_limpid_{version}_{family}_{engine}"),
                    &[],
                    move |lab| limpid_to_limpid(lab, version, family, engine),
                );
                suite.test(
                    format!("limpid_to_limpid_to_nginx_{version}_{family}_{engine}"),
                    &[NGINX],
                    move |lab| to_plain_nginx(lab, version, family, engine),
                );
            }
            suite.test(format!("passed_on_{version}_{family}"), &[], move |lab| {
                passed_on(lab, version, family)
            });
            suite.test(
                format!("nginx_reads_{version}_{family}"),
                &[NGINX],
                move |lab| nginx_reads(lab, version, family),
            );
            suite.test(
                format!("nginx_stream_reads_{version}_{family}"),
                &[NGINX],
                move |lab| nginx_stream_reads(lab, version, family),
            );
            suite.test(
                format!("haproxy_reads_{version}_{family}"),
                &[HAPROXY, NGINX],
                move |lab| haproxy_reads(lab, version, family),
            );
        }
    }
    suite.run()
}

/// A limpid on the edge that sends headers to whatever listens on the proxy host.
fn edge(
    lab: &Lab,
    net: &Topology,
    version: Version,
    family: Family,
    engine: Engine,
) -> Result<Limpid> {
    let options = Options::new(
        net.edge_addr(family, LISTEN),
        net.proxy_addr(family, LISTEN),
    )
    .with(format!("--send-proxy={version}"))
    .engine(engine);
    Limpid::start(&net.edge, lab, &options)
}

/// A limpid on the proxy host that takes headers from the edge alone.
fn inner(lab: &Lab, net: &Topology, family: Family, engine: Engine, port: u16) -> Result<Limpid> {
    let options = Options::new(
        net.proxy_addr(family, LISTEN),
        net.backend_addr(family, port),
    )
    .accept_proxy(&net.edge_transit_ip(family).to_string())
    .engine(engine);
    Limpid::start(&net.proxy, lab, &options)
}

async fn limpid_to_limpid(
    lab: Lab,
    version: Version,
    family: Family,
    engine: Engine,
) -> Result<()> {
    let net = Topology::standard()?;
    let backend = net.backend.listen(net.backend_addr(family, 9000)).await?;
    let inner = inner(&lab, &net, family, engine, 9000)?;
    let outer = edge(&lab, &net, version, family, engine)?;
    for n in 0..10 {
        let mut client = net.client.connect(net.edge_addr(family, LISTEN)).await?;
        let (mut server, peer) = backend.accept().await?;
        let from = client.local_addr()?;
        ensure!(peer == from, "seen as {peer}, not {from}");
        let (up, down) = (
            Flow::new(400_000 * n, n),
            Flow::new(4_000_000 / (n + 1), n + 100),
        );
        transfer::exchange(&mut client, &mut server, up, down).await?;
    }
    for limpid in [&inner, &outer] {
        let mut by_engine = 0;
        for record in limpid.wait_for_access_lines(10).await? {
            by_engine += usize::from(record.carried_by(engine)?);
        }
        ensure!(by_engine > 0, "none by {engine}");
    }
    Ok(())
}

/// A limpid in the middle that takes a header and sends one: the client's, under its own address.
async fn passed_on(lab: Lab, version: Version, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .with("--source=proxy")
            .with(format!("--send-proxy={version}"))
    })
    .await?;
    for received in Version::ALL {
        let client = scene.new_client();
        let destination = scene.address();
        let first = [&received.header(client, destination)[..], b"payload"].concat();
        let mut pair = scene.open_with(&first).await?;
        ensure!(
            pair.peer.ip() == scene.net.proxy_inside_ip(family),
            "seen as {}",
            pair.peer
        );
        let expected = [&version.header(client, destination)[..], b"payload"].concat();
        transfer::expect_bytes(&mut pair.server, &expected).await?;
    }
    Ok(())
}

async fn to_plain_nginx(lab: Lab, version: Version, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    let nginx = Nginx::http(&net.backend, lab.path(), net.backend_addr(family, 80), "")?;
    let _inner = inner(&lab, &net, family, engine, 80)?;
    let _outer = edge(&lab, &net, version, family, engine)?;
    let client = get(&net, family).await?;
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(requests[0].remote == client, "{requests:?}, not {client}");
    Ok(())
}

async fn nginx_reads(lab: Lab, version: Version, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let nginx = Nginx::http(&net.proxy, lab.path(), listen, "proxy_protocol")?;
    let _outer = edge(&lab, &net, version, family, Engine::Copy)?;
    let client = get(&net, family).await?;
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(
        requests[0].proxied == Some(client),
        "{requests:?}, not {client}"
    );
    ensure!(
        requests[0].remote.ip() == net.edge_transit_ip(family),
        "{requests:?}"
    );
    Ok(())
}

/// Here the server speaks first: the header may not wait for payload.
async fn nginx_stream_reads(lab: Lab, version: Version, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let nginx = Nginx::stream(&net.proxy, lab.path(), listen, "proxy_protocol")?;
    let _outer = edge(&lab, &net, version, family, Engine::Copy)?;
    let mut client = net.client.connect(net.edge_addr(family, LISTEN)).await?;
    let from = client.local_addr()?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    ensure!(
        answer.starts_with(&net.edge_transit_ip(family).to_string()),
        "{answer}"
    );
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(
        requests[0].proxied == Some(from),
        "{requests:?}, not {from}"
    );
    Ok(())
}

/// HAProxy takes limpid's header and tells nginx behind it in a header of its own.
async fn haproxy_reads(lab: Lab, version: Version, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let backend = net.backend_addr(family, 80);
    let nginx = Nginx::http(&net.backend, lab.path(), backend, "proxy_protocol")?;
    let listen = net.proxy_addr(family, LISTEN);
    let _haproxy = Haproxy::start(
        &net.proxy,
        lab.path(),
        (listen, "accept-proxy"),
        (backend, "send-proxy-v2"),
    )?;
    let _outer = edge(&lab, &net, version, family, Engine::Copy)?;
    let client = get(&net, family).await?;
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(
        requests[0].proxied == Some(client),
        "{requests:?}, not {client}"
    );
    Ok(())
}

/// An HTTP request from the client to the edge; returns the client's own address.
async fn get(net: &Topology, family: Family) -> Result<std::net::SocketAddr> {
    let mut client: TcpStream = net.client.connect(net.edge_addr(family, LISTEN)).await?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    ensure!(answer.contains("200 OK"), "{answer}");
    Ok(client.local_addr()?)
}
