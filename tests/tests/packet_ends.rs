//! How flows of the engine `packet` end: by whom, at which stage, and what the record says; and what
//! becomes of the next flow with the same addresses and ports.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use limpid_tests::firewall;
use limpid_tests::header::Version;
use limpid_tests::net::{Family, Plan};
use limpid_tests::programs::Engine;
use limpid_tests::scene::{Pair, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Suite, scaled};
use limpid_tests::transfer::{self, Flow};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

/// Longer than any end takes that is not waited for.
const PROMPT: Duration = Duration::from_secs(5);

/// Who ends.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Backend,
}

/// How far the flow is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The backend's SYN-ACK is still to come.
    Connecting,
    /// The backend has just accepted; the switch may be under way.
    Switching,
    /// The switch has been, nothing was said.
    Switched,
    /// Both directions are full.
    MidTransfer,
    /// The other side has ended its stream.
    AfterTheirEnd,
    /// It has itself ended its stream.
    AfterItsEnd,
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let stages = [
        ("connecting", Stage::Connecting),
        ("switching", Stage::Switching),
        ("switched", Stage::Switched),
        ("mid_transfer", Stage::MidTransfer),
        ("after_their_end", Stage::AfterTheirEnd),
        ("after_its_end", Stage::AfterItsEnd),
    ];
    for family in Family::ALL {
        for (name, stage) in stages {
            for (who, side) in [("client", Side::Client), ("backend", Side::Backend)] {
                if matches!((stage, side), (Stage::Connecting, Side::Backend)) {
                    // That is a refusal, and no flow.
                    continue;
                }
                suite.test(format!("reset_{name}_{who}_{family}"), &[], move |lab| {
                    reset(lab, side, stage, family)
                });
            }
        }
        for (name, stage) in [
            ("connecting", Stage::Connecting),
            ("switching", Stage::Switching),
            ("switched", Stage::Switched),
        ] {
            for (who, side) in [("client", Side::Client), ("backend", Side::Backend)] {
                if matches!((stage, side), (Stage::Connecting, Side::Backend)) {
                    continue;
                }
                suite.test(
                    format!("half_close_{name}_{who}_{family}"),
                    &[],
                    move |lab| half_close(lab, side, stage, family),
                );
            }
        }
        suite.test(format!("both_close_at_once_{family}"), &[], move |lab| {
            both_close_at_once(lab, family)
        });
        suite.test(format!("ends_of_timeouts_{family}"), &[], move |lab| {
            ends_of_timeouts(lab, family)
        });
        suite.test(format!("stopped_{family}"), &[], move |lab| {
            stopped(lab, family)
        });
        for (who, side) in [("client", Side::Client), ("backend", Side::Backend)] {
            suite.test(format!("lost_reset_{who}_{family}"), &[], move |lab| {
                lost_reset(lab, side, family)
            });
        }
        suite.test(format!("same_tuple_unseen_{family}"), &[], move |lab| {
            same_tuple_unseen(lab, family)
        });
        for (name, again) in [
            ("backend_closes", Again::BackendCloses),
            ("client_closes", Again::ClientCloses),
            ("client_resets", Again::ClientResets),
            ("backend_resets", Again::BackendResets),
        ] {
            suite.test(format!("same_tuple_{name}_{family}"), &[], move |lab| {
                same_tuple(lab, again, family)
            });
        }
    }
    suite.run()
}

/// (the side that ends, the other one)
fn ordered(pair: Pair, side: Side) -> (TcpStream, TcpStream) {
    match side {
        Side::Client => (pair.client, pair.server),
        Side::Backend => (pair.server, pair.client),
    }
}

