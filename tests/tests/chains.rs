//! What limpid sends, read by others: by another limpid, by HAProxy, by nginx.

use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::header::{self, Received, Version};
use limpid_tests::net::{Family, Host, Plan, Topology};
use limpid_tests::process::eventually;
use limpid_tests::programs::{Engine, Haproxy, Limpid, NGINX_TLVS, Nginx, Options};
use limpid_tests::scene::{LISTEN, Scene};
use limpid_tests::suite::{HAPROXY, Lab, NGINX, Suite, scaled, shrunk};
use limpid_tests::transfer::{self, Flow};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What limpid sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    V1,
    V2,
    /// Version 2 with all that it can say.
    All,
}

impl Sent {
    const EACH: [Self; 3] = [Self::V1, Self::V2, Self::All];

    fn asked_of(self, options: Options) -> Options {
        match self {
            Self::V1 => options.with("--send-proxy=v1"),
            Self::V2 => options.with("--send-proxy=v2"),
            Self::All => options
                .with("--send-proxy=v2")
                .with("--send-proxy-crc32c")
                .with("--send-proxy-unique-id")
                .with("--send-proxy-tlvs"),
        }
    }

    /// Reads such a header, of a client that came with none, off a connection. Returns its length, in bytes.
    async fn read(self, from: &mut TcpStream, client: SocketAddr, to: SocketAddr) -> Result<usize> {
        let plain = match self {
            Self::V1 => Version::V1,
            Self::V2 | Self::All => Version::V2,
        }
        .header(client, to);
        if self != Self::All {
            transfer::expect_bytes(from, &plain).await?;
            return Ok(plain.len());
        }
        let received = Received::read(from).await?;
        ensure!(
            (received.source, received.destination) == (client, to),
            "{received:?}"
        );
        ensure!(received.tlv(header::CRC32C)?.is_some(), "{received:?}");
        ensure_fresh(received.tlv(header::UNIQUE_ID)?)?;
        Ok(plain.len()
            + received
                .tlvs
                .iter()
                .map(|tlv| 3 + tlv.1.len())
                .sum::<usize>())
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::All => "all",
        })
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for sent in Sent::EACH {
            for engine in Engine::ALL {
                suite.test(
                    format!("limpid_to_limpid_{sent}_{family}_{engine}"),
                    &[],
                    move |lab| limpid_to_limpid(lab, sent, family, engine),
                );
                suite.test(
                    format!("limpid_to_limpid_to_nginx_{sent}_{family}_{engine}"),
                    &[NGINX],
                    move |lab| to_plain_nginx(lab, sent, family, engine),
                );
                suite.test(
                    format!("with_the_first_payload_{sent}_{family}_{engine}"),
                    &[],
                    move |lab| with_the_first_payload(lab, sent, family, engine),
                );
            }
            suite.test(
                format!("nginx_reads_{sent}_{family}"),
                &[NGINX],
                move |lab| nginx_reads(lab, sent, family),
            );
            suite.test(
                format!("nginx_stream_reads_{sent}_{family}"),
                &[NGINX],
                move |lab| nginx_stream_reads(lab, sent, family),
            );
            suite.test(
                format!("haproxy_reads_{sent}_{family}"),
                &[HAPROXY, NGINX],
                move |lab| haproxy_reads(lab, sent, family),
            );
        }
        for version in Version::ALL {
            suite.test(format!("passed_on_{version}_{family}"), &[], move |lab| {
                passed_on(lab, version, family)
            });
        }
        for engine in Engine::ALL {
            suite.test(
                format!("tlvs_survive_two_limpids_{family}_{engine}"),
                &[],
                move |lab| tlvs_survive(lab, family, engine),
            );
            for (name, options) in [
                ("v1", "send-proxy"),
                ("v2", "send-proxy-v2"),
                ("v2_tlvs", "send-proxy-v2 proxy-v2-options crc32c,unique-id"),
            ] {
                suite.test(
                    format!("haproxy_{name}_to_limpid_{family}_{engine}"),
                    &[HAPROXY],
                    move |lab| haproxy_to_limpid(lab, options, family, engine),
                );
            }
        }
        suite.test(
            format!("haproxy_reads_tlvs_{family}"),
            &[HAPROXY],
            move |lab| haproxy_reads_tlvs(lab, family),
        );
        suite.test(
            format!("haproxy_checks_the_checksum_{family}"),
            &[HAPROXY],
            move |lab| haproxy_checks_the_checksum(lab, family),
        );
        suite.test(
            format!("nginx_reads_tlvs_{family}"),
            &[NGINX_TLVS],
            move |lab| nginx_reads_tlvs(lab, family),
        );
        suite.test(format!("nlb_to_haproxy_{family}"), &[HAPROXY], move |lab| {
            nlb_to_haproxy(lab, family)
        });
        suite.test(format!("the_largest_header_{family}"), &[], move |lab| {
            the_largest_header(lab, family)
        });
        suite.test(format!("an_overlong_header_{family}"), &[], move |lab| {
            an_overlong_header(lab, family)
        });
    }
    suite.run()
}

