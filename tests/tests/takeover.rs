//! `limpid run --take-over`: a daemon in the place of a running one, while connections come and stay. Nobody
//! notices, and a daemon that cannot take the place changes nothing.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::firewall::Deaf;
use limpid_tests::header::Version;
use limpid_tests::net::{Family, Host, Plan, Topology};
use limpid_tests::process::{PATIENCE, eventually};
use limpid_tests::programs::{Engine, Limpid, Options};
use limpid_tests::scene::{LISTEN, Pair, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, Suite, scaled, shrunk};
use limpid_tests::talk::{self, Talks};
use limpid_tests::transfer::{self, Flow};
use nix::sys::signal::Signal;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Longer than any end takes that is not waited for.
const PROMPT: Duration = Duration::from_secs(5);

/// Nobody waits for longer, whoever accepts.
const STALL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        suite.test(format!("twice_in_a_row_{family}"), &[], move |lab| {
            twice_in_a_row(lab, family)
        });
        suite.test(format!("half_way_{family}"), &[], move |lab| {
            half_way(lab, family)
        });
        suite.test(
            format!("the_new_one_ends_first_{family}"),
            &[],
            move |lab| the_new_one_ends_first(lab, family),
        );
        suite.test(format!("the_old_one_is_killed_{family}"), &[], move |lab| {
            the_old_one_is_killed(lab, family)
        });
    }
    suite.test("the_new_one_is_killed", &[], the_new_one_is_killed);
    for (old, new, needs) in [
        ("clsact", "clsact", &[][..]),
        ("clsact", "tcx", &[Need::Kernel(6, 6)][..]),
        ("tcx", "clsact", &[Need::Kernel(6, 6)][..]),
    ] {
        suite.test(format!("from_{old}_to_{new}"), needs, move |lab| {
            other_attachment(lab, old, new)
        });
    }
    for engine in [Engine::Copy, Engine::Sockmap] {
        suite.test(format!("from_packet_to_{engine}"), &[], move |lab| {
            other_engines(lab, Engine::Packet, engine)
        });
        suite.test(format!("from_{engine}_to_packet"), &[], move |lab| {
            other_engines(lab, engine, Engine::Packet)
        });
    }
    suite.test("without_steering", &[], without_steering);
    suite.test("refused", &[], refused);
    suite.run()
}

/// How daemons of one instance are started.
struct Daemons {
    lab: Lab,
    family: Family,
}

impl Daemons {
    fn new(lab: &Lab, family: Family) -> Self {
        Self {
            lab: lab.clone(),
            family,
        }
    }

    async fn first(&self, engine: Engine) -> Result<Scene> {
        Scene::start(&self.lab, self.family, engine).await
    }

    fn options(&self, net: &Topology) -> Options {
        let listen = net.proxy_addr(self.family, LISTEN);
        let upstream = net.backend_addr(self.family, UPSTREAM);
        Options::new(listen, upstream)
            .accept_proxy(self.family.everything())
            .with("--take-over")
    }

    /// One that takes over.
    async fn next(&self, scene: &Scene, engine: Engine, more: &[&str]) -> Result<Limpid> {
        let options = self.options(&scene.net).engine(engine);
        let options = more.iter().fold(options, |options, arg| options.with(*arg));
        next(&self.lab, &scene.net.proxy, &scene.limpid, &options).await
    }

    /// One that cannot, and says why.
    fn refused(&self, host: &Host, options: &Options, why: &[&str]) -> Result<()> {
        let mut limpid = Limpid::spawn(host, &self.lab, options)?;
        let status = limpid.process().wait(scaled(PATIENCE))?;
        let log = limpid.log()?;
        ensure!(status.code() == Some(1), "{status}: {log}");
        // The running one writes to the same log.
        let mut errors = log.lines().filter(|line| line.starts_with("error: "));
        let said = errors.next_back().unwrap_or_default();
        for part in why {
            ensure!(said.contains(part), "{part:?} is not in: {said}");
        }
        Ok(())
    }
}

/// Starts another daemon and waits until it is ready; all of them write to the same log.
async fn next(lab: &Lab, host: &Host, first: &Limpid, options: &Options) -> Result<Limpid> {
    let ready = |log: &str| log.matches("\"ready\"").count();
    let before = ready(&first.log()?);
    let limpid = Limpid::spawn(host, lab, options)?;
    eventually("the next daemon is ready", || {
        Ok(ready(&limpid.log()?) > before)
    })
    .await?;
    Ok(limpid)
}

