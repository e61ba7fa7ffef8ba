//! What the kernel's sockmap does not do by itself, point by point: each test is named after what
//! would go wrong.
//!
//! Beyond these: kernels that are not to be trusted are unit tests of `proxy-user/src/splice/trust.rs`,
//! the bound and the sequence numbers are unit tests of `proxy-common/src/splice.rs` too.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use limpid_tests::header::Version;
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Segment};
use limpid_tests::process::eventually;
use limpid_tests::programs::Engine;
use limpid_tests::repair;
use limpid_tests::scene::{Pair, Scene};
use limpid_tests::splices::Splices;
use limpid_tests::stall::stall;
use limpid_tests::suite::{Lab, Need, Suite, scaled, shrunk};
use limpid_tests::tables::BPFTOOL;
use limpid_tests::transfer::{self, Flow};
use nix::sys::signal::Signal;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const SHOWN: &[Need] = &[Need::Program(BPFTOOL)];

/// What a flow may hold in daemon and kernel together for a reader that does not read.
const STALLED: u64 = 16 << 20;

/// Longer than any end takes that is not waited for.
const PROMPT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for (name, write_size, length) in [
            ("bytes", 1, 256 << 10),
            ("small_writes", 100, 32 << 20),
            ("bulk", 64 << 10, 256 << 20),
        ] {
            suite.test(
                format!("no_backpressure_{name}_{family}"),
                &[],
                move |lab| stalled_reader(lab, write_size, length, family),
            );
        }
        suite.test(
            format!("no_backpressure_both_ways_{family}"),
            &[],
            move |lab| both_ways_stalled(lab, family),
        );
        suite.test(format!("order_{family}"), SHOWN, move |lab| {
            passed_and_redirected(lab, family)
        });
        suite.test(format!("gate_reopens_{family}"), SHOWN, move |lab| {
            gate_reopens(lab, family)
        });
        suite.test(
            format!("queued_before_insertion_{family}"),
            &[Need::Tun],
            move |lab| queued_before_insertion(lab, family),
        );
        suite.test(format!("half_read_segment_{family}"), &[], move |lab| {
            half_read_segment(lab, family)
        });
        suite.test(format!("early_payload_{family}"), SHOWN, move |lab| {
            early_payload(lab, family)
        });
        suite.test(
            format!("both_send_during_insertion_{family}"),
            &[],
            move |lab| both_send_during_insertion(lab, family),
        );
        for (name, from_client) in [("client", true), ("backend", false)] {
            suite.test(
                format!("close_wait_at_insertion_{name}_{family}"),
                &[Need::Tun],
                move |lab| close_wait_at_insertion(lab, from_client, family),
            );
            for (what, data) in [("alone", 0), ("with_data", 1000)] {
                suite.test(format!("fin_{what}_{name}_{family}"), &[], move |lab| {
                    fin(lab, from_client, data, family)
                });
            }
            suite.test(
                format!("end_behind_a_backlog_{name}_{family}"),
                &[],
                move |lab| end_behind_a_backlog(lab, from_client, family),
            );
            suite.test(
                format!("reset_while_redirecting_{name}_{family}"),
                SHOWN,
                move |lab| reset_while_redirecting(lab, from_client, family),
            );
        }
        suite.test(
            format!("overlap_across_the_wrap_{family}"),
            &[Need::Tun, Need::Program(BPFTOOL)],
            move |lab| overlap_across_the_wrap(lab, family),
        );
        suite.test(
            format!("idle_counts_redirected_{family}"),
            SHOWN,
            move |lab| idle_counts_redirected(lab, family),
        );
        suite.test(format!("fields_by_name_{family}"), SHOWN, move |lab| {
            fields_by_name(lab, family)
        });
    }
    suite.run()
}

async fn start(lab: &Lab, family: Family) -> Result<Scene> {
    Scene::start(lab, family, Engine::Sockmap).await
}

/// A flow that the kernel moves.
async fn spliced(scene: &Scene) -> Result<Pair> {
    let pair = scene.open().await?;
    scene.wait_for_engine(Engine::Sockmap).await?;
    Ok(pair)
}

fn splices(scene: &Scene) -> Result<Splices> {
    Splices::of(&scene.net.proxy, scene.limpid.pid())
}

/// (the side that begins, the other one)
fn ordered(pair: Pair, from_client: bool) -> (TcpStream, TcpStream) {
    if from_client {
        (pair.client, pair.server)
    } else {
        (pair.server, pair.client)
    }
}

