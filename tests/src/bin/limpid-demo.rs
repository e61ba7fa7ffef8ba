//! The job done for real, on one machine: an edge HAProxy sends PROXY headers, limpid takes them, an
//! unmodified nginx logs the clients.
//!
//! Run it by `cargo xtask demo`. Hosts are network namespaces, which go with the program.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::host_state::{HostState, ensure_unchanged};
use limpid_tests::net::{Family, Topology};
use limpid_tests::programs::{Haproxy, Limpid, Nginx, Options};
use limpid_tests::suite::Lab;

const PORT: u16 = 80;
const LISTEN: u16 = 8080;

/// What was seen of one request.
struct Row {
    client: SocketAddr,
    haproxy: SocketAddr,
    nginx: SocketAddr,
    engine: String,
    bytes: String,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let shown = runtime
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(show()));
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn show() -> Result<()> {
    println!(
        "client ──► edge: HAProxy, send-proxy-v2 ──► proxy: limpid ──► backend: nginx\n\
         (four network namespaces joined by veth; nginx has a default route by the proxy host, no more)\n"
    );
    let mut rows = Vec::new();
    for family in Family::ALL {
        rows.push(one(family).await?);
    }
    println!(
        "\n{:<24} {:<24} {:<24} {:<8} bytes up/down",
        "client's socket", "HAProxy saw", "nginx logged", "engine"
    );
    for row in &rows {
        println!(
            "{:<24} {:<24} {:<24} {:<8} {}",
            row.client.to_string(),
            row.haproxy.to_string(),
            row.nginx.to_string(),
            row.engine,
            row.bytes
        );
        ensure!(row.nginx == row.client, "nginx logged somebody else");
    }
    println!(
        "\nchanged on the proxy host while limpid ran: nothing (nft and iptables rules, ip rules, routes,\n\
         addresses, sysctls compared); left after it ended: nothing (qdiscs, tc programs, pins compared)"
    );
    Ok(())
}

async fn one(family: Family) -> Result<Row> {
    let lab = Lab::alone()?;
    let net = Topology::standard()?;
    let before = HostState::with_filters(&net.proxy)?;
    let configuration = HostState::configuration(&net.proxy)?;

    let nginx = Nginx::http(&net.backend, lab.path(), net.backend_addr(family, PORT), "")?;
    let listen = net.proxy_addr(family, LISTEN);
    let edge = net.edge_transit_ip(family).to_string();
    let options = Options::new(listen, net.backend_addr(family, PORT)).accept_proxy(&edge);
    let mut limpid = Limpid::start(&net.proxy, &lab, &options)?;
    let haproxy = Haproxy::start(
        &net.edge,
        lab.path(),
        (net.edge_addr(family, PORT), ""),
        (listen, "send-proxy-v2"),
    )?;

    let to = net.edge_addr(family, PORT);
    let mut client = net.client.block(move || TcpStream::connect(to))??;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")?;
    let mut answer = [0; 1024];
    let length = client.read(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "nginx answered {:?}",
        String::from_utf8_lossy(&answer[..length])
    );

    let address = client.local_addr()?;
    let flow = limpid
        .wait_for_flows(&net.proxy, 1)
        .await?
        .pop()
        .context("no flow")?;
    println!("$ limpid flows --json            # {family}, while the connection is open\n{flow:#}");
    if family == Family::V4 {
        let table = limpid.pins().join("flows");
        let table = table.to_string_lossy();
        let dump = net
            .proxy
            .run("bpftool", &["map", "dump", "pinned", &table])?;
        println!("\n$ bpftool map dump pinned {table}\n{}\n", dump.trim_end());
    }
    ensure_unchanged(&configuration, &HostState::configuration(&net.proxy)?)?;
    drop(client);

    let record = limpid
        .wait_for_access_lines(1)
        .await?
        .pop()
        .context("no access line")?;
    let request = nginx
        .wait_for_requests(1)
        .await?
        .pop()
        .context("no request")?;
    limpid.terminate(Duration::from_secs(20))?;
    ensure_unchanged(&before, &HostState::with_filters(&net.proxy)?)?;
    ensure!(
        limpid.pinned()?.is_empty(),
        "pins are left: {:?}",
        limpid.pinned()?
    );
    let seen = haproxy
        .wait_for_connections(1)
        .await?
        .pop()
        .context("HAProxy logged nothing")?;
    Ok(Row {
        client: address,
        haproxy: seen.client,
        nginx: request.remote,
        engine: record.get("engine")?,
        bytes: format!("{}/{}", record.get("bytes_up")?, record.get("bytes_down")?),
    })
}
