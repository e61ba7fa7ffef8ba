//! Pools of real servers on loopback, with a real name server.

mod dns;
mod resolve;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proxy_core::address::Client;
use proxy_core::header::{Absence, Decoder, Endpoints, Status, Version};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::SendProxy;
use dns::{Dns, srv};

const S: Duration = Duration::from_secs(1);

fn client(ip: &str) -> Client {
    Client::new(SocketAddr::new(ip.parse().unwrap(), 40_000))
}

fn config(upstreams: &[&str]) -> config::Pool {
    config::Pool {
        upstream: upstreams.iter().map(|text| text.parse().unwrap()).collect(),
        ..config::Pool::default()
    }
}

async fn try_start(
    config: &config::Pool,
    resolver: &Resolver,
    before: Option<&Pool>,
) -> Result<Arc<Pool>, PoolError> {
    let name = "game".parse().unwrap();
    Pool::start(&name, config, resolver, before, Arc::default()).await
}

/// Of addresses alone.
async fn start(config: &config::Pool) -> Arc<Pool> {
    let resolver = Resolver::default();
    try_start(config, &resolver, None).await.unwrap()
}

fn pick(pool: &Pool) -> Result<Lease, NoServer> {
    pool.pick(client("192.0.2.200"), 4242, &Tried::default())
}

fn picked(pool: &Pool) -> String {
    pick(pool).unwrap().upstream().to_string()
}

fn view(pool: &Pool, endpoint: &str) -> ServerView {
    let is_it = |view: &ServerView| view.endpoint.to_string() == endpoint;
    pool.servers().into_iter().find(is_it).expect("the server")
}

fn states(pool: &Pool) -> Vec<State> {
    pool.servers().iter().map(|view| view.state).collect()
}

fn endpoints(pool: &Pool) -> Vec<String> {
    let servers = pool.servers();
    servers
        .iter()
        .map(|view| view.endpoint.to_string())
        .collect()
}

/// Waits until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(20 * S, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// A listening server that lets whoever connects come and go.
async fn listening() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// An address where nobody listens, as long as the socket is there.
fn closed() -> (TcpSocket, String) {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

/// A socket at this address that does not listen yet.
fn bound(address: &str) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address.parse().unwrap()).unwrap();
    socket
}

/// Connects as the stage `upstream` does: to one server after the other, until one is there.
async fn connect(pool: &Pool) -> Result<(Lease, usize), NoServer> {
    let mut tried = Tried::default();
    loop {
        let lease = pool.pick(client("127.0.0.1"), 4242, &tried)?;
        let started = Instant::now();
        match TcpStream::connect(lease.upstream().socket_addr()).await {
            Ok(_) => {
                lease.connected(started.elapsed());
                return Ok((lease, tried.len()));
            }
            Err(_) => {
                lease.failed();
                tried.add(&lease);
            }
        }
    }
}

#[tokio::test]
async fn connections_are_spread_by_weight() {
    let pool = start(&config(&[
        "192.0.2.1:80,weight=3",
        "192.0.2.2:80",
        "192.0.2.3:80,weight=0",
    ]))
    .await;
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..400 {
        *counts.entry(picked(&pool)).or_default() += 1;
    }
    let expected = [("192.0.2.1:80", 300), ("192.0.2.2:80", 100)];
    assert_eq!(counts, expected.map(|(e, n)| (e.to_owned(), n)).into());
    assert_eq!(view(&pool, "192.0.2.1:80").counts.total, 300);
}

#[tokio::test]
async fn least_connections_counts_leases() {
    let config = config::Pool {
        balance: Balance::LeastConnections,
        ..config(&["192.0.2.1:80", "192.0.2.2:80"])
    };
    let pool = start(&config).await;
    let mut leases: Vec<Lease> = (0..6).map(|_| pick(&pool).unwrap()).collect();
    let open = |endpoint| view(&pool, endpoint).counts.open;
    assert_eq!((open("192.0.2.1:80"), open("192.0.2.2:80")), (3, 3));
    leases.retain(|lease| lease.upstream().to_string() == "192.0.2.1:80");
    assert_eq!((open("192.0.2.1:80"), open("192.0.2.2:80")), (3, 0));
    for _ in 0..3 {
        let lease = pick(&pool).unwrap();
        assert_eq!(lease.upstream().to_string(), "192.0.2.2:80");
        leases.push(lease);
    }
    drop(leases);
    assert_eq!((open("192.0.2.1:80"), open("192.0.2.2:80")), (0, 0));
}

