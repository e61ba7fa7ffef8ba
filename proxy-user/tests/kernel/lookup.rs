//! `proxy_user::listener`: several listeners, ranges of ports, sockets that were there before.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use limpid_tests::net::{Family, Host};
use limpid_tests::suite::Suite;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpFastOpenConnect;
use proxy_user::bpf::lookup::{LookupError, RANGES_LIMIT};
use proxy_user::bpf::sockmap::kernel_version;
use proxy_user::config::{Listener, Name};
use proxy_user::listener::inherit::{InheritError, Inherited};
use proxy_user::listener::ranges::{Ranges, RangesError};
use proxy_user::listener::{Bound, ListenError, Listeners};
use proxy_user::sys::socket_cookie;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::pair::{loopback, works};

pub(crate) fn add_to(suite: &mut Suite) {
    for family in Family::ALL {
        suite.test(format!("lookup_borders_{family}"), &[], move |_| {
            borders(family)
        });
        suite.test(format!("lookup_all_ports_{family}"), &[], move |_| {
            all_ports(family)
        });
        suite.test(format!("lookup_others_keep_{family}"), &[], move |_| {
            others_keep(family)
        });
        suite.test(format!("lookup_hand_over_{family}"), &[], move |_| {
            hand_over(family)
        });
    }
    suite.test("lookup_all_addresses", &[], |_| all_addresses());
    suite.test("lookup_families_of_others", &[], |_| families_of_others());
    suite.test("lookup_narrowest_first", &[], |_| narrowest_first());
    suite.test("lookup_no_port_left", &[], |_| async { no_port_left() });
    suite.test("lookup_too_many", &[], |_| async { too_many() });
    suite.test("lookup_twice", &[], |_| async { twice() });
    suite.test("lookup_interface", &[], |_| interface());
    suite.test("lookup_leaves_udp", &[], |_| leaves_udp());
    suite.test("lookup_leaves_nothing", &[], |_| leaves_nothing());
    suite.test("listener_inherits", &[], |_| async { inherits() });
    suite.test("listener_refuses_to_inherit", &[], |_| async {
        refuses_to_inherit()
    });
    suite.test("listener_options", &[], |_| options());
    suite.test("listener_fast_open", &[], |_| fast_open());
}

/// Each port of the range, and none beside it; of no other address.
async fn borders(family: Family) -> Result<()> {
    let host = Host::new("host")?;
    let other = other_address(&host, family)?;
    let mut served = Served::start(&host, &[("game", &[&at(family, "8000-8099")])])?;
    for port in [8000, 8001, 8042, 8098, 8099] {
        served
            .answers(&host, loopback(family, port), "game")
            .await?;
    }
    for refused in [
        loopback(family, 7999),
        loopback(family, 8100),
        SocketAddr::new(other, 8042),
    ] {
        is_refused(&host, refused).await?;
    }
    Ok(())
}

/// `ADDR:*`
async fn all_ports(family: Family) -> Result<()> {
    let host = Host::new("host")?;
    let mut served = Served::start(&host, &[("all", &[&at(family, "*")])])?;
    for port in [1, 80, 32_768, u16::MAX] {
        served.answers(&host, loopback(family, port), "all").await?;
    }
    Ok(())
}

/// `0.0.0.0` is IPv4, `::` is both.
async fn all_addresses() -> Result<()> {
    for (range, families) in [
        ("0.0.0.0:8000-8099", &[Family::V4][..]),
        ("[::]:8000-8099", &Family::ALL),
    ] {
        let host = Host::new("host")?;
        let others = [
            other_address(&host, Family::V4)?,
            other_address(&host, Family::V6)?,
        ];
        let mut served = Served::start(&host, &[("any", &[range])])?;
        for (family, other) in Family::ALL.into_iter().zip(others) {
            for to in [loopback(family, 8000), SocketAddr::new(other, 8099)] {
                if families.contains(&family) {
                    served.answers(&host, to, "any").await?;
                } else {
                    is_refused(&host, to).await?;
                }
            }
            is_refused(&host, loopback(family, 8100)).await?;
        }
    }
    Ok(())
}

