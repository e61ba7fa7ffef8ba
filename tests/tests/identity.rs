//! Whom the backend sees: the client that the header names, with its port.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::header::{self, Version};
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Topology};
use limpid_tests::programs::{Engine, Haproxy, Limpid, Nginx, Options};
use limpid_tests::scene::{LISTEN, Scene};
use limpid_tests::suite::{HAPROXY, Lab, NGINX, Need, Suite};
use limpid_tests::transfer::{self, Flow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BPFTOOL: Need = Need::Program("/usr/sbin/bpftool");

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for engine in Engine::ALL {
            for version in Version::ALL {
                suite.test(format!("{version}_{family}_{engine}"), &[], move |lab| {
                    named_client(lab, version, family, engine)
                });
            }
            suite.test(
                format!("same_client_twice_{family}_{engine}"),
                &[],
                move |lab| same_client_twice(lab, family, engine),
            );
            for (name, link, needs) in [
                ("bridge", LinkKind::Bridge, &[][..]),
                ("l3", LinkKind::Tun(Impairment::default()), &[Need::Tun]),
            ] {
                suite.test(
                    format!("behind_{name}_{family}_{engine}"),
                    needs,
                    move |lab| behind(lab, link, family, engine),
                );
            }
            suite.test(
                format!("from_l3_downstream_{family}_{engine}"),
                &[Need::Tun],
                move |lab| from_l3(lab, family, engine),
            );
            for (name, options) in [
                ("v1", "send-proxy"),
                ("v2", "send-proxy-v2"),
                ("v2_tlvs", "send-proxy-v2 proxy-v2-options crc32c,unique-id"),
            ] {
                suite.test(
                    format!("haproxy_{name}_to_nginx_{family}_{engine}"),
                    &[HAPROXY, NGINX],
                    move |lab| haproxy_to_nginx(lab, options, family, engine),
                );
            }
        }
        suite.test(format!("auto_{family}"), &[], move |lab| auto(lab, family));
        suite.test(
            format!("flow_table_is_readable_{family}"),
            &[BPFTOOL],
            move |lab| flow_table_is_readable(lab, family),
        );
        suite.test(
            format!("the_address_of_another_connection_{family}"),
            &[],
            move |lab| address_of_another(lab, family),
        );
        suite.test(format!("two_instances_{family}"), &[], move |lab| {
            two_instances(lab, family)
        });
        suite.test(format!("plain_listener_{family}"), &[], move |lab| {
            plain_listener(lab, family)
        });
        suite.test(format!("mismatch_is_refused_{family}"), &[], move |lab| {
            mismatch_is_refused(lab, family)
        });
        suite.test(format!("mismatch_by_proxy_{family}"), &[], move |lab| {
            mismatch_by_proxy(lab, family)
        });
        suite.test(format!("own_addresses_{family}"), &[], move |lab| {
            headers_without_client(lab, family)
        });
    }
    suite.test("mapped_client_is_an_ipv4_client", &[], mapped);
    suite.run()
}

