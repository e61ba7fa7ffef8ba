//! The engine `packet`, where it differs from those that have sockets: the switch in the middle of
//! traffic, and the translation of all that a TCP header says.
//!
//! Its ends are in `packet_ends.rs`, what lies on its way in `packet_paths.rs`, what it leaves behind in
//! `packet_traces.rs`, and its life without the daemon in `survival.rs`. All that the engines have in
//! common runs over each of them elsewhere.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::firewall;
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Segment, Topology};
use limpid_tests::process::eventually;
use limpid_tests::programs::{AccessLine, Engine};
use limpid_tests::repair;
use limpid_tests::scene::{Pair, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled, shrunk};
use limpid_tests::talk;
use limpid_tests::transfer::{self, Flow};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// No splice may make anybody wait for longer.
const STALL: Duration = Duration::from_secs(1);

/// Bulk takes a fraction of it.
const BULK: Duration = Duration::from_secs(20);

/// Some loss, in both directions.
const LOSSY: Impairment = Impairment {
    seed: 6,
    loss: 0.01,
    duplicate: 0.0,
    reorder: 0.0,
    overlap: 0.0,
    delay: Duration::from_micros(500),
    mss: None,
};

/// Where a setting is made.
#[derive(Clone, Copy, Debug)]
enum On {
    Client,
    Proxy,
    Backend,
}

/// TCP settings that are not the default, by host.
type Settings = &'static [(On, &'static str, &'static str)];

/// Connections whose legs offer different things. Those of the second list get another engine.
const TRANSLATED: &[(&str, Settings)] = {
    use On::{Backend, Client, Proxy};
    &[
        ("client_no_timestamps", &[(Client, "tcp_timestamps", "0")]),
        ("client_no_sack", &[(Client, "tcp_sack", "0")]),
        (
            "client_neither",
            &[(Client, "tcp_timestamps", "0"), (Client, "tcp_sack", "0")],
        ),
        (
            "nobody_has_timestamps",
            &[
                (Client, "tcp_timestamps", "0"),
                (Backend, "tcp_timestamps", "0"),
            ],
        ),
        (
            "nobody_has_sack",
            &[(Client, "tcp_sack", "0"), (Backend, "tcp_sack", "0")],
        ),
        ("proxy_no_timestamps", &[(Proxy, "tcp_timestamps", "0")]),
        ("proxy_no_sack", &[(Proxy, "tcp_sack", "0")]),
        (
            "client_no_window_scaling",
            &[(Client, "tcp_window_scaling", "0")],
        ),
        (
            "backend_no_window_scaling",
            &[(Backend, "tcp_window_scaling", "0")],
        ),
        (
            "wide_client",
            &[
                (Client, "tcp_rmem", "4096 131072 268435456"),
                (Backend, "tcp_rmem", "4096 30000 60000"),
            ],
        ),
        (
            "wide_backend",
            &[
                (Backend, "tcp_rmem", "4096 131072 268435456"),
                (Client, "tcp_rmem", "4096 30000 60000"),
            ],
        ),
        ("narrow_proxy", &[(Proxy, "tcp_rmem", "4096 30000 60000")]),
        ("ecn_of_the_client", &[(Client, "tcp_ecn", "1")]),
        (
            "ecn_everywhere",
            &[(Client, "tcp_ecn", "1"), (Proxy, "tcp_ecn", "1")],
        ),
    ]
};
const NOT_TRANSLATED: &[(&str, Settings, &str)] = {
    use On::{Backend, Client, Proxy};
    &[
        (
            "backend_no_timestamps",
            &[(Backend, "tcp_timestamps", "0")],
            "options-differ",
        ),
        (
            "backend_no_sack",
            &[(Backend, "tcp_sack", "0")],
            "options-differ",
        ),
        (
            // Windows in units of 16 KiB, and one that is smaller.
            "tiny_window",
            &[
                (Proxy, "tcp_rmem", "4096 131072 1073741824"),
                (Client, "tcp_rmem", "4096 8192 8192"),
            ],
            "window-too-small",
        ),
    ]
};

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for (name, held) in [("", true), ("at_once_", false)] {
            suite.test(format!("switch_in_bulk_{name}{family}"), &[], move |lab| {
                switch_in_bulk(lab, LinkKind::Veth, shrunk(32 << 20), held, family)
            });
        }
        suite.test(
            format!("switch_in_lossy_bulk_{family}"),
            &[Need::Tun],
            move |lab| switch_in_bulk(lab, LinkKind::Tap(LOSSY), shrunk(2 << 20), true, family),
        );
        suite.test(format!("switch_under_talk_{family}"), &[], move |lab| {
            switch_under_talk(lab, family)
        });
        for (name, settings) in TRANSLATED {
            suite.test(format!("options_{name}_{family}"), &[], move |lab| {
                translated(lab, settings, family)
            });
        }
        for (name, settings, reason) in NOT_TRANSLATED {
            suite.test(format!("options_{name}_{family}"), &[], move |lab| {
                not_translated(lab, settings, reason, family)
            });
        }
        suite.test(
            format!("smaller_segments_{family}"),
            &[Need::Tun],
            move |lab| smaller_segments(lab, family),
        );
        suite.test(
            format!("multipath_client_{family}"),
            &[Need::File("/proc/sys/net/mptcp/enabled")],
            move |lab| multipath_client(lab, family),
        );
        for (name, link, needs) in [
            ("", LinkKind::Veth, &[][..]),
            ("lossy_", LinkKind::Tap(LOSSY), &[Need::Tun]),
        ] {
            suite.test(
                format!("sequence_wraps_{name}{family}"),
                needs,
                move |lab| sequence_wraps(lab, link, family),
            );
        }
        suite.test(
            format!("timestamps_of_the_client_wrap_{family}"),
            &[],
            move |lab| timestamps_of_the_client_wrap(lab, family),
        );
        suite.test(
            format!("timestamps_of_the_backend_wrap_{family}"),
            &[],
            move |lab| timestamps_of_the_backend_wrap(lab, family),
        );
        suite.test(format!("first_payload_{family}"), &[], move |lab| {
            first_payload(lab, family)
        });
        suite.test(
            format!("bytes_count_once_{family}"),
            &[Need::Tun],
            move |lab| bytes_count_once(lab, family),
        );
        suite.test(format!("keepalive_{family}"), &[], move |lab| {
            keepalive(lab, family)
        });
        suite.test(format!("thousand_random_sizes_{family}"), &[], move |lab| {
            thousand_random_sizes(lab, family)
        });
    }
    suite.run()
}

