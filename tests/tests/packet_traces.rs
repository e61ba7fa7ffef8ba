//! What flows of the engine `packet` leave on the proxy host while they are open, and afterwards:
//! no socket, no descriptor, no entry in conntrack, and in the end none in limpid's own tables.
//!
//! `LIMPID_TEST_LONG=1` opens a hundred thousand connections where a few thousand are usual.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::firewall;
use limpid_tests::net::{Family, Plan, Topology};
use limpid_tests::process::{PATIENCE, cpu_ticks, eventually};
use limpid_tests::programs::Engine;
use limpid_tests::scene::{LISTEN, Pair, Scene};
use limpid_tests::suite::{Lab, Need, Suite, numerous, scaled, shrunk};
use limpid_tests::tables::{self, BPFTOOL};
use limpid_tests::talk::{self, Talks};
use limpid_tests::transfer::{self, Flow};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const IPTABLES: Need = Need::Program("/usr/sbin/iptables");

/// The pinned tables that a flow has entries in.
const TABLES: [&str; 4] = ["flows", "connecting", "forwards", "records"];

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        suite.test(format!("conntrack_{family}"), &[IPTABLES], move |lab| {
            conntrack(lab, family)
        });
        suite.test(format!("much_at_once_{family}"), &[IPTABLES], move |lab| {
            much_at_once(lab, family)
        });
        suite.test(
            format!("nothing_left_{family}"),
            &[Need::Program(BPFTOOL)],
            move |lab| nothing_left(lab, family),
        );
        suite.test(format!("no_socket_{family}"), &[], move |lab| {
            no_socket(lab, family)
        });
        suite.test(format!("table_full_{family}"), &[], move |lab| {
            table_full(lab, family)
        });
    }
    suite.run()
}