/// Point 1: a redirect has no back-pressure and the queue before the target no bound.
async fn stalled_reader(lab: Lab, write_size: usize, length: u64, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let (up, down) = (scene.open().await?, scene.open().await?);
    scene.wait_for_engine(Engine::Sockmap).await?;
    let mut flow = Flow::new(shrunk(length), 1);
    flow.write_size = write_size;
    let ends = vec![(up.client, up.server), (down.server, down.client)];
    let held = stall(&scene.net.proxy, scene.limpid.pid(), ends, flow).await?;
    println!(
        "{family}, writes of {write_size}: {} KiB",
        held.per_flow / 1024
    );
    ensure!(held.per_flow <= STALLED, "{held:?}");
    Ok(())
}

/// Point 1, in both directions of one flow: each has its bound, and neither waits for the other.
async fn both_ways_stalled(lab: Lab, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let pair = spliced(&scene).await?;
    let (client, server) = (pair.client.into_split(), pair.server.into_split());
    let ends = vec![(client.1, server.0), (server.1, client.0)];
    let flow = Flow::new(shrunk(128 << 20), 1);
    let held = stall(&scene.net.proxy, scene.limpid.pid(), ends, flow).await?;
    println!("{family}: {} KiB for each direction", held.per_flow / 1024);
    ensure!(held.per_flow <= STALLED, "{held:?}");
    Ok(())
}

/// Point 2: what userspace copies and what the kernel redirects arrive in the order they were sent.
async fn passed_and_redirected(lab: Lab, family: Family) -> Result<()> {
    // Which way bytes go is a matter of timing: a flow that went one way only shows nothing.
    for _ in 0..3 {
        if both_ways_taken(&lab, family).await? {
            return Ok(());
        }
    }
    bail!("bytes were never both passed and redirected")
}

/// One flow with slow readers; whether its bytes took both ways.
async fn both_ways_taken(lab: &Lab, family: Family) -> Result<bool> {
    let scene = start(lab, family).await?;
    let mut pair = spliced(&scene).await?;
    let slow = |seed| {
        let mut flow = Flow::new(shrunk(64 << 20), seed);
        flow.read_size = 1 << 17;
        flow.read_pause = Duration::from_millis(1);
        flow
    };
    let (up, down) = (slow(1), slow(2));
    let (mut client_read, mut client_write) = pair.client.split();
    let (mut server_read, mut server_write) = pair.server.split();
    tokio::try_join!(
        up.send(&mut client_write),
        up.receive(&mut server_read),
        down.send(&mut server_write),
        down.receive(&mut client_read),
    )?;
    let splices = splices(&scene)?;
    let (passed, redirected) = (splices.sum("passed")?, splices.sum("redirected")?);
    ensure!(
        passed + redirected == up.length + down.length,
        "{splices:?}"
    );
    Ok(passed > 0 && redirected > 0)
}

/// Points 2 and 9: a reader that stops closes the gate, one that has caught up opens it again.
async fn gate_reopens(lab: Lab, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let mut pair = spliced(&scene).await?;
    let flow = Flow::new(shrunk(64 << 20), 1);
    let closed = || Ok(splices(&scene)?.sum("passed")? > 0);
    tokio::try_join!(flow.send(&mut pair.client), async {
        eventually("bytes are passed to userspace", closed).await?;
        flow.receive(&mut pair.server).await
    })?;
    // The daemon looks at the send queue every 100 ms at most.
    sleep(scaled(Duration::from_millis(300))).await;
    let before = splices(&scene)?;
    // The first message may find the gate closed, and opens it.
    ping_pong(&mut pair, 1).await?;
    sleep(scaled(Duration::from_millis(300))).await;
    ping_pong(&mut pair, 100).await?;
    let after = splices(&scene)?;
    ensure!(
        after.sum("redirected")? >= before.sum("redirected")? + 200,
        "{before:?} {after:?}"
    );
    Ok(())
}

/// A byte up and a byte down, some times.
async fn ping_pong(pair: &mut Pair, times: usize) -> Result<()> {
    for _ in 0..times {
        pair.client.write_all(b"i").await?;
        transfer::expect_bytes(&mut pair.server, b"i").await?;
        pair.server.write_all(b"o").await?;
        transfer::expect_bytes(&mut pair.client, b"o").await?;
    }
    Ok(())
}