/// Somebody who listens on one port of the range keeps it, whether they were there before or come later;
/// and it comes back to the range when they go.
async fn others_keep(family: Family) -> Result<()> {
    let host = Host::new("host")?;
    let one = host.listen(loopback(family, 8010)).await?;
    let any = SocketAddr::new(family.unspecified(), 8011);
    let any = host.listen(any).await?;
    let mut served = Served::start(
        &host,
        &[
            ("range", &[&at(family, "8000-8099")]),
            ("own", &[&at(family, "8020")]),
        ],
    )?;
    for (listener, port) in [(&one, 8010), (&any, 8011)] {
        is_answered_by(&host, listener, loopback(family, port)).await?;
    }
    served.answers(&host, loopback(family, 8020), "own").await?;
    served
        .answers(&host, loopback(family, 8012), "range")
        .await?;
    let late = host.listen(loopback(family, 8012)).await?;
    served.ranges()?.look()?;
    is_answered_by(&host, &late, loopback(family, 8012)).await?;
    drop((one, late));
    for _ in 0..2 {
        served.ranges()?.look()?;
    }
    for port in [8010, 8012] {
        served
            .answers(&host, loopback(family, port), "range")
            .await?;
    }
    is_answered_by(&host, &any, loopback(family, 8011)).await
}

/// `::` keeps a port of IPv4 where its socket takes IPv4.
async fn families_of_others() -> Result<()> {
    let host = Host::new("host")?;
    let any = |port| SocketAddr::from(([0_u16; 8], port));
    let both = host.listen(any(8010)).await?;
    let ipv6 = host
        .listen_with(any(8011), |socket| socket.set_only_v6(true))
        .await?;
    let ranges: &[&str] = &["127.0.0.1:8000-8099", "[::1]:8000-8099"];
    let mut served = Served::start(&host, &[("range", ranges)])?;
    is_answered_by(&host, &both, loopback(Family::V4, 8010)).await?;
    is_answered_by(&host, &both, loopback(Family::V6, 8010)).await?;
    is_answered_by(&host, &ipv6, loopback(Family::V6, 8011)).await?;
    served
        .answers(&host, loopback(Family::V4, 8011), "range")
        .await
}

/// Of ranges within ranges the narrowest has the port, also the ports that their sockets are bound to.
async fn narrowest_first() -> Result<()> {
    let host = Host::new("host")?;
    let mut served = Served::start(
        &host,
        &[
            ("any", &["[::]:*"]),
            ("ipv4", &["0.0.0.0:*"]),
            ("few", &["0.0.0.0:8000-8009"]),
            ("one", &["127.0.0.1:8000-8999"]),
        ],
    )?;
    let other = other_address(&host, Family::V4)?;
    let sockets: Vec<u16> = served
        .listeners
        .sockets()
        .iter()
        .map(|one| Ok(one.local_addr()?.port()))
        .collect::<Result<_>>()?;
    for (to, name) in [
        (loopback(Family::V4, 8005), "one"),
        (SocketAddr::new(other, 8005), "few"),
        (SocketAddr::new(other, 8010), "ipv4"),
        (loopback(Family::V6, 8005), "any"),
    ] {
        served.answers(&host, to, name).await?;
    }
    for port in sockets {
        let one = if (8000..=8999).contains(&port) {
            "one"
        } else {
            "ipv4"
        };
        served
            .answers(&host, loopback(Family::V4, port), one)
            .await?;
        served
            .answers(&host, loopback(Family::V6, port), "any")
            .await?;
    }
    Ok(())
}

fn no_port_left() -> Result<()> {
    let host = Host::new("host")?;
    let error = host.block(|| {
        let _first = std::net::TcpListener::bind("127.0.0.1:8000")?;
        let _second = std::net::TcpListener::bind("127.0.0.1:8001")?;
        let bound = bind(
            &[("full", &["127.0.0.1:8000-8001"])],
            &mut Inherited::default(),
        );
        anyhow::Ok(bound.err())
    })??;
    ensure!(matches!(error, Some(ListenError::NoPort(_))), "{error:?}");
    Ok(())
}

fn too_many() -> Result<()> {
    let host = Host::new("host")?;
    let ranges: Vec<String> = (0..=RANGES_LIMIT)
        .map(|n| format!("127.0.0.1:{}-{}", 8000 + 2 * n, 8001 + 2 * n))
        .collect();
    let open = move |count: usize| {
        let ranges: Vec<&str> = ranges[..count].iter().map(String::as_str).collect();
        bind(&[("many", &ranges)], &mut Inherited::default())?.open()
    };
    let most = RANGES_LIMIT as usize;
    let (taken, refused) = host.block(move || (open(most), open(most + 1)))?;
    ensure!(taken?.sockets().len() == most);
    match refused {
        Err(ListenError::Ranges(RangesError::Lookup(LookupError::TooMany(n)))) => {
            ensure!(n == most + 1);
        }
        other => bail!("{other:?}"),
    }
    Ok(())
}