/// A connection from the proxy's own host: the loopback device has no programs, so it needs sockets.
async fn from_here(scene: &Scene) -> Result<Pair> {
    let client = scene.net.proxy.connect(scene.address()).await?;
    let header = Version::V2.header(scene.new_client(), scene.address());
    scene.open_over(client, &header).await
}

/// Both ends say something, one after the other, and it is heard.
async fn works(pair: &mut Pair, seed: u64) -> Result<()> {
    let (up, down) = (Flow::new(100_000, seed), Flow::new(100_000, seed + 1));
    tokio::try_join!(up.send(&mut pair.client), up.receive(&mut pair.server))?;
    tokio::try_join!(down.send(&mut pair.server), down.receive(&mut pair.client))?;
    Ok(())
}

/// Both ends say something, and that it is all.
async fn ends(mut pair: Pair, seed: u64) -> Result<()> {
    let (up, down) = (Flow::new(100_000, seed), Flow::new(100_000, seed + 1));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await
}

async fn exits(limpid: &mut Limpid, who: &str) -> Result<()> {
    eventually(&format!("{who} daemon ends"), || {
        Ok(limpid.process().ended()?.is_some())
    })
    .await?;
    let status = limpid.process().wait(PROMPT)?;
    ensure!(status.success(), "{who} daemon: {status}");
    Ok(())
}

/// Clients that come, say something, hear it, and go; until they are stopped.
struct Comers {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    longest_us: Arc<AtomicU64>,
    tasks: JoinSet<Result<()>>,
}

impl Comers {
    fn start(scene: &Arc<Scene>, at_once: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (count, longest_us) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for seed in 0..at_once {
            let (scene, stop) = (Arc::clone(scene), Arc::clone(&stop));
            let (count, longest_us) = (Arc::clone(&count), Arc::clone(&longest_us));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let mut stream = scene.enter().await.context("refused")?;
                    let talked = talk::exchange(&mut stream, seed, 0).await;
                    talked.context("reset")?;
                    stream.shutdown().await?;
                    transfer::expect_end(&mut stream).await.context("cut off")?;
                    let us = u64::try_from(begun.elapsed().as_micros())?;
                    longest_us.fetch_max(us, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self {
            stop,
            count,
            longest_us,
            tasks,
        }
    }

    /// The longest that one took since this was asked last.
    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }

    /// How many have come and gone. None may have failed.
    async fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task??;
        }
        Ok(self.count.load(Ordering::Relaxed))
    }
}

/// A second takes over from the first, and a third from the second, while connections come, talk, and one
/// that needs sockets stays with the first.
async fn twice_in_a_row(lab: Lab, family: Family) -> Result<()> {
    const AT_ONCE: u64 = 20;
    const PAUSE: Duration = Duration::from_millis(20);
    const SPAN: Duration = Duration::from_secs(1);
    let open = usize::try_from(shrunk(200))?;
    let daemons = Daemons::new(&lab, family);
    let scene = Arc::new(daemons.first(Engine::Packet).await?);
    let mut stays = from_here(&scene).await?;
    works(&mut stays, 1).await?;
    let _echo = scene.echo()?;
    let mut streams = Vec::new();
    for _ in 0..open {
        streams.push(scene.enter().await?);
    }
    let proxy = &scene.net.proxy;
    scene.limpid.wait_for_flows(proxy, open + 1).await?;
    let talks = Talks::start(&scene.net.edge, streams, PAUSE);
    let comers = Comers::start(&scene, AT_ONCE);
    sleep(SPAN).await;
    let mut longest = vec![comers.longest()];
    let mut second = daemons.next(&scene, Engine::Packet, &[]).await?;
    sleep(SPAN).await;
    longest.push(comers.longest());
    let third = daemons.next(&scene, Engine::Packet, &[]).await?;
    sleep(SPAN).await;
    longest.push(comers.longest());
    let came = comers.stop().await?;
    println!(
        "{family}: {came} connections, the longest with the first daemon, the second and the third took \
         {longest:?}; of {} exchanges on others the longest took {:?}",
        talks.exchanges(),
        talks.longest()
    );
    let longest = longest.into_iter().max().unwrap_or_default();
    ensure!(came > 2 * AT_ONCE, "{came} connections: nothing is shown");
    ensure!(longest < scaled(STALL), "a connection took {longest:?}");
    let longest = talks.longest();
    ensure!(longest < scaled(STALL), "an exchange took {longest:?}");
    let flows = third.wait_for_flows(proxy, open).await?;
    for flow in &flows {
        ensure!(flow["engine"] == Engine::Packet.name(), "{flow}");
    }
    ensure!(
        second.process().ended()?.is_none(),
        "the second did not wait for the first"
    );
    works(&mut stays, 3).await?;
    ends(stays, 5).await?;
    // One after the other: where two hundred end at once a FIN is repeated, a socket that is gone answers
    // what comes of it with a RST, and that may be seen before the end is.
    for mut stream in talks.stop().await? {
        stream.shutdown().await?;
        transfer::expect_end(&mut stream).await?;
    }
    let total = usize::try_from(came)? + open + 1;
    let records = third.wait_for_access_lines(total).await?;
    ensure!(records.len() == total, "{} records", records.len());
    for record in &records {
        ensure!(record.get("end")? == "fin", "{record:?}");
    }
    let mut scene = Arc::into_inner(scene).context("somebody has it")?;
    exits(&mut scene.limpid, "the first").await?;
    exits(&mut second, "the second").await?;
    clean_end(third)
}