#[tokio::test]
async fn a_client_keeps_its_server_over_restarts() {
    let source = |upstreams: &[&str]| config::Pool {
        balance: Balance::Source,
        ..config(upstreams)
    };
    let home = |pool: &Pool, n: u8| {
        let client = client(&format!("198.51.100.{n}"));
        let lease = pool.pick(client, 1, &Tried::default());
        lease.unwrap().upstream().to_string()
    };
    let all = ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"];
    let one = start(&source(&all)).await;
    let other = start(&source(&[
        "192.0.2.3:80",
        "192.0.2.1:80,name=x",
        "192.0.2.2:80",
    ]))
    .await;
    let less = start(&source(&all[..2])).await;
    let homes: Vec<String> = (0..100).map(|n| home(&one, n)).collect();
    for server in all {
        assert!(homes.iter().any(|home| home == server));
    }
    for (n, kept) in (0..).zip(&homes) {
        assert_eq!(home(&other, n), *kept);
        assert!(kept == all[2] || home(&less, n) == *kept);
    }
}

#[tokio::test]
async fn the_clients_family_comes_first() {
    let pool = start(&config(&[
        "192.0.2.1:80",
        "[2001:db8::1]:80",
        "[2001:db8::2]:80,backup",
    ]))
    .await;
    let pick = |ip, tried: &Tried| pool.pick(client(ip), 1, tried);
    let mut tried = Tried::default();
    for expected in ["[2001:db8::1]:80", "[2001:db8::2]:80", "192.0.2.1:80"] {
        let lease = pick("2001:db8::99", &tried).unwrap();
        assert_eq!(lease.upstream().to_string(), expected);
        tried.add(&lease);
    }
    assert_eq!(
        pick("2001:db8::99", &tried).unwrap_err(),
        NoServer::AllTried
    );
    let lease = pick("198.51.100.1", &Tried::default()).unwrap();
    assert_eq!(lease.upstream().to_string(), "192.0.2.1:80");
}

#[tokio::test]
async fn the_same_port_is_the_one_that_was_called() {
    let pool = start(&config(&["192.0.2.1:same"])).await;
    assert_eq!(picked(&pool), "192.0.2.1:4242");
    assert_eq!(endpoints(&pool), ["192.0.2.1:same"]);
    let adopted = pool.adopt(Upstream::new("192.0.2.1:99".parse().unwrap()));
    assert_eq!(adopted.unwrap().server().open(), 1);
    let other = pool.adopt(Upstream::new("192.0.2.2:99".parse().unwrap()));
    assert!(other.is_none());
}

#[tokio::test]
async fn another_server_is_tried_and_the_one_that_fails_ejected() {
    let (_listener, good) = listening().await;
    let (_socket, bad) = closed();
    let config = config::Pool {
        eject_time: "300ms".parse().unwrap(),
        ..config(&[&bad, &good])
    };
    let pool = start(&config).await;
    let mut tries = 0;
    for _ in 0..6 {
        let (lease, tried) = connect(&pool).await.unwrap();
        assert_eq!(lease.upstream().to_string(), good);
        tries += tried;
    }
    // Three in a row, and then it was not tried any more.
    assert_eq!(tries, 3);
    assert_eq!(view(&pool, &bad).state, State::Ejected);
    assert_eq!(view(&pool, &bad).counts.failed, 3);
    assert!(view(&pool, &good).counts.connect.is_some());
    until("the ejection ends", || view(&pool, &bad).state == State::Up).await;
    assert!(view(&pool, &bad).unchanged < S);
    // It has not made up for what was: one more failure ejects it.
    while view(&pool, &bad).counts.failed < 4 {
        connect(&pool).await.unwrap();
    }
    assert_eq!(view(&pool, &bad).state, State::Ejected);
}