/// A reset goes through as a reset, wherever the flow is, and the record says whose it was.
async fn reset(lab: Lab, side: Side, stage: Stage, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    if let Stage::Connecting = stage {
        return reset_connecting(&scene).await;
    }
    let (mut resetting, mut other) = ordered(scene.open().await?, side);
    if !matches!(stage, Stage::Switching) {
        scene.wait_for_engine(Engine::Packet).await?;
    }
    match stage {
        Stage::Connecting | Stage::Switching | Stage::Switched => {}
        Stage::MidTransfer => fill(&mut resetting, &mut other).await?,
        Stage::AfterTheirEnd => {
            other.shutdown().await?;
            transfer::expect_end(&mut resetting).await?;
        }
        Stage::AfterItsEnd => {
            resetting.shutdown().await?;
            transfer::expect_end(&mut other).await?;
        }
    }
    transfer::reset(resetting)?;
    if matches!(stage, Stage::AfterItsEnd) {
        // The end has been read, and a reset of such a connection is seen when something is said.
        timeout(scaled(PROMPT), async {
            while other.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .context("no reset came")?;
    } else {
        timeout(scaled(PROMPT), transfer::expect_reset(&mut other))
            .await
            .context("no reset came")??;
    }
    let record = scene.record().await?;
    // What ends while it is switched may be in other hands, with a reason.
    if !matches!(stage, Stage::Switching) {
        record.ensure_carried_by(Engine::Packet)?;
    }
    let expected = match side {
        Side::Client => "downstream-reset",
        Side::Backend => "upstream-reset",
    };
    ensure!(record.get("end")? == expected, "not {expected}: {record:?}");
    Ok(())
}

/// A client that goes before there is an upstream: the backend is told too, if it ever hears of it.
async fn reset_connecting(scene: &Scene) -> Result<()> {
    let deaf = firewall::Deaf::to_new(&scene.net.backend, UPSTREAM)?;
    let client = scene.enter().await?;
    scene.wait_for_unanswered(1).await?;
    transfer::reset(client)?;
    deaf.end()?;
    let mut arrived = match timeout(Duration::from_secs(2), scene.backend.accept()).await {
        Ok(arrived) => Some(arrived?.0),
        Err(_) => None,
    };
    if let Some(server) = &mut arrived {
        timeout(scaled(PROMPT), transfer::expect_reset(server))
            .await
            .context("no reset came")??;
    }
    let record = scene.record().await?;
    ensure!(record.get("end")? == "downstream-reset", "{record:?}");
    Ok(())
}

/// Fills both directions, and leaves bytes unread in each.
async fn fill(one: &mut TcpStream, other: &mut TcpStream) -> Result<()> {
    let (endless, some) = (Flow::new(u64::MAX, 1), Flow::new(1 << 20, 1));
    tokio::select! {
        sent = endless.send(one) => bail!("sent for ever: {sent:?}"),
        read = some.receive(other) => read?,
    }
    let blasting = timeout(Duration::from_millis(200), endless.send(other)).await;
    ensure!(blasting.is_err(), "sent for ever: {blasting:?}");
    Ok(())
}

/// One direction ends before, during or after the switch; the other goes on.
async fn half_close(lab: Lab, side: Side, stage: Stage, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let (said, answer) = (Flow::new(70_000, 1), Flow::new(2_000_000, 2));
    let (mut first, mut second) = if let Stage::Connecting = stage {
        let deaf = firewall::Deaf::to_new(&scene.net.backend, UPSTREAM)?;
        let mut client = scene.enter().await?;
        said.send_to_end(&mut client).await?;
        scene.wait_for_unanswered(1).await?;
        deaf.end()?;
        (client, scene.accept().await?.0)
    } else {
        let (mut first, second) = ordered(scene.open().await?, side);
        if !matches!(stage, Stage::Switching) {
            scene.wait_for_engine(Engine::Packet).await?;
        }
        said.send_to_end(&mut first).await?;
        (first, second)
    };
    said.receive_to_end(&mut second).await?;
    sleep(Duration::from_millis(200)).await;
    tokio::try_join!(
        answer.send_to_end(&mut second),
        answer.receive_to_end(&mut first)
    )?;
    let record = scene.record().await?;
    if let Stage::Switched = stage {
        record.ensure_carried_by(Engine::Packet)?;
    } else {
        record.carried_by(Engine::Packet)?;
    }
    let (up, down) = match side {
        Side::Client => (said, answer),
        Side::Backend => (answer, said),
    };
    for (field, expected) in [
        ("end", "fin".to_owned()),
        ("bytes_up", up.length.to_string()),
        ("bytes_down", down.length.to_string()),
    ] {
        ensure!(
            record.get(field)? == expected,
            "{field} is not {expected}: {record:?}"
        );
    }
    Ok(())
}

/// FINs that cross each other.
async fn both_close_at_once(lab: Lab, family: Family) -> Result<()> {
    const FLOWS: usize = 50;
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let mut pairs = Vec::new();
    for _ in 0..FLOWS {
        pairs.push(scene.open().await?);
    }
    scene.wait_for_engine(Engine::Packet).await?;
    for Pair { client, server, .. } in &mut pairs {
        tokio::try_join!(client.shutdown(), server.shutdown())?;
    }
    for Pair { client, server, .. } in &mut pairs {
        transfer::expect_end(client).await?;
        transfer::expect_end(server).await?;
    }
    for record in scene.records_of(FLOWS, Engine::Packet).await? {
        ensure!(record.get("end")? == "fin", "{record:?}");
    }
    Ok(())
}

/// Flows that are closed for their silence are closed at both ends, also where one of them speaks just
/// then; the bytes that they had are counted.
async fn ends_of_timeouts(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .engine(Engine::Packet)
            .with("--idle-timeout=2s")
            .with("--half-close-timeout=1s")
    })
    .await?;
    let (up, down) = (Flow::new(3000, 1), Flow::new(5000, 2));
    for (half_closed, end) in [(false, "idle-timeout"), (true, "half-close-timeout")] {
        let mut pair = scene.open().await?;
        tokio::try_join!(up.send(&mut pair.client), up.receive(&mut pair.server))?;
        tokio::try_join!(down.send(&mut pair.server), down.receive(&mut pair.client))?;
        scene.wait_for_engine(Engine::Packet).await?;
        if half_closed {
            pair.client.shutdown().await?;
            transfer::expect_end(&mut pair.server).await?;
        }
        let begun = Instant::now();
        timeout(scaled(PROMPT), transfer::expect_reset(&mut pair.client))
            .await
            .context("the client was not told")??;
        let took = begun.elapsed();
        let expected = if half_closed { 0.9..1.9 } else { 1.9..4.0 };
        ensure!(
            expected.contains(&took.as_secs_f64()),
            "{end} after {took:?}"
        );
        // Said into a flow that is no more, with an acknowledgement of all that was received.
        timeout(scaled(PROMPT), async {
            while pair.server.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .context("the backend was not told")?;
    }
    let records = scene.records_of(2, Engine::Packet).await?;
    for (record, end) in records.iter().zip(["idle-timeout", "half-close-timeout"]) {
        ensure!(record.get("end")? == end, "not {end}: {record:?}");
        ensure!(record.get("bytes_up")? == "3000", "{record:?}");
        ensure!(record.get("bytes_down")? == "5000", "{record:?}");
    }
    Ok(())
}

/// Flows that are open when the daemon has waited long enough: reset, in the middle of bulk too.
async fn stopped(lab: Lab, family: Family) -> Result<()> {
    let mut scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(Engine::Packet).with("--drain-timeout=500ms")
    })
    .await?;
    let mut silent = scene.open().await?;
    let mut busy = scene.open().await?;
    scene.wait_for_engine(Engine::Packet).await?;
    let endless = Flow::new(u64::MAX, 1);
    let sender = tokio::spawn(async move { endless.send(&mut busy.client).await });
    let reader = tokio::spawn(async move { endless.receive(&mut busy.server).await });
    let status = scene.limpid.terminate(scaled(PROMPT))?;
    ensure!(status.success(), "{status}");
    for (who, end) in [("sender", sender), ("reader", reader)] {
        let end = timeout(scaled(PROMPT), end)
            .await
            .with_context(|| format!("the {who} was not told"))??;
        let error = end.expect_err("endless");
        let text = format!("{error:#}");
        ensure!(
            text.contains("reset") || text.contains("pipe"),
            "{who}: {text}"
        );
    }
    for end in [&mut silent.client, &mut silent.server] {
        timeout(scaled(PROMPT), transfer::expect_reset(end))
            .await
            .context("a silent end was not told")??;
    }
    for record in scene.records_of(2, Engine::Packet).await? {
        ensure!(record.get("end")? == "stopped", "{record:?}");
    }
    Ok(())
}

