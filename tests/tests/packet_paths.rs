//! What lies on the way of flows of the engine `packet`: interfaces of every kind, MTUs that differ,
//! routers that take less, and routes and neighbours that change under open flows.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::header::Version;
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Topology};
use limpid_tests::process::eventually;
use limpid_tests::programs::{Engine, Limpid, Options};
use limpid_tests::scene::{LISTEN, Pair, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled, shrunk};
use limpid_tests::talk::Talks;
use limpid_tests::transfer::{self, Flow};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// An orderly connection does not stand still for longer.
const STALL: Duration = Duration::from_secs(1);

/// A change of the network is over for its flows within that: a retransmission timeout doubles to two
/// seconds, or three, while nothing gets through for one.
const RECOVERY: Duration = Duration::from_secs(5);

/// Connections that are open while the network changes.
const TALKERS: usize = 5;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let tun = || LinkKind::Tun(Impairment::default());
    let plain = Plan::default;
    let plans: Vec<(&str, Plan, &[Need])> = vec![
        (
            "bridge_upstream",
            Plan {
                inside: LinkKind::Bridge,
                ..plain()
            },
            &[],
        ),
        (
            "bridges",
            Plan {
                inside: LinkKind::Bridge,
                transit: LinkKind::Bridge,
                ..plain()
            },
            &[],
        ),
        (
            "l3_upstream",
            Plan {
                inside: tun(),
                ..plain()
            },
            &[Need::Tun],
        ),
        (
            "l3_downstream",
            Plan {
                transit: tun(),
                ..plain()
            },
            &[Need::Tun],
        ),
        (
            "l3_both",
            Plan {
                inside: tun(),
                transit: tun(),
                ..plain()
            },
            &[Need::Tun],
        ),
        (
            "vlan_upstream",
            Plan {
                inside: LinkKind::Vlan,
                ..plain()
            },
            &[Need::Vlan],
        ),
        (
            "vlan_downstream",
            Plan {
                transit: LinkKind::Vlan,
                ..plain()
            },
            &[Need::Vlan],
        ),
        (
            "one_cable",
            Plan {
                one_cable: true,
                ..plain()
            },
            &[],
        ),
    ];
    for family in Family::ALL {
        for (name, plan, needs) in &plans {
            let plan = plan.clone();
            suite.test(format!("{name}_{family}"), needs, move |lab| {
                over(lab, plan, family)
            });
        }
        for (name, transit, inside) in [
            ("upstream", 1500, 1400),
            ("downstream", 1400, 1500),
            ("jumbo_upstream", 1500, 9000),
            ("jumbo_downstream", 9000, 1500),
        ] {
            suite.test(format!("mtu_{name}_{family}"), &[], move |lab| {
                mtu(lab, transit, inside, family)
            });
        }
        for (name, at_once) in [("", false), ("at_once_", true)] {
            suite.test(format!("router_upstream_{name}{family}"), &[], move |lab| {
                router_upstream(lab, at_once, family)
            });
            suite.test(
                format!("router_downstream_{name}{family}"),
                &[],
                move |lab| router_downstream(lab, at_once, family),
            );
        }
        suite.test(format!("own_address_{family}"), &[], move |lab| {
            own_address(lab, family)
        });
        suite.test(format!("any_address_{family}"), &[], move |lab| {
            any_address(lab, family)
        });
        suite.test(format!("backend_moves_{family}"), &[], move |lab| {
            backend_moves(lab, family)
        });
        for interface in ["inside", "transit"] {
            suite.test(format!("{interface}_down_{family}"), &[], move |lab| {
                down_and_up(lab, interface, family)
            });
        }
        suite.test(format!("no_route_{family}"), &[], move |lab| {
            no_route(lab, family)
        });
        for (name, other_cable) in [("", false), ("other_cable_", true)] {
            suite.test(
                format!("gateway_replaced_{name}{family}"),
                &[],
                move |lab| gateway_replaced(lab, other_cable, family),
            );
        }
        suite.test(format!("same_host_{family}"), &[], move |lab| {
            same_host(lab, family)
        });
    }
    suite.run()
}

fn packet(options: Options) -> Options {
    options.engine(Engine::Packet)
}

/// A few bytes, then bulk both ways, over whatever `plan` has.
async fn over(lab: Lab, plan: Plan, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &plan, packet).await?;
    let client = scene.new_client();
    let mut pair = scene.open_as(Version::V2, client).await?;
    ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
    scene.wait_for_engine(Engine::Packet).await?;
    bulk_without_a_stall(&mut pair, shrunk(8 << 20)).await?;
    close(&scene, pair).await
}