/// The backend's `accept` returns exactly what the header says.
async fn named_client(lab: Lab, version: Version, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let client = scene.new_client();
    let mut pair = scene.open_as(version, client).await?;
    ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
    scene.wait_for_engine(engine).await?;
    let (up, down) = (Flow::new(10_000, 1), Flow::new(20_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let record = scene
        .records_of(1, engine)
        .await?
        .pop()
        .context("no record")?;
    ensure!(record.get("client")? == client.to_string(), "{record:?}");
    ensure!(
        record.get("peer")? == pair.client.local_addr()?.to_string(),
        "{record:?}"
    );
    ensure!(
        record.get("upstream")? == pair.server.local_addr()?.to_string(),
        "{record:?}"
    );
    ensure!(record.get("bytes_up")? == "10000", "{record:?}");
    ensure!(record.get("bytes_down")? == "20000", "{record:?}");
    for duration in ["header_ms", "connect_ms", "total_ms"] {
        ensure!(
            (0.0..10_000.0).contains(&record.number(duration)?),
            "{record:?}"
        );
    }
    Ok(())
}

/// Two connections at once whose headers name the same client and port: the second takes another
/// port, and neither sees the other's bytes.
async fn same_client_twice(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let client = scene.new_client();
    let mut first = scene.open_as(Version::V2, client).await?;
    let mut second = scene.open_as(Version::V1, client).await?;
    ensure!(
        first.peer == client,
        "the first keeps its port: {}",
        first.peer
    );
    ensure!(
        second.peer.ip() == client.ip() && second.peer != client,
        "{}",
        second.peer
    );
    tokio::try_join!(
        transfer::exchange(
            &mut first.client,
            &mut first.server,
            Flow::new(300_000, 1),
            Flow::new(200_000, 2)
        ),
        transfer::exchange(
            &mut second.client,
            &mut second.server,
            Flow::new(200_000, 3),
            Flow::new(300_000, 4)
        ),
    )?;
    Ok(())
}

/// Backends behind a bridge of the proxy host, and behind a device without Ethernet headers.
async fn behind(lab: Lab, inside: LinkKind, family: Family, engine: Engine) -> Result<()> {
    let plan = Plan {
        inside,
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| options.engine(engine)).await?;
    check(&scene, engine).await
}

/// The same with such a device on the downstream side.
async fn from_l3(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let plan = Plan {
        transit: LinkKind::Tun(Impairment::default()),
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| options.engine(engine)).await?;
    check(&scene, engine).await
}

async fn check(scene: &Scene, engine: Engine) -> Result<()> {
    let client = scene.new_client();
    let mut pair = scene.open_as(Version::V2, client).await?;
    ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
    scene.wait_for_engine(engine).await?;
    let (up, down) = (Flow::new(2_000_000, 1), Flow::new(1_000_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    scene.records_of(1, engine).await.map(drop)
}

/// A real edge and a real backend, neither of which knows of limpid.
async fn haproxy_to_nginx(lab: Lab, send: &str, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    let backend = net.backend_addr(family, 80);
    let nginx = Nginx::http(&net.backend, lab.path(), backend, "")?;
    let listen = net.proxy_addr(family, LISTEN);
    let options = Options::new(listen, backend)
        .accept_proxy(&net.edge_transit_ip(family).to_string())
        .engine(engine);
    let limpid = Limpid::start(&net.proxy, &lab, &options)?;
    let edge = net.edge_addr(family, 8080);
    let _edge = Haproxy::start(&net.edge, lab.path(), (edge, ""), (listen, send))?;
    let mut client = net.client.connect(edge).await?;
    let from = client.local_addr()?;
    // Kept alive, so that the connection outlives the first answer.
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        .await?;
    let mut answer = [0; 15];
    client.read_exact(&mut answer).await?;
    ensure!(&answer == b"HTTP/1.1 200 OK", "{answer:?}");
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(requests[0].remote == from, "{requests:?}, not {from}");
    limpid.wait_for_engine(&net.proxy, engine).await?;
    drop(client);
    let records = limpid.wait_for_access_lines(1).await?;
    ensure!(records[0].get("client")? == from.to_string(), "{records:?}");
    ensure!(records[0].get("engine")? == engine.name(), "{records:?}");
    Ok(())
}

/// `auto` names the engine it took, and where that is not the best one, why.
async fn auto(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| options).await?;
    let client = scene.new_client();
    let mut pair = scene.open_as(Version::V2, client).await?;
    ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
    let (up, down) = (Flow::new(1_000_000, 1), Flow::new(1_000_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let record = scene.record().await?;
    if record.get("engine")? != Engine::Packet.name() {
        ensure!(!record.get("fallback")?.is_empty(), "{record:?}");
    }
    Ok(())
}

/// Two daemons on one host, with instances of their own, on the same interface: the end of the one
/// leaves the other's flows alone.
async fn two_instances(lab: Lab, family: Family) -> Result<()> {
    let mut scene = Scene::start(&lab, family, Engine::Sockmap).await?;
    let backend = scene
        .net
        .backend
        .listen(scene.net.backend_addr(family, 9001))
        .await?;
    let listen = scene.net.proxy_addr(family, 8444);
    let options = Options::new(listen, backend.local_addr()?)
        .accept_proxy(family.everything())
        .engine(Engine::Sockmap);
    let second = Limpid::start_as("second", &scene.net.proxy, &lab, &options)?;
    let client = scene.new_client();
    let mut stream = scene.net.edge.connect(listen).await?;
    stream
        .write_all(&Version::V2.header(client, listen))
        .await?;
    let (mut server, peer) = backend.accept().await?;
    ensure!(peer == client, "seen as {peer}, not {client}");
    let pair = scene.open_as(Version::V2, client).await?;
    ensure!(
        pair.peer.ip() == client.ip(),
        "seen as {}, not {client}",
        pair.peer
    );
    drop(pair);
    let status = scene.limpid.terminate(limpid_tests::process::PATIENCE)?;
    ensure!(status.success(), "{status}");
    let (up, down) = (Flow::new(1_000_000, 1), Flow::new(1_000_000, 2));
    transfer::exchange(&mut stream, &mut server, up, down).await?;
    second.wait_for_access_lines(1).await.map(drop)
}

/// Without headers it is a TCP proxy like others: its own address upstream.
async fn plain_listener(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let scene = Scene::on(net, &lab, family, |options| options).await?;
    let mut pair = scene.open_with(b"").await?;
    ensure!(
        pair.peer.ip() == scene.net.proxy_inside_ip(family),
        "seen as {}",
        pair.peer
    );
    let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await
}

/// A client of the family that the upstream does not have cannot be its source.
async fn mismatch_is_refused(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let scene = Scene::on(net, &lab, family, |options| {
        options.accept_proxy(family.everything())
    })
    .await?;
    let header = mismatched(&scene);
    let mut client = scene.connect().await?;
    client.write_all(&header).await?;
    transfer::expect_closed(&mut client).await?;
    scene.expect_no_arrival(Duration::from_millis(100)).await?;
    let record = scene.record().await?;
    ensure!(
        format!("{record:?}").contains("mismatch"),
        "the reason has a name: {record:?}"
    );
    Ok(())
}

/// It may be told to use its own address then.
async fn mismatch_by_proxy(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let scene = Scene::on(net, &lab, family, |options| {
        options
            .accept_proxy(family.everything())
            .with("--source-mismatch=proxy")
    })
    .await?;
    let header = mismatched(&scene);
    let mut pair = scene.open_with(&header).await?;
    ensure!(
        pair.peer.ip() == scene.net.proxy_inside_ip(family),
        "seen as {}",
        pair.peer
    );
    let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await
}

fn mismatched(scene: &Scene) -> Vec<u8> {
    let other = scene.family.other();
    let client = SocketAddr::new(scene.net.elsewhere(other, 9), 4711);
    header::v2(client, scene.net.proxy_addr(other, LISTEN), &[])
}

/// Rules 14, 16 and 17: headers that name no usable client are accepted, and the other end of the
/// connection is the client.
async fn headers_without_client(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    let load_balancer = header::v2_raw(0x20, 0x11, &[0xea; 84]);
    let headers: [&[u8]; 5] = [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 what ever 0 0\r\n",
        &header::v2_raw(0x20, 0x00, &[]),
        &load_balancer,
        &header::v2_raw(0x21, 0x00, &[]),
    ];
    for header in headers {
        let mut pair = scene.open_with(&[header, b"hello"].concat()).await?;
        let edge = pair.client.local_addr()?;
        ensure!(
            pair.peer == edge,
            "{header:?}: seen as {}, not {edge}",
            pair.peer
        );
        transfer::expect_bytes(&mut pair.server, b"hello").await?;
    }
    Ok(())
}

/// Rule 13: `::ffff:a.b.c.d` under TCP6 is an IPv4 client.
async fn mapped(lab: Lab) -> Result<()> {
    let scene = Scene::start(&lab, Family::V4, Engine::Copy).await?;
    let header = b"PROXY TCP6 ::ffff:203.0.113.5 2001:db8::1 4000 443\r\n";
    let pair = scene.open_with(header).await?;
    ensure!(
        pair.peer.to_string() == "203.0.113.5:4000",
        "seen as {}",
        pair.peer
    );
    Ok(())
}

/// `bpftool map dump` names the fields of a flow: what the README shows.
async fn flow_table_is_readable(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    let client = scene.new_client();
    let _pair = scene.open_as(Version::V2, client).await?;
    let flows = scene.limpid.pins().join("flows");
    let args = ["map", "dump", "pinned", &flows.to_string_lossy(), "--json"];
    let dump = scene.net.proxy.run("bpftool", &args)?;
    let entries: serde_json::Value = serde_json::from_str(&dump)?;
    let entries = entries.as_array().context("no array")?;
    ensure!(entries.len() == 2, "two entries a flow: {dump}");
    for entry in entries {
        let fields = &entry["formatted"];
        ensure!(fields["key"]["src"]["octets"].is_array(), "{dump}");
        for field in ["flow", "packets", "bytes", "last_seen_ns", "action", "seen"] {
            ensure!(fields["value"][field].is_number(), "no {field}: {dump}");
        }
        let ports = [
            &fields["key"]["dst_port"],
            &fields["value"]["rewrite"]["src_port"],
        ];
        ensure!(
            ports.iter().any(|port| **port == client.port()),
            "the client's port is in neither: {dump}"
        );
    }
    Ok(())
}

/// A header that names an address and port which a connection of this very host has towards the
/// backend, or a flow of another instance: whatever becomes of the new one, the old one lives.
async fn address_of_another(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .engine(Engine::Copy)
            .with("--connect-timeout=1500ms")
    })
    .await?;
    let listen = scene.net.proxy_addr(family, 8444);
    let upstream = scene.backend.local_addr()?;
    let options = Options::new(listen, upstream).accept_proxy(family.everything());
    let _second = Limpid::start_as("second", &scene.net.proxy, &lab, &options)?;

    let mut local = scene.net.proxy.connect(upstream).await?;
    let (mut server, _) = scene.accept().await?;
    let mut flow = scene.net.edge.connect(listen).await?;
    let client = scene.new_client();
    flow.write_all(&Version::V2.header(client, listen)).await?;
    let (mut backend, _) = scene.accept().await?;

    for taken in [local.local_addr()?, client] {
        let mut intruder = scene.connect().await?;
        let header = Version::V2.header(taken, scene.address());
        intruder.write_all(&header).await?;
        transfer::expect_closed(&mut intruder).await?;
    }
    let (up, down) = (Flow::new(300_000, 1), Flow::new(300_000, 2));
    transfer::exchange(&mut local, &mut server, up, down)
        .await
        .context("the host's own connection")?;
    transfer::exchange(&mut flow, &mut backend, up, down)
        .await
        .context("the other instance's flow")
}
