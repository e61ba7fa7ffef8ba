//! Formats against what HAProxy and `tracing` write; the writer against targets that fail.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use proxy_core::address::{Client, Listener, Peer, Upstream};
use serde_json::Value;

use super::sink::{Datagrams, Stream};
use super::*;
use crate::lock::lock;
use crate::record::Ending;
use crate::registry::{Flow, Registry};
use crate::splice::{End, EngineKind, Side};

fn flow_of(peer: &str) -> Arc<Flow> {
    let called = Listener::new("192.0.2.2:2".parse().expect("an address"));
    Registry::default().open(Peer::new(peer.parse().expect("an address")), called)
}

/// A moment that the host's clock has shown, with its milliseconds.
fn moment(shown: &str) -> Timestamp {
    let shown: DateTime = shown.parse().expect("a date");
    let zone = TimeZone::system();
    zone.to_timestamp(shown).expect("a moment of this zone")
}

fn ended<'a>(flow: &'a Flow, end: &'a Ending, accepted: &str, total_ms: u64) -> Line<'a> {
    let total = Duration::from_millis(total_ms);
    Line {
        flow,
        end,
        time: moment(accepted) + total,
        total,
        open: Concurrency {
            process: 1,
            listener: 1,
            pool: 1,
            server: 1,
        },
    }
}

/// A flow about which everything is known.
fn whole() -> (Arc<Flow>, Ending) {
    let flow = flow_of("192.0.2.1:40000");
    let address = |text: &str| text.parse().expect("an address");
    flow.came_by(&"fnt".parse().expect("a name"));
    flow.goes_to(&"bck".parse().expect("a name"));
    flow.served_by("srv1".into());
    let _ = flow.client.set(Client::new(address("10.0.1.2:33313")));
    let _ = flow.upstream.set(Upstream::new(address("192.0.2.9:80")));
    let _ = flow.source.set(address("10.0.1.2:33313"));
    flow.header_took(Duration::from_micros(1500));
    flow.connect_took(Duration::ZERO);
    flow.progress.carried_by(EngineKind::Packet);
    flow.progress.sent_up(5);
    let end = Ending {
        detail: Some("a \"detail\"\nof two lines".to_owned()),
        ..End::Finished.into()
    };
    (flow, end)
}