/// The reset that tells of a timeout gets lost on its way to one side. What that side says next is answered
/// with another.
async fn lost_reset(lab: Lab, side: Side, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(Engine::Packet).with("--idle-timeout=1s")
    })
    .await?;
    let (mut lost, mut other) = ordered(scene.open().await?, side);
    scene.wait_for_no_sockets().await?;
    let some = Flow::new(3000, 1);
    tokio::try_join!(some.send(&mut other), some.receive(&mut lost))?;
    let deaf = firewall::Deaf::to_resets(match side {
        Side::Client => &scene.net.edge,
        Side::Backend => &scene.net.backend,
    })?;
    timeout(scaled(PROMPT), transfer::expect_reset(&mut other))
        .await
        .context("the other side was not told")??;
    let record = scene.record_of(Engine::Packet).await?;
    ensure!(record.get("end")? == "idle-timeout", "{record:?}");
    ensure!(deaf.dropped()? > 0, "no reset was lost");
    deaf.end()?;
    lost.write_all(b"still there?").await?;
    timeout(scaled(PROMPT), transfer::expect_reset(&mut lost))
        .await
        .context("left in the dark")?
}

/// How a connection ends before the next one from the same port.
#[derive(Clone, Copy, Debug)]
enum Again {
    BackendCloses,
    ClientCloses,
    ClientResets,
    BackendResets,
}

