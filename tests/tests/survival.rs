//! Flows of the engine `packet` without their daemon: it is killed, and another one started. Nobody notices but
//! the log. (`takeover.rs` has one in the place of a running one.)
//!
//! `LIMPID_TEST_LONG=1` keeps a thousand flows open where two hundred are usual.

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::net::{Family, Plan};
use limpid_tests::process::{PATIENCE, Process, eventually};
use limpid_tests::programs::{Engine, Limpid, Options};
use limpid_tests::scene::{LISTEN, Pair, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Need, STRACE, Suite, numerous, scaled, shrunk};
use limpid_tests::talk::{self, Talks};
use limpid_tests::transfer::{self, Flow};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Longer than any end takes that is not waited for.
const PROMPT: Duration = Duration::from_secs(5);

/// No flow waits for longer, whatever becomes of the daemon.
const STALL: Duration = Duration::from_secs(1);

/// What a hundred talkers at once leave of a busy machine is not limpid's matter.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for (attach, needs) in [("tcx", &[Need::Kernel(6, 6)][..]), ("clsact", &[])] {
            suite.test(format!("killed_{attach}_{family}"), needs, move |lab| {
                killed(lab, attach, family)
            });
        }
        suite.test(format!("killed_in_bulk_{family}"), &[], move |lab| {
            killed_in_bulk(lab, family)
        });
        suite.test(format!("killed_while_opening_{family}"), &[], move |lab| {
            killed_while_opening(lab, family)
        });
        suite.test(
            format!("killed_at_each_question_{family}"),
            &[STRACE],
            move |lab| killed_at_each_question(lab, family),
        );
        suite.test(format!("ends_without_a_daemon_{family}"), &[], move |lab| {
            ends_without_a_daemon(lab, family)
        });
        suite.test(format!("adopted_flows_expire_{family}"), &[], move |lab| {
            adopted_flows_expire(lab, family)
        });
        suite.test(format!("adopted_flows_drain_{family}"), &[], move |lab| {
            adopted_flows_drain(lab, family)
        });
        suite.test(format!("same_client_after_{family}"), &[], move |lab| {
            same_client_after(lab, family)
        });
        suite.test(format!("another_layout_{family}"), &[], move |lab| {
            another_layout(lab, family)
        });
        suite.test(format!("killed_and_cleaned_up_{family}"), &[], move |lab| {
            killed_and_cleaned_up(lab, family)
        });
        suite.test(format!("take_over_of_nobody_{family}"), &[], move |lab| {
            take_over_of_nobody(lab, family)
        });
    }
    suite.run()
}

/// What both daemons of a scenario are started with.
#[derive(Clone)]
struct Daemons {
    lab: Lab,
    family: Family,
    args: Vec<String>,
    wrapper: &'static [&'static str],
}

impl Daemons {
    fn new(lab: Lab, family: Family, args: &[&str]) -> Self {
        Self {
            lab,
            family,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            wrapper: &[],
        }
    }

    /// Started by another program.
    fn under(self, wrapper: &'static [&'static str]) -> Self {
        Self { wrapper, ..self }
    }

    fn options(&self, plain: Options) -> Options {
        let options = plain
            .under(self.wrapper)
            .accept_proxy(self.family.everything())
            .engine(Engine::Packet);
        self.args.iter().fold(options, Options::with)
    }

    async fn first(&self) -> Result<Scene> {
        let net = limpid_tests::net::Topology::build(&Plan::default())?;
        Scene::on(net, &self.lab, self.family, |options| self.options(options)).await
    }

    /// Another in the place of the scene's, with the same command line and `more`.
    async fn next(&self, scene: &Scene, more: &[&str]) -> Result<Limpid> {
        let plain = Options::new(
            scene.net.proxy_addr(self.family, LISTEN),
            scene.net.backend_addr(self.family, UPSTREAM),
        );
        let options = self.options(plain);
        let options = more.iter().fold(options, |options, arg| options.with(*arg));
        // Both write to the same log.
        let before = scene.limpid.log()?.matches("\"ready\"").count();
        let limpid = Limpid::start(&scene.net.proxy, &self.lab, &options)?;
        eventually("the next daemon is ready", || {
            Ok(limpid.log()?.matches("\"ready\"").count() > before)
        })
        .await?;
        Ok(limpid)
    }
}

