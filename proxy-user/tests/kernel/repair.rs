//! `proxy_user::sys::repair`.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::{Family, Host};
use limpid_tests::suite::Suite;
use proxy_user::sys::repair::{acknowledge, enter, negotiated, positions, stay, timestamp};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::pair::{loopback, pair, segments_sent, works};

/// Longer than any delayed acknowledgement or retransmission on loopback.
const QUIET: Duration = Duration::from_millis(700);

pub(crate) fn add_to(suite: &mut Suite) {
    for family in Family::ALL {
        suite.test(format!("positions_count_bytes_{family}"), &[], move |_| {
            positions_count_bytes(family)
        });
    }
    suite.test("positions_while_data_arrive", &[], |_| {
        positions_while_data_arrive()
    });
    suite.test("positions_with_urgent_data", &[], |_| {
        positions_with_urgent_data()
    });
    suite.test("positions_leave_no_trace", &[], |_| {
        positions_leave_no_trace()
    });
    suite.test("positions_end_with_a_fin", &[], |_| {
        positions_end_with_a_fin()
    });
    suite.test("closing_silently", &[], |_| closing_silently());
    suite.test("negotiated_options", &[], |_| negotiated_options());
    suite.test("timestamps_tick", &[], |_| timestamps_tick());
    suite.test("acknowledge_at_once", &[], |_| acknowledge_at_once());
}

/// Written, read and unread bytes are where they should be, on both ends.
async fn positions_count_bytes(family: Family) -> Result<()> {
    let host = Host::new("host")?;
    let (mut client, mut server) = pair(&host, family).await?;
    let (client_start, server_start) = (positions(&client)?, positions(&server)?);
    ensure!(client_start.write == server_start.read, "up differs");
    ensure!(client_start.read == server_start.write, "down differs");

    client.write_all(&[1; 1000]).await?;
    server.write_all(&[2; 50]).await?;
    server.read_exact(&mut [0; 300]).await?;
    let (client_now, server_now) = (positions(&client)?, positions(&server)?);
    ensure!(client_now.write == client_start.write.wrapping_add(1000));
    ensure!(server_now.read == server_start.read.wrapping_add(300));
    ensure!(server_now.write == server_start.write.wrapping_add(50));
    ensure!(client_now.read == client_start.read);
    Ok(())
}

/// The read position is exact while another thread keeps the receive queue moving.
async fn positions_while_data_arrive() -> Result<()> {
    let host = Host::new("host")?;
    let (mut client, mut server) = pair(&host, Family::V4).await?;
    let start = positions(&server)?;
    // Not the test's thread: data have to arrive between two of its system calls.
    let writer = host.spawn(async move { while client.write_all(&[1; 16384]).await.is_ok() {} });
    let mut read = 0u32;
    let mut buffer = vec![0; 10_007];
    for _ in 0..3000 {
        read = read.wrapping_add(u32::try_from(server.read(&mut buffer).await?)?);
        let now = positions(&server)?;
        let expected = start.read.wrapping_add(read);
        ensure!(now.read == expected, "after {read}: {now:?} of {start:?}");
    }
    drop(server);
    writer.await?;
    Ok(())
}

/// An urgent byte in the receive queue is a byte like any other.
async fn positions_with_urgent_data() -> Result<()> {
    let host = Host::new("host")?;
    let (mut client, mut server) = pair(&host, Family::V4).await?;
    let start = positions(&server)?;
    client.write_all(&[1; 100]).await?;
    SockRef::from(&client).send_out_of_band(&[2; 10])?;
    client.write_all(&[3; 100]).await?;
    server.read_exact(&mut [0; 40]).await?;
    // All 210 have arrived when the last byte is acknowledged.
    sleep(QUIET).await;
    let now = positions(&server)?;
    ensure!(
        now.read == start.read.wrapping_add(40),
        "{now:?} of {start:?}"
    );
    Ok(())
}

/// Nothing is sent, the connection works on, and its port can be listened on while it is left over.
async fn positions_leave_no_trace() -> Result<()> {
    let host = Host::new("host")?;
    let (mut client, mut server) = pair(&host, Family::V4).await?;
    works(&mut client, &mut server).await?;
    sleep(QUIET).await;
    let sent = segments_sent(&host)?;
    for _ in 0..10 {
        positions(&client)?;
        positions(&server)?;
    }
    sleep(QUIET).await;
    ensure!(segments_sent(&host)? == sent, "something was sent");
    works(&mut client, &mut server).await?;

    stay(&server)?;
    let port = server.local_addr()?.port();
    drop(server);
    drop(client);
    host.listen(loopback(Family::V4, port))
        .await
        .context("what is left over keeps its port")?;
    Ok(())
}

