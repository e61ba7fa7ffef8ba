//! How flows end, and how the daemon does.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use limpid_tests::header::Version;
use limpid_tests::host_state::{HostState, ensure_unchanged};
use limpid_tests::net::{Family, Plan, Topology};
use limpid_tests::programs::{Engine, Limpid, Options};
use limpid_tests::scene::{LISTEN, Pair, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled};
use limpid_tests::transfer::{self, Flow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Longer than any end takes that is not waited for.
const PROMPT: Duration = Duration::from_secs(5);

/// Somebody else's filter: a classic BPF program of one instruction, which matches nothing.
const FOREIGN_FILTER: [&str; 12] = [
    "filter",
    "add",
    "dev",
    "inside",
    "egress",
    "pref",
    "7",
    "bpf",
    "bytecode",
    "1,6 0 0 0",
    "classid",
    "1:1",
];

/// When a connection is reset.
#[derive(Clone, Copy, Debug)]
enum Stage {
    BeforeHeader,
    DuringHeader,
    AfterConnect,
    MidTransfer,
}

/// Who resets it.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Backend,
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let resets = [
        ("client_before_header", Side::Client, Stage::BeforeHeader),
        ("client_during_header", Side::Client, Stage::DuringHeader),
        ("client_after_connect", Side::Client, Stage::AfterConnect),
        ("client_mid_transfer", Side::Client, Stage::MidTransfer),
        ("backend_after_connect", Side::Backend, Stage::AfterConnect),
        ("backend_mid_transfer", Side::Backend, Stage::MidTransfer),
    ];
    for family in Family::ALL {
        for engine in Engine::ALL {
            for (name, side, stage) in resets {
                suite.test(
                    format!("reset_by_{name}_{family}_{engine}"),
                    &[],
                    move |lab| reset(lab, side, stage, family, engine),
                );
            }
            for (name, from_client) in [("client", true), ("backend", false)] {
                suite.test(
                    format!("half_close_by_{name}_{family}_{engine}"),
                    &[],
                    move |lab| half_close(lab, from_client, family, engine),
                );
            }
            suite.test(format!("early_fin_{family}_{engine}"), &[], move |lab| {
                early_fin(lab, family, engine)
            });
            suite.test(format!("idle_timeout_{family}_{engine}"), &[], move |lab| {
                idle_timeout(lab, family, engine)
            });
            suite.test(
                format!("half_close_timeout_{family}_{engine}"),
                &[],
                move |lab| half_close_timeout(lab, family, engine),
            );
            suite.test(
                format!("sigterm_drains_{family}_{engine}"),
                &[],
                move |lab| sigterm_drains(lab, family, engine),
            );
            suite.test(
                format!("drain_deadline_{family}_{engine}"),
                &[],
                move |lab| drain_deadline(lab, family, engine),
            );
            for (attach, needs) in [("tcx", &[Need::Kernel(6, 6)][..]), ("clsact", &[])] {
                suite.test(
                    format!("sigkill_{attach}_{family}_{engine}"),
                    needs,
                    move |lab| sigkill(lab, attach, family, engine),
                );
            }
        }
        for (attach, needs) in [("tcx", &[Need::Kernel(6, 6)][..]), ("clsact", &[])] {
            suite.test(
                format!("without_sys_admin_{attach}_{family}"),
                needs,
                move |lab| without_sys_admin(lab, attach, family),
            );
        }
        suite.test(format!("same_port_again_{family}"), &[], move |lab| {
            same_port_again(lab, family)
        });
        suite.test(format!("backend_refuses_{family}"), &[], move |lab| {
            backend_refuses(lab, family)
        });
        suite.test(
            format!("replies_do_not_come_back_{family}"),
            &[],
            move |lab| replies_do_not_come_back(lab, family),
        );
    }
    suite.run()
}

