//! What many flows, stalled flows and idle flows may cost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::header::Version;
use limpid_tests::memory::Memory;
use limpid_tests::net::Family;
use limpid_tests::programs::Engine;
use limpid_tests::scene::{Pair, Scene};
use limpid_tests::suite::{Lab, Suite, shrunk};
use limpid_tests::transfer::{self, Flow};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What a flow may hold in daemon and kernel together while its reader does not read.
const STALLED: u64 = 16 << 20;

/// What an idle flow may hold in the daemon: its state, no buffer.
const IDLE: u64 = 32 << 10;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for engine in Engine::ALL {
            suite.test(
                format!("thousand_flows_{family}_{engine}"),
                &[],
                move |lab| async move { thousand_flows(&lab, family, engine).await },
            );
            for (name, upward) in [("backend", true), ("client", false)] {
                suite.test(
                    format!("stalled_{name}_{family}_{engine}"),
                    &[],
                    move |lab| async move { stalled_reader(&lab, upward, family, engine).await },
                );
            }
        }
    }
    suite.run()
}

/// A thousand clients at once, each seen as itself, each with its own bytes.
async fn thousand_flows(lab: &Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(lab, family, engine).await?;
    let count = usize::try_from(shrunk(1000))?;
    let before = Memory::measure(&scene.net.proxy, scene.limpid.pid())?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let client = scene.new_client();
        let pair = scene.open_as(Version::V2, client).await?;
        ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
        pairs.push(pair);
    }
    let flows = scene.limpid.wait_for_flows(&scene.net.proxy, count).await?;
    ensure!(
        flows.iter().all(|flow| flow["engine"] == engine.name()),
        "{:?}",
        flows.first()
    );
    let idle = Memory::measure(&scene.net.proxy, scene.limpid.pid())?;
    let each = idle.daemon.saturating_sub(before.daemon) / count as u64;
    ensure!(
        each < IDLE,
        "the daemon holds {each} bytes for an idle flow"
    );
    let mut transfers = JoinSet::new();
    for (
        n,
        Pair {
            mut client,
            mut server,
            ..
        },
    ) in pairs.into_iter().enumerate()
    {
        let (up, down) = (
            Flow::new(20_000, n as u64),
            Flow::new(30_000, (n + count) as u64),
        );
        transfers
            .spawn(async move { transfer::exchange(&mut client, &mut server, up, down).await });
    }
    while let Some(done) = transfers.join_next().await {
        done??;
    }
    scene.records_of(count, engine).await?;
    scene
        .limpid
        .wait_for_flows(&scene.net.proxy, 0)
        .await
        .map(drop)
}

/// A sender that blasts at a reader that does not read: it must be stopped, and what is in between
/// is bounded. Then the reader reads, and all of it is there.
async fn stalled_reader(lab: &Lab, upward: bool, family: Family, engine: Engine) -> Result<()> {
    const FLOWS: u64 = 2;
    let scene = Scene::start(lab, family, engine).await?;
    let mut ends = Vec::new();
    for _ in 0..FLOWS {
        let Pair { client, server, .. } = scene.open().await?;
        ends.push(if upward {
            (client, server)
        } else {
            (server, client)
        });
    }
    let before = Memory::measure(&scene.net.proxy, scene.limpid.pid())?;
    let flow = Flow::new(shrunk(512 << 20), 7);
    let mut senders = JoinSet::new();
    let mut readers = Vec::new();
    for (mut sender, reader) in ends {
        senders.spawn(async move { flow.send_to_end(&mut sender).await.map(|()| sender) });
        readers.push(reader);
    }
    let mut most = Memory::default();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = Memory::measure(&scene.net.proxy, scene.limpid.pid())?;
        most.daemon = most.daemon.max(now.daemon);
        most.sockets = most.sockets.max(now.sockets);
        most.kernel_tcp = most.kernel_tcp.max(now.kernel_tcp);
        most.kernel = most.kernel.max(now.kernel);
    }
    ensure!(
        timeout(Duration::ZERO, senders.join_next()).await.is_err(),
        "a sender got rid of everything: nothing holds it back"
    );
    let held =
        most.daemon.saturating_sub(before.daemon) + most.sockets.saturating_sub(before.sockets);
    println!(
        "{engine} {family}: a stalled reader holds {} KiB",
        held / FLOWS / 1024
    );
    ensure!(
        held / FLOWS <= STALLED,
        "a flow holds {} bytes: {before:?} {most:?}",
        held / FLOWS
    );
    // Redirected bytes may be in no socket's account. Both ends of the connection add their own
    // queues to this figure, and so does whatever else the machine does: hence the margin.
    let kernel = most.kernel.saturating_sub(before.kernel);
    ensure!(
        kernel < 200 << 20,
        "the kernel took {kernel} bytes: {before:?} {most:?}"
    );
    let mut reading = JoinSet::new();
    for mut reader in readers {
        reading.spawn(async move { flow.receive_to_end(&mut reader).await });
    }
    while let Some(read) = reading.join_next().await {
        read?.context("after the stall")?;
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    Ok(())
}