fn twice() -> Result<()> {
    let host = Host::new("host")?;
    let error = host.block(|| {
        let same: &[&str] = &["127.0.0.1:8000-8001"];
        let bound = bind(&[("one", same), ("two", same)], &mut Inherited::default());
        bound.and_then(Bound::open).err()
    })?;
    ensure!(
        matches!(error, Some(ListenError::Ranges(RangesError::Twice(_)))),
        "{error:?}"
    );
    Ok(())
}

/// A range of an interface, where the kernel tells the program by which one a SYN comes.
async fn interface() -> Result<()> {
    let host = Host::new("host")?;
    host.ip("link add other type veth peer name end")?;
    let open = |interface: &'static str| {
        host.block(move || {
            let mut listeners = described(&[("range", &["127.0.0.1:8000-8099"])]);
            for listener in listeners.values_mut() {
                listener.downstream_interface = Some(interface.to_owned());
            }
            Bound::bind(&listeners, &mut Inherited::default())?.open()
        })
    };
    if kernel_version().context("no version")? < (5, 17, 0) {
        let refused = open("lo")?.err();
        ensure!(
            matches!(
                refused,
                Some(ListenError::Ranges(RangesError::Lookup(
                    LookupError::Interface(_)
                )))
            ),
            "{refused:?}"
        );
        return Ok(());
    }
    let mut served = Served::new(&host, open("lo")??);
    served
        .answers(&host, loopback(Family::V4, 8042), "range")
        .await?;
    drop(served);
    let _elsewhere = open("other")??;
    is_refused(&host, loopback(Family::V4, 8042)).await
}

async fn leaves_udp() -> Result<()> {
    let host = Host::new("host")?;
    let mut served = Served::start(&host, &[("all", &["[::]:*"])])?;
    let to = loopback(Family::V4, 8042);
    let (sent, got) = host.block(move || {
        let server = UdpSocket::bind(to)?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.send_to(b"datagram", to)?;
        let mut got = [0; 16];
        let (len, from) = server.recv_from(&mut got)?;
        anyhow::Ok((client.local_addr()?, (from, got[..len].to_vec())))
    })??;
    ensure!(got == (sent, b"datagram".to_vec()), "{got:?}");
    served.answers(&host, to, "all").await
}

/// One daemon takes the sockets of another, time and again, while clients connect: each of them gets
/// through, to whichever has the range.
async fn hand_over(family: Family) -> Result<()> {
    const TIMES: usize = 20;
    let host = Arc::new(Host::new("host")?);
    let config: &'static [(&str, &[&str])] = match family {
        Family::V4 => &[("range", &["127.0.0.1:8000-8099"])],
        Family::V6 => &[("range", &["[::1]:8000-8099"])],
    };
    let mut served = Served::start(&host, config)?;
    let over = Arc::new(AtomicBool::new(false));
    let clients = tokio::spawn({
        let (host, over) = (Arc::clone(&host), Arc::clone(&over));
        async move {
            let mut made = 0;
            while !over.load(Ordering::Relaxed) {
                let port = 8000 + u16::try_from(made % 100)?;
                let mut client = host.connect(loopback(family, port)).await?;
                // Accepted, not only queued.
                let answered = timeout(Duration::from_secs(5), answer(&mut client)).await;
                answered.context("no answer")??;
                made += 1;
            }
            anyhow::Ok(made)
        }
    });
    for _ in 0..TIMES {
        // As it comes from another process: descriptors of the same sockets.
        let descriptors = duplicates(&served.listeners)?;
        let next = host.block(move || {
            let mut inherited = Inherited::new(descriptors);
            let listeners = bind(config, &mut inherited)?.open()?;
            let rest = inherited.close_rest();
            ensure!(rest.is_empty(), "{rest:?}");
            anyhow::Ok(listeners)
        })??;
        let next = Served::new(&host, next);
        // Both have it.
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(std::mem::replace(&mut served, next));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    over.store(true, Ordering::Relaxed);
    let made = clients.await??;
    println!("{made} connections, {TIMES} times handed over");
    ensure!(made > TIMES, "{made} connections");
    drop(served);
    is_refused(&host, loopback(family, 8042)).await
}