/// Connections to an echoing backend, all of them spliced.
async fn enter(scene: &Scene, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(scene.enter().await?);
    }
    let proxy = &scene.net.proxy;
    scene.limpid.wait_for_flows(proxy, count).await?;
    scene.wait_for_no_sockets().await?;
    Ok(streams)
}

/// Killed under traffic on many flows, and started again: none breaks or waits, all of them are listed,
/// counted and logged.
async fn killed(lab: Lab, attach: &str, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab, family, &[&format!("--attach={attach}")]);
    let mut scene = daemons.first().await?;
    let _echo = scene.echo()?;
    let count = numerous(usize::try_from(shrunk(200))?, 1000);
    let streams = enter(&scene, count).await?;
    let peers: HashSet<String> = streams
        .iter()
        .map(|stream| Ok(stream.local_addr()?.to_string()))
        .collect::<Result<_>>()?;
    let proxy = &scene.net.proxy;
    let before = scene.limpid.flows(proxy)?;
    let (known, legs) = (clients(&before)?, legs(&before));
    let talks = Talks::start(&scene.net.edge, streams, PAUSE);
    sleep(Duration::from_secs(1)).await;
    let with_it = talks.longest_since();
    scene.limpid.kill()?;
    let at_the_kill = talks.exchanges();
    sleep(Duration::from_secs(2)).await;
    let alone = talks.exchanges() - at_the_kill;
    let without = talks.longest_since();
    ensure!(
        alone > 10 * count as u64,
        "{alone} exchanges of {count} flows in 2 s without a daemon"
    );
    let again = daemons.next(&scene, &[]).await?;
    let adopted = again.wait_for_flows(&scene.net.proxy, count).await?;
    ensure!(
        clients(&adopted)? == known,
        "the clients are others: {:?}",
        adopted.first()
    );
    ensure!(
        self::legs(&adopted) == legs,
        "other connections: {:?}",
        adopted.first()
    );
    for flow in &adopted {
        ensure!(flow["engine"] == Engine::Packet.name(), "{flow}");
        let downstream = flow["downstream"].as_str().unwrap_or_default();
        ensure!(peers.contains(downstream), "{flow}");
        ensure!(
            flow["age_ms"].as_u64().is_some_and(|age| age > 2000),
            "{flow}"
        );
    }
    sleep(Duration::from_secs(1)).await;
    let longest = [with_it, without, talks.longest_since()];
    println!("{family}, {attach}: the longest exchanges before, without, after: {longest:?}");
    ensure!(
        longest.iter().all(|longest| *longest < scaled(STALL)),
        "the longest exchanges with the daemon, without, with the next: {longest:?}"
    );
    let exchanges = talks.exchanges();
    drop(talks.stop().await?);
    let records = again.wait_for_access_lines(count).await?;
    ensure!(records.len() == count, "{} records", records.len());
    let (mut bytes, mut logged) = (0, HashSet::new());
    for record in &records {
        record.ensure_carried_by(Engine::Packet)?;
        ensure!(record.get("end")? == "fin", "{record:?}");
        ensure!(
            record.get("bytes_up")? == record.get("bytes_down")?,
            "{record:?}"
        );
        bytes += record.get("bytes_up")?.parse::<u64>()?;
        logged.insert(record.get("client")?);
    }
    ensure!(logged == known, "other clients: {:?}", records.first());
    // The last exchanges were not over when they were counted.
    let least = exchanges * talk::MESSAGE as u64;
    let most = least + (count * talk::MESSAGE) as u64;
    ensure!(
        (least..=most).contains(&bytes),
        "{bytes} bytes counted, sent were {least} to {most}"
    );
    Ok(())
}