/// A scene whose SYNs take long enough to the backend to stop the daemon meanwhile.
async fn with_a_far_backend(lab: &Lab, family: Family) -> Result<Scene> {
    let plan = Plan {
        inside: LinkKind::Tap(Impairment {
            delay: scaled(Duration::from_millis(30)),
            ..Impairment::default()
        }),
        ..Plan::default()
    };
    Scene::with(lab, family, &plan, |options| {
        options.engine(Engine::Sockmap)
    })
    .await
}

/// A connection that the daemon finds connected when it goes on: it was stopped after its SYN.
/// `meanwhile` is done before that. It is the scene's second.
async fn while_stopped<F>(
    scene: &mut Scene,
    meanwhile: impl FnOnce(TcpStream, TcpStream) -> F,
) -> Result<(TcpStream, TcpStream)>
where
    F: Future<Output = Result<(TcpStream, TcpStream)>>,
{
    // The first connection takes longer: programs are attached, addresses resolved.
    drop(scene.open().await?);
    scene.limpid.wait_for_access_lines(1).await?;
    let header = Version::V2.header(scene.new_client(), scene.address());
    let mut client = scene.connect().await?;
    client.write_all(&header).await?;
    sleep(scaled(Duration::from_millis(15))).await;
    scene.limpid.process().signal(Signal::SIGSTOP)?;
    let (server, _) = scene.accept().await?;
    let ends = meanwhile(client, server).await?;
    // Everything said has arrived.
    sleep(scaled(Duration::from_millis(150))).await;
    scene.limpid.process().signal(Signal::SIGCONT)?;
    Ok(ends)
}

/// Point 3: what lies in a receive queue at insertion moves without a further segment.
async fn queued_before_insertion(lab: Lab, family: Family) -> Result<()> {
    let mut scene = with_a_far_backend(&lab, family).await?;
    let (up, down) = (Flow::new(5000, 1), Flow::new(7000, 2));
    let (mut client, mut server) = while_stopped(&mut scene, async |mut client, mut server| {
        up.send(&mut client).await?;
        down.send(&mut server).await?;
        Ok((client, server))
    })
    .await?;
    timeout(scaled(PROMPT), async {
        tokio::try_join!(up.receive(&mut server), down.receive(&mut client))
    })
    .await
    .context("it lies there")??;
    scene.wait_for_engine(Engine::Sockmap).await
}

/// Point 4: a segment of which the header was read is delivered without what was read.
async fn half_read_segment(lab: Lab, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    for size in [1, 1000, 60_000, 200_000] {
        let flow = Flow::new(size, size);
        let mut bytes = Version::V2.header(scene.new_client(), scene.address());
        let header = bytes.len();
        bytes.resize(header + usize::try_from(size)?, 0);
        flow.pattern.fill(0, &mut bytes[header..]);
        let mut pair = scene.open_with(&bytes).await?;
        // No more is sent, so a byte that is missing is missed, and one too many is the next one.
        timeout(scaled(PROMPT), flow.receive(&mut pair.server))
            .await
            .with_context(|| format!("{size} bytes stall"))??;
        scene.wait_for_engine(Engine::Sockmap).await?;
        ping_pong(&mut pair, 3).await?;
    }
    Ok(())
}

/// Payload that came with the header is first, and what follows is redirected.
async fn early_payload(lab: Lab, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let mut bytes = Version::V2.header(scene.new_client(), scene.address());
    bytes.extend(b"early");
    let mut pair = scene.open_with(&bytes).await?;
    transfer::expect_bytes(&mut pair.server, b"early").await?;
    scene.wait_for_engine(Engine::Sockmap).await?;
    ping_pong(&mut pair, 50).await?;
    let splices = splices(&scene)?;
    ensure!(splices.sum("redirected")? > 0, "{splices:?}");
    let Pair {
        mut client,
        mut server,
        ..
    } = pair;
    let (up, down) = (Flow::new(100_000, 1), Flow::new(100_000, 2));
    transfer::exchange(&mut client, &mut server, up, down).await?;
    let record = scene.records_of(1, Engine::Sockmap).await?;
    let record = record.first().context("no record")?;
    ensure!(record.get("bytes_up")? == "100055", "{record:?}");
    Ok(())
}

