//! The command line: what it refuses, with which words and which status, and what it prints.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use limpid_tests::net::{Family, Host, Plan, Topology};
use limpid_tests::process::PATIENCE;
use limpid_tests::programs::{Engine, Limpid, Options, limpid_binary, run, show};
use limpid_tests::scene::{LISTEN, Scene, UPSTREAM};
use limpid_tests::suite::{Lab, SOCKET_ACTIVATE, Suite};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener, UnixStream};

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
    suite.test("flows_of_a_deaf_daemon", &[], flows_of_a_deaf_daemon);
    suite.test("probe_as_json", &[], |_| async { probe_as_json() });
    suite.test("probe_without_privileges", &[], |_| async {
        probe_without_privileges()
    });
    suite.test("mount_without_privileges", &[], |lab| async move {
        mount_without_privileges(&lab)
    });
    suite.test("maps_without_privileges", &[], |lab| async move {
        maps_without_privileges(&lab)
    });
    suite.test("layout_of_another_version", &[], layout_of_another_version);
    suite.test("control_over_a_file", &[], |lab| async move {
        control_over_a_file(&lab)
    });
    suite.test("control_socket_is_private", &[], control_socket_is_private);
    suite.test(
        "control_socket_of_the_dead",
        &[],
        control_socket_of_the_dead,
    );
    suite.test("control_socket_replaced", &[], control_socket_replaced);
    suite.test("control_requests", &[], control_requests);
    suite.test("orders_as_json", &[], orders_as_json);
    suite.test("port_in_use", &[], port_in_use);
    for family in Family::ALL {
        suite.test(
            format!("socket_activation_{family}"),
            &[SOCKET_ACTIVATE],
            move |lab| socket_activation(lab, family),
        );
    }
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

