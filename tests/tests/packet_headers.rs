//! The engine `packet` translates all that a TCP header says: options and windows that differ, numbers that
//! wrap, and what has no bytes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Segment, Topology};
use limpid_tests::programs::Engine;
use limpid_tests::repair;
use limpid_tests::scene::{Pair, Scene};
use limpid_tests::suite::{Lab, Need, Suite, scaled, shrunk};
use limpid_tests::transfer::{self, Flow};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How far before their wrap timestamps are set, in their unit.
const BEFORE_THE_WRAP: u32 = 1500;

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
            ("lossy_", LinkKind::Tap(Impairment::LOSSY), &[Need::Tun]),
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
        suite.test(format!("keepalive_{family}"), &[], move |lab| {
            keepalive(lab, family)
        });
    }
    suite.run()
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
    transfer::both_ways(&mut pair.client, &mut pair.server, slow, slow).await?;
    let fast = Flow::new(shrunk(16 << 20), 2);
    transfer::exchange(&mut pair.client, &mut pair.server, fast, fast).await?;
    let bytes = slow.length + fast.length;
    scene
        .record_of(Engine::Packet)
        .await?
        .ensure_bytes(bytes, bytes)
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
    scene
        .record_of(Engine::Packet)
        .await?
        .ensure_bytes(size, size)
}

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
        transfer::both_ways(&mut client, &mut server, up, down)
            .await
            .with_context(|| format!("round {round}, {rounds_after} after the wrap"))?;
        sleep(Duration::from_millis(20)).await;
    }
    drop((client, server));
    scene.record_of(Engine::Packet).await.map(drop)
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
    transfer::both_ways(&mut client, &mut server, some, some)
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
    let record = scene.record_of(Engine::Packet).await?;
    ensure!(record.get("end")? == "idle-timeout", "{record:?}");
    record.ensure_bytes(some.length, some.length)
}
