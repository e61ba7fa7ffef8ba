//! The command line: what it refuses, with which words and which status, and what it prints.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use limpid_tests::net::{Family, Host, Topology};
use limpid_tests::programs::{Engine, Limpid, Options, run, show};
use limpid_tests::scene::{LISTEN, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, Suite};
use tokio::io::AsyncWriteExt;

/// The status of a command line that cannot be.
const USAGE: i32 = 2;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.test("bad_command_lines", &[], |_| async { bad_command_lines() });
    suite.test("help_is_documentation", &[], |_| async { help() });
    suite.test("probe_names_engines", &[], |_| async { probe() });
    suite.test("flows_without_a_daemon", &[], |lab| async move {
        flows_without_a_daemon(&lab)
    });
    suite.test("port_in_use", &[], port_in_use);
    suite.test("client_source_to_loopback", &[], |lab| async move {
        to_loopback(&lab)
    });
    for family in Family::ALL {
        for engine in Engine::ALL {
            suite.test(format!("flows_{family}_{engine}"), &[], move |lab| {
                flows(lab, family, engine)
            });
        }
    }
    suite.run()
}

fn bad_command_lines() -> Result<()> {
    let host = Host::new("alone")?;
    let base = ["run", "--listen=127.0.0.1:8443", "--upstream=192.0.2.10:80"];
    for (args, word) in [
        (&["run"][..], "--listen"),
        (&[&base[..], &["--accept-proxy"]].concat(), "--trust"),
        (
            &[&base[..], &["--accept-proxy", "--trust=300.0.0.0/8"]].concat(),
            "--trust",
        ),
        (
            &[&base[..], &["--trust=192.0.2.0/24"]].concat(),
            "--accept-proxy",
        ),
        (&[&base[..], &["--splice=magic"]].concat(), "sockmap"),
        (&[&base[..], &["--send-proxy=v3"]].concat(), "v2"),
        (
            &[&base[..], &["--header-timeout=soon"]].concat(),
            "--header-timeout",
        ),
        (
            &[&base[..], &["--instance=../../etc"]].concat(),
            "--instance",
        ),
        (
            &["run", "--listen=nowhere", "--upstream=192.0.2.10:80"],
            "--listen",
        ),
        (
            &["run", "--listen=127.0.0.1:8443", "--upstream=192.0.2.10"],
            "--upstream",
        ),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = run(&host, args)?;
        let shown = show(&output);
        ensure!(output.status.code() == Some(USAGE), "{args:?}: {shown}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            error.contains(word),
            "{args:?} does not speak of {word}: {shown}"
        );
        ensure!(!error.contains("panicked"), "{args:?}: {shown}");
    }
    Ok(())
}

fn help() -> Result<()> {
    let host = Host::new("alone")?;
    let output = run(&host, &["run", "--help"])?;
    ensure!(output.status.success(), "{}", show(&output));
    let text = String::from_utf8(output.stdout)?;
    for flag in [
        "--listen",
        "--accept-proxy",
        "--trust",
        "--upstream",
        "--source",
        "--send-proxy",
        "--splice",
        "--upstream-interface",
        "--downstream-interface",
        "--header-timeout",
        "--connect-timeout",
        "--idle-timeout",
        "--half-close-timeout",
        "--drain-timeout",
        "--source-mismatch",
        "--instance",
        "--control",
        "--bpffs",
        "--log-format",
    ] {
        ensure!(text.contains(flag), "{flag} is not in the help");
    }
    Ok(())
}

fn probe() -> Result<()> {
    let host = Host::new("alone")?;
    let output = run(&host, &["probe"])?;
    ensure!(output.status.success(), "{}", show(&output));
    for engine in Engine::ALL {
        ensure!(
            show(&output).contains(engine.name()),
            "{engine} is missing: {}",
            show(&output)
        );
    }
    Ok(())
}

fn flows_without_a_daemon(lab: &Lab) -> Result<()> {
    let host = Host::new("alone")?;
    let control = lab.path().join("nobody.sock");
    let output = run(
        &host,
        &["flows", &format!("--control={}", control.display())],
    )?;
    let shown = show(&output);
    ensure!(
        !output.status.success() && output.status.code() != Some(USAGE),
        "{shown}"
    );
    ensure!(
        shown.contains("nobody.sock") && !shown.contains("panicked"),
        "{shown}"
    );
    Ok(())
}

async fn port_in_use(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let address = net.proxy_addr(Family::V4, LISTEN);
    let _taken = net.proxy.listen(address).await?;
    let options = Options::new(address, net.backend_addr(Family::V4, UPSTREAM));
    let mut limpid = Limpid::spawn(&net.proxy, &lab, &options)?;
    let status = limpid.process().wait(limpid_tests::process::PATIENCE)?;
    let log = limpid.log()?;
    ensure!(!status.success(), "{log}");
    ensure!(
        log.contains(&address.to_string()) && !log.contains("panicked"),
        "{log}"
    );
    Ok(())
}

/// The client's address cannot be used towards a socket of this host, for now.
fn to_loopback(lab: &Lab) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(Family::V4, LISTEN);
    for upstream in ["127.0.0.1:80".parse()?, net.proxy_addr(Family::V4, 80)] {
        let options = Options::new(listen, upstream).accept_proxy("0.0.0.0/0");
        let mut limpid = Limpid::spawn(&net.proxy, lab, &options)?;
        let status = limpid.process().wait(limpid_tests::process::PATIENCE)?;
        let log = limpid.log()?;
        ensure!(!status.success(), "{upstream}: {log}");
        ensure!(
            log.contains("--source"),
            "{upstream}: the message names the way out: {log}"
        );
    }
    Ok(())
}

/// One object a flow, with the fields that are promised.
async fn flows(lab: Lab, family: Family, engine: Engine) -> Result<()> {
    let scene = Scene::start(&lab, family, engine).await?;
    ensure!(
        scene.limpid.flows(&scene.net.proxy)?.is_empty(),
        "flows of nobody"
    );
    let client = scene.new_client();
    let mut pair = scene
        .open_as(limpid_tests::header::Version::V2, client)
        .await?;
    pair.client.write_all(b"twelve bytes").await?;
    limpid_tests::transfer::expect_bytes(&mut pair.server, b"twelve bytes").await?;
    pair.server.write_all(b"four").await?;
    limpid_tests::transfer::expect_bytes(&mut pair.client, b"four").await?;
    let flows = scene.limpid.wait_for_flows(&scene.net.proxy, 1).await?;
    let flow = &flows[0];
    for (field, value) in [
        ("client", client.to_string()),
        ("downstream", pair.client.local_addr()?.to_string()),
        ("upstream", pair.server.local_addr()?.to_string()),
        ("engine", engine.name().to_owned()),
    ] {
        ensure!(flow[field] == value, "{field} is not {value}: {flow}");
    }
    ensure!(flow["state"].is_string(), "{flow}");
    ensure!(flow["bytes_up"] == 12 && flow["bytes_down"] == 4, "{flow}");
    ensure!(
        flow["age_ms"].as_f64().is_some_and(|age| age < 60_000.0),
        "{flow}"
    );
    ensure!(
        flow.get("fallback").is_none_or(serde_json::Value::is_null),
        "{flow}"
    );
    Ok(())
}