/// A flow ends, and its client comes again from the same port, before the daemon has had a look at the end:
/// it is logged as it was.
async fn same_tuple_unseen(lab: Lab, family: Family) -> Result<()> {
    const PORT: u16 = 7001;
    let mut scene = Scene::start(&lab, family, Engine::Packet).await?;
    let from = SocketAddr::new(scene.net.edge_transit_ip(family), PORT);
    let bind = move |socket: &TcpSocket| {
        socket.set_reuseaddr(true)?;
        socket.bind(from)
    };
    let header = scene.header();
    let edge = &scene.net.edge;
    let client = edge.connect_with(scene.address(), bind).await?;
    let mut old = scene.open_over(client, &header).await?;
    scene.wait_for_no_sockets().await?;
    let (up, down) = (Flow::new(50_000, 1), Flow::new(60_000, 2));
    tokio::try_join!(up.send(&mut old.client), up.receive(&mut old.server))?;
    tokio::try_join!(down.send(&mut old.server), down.receive(&mut old.client))?;

    scene.limpid.process().signal(Signal::SIGSTOP)?;
    transfer::reset(old.client)?;
    transfer::expect_reset(&mut old.server).await?;
    let edge = &scene.net.edge;
    let mut client = edge.connect_with(scene.address(), bind).await?;
    client.write_all(&header).await?;
    sleep(Duration::from_millis(50)).await;
    scene.limpid.process().signal(Signal::SIGCONT)?;

    let (mut server, _) = scene.accept().await?;
    transfer::exchange(&mut client, &mut server, down, up).await?;
    let mut ends = Vec::new();
    for record in scene.limpid.wait_for_access_lines(2).await? {
        ends.push((
            record.get("end")?,
            record.get("bytes_up")?,
            record.get("bytes_down")?,
        ));
    }
    ends.sort();
    let expected = [
        ("downstream-reset", "50000", "60000"),
        ("fin", "60000", "50000"),
    ]
    .map(|(end, up, down)| (end.to_owned(), up.to_owned(), down.to_owned()));
    ensure!(ends == expected, "{ends:?}");
    Ok(())
}

/// The same client from the same port, over a connection from the same port of the edge, again and
/// again, each at once after the last one's end.
async fn same_tuple(lab: Lab, again: Again, family: Family) -> Result<()> {
    const TIMES: u64 = 20;
    const PORT: u16 = 7001;
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    // The last ACK, or the reset, is on its way.
    let mut pause = Duration::from_millis(20);
    if let Again::ClientCloses = again {
        // The edge keeps its own port in TIME-WAIT: for a second of a clock that counts seconds
        // (`tcp_twsk_unique`), or since Linux 6.14 for as long as it is told.
        scene.net.edge.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        if Path::new("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists() {
            scene.net.edge.sysctl("net/ipv4/tcp_tw_reuse_delay", "1")?;
        } else {
            pause = Duration::from_millis(1100);
        }
    }
    let from = SocketAddr::new(scene.net.edge_transit_ip(family), PORT);
    let who = scene.new_client();
    let header = Version::V2.header(who, scene.address());
    for n in 0..TIMES {
        let begun = Instant::now();
        let pair = async {
            let edge = &scene.net.edge;
            let client = edge
                .connect_with(scene.address(), move |socket| {
                    socket.set_reuseaddr(true)?;
                    socket.bind(from)
                })
                .await?;
            let mut pair = scene.open_over(client, &header).await?;
            let (up, down) = (Flow::new(50_000, n), Flow::new(60_000, n + 100));
            tokio::try_join!(up.send(&mut pair.client), up.receive(&mut pair.server))?;
            tokio::try_join!(down.send(&mut pair.server), down.receive(&mut pair.client))?;
            Ok::<_, anyhow::Error>(pair)
        };
        let mut pair = pair.await.with_context(|| format!("connection {n}"))?;
        ensure!(pair.peer == who, "{n}: seen as {}, not {who}", pair.peer);
        let took = begun.elapsed();
        ensure!(
            took < scaled(Duration::from_millis(900)),
            "connection {n} took {took:?}"
        );
        scene.wait_for_engine(Engine::Packet).await?;
        match again {
            Again::BackendCloses => {
                drop(pair.server);
                transfer::expect_end(&mut pair.client).await?;
                drop(pair.client);
            }
            Again::ClientCloses => {
                drop(pair.client);
                transfer::expect_end(&mut pair.server).await?;
                drop(pair.server);
            }
            Again::ClientResets => {
                transfer::reset(pair.client)?;
                transfer::expect_reset(&mut pair.server).await?;
            }
            Again::BackendResets => {
                transfer::reset(pair.server)?;
                transfer::expect_reset(&mut pair.client).await?;
            }
        }
        sleep(pause).await;
    }
    let records = scene
        .limpid
        .wait_for_access_lines(usize::try_from(TIMES)?)
        .await?;
    for record in &records {
        record.ensure_carried_by(Engine::Packet)?;
        ensure!(record.get("bytes_up")? == "50000", "{record:?}");
        ensure!(record.get("bytes_down")? == "60000", "{record:?}");
    }
    ensure!(records.len() == TIMES as usize, "{} records", records.len());
    Ok(())
}
