//! The fixture itself, with no limpid: what the other scenarios stand on must hold without it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use limpid_tests::net::{Family, Impairment, LinkKind, Plan, Segment, Topology};
use limpid_tests::programs::{Haproxy, Nginx};
use limpid_tests::stall::stall;
use limpid_tests::suite::{HAPROXY, Lab, NGINX, Need, Suite, shrunk};
use limpid_tests::transfer::{self, Flow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let links = [
        ("veth", LinkKind::Veth, &[][..]),
        ("bridge", LinkKind::Bridge, &[]),
        ("vlan", LinkKind::Vlan, &[Need::Vlan]),
        ("tun", LinkKind::Tun(Impairment::default()), &[Need::Tun]),
        ("tap", LinkKind::Tap(Impairment::default()), &[Need::Tun]),
    ];
    for family in Family::ALL {
        for (name, link, needs) in links.clone() {
            suite.test(format!("direct_{name}_{family}"), needs, move |_| {
                direct(link, family)
            });
        }
        suite.test(format!("bad_wire_{family}"), &[Need::Tun], move |_| {
            bad_wire(family)
        });
        suite.test(format!("resets_are_seen_{family}"), &[], move |_| {
            resets(family)
        });
        suite.test(format!("small_mtu_{family}"), &[], move |_| {
            small_mtu(family)
        });
        suite.test(
            format!("haproxy_to_nginx_{family}"),
            &[HAPROXY, NGINX],
            move |lab| haproxy_to_nginx(lab, family),
        );
    }
    suite.test("stalled_haproxy", &[HAPROXY], stalled_haproxy);
    suite.run()
}

/// Every kind of link carries a routed connection both ways, and the client is seen as itself.
async fn direct(inside: LinkKind, family: Family) -> Result<()> {
    let net = Topology::build(&Plan {
        inside,
        ..Plan::default()
    })?;
    net.enable_forwarding()?;
    let listener = net.backend.listen(net.backend_addr(family, 9000)).await?;
    let mut client = net.client.connect(net.backend_addr(family, 9000)).await?;
    let (mut server, peer) = listener.accept().await?;
    ensure!(peer.ip() == net.client_ip(family), "seen as {peer}");
    let size = shrunk(20 << 20);
    transfer::exchange(
        &mut client,
        &mut server,
        Flow::new(size, 1),
        Flow::new(size / 3, 2),
    )
    .await
}

/// TCP survives what the bad wire does, and the wire really does it.
async fn bad_wire(family: Family) -> Result<()> {
    let transit = LinkKind::Tap(Impairment {
        seed: 11,
        loss: 0.01,
        duplicate: 0.02,
        reorder: 0.02,
        overlap: 0.1,
        delay: Duration::from_millis(1),
        mss: Some(536),
    });
    let net = Topology::build(&Plan {
        transit,
        ..Plan::default()
    })?;
    net.enable_forwarding()?;
    let listener = net.backend.listen(net.backend_addr(family, 9000)).await?;
    let mut client = net.client.connect(net.backend_addr(family, 9000)).await?;
    let (mut server, _) = listener.accept().await?;
    let size = shrunk(1 << 20);
    transfer::exchange(
        &mut client,
        &mut server,
        Flow::new(size, 1),
        Flow::new(size, 2),
    )
    .await?;
    for counts in net.wire_counts(Segment::Transit) {
        ensure!(
            counts.lost > 0
                && counts.duplicated > 0
                && counts.reordered > 0
                && counts.overlapped > 0
                && counts.frames * 536 >= size,
            "a good wire after all: {counts:?}"
        );
    }
    Ok(())
}

/// A reset is told from an orderly end.
async fn resets(family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let address = net.proxy_addr(family, 9000);
    let listener = net.proxy.listen(address).await?;
    let client = net.edge.connect(address).await?;
    let (mut server, _) = listener.accept().await?;
    transfer::reset(client)?;
    transfer::expect_reset(&mut server).await?;
    let mut client = net.edge.connect(address).await?;
    let (mut server, _) = listener.accept().await?;
    client.shutdown().await?;
    ensure!(
        transfer::expect_reset(&mut server).await.is_err(),
        "an end was taken for a reset"
    );
    Ok(())
}

/// HAProxy in limpid's place: nginx logs HAProxy as the peer, and reads the client from a header.
async fn haproxy_to_nginx(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let backend = net.backend_addr(family, 8000);
    let nginx = Nginx::http(&net.backend, lab.path(), backend, "proxy_protocol")?;
    let front = net.proxy_addr(family, 8080);
    let _proxy = Haproxy::start(
        &net.proxy,
        lab.path(),
        (front, "accept-proxy"),
        (backend, "send-proxy-v2 proxy-v2-options crc32c,unique-id"),
    )?;
    let edge = net.edge_addr(family, 8080);
    let _edge = Haproxy::start(&net.edge, lab.path(), (edge, ""), (front, "send-proxy"))?;
    let mut client = net.client.connect(edge).await?;
    let from = client.local_addr()?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    ensure!(answer.contains("200 OK"), "{answer}");
    let requests = nginx.wait_for_requests(1).await?;
    ensure!(
        requests[0].remote.ip() == net.proxy_inside_ip(family),
        "{requests:?}"
    );
    ensure!(
        requests[0].proxied == Some(from),
        "{requests:?}, not {from}"
    );
    Ok(())
}

/// The measure of a stalled reader: a proxy with buffers of 16 KiB holds little more than what the
/// kernel gives its sockets.
async fn stalled_haproxy(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let backend = net.backend_addr(Family::V4, 9000);
    let listener = net.backend.listen(backend).await?;
    let front = net.proxy_addr(Family::V4, 8080);
    let haproxy = Haproxy::start(&net.proxy, lab.path(), (front, ""), (backend, ""))?;
    let mut pairs = Vec::new();
    for _ in 0..2 {
        let client = net.edge.connect(front).await?;
        let (server, _) = listener.accept().await?;
        pairs.push((client, server));
    }
    let flow = Flow::new(shrunk(256 << 20), 3);
    let held = stall(&net.proxy, haproxy.pid(), pairs, flow).await?;
    println!(
        "HAProxy: a stalled reader's flow holds {} KiB",
        held.per_flow / 1024
    );
    ensure!((256 << 10..16 << 20).contains(&held.per_flow), "{held:?}");
    Ok(())
}

/// The router does send its complaints, and without a proxy in between they are heard.
async fn small_mtu(family: Family) -> Result<()> {
    let net = Topology::build(&Plan {
        router_mtu: Some(1300),
        ..Plan::default()
    })?;
    net.enable_forwarding()?;
    let address = net.backend_addr(family, 9000);
    let listener = net.backend.listen(address).await?;
    let mut client = net.client.connect(address).await?;
    let (mut server, _) = listener.accept().await?;
    let (up, down) = (Flow::new(1_000_000, 1), Flow::new(1_000_000, 2));
    transfer::exchange(&mut client, &mut server, up, down).await?;
    let route = net.client.sh(&format!("ip route get {}", address.ip()))?;
    ensure!(route.contains("mtu 1300"), "nothing was learned: {route}");
    Ok(())
}