/// Point 8: with both sides sending from the first moment on, no redirect misses its target.
async fn both_send_during_insertion(lab: Lab, family: Family) -> Result<()> {
    let flows = usize::try_from(shrunk(100))?;
    let scene = start(&lab, family).await?;
    let mut open = JoinSet::new();
    for n in 0..flows as u64 {
        let (up, down) = (Flow::new(150_000, 2 * n), Flow::new(150_000, 2 * n + 1));
        let mut client = scene.connect().await?;
        let header = Version::V2.header(scene.new_client(), scene.address());
        // The client's sending goes on while the backend's begins.
        let client = tokio::spawn(async move {
            client.write_all(&header).await?;
            let (mut read, mut write) = client.split();
            tokio::try_join!(up.send(&mut write), down.receive(&mut read))?;
            Ok::<_, anyhow::Error>(client)
        });
        let (mut server, _) = scene.accept().await?;
        open.spawn(async move {
            let (mut read, mut write) = server.split();
            tokio::try_join!(down.send(&mut write), up.receive(&mut read))?;
            Ok::<_, anyhow::Error>((client.await??, server))
        });
    }
    // Kept until all are done: no flow ends before it is spliced.
    let done: Vec<_> = open.join_all().await.into_iter().collect::<Result<_>>()?;
    drop(done);
    scene.records_of(flows, Engine::Sockmap).await.map(drop)
}

/// Point 11: a connection that has received a FIN is not taken; the flow is copied and says so.
async fn close_wait_at_insertion(lab: Lab, from_client: bool, family: Family) -> Result<()> {
    let mut scene = with_a_far_backend(&lab, family).await?;
    let (said, answer) = (Flow::new(3000, 1), Flow::new(200_000, 2));
    let (mut client, mut server) = while_stopped(&mut scene, async |mut client, mut server| {
        let early = if from_client {
            &mut client
        } else {
            &mut server
        };
        said.send_to_end(early).await?;
        Ok((client, server))
    })
    .await?;
    let (first, second) = if from_client {
        (&mut client, &mut server)
    } else {
        (&mut server, &mut client)
    };
    said.receive_to_end(second).await?;
    tokio::try_join!(answer.send_to_end(second), answer.receive_to_end(first))?;
    let records = scene.limpid.wait_for_access_lines(2).await?;
    let record = records.last().context("no record")?;
    ensure!(record.get("engine")? == "copy", "{record:?}");
    ensure!(record.get("fallback")? == "half-closed", "{record:?}");
    Ok(())
}

/// Point 6: a FIN's empty skb must not reach the target, whose own direction would end with EPIPE.
async fn fin(lab: Lab, from_client: bool, data: u64, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let (mut first, mut second) = ordered(spliced(&scene).await?, from_client);
    let (said, answer) = (Flow::new(data, 1), Flow::new(2_000_000, 2));
    // Corked, the last segment waits for the FIN and carries it.
    SockRef::from(&first).set_tcp_cork(true)?;
    said.send_to_end(&mut first).await?;
    timeout(scaled(PROMPT), said.receive_to_end(&mut second))
        .await
        .context("no end came")??;
    tokio::try_join!(
        answer.send_to_end(&mut second),
        answer.receive_to_end(&mut first)
    )?;
    let record = scene.records_of(1, Engine::Sockmap).await?;
    let record = record.first().context("no record")?;
    ensure!(record.get("end")? == "fin", "{record:?}");
    Ok(())
}

/// Point 7: an end that comes while the target has a backlog cuts nothing off, and the other
/// direction does not notice.
async fn end_behind_a_backlog(lab: Lab, from_client: bool, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let (mut first, mut second) = ordered(spliced(&scene).await?, from_client);
    // More than the reader's own buffer takes; less than stops the sender.
    let (said, answer) = (Flow::new(9_000_000, 1), Flow::new(3_000_000, 2));
    timeout(scaled(PROMPT), said.send_to_end(&mut first))
        .await
        .context("the sender was stopped: nothing is left behind")??;
    sleep(Duration::from_millis(500)).await;
    tokio::try_join!(answer.send(&mut second), answer.receive(&mut first))?;
    said.receive_to_end(&mut second).await?;
    second.shutdown().await?;
    transfer::expect_end(&mut first).await?;
    let record = scene.records_of(1, Engine::Sockmap).await?;
    let record = record.first().context("no record")?;
    ensure!(record.get("end")? == "fin", "{record:?}");
    Ok(())
}

