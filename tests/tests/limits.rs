//! What many flows, stalled flows and idle flows may cost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::header::Version;
use limpid_tests::memory::Memory;
use limpid_tests::net::{Family, Plan};
use limpid_tests::process::cpu_ticks;
use limpid_tests::programs::Engine;
use limpid_tests::scene::{Pair, Scene};
use limpid_tests::stall::stall;
use limpid_tests::suite::{Lab, Suite, allowed, scaled, shrunk};
use limpid_tests::transfer::{self, Flow};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

/// What a flow may hold in daemon and kernel together while its reader does not read.
const STALLED: u64 = 16 << 20;

/// What the kernel may take during that, on the whole machine: the queues of both ends and what other
/// tests do are part of it, a splice without back-pressure would be far above.
const KERNEL: u64 = 256 << 20;

/// The same where the daemon has no socket of the flow: what it allocates for itself meanwhile.
const STALLED_ELSEWHERE: u64 = 128 << 10;

/// What an idle flow may hold in the daemon: its state, no buffer.
const IDLE: u64 = 8 << 10;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for engine in Engine::ALL {
            suite.test(
                format!("thousand_flows_{family}_{engine}"),
                &[],
                move |lab| thousand_flows(lab, family, engine),
            );
            suite.test(format!("churn_{family}_{engine}"), &[], move |lab| {
                churn(lab, family, engine)
            });
            for (name, upward) in [("backend", true), ("client", false)] {
                suite.test(
                    format!("stalled_{name}_{family}_{engine}"),
                    &[],
                    move |lab| stalled_reader(lab, upward, family, engine),
                );
            }
        }
        suite.test(format!("flow_table_full_{family}"), &[], move |lab| {
            flow_table_full(lab, family)
        });
        suite.test(
            format!("failed_connects_leave_the_table_{family}"),
            &[],
            move |lab| failed_connects_leave_the_table(lab, family),
        );
        suite.test(format!("out_of_files_{family}"), &[], move |lab| {
            out_of_files(lab, family)
        });
    }
    suite.run()
}