/// Where flows come from and go to, as `limpid flows` has it.
fn legs(flows: &[serde_json::Value]) -> HashSet<String> {
    let legs = flows.iter().map(|flow| {
        let fields = ["downstream", "upstream", "source"];
        fields.map(|field| flow[field].to_string()).join(" ")
    });
    legs.collect()
}

/// The clients that `limpid flows` names.
fn clients(flows: &[serde_json::Value]) -> Result<HashSet<String>> {
    let names = flows.iter().map(|flow| {
        let name = flow["client"].as_str().with_context(|| flow.to_string());
        Ok(name?.to_owned())
    });
    names.collect()
}

/// Bytes are right at the end, and counted to the last, through kills and starts.
async fn killed_in_bulk(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab, family, &[]);
    let mut scene = daemons.first().await?;
    let Pair {
        mut client,
        mut server,
        ..
    } = scene.open().await?;
    scene.wait_for_no_sockets().await?;
    // Slow enough to last for as long as all this.
    let slowly = |seed| {
        let mut flow = Flow::new(shrunk(40 << 20), seed);
        flow.read_size = 32 << 10;
        flow.read_pause = Duration::from_millis(2);
        flow
    };
    let (up, down) = (slowly(1), slowly(2));
    let begun = Instant::now();
    let moving =
        tokio::spawn(async move { transfer::exchange(&mut client, &mut server, up, down).await });
    sleep(Duration::from_millis(500)).await;
    scene.limpid.kill()?;
    sleep(Duration::from_millis(500)).await;
    let mut second = daemons.next(&scene, &[]).await?;
    second.kill()?;
    let again = daemons.next(&scene, &[]).await?;
    ensure!(
        !moving.is_finished(),
        "all was moved in {:?}: nothing is shown",
        begun.elapsed()
    );
    moving.await??;
    let records = again.wait_for_access_lines(1).await?;
    let record = records.first().context("no record")?;
    record.ensure_carried_by(Engine::Packet)?;
    ensure!(
        record.get("bytes_up")? == up.length.to_string(),
        "{record:?}"
    );
    ensure!(
        record.get("bytes_down")? == down.length.to_string(),
        "{record:?}"
    );
    Ok(())
}

/// Killed while connections are opened: what had been switched goes on, all else is closed, and nothing
/// hangs.
async fn killed_while_opening(lab: Lab, family: Family) -> Result<()> {
    const CLIENTS: usize = 40;
    let daemons = Daemons::new(lab, family, &[]);
    let mut scene = daemons.first().await?;
    let _echo = scene.echo()?;
    let old = Talks::start(&scene.net.edge, enter(&scene, CLIENTS).await?, PAUSE);
    let mut opening = Vec::new();
    for seed in 0..CLIENTS as u64 {
        let mut stream = scene.enter().await?;
        opening.push(tokio::spawn(async move {
            for round in 0..50 {
                // A connection that was not switched yet ends with the daemon.
                if talk::exchange(&mut stream, 1000 + seed, round)
                    .await
                    .is_err()
                {
                    return None;
                }
                sleep(PAUSE).await;
            }
            Some(stream)
        }));
    }
    // Some of them are done, some are on their way.
    scene.limpid.kill()?;
    let again = daemons.next(&scene, &[]).await?;
    let begun = Instant::now();
    let mut young = Vec::new();
    for talk in opening {
        young.extend(talk.await?);
    }
    let took = begun.elapsed();
    ensure!(took < scaled(PROMPT), "somebody waited for {took:?}");
    println!("{family}: {} of {CLIENTS} young flows went on", young.len());
    let open = CLIENTS + young.len();
    again.wait_for_flows(&scene.net.proxy, open).await?;
    ensure!(
        old.longest() < scaled(STALL),
        "an old flow waited for {:?}",
        old.longest()
    );
    drop(old.stop().await?);
    drop(young);
    let records = again.wait_for_access_lines(open).await?;
    for record in &records {
        let end = record.get("end")?;
        ensure!(end == "fin" || end == "handover-lost", "{record:?}");
    }
    let mut new = scene.enter().await.context("a new one")?;
    talk::exchange(&mut new, 2000, 0).await.map(drop)
}