/// The last one removes everything.
fn clean_end(mut limpid: Limpid) -> Result<()> {
    let status = limpid.terminate(scaled(PATIENCE))?;
    ensure!(status.success(), "the last daemon: {status}");
    left_nothing(&limpid)
}

fn left_nothing(limpid: &Limpid) -> Result<()> {
    let left = limpid.pinned()?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

/// Connections in every stage but the last: their header, their handover, their backend's answer comes when
/// the other daemon is there. They are switched nevertheless, and that one has them.
async fn half_way(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(&lab, family);
    // What is half way must not be over before the other daemon is ready.
    let seconds = scaled(Duration::from_secs(20)).as_secs();
    let mut scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .engine(Engine::Packet)
            .with(format!("--header-timeout={seconds}s"))
            .with(format!("--connect-timeout={seconds}s"))
    })
    .await?;
    let backend = &scene.net.backend;
    // What arrives before the switch is more than the backend takes unread.
    SockRef::from(&scene.backend).set_recv_buffer_size(4096)?;
    let large = Flow::new(shrunk(1 << 20), 7);
    let header = scene.header();
    let mut client = scene.connect().await?;
    let deaf = Deaf::to_new(backend, UPSTREAM)?;
    let sending = tokio::spawn(async move {
        client.write_all(&header).await?;
        large.send(&mut client).await?;
        anyhow::Ok(client)
    });
    scene.wait_for_unanswered(1).await?;
    sleep(Duration::from_millis(200)).await;
    deaf.end()?;
    let (mut server, _) = scene.accept().await?;
    let mut silent = scene.connect().await?;
    let deaf = Deaf::to_new(backend, UPSTREAM)?;
    let mut connecting = scene.enter().await?;
    scene.wait_for_unanswered(1).await?;
    let proxy = &scene.net.proxy;
    scene.limpid.wait_for_flows(proxy, 3).await?;
    let second = daemons.next(&scene, Engine::Packet, &[]).await?;
    let flows = second.flows(proxy)?;
    ensure!(flows.is_empty(), "nothing was half way: {flows:?}");
    deaf.end()?;
    let (mut connected, _) = scene.accept().await?;
    silent.write_all(&scene.header()).await?;
    let (mut answering, _) = scene.accept().await?;
    let (up, down) = (Flow::new(50_000, 8), Flow::new(50_000, 9));
    large.receive(&mut server).await?;
    let mut client = sending.await??;
    let flows = second.wait_for_flows(proxy, 3).await?;
    for flow in &flows {
        ensure!(flow["engine"] == Engine::Packet.name(), "{flow}");
    }
    exits(&mut scene.limpid, "the old").await?;
    for (client, server) in [
        (&mut client, &mut server),
        (&mut connecting, &mut connected),
        (&mut silent, &mut answering),
    ] {
        transfer::exchange(client, server, up, down).await?;
    }
    let records = second.wait_for_access_lines(3).await?;
    let mut bytes = Vec::new();
    for record in &records {
        record.ensure_carried_by(Engine::Packet)?;
        ensure!(record.get("end")? == "fin", "{record:?}");
        let bytes_up: u64 = record.get("bytes_up")?.parse()?;
        bytes.push((bytes_up, record.get("bytes_down")?.parse()?));
    }
    bytes.sort_unstable();
    let small = (up.length, down.length);
    let expected = [small, small, (large.length + up.length, down.length)];
    ensure!(bytes == expected, "{bytes:?} instead of {expected:?}");
    clean_end(second)
}