#[tokio::test]
async fn ejected_servers_are_tried_where_nothing_is_left() {
    let (socket, address) = closed();
    let pool = start(&config(&[&address])).await;
    for _ in 0..5 {
        assert_eq!(connect(&pool).await.unwrap_err(), NoServer::AllTried);
    }
    assert_eq!(states(&pool), [State::Ejected]);
    let _listener = socket.listen(16).unwrap();
    connect(&pool).await.unwrap();
    assert_eq!(states(&pool), [State::Up]);
}

#[tokio::test]
async fn refusals_have_reasons() {
    let (one, two) = ("192.0.2.1:80", "192.0.2.2:80");
    let pool = start(&config(&[one, two])).await;
    assert_eq!(pool.set(one, Admin::Drain), Ok(1));
    assert_eq!(pool.set(two, Admin::Down), Ok(1));
    assert_eq!(states(&pool), [State::Drain, State::Disabled]);
    assert_eq!(pick(&pool).unwrap_err(), NoServer::AllDrained);
    assert_eq!(pool.set(&format!("{one}/{one}"), Admin::Ready), Ok(1));
    assert_eq!(picked(&pool), one);
    assert!(pool.set(&format!("{one}/{two}"), Admin::Ready).is_err());
    let unknown = pool.set("three", Admin::Drain).unwrap_err().to_string();
    assert!(
        unknown.contains("\"three\"") && unknown.contains(one),
        "{unknown}"
    );

    let (_socket, bad) = closed();
    let config = config::Pool {
        check_interval: Some("50ms".parse().unwrap()),
        ..config(&[&bad])
    };
    let pool = start(&config).await;
    until("it is down", || states(&pool) == [State::Down]).await;
    assert_eq!(pick(&pool).unwrap_err(), NoServer::AllDown);
    let error = view(&pool, &bad).checks.last.unwrap().error.unwrap();
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_a_pool() {
    let dns = Dns::start().await;
    let resolver = dns.resolver();
    let error = |config: config::Pool| {
        let resolver = resolver.clone();
        async move { try_start(&config, &resolver, None).await.unwrap_err() }
    };
    assert!(matches!(error(config(&[])).await, PoolError::Empty(_)));
    let twice = error(config(&["192.0.2.1:80", "192.0.2.1:80"])).await;
    assert!(matches!(twice, PoolError::Twice { .. }));
    let checked = config::Pool {
        check_interval: Some("1s".parse().unwrap()),
        ..config(&["192.0.2.1:same"])
    };
    assert!(matches!(
        error(checked).await,
        PoolError::CheckWithoutPort { .. }
    ));
    let unresolved = error(config(&["none.test:80", "nor.test:80"]))
        .await
        .to_string();
    assert!(
        unresolved.contains("none.test does not exist"),
        "{unresolved}"
    );
}

#[tokio::test]
async fn servers_come_and_go_with_their_names() {
    let dns = Dns::start().await;
    dns.set_ips("game.test", 1, &["192.0.2.1", "192.0.2.2"]);
    let changed = Arc::new(Notify::new());
    let config = config::Pool {
        slow_start: Some("1h".parse().unwrap()),
        ..config(&["game.test:80,name=game"])
    };
    let name = "game".parse().unwrap();
    let pool = Pool::start(&name, &config, &dns.resolver(), None, Arc::clone(&changed))
        .await
        .unwrap();
    assert_eq!(endpoints(&pool), ["192.0.2.1:80", "192.0.2.2:80"]);
    assert!(
        pool.servers()
            .iter()
            .all(|view| view.effective_weight == 1.0)
    );
    assert_eq!(pool.set("game/192.0.2.1:80", Admin::Drain), Ok(1));
    let lease = pick(&pool).unwrap();
    assert_eq!(lease.upstream().to_string(), "192.0.2.2:80");

    dns.set_ips("game.test", 1, &["192.0.2.1", "192.0.2.3"]);
    timeout(10 * S, changed.notified()).await.unwrap();
    assert_eq!(endpoints(&pool), ["192.0.2.1:80", "192.0.2.3:80"]);
    // It joins others, and starts slowly; the rest is as it was.
    assert!(view(&pool, "192.0.2.3:80").effective_weight < 0.1);
    assert_eq!(states(&pool), [State::Drain, State::Up]);
    // The way to the one that has left is needed as long as the connection is open.
    let ips = |ips: &[&str]| -> Vec<IpAddr> { ips.iter().map(|ip| ip.parse().unwrap()).collect() };
    assert_eq!(
        pool.addresses(),
        ips(&["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    );

    // All addresses of the name, and those to come; the one that comes back is the same server.
    assert_eq!(pool.set("game", Admin::Drain), Ok(2));
    dns.set_ips("game.test", 1, &["192.0.2.2", "192.0.2.4"]);
    timeout(10 * S, changed.notified()).await.unwrap();
    assert_eq!(endpoints(&pool), ["192.0.2.2:80", "192.0.2.4:80"]);
    assert_eq!(states(&pool), [State::Drain, State::Drain]);
    assert_eq!(view(&pool, "192.0.2.2:80").counts.open, 1);
    drop(lease);
    assert_eq!(view(&pool, "192.0.2.2:80").counts.open, 0);
    assert_eq!(pool.addresses(), ips(&["192.0.2.2", "192.0.2.4"]));

    // A failure and a name that is gone for a moment change nothing.
    dns.remove("game.test");
    let unchanged = timeout(3 * S, changed.notified()).await;
    assert!(unchanged.is_err(), "{:?}", endpoints(&pool));
    drop(pool);
    dns.asked();
    sleep(6 * S).await;
    assert!(dns.asked().is_empty(), "a pool that is gone asks");
}

#[tokio::test]
async fn a_name_that_is_not_there_yet_keeps_nobody_waiting() {
    let dns = Dns::start().await;
    let config = config(&["late.test:80", "192.0.2.1:80"]);
    let pool = try_start(&config, &dns.resolver(), None).await.unwrap();
    assert_eq!(endpoints(&pool), ["192.0.2.1:80"]);
    dns.set_ips("late.test", 60, &["192.0.2.2"]);
    until("it is found", || {
        endpoints(&pool) == ["192.0.2.2:80", "192.0.2.1:80"]
    })
    .await;
}

#[tokio::test]
async fn what_the_hosts_file_says_is_followed() {
    let dns = Dns::start().await;
    dns.hosts("192.0.2.1 game\n");
    let pool = try_start(&config(&["game:80"]), &dns.resolver(), None)
        .await
        .unwrap();
    assert_eq!(endpoints(&pool), ["192.0.2.1:80"]);
    dns.hosts("192.0.2.2 game\n");
    until("it is read again", || endpoints(&pool) == ["192.0.2.2:80"]).await;
}

#[tokio::test]
async fn the_first_priority_of_srv_records_is_primary() {
    let dns = Dns::start().await;
    dns.set(
        "_game._tcp.test",
        60,
        [
            srv(1, 3, 81, "a.test"),
            srv(1, 1, 82, "a.test"),
            srv(2, 1, 83, "a.test"),
        ],
    );
    dns.set_ips("a.test", 60, &["192.0.2.1"]);
    let config = config(&["_game._tcp.test,weight=2"]);
    let pool = try_start(&config, &dns.resolver(), None).await.unwrap();
    let weights: Vec<(u32, bool)> = pool
        .servers()
        .iter()
        .map(|v| (v.weight, v.backup))
        .collect();
    assert_eq!(weights, [(6, false), (2, false), (2, true)]);
    let ports: Vec<u16> = (0..8)
        .map(|_| pick(&pool).unwrap().upstream().port())
        .collect();
    assert_eq!(ports.iter().filter(|&&port| port == 81).count(), 6);
    assert_eq!(ports.iter().filter(|&&port| port == 82).count(), 2);
    for endpoint in ["192.0.2.1:81", "192.0.2.1:82"] {
        pool.set(&format!("_game._tcp.test/{endpoint}"), Admin::Drain)
            .unwrap();
    }
    assert_eq!(picked(&pool), "192.0.2.1:83");
}

#[tokio::test]
async fn a_reload_keeps_what_is_known() {
    let dns = Dns::start().await;
    dns.set_ips("game.test", 60, &["192.0.2.1"]);
    let resolver = dns.resolver();
    let upstreams = [
        "game.test:80",
        "192.0.2.2:80",
        "192.0.2.3:80",
        "192.0.2.4:80",
    ];
    let before = try_start(&config(&upstreams), &resolver, None)
        .await
        .unwrap();
    before.set("192.0.2.3:80", Admin::Drain).unwrap();
    before.set("192.0.2.4:80", Admin::Down).unwrap();
    let lease = pick(&before).unwrap();
    assert_eq!(lease.upstream().to_string(), "192.0.2.1:80");
    let other = pick(&before).unwrap();
    for _ in 0..3 {
        other.failed();
    }
    drop(other);

    // The name server does not answer, a server is new, one has another weight.
    dns.fail(&["A", "AAAA"].map(|kind| ("game.test", kind.parse().unwrap())));
    let config = config::Pool {
        slow_start: Some("1h".parse().unwrap()),
        ..config(&[
            "game.test:80",
            "192.0.2.2:80,weight=5",
            "192.0.2.3:80",
            "192.0.2.4:80",
            "192.0.2.5:80",
        ])
    };
    let after = try_start(&config, &resolver, Some(&before)).await.unwrap();
    drop(before);
    let expected = [
        State::Up,
        State::Ejected,
        State::Drain,
        State::Disabled,
        State::Up,
    ];
    assert_eq!(states(&after), expected);
    assert_eq!(view(&after, "192.0.2.1:80").counts.open, 1);
    assert_eq!(view(&after, "192.0.2.2:80").weight, 5);
    assert_eq!(view(&after, "192.0.2.2:80").counts.failed, 3);
    assert!(view(&after, "192.0.2.5:80").effective_weight < 0.1);
    // What was leased from the pool before counts in this one.
    for _ in 0..3 {
        lease.failed();
    }
    assert_eq!(view(&after, "192.0.2.1:80").state, State::Ejected);
    lease.connected(S);
    assert_eq!(view(&after, "192.0.2.1:80").state, State::Up);
    drop(lease);
    assert_eq!(view(&after, "192.0.2.1:80").counts.open, 0);
    // Without ejections there is nobody who is ejected.
    let config = config::Pool {
        eject_after: config::Within::new(0),
        ..config
    };
    let last = try_start(&config, &resolver, Some(&after)).await.unwrap();
    assert_eq!(view(&last, "192.0.2.2:80").state, State::Up);
}

#[tokio::test]
async fn a_reload_logs_who_is_new_alone() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&log);
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Log(Arc::clone(&writer)))
        .finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let resolver = Resolver::default();
    let reload = async |upstreams: &[&str], before: Option<&Pool>| {
        let pool = try_start(&config(upstreams), &resolver, before).await;
        let text = String::from_utf8(std::mem::take(&mut *lock(&log))).unwrap();
        let joined = text
            .lines()
            .filter(|line| line.contains("server has joined"));
        let joined: Vec<String> = joined.map(str::to_owned).collect();
        (pool.unwrap(), joined)
    };
    let (first, joined) = reload(&["192.0.2.1:80", "192.0.2.2:80"], None).await;
    assert!(joined.is_empty(), "{joined:?}");
    let upstreams = ["192.0.2.1:80", "192.0.2.3:80", "192.0.2.2:80"];
    let (second, joined) = reload(&upstreams, Some(&first)).await;
    assert_eq!(joined.len(), 1, "{joined:?}");
    assert!(joined[0].contains("192.0.2.3:80"), "{joined:?}");
    let (third, joined) = reload(&["192.0.2.1:80"], Some(&second)).await;
    assert!(joined.is_empty(), "{joined:?}");
    // `first` keeps it known, but it was gone.
    let (_, joined) = reload(&["192.0.2.2:80", "192.0.2.1:80"], Some(&third)).await;
    assert_eq!(joined.len(), 1, "{joined:?}");
    assert!(joined[0].contains("192.0.2.2:80"), "{joined:?}");
}

/// What is logged.
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn checked(upstream: &str, send_proxy: Option<SendProxy>) -> config::Pool {
    config::Pool {
        check_interval: Some("100ms".parse().unwrap()),
        check_timeout: "500ms".parse().unwrap(),
        send_proxy,
        ..config(&[upstream])
    }
}

/// What a check sends, up to its FIN; an error if it ends otherwise.
async fn received(listener: &TcpListener) -> io::Result<(SocketAddr, Vec<u8>)> {
    let (mut stream, peer) = listener.accept().await?;
    // A banner that nobody waits for must not make a RST of the FIN.
    stream.try_write(b"220 ready\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok((peer, bytes))
}

#[tokio::test]
async fn a_retired_pool_checks_nobody() {
    let (listener, address) = listening().await;
    let pool = start(&checked(&address, None)).await;
    received(&listener).await.unwrap();
    pool.retire();
    // One may be on its way.
    let one = timeout(Duration::from_millis(500), received(&listener)).await;
    drop(one);
    let another = timeout(Duration::from_millis(500), received(&listener)).await;
    assert!(another.is_err(), "{another:?}");
    assert_eq!(picked(&pool), address);
}

#[tokio::test]
async fn checks_take_servers_down_and_up() {
    let (listener, address) = listening().await;
    let pool = start(&checked(&address, None)).await;
    until("checks succeed", || {
        view(&pool, &address).checks.succeeded >= 2
    })
    .await;
    assert_eq!(states(&pool), [State::Up]);
    drop(listener);
    let socket = bound(&address);
    until("it is down", || states(&pool) == [State::Down]).await;
    // `fall` is 3; and it stays down.
    assert!(view(&pool, &address).checks.failed >= 3);
    assert_eq!(pick(&pool).unwrap_err(), NoServer::AllDown);
    let succeeded = view(&pool, &address).checks.succeeded;
    let listener = socket.listen(16).unwrap();
    until("it is up", || states(&pool) == [State::Up]).await;
    assert!(view(&pool, &address).checks.succeeded >= succeeded + 2);
    let (_, bytes) = received(&listener).await.unwrap();
    assert_eq!(bytes, b"");

    // Out of service, it is not checked.
    pool.set(&address, Admin::Down).unwrap();
    sleep(Duration::from_millis(200)).await;
    let count = || view(&pool, &address).checks.succeeded;
    let before = count();
    sleep(Duration::from_millis(400)).await;
    assert_eq!(count(), before);
    pool.set(&address, Admin::Drain).unwrap();
    until("it is checked again", || count() > before).await;
}

#[tokio::test]
async fn checks_say_what_they_are() {
    let (listener, address) = listening().await;
    for version in [SendProxy::V1, SendProxy::V2] {
        let config = config::Pool {
            send_proxy_crc32c: true,
            ..checked(&address, Some(version))
        };
        let pool = start(&config).await;
        let (peer, bytes) = received(&listener).await.unwrap();
        let decoded = Decoder::default().decode(&bytes).unwrap();
        let Status::Complete { header, consumed } = decoded else {
            panic!("{decoded:?}");
        };
        assert_eq!(consumed, bytes.len());
        match version {
            SendProxy::V1 => {
                assert_eq!(header.version, Version::V1);
                assert_eq!(header.client().unwrap().socket_addr(), peer);
                assert_eq!(
                    bytes,
                    format!(
                        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
                        peer.port(),
                        listener.local_addr().unwrap().port()
                    )
                    .into_bytes()
                );
            }
            SendProxy::V2 => {
                assert_eq!(header.version, Version::V2);
                assert_eq!(header.endpoints, Endpoints::Absent(Absence::Local));
            }
        }
        assert_eq!(states(&pool), [State::Up]);
        drop(pool);
        // Whatever was on its way; then nobody checks any more.
        while timeout(S, received(&listener)).await.is_ok() {}
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_down() {
    // A listener whose backlog is full: SYNs are dropped, and nothing comes back.
    let listener = bound("127.0.0.1:0").listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) = timeout(S / 4, TcpStream::connect(address)).await {
        waiting.push(stream);
    }
    let address = address.to_string();
    let pool = start(&checked(&address, None)).await;
    until("it is down", || states(&pool) == [State::Down]).await;
    let last = view(&pool, &address).checks.last.unwrap();
    assert!(last.error.unwrap().contains("no answer within 500ms"));
    assert!(last.took >= S / 2);
}