/// A thousand clients at once, each seen as itself, each with its own bytes.
async fn thousand_flows(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    // No fewer on slow machines: what a table takes when it grows is shared by all.
    let count = 1000;
    let (proxy, pid) = (&scene.net.proxy, scene.limpid.pid());
    let mut pairs = Vec::new();
    let mut measured = Vec::new();
    // What the first of them cost is the daemon's own: code that runs for the first time.
    for open in [count / 4, count] {
        while pairs.len() < open {
            let client = scene.new_client();
            let pair = scene.open_as(Version::V2, client).await?;
            ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
            pairs.push(pair);
        }
        scene.limpid.wait_for_flows(proxy, open).await?;
        scene.wait_for_engine(engine).await?;
        measured.push(Memory::measure(proxy, pid)?.daemon);
    }
    let each = measured[1].saturating_sub(measured[0]) / (count - count / 4) as u64;
    println!("{engine}, {family}: the daemon holds {each} bytes for an idle flow");
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
async fn stalled_reader(lab: Lab, upward: bool, family: Family, engine: Engine) -> Result<()> {
    const FLOWS: usize = 2;
    let scene = Scene::start(&lab, family, engine).await?;
    let mut ends = Vec::new();
    for _ in 0..FLOWS {
        let Pair { client, server, .. } = scene.open().await?;
        ends.push(if upward {
            (client, server)
        } else {
            (server, client)
        });
    }
    scene.wait_for_engine(engine).await?;
    let flow = Flow::new(shrunk(512 << 20), 7);
    let held = stall(&scene.net.proxy, scene.limpid.pid(), ends, flow).await?;
    println!(
        "{engine}, {family}: a stalled reader's flow holds {} KiB",
        held.per_flow / 1024
    );
    let limit = match engine {
        Engine::Copy | Engine::Sockmap => STALLED,
        Engine::Packet => allowed(STALLED_ELSEWHERE),
    };
    ensure!(held.per_flow <= limit, "{held:?}, not {limit} at most");
    // Redirected bytes may be in no socket's account.
    ensure!(held.kernel < KERNEL, "{held:?}");
    scene.records_of(FLOWS, engine).await.map(drop)
}

/// Out of file descriptors: accepting pauses, and goes on when there are some again.
async fn out_of_files(lab: Lab, family: Family) -> Result<()> {
    const FILES: usize = 64;
    let limit = format!("--nofile={FILES}");
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.under(&["prlimit", &limit])
    })
    .await?;
    let mut idle = Vec::new();
    for _ in 0..2 * FILES {
        idle.push(scene.connect().await?);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let cpu = cpu_ticks(scene.limpid.pid())?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = cpu_ticks(scene.limpid.pid())?.saturating_sub(cpu);
    ensure!(
        spent < 20,
        "{spent} clock ticks spent in a second of accepting nothing"
    );
    drop(idle);
    let mut pair = scene.open().await.context("afterwards")?;
    let (up, down) = (Flow::new(50_000, 1), Flow::new(50_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await
}

/// Short connections in quick succession leave nothing behind.
async fn churn(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    const BATCH: usize = 20;
    let scene = Scene::start(&lab, family, engine).await?;
    let rounds = usize::try_from(shrunk(40))?;
    for round in 0..rounds {
        let mut flows = JoinSet::new();
        for n in 0..BATCH {
            let Pair {
                mut client,
                mut server,
                ..
            } = scene.open().await?;
            let seed = (round * BATCH + n) as u64;
            let (up, down) = (Flow::new(seed % 7, seed), Flow::new(seed % 3000, seed + 1));
            flows
                .spawn(async move { transfer::exchange(&mut client, &mut server, up, down).await });
        }
        while let Some(flow) = flows.join_next().await {
            flow??;
        }
    }
    scene.records_of_short_flows(rounds * BATCH, engine).await?;
    scene
        .limpid
        .wait_for_flows(&scene.net.proxy, 0)
        .await
        .map(drop)
}

/// A flow that the table has no room for is refused by name; those that are in it do not notice, and
/// one that ends makes room.
async fn flow_table_full(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.engine(Engine::Copy).with("--max-flows=2")
    })
    .await?;
    let mut first = scene.open().await?;
    let second = scene.open().await?;
    let mut refused = scene.connect().await?;
    let header = Version::V2.header(scene.new_client(), scene.address());
    refused.write_all(&header).await?;
    transfer::expect_closed(&mut refused).await?;
    let line = scene.record().await?;
    ensure!(line.get("end")? == "flow-table-full", "{line:?}");

    let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
    transfer::exchange(&mut first.client, &mut first.server, up, down).await?;
    drop((first, second));
    scene.limpid.wait_for_access_lines(3).await?;
    // Entries linger for a while after their sockets.
    tokio::time::sleep(scaled(Duration::from_secs(4))).await;
    scene.open().await.context("after the others have gone")?;
    Ok(())
}

/// A backend that answers nobody for a while does not shut out those who come afterwards.
async fn failed_connects_leave_the_table(lab: Lab, family: Family) -> Result<()> {
    const FLOWS: usize = 8;
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .engine(Engine::Copy)
            .with("--connect-timeout=300ms")
            .with(format!("--max-flows={FLOWS}"))
    })
    .await?;
    scene.net.proxy.ip("link set inside arp off")?;
    scene.net.backend.ip("link set eth0 down")?;
    for _ in 0..3 {
        let mut tried = Vec::new();
        for _ in 0..FLOWS {
            let mut client = scene.connect().await?;
            let header = Version::V2.header(scene.new_client(), scene.address());
            client.write_all(&header).await?;
            tried.push(client);
        }
        for mut client in tried {
            transfer::expect_closed(&mut client).await?;
        }
    }
    let failed = scene.limpid.wait_for_access_lines(3 * FLOWS).await?;
    for line in &failed {
        let end = line.get("end")?;
        ensure!(end == "upstream-no-reply", "{line:?}");
    }
    let dump = scene.limpid.pins().join("flows");
    let dump = ["map", "dump", "pinned", &dump.to_string_lossy(), "--json"];
    tokio::time::sleep(scaled(Duration::from_secs(3))).await;
    let left = scene.net.proxy.run("bpftool", &dump)?;
    ensure!(left.trim() == "[]", "left in the table: {left}");
    Ok(())
}