/// Killed at each of the questions that it asks of sockets (`getsockopt()`), one after the other, while a flow is
/// opened: some are asked in repair mode, in which a socket is closed without a word. A client that waits
/// for an answer gets it, or the end of its connection.
async fn killed_at_each_question(lab: Lab, family: Family) -> Result<()> {
    /// A flow is opened with more questions than these, and fewer than those.
    const QUESTIONS: (usize, usize) = (10, 100);
    /// strace may come too late for the first.
    const ATTEMPTS: usize = 3;
    // Questions are counted by thread: there is one that serves connections.
    let daemons = Daemons::new(lab.clone(), family, &[]).under(&["taskset", "--cpu-list", "0"]);
    let mut scene = daemons.first().await?;
    let _echo = scene.echo()?;
    let (mut nth, mut attempts) = (1, 0);
    while attempts < ATTEMPTS {
        ensure!(nth < QUESTIONS.1, "more than {nth} questions");
        let pid = scene.limpid.process().pid();
        let strace = kill_at(&scene, &lab, pid, nth)?;
        let mut stream = scene.enter().await?;
        let answered = tokio::select! {
            answered = talk::exchange(&mut stream, 3000, 0) => answered.is_ok(),
            () = gone(pid) => false,
        };
        if answered {
            // Meanwhile it gives up its sockets.
            let _ = timeout(scaled(Duration::from_millis(200)), gone(pid)).await;
        } else {
            let killed = timeout(scaled(PROMPT), gone(pid)).await;
            killed.with_context(|| format!("question {nth}: not killed, not answered"))?;
        }
        drop(strace);
        if !is_gone(pid) {
            attempts += 1;
            continue;
        }
        scene.limpid.kill()?;
        scene.limpid = daemons.next(&scene, &[]).await?;
        if !answered {
            let told = timeout(scaled(PROMPT), stream.read(&mut [0; talk::MESSAGE])).await;
            // The end of the stream, an error, or the answer.
            let _ = told.with_context(|| format!("killed at question {nth}: the client waits"))?;
        }
        (nth, attempts) = (nth + 1, 0);
    }
    println!("{family}: killed at each of {} questions", nth - 1);
    ensure!(nth > QUESTIONS.0, "not more than that");
    Ok(())
}