/// Lines as HAProxy 2.6 writes them of such connections, less the syslog header.
#[test]
fn tcplog_lines_are_haproxys() {
    struct Case {
        line: &'static str,
        accepted: &'static str,
        total_ms: u64,
        client: &'static str,
        frontend: &'static str,
        backend: Option<(&'static str, &'static str)>,
        connected: bool,
        retries: u32,
        end: Ending,
    }
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    let upstream = Upstream::new("127.0.0.1:19009".parse().expect("an address"));
    let cases = [
        Case {
            line: "127.0.0.1:34616 [23/Nov/2026:16:09:04.512] fnt bck/srv1 0/0/0 0 -- 1/1/0/0/0 0/0",
            accepted: "2026-11-23T16:09:04.512",
            total_ms: 0,
            client: "127.0.0.1:34616",
            frontend: "fnt",
            backend: Some(("bck", "srv1")),
            connected: true,
            retries: 0,
            end: End::Finished.into(),
        },
        Case {
            line: "127.0.0.1:34624 [23/Nov/2026:16:09:04.513] fnt bck/srv1 0/0/0 0 SD 1/1/0/0/0 0/0",
            accepted: "2026-11-23T16:09:04.513",
            total_ms: 0,
            client: "127.0.0.1:34624",
            frontend: "fnt",
            backend: Some(("bck", "srv1")),
            connected: true,
            retries: 0,
            end: End::Reset(Side::Upstream).into(),
        },
        Case {
            line: "127.0.0.1:34626 [23/Nov/2026:16:09:04.514] fnt bck/srv1 0/0/100 0 CD 1/1/0/0/0 0/0",
            accepted: "2026-11-23T16:09:04.514",
            total_ms: 100,
            client: "127.0.0.1:34626",
            frontend: "fnt",
            backend: Some(("bck", "srv1")),
            connected: true,
            retries: 0,
            end: End::Reset(Side::Downstream).into(),
        },
        Case {
            line: "127.0.0.1:37038 [23/Nov/2026:16:09:04.615] fdead dead/srv1 0/-1/1001 0 SC 1/1/0/0/+1 0/0",
            accepted: "2026-11-23T16:09:04.615",
            total_ms: 1001,
            client: "127.0.0.1:37038",
            frontend: "fdead",
            backend: Some(("dead", "srv1")),
            connected: false,
            retries: 1,
            end: (&crate::upstream::ConnectError::Connect(upstream, refused)).into(),
        },
        Case {
            line: "127.0.0.1:55344 [23/Nov/2026:16:09:06.720] frej frej/<NOSRV> -1/-1/0 0 PR 1/1/0/0/0 0/0",
            accepted: "2026-11-23T16:09:06.720",
            total_ms: 0,
            client: "127.0.0.1:55344",
            frontend: "frej",
            backend: None,
            connected: false,
            retries: 0,
            end: Ending::refused("client-denied", String::new()),
        },
        Case {
            line: "127.0.0.1:34632 [23/Nov/2026:16:09:06.722] fnt bck/srv1 0/0/3001 0 cD 1/1/0/0/0 0/0",
            accepted: "2026-11-23T16:09:06.722",
            total_ms: 3001,
            client: "127.0.0.1:34632",
            frontend: "fnt",
            backend: Some(("bck", "srv1")),
            connected: true,
            retries: 0,
            end: End::IdleTimeout.into(),
        },
        Case {
            line: "2001:db8::1:80 [01/Jan/2027:00:00:00.007] fnt bck/srv1 0/0/0 0 KD 1/1/0/0/0 0/0",
            accepted: "2027-01-01T00:00:00.007",
            total_ms: 0,
            client: "[2001:db8::1]:80",
            frontend: "fnt",
            backend: Some(("bck", "srv1")),
            connected: true,
            retries: 0,
            end: End::Stopped.into(),
        },
    ];
    for case in cases {
        let flow = flow_of("192.0.2.77:7");
        flow.came_by(&case.frontend.parse().expect("a name"));
        let client = case.client.parse().expect("an address");
        let _ = flow.client.set(Client::new(client));
        if let Some((pool, server)) = case.backend {
            flow.goes_to(&pool.parse().expect("a name"));
            flow.served_by(server.into());
        }
        if case.connected {
            flow.connect_took(Duration::from_micros(999));
        }
        for _ in 0..case.retries {
            flow.retried();
        }
        let mut line = ended(&flow, &case.end, case.accepted, case.total_ms);
        if case.backend.is_none() {
            (line.open.pool, line.open.server) = (0, 0);
        }
        assert_eq!(tcplog::format(&line), case.line);
    }
}

#[test]
fn a_connection_without_a_client_is_its_peers() {
    let flow = flow_of("192.0.2.77:7");
    let error = crate::header::IdentifyError::Timeout(Duration::from_secs(5), 0);
    let end = Ending::from(&error);
    let line = tcplog::format(&ended(&flow, &end, "2026-11-23T16:09:04.512", 5000));
    assert_eq!(
        line,
        "192.0.2.77:7 [23/Nov/2026:16:09:04.512] - -/<NOSRV> -1/-1/5000 0 cR 1/1/0/0/0 0/0"
    );
}

#[test]
fn a_file_of_tcplog_has_the_words_of_a_syslog_daemon() {
    let (flow, end) = whole();
    let line = ended(&flow, &end, "2026-02-06T12:12:09.000", 0);
    let target = LogTarget::File("f".into());
    let written = frame::frame(&target, AccessLogFormat::Tcplog, &line);
    let written = String::from_utf8(written).expect("text");
    let words: Vec<&str> = written.split_whitespace().collect();
    assert_eq!(words[..3], ["Feb", "6", "12:12:09"]);
    assert!(written.starts_with("Feb  6 "));
    assert_eq!(words[4], format!("limpid[{}]:", std::process::id()));
    assert_eq!(words[5], "10.0.1.2:33313");
    assert!(written.ends_with(" 0/0\n"));
}