/// Bulk both ways at once. No reader waits for longer than [`STALL`].
async fn bulk_without_a_stall(pair: &mut Pair, size: u64) -> Result<()> {
    let (up, down) = (Flow::new(size, 1), Flow::new(size + 1, 2));
    let (mut client_read, mut client_write) = pair.client.split();
    let (mut server_read, mut server_write) = pair.server.split();
    let done = tokio::try_join!(
        up.send(&mut client_write),
        steadily("client to backend", up, &mut server_read),
        down.send(&mut server_write),
        steadily("backend to client", down, &mut client_read),
    );
    done.map(|_| ())
}

/// Receives and checks all of `flow`.
async fn steadily(direction: &str, flow: Flow, from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let mut buffer = vec![0; flow.read_size];
    let mut offset = 0;
    while offset < flow.length {
        let most = buffer.len().min(usize::try_from(flow.length - offset)?);
        let read = timeout(scaled(STALL), from.read(&mut buffer[..most]));
        let length = read
            .await
            .with_context(|| format!("{direction}: stands still after {offset} bytes"))??;
        ensure!(length > 0, "{direction}: ended after {offset} bytes");
        flow.pattern.check(offset, &buffer[..length])?;
        offset += length as u64;
    }
    Ok(())
}

/// Ends a flow that must have been the engine's.
async fn close(scene: &Scene, mut pair: Pair) -> Result<()> {
    let nothing = Flow::new(0, 0);
    transfer::exchange(&mut pair.client, &mut pair.server, nothing, nothing).await?;
    let record = scene.record_of(Engine::Packet).await?;
    ensure!(record.get("end")? == "fin", "{record:?}");
    Ok(())
}

/// A network whose cables take packets of these sizes.
fn with_mtus(transit: u16, inside: u16) -> Result<Topology> {
    let net = Topology::standard()?;
    for (host, interface, mtu) in [
        (&net.edge, "transit", transit),
        (&net.proxy, "transit", transit),
        (&net.proxy, "inside", inside),
        (&net.backend, "eth0", inside),
    ] {
        host.ip(&format!("link set {interface} mtu {mtu}"))?;
    }
    Ok(net)
}

/// Neither side may send what the other cable does not take.
async fn mtu(lab: Lab, transit: u16, inside: u16, family: Family) -> Result<()> {
    let net = with_mtus(transit, inside)?;
    let scene = Scene::on(net, &lab, family, |options| {
        packet(options.accept_proxy(family.everything()))
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    bulk_without_a_stall(&mut pair, shrunk(16 << 20)).await?;
    close(&scene, pair).await
}

/// A router before the backend takes less than both cables of the proxy: what it says to the client that
/// it has never heard of must reach the real one; and the proxy's own socket, where bytes are sent `at_once`
/// and it hands them over.
async fn router_upstream(lab: Lab, at_once: bool, family: Family) -> Result<()> {
    let plan = Plan {
        router_mtu: Some(1300),
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, packet).await?;
    let mut pair = scene.open().await?;
    if !at_once {
        scene.wait_for_no_sockets().await?;
    }
    bulk_without_a_stall(&mut pair, shrunk(4 << 20)).await?;
    let client = scene.net.edge.sh("ss -tinH state established")?;
    ensure!(
        client.contains("pmtu:1300"),
        "the client has not learned it: {client}"
    );
    close(&scene, pair).await
}

/// The same on the other side: the edge is the router, and the connection comes from behind it.
async fn router_downstream(lab: Lab, at_once: bool, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), packet).await?;
    scene.net.enable_forwarding()?;
    let client = scene.net.client_ip(family);
    scene
        .net
        .edge
        .ip(&format!("route add {client} dev outside mtu 1300"))?;
    let mut pair = open_from_behind_the_edge(&scene).await?;
    if !at_once {
        scene.wait_for_no_sockets().await?;
    }
    bulk_without_a_stall(&mut pair, shrunk(4 << 20)).await?;
    let backend = scene.net.backend.sh("ss -tinH state established")?;
    ensure!(
        backend.contains("pmtu:1300"),
        "the backend has not learned it: {backend}"
    );
    close(&scene, pair).await
}

async fn open_from_behind_the_edge(scene: &Scene) -> Result<Pair> {
    let client = scene.net.client.connect(scene.address()).await?;
    scene.open_over(client, &scene.header()).await
}

