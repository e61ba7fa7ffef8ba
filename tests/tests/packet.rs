//! The engine `packet`: the switch in the middle of traffic, and what is counted of it.
//!
//! The translation of headers is in `packet_headers.rs`, ends in `packet_ends.rs`, what lies on the way
//! in `packet_paths.rs`, what is left behind in `packet_traces.rs`, and life without the daemon in
//! `survival.rs`. All that the engines have in common runs over each of them elsewhere.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::firewall;
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Segment, Topology};
use limpid_tests::process::eventually;
use limpid_tests::programs::Engine;
use limpid_tests::scene::{Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled, shrunk};
use limpid_tests::talk;
use limpid_tests::transfer::{self, Flow};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// No splice may make anybody wait for longer.
const STALL: Duration = Duration::from_secs(1);

/// Bulk takes a fraction of it.
const BULK: Duration = Duration::from_secs(20);

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
            move |lab| {
                switch_in_bulk(
                    lab,
                    LinkKind::Tap(Impairment::LOSSY),
                    shrunk(2 << 20),
                    true,
                    family,
                )
            },
        );
        suite.test(format!("switch_under_talk_{family}"), &[], move |lab| {
            switch_under_talk(lab, family)
        });
        suite.test(format!("first_payload_{family}"), &[], move |lab| {
            first_payload(lab, family)
        });
        suite.test(
            format!("bytes_count_once_{family}"),
            &[Need::Tun],
            move |lab| bytes_count_once(lab, family),
        );
        suite.test(format!("thousand_random_sizes_{family}"), &[], move |lab| {
            thousand_random_sizes(lab, family)
        });
    }
    suite.run()
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
        record.ensure_bytes(up.length, down.length)?;
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
        transfer::both_ways(&mut pair.client, &mut pair.server, flow, flow).await?;
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
        ..Impairment::LOSSY
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
    transfer::both_ways(&mut pair.client, &mut pair.server, up, down).await?;
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
    scene
        .record_of(Engine::Packet)
        .await?
        .ensure_bytes(up.length, down.length)
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
            transfer::both_ways(&mut pair.client, &mut pair.server, up, down).await?;
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