/// A reset is passed on as a reset, at whatever stage it comes.
async fn reset(lab: Lab, side: Side, stage: Stage, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let header = Version::V2.header(scene.new_client(), scene.address());
    let mut client = scene.connect().await?;
    match stage {
        Stage::BeforeHeader | Stage::DuringHeader => {
            let length = if matches!(stage, Stage::BeforeHeader) {
                0
            } else {
                header.len() / 2
            };
            client.write_all(&header[..length]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            transfer::reset(client)?;
            return scene.expect_no_arrival(Duration::from_millis(150)).await;
        }
        Stage::AfterConnect | Stage::MidTransfer => {}
    }
    client.write_all(&header).await?;
    let (server, _) = scene.accept().await?;
    scene.wait_for_engine(engine).await?;
    let (mut resetting, mut other) = match side {
        Side::Client => (client, server),
        Side::Backend => (server, client),
    };
    if matches!(stage, Stage::MidTransfer) {
        // Both directions full: the one resets while it sends, and with unread bytes.
        let flow = Flow::new(u64::MAX, 1);
        let sending = async { flow.send(&mut resetting).await };
        let reading = async { Flow::new(1 << 20, 1).receive(&mut other).await };
        tokio::select! {
            sent = sending => bail!("sent for ever: {sent:?}"),
            read = reading => read?,
        }
        let blasting = async { flow.send(&mut other).await };
        if let Ok(sent) = timeout(Duration::from_millis(200), blasting).await {
            bail!("sent for ever: {sent:?}");
        }
    } else {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    transfer::reset(resetting)?;
    timeout(scaled(PROMPT), transfer::expect_reset(&mut other))
        .await
        .context("no reset came")??;
    let record = scene
        .records_of(1, engine)
        .await?
        .pop()
        .context("no record")?;
    ensure!(record.get("end")?.contains("reset"), "{record:?}");
    Ok(())
}

/// One direction ends; the other goes on for as long as it likes.
async fn half_close(lab: Lab, from_client: bool, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let Pair { client, server, .. } = scene.open().await?;
    scene.wait_for_engine(engine).await?;
    let (mut first, mut second) = if from_client {
        (client, server)
    } else {
        (server, client)
    };
    let (request, answer) = (Flow::new(100_000, 1), Flow::new(3_000_000, 2));
    tokio::try_join!(
        request.send_to_end(&mut first),
        request.receive_to_end(&mut second)
    )?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokio::try_join!(
        answer.send_to_end(&mut second),
        answer.receive_to_end(&mut first)
    )?;
    scene.records_of(1, engine).await.map(drop)
}

/// A side that has ended before there was a splice: everything it said still comes, and the answer.
async fn early_fin(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let (request, answer) = (Flow::new(100_000, 1), Flow::new(200_000, 2));
    let mut client = scene.connect().await?;
    client
        .write_all(&Version::V2.header(scene.new_client(), scene.address()))
        .await?;
    request.send_to_end(&mut client).await?;
    let (mut server, _) = scene.accept().await?;
    tokio::try_join!(
        async {
            request.receive_to_end(&mut server).await?;
            answer.send_to_end(&mut server).await
        },
        answer.receive_to_end(&mut client),
    )?;
    let Pair {
        mut client,
        mut server,
        ..
    } = scene.open().await?;
    answer.send_to_end(&mut server).await?;
    answer.receive_to_end(&mut client).await?;
    request.send_to_end(&mut client).await?;
    request.receive_to_end(&mut server).await?;
    scene.limpid.wait_for_access_lines(2).await.map(drop)
}

/// Bytes in either direction keep a flow; without any it ends.
async fn idle_timeout(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(engine).with("--idle-timeout=2s")
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(engine).await?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        pair.server.write_all(b"x").await?;
        transfer::expect_bytes(&mut pair.client, b"x")
            .await
            .context("while it was in use")?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let begun = Instant::now();
    timeout(scaled(PROMPT), async {
        transfer::expect_closed(&mut pair.client).await?;
        transfer::expect_closed(&mut pair.server).await
    })
    .await
    .context("not closed when idle")??;
    ensure!(
        begun.elapsed() > Duration::from_secs(1),
        "closed after {:?}",
        begun.elapsed()
    );
    let record = scene
        .records_of(1, engine)
        .await?
        .pop()
        .context("no record")?;
    ensure!(record.get("end")?.contains("idle"), "{record:?}");
    Ok(())
}

/// A flow with one direction closed may be quiet for less long.
async fn half_close_timeout(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(engine).with("--half-close-timeout=1s")
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(engine).await?;
    pair.client.shutdown().await?;
    transfer::expect_end(&mut pair.server).await?;
    timeout(scaled(PROMPT), async {
        transfer::expect_closed(&mut pair.client).await?;
        // Whatever the server still sends meets a closed connection.
        while pair.server.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), anyhow::Error>(())
    })
    .await
    .context("not closed")??;
    let record = scene
        .records_of(1, engine)
        .await?
        .pop()
        .context("no record")?;
    ensure!(record.get("end")?.contains("half"), "{record:?}");
    Ok(())
}

/// SIGTERM: no new connections, the old ones go on to their own end, then nothing is left.
async fn sigterm_drains(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    let before = HostState::with_filters(&net.proxy)?;
    let mut scene = Scene::on(net, &lab, family, |options| {
        options
            .accept_proxy(family.everything())
            .engine(engine)
            .with("--drain-timeout=60s")
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(engine).await?;
    scene
        .limpid
        .process()
        .signal(nix::sys::signal::Signal::SIGTERM)?;
    let begun = Instant::now();
    while scene.connect().await.is_ok() {
        ensure!(
            begun.elapsed() < scaled(PROMPT),
            "connections are still accepted"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(
        scene.limpid.process().ended()?.is_none(),
        "ended with a flow open"
    );
    let (up, down) = (Flow::new(1_000_000, 1), Flow::new(2_000_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let status = scene.limpid.process().wait(scaled(PROMPT))?;
    ensure!(status.success(), "{status}");
    scene.records_of(1, engine).await?;
    ensure!(
        scene.limpid.pinned()?.is_empty(),
        "left: {:?}",
        scene.limpid.pinned()?
    );
    ensure_unchanged(&before, &HostState::with_filters(&scene.net.proxy)?)
}

/// The capabilities that README names are enough, also for looking after the programs, every 10 s.
async fn without_sys_admin(lab: Lab, attach: &'static str, family: Family) -> Result<()> {
    const LOOKED_AFTER: Duration = Duration::from_secs(11);
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .with(format!("--attach={attach}"))
            .under(&["/usr/bin/setpriv", "--bounding-set=-sys_admin"])
    })
    .await?;
    let mut pair = scene.open().await?;
    tokio::time::sleep(LOOKED_AFTER).await;
    let (up, down) = (Flow::new(100_000, 1), Flow::new(200_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let log = scene.limpid.log()?;
    ensure!(
        log.contains(&format!("\"by\":\"{attach}\"")) && !log.contains("removed"),
        "{log}"
    );
    Ok(())
}

/// Flows that outlast the deadline are closed.
async fn drain_deadline(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let mut scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(engine).with("--drain-timeout=1s")
    })
    .await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(engine).await?;
    let begun = Instant::now();
    let status = scene.limpid.terminate(scaled(PROMPT))?;
    ensure!(status.success(), "{status}");
    ensure!(
        begun.elapsed() > Duration::from_millis(900),
        "after {:?}",
        begun.elapsed()
    );
    transfer::expect_closed(&mut pair.client).await?;
    transfer::expect_closed(&mut pair.server).await?;
    scene.records_of(1, engine).await.map(drop)
}

/// Killed: `cleanup` removes what is left and nothing else, and a new daemon starts either way.
async fn sigkill(lab: Lab, attach: &str, family: Family, engine: Engine) -> Result<()> {
    let net = Topology::standard()?;
    // Another's filter, on the very interface: the qdisc is no longer limpid's to remove.
    net.proxy.sh("tc qdisc add dev inside clsact")?;
    net.proxy.run("tc", &FOREIGN_FILTER)?;
    let filters = net.proxy.sh("tc filter show dev inside egress")?;
    ensure!(!filters.is_empty(), "the other's filter is not there");
    let before = HostState::with_filters(&net.proxy)?;
    let options = |options: Options| {
        options
            .accept_proxy(family.everything())
            .engine(engine)
            .with(format!("--attach={attach}"))
    };
    let mut scene = Scene::on(net, &lab, family, options).await?;
    let mut pair = scene.open().await?;
    scene.wait_for_engine(engine).await?;
    scene.limpid.kill()?;
    match engine {
        // What is pinned lets the kernel close both connections in their right names.
        Engine::Copy | Engine::Sockmap => {
            transfer::expect_closed(&mut pair.client).await?;
            transfer::expect_closed(&mut pair.server).await?;
        }
        // What is pinned is all that the flow needs.
        Engine::Packet => {
            let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
            transfer::exchange(&mut pair.client, &mut pair.server, up, down)
                .await
                .context("with no daemon")?;
        }
    }
    ensure!(!scene.limpid.pinned()?.is_empty(), "nothing was pinned");

    let address = scene.net.proxy_addr(family, LISTEN);
    let upstream = scene.net.backend_addr(family, UPSTREAM);
    let mut again = Limpid::start(
        &scene.net.proxy,
        &lab,
        &options(Options::new(address, upstream)),
    )?;
    let mut pair = scene.open().await.context("after a restart")?;
    let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    again.kill()?;

    again.cleanup(&scene.net.proxy)?;
    ensure!(again.pinned()?.is_empty(), "left: {:?}", again.pinned()?);
    ensure_unchanged(&before, &HostState::with_filters(&scene.net.proxy)?)?;
    let after = scene.net.proxy.sh("tc filter show dev inside egress")?;
    ensure!(
        filters == after,
        "the other's filter changed:\n{filters}\n{after}"
    );
    again
        .cleanup(&scene.net.proxy)
        .context("a second time")
        .map(drop)
}

/// A backend without a listener: the client is told by a closed connection, the operator by a name.
async fn backend_refuses(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let options =
        Options::new(listen, net.backend_addr(family, 9)).accept_proxy(family.everything());
    let limpid = Limpid::start(&net.proxy, &lab, &options)?;
    let mut client = net.edge.connect(listen).await?;
    let from = std::net::SocketAddr::new(net.elsewhere(family, 5), 5000);
    client.write_all(&Version::V2.header(from, listen)).await?;
    timeout(scaled(PROMPT), transfer::expect_closed(&mut client))
        .await
        .context("not closed")??;
    let record = limpid
        .wait_for_access_lines(1)
        .await?
        .pop()
        .context("no record")?;
    ensure!(record.get("end")? == "upstream-refused", "{record:?}");
    Ok(())
}

/// SYNs leave and nothing returns: the message says so, and where to look.
async fn replies_do_not_come_back(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.with("--connect-timeout=2s")
    })
    .await?;
    for version in ["-4", "-6"] {
        scene
            .net
            .backend
            .ip(&format!("{version} route del default"))?;
    }
    let mut client = scene.connect().await?;
    client
        .write_all(&Version::V2.header(scene.new_client(), scene.address()))
        .await?;
    let mut rest = Vec::new();
    // Closed one way or the other.
    let _ = timeout(scaled(PROMPT), client.read_to_end(&mut rest))
        .await
        .context("not closed")?;
    let record = scene.record().await?;
    ensure!(record.get("end")? == "upstream-no-reply", "{record:?}");
    let detail = record.get("detail")?;
    for part in ["SYN", "route", "come back"] {
        ensure!(detail.contains(part), "{part:?} is missing: {detail}");
    }
    Ok(())
}

/// A client that comes again from the same port, to a backend that closed the last connection first and
/// still has it in TIME-WAIT, is let in at once: its timestamps have gone on.
async fn same_port_again(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    let client = scene.new_client();
    for round in 0..5 {
        let started = Instant::now();
        let mut pair = scene.open_as(Version::V2, client).await?;
        ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
        let took = started.elapsed();
        ensure!(
            took < scaled(PROMPT) / 4,
            "connection {round} took {took:?}"
        );
        drop(pair.server);
        transfer::expect_end(&mut pair.client).await?;
        drop(pair.client);
        scene.limpid.wait_for_access_lines(round + 1).await?;
    }
    let sockets = scene.net.backend.sh("ss -tanH state time-wait")?;
    ensure!(!sockets.is_empty(), "the backend has nothing in TIME-WAIT");
    Ok(())
}