/// Without headers, under the proxy's own address: the other role. Each of many flows has a port of its own.
async fn own_address(lab: Lab, family: Family) -> Result<()> {
    const FLOWS: usize = 100;
    let scene = Scene::on(Topology::standard()?, &lab, family, packet).await?;
    let mut ports = HashSet::new();
    let mut open = Vec::new();
    for n in 0..FLOWS {
        let mut pair = scene.open_with(b"").await?;
        ensure!(
            pair.peer.ip() == scene.net.proxy_inside_ip(family),
            "seen as {}",
            pair.peer
        );
        let flow = Flow::new(10_000, n as u64);
        tokio::try_join!(flow.send(&mut pair.client), flow.receive(&mut pair.server))?;
        ports.insert(pair.peer.port());
        open.push(pair);
    }
    ensure!(ports.len() == FLOWS, "{} ports", ports.len());
    scene.wait_for_no_sockets().await?;
    let mut last = open.pop().context("no flow")?;
    bulk_without_a_stall(&mut last, shrunk(8 << 20)).await?;
    open.push(last);
    drop(open);
    for record in scene.records_of(FLOWS, Engine::Packet).await? {
        ensure!(record.get("end")? == "fin", "{record:?}");
    }
    Ok(())
}

/// A listener on `[::]` takes connections of both versions of IP.
async fn any_address(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let upstream = net.backend_addr(family, UPSTREAM);
    let backend = net.backend.listen(upstream).await?;
    let listen = SocketAddr::new(Family::V6.unspecified(), LISTEN);
    let options = packet(Options::new(listen, upstream)).accept_proxy(family.everything());
    let limpid = Limpid::start(&net.proxy, &lab, &options)?;
    let address = net.proxy_addr(family, LISTEN);
    let who = SocketAddr::new(net.elsewhere(family, 7), 4711);
    let mut client = net.edge.connect(address).await?;
    client.write_all(&Version::V2.header(who, address)).await?;
    let (mut server, peer) = backend.accept().await?;
    ensure!(peer == who, "seen as {peer}, not {who}");
    limpid.wait_for_engine(&net.proxy, Engine::Packet).await?;
    let (up, down) = (Flow::new(500_000, 1), Flow::new(600_000, 2));
    transfer::exchange(&mut client, &mut server, up, down).await?;
    let records = limpid.wait_for_access_lines(1).await?;
    let record = records.first().context("no record")?;
    record.ensure_carried_by(Engine::Packet)?;
    ensure!(
        record.get("peer")? == client.local_addr()?.to_string(),
        "{record:?}"
    );
    Ok(())
}

/// A client on the proxy host itself never passes an interface: another engine, with a reason.
async fn same_host(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), packet).await?;
    let client = scene.net.proxy.connect(scene.address()).await?;
    let mut pair = scene.open_over(client, &scene.header()).await?;
    let (up, down) = (Flow::new(500_000, 1), Flow::new(600_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let record = scene.record().await?;
    ensure!(record.get("engine")? != Engine::Packet.name(), "{record:?}");
    ensure!(record.get("fallback")? == "not-attached", "{record:?}");
    Ok(())
}

/// Some connections that talk all the time, from behind the edge, all of them spliced.
async fn talking(scene: &Scene) -> Result<Talks> {
    scene.net.enable_forwarding()?;
    let mut streams: Vec<TcpStream> = Vec::new();
    for _ in 0..TALKERS {
        let mut stream = scene.net.client.connect(scene.address()).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&scene.header()).await?;
        streams.push(stream);
    }
    scene.wait_for_engine(Engine::Packet).await?;
    let talks = Talks::start(&scene.net.client, streams, Duration::from_millis(5));
    go_on(&talks, "before the change").await?;
    Ok(talks)
}

/// Waits until every connection has made some exchanges more.
async fn go_on(talks: &Talks, when: &str) -> Result<()> {
    let before = talks.exchanges();
    let begun = Instant::now();
    eventually(&format!("connections talk {when}"), || {
        Ok(talks.exchanges() > before + 20 * TALKERS as u64)
    })
    .await?;
    let took = begun.elapsed();
    ensure!(took < scaled(RECOVERY), "they talk {when} after {took:?}");
    Ok(())
}

/// All must have gone on, and end as they should.
async fn all_went_on(scene: &Scene, talks: Talks) -> Result<()> {
    go_on(&talks, "after the change").await?;
    println!("the longest wait was {:?}", talks.longest());
    ensure!(
        talks.longest() < scaled(RECOVERY),
        "one waited for {:?}",
        talks.longest()
    );
    drop(talks.stop().await?);
    for record in scene.records_of(TALKERS, Engine::Packet).await? {
        ensure!(record.get("end")? == "fin", "{record:?}");
    }
    Ok(())
}

/// The backend's address is answered for by another interface.
async fn backend_moves(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), packet).await?;
    let _echo = scene.echo()?;
    let talks = talking(&scene).await?;
    scene
        .net
        .backend
        .ip("link set eth0 address 02:00:00:00:00:42")?;
    scene.net.proxy.ip("neigh flush dev inside")?;
    all_went_on(&scene, talks).await
}

