//! The PROXY header on the wire: in what pieces it comes, what follows it, and what is refused.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::header::{self, Version};
use limpid_tests::net::{Family, Plan, Topology};
use limpid_tests::programs::Engine;
use limpid_tests::scene::Scene;
use limpid_tests::suite::{Lab, Suite, scaled};
use limpid_tests::transfer::{self, Flow};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Long enough for something wrong to arrive, had it been sent.
const MOMENT: Duration = Duration::from_millis(150);

/// What follows a header, and is easy to see cut.
const PAYLOAD: &[u8] =
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nthis line is payload, and so is the one before";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        for engine in Engine::ALL {
            for version in Version::ALL {
                suite.test(
                    format!("payload_in_its_segment_{version}_{family}_{engine}"),
                    &[],
                    move |lab| payload_in_its_segment(lab, version, family, engine),
                );
                suite.test(
                    format!("byte_by_byte_{version}_{family}_{engine}"),
                    &[],
                    move |lab| byte_by_byte(lab, version, family, engine),
                );
            }
            suite.test(
                format!("payload_of_every_size_{family}_{engine}"),
                &[],
                move |lab| payload_of_every_size(lab, family, engine),
            );
            suite.test(
                format!("server_speaks_first_{family}_{engine}"),
                &[],
                move |lab| server_speaks_first(lab, family, engine),
            );
        }
        for version in Version::ALL {
            suite.test(
                format!("nothing_before_it_is_complete_{version}_{family}"),
                &[],
                move |lab| nothing_before_complete(lab, version, family),
            );
        }
        suite.test(format!("tlvs_are_skipped_{family}"), &[], move |lab| {
            tlvs_are_skipped(lab, family)
        });
        suite.test(format!("unique_id_is_told_{family}"), &[], move |lab| {
            unique_id_is_told(lab, family)
        });
        suite.test(
            format!("malformed_is_refused_at_once_{family}"),
            &[],
            move |lab| malformed(lab, family),
        );
        suite.test(format!("deadline_{family}"), &[], move |lab| {
            deadline(lab, family)
        });
        suite.test(format!("untrusted_is_refused_{family}"), &[], move |lab| {
            untrusted(lab, family)
        });
        suite.test(
            format!("health_checks_are_quiet_{family}"),
            &[],
            move |lab| health_checks(lab, family),
        );
    }
    suite.run()
}