/// What `tracing` writes into.
#[derive(Clone, Debug, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn json_has_the_fields_of_the_log_in_json() {
    let (flow, end) = whole();
    let fallen = flow_of("192.0.2.1:1");
    let aborted = Ending::from(End::Stopped);
    for (flow, end) in [(&flow, &end), (&fallen, &aborted)] {
        let line = ended(flow, end, "2026-11-23T16:09:04.512", 1234);
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .json()
            .flatten_event(true)
            .finish();
        tracing::subscriber::with_default(log, || line.log());
        let mut logged: Value = serde_json::from_slice(&lock(&buffer.0)).expect("JSON");
        let mut ours: Value = serde_json::from_str(&json::format(&line)).expect("JSON");
        for object in [&mut logged, &mut ours] {
            let time = object["timestamp"].take();
            let time = time.as_str().expect("a time").parse::<Timestamp>();
            assert!(time.is_ok(), "{time:?}");
        }
        assert_eq!(logged, ours);
    }
}

#[test]
fn logfmt_has_them_too() {
    let (flow, end) = whole();
    let line = ended(&flow, &end, "2026-11-23T16:09:04.512", 1234);
    let json: Value = serde_json::from_str(&json::format(&line)).expect("JSON");
    let text = logfmt::format(&line);
    for (key, value) in json.as_object().expect("an object") {
        let (key, value) = match (key.as_str(), value.as_str()) {
            ("target", _) => continue,
            ("timestamp", Some(time)) => ("time", time.to_owned()),
            ("level", Some(level)) => ("level", level.to_ascii_lowercase()),
            ("detail", _) => ("detail", r#""a \"detail\"\nof two lines""#.to_owned()),
            (key, Some(text)) => (key, text.to_owned()),
            (key, None) => (key, value.to_string()),
        };
        // 0.0 and 0 are the same number.
        let value = value.strip_suffix(".0").unwrap_or(&value).to_owned();
        assert!(
            text.contains(&format!("{key}={value}")),
            "{key}={value} in {text}"
        );
    }
    assert!(!text.contains('\n'));
}

#[test]
fn a_file_that_was_renamed_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
    let target = LogTarget::File(path.clone());
    let observer =
        crate::record::Observer::new(&target, AccessLogFormat::Logfmt).expect("it opens");
    let registry = Registry::new(observer.clone());
    let connection = || {
        let peer = Peer::new("192.0.2.1:1".parse().expect("an address"));
        let called = Listener::new("192.0.2.2:2".parse().expect("an address"));
        crate::record::Record::open(&registry, &"in".parse().expect("a name"), peer, called)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    drop(connection());
    runtime.block_on(observer.flush());
    std::fs::rename(&path, &old).expect("renamed");
    drop(connection());
    runtime.block_on(observer.flush());
    observer.reopen().expect("it opens again");
    drop(connection());
    runtime.block_on(observer.flush());
    let ids = |path| -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("a file");
        let id = |line: &str| line.split(' ').nth(2).map(str::to_owned);
        text.lines().filter_map(id).collect()
    };
    assert_eq!(ids(&old), ["id=1", "id=2"]);
    assert_eq!(ids(&path), ["id=3"]);
    let gone = LogTarget::File(folder.path().join("no/log"));
    let error = observer
        .open_log(&gone, AccessLogFormat::Json)
        .expect_err("no such folder");
    assert!(error.to_string().contains("no/log"), "{error}");
    drop(connection());
    runtime.block_on(observer.flush());
    assert_eq!(
        ids(&path),
        ["id=3", "id=4"],
        "the old target is still there"
    );
}

#[test]
fn a_file_that_cannot_be_opened_is_named_once() {
    let target = LogTarget::File("/nowhere/log".into());
    let error = AccessLog::open(&target, AccessLogFormat::Json, Lost::default());
    let told = error.expect_err("there is no such folder").to_string();
    assert_eq!(told, "/nowhere/log: No such file or directory (os error 2)");
}