/// Opens and ends `count` connections, some dozens at once. Each has one exchange with the backend; every
/// third is reset.
async fn short_connections(scene: &Arc<Scene>, count: u64) -> Result<()> {
    const AT_ONCE: usize = 40;
    let edge = &scene.net.edge;
    // The edge has its own ports in TIME-WAIT, for a minute each.
    edge.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    edge.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    let _echo = scene.echo()?;
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut connections = JoinSet::new();
    let begun = Instant::now();
    for seed in 0..count {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        while let Some(ended) = connections.try_join_next() {
            ended??;
        }
        let scene = Arc::clone(scene);
        connections.spawn(async move {
            let mut stream = scene.enter().await?;
            talk::exchange(&mut stream, seed, 0).await?;
            if seed % 3 == 0 {
                transfer::reset(stream)?;
            } else {
                stream.shutdown().await?;
                transfer::expect_end(&mut stream).await?;
            }
            drop(turn);
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    println!("{count} connections in {:?}", begun.elapsed());
    Ok(())
}

/// On a host that tracks connections, and drops what it does not know, none of ours stays.
async fn conntrack(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    net.enable_forwarding()?;
    firewall::strict_input(&net.proxy, LISTEN)?;
    firewall::strict_forward(&net.proxy)?;
    let scene = Scene::on(net, &lab, family, |options| {
        options
            .accept_proxy(family.everything())
            .engine(Engine::Packet)
    })
    .await?;
    let scene = Arc::new(scene);
    let before = firewall::tracked(&scene.net.proxy)?;
    let client = scene.connect().await?;
    ensure!(
        firewall::tracked(&scene.net.proxy)? > before,
        "this host tracks nothing"
    );
    drop(client);
    let count = numerous(shrunk(2000), 50_000);
    short_connections(&scene, count).await?;
    // One of them is the one above, which never was a flow: it is in TIME-WAIT, by the host's own rules.
    let own = before + 1;
    let left = || firewall::tracked(&scene.net.proxy);
    eventually("conntrack forgets the flows", || Ok(left()? <= own))
        .await
        .with_context(|| format!("{:?} entries, {own} at most", left()))
}

/// On such a host a client sends much before its flow is switched, more than may be under way to the backend: what
/// goes past the guard arrives there before what it still has to send, and is acknowledged out of order.
async fn much_at_once(lab: Lab, family: Family) -> Result<()> {
    const CONNECTIONS: u64 = 100;
    let net = Topology::standard()?;
    firewall::strict_input(&net.proxy, LISTEN)?;
    let scene = Scene::on(net, &lab, family, |options| {
        options
            .accept_proxy(family.everything())
            .engine(Engine::Packet)
    })
    .await?;
    for seed in 0..shrunk(CONNECTIONS) {
        let (up, down) = (Flow::new(300_000, seed), Flow::new(100_000, seed + 1));
        let mut client = scene.enter().await?;
        let (mut from_server, mut to_server) = client.split();
        let server = async {
            let (mut server, _) = scene.accept().await?;
            let (mut from_client, mut to_client) = server.split();
            tokio::try_join!(up.receive(&mut from_client), down.send(&mut to_client)).map(drop)
        };
        let done = async {
            tokio::try_join!(
                up.send(&mut to_server),
                down.receive(&mut from_server),
                server
            )
        };
        timeout(scaled(PATIENCE), done)
            .await
            .with_context(|| format!("connection {seed} stands still"))??;
    }
    scene
        .records_of_short_flows(usize::try_from(shrunk(CONNECTIONS))?, Engine::Packet)
        .await
}

/// After the last packets have been waited for, the tables are empty and there is no socket.
async fn nothing_left(lab: Lab, family: Family) -> Result<()> {
    let scene = Arc::new(Scene::start(&lab, family, Engine::Packet).await?);
    let count = numerous(shrunk(5000), 100_000);
    short_connections(&scene, count).await?;
    let proxy = &scene.net.proxy;
    let log = scene
        .limpid
        .wait_for_access_lines(usize::try_from(count)?)
        .await?;
    ensure!(log.len() as u64 == count, "{} records", log.len());
    let mut others = 0;
    for record in &log {
        // The reset may come before the switch.
        others += u64::from(record.ensure_carried_by(Engine::Packet).is_err());
    }
    ensure!(others < count / 10, "{others} of {count} in other hands");
    scene.limpid.wait_for_flows(proxy, 0).await?;
    for table in TABLES {
        let pin = scene.limpid.pins().join(table);
        let left = || tables::pinned(proxy, &pin);
        eventually(&format!("{table} is empty"), || Ok(left()?.is_empty()))
            .await
            .with_context(|| format!("{:?}", left().map(|mut left| (left.len(), left.pop()))))?;
    }
    let sockets = proxy.sh("ss -tanH")?;
    let own: Vec<&str> = sockets
        .lines()
        .filter(|line| !line.starts_with("LISTEN"))
        .collect();
    ensure!(own.is_empty(), "{} sockets, {:?}", own.len(), own.first());
    Ok(())
}

/// The descriptors of a process.
fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Open flows have no socket on the host and no descriptor in the daemon, and their traffic costs it
/// nothing.
async fn no_socket(lab: Lab, family: Family) -> Result<()> {
    /// Clock ticks, hundredths of a second; its timers may take one or two.
    const IDLE: u64 = 3;
    let scene = Scene::start(&lab, family, Engine::Packet).await?;
    let pid = scene.limpid.pid();
    let _echo = scene.echo()?;
    // What the first flow opens for all.
    let first = scene.enter().await?;
    scene.limpid.wait_for_flows(&scene.net.proxy, 1).await?;
    scene.wait_for_no_sockets().await?;
    let before = descriptors(pid)?;
    let count = usize::try_from(shrunk(100))?;
    let mut streams = vec![first];
    for _ in 0..count {
        streams.push(scene.enter().await?);
    }
    scene
        .limpid
        .wait_for_flows(&scene.net.proxy, count + 1)
        .await?;
    scene.wait_for_no_sockets().await?;
    let now = descriptors(pid)?;
    ensure!(now <= before, "{now} descriptors, {before} before");

    let cpu = cpu_ticks(pid)?;
    let talks = Talks::start(&scene.net.edge, streams, Duration::from_millis(1));
    sleep(Duration::from_secs(2)).await;
    let spent = cpu_ticks(pid)?.saturating_sub(cpu);
    let exchanges = talks.exchanges();
    ensure!(
        spent <= IDLE,
        "{spent} clock ticks of the daemon for {exchanges} exchanges"
    );
    drop(talks.stop().await?);
    scene.records_of(count + 1, Engine::Packet).await.map(drop)
}

/// A flow that the tables have no room for takes another engine or is refused, by name; those in it do
/// not notice, and one that ends makes room.
async fn table_full(lab: Lab, family: Family) -> Result<()> {
    const ROOM: usize = 4;
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .engine(Engine::Packet)
            .with(format!("--max-flows={ROOM}"))
    })
    .await?;
    let mut open = Vec::new();
    for _ in 0..ROOM {
        open.push(scene.open().await?);
    }
    scene.wait_for_engine(Engine::Packet).await?;
    for _ in 0..3 {
        let mut late = scene.enter().await?;
        let (up, down) = (Flow::new(10_000, 1), Flow::new(10_000, 2));
        tokio::select! {
            closed = transfer::expect_closed(&mut late) => closed?,
            arrived = scene.accept() => {
                let (mut server, _) = arrived?;
                transfer::exchange(&mut late, &mut server, up, down).await?;
            }
        }
    }
    for line in scene.limpid.wait_for_access_lines(3).await? {
        let refused = line.get("end")? == "flow-table-full";
        ensure!(refused || !line.get("fallback")?.is_empty(), "{line:?}");
    }
    for Pair { client, server, .. } in &mut open {
        let (up, down) = (Flow::new(300_000, 3), Flow::new(300_000, 4));
        transfer::exchange(client, server, up, down).await?;
    }
    drop(open);
    scene.limpid.wait_for_access_lines(3 + ROOM).await?;
    // Entries linger for a while.
    sleep(scaled(Duration::from_secs(4))).await;
    let _pair = scene.open().await.context("after the others have gone")?;
    scene.wait_for_engine(Engine::Packet).await
}