/// An interface is taken down, and comes back after a second with its addresses and routes.
async fn down_and_up(lab: Lab, interface: &'static str, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), packet).await?;
    let proxy = &scene.net.proxy;
    proxy.sysctl(&format!("net/ipv6/conf/{interface}/keep_addr_on_down"), "1")?;
    let _echo = scene.echo()?;
    let talks = talking(&scene).await?;
    let defaults =
        ["-4", "-6"].map(|version| proxy.sh(&format!("ip {version} route show default")));
    proxy.ip(&format!("link set {interface} down"))?;
    sleep(Duration::from_secs(1)).await;
    proxy.ip(&format!("link set {interface} up"))?;
    if interface == "transit" {
        // What a network manager would do.
        for (version, default) in ["-4", "-6"].iter().zip(defaults) {
            let default = default?.replace(" linkdown", "");
            proxy.ip(&format!("{version} route replace {default}"))?;
        }
    }
    all_went_on(&scene, talks).await
}

/// The clients' gateway is replaced by another, and the old one no longer forwards. On the same cable
/// flows go on; where the interface is another one too, they may end instead, with a name.
async fn gateway_replaced(lab: Lab, other_cable: bool, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), packet).await?;
    let _echo = scene.echo()?;
    let (edge, proxy) = (&scene.net.edge, &scene.net.proxy);
    let second = second_gateway(&scene, other_cable, family)?;
    let talks = talking(&scene).await?;
    // By the old way no answer passes any more.
    edge.sh("nft add table inet old")?;
    edge.sh("nft add chain inet old forward { type filter hook forward priority 0 ; }")?;
    edge.sh("nft add rule inet old forward iifname transit drop")?;
    let version = if family == Family::V4 { "-4" } else { "-6" };
    proxy.ip(&format!("{version} route replace default {second}"))?;
    if !other_cable {
        return all_went_on(&scene, talks).await;
    }
    match go_on(&talks, "over the other cable").await {
        Ok(()) => all_went_on(&scene, talks).await,
        Err(stuck) => {
            for record in scene
                .records_of(TALKERS, Engine::Packet)
                .await
                .context(stuck)?
            {
                ensure!(record.get("end")? != "fin", "{record:?}");
            }
            Ok(())
        }
    }
}

/// The route to the clients goes, and does not come back: their flows end with a name, and the backend is
/// told.
async fn no_route(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), packet).await?;
    scene.net.enable_forwarding()?;
    let mut pair = open_from_behind_the_edge(&scene).await?;
    scene.wait_for_no_sockets().await?;
    let version = if family == Family::V4 { "-4" } else { "-6" };
    scene
        .net
        .proxy
        .ip(&format!("{version} route del default"))?;
    // It is waited for ten seconds.
    timeout(
        scaled(Duration::from_secs(20)),
        transfer::expect_reset(&mut pair.server),
    )
    .await
    .context("the backend was not told")??;
    let record = scene.record_of(Engine::Packet).await?;
    ensure!(record.get("end")? == "downstream-unroutable", "{record:?}");
    Ok(())
}

/// A second interface of the edge, on the same cable or on one of its own; returns the route by it.
fn second_gateway(scene: &Scene, other_cable: bool, family: Family) -> Result<String> {
    let (edge, proxy) = (&scene.net.edge, &scene.net.proxy);
    let (gateway, near, bits) = match (family, other_cable) {
        (Family::V4, false) => ("198.51.100.3", None, 24),
        (Family::V6, false) => ("2001:db8:a::3", None, 64),
        (Family::V4, true) => ("198.18.1.2", Some("198.18.1.1"), 24),
        (Family::V6, true) => ("2001:db8:e::2", Some("2001:db8:e::1"), 64),
    };
    let interface = if let Some(near) = near {
        proxy.ip(&format!(
            "link add second type veth peer name second netns {}",
            edge.namespace().display()
        ))?;
        proxy.ip("link set second up")?;
        proxy.ip(&format!("addr add {near}/{bits} dev second"))?;
        "second"
    } else {
        edge.ip("link add link transit name second type macvlan mode bridge")?;
        "transit"
    };
    edge.ip("link set second up")?;
    edge.ip(&format!("addr add {gateway}/{bits} dev second"))?;
    // Each interface answers for its own address alone.
    edge.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    // It takes packets from anywhere: the clients are not behind that interface.
    edge.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    edge.sysctl("net/ipv4/conf/second/rp_filter", "0")?;
    Ok(format!("via {gateway} dev {interface}"))
}