/// Point 10: a reset reaches the other side, though the kernel tells it nothing.
async fn reset_while_redirecting(lab: Lab, by_client: bool, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let (mut resetting, mut other) = ordered(spliced(&scene).await?, by_client);
    let flow = Flow::new(u64::MAX, 1);
    let mut reading = flow;
    reading.length = 4 << 20;
    let sending = async { flow.send(&mut resetting).await };
    tokio::select! {
        sent = sending => anyhow::bail!("sent for ever: {sent:?}"),
        read = reading.receive(&mut other) => read?,
    }
    let before = splices(&scene)?;
    ensure!(before.sum("redirected")? > 0, "{before:?}");
    transfer::reset(resetting)?;
    timeout(scaled(PROMPT), transfer::expect_reset(&mut other))
        .await
        .context("no reset came")??;
    let record = scene.records_of(1, Engine::Sockmap).await?;
    let record = record.first().context("no record")?;
    let expected = if by_client {
        "downstream-reset"
    } else {
        "upstream-reset"
    };
    ensure!(record.get("end")? == expected, "{record:?}");
    Ok(())
}

/// Point 5: a segment that repeats data and brings new is stripped of what it repeats, also where
/// the sequence numbers start again at 0.
async fn overlap_across_the_wrap(lab: Lab, family: Family) -> Result<()> {
    let plan = Plan {
        transit: LinkKind::Tap(Impairment {
            seed: 4,
            overlap: 0.3,
            mss: Some(600),
            ..Impairment::default()
        }),
        ..Plan::default()
    };
    let scene = Scene::with(&lab, family, &plan, |options| {
        options.engine(Engine::Sockmap)
    })
    .await?;
    let size = shrunk(2 << 20);
    let sequence = 0u32.wrapping_sub(u32::try_from(size / 2)?);
    let prepare = repair::begin_at(sequence);
    let edge = &scene.net.edge;
    let mut client = edge.connect_with(scene.address(), prepare).await?;
    let header = Version::V2.header(scene.new_client(), scene.address());
    client.write_all(&header).await?;
    let (mut server, _) = scene.accept().await?;
    scene.wait_for_engine(Engine::Sockmap).await?;
    let (up, down) = (Flow::new(size, 1), Flow::new(size, 2));
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    tokio::try_join!(
        up.send(&mut client_write),
        up.receive(&mut server_read),
        down.send(&mut server_write),
        down.receive(&mut client_read),
    )?;
    let overlapped: u64 = (scene.net.wire_counts(Segment::Transit).iter())
        .map(|counts| counts.overlapped)
        .sum();
    ensure!(overlapped > 0, "the wire was good");
    let splices = splices(&scene)?;
    ensure!(splices.sum("trimmed")? > 0, "{splices:?}");
    Ok(())
}

/// Point 10: bytes that only the kernel sees keep a flow from being idle.
async fn idle_counts_redirected(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options
            .engine(Engine::Sockmap)
            .with("--idle-timeout=1500ms")
    })
    .await?;
    let mut pair = spliced(&scene).await?;
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        pair.client.write_all(b"x").await?;
        transfer::expect_bytes(&mut pair.server, b"x").await?;
        sent += 1;
        sleep(Duration::from_millis(200)).await;
    }
    let splices = splices(&scene)?;
    ensure!(splices.sum("redirected")? == sent, "{splices:?}");
    ensure!(splices.sum("passed")? == 0, "{splices:?}");
    let record = scene.records_of(1, Engine::Sockmap).await?;
    let record = record.first().context("no record")?;
    ensure!(record.get("end")? == "idle-timeout", "{record:?}");
    ensure!(record.get("bytes_up")? == sent.to_string(), "{record:?}");
    Ok(())
}

/// Point 12: the sockhashes cannot be printed; the table beside them has names for everything.
async fn fields_by_name(lab: Lab, family: Family) -> Result<()> {
    let scene = start(&lab, family).await?;
    let mut pair = spliced(&scene).await?;
    ping_pong(&mut pair, 5).await?;
    let splices = splices(&scene)?;
    let values = splices.values();
    ensure!(values.len() == 2, "one for each direction: {splices:?}");
    for value in values {
        for field in [
            "target",
            "redirected",
            "passed",
            "trimmed",
            "base",
            "last_seen_ns",
            "gate",
        ] {
            ensure!(value[field].is_u64(), "no {field}: {splices:?}");
        }
    }
    ensure!(
        splices.sum("redirected")? + splices.sum("passed")? == 10,
        "{splices:?}"
    );
    Ok(())
}