/// Rules 5 and 7: exactly the header is consumed, what looks like a second one included.
async fn payload_in_its_segment(
    lab: Lab,
    version: Version,
    family: Family,
    engine: Engine,
) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let header = version.header(scene.new_client(), scene.address());
    let mut pair = scene.open_with(&[&header, PAYLOAD].concat()).await?;
    transfer::expect_bytes(&mut pair.server, PAYLOAD).await?;
    scene.wait_for_engine(engine).await?;
    let (up, down) = (Flow::new(50_000, 1), Flow::new(50_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await?;
    let record = scene
        .records_of(1, engine)
        .await?
        .pop()
        .context("no record")?;
    let bytes = 50_000 + PAYLOAD.len();
    ensure!(
        record.get("bytes_up")? == bytes.to_string(),
        "payload counts, headers do not: {record:?}"
    );
    Ok(())
}

/// Rule 4: any number of segments.
async fn byte_by_byte(lab: Lab, version: Version, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let client = scene.new_client();
    let mut stream = scene.connect().await?;
    let bytes = [&version.header(client, scene.address()), &PAYLOAD[..3]].concat();
    for byte in bytes {
        stream.write_all(&[byte]).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (mut server, peer) = scene.accept().await?;
    ensure!(peer == client, "seen as {peer}");
    transfer::expect_bytes(&mut server, &PAYLOAD[..3]).await?;
    transfer::exchange(
        &mut stream,
        &mut server,
        Flow::new(9_999, 1),
        Flow::new(1, 2),
    )
    .await
}

/// Payload of sizes around every buffer's, in one write with the header, the rest right behind.
async fn payload_of_every_size(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    for size in [
        0, 1, 535, 1400, 4000, 4095, 4096, 4097, 8192, 20_000, 65_536, 300_000,
    ] {
        let mut flow = Flow::new(size + 100_000, size);
        // A read of odd size moves every later boundary.
        flow.read_size = 4099;
        let mut stream = scene.connect().await?;
        let mut first = Version::V2.header(scene.new_client(), scene.address());
        let header = first.len();
        first.resize(header + usize::try_from(size)?, 0);
        flow.pattern.fill(0, &mut first[header..]);
        let mut rest = vec![0; 100_000];
        flow.pattern.fill(size, &mut rest);
        let send = async {
            stream.write_all(&first).await?;
            stream.write_all(&rest).await?;
            stream.shutdown().await?;
            Ok::<(), anyhow::Error>(())
        };
        let receive = async {
            let (mut server, _) = scene.accept().await?;
            flow.receive_to_end(&mut server).await
        };
        tokio::try_join!(send, receive).with_context(|| format!("{size} bytes with the header"))?;
    }
    Ok(())
}

/// Neither side may wait for the client's first byte.
async fn server_speaks_first(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    let mut pair = scene.open().await?;
    pair.server.write_all(b"220 ready\r\n").await?;
    transfer::expect_bytes(&mut pair.client, b"220 ready\r\n").await?;
    pair.client.write_all(b"HELO\r\n").await?;
    transfer::expect_bytes(&mut pair.server, b"HELO\r\n").await?;
    let (up, down) = (Flow::new(70_000, 1), Flow::new(70_000, 2));
    transfer::exchange(&mut pair.client, &mut pair.server, up, down).await
}

/// Rule 1.
async fn nothing_before_complete(lab: Lab, version: Version, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    let header = version.header(scene.new_client(), scene.address());
    let (but_one, last) = header.split_at(header.len() - 1);
    let mut client = scene.connect().await?;
    client.write_all(but_one).await?;
    scene.expect_no_arrival(MOMENT).await?;
    client.write_all(last).await?;
    scene.accept().await.map(drop)
}

/// Rules 18 to 22: TLVs of any kind, a header of 536 bytes and more, a CRC that is right.
async fn tlvs_are_skipped(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    let to = scene.address();
    let big = [0x5a; 3000];
    for tlvs in [
        &[][..],
        &[(0xea, &b"\x01vpce-0123456789"[..]), (0x04, &[0; 7])],
        &[(0x02, b"example.org"), (0x05, &[0xff; 128]), (0x77, b"")],
        &[(0xe0, &big)],
    ] {
        for build in [header::v2, header::v2_crc32c] {
            let client = scene.new_client();
            let bytes = [&build(client, to, tlvs)[..], b"after"].concat();
            let mut pair = scene.open_with(&bytes).await?;
            ensure!(pair.peer == client, "seen as {}", pair.peer);
            transfer::expect_bytes(&mut pair.server, b"after").await?;
        }
    }
    Ok(())
}

/// The unique ID that came is in the access line where no header is sent on as well, and is escaped once.
async fn unique_id_is_told(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    let tlvs = [(header::UNIQUE_ID, &b"a\"b\\c\0-7f"[..])];
    let header = header::v2(scene.new_client(), scene.address(), &tlvs);
    drop(scene.open_with(&header).await?);
    let lines = scene.limpid.wait_for_access_lines(1).await?;
    let told = lines[0].get("unique_id")?;
    ensure!(told == r#"a"b\\c\x00-7f"#, "{told}");
    Ok(())
}

/// Rule 6: refused by the bytes that prove it, not by the deadline; and nothing is connected.
async fn malformed(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.with("--header-timeout=60s")
    })
    .await?;
    let (from, to) = (scene.new_client(), scene.address());
    let good = header::v2(from, to, &[]);
    let mut bad_crc = header::v2_crc32c(from, to, &[]);
    if let Some(last) = bad_crc.last_mut() {
        *last ^= 1;
    }
    let flip = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("http", b"GET / HTTP/1.1\r\n".to_vec()),
        ("first byte", b"X".to_vec()),
        ("protocol", b"PROXY UDP4 ".to_vec()),
        ("lower case", b"PROXY tcp4".to_vec()),
        ("two spaces", b"PROXY  ".to_vec()),
        ("leading zero", b"PROXY TCP4 203.0.113.01 ".to_vec()),
        (
            "port with zeroes",
            b"PROXY TCP4 203.0.113.1 192.0.2.1 00080 1\r\n".to_vec(),
        ),
        (
            "lone LF",
            b"PROXY TCP4 203.0.113.1 192.0.2.1 80 1\n".to_vec(),
        ),
        (
            "family",
            b"PROXY TCP6 203.0.113.1 192.0.2.1 80 1\r\n".to_vec(),
        ),
        ("107 bytes", [&b"PROXY UNKNOWN "[..], &[b'x'; 93]].concat()),
        ("signature", [&header::SIGNATURE[..11], b"x"].concat()),
        ("version", flip(12, 0x11)),
        ("command", flip(12, 0x22)),
        ("family byte", flip(13, 0x41)),
        (
            "too short for its family",
            header::v2_raw(0x21, 0x11, &[1; 11]),
        ),
        (
            "tlv overrun",
            header::v2_raw(0x21, 0x11, &[&[1; 12][..], &[4, 0, 9, 1]].concat()),
        ),
        (
            "over the cap",
            header::v2_raw(0x21, 0x11, &[0; 5000])[..16].to_vec(),
        ),
        ("wrong crc", bad_crc),
    ];
    let count = cases.len();
    for (name, bytes) in cases {
        let started = Instant::now();
        let mut client = scene.connect().await?;
        client.write_all(&bytes).await?;
        timeout(
            scaled(Duration::from_secs(3)),
            transfer::expect_closed(&mut client),
        )
        .await
        .with_context(|| format!("{name}: not refused after {:?}", started.elapsed()))?
        .context(name)?;
    }
    scene.expect_no_arrival(MOMENT).await?;
    let records = scene.limpid.wait_for_access_lines(count).await?;
    ensure!(records.len() == count, "one record each");
    Ok(())
}