/// The payload that a record must name, and the engine.
fn ensure_counted(record: &AccessLine, up: u64, down: u64) -> Result<()> {
    record.ensure_carried_by(Engine::Packet)?;
    for (field, bytes) in [("bytes_up", up), ("bytes_down", down)] {
        ensure!(
            record.get(field)? == bytes.to_string(),
            "{field} is not {bytes}: {record:?}"
        );
    }
    Ok(())
}

/// Both directions of a connection at once, neither ended.
async fn both_ways(
    client: &mut TcpStream,
    server: &mut TcpStream,
    up: Flow,
    down: Flow,
) -> Result<()> {
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    let done = tokio::try_join!(
        up.send(&mut client_write),
        up.receive(&mut server_read),
        down.send(&mut server_write),
        down.receive(&mut client_read),
    );
    done.map(|_| ())
}

/// Both directions are full when the switch comes. Where the upstream is `held` back, the client has filled
/// all buffers by then, and the guards have as much to hand over as fits; else it has just begun.
async fn switch_in_bulk(
    lab: Lab,
    inside: LinkKind,
    size: u64,
    held: bool,
    family: Family,
) -> Result<()> {
    const FLOWS: u64 = 4;
    let plan = Plan {
        inside,
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| {
        options.engine(Engine::Packet)
    })
    .await?;
    let deaf = if held {
        Some(firewall::Deaf::to_new(&scene.net.backend, UPSTREAM)?)
    } else {
        None
    };
    let (up, down) = (Flow::new(size, 1), Flow::new(size + 1, 2));
    let mut clients = JoinSet::new();
    for n in 0..FLOWS {
        let mut client = scene.enter().await?;
        clients.spawn(async move {
            let (mut read, mut write) = client.split();
            tokio::try_join!(up.send_to_end(&mut write), down.receive_to_end(&mut read))
                .with_context(|| format!("client {n}"))
        });
    }
    if let Some(deaf) = deaf {
        scene.wait_for_unanswered(FLOWS as usize).await?;
        wait_for_payload(&scene.net, FLOWS as usize).await?;
        deaf.end()?;
    }
    let mut servers = JoinSet::new();
    for n in 0..FLOWS {
        let (mut server, _) = scene.accept().await?;
        servers.spawn(async move {
            let (mut read, mut write) = server.split();
            tokio::try_join!(down.send_to_end(&mut write), up.receive_to_end(&mut read))
                .with_context(|| format!("backend {n}"))
        });
    }
    let done = async {
        while let Some(end) = servers.join_next().await {
            end??;
        }
        while let Some(end) = clients.join_next().await {
            end??;
        }
        Ok::<_, anyhow::Error>(())
    };
    timeout(scaled(BULK), done)
        .await
        .context("bulk stands still")
        .and_then(|done| done)
        .with_context(|| format!("{:#?}", scene.limpid.flows(&scene.net.proxy)))?;
    for record in scene.records_of(FLOWS as usize, Engine::Packet).await? {
        ensure_counted(&record, up.length, down.length)?;
    }
    Ok(())
}