/// A limpid on the edge that sends headers to whatever listens on the proxy host.
fn edge(lab: &Lab, net: &Topology, sent: Sent, family: Family, engine: Engine) -> Result<Limpid> {
    let options = Options::new(
        net.edge_addr(family, LISTEN),
        net.proxy_addr(family, LISTEN),
    );
    Limpid::start(&net.edge, lab, &sent.asked_of(options).engine(engine))
}

/// The same between a sender of headers on the client's host and a server that sees the edge: it passes on
/// whatever it can.
fn middle(lab: &Lab, net: &Topology, family: Family, engine: Engine) -> Result<Limpid> {
    let options = Options::new(
        net.edge_addr(family, LISTEN),
        net.proxy_addr(family, LISTEN),
    )
    .accept_proxy(&net.client_ip(family).to_string())
    .with("--source=proxy");
    Limpid::start(&net.edge, lab, &Sent::All.asked_of(options).engine(engine))
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

async fn limpid_to_limpid(lab: Lab, sent: Sent, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    let backend = net.backend.listen(net.backend_addr(family, 9000)).await?;
    let inner = inner(&lab, &net, family, engine, 9000)?;
    let outer = edge(&lab, &net, sent, family, engine)?;
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

async fn to_plain_nginx(lab: Lab, sent: Sent, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    let nginx = Nginx::http(&net.backend, lab.path(), net.backend_addr(family, 80), "")?;
    let _inner = inner(&lab, &net, family, engine, 80)?;
    let _outer = edge(&lab, &net, sent, family, engine)?;
    let client = get(&net, family).await?;
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(requests[0].remote == client, "{requests:?}, not {client}");
    Ok(())
}

async fn nginx_reads(lab: Lab, sent: Sent, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let nginx = Nginx::http(&net.proxy, lab.path(), listen, "proxy_protocol")?;
    let _outer = edge(&lab, &net, sent, family, Engine::Copy)?;
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
async fn nginx_stream_reads(lab: Lab, sent: Sent, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let nginx = Nginx::stream(&net.proxy, lab.path(), listen, "proxy_protocol")?;
    let _outer = edge(&lab, &net, sent, family, Engine::Copy)?;
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
async fn haproxy_reads(lab: Lab, sent: Sent, family: Family) -> Result<()> {
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
    let _outer = edge(&lab, &net, sent, family, Engine::Copy)?;
    let client = get(&net, family).await?;
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(
        requests[0].proxied == Some(client),
        "{requests:?}, not {client}"
    );
    Ok(())
}

/// An HTTP request from the client to the edge; returns the client's own address.
async fn get(net: &Topology, family: Family) -> Result<SocketAddr> {
    let mut client: TcpStream = net.client.connect(net.edge_addr(family, LISTEN)).await?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    ensure!(answer.contains("200 OK"), "{answer}");
    Ok(client.local_addr()?)
}

/// The header and payload that was at hand are one segment, and the bytes behind it are what was sent,
/// whoever carries them.
async fn with_the_first_payload(
    lab: Lab,
    sent: Sent,
    family: Family,
    engine: Engine,
) -> Result<()> {
    const FIRST: u64 = 300;
    let net = Topology::standard()?;
    let server = net.proxy.listen(net.proxy_addr(family, LISTEN)).await?;
    let mut limpid = edge(&lab, &net, sent, family, engine)?;

    // What is there before limpid looks is at hand.
    limpid.process().stop()?;
    let called = net.edge_addr(family, LISTEN);
    let mut client = net.client.connect(called).await?;
    let first = Flow::new(FIRST, 1);
    first.send(&mut client).await?;
    let here = format!("ss -tnH state established sport = :{LISTEN}");
    eventually("the payload has come", || {
        let queued = net.edge.sh(&here)?;
        Ok(queued.split_whitespace().next() == Some("300"))
    })
    .await?;
    limpid.process().signal(Signal::SIGCONT)?;

    let (mut server, _) = server.accept().await?;
    let header = sent.read(&mut server, client.local_addr()?, called).await?;
    first.receive(&mut server).await?;
    let received = counter(&net.proxy, "bytes_received")?;
    ensure!(received == header as u64 + FIRST, "{received} bytes");
    let segments = counter(&net.proxy, "data_segs_in")?;
    ensure!(segments == 1, "in {segments} segments");

    limpid.wait_for_engine(&net.edge, engine).await?;
    let (up, down) = (
        Flow::new(shrunk(8 << 20), 2),
        Flow::new(shrunk(16 << 20), 3),
    );
    transfer::exchange(&mut client, &mut server, up, down).await?;
    let lines = limpid.wait_for_access_lines(1).await?;
    lines[0].ensure_carried_by(engine)?;
    lines[0].ensure_bytes(FIRST + up.length, down.length)
}

/// A number that the kernel has of the only connection to `LISTEN` on this host.
fn counter(host: &Host, name: &str) -> Result<u64> {
    let info = host.sh(&format!("ss -tinHO state established sport = :{LISTEN}"))?;
    let value = info
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    Ok(value
        .with_context(|| format!("{name} in {info:?}"))?
        .parse()?)
}

/// Connects from the client's host to the edge, and begins with `bytes`.
async fn send_to_edge(net: &Topology, family: Family, bytes: &[u8]) -> Result<TcpStream> {
    let mut client = net.client.connect(net.edge_addr(family, LISTEN)).await?;
    client.write_all(bytes).await?;
    Ok(client)
}

/// A unique ID of limpid's own: a UUID of version 7 in text.
fn ensure_fresh(unique_id: Option<&[u8]>) -> Result<String> {
    let text = String::from_utf8(unique_id.context("no unique ID")?.to_vec())?;
    let groups: Vec<&str> = text.split('-').collect();
    let hex = |group: &&str| group.bytes().all(|digit| digit.is_ascii_hexdigit());
    ensure!(
        groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
            && groups.iter().all(hex)
            && groups[2].starts_with('7'),
        "{text:?}"
    );
    Ok(text)
}

/// Client, edge, origin, backend: the backend sees the client, and in its header whatever came with the
/// first.
async fn tlvs_survive(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    let backend_addr = net.backend_addr(family, 9000);
    let backend = net.backend.listen(backend_addr).await?;
    let origin = Options::new(net.proxy_addr(family, LISTEN), backend_addr)
        .accept_proxy(&net.edge_transit_ip(family).to_string());
    let origin = Sent::All.asked_of(origin).engine(engine);
    let origin = Limpid::start(&net.proxy, &lab, &origin)?;
    let edge = middle(&lab, &net, family, engine)?;

    let player = SocketAddr::new(net.elsewhere(family, 77), 40_000);
    let called = SocketAddr::new(net.elsewhere(family, 78), 443);
    // TLS 1.3 by a client without a certificate: flags, verification, and a TLV within.
    let tls = [&[0x01, 0, 0, 0, 1, 0x21, 0, 7][..], b"TLSv1.3"].concat();
    let known: [(u8, &[u8]); 6] = [
        (header::AWS, b"\x01vpce-08d2bf15fac5001c9"),
        (header::UNIQUE_ID, b"known\0as\xff"),
        (header::ALPN, b"h2"),
        (header::AUTHORITY, b"game.example.net"),
        (header::SSL, &tls),
        (0x77, b""),
    ];
    let unknown = [(header::AUTHORITY, &b"game.example.net"[..])];
    let padded = [(header::NOOP, &[0; 9][..]), unknown[0], (header::NOOP, b"")];
    let mut given = Vec::new();
    for (tlvs, kept) in [
        (&known[..], &known[..]),
        (&unknown, &unknown),
        (&padded, &unknown),
    ] {
        let mut client =
            send_to_edge(&net, family, &header::v2_crc32c(player, called, tlvs)).await?;
        let (mut server, peer) = backend.accept().await?;
        ensure!(peer.ip() == player.ip(), "seen as {peer}");
        let received = Received::read(&mut server).await?;
        ensure!(
            (received.source, received.destination) == (player, called),
            "{received:?}"
        );
        // Its checksum is there, and right.
        ensure!(received.tlv(header::CRC32C)?.is_some(), "{received:?}");
        let unique_id = received.tlv(header::UNIQUE_ID)?;
        let mut passed_on = received.tlvs_but(header::CRC32C);
        if kept.len() == known.len() {
            ensure!(unique_id == Some(known[1].1), "{received:?}");
        } else {
            given.push(ensure_fresh(unique_id)?);
            passed_on.retain(|tlv| tlv.0 != header::UNIQUE_ID);
        }
        ensure!(passed_on == kept, "{received:?}, not {kept:?}");
        for limpid in [(&edge, &net.edge), (&origin, &net.proxy)] {
            limpid.0.wait_for_engine(limpid.1, engine).await?;
        }
        let (up, down) = (Flow::new(200_000, 1), Flow::new(300_000, 2));
        transfer::exchange(&mut client, &mut server, up, down).await?;
    }
    ensure!(given[0] != given[1], "{given:?}");
    for limpid in [&edge, &origin] {
        for line in limpid.wait_for_access_lines(3).await? {
            line.ensure_carried_by(engine)?;
        }
    }
    Ok(())
}

/// HAProxy on the edge: limpid takes its header, shows the client, and passes its unique ID on.
async fn haproxy_to_limpid(
    lab: Lab,
    options: &'static str,
    family: Family,
    engine: Engine,
) -> Result<()> {
    let net = Topology::standard()?;
    let backend_addr = net.backend_addr(family, 9000);
    let backend = net.backend.listen(backend_addr).await?;
    let listen = net.proxy_addr(family, LISTEN);
    let limpid =
        Options::new(listen, backend_addr).accept_proxy(&net.edge_transit_ip(family).to_string());
    let limpid = Sent::All.asked_of(limpid).engine(engine);
    let _limpid = Limpid::start(&net.proxy, &lab, &limpid)?;
    let called = net.edge_addr(family, LISTEN);
    let haproxy = Haproxy::start(&net.edge, lab.path(), (called, ""), (listen, options))?;

    let mut client = net.client.connect(called).await?;
    let (mut server, peer) = backend.accept().await?;
    let from = client.local_addr()?;
    ensure!(peer == from, "seen as {peer}, not {from}");
    let received = Received::read(&mut server).await?;
    ensure!(
        (received.source, received.destination) == (from, called),
        "{received:?}"
    );
    let (up, down) = (Flow::new(200_000, 1), Flow::new(300_000, 2));
    transfer::exchange(&mut client, &mut server, up, down).await?;

    let unique_id = received.tlv(header::UNIQUE_ID)?;
    let connections = haproxy.wait_for_connections(1).await?;
    if options.contains("unique-id") {
        let given = connections[0].unique_id.clone().context("HAProxy's ID")?;
        ensure!(unique_id == Some(given.as_bytes()), "{received:?}, {given}");
    } else {
        ensure_fresh(unique_id)?;
    }
    Ok(())
}

/// HAProxy's own log tells of what limpid has passed on.
async fn haproxy_reads_tlvs(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let backend_addr = net.backend_addr(family, 9000);
    let backend = net.backend.listen(backend_addr).await?;
    let listen = (net.proxy_addr(family, LISTEN), "accept-proxy");
    let haproxy = Haproxy::start(&net.proxy, lab.path(), listen, (backend_addr, ""))?;
    let _edge = middle(&lab, &net, family, Engine::Packet)?;

    let player = SocketAddr::new(net.elsewhere(family, 77), 40_000);
    let called = net.edge_addr(family, LISTEN);
    let authority = (header::AUTHORITY, &b"game.example.net"[..]);
    for (n, tlvs) in [
        &[authority, (header::UNIQUE_ID, b"01CB7110:9C40")][..],
        &[authority],
    ]
    .into_iter()
    .enumerate()
    {
        let first = [&header::v2(player, called, tlvs)[..], b"payload"].concat();
        let client = send_to_edge(&net, family, &first).await?;
        let (mut server, _) = backend.accept().await?;
        transfer::expect_bytes(&mut server, b"payload").await?;
        drop((client, server));
        let connections = haproxy.wait_for_connections(n + 1).await?;
        let logged = &connections[n];
        ensure!(logged.client == player, "{logged:?}");
        ensure!(
            logged.received_authority.as_deref() == Some("game.example.net"),
            "{logged:?}"
        );
        let unique_id = logged.received_unique_id.as_deref();
        match tlvs {
            [_, _] => ensure!(unique_id == Some("01CB7110:9C40"), "{logged:?}"),
            _ => drop(ensure_fresh(unique_id.map(str::as_bytes))?),
        }
    }
    Ok(())
}

/// That HAProxy takes limpid's headers means something: it refuses those whose checksum is wrong.
async fn haproxy_checks_the_checksum(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let backend_addr = net.backend_addr(family, 9000);
    let backend = net.backend.listen(backend_addr).await?;
    let listen = (net.proxy_addr(family, LISTEN), "accept-proxy");
    let haproxy = Haproxy::start(&net.proxy, lab.path(), listen, (backend_addr, ""))?;
    let mut limpid = edge(&lab, &net, Sent::All, family, Engine::Copy)?;

    // What limpid sends, from a server that keeps it.
    let mut client = send_to_edge(&net, family, b"payload").await?;
    let (mut server, _) = backend.accept().await?;
    transfer::expect_bytes(&mut server, b"payload").await?;
    client.shutdown().await?;
    drop((client, server));
    haproxy.wait_for_connections(1).await?;
    ensure!(haproxy.invalid_headers()? == 0, "{}", haproxy.stdout()?);
    limpid.terminate(scaled(Duration::from_secs(10)))?;

    let player = SocketAddr::new(net.elsewhere(family, 77), 40_000);
    let right = header::v2_crc32c(player, listen.0, &[]);
    let mut wrong = right.clone();
    // A bit of the client's port: all else is a legal header.
    let port = wrong.len() - 4 - 3 - 4;
    wrong[port] ^= 0x40;
    let mut refused = net.edge.connect(listen.0).await?;
    refused
        .write_all(&[&wrong[..], b"payload"].concat())
        .await?;
    transfer::expect_closed(&mut refused).await?;
    let mut taken = net.edge.connect(listen.0).await?;
    taken.write_all(&[&right[..], b"payload"].concat()).await?;
    let (mut server, _) = backend.accept().await?;
    transfer::expect_bytes(&mut server, b"payload").await?;
    drop((taken, server));
    let connections = haproxy.wait_for_connections(2).await?;
    ensure!(connections[1].client == player, "{connections:?}");
    ensure!(haproxy.invalid_headers()? == 1, "{}", haproxy.stdout()?);
    Ok(())
}

/// nginx tells of the unique ID, too.
async fn nginx_reads_tlvs(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let nginx = Nginx::http(&net.proxy, lab.path(), listen, "proxy_protocol")?;
    let _edge = middle(&lab, &net, family, Engine::Packet)?;
    let player = SocketAddr::new(net.elsewhere(family, 77), 40_000);
    let called = net.edge_addr(family, LISTEN);
    let known: &[(u8, &[u8])] = &[(header::UNIQUE_ID, b"01CB7110:9C40")];
    for (n, tlvs) in [known, &[]].into_iter().enumerate() {
        let request = b"GET / HTTP/1.0\r\n\r\n";
        let first = [&header::v2(player, called, tlvs)[..], request].concat();
        let mut client = send_to_edge(&net, family, &first).await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        ensure!(answer.contains("200 OK"), "{answer}");
        let requests = nginx.wait_for_requests(n + 1).await?;
        ensure!(requests[n].proxied == Some(player), "{requests:?}");
        let unique_id = requests[n].unique_id.as_deref();
        if tlvs.is_empty() {
            ensure_fresh(unique_id.map(str::as_bytes))?;
        } else {
            ensure!(unique_id == Some("01CB7110:9C40"), "{requests:?}");
        }
    }
    Ok(())
}

/// Headers as AWS's network load balancer sends them: one with the client and a TLV of its own, and the
/// LOCAL of its health check, which has no addresses although it says so. HAProxy is told of the client, and
/// of the load balancer where that speaks for itself.
async fn nlb_to_haproxy(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let backend_addr = net.backend_addr(family, 9000);
    let backend = net.backend.listen(backend_addr).await?;
    let listen = (net.proxy_addr(family, LISTEN), "accept-proxy");
    let haproxy = Haproxy::start(&net.proxy, lab.path(), listen, (backend_addr, ""))?;
    let _edge = middle(&lab, &net, family, Engine::Packet)?;

    let player = SocketAddr::new(net.elsewhere(family, 77), 40_000);
    let called = SocketAddr::new(net.elsewhere(family, 78), 443);
    let vpce: &[(u8, &[u8])] = &[(header::AWS, b"\x01vpce-08d2bf15fac5001c9")];
    let checksum = [header::CRC32C, 0, 4, 0xde, 0xad, 0xbe, 0xef];
    let padding = [&[header::NOOP, 0, 74][..], &[0; 74]].concat();
    let local = header::v2_raw(0x20, 0x11, &[&checksum[..], &padding].concat());
    ensure!(local[12..16] == [0x20, 0x11, 0x00, 0x54], "not NLB's");
    for (n, (bytes, named)) in [
        (header::v2(player, called, vpce), Some(player)),
        (local, None),
    ]
    .into_iter()
    .enumerate()
    {
        let client = send_to_edge(&net, family, &[&bytes[..], b"payload"].concat()).await?;
        let (mut server, _) = backend.accept().await?;
        transfer::expect_bytes(&mut server, b"payload").await?;
        let expected = match named {
            Some(player) => player,
            None => client.local_addr()?,
        };
        drop((client, server));
        let connections = haproxy.wait_for_connections(n + 1).await?;
        ensure!(connections[n].client == expected, "{connections:?}");
    }
    Ok(())
}

/// A TLV that fills a header to the last of its 65 551 bytes, beside `others` bytes.
fn largest(player: SocketAddr, called: SocketAddr, others: usize) -> Vec<u8> {
    let addresses = if player.is_ipv4() { 12 } else { 36 };
    let value = vec![0x5a; usize::from(u16::MAX) - addresses - 3 - others];
    header::v2(player, called, &[(header::AWS, &value)])
}

async fn largest_header_scene(lab: &Lab, family: Family) -> Result<Scene> {
    Scene::with(lab, family, &Plan::default(), |options| {
        Sent::All.asked_of(options.with("--max-header=65551"))
    })
    .await
}

/// The largest header there is goes on whole, before its payload.
async fn the_largest_header(lab: Lab, family: Family) -> Result<()> {
    /// What is added: a checksum, and a unique ID.
    const ADDED: usize = 7 + 3 + 36;
    let scene = largest_header_scene(&lab, family).await?;
    let (player, called) = (scene.new_client(), scene.address());
    let header = largest(player, called, ADDED);
    let mut pair = scene.open_with(&[&header[..], b"payload"].concat()).await?;
    let received = Received::read(&mut pair.server).await?;
    transfer::expect_bytes(&mut pair.server, b"payload").await?;
    let size: usize = received.tlvs.iter().map(|tlv| 3 + tlv.1.len()).sum();
    let addresses = if player.is_ipv4() { 12 } else { 36 };
    ensure!(size + addresses == usize::from(u16::MAX), "{size} bytes");
    ensure_fresh(received.tlv(header::UNIQUE_ID)?)?;
    let value = received.tlv(header::AWS)?.context("no TLV")?;
    ensure!(value.iter().all(|byte| *byte == 0x5a), "not as it came");
    Ok(())
}

/// TLVs that came and do not fit together with what is asked for: the connection ends, and the server hears
/// nothing of it.
async fn an_overlong_header(lab: Lab, family: Family) -> Result<()> {
    let scene = largest_header_scene(&lab, family).await?;
    let header = largest(scene.new_client(), scene.address(), 0);
    let mut client = scene.connect().await?;
    client
        .write_all(&[&header[..], b"payload"].concat())
        .await?;
    timeout(
        scaled(Duration::from_secs(5)),
        transfer::expect_closed(&mut client),
    )
    .await
    .context("the client waits")??;
    let record = scene.record().await?;
    ensure!(record.get("end")? == "header-too-long", "{record:?}");
    scene.expect_no_arrival(Duration::from_millis(300)).await?;
    // The next one is served.
    let pair = scene.open().await?;
    drop(pair);
    Ok(())
}