/// No program, no socket.
async fn leaves_nothing() -> Result<()> {
    let host = Host::new("host")?;
    let namespace = std::fs::metadata(host.namespace())?.ino();
    let links = || -> Result<usize> {
        let links = host.sh("bpftool -j link show")?;
        let links: serde_json::Value = serde_json::from_str(&links)?;
        let links = links.as_array().context("no list")?;
        let here = |link: &&serde_json::Value| link["netns_ino"].as_u64() == Some(namespace);
        Ok(links.iter().filter(here).count())
    };
    let served = Served::start(&host, &[("game", &["127.0.0.1:8000-8099", "[::]:80"])])?;
    ensure!(links()? == 1, "{} links", links()?);
    ensure!(host.listens(8099)? && host.listens(80)?);
    drop(served);
    ensure!(links()? == 0, "{} links", links()?);
    ensure!(!host.listens(8099)? && !host.listens(80)?);
    is_refused(&host, loopback(Family::V4, 8042)).await
}

/// Each socket is used where it fits, by whatever listener.
fn inherits() -> Result<()> {
    let host = Host::new("host")?;
    host.block(|| {
        let before = bind(
            &[
                ("a", &["127.0.0.1:8000-8099", "127.0.0.1:80"]),
                ("b", &["[::]:443", "[::1]:9000-9009", "127.0.0.1:8099"]),
            ],
            &mut Inherited::default(),
        )?
        .open()?;
        let cookies = |listeners: &Listeners| -> Result<BTreeMap<String, u64>> {
            listeners
                .sockets()
                .iter()
                .map(|one| Ok((one.address.to_string(), socket_cookie(&**one)?)))
                .collect()
        };
        let old = cookies(&before)?;
        let mut inherited = before.again()?;
        // Others of the same range; one has gone; one is new.
        let after = bind(
            &[(
                "c",
                &[
                    "127.0.0.1:8099",
                    "127.0.0.1:8050-8200",
                    "[::]:443",
                    "[::1]:*",
                    "127.0.0.1:81",
                ],
            )],
            &mut inherited,
        )?
        .open()?;
        let new = cookies(&after)?;
        for (before, after) in [
            ("127.0.0.1:8099", "127.0.0.1:8099"),
            ("127.0.0.1:8000-8099", "127.0.0.1:8050-8200"),
            ("[::]:443", "[::]:443"),
            ("[::1]:9000-9009", "[::1]:*"),
        ] {
            ensure!(old[before] == new[after], "{before}, {after}");
        }
        let rest = inherited.close_rest();
        let [InheritError::Elsewhere { theirs, .. }] = &rest[..] else {
            bail!("{rest:?}")
        };
        ensure!(theirs.to_string() == "127.0.0.1:80 (any interface)");
        let said = rest[0].to_string();
        ensure!(
            said.contains("127.0.0.1:8050-8200 (any interface), "),
            "{said}"
        );
        Ok(())
    })?
}

fn refuses_to_inherit() -> Result<()> {
    let (host, elsewhere) = (Host::new("host")?, Host::new("elsewhere")?);
    let foreign = elsewhere.block(|| std::net::TcpListener::bind("127.0.0.1:80"))??;
    host.block(move || {
        let mut unfit = Inherited::new([
            foreign.into(),
            UdpSocket::bind("127.0.0.1:80")?.into(),
            // It does not listen.
            OwnedFd::from(Socket::new(Domain::IPV4, Type::STREAM, None)?),
        ]);
        let errors = unfit.close_unfit();
        ensure!(
            matches!(
                errors[..],
                [
                    InheritError::Namespace,
                    InheritError::Kind,
                    InheritError::Kind
                ]
            ),
            "{errors:?}"
        );
        // For IPv6 only, or of an interface: not what is asked for.
        let address: SocketAddr = "[::]:81".parse()?;
        let listening = |prepare: fn(&Socket) -> std::io::Result<()>, port| -> Result<OwnedFd> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            prepare(&socket)?;
            socket.bind(&SocketAddr::new(address.ip(), port).into())?;
            socket.listen(1)?;
            Ok(socket.into())
        };
        let mut other = Inherited::new([
            listening(|socket| socket.set_only_v6(true), 81)?,
            listening(|socket| socket.bind_device(Some(b"lo")), 82)?,
        ]);
        let taken = bind(&[("a", &["[::]:81", "[::]:82"])], &mut other);
        // They are there still, and have the ports.
        ensure!(
            matches!(taken, Err(ListenError::Occupied { .. })),
            "{taken:?}"
        );
        let said: Vec<String> = other.close_rest().iter().map(ToString::to_string).collect();
        ensure!(
            said.len() == 2 && said[1].contains("[::]:82 (interface lo)"),
            "{said:?}"
        );
        bind(&[("a", &["[::]:81", "[::]:82"])], &mut Inherited::default())?;
        Ok(())
    })?
}