/// Rule 2: half a header does not hold a connection for longer than the deadline.
async fn deadline(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::with(&lab, family, &Plan::default(), |options| {
        options.with("--header-timeout=1s")
    })
    .await?;
    for start in [&b""[..], b"PROXY TCP4 203.0", &header::SIGNATURE] {
        let begun = Instant::now();
        let mut client = scene.connect().await?;
        client.write_all(start).await?;
        transfer::expect_closed(&mut client).await?;
        let took = begun.elapsed();
        ensure!(took >= Duration::from_millis(900), "closed after {took:?}");
        ensure!(
            took < scaled(Duration::from_secs(3)),
            "closed after {took:?}"
        );
    }
    // Bytes that keep coming do not move it.
    let mut client = scene.connect().await?;
    let begun = Instant::now();
    for byte in version_one_slowly() {
        if client.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(
        begun.elapsed() < scaled(Duration::from_secs(3)),
        "a slow header was waited for"
    );
    scene.expect_no_arrival(MOMENT).await
}

fn version_one_slowly() -> impl Iterator<Item = u8> {
    b"PROXY TCP4 203.0.113.1 192.0.2.1 65000 65000\r\n"
        .iter()
        .copied()
}

/// Rule 3: a header from elsewhere is not looked at.
async fn untrusted(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let other = net.client_ip(family).to_string();
    let scene = Scene::on(net, &lab, family, |options| options.accept_proxy(&other)).await?;
    let mut client = scene.connect().await?;
    // The connection may be reset before the header is written.
    let _ = client
        .write_all(&header::v2(scene.new_client(), scene.address(), &[]))
        .await;
    transfer::expect_closed(&mut client).await?;
    scene.expect_no_arrival(MOMENT).await?;
    let record = scene.record().await?;
    ensure!(
        format!("{record:?}").contains("trust"),
        "the reason has a name: {record:?}"
    );
    Ok(())
}

/// Rule 8: connections that close before their header are no news.
async fn health_checks(lab: Lab, family: Family) -> Result<()> {
    let scene = Scene::start(&lab, family, Engine::Copy).await?;
    for beginning in [&b""[..], b"PROXY ", &header::SIGNATURE] {
        let mut client = scene.connect().await?;
        client.write_all(beginning).await?;
        client.shutdown().await?;
        transfer::expect_closed(&mut client).await?;
    }
    scene.expect_no_arrival(MOMENT).await?;
    let log = scene.limpid.log()?;
    for level in ["WARN", "ERROR"] {
        ensure!(!log.contains(level), "a health check is no {level}: {log}");
    }
    ensure!(
        scene.limpid.access_lines()?.is_empty(),
        "nor an access line: {log}"
    );
    Ok(())
}