#[test]
fn health_checks_are_left_out_unless_they_are_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let target = LogTarget::File(path.clone());
    let log = AccessLog::open(&target, AccessLogFormat::Json, Lost::default()).expect("it opens");
    let flow = flow_of("192.0.2.1:1");
    let closed = Ending::from(&crate::header::IdentifyError::Closed(0));
    let stopped = Ending::from(End::Stopped);
    for end in [&closed, &stopped] {
        log.write(&Line::now(&flow, end, Concurrency::default()));
    }
    let asked = tracing_subscriber::fmt()
        .with_writer(io::sink)
        .with_max_level(tracing::Level::DEBUG)
        .finish();
    tracing::subscriber::with_default(asked, || {
        log.write(&Line::now(&flow, &closed, Concurrency::default()));
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(log.flush());
    let text = std::fs::read_to_string(&path).expect("a file");
    let ends = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["end"].as_str().map(str::to_owned)
    });
    let ends: Vec<String> = ends.flatten().collect();
    assert_eq!(ends, ["stopped", "closed-before-header"]);
}

#[test]
fn a_reader_that_does_not_read_loses_lines_and_stops_nobody() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let sink = Sink::Stream(Stream::new(File::from(std::os::fd::OwnedFd::from(writer))));
    let lost = Lost::default();
    let writer = Writer::start(sink, &LogTarget::Stdout, lost.clone()).expect("a thread");
    let sent = 50_000;
    for n in 0..sent {
        // A pipe of 64 KiB and the queue do not hold them all.
        writer.write(format!("line {n:>100}\n").into_bytes());
    }
    assert!(lost.get() > 0);
    drop(writer);
    let mut read = 0;
    let mut last = None;
    for line in BufReader::new(reader).lines() {
        let line = line.expect("text");
        let n: u64 = line[5..].trim().parse().expect("a whole line");
        assert!(last < Some(n), "in order");
        last = Some(n);
        read += 1;
    }
    assert_eq!(read + lost.get(), sent, "each is written or counted");
}

#[test]
fn a_full_disk_loses_lines() {
    let full = File::options().write(true).open("/dev/full");
    let sink = Sink::Stream(Stream::new(full.expect("/dev/full")));
    let lost = Lost::default();
    let writer = Writer::start(sink, &LogTarget::Stdout, lost.clone()).expect("a thread");
    for _ in 0..3 {
        writer.write(b"line\n".to_vec());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(writer.flush());
    assert_eq!(lost.get(), 3);
}

#[test]
fn syslog_and_journal_get_datagrams() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let mut daemon = UnixDatagram::bind(&path).expect("a socket");
    let mut sink = Sink::Datagrams(Datagrams::to(&path).expect("connected"));
    let (flow, end) = whole();
    let line = ended(&flow, &end, "2026-02-06T12:12:09.000", 0);
    let mut get = |daemon: &UnixDatagram, target| {
        let framed = frame::frame(&target, AccessLogFormat::Tcplog, &line);
        sink.write(&framed).expect("sent");
        let mut buffer = vec![0; 4096];
        let n = daemon.recv(&mut buffer).expect("received");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let line = tcplog::format(&line);
    let pid = std::process::id();
    // local0.info
    let expected = format!("<134>Feb  6 12:12:09 limpid[{pid}]: {line}");
    assert_eq!(get(&daemon, LogTarget::Syslog), expected);
    drop(daemon);
    std::fs::remove_file(&path).expect("removed");
    daemon = UnixDatagram::bind(&path).expect("a socket");
    let entry = get(&daemon, LogTarget::Journald);
    let fields: BTreeSet<&str> = entry.lines().collect();
    for field in [
        &format!("MESSAGE={line}"),
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=limpid",
        "SYSLOG_FACILITY=16",
        "LIMPID_CLIENT=10.0.1.2:33313",
        "LIMPID_SERVER=srv1",
        "LIMPID_END=fin",
        // Its length and the value follow.
        "LIMPID_DETAIL",
    ] {
        assert!(fields.contains(field), "{field} in {entry}");
    }
}

#[test]
fn a_line_that_was_cut_is_ended_before_the_next() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    // Nobody waits: what the pipe does not hold of a line is lost.
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&writer, flags).expect("O_NONBLOCK");
    let mut sink = Sink::Stream(Stream::new(File::from(std::os::fd::OwnedFd::from(writer))));
    let long = [vec![b'a'; 100_000], b"\n".to_vec()].concat();
    assert!(sink.write(&long).is_err());
    let mut start = vec![0; 65_536];
    reader.read_exact(&mut start).expect("what was written");
    sink.write(b"whole\n").expect("there is room");
    drop(sink);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "\nwhole\n");
}