/// Accepted sockets have what the listener was told; a reload changes it.
async fn options() -> Result<()> {
    let host = Host::new("host")?;
    let open = |before: Option<&Listeners>, keep_alive: Option<&str>, backlog: i64| {
        let keep_alive = keep_alive.map(str::parse).transpose();
        let descriptors = before.map(duplicates).transpose()?.unwrap_or_default();
        host.block(move || {
            let mut listeners = described(&[("a", &["127.0.0.1:80"])]);
            for listener in listeners.values_mut() {
                listener.downstream_keep_alive = keep_alive.clone()?;
                listener.downstream_user_timeout = Some("7s".parse()?);
                listener.backlog = backlog.try_into()?;
            }
            let mut inherited = Inherited::new(descriptors);
            anyhow::Ok(Bound::bind(&listeners, &mut inherited)?.open()?)
        })?
    };
    let to = loopback(Family::V4, 80);
    let first = open(None, Some("idle=1m,interval=3s,count=9"), 99)?;
    let queue = || host.sh("ss -Hltn sport = :80");
    ensure!(
        queue()?.split_whitespace().nth(2) == Some("99"),
        "{}",
        queue()?
    );
    let socket = first.sockets().first().context("no socket")?;
    let _client = host.connect(to).await?;
    let accepted = socket.accept().await.stream;
    let told = SockRef::from(&accepted);
    ensure!(told.keepalive()? && told.tcp_nodelay()?);
    ensure!(told.tcp_keepalive_time()? == Duration::from_secs(60));
    ensure!(told.tcp_keepalive_interval()? == Duration::from_secs(3));
    ensure!(told.tcp_keepalive_retries()? == 9);
    ensure!(told.tcp_user_timeout()? == Some(Duration::from_secs(7)));
    let second = open(Some(&first), None, 44)?;
    drop(first);
    ensure!(
        queue()?.split_whitespace().nth(2) == Some("44"),
        "{}",
        queue()?
    );
    let _client = host.connect(to).await?;
    let socket = second.sockets().first().context("no socket")?;
    ensure!(!SockRef::from(&socket.accept().await.stream).keepalive()?);
    Ok(())
}

/// A client that has been here before is heard with its SYN, also on a range.
async fn fast_open() -> Result<()> {
    let host = Host::new("host")?;
    // Both as a client (1) and as a server (2).
    host.sysctl("net/ipv4/tcp_fastopen", "3")?;
    let heard = || -> Result<u64> {
        let table = host.proc_net("netstat")?;
        let mut lines = table.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = lines.next().zip(lines.next()).context("no TcpExt")?;
        let mut names = names.split(' ');
        let column = names.position(|name| name == "TCPFastOpenPassive");
        let value = values.split(' ').nth(column.context("no column")?);
        Ok(value.context("short")?.parse()?)
    };
    for (range, most, expected) in [
        ("127.0.0.1:8000-8099", Some(9_i64), 1),
        // It has the cookie already: that is the host's.
        ("127.0.0.1:8042", Some(9), 2),
        ("127.0.0.1:8042", None, 0),
    ] {
        let before = heard()?;
        let mut listeners = described(&[("a", &[range])]);
        for listener in listeners.values_mut() {
            listener.fast_open = most.map(TryInto::try_into).transpose()?;
        }
        let listeners =
            host.block(move || Bound::bind(&listeners, &mut Inherited::default())?.open())??;
        let socket = listeners.sockets().first().context("no socket")?;
        // The first time it asks for a cookie (RFC 7413, 4.1).
        for _ in 0..2 {
            let to = loopback(Family::V4, 8042);
            let mut client = host
                .connect_with(to, |socket| {
                    Ok(setsockopt(socket, TcpFastOpenConnect, &true)?)
                })
                .await?;
            client.write_all(b"!").await?;
            let mut accepted = socket.accept().await;
            ensure!(accepted.listener.socket_addr() == to);
            answer(&mut accepted.stream).await?;
        }
        let found = heard()? - before;
        ensure!(found == expected, "{range} {most:?}: {found}");
    }
    Ok(())
}