/// What people read is there for programs as well.
fn probe_as_json() -> Result<()> {
    let host = Host::new("alone")?;
    let output = run(&host, &["probe", "--json"])?;
    ensure!(output.status.success(), "{}", show(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let release = nix::sys::utsname::uname()?;
    ensure!(
        found["kernel"].as_str() == release.release().to_str(),
        "{found}"
    );
    let engines = found["engines"].as_array().context("engines")?;
    for engine in Engine::ALL {
        let told = engines.iter().find(|told| told["name"] == engine.name());
        let state = told.context(engine)?["state"].as_str();
        let known = ["yes", "no", "on-request", "forbidden"];
        ensure!(state.is_some_and(|state| known.contains(&state)), "{found}");
    }
    for list in ["features", "programs"] {
        let named =
            |item: &serde_json::Value| item["name"].is_string() && item["state"].is_string();
        let list = found[list].as_array().context(list)?;
        ensure!(!list.is_empty() && list.iter().all(named), "{found}");
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

/// Somebody listens and never answers.
async fn flows_of_a_deaf_daemon(lab: Lab) -> Result<()> {
    let control = lab.path().join("deaf.sock");
    let _deaf = UnixListener::bind(&control)?;
    let host = Host::new("alone")?;
    let begun = Instant::now();
    let output = run(
        &host,
        &["flows", &format!("--control={}", control.display())],
    )?;
    ensure!(!output.status.success(), "{}", show(&output));
    ensure!(begun.elapsed() < PATIENCE, "after {:?}", begun.elapsed());
    ensure!(show(&output).contains("deaf.sock"), "{}", show(&output));
    Ok(())
}

/// Not "the kernel lacks it": it was not allowed to ask.
fn probe_without_privileges() -> Result<()> {
    let host = Host::new("alone")?;
    let limpid = limpid_binary()?.display().to_string();
    let args = ["--bounding-set=-all", "--inh-caps=-all", &limpid, "probe"];
    let shown = host.run("setpriv", &args)?;
    for about in ["TCX links", "sockhash maps", "steering (", "engine sockmap"] {
        let line = shown.lines().find(|line| line.contains(about));
        ensure!(
            line.is_some_and(|line| line.contains("cannot tell") && line.contains("CAP_BPF")),
            "{about}: {shown}"
        );
    }
    Ok(())
}

/// A BPF file system that is missing and may not be mounted: the message says what it takes.
fn mount_without_privileges(lab: &Lab) -> Result<()> {
    without_privileges(lab, Options::without_bpffs, &["mount", "CAP_SYS_ADMIN"])
}

/// Maps that may not be made: the same, and no empty folder stays.
fn maps_without_privileges(lab: &Lab) -> Result<()> {
    without_privileges(lab, |options| options, &["maps", "CAP_BPF"])
}

fn without_privileges(
    lab: &Lab,
    more: impl FnOnce(Options) -> Options,
    words: &[&str],
) -> Result<()> {
    let net = Topology::standard()?;
    let options = more(plain(&net).engine(Engine::Sockmap)).under(&[
        "/usr/bin/setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    let mut limpid = Limpid::spawn(&net.proxy, lab, &options)?;
    let status = limpid.process().wait(PATIENCE)?;
    let log = limpid.log()?;
    ensure!(!status.success(), "{log}");
    for word in words {
        ensure!(log.contains(word), "{word:?} is missing: {log}");
    }
    ensure!(limpid.pinned()?.is_empty(), "left: {:?}", limpid.pinned()?);
    Ok(())
}

/// The message has the command that helps, for this very instance.
async fn layout_of_another_version(lab: Lab) -> Result<()> {
    let mut scene = Scene::with(&lab, Family::V4, &Plan::default(), |options| options).await?;
    scene.limpid.wait_for_log("\"ready\"").await?;
    scene.limpid.kill()?;
    let meta = scene.limpid.pins().join("meta").display().to_string();
    let zero = ["0"; 4];
    let future = ["map", "update", "pinned", &meta, "key"];
    let future = [&future, &zero[..], &["value", "99"], &["0"; 7]].concat();
    scene.net.proxy.run("bpftool", &future)?;

    let options = Options::new(
        scene.address(),
        scene.net.backend_addr(Family::V4, UPSTREAM),
    );
    let mut again = Limpid::spawn(&scene.net.proxy, &lab, &options.accept_proxy("0.0.0.0/0"))?;
    let status = again.process().wait(PATIENCE)?;
    let log = again.log()?;
    ensure!(!status.success(), "{log}");
    let (_, command) = log.split_once("`limpid ").context(log.clone())?;
    let (command, _) = command.split_once('`').context(log.clone())?;
    let args: Vec<&str> = command.split(' ').collect();
    ensure!(args[0] == "cleanup", "{command}");
    let output = run(&scene.net.proxy, &args)?;
    ensure!(output.status.success(), "{command}: {}", show(&output));
    ensure!(again.pinned()?.is_empty(), "left: {:?}", again.pinned()?);
    Ok(())
}

/// Where the fixture has the control socket of the daemon on `proxy`.
fn control(lab: &Lab) -> PathBuf {
    lab.path().join("limpid-test-proxy.sock")
}

fn plain(net: &Topology) -> Options {
    Options::new(
        net.proxy_addr(Family::V4, LISTEN),
        net.backend_addr(Family::V4, UPSTREAM),
    )
}

/// A file of that name is not taken for a socket that was left behind.
fn control_over_a_file(lab: &Lab) -> Result<()> {
    let net = Topology::standard()?;
    std::fs::write(control(lab), "somebody's")?;
    let mut limpid = Limpid::spawn(&net.proxy, lab, &plain(&net))?;
    let status = limpid.process().wait(PATIENCE)?;
    let log = limpid.log()?;
    ensure!(!status.success() && log.contains("not a socket"), "{log}");
    ensure!(std::fs::read_to_string(control(lab))? == "somebody's");
    Ok(())
}

/// The owner's alone, whatever the umask is; gone at the end.
async fn control_socket_is_private(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let options = plain(&net).under(&["/bin/sh", "-c", "umask 0; exec \"$0\" \"$@\""]);
    let mut limpid = Limpid::start(&net.proxy, &lab, &options)?;
    limpid.wait_for_flows(&net.proxy, 0).await?;
    let mode = std::fs::metadata(control(&lab))?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    ensure!(limpid.terminate(PATIENCE)?.success(), "its end");
    ensure!(!control(&lab).exists(), "the socket is left");
    Ok(())
}

/// A socket that nobody answers at: replaced by the next daemon, removed by a clean-up.
async fn control_socket_of_the_dead(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let mut first = Limpid::start(&net.proxy, &lab, &plain(&net))?;
    first.kill()?;
    ensure!(control(&lab).exists(), "nothing was left");
    let mut second = Limpid::start(&net.proxy, &lab, &plain(&net))?;
    second.wait_for_flows(&net.proxy, 0).await?;
    second.kill()?;
    let args = [
        "cleanup".to_owned(),
        "--instance=test-proxy".to_owned(),
        format!("--bpffs={}", lab.path().join("none").display()),
        format!("--control={}", control(&lab).display()),
    ];
    let output = run(&net.proxy, &args)?;
    ensure!(output.status.success(), "{}", show(&output));
    ensure!(!control(&lab).exists(), "left: {}", show(&output));
    Ok(())
}

/// Somebody else's socket of that name is not the daemon's to remove.
async fn control_socket_replaced(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let mut limpid = Limpid::start(&net.proxy, &lab, &plain(&net))?;
    limpid.wait_for_flows(&net.proxy, 0).await?;
    std::fs::remove_file(control(&lab))?;
    let _other = UnixListener::bind(control(&lab))?;
    ensure!(limpid.terminate(PATIENCE)?.success(), "its end");
    ensure!(control(&lab).exists(), "the other's socket is gone");
    Ok(())
}

/// Whatever is asked, there is an answer that says what is wrong with it.
async fn control_requests(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let limpid = Limpid::start(&net.proxy, &lab, &plain(&net))?;
    limpid.wait_for_flows(&net.proxy, 0).await?;
    let long = [
        &b"{\"version\":1,\"command\":\""[..],
        &[b'x'; 5000],
        b"\"}\n",
    ]
    .concat();
    for (request, word) in [
        (
            &b"{\"version\":1,\"command\":\"flows\"}\n"[..],
            "{\"flows\":[]}",
        ),
        (b"{\"version\":2,\"command\":{\"drain\":9}}\n", "version 1"),
        (b"{\"version\":1,\"command\":\"drain\"}\n", "drain"),
        (b"\xff\xfe\n", "not a request"),
        (b"\n", "not a request"),
        (&long, "4096"),
    ] {
        let mut stream = BufReader::new(UnixStream::connect(control(&lab)).await?);
        stream.write_all(request).await?;
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_line(&mut answer)).await??;
        let request = String::from_utf8_lossy(request);
        ensure!(answer.contains(word), "{request}: {answer}");
    }
    Ok(())
}

/// What is done can be told by programs, and so can what is doubtful about a file that is read again.
async fn orders_as_json(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(Family::V4, LISTEN);
    let upstream = net.backend_addr(Family::V4, UPSTREAM);
    let file = lab.path().join("limpid.toml");
    let text = format!(
        "[listeners.game]\nlisten = [\"{listen}\"]\n[pools.game]\nupstream = [\"{upstream},name=a\"]\n"
    );
    std::fs::write(&file, &text)?;
    let limpid = Limpid::start(&net.proxy, &lab, &Options::from_file(listen, &file))?;
    let backend = net.backend.listen(upstream).await?;
    let mut client = net.edge.connect(listen).await?;
    let (mut server, _) = backend.accept().await?;
    talk(&mut client, &mut server).await?;

    let tell = |words: &[&str]| -> Result<serde_json::Value> {
        let text = limpid.tell(&net.proxy, &[words, &["--json"]].concat())?;
        serde_json::from_str(&text).context(text)
    };
    let flows = limpid.wait_for_flows(&net.proxy, 1).await?;
    let id = flows[0]["id"].to_string();
    let told = tell(&["flow", "kill", &id])?;
    ensure!(
        told["id"] == flows[0]["id"] && told["done"].is_string(),
        "{told}"
    );
    let told = tell(&["server", "set", "game/a", "drain"])?;
    ensure!(
        told["pool"] == "game" && told["server"] == "a" && told["state"] == "drain",
        "{told}"
    );
    let told = tell(&["reload"])?;
    ensure!(told["warnings"] == serde_json::json!([]), "{told}");

    // A warning is told to whoever has the file read.
    const WARNING: &str = "`rise` has no effect";
    std::fs::write(&file, format!("{text}rise = 9\n"))?;
    let told = tell(&["reload"])?;
    let warnings = told["warnings"].as_array().context("no array")?;
    let about = |warning: &serde_json::Value| warning.as_str().is_some_and(|w| w.contains(WARNING));
    ensure!(warnings.len() == 1 && about(&warnings[0]), "{told}");
    ensure!(
        told["done"]
            .as_str()
            .is_some_and(|done| !done.contains(WARNING)),
        "{told}"
    );
    let output = limpid.ask(&net.proxy, &["reload"])?;
    let shown = show(&output);
    let [said, warned] = [output.stdout, output.stderr].map(String::from_utf8);
    ensure!(output.status.success(), "{shown}");
    ensure!(
        said?.lines().count() == 1 && warned?.contains(WARNING),
        "{shown}"
    );

    // As with the commands that only ask, what cannot be done is on standard error.
    std::fs::write(&file, "nonsense")?;
    for wrong in [
        &["flow", "kill", &id, "--json"][..],
        &["server", "set", "game/nobody", "drain", "--json"],
        &["reload", "--json"],
    ] {
        let output = limpid.ask(&net.proxy, wrong)?;
        let shown = show(&output);
        ensure!(
            output.status.code() == Some(1) && output.stdout.is_empty(),
            "{wrong:?}: {shown}"
        );
        ensure!(!output.stderr.is_empty(), "{wrong:?} says nothing");
    }
    Ok(())
}

async fn port_in_use(lab: Lab) -> Result<()> {
    let net = Topology::standard()?;
    let address = net.proxy_addr(Family::V4, LISTEN);
    let _taken = net.proxy.listen(address).await?;
    let options = Options::new(address, net.backend_addr(Family::V4, UPSTREAM));
    let mut limpid = Limpid::spawn(&net.proxy, &lab, &options)?;
    let status = limpid.process().wait(PATIENCE)?;
    let log = limpid.log()?;
    ensure!(!status.success(), "{log}");
    ensure!(
        log.contains(&address.to_string()) && !log.contains("panicked"),
        "{log}"
    );
    Ok(())
}

/// The first connection starts the daemon, on the socket that it came to; one that nobody asked for is closed.
async fn socket_activation(lab: Lab, family: Family) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(family, LISTEN);
    let other = net.proxy_addr(family, LISTEN + 1);
    let mut scene = Scene::on(net, &lab, family, |options| {
        options.accept_proxy(family.everything()).under(&[
            "systemd-socket-activate",
            &format!("--listen={listen}"),
            &format!("--listen={other}"),
        ])
    })
    .await?;
    ensure!(!scene.limpid.log()?.contains("ready"), "started too early");
    let mut pair = scene.open().await?;
    talk(&mut pair.client, &mut pair.server).await?;
    // Nobody else could have bound the address meanwhile: it is the socket that was passed on.
    scene
        .limpid
        .wait_for_log(&format!("a socket that was handed over listens on {other}"))
        .await?;
    ensure!(!scene.net.proxy.listens(LISTEN + 1)?, "it is not closed");
    // The daemon's own clients do not depend on who has made the socket.
    let mut second = scene.open().await?;
    talk(&mut second.client, &mut second.server).await?;
    drop((pair, second));
    ensure!(scene.limpid.terminate(PATIENCE)?.success(), "its end");
    ensure!(!scene.net.proxy.listens(LISTEN)?, "it still listens");
    Ok(())
}

/// A word each way.
async fn talk(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    say(client, server).await?;
    say(server, client).await
}

async fn say(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    const WORD: &[u8; 4] = b"word";
    from.write_all(WORD).await?;
    let mut heard = [0; WORD.len()];
    to.read_exact(&mut heard).await?;
    ensure!(&heard == WORD, "{heard:?}");
    Ok(())
}

/// The client's address cannot be used towards a socket of this host, for now.
fn to_loopback(lab: &Lab) -> Result<()> {
    let net = Topology::standard()?;
    let listen = net.proxy_addr(Family::V4, LISTEN);
    for upstream in ["127.0.0.1:80".parse()?, net.proxy_addr(Family::V4, 80)] {
        let options = Options::new(listen, upstream).accept_proxy("0.0.0.0/0");
        let mut limpid = Limpid::spawn(&net.proxy, lab, &options)?;
        let status = limpid.process().wait(PATIENCE)?;
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
    scene.wait_for_engine(engine).await?;
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