/// Has the kernel kill the scene's daemon as soon as one of its threads asks a socket something for the
/// `nth` time from now on.
fn kill_at(scene: &Scene, lab: &Lab, pid: u32, nth: usize) -> Result<Process> {
    let program = Path::new("/usr/bin/strace");
    let traced = pid.to_string();
    let inject = format!("inject=getsockopt:signal=KILL:when={nth}");
    let args = [
        "-f",
        "-qq",
        "-e",
        "trace=getsockopt",
        "-e",
        &inject,
        "-p",
        &traced,
    ];
    let strace = Process::start(&scene.net.proxy, lab.path(), "strace", program, &args)?;
    let begun = Instant::now();
    while !is_traced(pid)? {
        ensure!(
            begun.elapsed() < scaled(PROMPT),
            "not traced: {}",
            strace.output()?
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // Until it looks at their system calls.
    std::thread::sleep(scaled(Duration::from_millis(50)));
    Ok(strace)
}

/// Is every thread of a process traced?
fn is_traced(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        if status.contains("TracerPid:\t0\n") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until a process has been killed.
async fn gone(pid: u32) {
    while !is_gone(pid) {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Is it a zombie?
fn is_gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| status.contains("State:\tZ"))
}

/// Flows may end while nobody watches: the ends are told at once, and the next daemon logs them.
async fn ends_without_a_daemon(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab, family, &[]);
    let mut scene = daemons.first().await?;
    let mut by_fin = scene.open().await?;
    let mut by_client = scene.open().await?;
    let mut by_backend = scene.open().await?;
    let stays = scene.open().await?;
    scene.wait_for_no_sockets().await?;
    scene.limpid.kill()?;
    let (up, down) = (Flow::new(12_345, 1), Flow::new(54_321, 2));
    transfer::exchange(&mut by_fin.client, &mut by_fin.server, up, down).await?;
    transfer::reset(by_client.client)?;
    transfer::reset(by_backend.server)?;
    for end in [&mut by_client.server, &mut by_backend.client] {
        timeout(scaled(PROMPT), transfer::expect_reset(end))
            .await
            .context("no reset came")??;
    }
    let again = daemons.next(&scene, &[]).await?;
    let records = again.wait_for_access_lines(3).await?;
    let mut ends = Vec::new();
    for record in &records {
        record.ensure_carried_by(Engine::Packet)?;
        ends.push((record.get("end")?, record.get("bytes_up")?));
    }
    ends.sort();
    let expected = [
        ("downstream-reset", "0"),
        ("fin", "12345"),
        ("upstream-reset", "0"),
    ]
    .map(|(end, bytes)| (end.to_owned(), bytes.to_owned()));
    ensure!(ends == expected, "{ends:?}");
    let flows = again.flows(&scene.net.proxy)?;
    ensure!(flows.len() == 1, "{flows:?}");
    drop(stays);
    again.wait_for_access_lines(4).await.map(drop)
}

/// Adopted flows have the new daemon's timeouts, and are told their end like others.
async fn adopted_flows_expire(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab, family, &[]);
    let mut scene = daemons.first().await?;
    let mut idle = scene.open().await?;
    let mut half = scene.open().await?;
    let (up, down) = (Flow::new(700, 1), Flow::new(800, 2));
    tokio::try_join!(up.send(&mut idle.client), up.receive(&mut idle.server))?;
    tokio::try_join!(down.send(&mut half.server), down.receive(&mut half.client))?;
    scene.wait_for_no_sockets().await?;
    half.client.shutdown().await?;
    transfer::expect_end(&mut half.server).await?;
    scene.limpid.kill()?;
    let limits = ["--idle-timeout=2s", "--half-close-timeout=1s"];
    let again = daemons.next(&scene, &limits).await?;
    for end in [&mut half.client, &mut idle.client, &mut idle.server] {
        timeout(scaled(PROMPT), transfer::expect_reset(end))
            .await
            .context("not closed")??;
    }
    let mut ends = Vec::new();
    for record in again.wait_for_access_lines(2).await? {
        record.ensure_carried_by(Engine::Packet)?;
        ends.push((
            record.get("end")?,
            record.get("bytes_up")?,
            record.get("bytes_down")?,
        ));
    }
    ends.sort();
    let expected = [
        ("half-close-timeout", "0", "800"),
        ("idle-timeout", "700", "0"),
    ]
    .map(|(end, up, down)| (end.to_owned(), up.to_owned(), down.to_owned()));
    ensure!(ends == expected, "{ends:?}");
    Ok(())
}

/// The new daemon waits for adopted flows like for its own, also where it is told to end before it has them
/// all, and leaves nothing behind.
async fn adopted_flows_drain(lab: Lab, family: Family) -> Result<()> {
    const FLOWS: u64 = 100;
    let daemons = Daemons::new(lab, family, &["--drain-timeout=60s"]);
    let mut scene = daemons.first().await?;
    let mut pairs = Vec::new();
    for _ in 0..FLOWS {
        pairs.push(scene.open().await?);
    }
    scene.wait_for_no_sockets().await?;
    scene.limpid.kill()?;
    let mut again = daemons.next(&scene, &[]).await?;
    again.process().signal(nix::sys::signal::Signal::SIGTERM)?;
    sleep(Duration::from_millis(300)).await;
    ensure!(
        again.process().ended()?.is_none(),
        "ended with a flow open:\n{}",
        again.log()?
    );
    for mut pair in pairs {
        let (up, down) = (Flow::new(40_000, 1), Flow::new(40_000, 2));
        transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    }
    let status = again.process().wait(scaled(PROMPT))?;
    ensure!(status.success(), "{status}");
    ensure!(again.pinned()?.is_empty(), "left: {:?}", again.pinned()?);
    Ok(())
}

/// A client whose address and port an adopted flow has gets another port, and the flow lives.
async fn same_client_after(lab: Lab, family: Family) -> Result<()> {
    use limpid_tests::header::Version;
    let daemons = Daemons::new(lab, family, &[]);
    let mut scene = daemons.first().await?;
    let who = scene.new_client();
    let mut old = scene.open_as(Version::V2, who).await?;
    scene.wait_for_no_sockets().await?;
    scene.limpid.kill()?;
    let _again = daemons.next(&scene, &[]).await?;
    let mut new = scene.open_as(Version::V2, who).await?;
    ensure!(
        new.peer.ip() == who.ip() && new.peer != who,
        "seen as {}",
        new.peer
    );
    let (up, down) = (Flow::new(200_000, 1), Flow::new(200_000, 2));
    tokio::try_join!(
        transfer::exchange(&mut old.client, &mut old.server, up, down),
        transfer::exchange(&mut new.client, &mut new.server, down, up),
    )
    .map(drop)
}

/// A daemon with another layout refuses, says how to go on, and does not disturb what it refuses.
async fn another_layout(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab.clone(), family, &[]);
    let mut scene = daemons.first().await?;
    let mut pair = scene.open().await?;
    scene.wait_for_no_sockets().await?;
    scene.limpid.kill()?;
    let meta = scene.limpid.pins().join("meta").display().to_string();
    let future = ["map", "update", "pinned", &meta, "key", "0", "0", "0", "0"];
    let future = [&future[..], &["value", "99"], &["0"; 7]].concat();
    scene.net.proxy.run("bpftool", &future)?;
    let plain = Options::new(scene.address(), scene.net.backend_addr(family, UPSTREAM));
    let mut again = Limpid::spawn(&scene.net.proxy, &lab, &daemons.options(plain))?;
    let status = again.process().wait(PATIENCE)?;
    let log = again.log()?;
    ensure!(!status.success() && log.contains("limpid cleanup"), "{log}");
    let (up, down) = (Flow::new(200_000, 1), Flow::new(200_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await
}

/// A clean-up is the end of flows that nobody keeps, and both ends learn of it when they say something.
async fn killed_and_cleaned_up(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab, family, &[]);
    let mut scene = daemons.first().await?;
    let mut pair = scene.open().await?;
    scene.wait_for_no_sockets().await?;
    scene.limpid.kill()?;
    scene.limpid.cleanup(&scene.net.proxy)?;
    for (who, end) in [("client", &mut pair.client), ("backend", &mut pair.server)] {
        // The programs go a moment after their links.
        timeout(scaled(PROMPT), async {
            while end.write_all(b"anybody there?").await.is_ok() {
                sleep(PAUSE).await;
            }
        })
        .await
        .with_context(|| format!("the {who} was not told"))?;
    }
    Ok(())
}

/// Where nobody runs, it is an ordinary start.
async fn take_over_of_nobody(lab: Lab, family: Family) -> Result<()> {
    let daemons = Daemons::new(lab, family, &["--take-over"]);
    let scene = daemons.first().await?;
    let mut pair = scene.open().await?;
    scene.wait_for_no_sockets().await?;
    let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    scene.record_of(Engine::Packet).await.map(drop)
}