fn duplicates(listeners: &Listeners) -> std::io::Result<Vec<OwnedFd>> {
    let sockets = listeners.descriptors();
    sockets.map(|socket| socket.try_clone_to_owned()).collect()
}

/// Listeners, and tasks that accept from each of their sockets.
struct Served {
    listeners: Listeners,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    accepted: UnboundedReceiver<(Name, SocketAddr, TcpStream)>,
}

impl Served {
    fn start(host: &Host, config: &[(&str, &[&str])]) -> Result<Self> {
        let listeners = described(config);
        let listeners = host.block(move || {
            Bound::bind(&listeners, &mut Inherited::default()).and_then(Bound::open)
        })??;
        Ok(Self::new(host, listeners))
    }

    fn new(host: &Host, listeners: Listeners) -> Self {
        let (tell, accepted) = unbounded_channel();
        let tasks = listeners.sockets().iter().map(|socket| {
            let (socket, tell) = (Arc::clone(socket), tell.clone());
            host.spawn(async move {
                loop {
                    let accepted = socket.accept().await;
                    // What is written before the stream is dropped is for those who only want an answer.
                    let _ = accepted.stream.try_write(b"!");
                    let to = accepted.listener.socket_addr();
                    let _ = tell.send((socket.name.clone(), to, accepted.stream));
                }
            })
        });
        Self {
            tasks: tasks.collect(),
            listeners,
            accepted,
        }
    }

    fn ranges(&self) -> Result<&Ranges> {
        self.listeners.ranges().context("no ranges")
    }

    /// Passes when a connection to `to` is one of the listener `name`, knows what it was for, and works.
    async fn answers(&mut self, host: &Host, to: SocketAddr, name: &str) -> Result<()> {
        let mut client = host.connect(to).await?;
        answer(&mut client).await?;
        let (by, called, mut stream) = timeout(Duration::from_secs(5), self.accepted.recv())
            .await
            .with_context(|| format!("nobody accepts from {to}"))?
            .context("no tasks")?;
        ensure!(by.as_str() == name, "{to}: {by} instead of {name}");
        ensure!(called == to, "{to}: called at {called}");
        works(&mut client, &mut stream).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn answer(client: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    client.read_exact(&mut byte).await.context("no answer")?;
    Ok(())
}

fn described(config: &[(&str, &[&str])]) -> BTreeMap<Name, Listener> {
    let listener = |addresses: &[&str]| Listener {
        listen: addresses
            .iter()
            .map(|at| at.parse().expect("an address"))
            .collect(),
        ..Listener::default()
    };
    config
        .iter()
        .map(|(name, addresses)| (name.parse().expect("a name"), listener(addresses)))
        .collect()
}

fn bind(config: &[(&str, &[&str])], inherited: &mut Inherited) -> Result<Bound, ListenError> {
    Bound::bind(&described(config), inherited)
}

fn at(family: Family, ports: &str) -> String {
    match family {
        Family::V4 => format!("127.0.0.1:{ports}"),
        Family::V6 => format!("[::1]:{ports}"),
    }
}

/// Gives the host one more address.
fn other_address(host: &Host, family: Family) -> Result<IpAddr> {
    let (address, len) = match family {
        Family::V4 => ("192.0.2.7", 32),
        Family::V6 => ("2001:db8::7", 128),
    };
    host.ip(&format!("address add {address}/{len} dev lo"))?;
    Ok(address.parse()?)
}

async fn is_answered_by(host: &Host, listener: &TcpListener, to: SocketAddr) -> Result<()> {
    let mut client = host.connect(to).await?;
    let accepted = timeout(Duration::from_secs(5), listener.accept()).await;
    let (mut server, _) = accepted.with_context(|| format!("{to}: another has it"))??;
    works(&mut client, &mut server).await
}

async fn is_refused(host: &Host, to: SocketAddr) -> Result<()> {
    let Err(error) = host.connect(to).await else {
        bail!("{to} answers")
    };
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error:#}");
    Ok(())
}