/// A FIN has a sequence number, and a position beside it is off by one: so it must be seen.
async fn positions_end_with_a_fin() -> Result<()> {
    let host = Host::new("host")?;
    let (mut client, mut server) = pair(&host, Family::V4).await?;
    client.write_all(b"the last words").await?;
    client.shutdown().await?;
    server.readable().await?;
    sleep(QUIET).await;
    for socket in [&client, &server] {
        positions(socket)?;
        ensure!(!negotiated(socket)?.established, "a FIN went unseen");
    }
    server.write_all(b"and an answer").await?;
    client.read_exact(&mut [0; 13]).await?;
    Ok(())
}

/// The peer is told nothing, even of bytes that were read from it by nobody.
async fn closing_silently() -> Result<()> {
    let host = Host::new("host")?;
    for unread in [&b""[..], b"never read"] {
        let (mut client, server) = pair(&host, Family::V4).await?;
        client.write_all(unread).await?;
        sleep(QUIET).await;
        let sent = segments_sent(&host)?;
        enter(&server)?;
        drop(server);
        let told = timeout(QUIET, client.read(&mut [0; 1])).await;
        ensure!(told.is_err(), "the peer was told: {told:?}");
        ensure!(segments_sent(&host)? == sent, "something was sent");
        // The socket is gone for good: a segment gets the RST of a host that knows nothing of it.
        client.write_all(b"hello?").await?;
        let error = client.read(&mut [0; 1]).await.err().context("no RST")?;
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    }
    Ok(())
}

/// What a host's sysctls forbid is not negotiated.
async fn negotiated_options() -> Result<()> {
    let host = Host::new("host")?;
    host.sysctl("net/ipv4/tcp_ecn", "1")?;
    let (client, server) = pair(&host, Family::V4).await?;
    let (ours, theirs) = (negotiated(&client)?, negotiated(&server)?);
    ensure!(ours.timestamps && ours.sack && ours.ecn);
    ensure!(!ours.usec_timestamps);
    ensure!(ours.our_scale > 0 && ours.our_scale == theirs.their_scale);
    ensure!(theirs.our_scale == ours.their_scale);

    for option in ["timestamps", "sack", "window_scaling", "ecn"] {
        host.sysctl(&format!("net/ipv4/tcp_{option}"), "0")?;
    }
    host.ip("link set lo mtu 1500")?;
    let (client, _server) = pair(&host, Family::V4).await?;
    let ours = negotiated(&client)?;
    ensure!(!ours.timestamps && !ours.sack && !ours.ecn, "{ours:?}");
    ensure!((ours.our_scale, ours.their_scale) == (0, 0), "{ours:?}");
    ensure!(
        (ours.largest_in, ours.largest_out) == (1460, 1460),
        "{ours:?}"
    );

    host.sysctl("net/ipv4/tcp_timestamps", "1")?;
    let (client, server) = pair(&host, Family::V4).await?;
    for socket in [&client, &server] {
        // The same, though no segment with the option carries as much.
        let ours = negotiated(socket)?;
        ensure!(
            (ours.largest_in, ours.largest_out) == (1460, 1460),
            "{ours:?}"
        );
    }
    Ok(())
}

/// The clock of a connection runs in milliseconds.
async fn timestamps_tick() -> Result<()> {
    let host = Host::new("host")?;
    let (client, _server) = pair(&host, Family::V4).await?;
    let before = timestamp(&client)?;
    sleep(Duration::from_millis(100)).await;
    let passed = timestamp(&client)?.wrapping_sub(before);
    ensure!((98..2000).contains(&passed), "{passed} ms in 100 ms");
    Ok(())
}

/// An acknowledgement that was held back for an answer goes out when it is asked for.
async fn acknowledge_at_once() -> Result<()> {
    let host = Host::new("host")?;
    let (mut client, mut server) = pair(&host, Family::V4).await?;
    // A conversation: from now on acknowledgements wait for an answer to travel with.
    for _ in 0..20 {
        works(&mut client, &mut server).await?;
    }
    client.write_all(b"a question").await?;
    server.read_exact(&mut [0; 10]).await?;
    let sent = segments_sent(&host)?;
    acknowledge(&server)?;
    ensure!(
        segments_sent(&host)? == sent + 1,
        "nothing was acknowledged"
    );
    Ok(())
}