/// A daemon that ends while the one before it still has a flow waits for that, for as long as it waits for
/// its own, and then has it reset.
async fn the_new_one_ends_first(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(&lab, family);
    let mut scene = daemons.first(Engine::Packet).await?;
    let mut stays = from_here(&scene).await?;
    let mut moves = scene.open().await?;
    works(&mut stays, 1).await?;
    works(&mut moves, 3).await?;
    let drain = ["--drain-timeout=1s"];
    let mut second = daemons.next(&scene, Engine::Packet, &drain).await?;
    second.wait_for_flows(&scene.net.proxy, 1).await?;
    second.process().signal(Signal::SIGTERM)?;
    ends(moves, 5).await?;
    // Of its own it has none any more.
    works(&mut stays, 7).await?;
    for end in [&mut stays.client, &mut stays.server] {
        timeout(scaled(PROMPT), transfer::expect_reset(end))
            .await
            .context("not reset")??;
    }
    exits(&mut second, "the new").await?;
    exits(&mut scene.limpid, "the old").await?;
    left_nothing(&second)
}

/// What a killed daemon has in its sockets ends with it; all else goes on.
async fn the_old_one_is_killed(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(&lab, family);
    let mut scene = daemons.first(Engine::Packet).await?;
    let mut stays = from_here(&scene).await?;
    let mut moves = scene.open().await?;
    works(&mut stays, 1).await?;
    works(&mut moves, 3).await?;
    let second = daemons.next(&scene, Engine::Packet, &[]).await?;
    scene.limpid.kill()?;
    for end in [&mut stays.client, &mut stays.server] {
        timeout(scaled(PROMPT), transfer::expect_closed(end))
            .await
            .context("not closed")??;
    }
    second.wait_for_log("is gone").await?;
    works(&mut moves, 5).await?;
    ends(moves, 7).await?;
    ends(scene.open().await?, 9).await?;
    clean_end(second)
}