/// Waits until the proxy holds payload of so many connections: more than a segment each.
async fn wait_for_payload(net: &Topology, connections: usize) -> Result<()> {
    const WAITING: u64 = 64 << 10;
    eventually("the proxy holds payload of every flow", || {
        let queues = receive_queues(net)?;
        Ok(queues.iter().filter(|queue| **queue > WAITING).count() == connections)
    })
    .await
}

/// What lies unread in each of the proxy's sockets, in bytes.
fn receive_queues(net: &Topology) -> Result<Vec<u64>> {
    let sockets = net.proxy.sh("ss -tnH state established")?;
    let queues = sockets
        .lines()
        .map(|line| line.split_whitespace().next().unwrap_or_default());
    queues
        .map(|queue| queue.parse().with_context(|| sockets.clone()))
        .collect()
}

/// Many small connections in closed loops, each of which is switched while its client talks.
async fn switch_under_talk(lab: Lab, family: Family) -> Result<()> {
    const AT_ONCE: usize = 30;
    const EXCHANGES: u64 = 30;
    let scene = Arc::new(Scene::start(&lab, family, Engine::Packet).await?);
    let _echo = scene.echo()?;
    let connections = shrunk(300);
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut talks = JoinSet::new();
    for seed in 0..connections {
        let (scene, turns) = (Arc::clone(&scene), Arc::clone(&turns));
        talks.spawn(async move {
            let _turn = turns.acquire().await?;
            let mut stream = scene.enter().await?;
            let mut longest = Duration::ZERO;
            for round in 0..EXCHANGES {
                longest = longest.max(talk::exchange(&mut stream, seed, round).await?);
            }
            stream.shutdown().await?;
            transfer::expect_end(&mut stream).await?;
            Ok::<_, anyhow::Error>(longest)
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(talk) = talks.join_next().await {
        longest = longest.max(talk??);
    }
    println!("{family}: the longest exchange took {longest:?}");
    ensure!(longest < scaled(STALL), "an exchange took {longest:?}");
    let count = usize::try_from(connections)?;
    scene.records_of(count, Engine::Packet).await.map(drop)
}

/// A scene with these settings, and one connection.
async fn with_settings(lab: &Lab, settings: Settings, family: Family) -> Result<Scene> {
    let net = Topology::standard()?;
    for (on, name, value) in settings {
        let host = match on {
            On::Client => &net.edge,
            On::Proxy => &net.proxy,
            On::Backend => &net.backend,
        };
        host.sysctl(&format!("net/ipv4/{name}"), value)?;
    }
    Scene::on(net, lab, family, |options| {
        options
            .accept_proxy(family.everything())
            .engine(Engine::Packet)
    })
    .await
}

/// Whatever the sides agree on is translated.
async fn translated(lab: Lab, settings: Settings, family: Family) -> Result<()> {
    let scene = with_settings(&lab, settings, family).await?;
    let pair = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    windows_close_and_open(&scene, pair).await
}

/// Readers that stop for a while in the middle of bulk, so that the windows that they offer become small,
/// and nothing, and large again. Ends the flow.
async fn windows_close_and_open(scene: &Scene, mut pair: Pair) -> Result<()> {
    let mut slow = Flow::new(shrunk(4 << 20), 1);
    slow.read_size = 40_000;
    slow.read_pause = Duration::from_millis(2);
    both_ways(&mut pair.client, &mut pair.server, slow, slow).await?;
    let fast = Flow::new(shrunk(16 << 20), 2);
    transfer::exchange(&mut pair.client, &mut pair.server, fast, fast).await?;
    let bytes = slow.length + fast.length;
    ensure_counted(&scene.record().await?, bytes, bytes)
}

/// A client that offers several paths (RFC 8684) is answered as if it had not.
async fn multipath_client(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let address = scene.address();
    let connect = async move {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP))?;
        socket.connect(&address.into())?;
        socket.set_nonblocking(true)?;
        TcpStream::from_std(socket.into())
    };
    let client = scene.net.edge.spawn(connect).await??;
    let pair = scene.open_over(client, &scene.header()).await?;
    scene.wait_for_engine(Engine::Packet).await?;
    windows_close_and_open(&scene, pair).await
}

/// What the client has been promised and the backend does not do cannot be taken back.
async fn not_translated(lab: Lab, settings: Settings, reason: &str, family: Family) -> Result<()> {
    let scene = with_settings(&lab, settings, family).await?;
    falls_back(&scene, reason).await
}

/// Another engine takes the flow, and the record says why.
async fn falls_back(scene: &Scene, reason: &str) -> Result<()> {
    let mut pair = scene.open().await?;
    let (up, down) = (Flow::new(1 << 20, 1), Flow::new(1 << 20, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let record = scene.record().await?;
    ensure!(record.get("engine")? != Engine::Packet.name(), "{record:?}");
    ensure!(
        record.get("fallback")? == reason,
        "not {reason}: {record:?}"
    );
    Ok(())
}

/// A wire before the backend that makes it ask for smaller segments than the client has been told of.
async fn smaller_segments(lab: Lab, family: Family) -> Result<()> {
    let plan = Plan {
        inside: LinkKind::Tap(Impairment {
            mss: Some(800),
            ..Impairment::default()
        }),
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| {
        options.engine(Engine::Packet)
    })
    .await?;
    falls_back(&scene, "segments-differ").await
}

/// The client's sequence numbers start again at 0 in the middle of its bytes; where segments get lost,
/// SACK blocks lie on both sides of that.
async fn sequence_wraps(lab: Lab, transit: LinkKind, family: Family) -> Result<()> {
    let size = match &transit {
        LinkKind::Tap(_) => shrunk(2 << 20),
        _ => shrunk(32 << 20),
    };
    let plan = Plan {
        transit,
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| {
        options.engine(Engine::Packet)
    })
    .await?;
    let sequence = 0u32.wrapping_sub(u32::try_from(size / 2)?);
    let edge = &scene.net.edge;
    let client = edge
        .connect_with(scene.address(), repair::begin_at(sequence))
        .await?;
    let mut pair = scene.open_over(client, &scene.header()).await?;
    scene.wait_for_engine(Engine::Packet).await?;
    let (up, down) = (Flow::new(size, 1), Flow::new(size, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    for counts in scene.net.wire_counts(Segment::Transit) {
        ensure!(counts.lost > 0, "the wire was good: {counts:?}");
    }
    ensure_counted(&scene.record().await?, size, size)
}

/// How far before their wrap timestamps are set, in their unit.
const BEFORE_THE_WRAP: u32 = 1500;

/// The client's timestamps are about to wrap when the switch comes.
async fn timestamps_of_the_client_wrap(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let mut client = scene.connect().await?;
    let header = scene.header();
    let target = 0u32.wrapping_sub(BEFORE_THE_WRAP);
    // The proxy must see every step before the next: a byte of the header each.
    let steps = repair::steps_to(&client, target)?;
    for (value, byte) in steps.into_iter().zip(&header) {
        repair::set_timestamp(&client, value)?;
        client.write_all(&[*byte]).await?;
        sleep(Duration::from_millis(50)).await;
    }
    let pair = scene.open_over(client, &header[steps.len()..]).await?;
    scene.wait_for_engine(Engine::Packet).await?;
    ensure!(
        repair::timestamp(&pair.client)? >= 1 << 31,
        "wrapped before the switch"
    );
    past_the_wrap(&scene, pair.client, pair.server, true).await
}

/// The backend's are put there after the switch: a jump is translated like anything else.
async fn timestamps_of_the_backend_wrap(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    let target = 0u32.wrapping_sub(BEFORE_THE_WRAP);
    for value in repair::steps_to(&pair.server, target)? {
        repair::set_timestamp(&pair.server, value)?;
        pair.server.write_all(b"x").await?;
        transfer::expect_bytes(&mut pair.client, b"x").await?;
    }
    past_the_wrap(&scene, pair.client, pair.server, false).await
}

/// Bytes both ways before, during and after the wrap of one end's timestamps.
async fn past_the_wrap(
    scene: &Scene,
    mut client: TcpStream,
    mut server: TcpStream,
    of_the_client: bool,
) -> Result<()> {
    let mut rounds_after = 0;
    for round in 0.. {
        let watched = if of_the_client { &client } else { &server };
        rounds_after += u32::from(repair::timestamp(watched)? < 1 << 31);
        if rounds_after > 20 {
            break;
        }
        let (up, down) = (Flow::new(100_000, round), Flow::new(100_000, round + 1));
        both_ways(&mut client, &mut server, up, down)
            .await
            .with_context(|| format!("round {round}, {rounds_after} after the wrap"))?;
        sleep(Duration::from_millis(20)).await;
    }
    drop((client, server));
    scene.record_of(Engine::Packet).await.map(drop)
}

/// Where the first payload is: with the header, behind it, only the backend's, none at all.
async fn first_payload(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let early = Flow::new(700, 9);
    let mut bytes = scene.header();
    let header = bytes.len();
    bytes.resize(header + 700, 0);
    early.pattern.fill(0, &mut bytes[header..]);
    let mut with_it = scene.open_with(&bytes).await?;
    early.receive(&mut with_it.server).await?;

    let mut behind_it = scene.enter().await?;
    early.send(&mut behind_it).await?;
    let (mut server, _) = scene.accept().await?;
    early.receive(&mut server).await?;

    let mut backend_first = scene.open().await?;
    early.send(&mut backend_first.server).await?;
    early.receive(&mut backend_first.client).await?;

    let silent = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    for pair in [&mut with_it, &mut backend_first] {
        let flow = Flow::new(300_000, 4);
        both_ways(&mut pair.client, &mut pair.server, flow, flow).await?;
    }
    drop((silent, with_it, backend_first, behind_it, server));
    let records = scene.records_of(4, Engine::Packet).await?;
    let mut bytes = Vec::new();
    for record in &records {
        bytes.push((record.get("bytes_up")?, record.get("bytes_down")?));
    }
    bytes.sort();
    let mut expected = [(300_700, 300_000), (700, 0), (300_000, 300_700), (0, 0)]
        .map(|(up, down): (u32, u32)| (up.to_string(), down.to_string()));
    expected.sort();
    ensure!(bytes == expected, "{bytes:?}, not {expected:?}");
    Ok(())
}

/// Bytes are counted when they are new: not what is sent again, nor what the wire repeats.
async fn bytes_count_once(lab: Lab, family: Family) -> Result<()> {
    let bad = LinkKind::Tap(Impairment {
        duplicate: 0.05,
        reorder: 0.02,
        overlap: 0.1,
        ..LOSSY
    });
    let plan = Plan {
        transit: bad.clone(),
        inside: bad,
        mss: Some(600),
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| {
        options.engine(Engine::Packet)
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    let (up, down) = (
        Flow::new(shrunk(1 << 20) + 17, 1),
        Flow::new(shrunk(2 << 20) + 5, 2),
    );
    both_ways(&mut pair.client, &mut pair.server, up, down).await?;
    let flows = scene.limpid.flows(&scene.net.proxy)?;
    let flow = flows.first().context("no flow")?;
    ensure!(
        flow["bytes_up"] == up.length && flow["bytes_down"] == down.length,
        "{} up, {} down: {flow}",
        up.length,
        down.length
    );
    for segment in [Segment::Transit, Segment::Inside] {
        for counts in scene.net.wire_counts(segment) {
            let bad = counts.lost > 0 && counts.duplicated > 0 && counts.overlapped > 0;
            ensure!(bad, "the wire was good: {counts:?}");
        }
    }
    drop(pair);
    ensure_counted(&scene.record().await?, up.length, down.length)
}

/// Probes of one end are answered by the other, and keep the flow from being idle, but are no bytes.
async fn keepalive(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(Engine::Packet).with("--idle-timeout=2s")
    })
    .await?;
    let Pair {
        mut client,
        mut server,
        ..
    } = scene.open().await?;
    scene.wait_for_no_sockets().await?;
    // Without an answer, an end gives up after two seconds.
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1))
        .with_retries(1);
    for end in [&client, &server] {
        SockRef::from(end).set_tcp_keepalive(&probes)?;
    }
    sleep(Duration::from_secs(5)).await;
    let some = Flow::new(100, 1);
    both_ways(&mut client, &mut server, some, some)
        .await
        .context("after five seconds of probes")?;
    for end in [&client, &server] {
        SockRef::from(end).set_keepalive(false)?;
    }
    let begun = Instant::now();
    for end in [&mut client, &mut server] {
        timeout(scaled(Duration::from_secs(4)), transfer::expect_reset(end))
            .await
            .context("idle, and not closed")??;
    }
    let took = begun.elapsed();
    ensure!(took > Duration::from_millis(1800), "closed after {took:?}");
    let record = scene.record().await?;
    ensure!(record.get("end")? == "idle-timeout", "{record:?}");
    ensure_counted(&record, some.length, some.length)
}

/// A thousand at once, each with sizes of its own.
async fn thousand_random_sizes(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let count = usize::try_from(shrunk(1000))?;
    let mut random = fastrand::Rng::with_seed(12);
    let mut transfers = JoinSet::new();
    let mut total = (0, 0);
    for n in 0..count as u64 {
        let mut size = || match random.u8(0..8) {
            0 => 0,
            1..6 => random.u64(0..20_000),
            _ => random.u64(0..shrunk(400_000)),
        };
        let (up, down) = (Flow::new(size(), 2 * n), Flow::new(size(), 2 * n + 1));
        total = (total.0 + up.length, total.1 + down.length);
        let client = scene.new_client();
        let header = limpid_tests::header::Version::V2.header(client, scene.address());
        let mut pair = scene.open_with(&header).await?;
        ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
        transfers.spawn(async move {
            both_ways(&mut pair.client, &mut pair.server, up, down).await?;
            // Kept until all are done: no flow ends before it is switched.
            Ok::<_, anyhow::Error>(pair)
        });
    }
    let pairs: Vec<_> = transfers
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    scene.wait_for_engine(Engine::Packet).await?;
    drop(pairs);
    let mut counted = (0, 0);
    for record in scene.records_of(count, Engine::Packet).await? {
        counted.0 += record.get("bytes_up")?.parse::<u64>()?;
        counted.1 += record.get("bytes_down")?.parse::<u64>()?;
    }
    ensure!(counted == total, "{counted:?} bytes counted of {total:?}");
    Ok(())
}
