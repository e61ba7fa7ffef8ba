//! Nothing lost, doubled or reordered, whatever the network does.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use limpid_tests::header::Version;
use limpid_tests::net::{Counts, Family, Impairment, LinkKind, Plan, Segment};
use limpid_tests::programs::Engine;
use limpid_tests::scene::{Pair, Scene};
use limpid_tests::suite::{Lab, Need, Suite, shrunk};
use limpid_tests::transfer::{self, Flow};
use tokio::task::JoinSet;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for engine in Engine::ALL {
            suite.test(format!("random_sizes_{family}_{engine}"), &[], move |lab| {
                random_sizes(lab, family, engine)
            });
            suite.test(format!("bulk_{family}_{engine}"), &[], move |lab| {
                bulk(lab, family, engine)
            });
            suite.test(format!("slow_readers_{family}_{engine}"), &[], move |lab| {
                slow_readers(lab, family, engine)
            });
            for segment in [Segment::Transit, Segment::Inside] {
                for (name, mss, impairment) in impairments() {
                    let side = side(segment);
                    suite.test(
                        format!("{name}_{side}_{family}_{engine}"),
                        &[Need::Tun],
                        move |lab| over_a_bad_wire(lab, segment, (mss, impairment), family, engine),
                    );
                }
            }
        }
    }
    suite.run()
}

fn side(segment: Segment) -> &'static str {
    match segment {
        Segment::Transit => "downstream",
        Segment::Inside => "upstream",
        Segment::Outside | Segment::Beyond => "elsewhere",
    }
}

/// What a wire does, and the largest segments that there are.
fn impairments() -> Vec<(&'static str, Option<u16>, Impairment)> {
    let good = Impairment {
        seed: 3,
        ..Impairment::default()
    };
    let delay = Duration::from_micros(500);
    vec![
        (
            "loss",
            None,
            Impairment {
                loss: 0.02,
                delay,
                ..good.clone()
            },
        ),
        (
            "reordering",
            None,
            Impairment {
                reorder: 0.05,
                delay,
                ..good.clone()
            },
        ),
        (
            "duplication",
            None,
            Impairment {
                duplicate: 0.1,
                ..good.clone()
            },
        ),
        ("small_segments", Some(100), good.clone()),
        (
            "overlap",
            Some(600),
            Impairment {
                overlap: 0.2,
                ..good.clone()
            },
        ),
        (
            "everything",
            Some(500),
            Impairment {
                loss: 0.01,
                reorder: 0.02,
                duplicate: 0.02,
                overlap: 0.1,
                delay,
                ..good
            },
        ),
    ]
}

/// Many connections at once, each with sizes of its own in each direction, some of them none.
async fn random_sizes(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    const FLOWS: usize = 40;
    let scene = Scene::start(&lab, family, engine).await?;
    let mut random = fastrand::Rng::with_seed(5);
    let mut flows = JoinSet::new();
    for n in 0..FLOWS as u64 {
        let mut size = || match random.u8(0..4) {
            0 => random.u64(0..3),
            1 => random.u64(0..5000),
            _ => random.u64(0..shrunk(4 << 20)),
        };
        let (up, down) = (Flow::new(size(), 2 * n), Flow::new(size(), 2 * n + 1));
        let Pair {
            mut client,
            mut server,
            ..
        } = scene.open().await?;
        flows.spawn(async move {
            transfer::exchange(&mut client, &mut server, up, down)
                .await
                .with_context(|| format!("flow {n}, {} up, {} down", up.length, down.length))
        });
    }
    while let Some(flow) = flows.join_next().await {
        flow??;
    }
    scene.records_of_short_flows(FLOWS, engine).await.map(drop)
}

/// One connection at full speed both ways.
async fn bulk(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let mut pair = scene.open().await?;
    let size = shrunk(256 << 20);
    let (up, down) = (Flow::new(size, 1), Flow::new(size, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let record = scene
        .records_of(1, engine)
        .await?
        .pop()
        .context("no record")?;
    ensure!(record.get("bytes_up")? == size.to_string(), "{record:?}");
    ensure!(record.get("bytes_down")? == size.to_string(), "{record:?}");
    Ok(())
}

/// Readers that take a little at a time, so that every queue on the way fills and empties.
async fn slow_readers(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let mut flows = JoinSet::new();
    for n in 0..4 {
        let Pair {
            mut client,
            mut server,
            ..
        } = scene.open().await?;
        let flow = |seed| {
            let mut flow = Flow::new(shrunk(24 << 20), seed);
            flow.read_size = 1 << (14 + n);
            flow.read_pause = Duration::from_millis(1);
            flow
        };
        let (up, down) = (flow(2 * n), flow(2 * n + 1));
        flows.spawn(async move { transfer::exchange(&mut client, &mut server, up, down).await });
    }
    while let Some(flow) = flows.join_next().await {
        flow??;
    }
    scene.records_of(4, engine).await.map(drop)
}

/// A few connections over a wire that the test has seen to be bad.
async fn over_a_bad_wire(
    lab: Lab,
    segment: Segment,
    (mss, impairment): (Option<u16>, Impairment),
    family: Family,
    engine: Engine,
) -> Result<()> {
    const FLOWS: u64 = 3;
    let mut plan = Plan {
        mss,
        ..Plan::default()
    };
    let link = LinkKind::Tap(impairment.clone());
    match segment {
        Segment::Transit => plan.transit = link,
        Segment::Inside => plan.inside = link,
        Segment::Outside | Segment::Beyond => anyhow::bail!("limpid has no interface there"),
    }
    let scene = Arc::new(Scene::with(&lab, family, &plan, |options| options.engine(engine)).await?);
    let mut flows = JoinSet::new();
    for n in 0..FLOWS {
        // One after the other, so that each is known by its place in the backend's queue.
        let client = scene.new_client();
        let Pair {
            mut client,
            mut server,
            peer,
        } = {
            let pair = scene.open_as(Version::V2, client).await?;
            ensure!(pair.peer == client, "seen as {}, not {client}", pair.peer);
            pair
        };
        let size = shrunk(1 << 20);
        let (up, down) = (Flow::new(size, 2 * n), Flow::new(size + n, 2 * n + 1));
        flows.spawn(async move {
            transfer::exchange(&mut client, &mut server, up, down)
                .await
                .with_context(|| format!("flow of {peer}"))
        });
    }
    while let Some(flow) = flows.join_next().await {
        flow??;
    }
    for counts in scene.net.wire_counts(segment) {
        ensure_it_was_bad(&impairment, counts)?;
    }
    // On such a wire a sender can be done before its flow is spliced.
    scene.records_of_short_flows(FLOWS as usize, engine).await
}

/// Whatever was to happen has happened in each direction, or the test has shown nothing.
fn ensure_it_was_bad(plan: &Impairment, counts: Counts) -> Result<()> {
    for (share, count) in [
        (plan.loss, counts.lost),
        (plan.reorder, counts.reordered),
        (plan.duplicate, counts.duplicated),
        (plan.overlap, counts.overlapped),
    ] {
        ensure!(share == 0.0 || count > 0, "{plan:?} did only {counts:?}");
    }
    Ok(())
}