/// The rows of the documentation's table of ends: the name, and the letters it may have.
fn documented() -> Vec<(Vec<String>, String)> {
    let text = include_str!("../../../docs/access-log.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, labels, letters, ..] = cells[..] else {
            return None;
        };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned);
        Some((labels.collect(), letters.to_owned()))
    })
    .collect()
}

#[test]
fn the_documentation_has_every_end_and_its_letters() {
    use During::{Connect, Data, Request};
    use proxy_core::address::Client;
    use proxy_core::header::Refusal;

    use crate::bpf::tables::ReserveError;
    use crate::header::IdentifyError;
    use crate::pool::NoServer;
    use crate::steering::ClaimError;
    use crate::upstream::ConnectError;

    let after = Duration::from_secs(1);
    let error = |kind: io::ErrorKind| io::Error::from(kind);
    let other = || error(io::ErrorKind::Other);
    let upstream = Upstream::new("192.0.2.9:80".parse().expect("an address"));
    let client = Client::new("192.0.2.1:1".parse().expect("an address"));
    let headers = [
        IdentifyError::Untrusted,
        IdentifyError::Refused(Refusal::V1Port),
        IdentifyError::Timeout(after, 0),
        IdentifyError::Closed(0),
        IdentifyError::Read(other()),
    ];
    let connects = [
        ConnectError::Claim(ClaimError::FamilyMismatch { client, upstream }),
        ConnectError::Claim(ClaimError::ClientAddress { client, what: "" }),
        ConnectError::Claim(ClaimError::PortsTaken { client, upstream }),
        ConnectError::Claim(ClaimError::TooMany(1)),
        ConnectError::Claim(ClaimError::Table(ReserveError::Taken)),
        ConnectError::Claim(ClaimError::Cookie(other())),
        ConnectError::Socket(upstream, other()),
        ConnectError::Connect(upstream, error(io::ErrorKind::ConnectionRefused)),
        ConnectError::Connect(upstream, error(io::ErrorKind::ConnectionReset)),
        ConnectError::Connect(upstream, error(io::ErrorKind::AddrNotAvailable)),
        ConnectError::Connect(upstream, other()),
        ConnectError::Timeout(upstream, after),
        ConnectError::NoReply {
            upstream,
            source_address: client.socket_addr(),
            syns: 1,
            timeout: after,
        },
        ConnectError::NotSteered(upstream),
        ConnectError::Send(upstream, other()),
        ConnectError::Downstream(other()),
        ConnectError::Left,
        ConnectError::NoServer(NoServer::NoneThere),
        ConnectError::NoServer(NoServer::AllTried),
        ConnectError::NoServer(NoServer::AllDown),
        ConnectError::NoServer(NoServer::AllDrained),
    ];
    let ends = End::ALL.map(|end| (Ending::from(end), Data));
    let headers = headers.iter().map(|e| (Ending::from(e), Request));
    let connects = connects.iter().map(|e| (Ending::from(e), Connect));
    let stopped = [Request, Connect].map(|stage| (Ending::from(End::Stopped), stage));
    let documented = documented();
    for (end, stage) in ends
        .into_iter()
        .chain(headers)
        .chain(connects)
        .chain(stopped)
    {
        let letters = format!("`{}`", end.termination.letters(stage));
        let is = |(labels, may): &&(Vec<String>, String)| {
            labels.iter().any(|label| label == end.label) && may.contains(&letters)
        };
        let rows = documented.iter().filter(is).count();
        assert_eq!(rows, 1, "rows with {} and {letters}", end.label);
    }
}
