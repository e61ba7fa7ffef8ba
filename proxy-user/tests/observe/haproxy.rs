//! `tcplog`, beside what HAProxy writes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use limpid_tests::net::Host;
use limpid_tests::process::{Process, eventually};
use limpid_tests::suite::{HAPROXY, Lab, Need, Suite};
use proxy_core::address::{Client, Listener, Peer};
use proxy_user::config::{AccessLogFormat, LogTarget};
use proxy_user::record::{Observer, Record};
use proxy_user::registry::Registry;
use proxy_user::splice::{End, EngineKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const HALOG: Need = Need::Program("/usr/sbin/halog");

pub(crate) fn add_to(suite: &mut Suite) {
    suite.test("tcplog_is_haproxys", &[HAPROXY, HALOG], tcplog_is_haproxys);
}

/// A connection through HAProxy and one through limpid's records have the same line, but for numbers; and
/// halog takes both.
async fn tcplog_is_haproxys(lab: Lab) -> Result<()> {
    let host = Host::new("observe")?;
    let theirs = line_of_haproxy(&lab, &host).await?;
    let ours = line_of_limpid(&lab).await?;
    let shape = shape(&theirs, "haproxy");
    ensure!(
        shape == self::shape(&ours, "limpid"),
        "{ours} is not like {theirs}"
    );
    // The shape is a whole line's.
    ensure!(shape.contains(": N.N.N.N:N [N/"), "{shape}");
    ensure!(
        shape.ends_with(" fnt bck/srv N/N/N N -- N/N/N/N/N N/N"),
        "{shape}"
    );

    let log = lab.path().join("both");
    std::fs::write(&log, format!("{theirs}\n{ours}\n"))?;
    let halog = |options: &str| {
        let command = format!("/usr/sbin/halog {options} < {} 2>&1", log.display());
        host.run("/bin/sh", &["-c", &command])
    };
    ensure!(halog("-c")?.trim() == "2");
    // Whoever came at least so many ms after another: reads the dates of accepting.
    let dates = halog("-ad 0")?;
    ensure!(
        dates.contains("2 lines in") && dates.contains(" 0 parsing errors"),
        "{dates}"
    );
    Ok(())
}

async fn line_of_haproxy(lab: &Lab, host: &Host) -> Result<String> {
    let server = host.listen(([127, 0, 0, 1], 0).into()).await?;
    let config = lab.path().join("tcplog.cfg");
    std::fs::write(
        &config,
        format!(
            "global\n  log stdout format rfc3164 local0\n\
             defaults\n  mode tcp\n  log global\n  option tcplog\n\
             \x20 timeout connect 10s\n  timeout client 10s\n  timeout server 10s\n\
             frontend fnt\n  bind 127.0.0.1:7000\n  default_backend bck\n\
             backend bck\n  server srv {}\n",
            server.local_addr()?
        ),
    )?;
    let args = ["-db", "-f", &config.to_string_lossy()];
    let program = Path::new("/usr/sbin/haproxy");
    let mut haproxy = Process::start(host, lab.path(), "tcplog", program, &args)?;
    haproxy.wait_until_listening(host, 7000)?;

    let mut client = host.connect(([127, 0, 0, 1], 7000).into()).await?;
    let (mut accepted, _) = server.accept().await?;
    accepted.write_all(&[b'x'; 212]).await?;
    drop(accepted);
    client.read_to_end(&mut Vec::new()).await?;
    drop(client);
    let line = |text: String| {
        let line = text.lines().find(|line| line.contains(" fnt bck/"))?;
        // The priority, which a syslog daemon takes away.
        Some(line.split_once('>')?.1.to_owned())
    };
    eventually("a line of HAProxy's", || {
        Ok(line(haproxy.output()?).is_some())
    })
    .await?;
    line(haproxy.output()?).context("a line")
}

async fn line_of_limpid(lab: &Lab) -> Result<String> {
    let file = lab.path().join("access");
    let target = LogTarget::File(file.clone());
    let observer = Observer::new(&target, AccessLogFormat::Tcplog)?;
    let registry = Registry::new(observer.clone());
    let client = "10.0.1.2:33313".parse()?;
    let record = Record::open(
        &registry,
        &"fnt".parse()?,
        Peer::new(client),
        Listener::new(client),
    );
    let flow = record.flow();
    let _ = flow.client.set(Client::new(client));
    flow.goes_to(&"bck".parse()?);
    flow.served_by("srv".into());
    flow.connect_took(Duration::from_millis(1));
    flow.progress.carried_by(EngineKind::Copy);
    record.close(End::Finished.into());
    observer.flush().await;
    let text = std::fs::read_to_string(&file)?;
    Ok(text.strip_suffix('\n').context("a whole line")?.to_owned())
}

/// A line with N for each number, and without its program, host and month.
fn shape(line: &str, program: &str) -> String {
    let mut shape = String::new();
    for c in line.chars() {
        match (c.is_ascii_digit(), shape.ends_with('N')) {
            (true, true) => {}
            (true, false) => shape.push('N'),
            (false, _) => shape.push(c),
        }
    }
    let mut words: Vec<String> = shape.split(' ').map(str::to_owned).collect();
    // Days under 10 have a space before them.
    words.retain(|word| !word.is_empty());
    for (at, word) in words.iter_mut().enumerate() {
        match at {
            3 => "HOST".clone_into(word),
            4 => *word = word.replace(program, "PROGRAM"),
            _ => {}
        }
    }
    words.join(" ")
}