/// The old one still has a flow, and the one that took over is killed: whoever comes next, by an ordinary
/// start, leaves that flow its entries and its programs.
async fn the_new_one_is_killed(lab: Lab) -> Result<()> {
    let daemons = Daemons::new(&lab, Family::V4);
    let mut scene = daemons.first(Engine::Packet).await?;
    let mut stays = from_here(&scene).await?;
    let mut moves = scene.open().await?;
    works(&mut stays, 1).await?;
    let mut second = daemons.next(&scene, Engine::Packet, &[]).await?;
    second.wait_for_flows(&scene.net.proxy, 1).await?;
    second.kill()?;
    let drain = ["--drain-timeout=20s"];
    let mut third = daemons.next(&scene, Engine::Packet, &drain).await?;
    third.wait_for_log("still has flows").await?;
    works(&mut moves, 3).await?;
    ends(scene.open().await?, 5).await?;
    third.process().signal(Signal::SIGTERM)?;
    ends(moves, 7).await?;
    sleep(Duration::from_millis(500)).await;
    let ended = third.process().ended()?;
    ensure!(
        ended.is_none(),
        "it did not wait for the old one: {ended:?}"
    );
    works(&mut stays, 9).await?;
    ends(stays, 11).await?;
    exits(&mut scene.limpid, "the old").await?;
    exits(&mut third, "the last").await?;
    let left = third.pinned()?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

/// Attached another way, or the same by filters, whose names only one process may claim.
async fn other_attachment(lab: Lab, old: &str, new: &str) -> Result<()> {
    let family = Family::V4;
    let attach = |by: &str| format!("--attach={by}");
    let net = Topology::build(&Plan::default())?;
    let before = net.proxy.sh("tc qdisc show")?;
    let daemons = Daemons::new(&lab, family);
    let options = |options: Options| {
        let options = options.accept_proxy(family.everything());
        options.engine(Engine::Packet).with(attach(old))
    };
    let mut scene = Scene::on(net, &lab, family, options).await?;
    let mut stays = from_here(&scene).await?;
    let mut moves = scene.open().await?;
    scene.limpid.wait_for_flows(&scene.net.proxy, 2).await?;
    let attach = attach(new);
    let second = daemons.next(&scene, Engine::Packet, &[&attach]).await?;
    second.wait_for_flows(&scene.net.proxy, 1).await?;
    works(&mut moves, 1).await?;
    works(&mut stays, 3).await?;
    ends(scene.open().await?, 5).await?;
    ends(moves, 7).await?;
    ends(stays, 9).await?;
    exits(&mut scene.limpid, "the old").await?;
    clean_end(second)?;
    let after = scene.net.proxy.sh("tc qdisc show")?;
    ensure!(before == after, "qdiscs: {before}, then {after}");
    Ok(())
}

/// Another engine after the take-over: what was there stays as it is.
async fn other_engines(lab: Lab, before: Engine, after: Engine) -> Result<()> {
    let daemons = Daemons::new(&lab, Family::V4);
    let mut scene = daemons.first(before).await?;
    let mut old = scene.open().await?;
    scene.wait_for_engine(before).await?;
    works(&mut old, 1).await?;
    let second = daemons.next(&scene, after, &[]).await?;
    let mut new = scene.open().await?;
    works(&mut new, 3).await?;
    works(&mut old, 5).await?;
    let flows = second.flows(&scene.net.proxy)?;
    // In any order: a new one may come before the old one is adopted.
    let carried_by = |engine: Engine| flows.iter().any(|flow| flow["engine"] == engine.name());
    let expected = match before {
        Engine::Packet => vec![before, after],
        Engine::Sockmap | Engine::Copy => vec![after],
    };
    ensure!(flows.len() == expected.len(), "{flows:?}");
    ensure!(expected.into_iter().all(carried_by), "{flows:?}");
    ends(old, 7).await?;
    exits(&mut scene.limpid, "the old").await?;
    second.wait_for_access_lines(1).await?;
    ends(new, 9).await?;
    let records = second.wait_for_access_lines(2).await?;
    records[0].ensure_carried_by(before)?;
    records[1].ensure_carried_by(after)?;
    clean_end(second)
}

/// Daemons that have nothing in the kernel: only the socket changes hands.
async fn without_steering(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let copy = |options: Options| options.engine(Engine::Copy);
    let mut scene = Scene::on(net, &lab, Family::V4, copy).await?;
    let old = scene.open_with(b"").await?;
    let upstream = scene.net.backend_addr(Family::V4, UPSTREAM);
    let more = copy(Options::new(scene.address(), upstream)).with("--take-over");
    let second = next(&lab, &scene.net.proxy, &scene.limpid, &more).await?;
    let new = scene.open_with(b"").await?;
    ends(new, 1).await?;
    ensure!(scene.limpid.process().ended()?.is_none(), "ended too early");
    ends(old, 3).await?;
    exits(&mut scene.limpid, "the old").await?;
    clean_end(second)
}

/// A daemon that cannot take over says why, and the running one goes on as if nothing had been.
async fn refused(lab: Lab) -> Result<()> {
    let daemons = Daemons::new(&lab, Family::V4);
    let scene = daemons.first(Engine::Packet).await?;
    let mut pair = scene.open().await?;
    works(&mut pair, 1).await?;
    let proxy = &scene.net.proxy;
    let plain = || daemons.options(&scene.net);
    let pinned = scene.limpid.pinned()?;
    let upstream = scene.net.backend_addr(Family::V4, UPSTREAM);
    let elsewhere = scene.net.proxy_addr(Family::V4, LISTEN + 1);
    let elsewhere = Options::new(elsewhere, upstream)
        .accept_proxy(Family::V4.everything())
        .with("--take-over");
    let [ours, theirs] = [LISTEN, LISTEN + 1].map(|port| format!(":{port}"));
    daemons.refused(proxy, &elsewhere, &[&ours, &theirs])?;
    let interface = plain().with("--downstream-interface=transit");
    daemons.refused(proxy, &interface, &["any interface", "transit"])?;
    // With the descriptors in its hands.
    let nowhere = plain().with("--upstream-interface=nowhere");
    daemons.refused(proxy, &nowhere, &["nowhere"])?;
    let bpffs = scene.limpid.pins();
    let bpffs = bpffs.ancestors().nth(2).context("no bpffs")?;
    let another = format!("mount -t bpf bpf {} && exec \"$@\"", bpffs.display());
    let another = plain().under(&["unshare", "--mount", "sh", "-c", &another, "sh"]);
    daemons.refused(proxy, &another, &["--bpffs"])?;
    let edge = format!("--net={}", scene.net.edge.namespace().display());
    let other_namespace = plain().under(&["nsenter", &edge]);
    daemons.refused(proxy, &other_namespace, &["network namespace"])?;
    let meta = scene.limpid.pins().join("meta").display().to_string();
    let future = ["map", "update", "pinned", &meta, "key", "0", "0", "0", "0"];
    let future = [&future[..], &["value", "99"], &["0"; 7]].concat();
    proxy.run("bpftool", &future)?;
    daemons.refused(proxy, &plain(), &["layout version 99", "goes on"])?;
    ensure!(scene.limpid.pinned()? == pinned, "pins came or went");
    works(&mut pair, 3).await?;
    ends(pair, 5).await?;
    ends(scene.open().await?, 7).await
}
