//! The whole road: two edges, two origins, three backends ([`limpid_tests::net::Roads`]), with new
//! connections all the time and sessions that stay open, while something happens to one of them.
//!
//! Every answer is checked: the bytes, and that the backend saw the client's own address and port through
//! both proxies. What fails is counted and printed.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpid_tests::net::{BACKENDS, EDGES, Family, Host, ORIGINS, Roads};
use limpid_tests::process::eventually;
use limpid_tests::programs::load::{Load, Made, Road, Session, Sessions};
use limpid_tests::programs::service::{Answer, Service};
use limpid_tests::programs::{Limpid, Options, show};
use limpid_tests::suite::{Lab, Suite, numerous, scaled};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::sleep;

/// The port of both proxies' listener, `game`.
const GAME: u16 = 8443;
/// The port of the edges' other listener, `side`, which goes to the same origins.
const SIDE: u16 = 8444;
/// The port of the backends.
const BACKEND: u16 = 9000;

/// Addresses that new connections come from, one at a time from each.
const CALLERS: u8 = 12;
/// Sessions by each edge.
const SESSIONS: usize = 9;
/// New connections between two events, at least: each backend has many of them.
const MANY: usize = 200;

/// Longer than it takes to notice that a server has gone or come, with the intervals of [`POOL`].
const NOTICED: Duration = Duration::from_secs(2);

/// Everything of an accepted flow that the sockets still had is handed over by then.
const HANDED_OVER: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for family in Family::ALL {
        suite.test(format!("backend_killed_{family}"), &[], move |lab| {
            backend_killed(lab, family)
        });
        suite.test(format!("backend_unplugged_{family}"), &[], move |lab| {
            backend_unplugged(lab, family)
        });
        for killed in [Proxy::Edge(0), Proxy::Origin(0)] {
            suite.test(format!("{killed}_killed_{family}"), &[], move |lab| {
                proxy_killed(lab, family, killed)
            });
        }
        suite.test(format!("reloaded_{family}"), &[], move |lab| {
            reloaded(lab, family)
        });
        suite.test(format!("bad_file_{family}"), &[], move |lab| {
            bad_file(lab, family)
        });
        suite.test(format!("drained_{family}"), &[], move |lab| {
            drained(lab, family)
        });
        suite.test(format!("listener_removed_{family}"), &[], move |lab| {
            listener_removed(lab, family)
        });
        suite.test(format!("client_denied_{family}"), &[], move |lab| {
            client_denied(lab, family)
        });
        suite.test(format!("controlled_{family}"), &[], move |lab| {
            controlled(lab, family)
        });
    }
    suite.run()
}

/// One of the four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    Origin(u8),
    Edge(u8),
}

impl Proxy {
    const EDGES: [Self; 2] = [Self::Edge(0), Self::Edge(1)];
    const ORIGINS: [Self; 2] = [Self::Origin(0), Self::Origin(1)];
    /// In the order that they are started in.
    const ALL: [Self; 4] = [
        Self::Origin(0),
        Self::Origin(1),
        Self::Edge(0),
        Self::Edge(1),
    ];

    fn index(self) -> usize {
        match self {
            Self::Origin(n) => usize::from(n),
            Self::Edge(n) => 2 + usize::from(n),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::Origin(n) => ORIGINS[usize::from(n)],
            Self::Edge(n) => EDGES[usize::from(n)],
        })
    }
}

/// What the files of a scenario differ in.
#[derive(Clone, Copy)]
struct Files {
    /// The weight of each origin in the edges' pool.
    weights: [u16; 2],
    /// Have the edges the listener `side`?
    side: bool,
    /// How many of the backends are in the origins' pool.
    backends: u8,
    /// A client that the origins do not let in.
    deny: Option<IpAddr>,
}

/// As all begin.
const FILES: Files = Files {
    weights: [1, 1],
    side: true,
    backends: 3,
    deny: None,
};

/// No flow of these tests is waited for at a daemon's end.
const DAEMON: &str = "\
[daemon]
log-format = \"json\"
drain-timeout = \"0s\"
";

/// A backend or origin that is gone is noticed at once.
const POOL: &str = "\
connect-timeout = \"500ms\"
check-interval = \"200ms\"
check-timeout = \"400ms\"
rise = 2
fall = 2
eject-time = \"500ms\"
";

/// All of it, running.
struct Site {
    // The programs first: they are to end while their hosts are still there.
    limpids: Vec<Limpid>,
    services: Vec<Option<Service>>,
    /// Daemons that were killed. Those after them use the file systems that these have mounted.
    killed: Vec<Limpid>,
    roads: Roads,
    lab: Lab,
    family: Family,
}

impl Site {
    async fn start(lab: Lab, family: Family) -> Result<Self> {
        let mut site = Self {
            limpids: Vec::new(),
            services: Vec::new(),
            killed: Vec::new(),
            roads: Roads::build()?,
            lab,
            family,
        };
        for n in 0..3 {
            let service = site.serve(n).await?;
            site.services.push(Some(service));
        }
        for proxy in Proxy::ALL {
            site.write(proxy, FILES)?;
            site.limpids.push(site.run(proxy)?);
        }
        Ok(site)
    }

    /// The service of a backend, at its address of each origin.
    async fn serve(&self, n: u8) -> Result<Service> {
        let addresses = [0, 1].map(|origin| self.backend_addr(origin, n));
        Service::start(&self.roads.backends[usize::from(n)], &addresses).await
    }

    /// Runs `limpid run` with the file that is there.
    fn run(&self, proxy: Proxy) -> Result<Limpid> {
        let options = Options::from_file(self.address(proxy, GAME), &self.file(proxy));
        Limpid::start(self.host(proxy), &self.lab, &options)
    }

    fn limpid(&self, proxy: Proxy) -> &Limpid {
        &self.limpids[proxy.index()]
    }

    fn host(&self, proxy: Proxy) -> &Host {
        match proxy {
            Proxy::Origin(n) => &self.roads.origins[usize::from(n)],
            Proxy::Edge(n) => &self.roads.edges[usize::from(n)],
        }
    }

    /// Where a proxy listens.
    fn address(&self, proxy: Proxy, port: u16) -> SocketAddr {
        match proxy {
            Proxy::Origin(n) => self.roads.origin_addr(n, self.family, port),
            Proxy::Edge(n) => self.roads.edge_addr(n, self.family, port),
        }
    }

    fn backend_addr(&self, origin: u8, n: u8) -> SocketAddr {
        self.roads.backend_addr(origin, n, self.family, BACKEND)
    }

    fn file(&self, proxy: Proxy) -> PathBuf {
        self.lab.path().join(format!("{proxy}.toml"))
    }

    /// Writes a proxy's file.
    fn write(&self, proxy: Proxy, files: Files) -> Result<()> {
        let text = match proxy {
            Proxy::Edge(_) => self.edge(proxy, files),
            Proxy::Origin(n) => self.origin(n, files),
        };
        self.write_text(proxy, &text)
    }

    fn write_text(&self, proxy: Proxy, text: &str) -> Result<()> {
        let file = self.file(proxy);
        std::fs::write(&file, text).with_context(|| file.display().to_string())
    }

    /// An edge takes clients, and sends headers to the origins.
    fn edge(&self, edge: Proxy, files: Files) -> String {
        let mut text = DAEMON.to_owned();
        for (name, port) in [("game", GAME), ("side", SIDE)] {
            if name == "game" || files.side {
                let listen = self.address(edge, port);
                text +=
                    &format!("[listeners.{name}]\nlisten = [\"{listen}\"]\npool = \"origins\"\n");
            }
        }
        text += &format!("[pools.origins]\nsend-proxy = \"v2\"\n{POOL}");
        for (origin, weight) in Proxy::ORIGINS.into_iter().zip(files.weights) {
            let target = self.address(origin, GAME);
            text += &format!(
                "[[pools.origins.upstream]]\ntarget = \"{target}\"\nname = \"{origin}\"\nweight = {weight}\n"
            );
        }
        text
    }

    /// An origin takes headers from the edges, and shows the clients to the backends.
    fn origin(&self, n: u8, files: Files) -> String {
        let listen = self.address(Proxy::Origin(n), GAME);
        let trust = [0, 1].map(|edge| self.roads.edge_transit_ip(edge, self.family).to_string());
        let deny: Vec<String> = files.deny.iter().map(ToString::to_string).collect();
        let mut text = format!(
            "{DAEMON}[listeners.game]\nlisten = [\"{listen}\"]\npool = \"backends\"\naccept-proxy = true\n\
             trust = {trust:?}\nsource = \"client\"\ndeny = {deny:?}\n[pools.backends]\n{POOL}"
        );
        for (backend, name) in (0..files.backends).zip(BACKENDS) {
            let target = self.backend_addr(n, backend);
            text +=
                &format!("[[pools.backends.upstream]]\ntarget = \"{target}\"\nname = \"{name}\"\n");
        }
        text
    }

    /// New connections by both edges, until it is stopped.
    fn load(&self) -> Load {
        let clients: Vec<IpAddr> = (0..CALLERS)
            .map(|n| self.roads.client_ip(n, self.family))
            .collect();
        let edges = Proxy::EDGES.map(|edge| self.address(edge, GAME));
        Load::start(&self.roads.clients, &clients, &edges)
    }

    /// The road of the sessions by an edge's port: no two share a client's address.
    fn road(&self, edge: u8, port: u16) -> Road {
        let n = CALLERS + edge + if port == SIDE { 2 } else { 0 };
        Road {
            client: self.roads.client_ip(n, self.family),
            edge: self.address(Proxy::Edge(edge), port),
        }
    }

    /// Sessions by both edges, all of them switched: no proxy on the way has a socket of theirs.
    async fn sessions(&self, port: u16) -> Result<Sessions> {
        let roads = [0, 1].map(|edge| self.road(edge, port));
        let sessions = Sessions::open(&self.roads.clients, &roads, SESSIONS).await?;
        for proxy in Proxy::ALL {
            eventually(&format!("{proxy} has switched its sessions"), || {
                let flows = self.limpid(proxy).flows(self.host(proxy))?;
                let mut its_own = flows
                    .iter()
                    .filter(|flow| sessions.all().any(|session| is_of(flow, session)))
                    .peekable();
                Ok(its_own.peek().is_some() && its_own.all(|flow| flow["engine"] == "packet"))
            })
            .await?;
        }
        sleep(scaled(HANDED_OVER)).await;
        sessions.ensure_alive(|_| true).await?;
        Ok(sessions)
    }

    /// Kills a proxy, without a chance to tidy up. It is gone when this returns.
    fn kill(&mut self, proxy: Proxy) -> Result<()> {
        self.limpids[proxy.index()].kill()
    }

    /// Starts a proxy that was killed, with the same command line.
    fn start_again(&mut self, proxy: Proxy) -> Result<()> {
        let again = self.run(proxy)?;
        let killed = std::mem::replace(&mut self.limpids[proxy.index()], again);
        self.killed.push(killed);
        Ok(())
    }

    /// Tells a proxy something by a command, which must succeed.
    fn tell(&self, proxy: Proxy, command: &[&str]) -> Result<String> {
        self.limpid(proxy).tell(self.host(proxy), command)
    }

    /// Tells each of `proxies` to read its file again, which these then have.
    fn reload(&self, proxies: [Proxy; 2], files: Files) -> Result<()> {
        for proxy in proxies {
            self.write(proxy, files)?;
            self.tell(proxy, &["reload"])?;
        }
        Ok(())
    }

    /// Tells a proxy the same by SIGHUP, and waits until it says in its log what came of it.
    async fn hang_up(&mut self, proxy: Proxy, told: &str) -> Result<()> {
        let limpid = &mut self.limpids[proxy.index()];
        let before = limpid.log()?.matches(told).count();
        limpid.process().signal(Signal::SIGHUP)?;
        eventually(&format!("{proxy} says {told:?}"), || {
            Ok(limpid.log()?.matches(told).count() > before)
        })
        .await
    }

    /// How many of these proxies' flows have ended so.
    fn ended(&self, proxies: [Proxy; 2], end: &str) -> Result<usize> {
        let mut count = 0;
        for proxy in proxies {
            let lines = self.limpid(proxy).access_lines()?;
            let ends = lines.iter().filter_map(|line| line.get("end").ok());
            count += ends.filter(|found| found == end).count();
        }
        Ok(count)
    }

    /// Was a connection made by this origin?
    fn is_by(&self, origin: u8, answer: &Answer) -> bool {
        (0..3).any(|n| self.backend_addr(origin, n) == answer.called)
    }
}

/// Is this one of `limpid flows` this session's?
fn is_of(flow: &Value, session: &Session) -> bool {
    flow["client"] == session.client.to_string()
}

/// Sessions with this backend.
fn with(backend: usize) -> impl Fn(&Session) -> bool + Copy {
    move |session| session.answer.backend == BACKENDS[backend]
}

/// The answers to connections that were begun from now on: [`many`] at least.
async fn answers(load: &Load) -> Result<Vec<Answer>> {
    let now = Instant::now();
    // Those that were begun before count for nothing.
    load.more(many() + usize::from(CALLERS)).await?;
    let made = load.begun_after(now).into_iter();
    Ok(made.filter_map(|made| made.outcome.ok()).collect())
}

fn many() -> usize {
    numerous(MANY, 20 * MANY)
}

/// How many of them each backend gave.
fn by_backend(answers: &[Answer]) -> [usize; 3] {
    BACKENDS.map(|name| {
        let its_own = answers.iter().filter(|answer| answer.backend == name);
        its_own.count()
    })
}

/// Ends everything, and prints the counts. No session may have broken but those that were `meant` to.
/// Returns the new connections that have failed.
async fn finish(
    scenario: &str,
    site: &Site,
    load: Load,
    sessions: Vec<Sessions>,
    meant: impl Fn(&Session) -> bool,
) -> Result<Vec<Made>> {
    let made = load.stop().await?;
    let mut ended = Vec::new();
    let mut longest = Duration::ZERO;
    for sessions in sessions {
        longest = longest.max(sessions.longest());
        ended.extend(sessions.end().await?);
    }
    let slowest = made.iter().map(|made| made.took).max().unwrap_or_default();
    let turned_away = made.iter().filter(|made| made.refused > 0).count();
    let broken: Vec<_> = ended.iter().filter(|s| s.broken().is_some()).collect();
    let failed: Vec<Made> = made
        .iter()
        .filter(|made| made.outcome.is_err())
        .cloned()
        .collect();
    println!(
        "{scenario}, {}: {} new connections, {} failed ({turned_away} had to take the other edge, proxies tried \
         another server {} times; the slowest took {slowest:.0?}); {} sessions, {} broken (the slowest answer \
         took {longest:.0?})",
        site.family,
        made.len(),
        failed.len(),
        connect_failures(site)?,
        ended.len(),
        broken.len(),
    );
    for (why, count) in reasons(&failed) {
        println!("  {count} failed: {why}");
    }
    let other = broken.iter().find(|session| !meant(session));
    ensure!(other.is_none(), "broke: {other:?}");
    for proxy in Proxy::ALL {
        nothing_is_left(site, proxy).await?;
    }
    Ok(failed)
}

/// How often a proxy could not connect a client to a server, since it was started.
fn connect_failures(site: &Site) -> Result<u64> {
    let mut count = 0;
    for proxy in Proxy::ALL {
        let servers = site.limpid(proxy).json(site.host(proxy), "servers")?;
        let failures = servers.as_array().into_iter().flatten();
        count += failures
            .filter_map(|server| server["connect_failures"].as_u64())
            .sum::<u64>();
    }
    Ok(count)
}

/// Waits until a proxy has no flow, and counts none for any server. Its own servers' checks have no client.
async fn nothing_is_left(site: &Site, proxy: Proxy) -> Result<()> {
    let (limpid, host) = (site.limpid(proxy), site.host(proxy));
    let mut left = Vec::new();
    let gone = eventually("no flow is left", || {
        let flows = limpid.flows(host)?.into_iter();
        let servers = limpid.json(host, "servers")?;
        let servers = servers.as_array().cloned().unwrap_or_default().into_iter();
        left = flows.filter(|flow| !flow["client"].is_null()).collect();
        left.extend(servers.filter(|server| server["connections"] != 0));
        Ok(left.is_empty())
    });
    gone.await.with_context(|| format!("{proxy} has {left:?}"))
}

/// Why connections have failed, and how many for each reason.
fn reasons(failed: &[Made]) -> BTreeMap<&str, usize> {
    let mut reasons = BTreeMap::new();
    for why in failed.iter().filter_map(|made| made.outcome.as_ref().err()) {
        *reasons.entry(why.as_str()).or_default() += 1;
    }
    reasons
}

/// The same where nothing may fail.
async fn finish_well(
    scenario: &str,
    site: &Site,
    load: Load,
    sessions: Vec<Sessions>,
    meant: impl Fn(&Session) -> bool,
) -> Result<()> {
    let failed = finish(scenario, site, load, sessions, meant).await?;
    let (first, n) = (failed.first(), failed.len());
    ensure!(first.is_none(), "{n} failed; the first: {first:?}");
    Ok(())
}

/// Only those may have failed that were open when something was killed, which was gone at `gone`.
fn ensure_open_at(gone: Instant, failed: &[Made]) -> Result<()> {
    let later = failed.iter().find(|made| made.begun > gone);
    ensure!(later.is_none(), "begun afterwards, and failed: {later:?}");
    // A caller has one connection at a time.
    let n = failed.len();
    ensure!(n <= usize::from(CALLERS), "{n} failed of {CALLERS}");
    Ok(())
}

/// The program of a backend is killed: its sessions break, and nothing fails that comes later.
async fn backend_killed(lab: Lab, family: Family) -> Result<()> {
    const KILLED: usize = 1;
    let mut site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;
    let service = site.services[KILLED].take().context("it runs")?;
    service.kill().await;
    let gone = Instant::now();
    let broken = sessions.ensure_broken(with(KILLED)).await?;
    ensure!(broken > 0, "no session was with it");
    let others = by_backend(&answers(&load).await?);
    ensure!(others[KILLED] == 0, "the dead answer: {others:?}");
    sessions.ensure_alive(|s| !with(KILLED)(s)).await?;
    site.services[KILLED] = Some(site.serve(1).await?);
    sleep(scaled(NOTICED)).await;
    let all = by_backend(&answers(&load).await?);
    ensure!(all[KILLED] > 0, "not used again: {all:?}");
    let meant = with(KILLED);
    let failed = finish("a backend killed", &site, load, vec![sessions], meant).await?;
    ensure_open_at(gone, &failed)
}

/// The cables of a backend are pulled, and put in again before anybody's patience ends: nothing fails.
async fn backend_unplugged(lab: Lab, family: Family) -> Result<()> {
    const UNPLUGGED: usize = 1;
    let site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;
    site.roads.plug_backend(1, false)?;
    let others = by_backend(&answers(&load).await?);
    ensure!(others[UNPLUGGED] == 0, "through no cable: {others:?}");
    sessions.ensure_alive(|s| !with(UNPLUGGED)(s)).await?;
    site.roads.plug_backend(1, true)?;
    sessions.ensure_alive(|_| true).await?;
    sleep(scaled(NOTICED)).await;
    let all = by_backend(&answers(&load).await?);
    ensure!(all[UNPLUGGED] > 0, "not used again: {all:?}");
    finish_well("a backend unplugged", &site, load, vec![sessions], |_| {
        false
    })
    .await
}

/// An edge or an origin is killed, and started again. What it had switched goes on and is adopted; clients
/// take the other edge, edges take the other origin. Only connections fail that it had not switched.
async fn proxy_killed(lab: Lab, family: Family, killed: Proxy) -> Result<()> {
    let mut site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let its_own: Vec<&Session> = sessions
        .all()
        .filter(|session| match killed {
            Proxy::Edge(_) => session.edge == site.address(killed, GAME),
            Proxy::Origin(n) => site.is_by(n, &session.answer),
        })
        .collect();
    let clients: Vec<SocketAddr> = its_own.iter().map(|session| session.client).collect();
    ensure!(!clients.is_empty(), "no session is by {killed}");
    let load = site.load();
    load.more(many()).await?;
    site.kill(killed)?;
    let gone = Instant::now();
    load.more(many()).await?;
    sessions.ensure_alive(|_| true).await?;
    site.start_again(killed)?;
    eventually("its sessions are adopted", || {
        let flows = site.limpid(killed).flows(site.host(killed))?;
        let adopted = |session: &&Session| flows.iter().any(|flow| is_of(flow, session));
        Ok(its_own.iter().all(adopted))
    })
    .await?;
    sleep(scaled(NOTICED)).await;
    let before = site.limpid(killed).access_lines()?.len();
    load.more(many()).await?;
    let records = site.limpid(killed).access_lines()?.len();
    ensure!(records > before, "{killed} is not used again");
    let scenario = format!("{killed} killed, with {} sessions", clients.len());
    let failed = finish(&scenario, &site, load, vec![sessions], |_| false).await?;
    let lines = site.limpid(killed).access_lines()?;
    for client in clients.iter().map(ToString::to_string) {
        let recorded = lines.iter().any(|line| {
            let says = |field, value: &str| line.get(field).is_ok_and(|found| found == value);
            says("client", &client) && says("end", "fin")
        });
        ensure!(recorded, "no record of the adopted session of {client}");
    }
    ensure_open_at(gone, &failed)?;
    // What the other one has taken does not fail.
    let others = match killed {
        Proxy::Edge(_) => site.limpid(Proxy::Edge(1)).access_lines()?,
        Proxy::Origin(_) => site.limpid(Proxy::Origin(1)).access_lines()?,
    };
    let taken: HashSet<String> = others.iter().filter_map(|l| l.get("client").ok()).collect();
    let other = failed.iter().find(|made| {
        let client = made.client.map(|client| client.to_string());
        client.is_none_or(|client| taken.contains(&client))
    });
    ensure!(other.is_none(), "not by {killed}: {other:?}");
    Ok(())
}

/// Files are changed, and read again by signal and by command: what comes later goes as they say, and
/// nothing that is open notices.
async fn reloaded(lab: Lab, family: Family) -> Result<()> {
    /// Reloads in quick succession.
    const OFTEN: usize = 10;
    let mut site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;

    let one_origin = Files {
        weights: [0, 1],
        ..FILES
    };
    for edge in Proxy::EDGES {
        site.write(edge, one_origin)?;
        site.hang_up(edge, "\"reloaded").await?;
    }
    let answered = answers(&load).await?;
    let other = answered.iter().find(|answer| !site.is_by(1, answer));
    ensure!(other.is_none(), "by an origin of weight 0: {other:?}");

    let two_backends = Files {
        backends: 2,
        ..FILES
    };
    site.reload(Proxy::ORIGINS, two_backends)?;
    let answered = by_backend(&answers(&load).await?);
    ensure!(
        answered[2] == 0 && answered[0] > 0 && answered[1] > 0,
        "by a backend that is not in the file: {answered:?}"
    );
    sessions.ensure_alive(|_| true).await?;

    for _ in 0..OFTEN {
        for files in [two_backends, FILES] {
            site.reload(Proxy::ORIGINS, files)?;
            site.reload(Proxy::EDGES, files)?;
        }
    }
    let answered = answers(&load).await?;
    let all = by_backend(&answered);
    ensure!(all.iter().all(|n| *n > 0), "not all are used: {all:?}");
    ensure!(
        [0, 1]
            .iter()
            .all(|n| answered.iter().any(|a| site.is_by(*n, a))),
        "not both origins are used"
    );
    sessions.ensure_alive(|_| true).await?;
    finish_well("reloaded", &site, load, vec![sessions], |_| false).await
}

/// A file that cannot be used is reported to whoever asked and to the log, and nothing changes.
async fn bad_file(lab: Lab, family: Family) -> Result<()> {
    let mut site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;
    for proxy in [Proxy::Edge(0), Proxy::Origin(0)] {
        site.write(proxy, FILES)?;
        let good = std::fs::read_to_string(site.file(proxy))?;
        let before = listeners(&site, proxy)?;
        for (bad, named) in [
            (format!("{good}no-such-key = 1\n"), "no-such-key"),
            (good.replace("500ms", "soon"), "soon"),
            (good.replace("[pools.", "[pools.other-"), "other-"),
            ("[listeners".to_owned(), "toml:1:11"),
        ] {
            site.write_text(proxy, &bad)?;
            let answer = site.limpid(proxy).ask(site.host(proxy), &["reload"])?;
            let said = show(&answer);
            ensure!(
                !answer.status.success() && said.contains(named),
                "{bad}\nreload says {said}"
            );
            site.hang_up(proxy, "not reloaded").await?;
        }
        let after = listeners(&site, proxy)?;
        ensure!(before == after, "before {before:?}, now {after:?}");
        site.write(proxy, FILES)?;
    }
    let all = by_backend(&answers(&load).await?);
    ensure!(all.iter().all(|n| *n > 0), "not all are used: {all:?}");
    sessions.ensure_alive(|_| true).await?;
    finish_well("bad files", &site, load, vec![sessions], |_| false).await
}

/// The listeners of `limpid status`, without what changes all the time.
fn listeners(site: &Site, proxy: Proxy) -> Result<Vec<Value>> {
    let mut status = site.limpid(proxy).json(site.host(proxy), "status")?;
    let listeners = status["listeners"].as_array_mut().context("listeners")?;
    for listener in listeners.iter_mut() {
        listener["connections"].take();
    }
    Ok(std::mem::take(listeners))
}

/// A server is drained by command, at both proxies in front of it: no new connection comes to it, the open
/// ones go on; then it is `ready` again.
async fn drained(lab: Lab, family: Family) -> Result<()> {
    const DRAINED: usize = 1;
    let site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;

    let backend = format!("backends/{}", BACKENDS[DRAINED]);
    for origin in Proxy::ORIGINS {
        site.tell(origin, &["server", "set", &backend, "drain"])?;
        ensure_state(&site, origin, BACKENDS[DRAINED], "drain")?;
    }
    let answered = by_backend(&answers(&load).await?);
    ensure!(
        answered[DRAINED] == 0 && answered[0] > 0 && answered[2] > 0,
        "a drained backend: {answered:?}"
    );
    sessions.ensure_alive(|_| true).await?;
    for origin in Proxy::ORIGINS {
        site.tell(origin, &["server", "set", &backend, "ready"])?;
    }
    let answered = by_backend(&answers(&load).await?);
    ensure!(answered[DRAINED] > 0, "ready again: {answered:?}");

    let origin = format!("origins/{}", ORIGINS[0]);
    for edge in Proxy::EDGES {
        site.tell(edge, &["server", "set", &origin, "drain"])?;
    }
    let answered = answers(&load).await?;
    let other = answered.iter().find(|answer| !site.is_by(1, answer));
    ensure!(other.is_none(), "by a drained origin: {other:?}");
    sessions.ensure_alive(|_| true).await?;
    for edge in Proxy::EDGES {
        site.tell(edge, &["server", "set", &origin, "ready"])?;
    }
    let answered = answers(&load).await?;
    ensure!(
        answered.iter().any(|answer| site.is_by(0, answer)),
        "ready again, and not used"
    );
    finish_well("drained", &site, load, vec![sessions], |_| false).await
}

/// What `limpid servers --json` says of a server.
fn ensure_state(site: &Site, proxy: Proxy, server: &str, state: &str) -> Result<()> {
    let servers = site.limpid(proxy).json(site.host(proxy), "servers")?;
    let listed = servers.as_array().context("an array")?;
    let found: Vec<&Value> = listed.iter().filter(|s| s["server"] == server).collect();
    ensure!(
        found.len() == 1 && found[0]["state"] == state,
        "{server} is not {state}: {servers}"
    );
    Ok(())
}

/// A listener is no longer in an edge's file: its flows are reset, all others go on.
async fn listener_removed(lab: Lab, family: Family) -> Result<()> {
    let site = Site::start(lab, family).await?;
    let (game, side) = (site.sessions(GAME).await?, site.sessions(SIDE).await?);
    let load = site.load();
    load.more(many()).await?;
    let edge = Proxy::Edge(0);
    let address = site.address(edge, SIDE);
    let without = Files {
        side: false,
        ..FILES
    };
    site.write(edge, without)?;
    let said = site.tell(edge, &["reload"])?;
    let broken = side.ensure_broken(|s| s.edge == address).await?;
    ensure!(broken == SESSIONS, "{broken} of {SESSIONS}: {said}");
    ensure_reset(&side)?;
    eventually("their records say why", || {
        Ok(site.ended(Proxy::EDGES, "listener-gone")? == SESSIONS)
    })
    .await?;
    side.ensure_alive(|s| s.edge != address).await?;
    game.ensure_alive(|_| true).await?;
    let refused = site.roads.clients.connect(address).await;
    ensure!(refused.is_err(), "something listens at {address}");
    site.write(edge, FILES)?;
    site.tell(edge, &["reload"])?;
    let again = Sessions::open(&site.roads.clients, &[site.road(0, SIDE)], 1).await?;
    again.ensure_alive(|_| true).await?;
    let meant = |session: &Session| session.edge == address && session.broken().is_some();
    let sessions = vec![game, side, again];
    finish_well("a listener removed", &site, load, sessions, meant).await
}

/// A client is no longer let in by the origins: its flows are reset, and it gets no other.
async fn client_denied(lab: Lab, family: Family) -> Result<()> {
    let site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;
    let denied = site.road(0, GAME);
    let files = Files {
        deny: Some(denied.client),
        ..FILES
    };
    site.reload(Proxy::ORIGINS, files)?;
    let its_own = |session: &Session| session.client.ip() == denied.client;
    let broken = sessions.ensure_broken(its_own).await?;
    ensure!(broken == SESSIONS, "{broken} of {SESSIONS}");
    ensure_reset(&sessions)?;
    eventually("their records say why", || {
        Ok(site.ended(Proxy::ORIGINS, "no-longer-allowed")? == SESSIONS)
    })
    .await?;
    let refused = Sessions::open(&site.roads.clients, &[denied], 1).await;
    ensure!(refused.is_err(), "let in: {}", denied.client);
    sessions.ensure_alive(|session| !its_own(session)).await?;
    site.reload(Proxy::ORIGINS, FILES)?;
    let again = Sessions::open(&site.roads.clients, &[denied], 1).await?;
    again.ensure_alive(|_| true).await?;
    let meant = |session: &Session| its_own(session);
    finish_well("a client denied", &site, load, vec![sessions, again], meant).await
}

/// Those that are broken were reset, and not ended.
fn ensure_reset(sessions: &Sessions) -> Result<()> {
    let other = sessions
        .all()
        .find(|session| session.broken().is_some_and(|broken| !broken.reset));
    ensure!(other.is_none(), "not by a reset: {other:?}");
    Ok(())
}

/// What an operator sees, and does to one flow.
async fn controlled(lab: Lab, family: Family) -> Result<()> {
    let site = Site::start(lab, family).await?;
    let sessions = site.sessions(GAME).await?;
    let load = site.load();
    load.more(many()).await?;
    for proxy in Proxy::ALL {
        let (limpid, host) = (site.limpid(proxy), site.host(proxy));
        let status = limpid.json(host, "status")?;
        ensure!(status["pid"] == limpid.pid(), "{status}");
        let open = status["listeners"][0]["connections"].as_u64();
        ensure!(
            status["listeners"][0]["name"] == "game" && open > Some(0),
            "{status}"
        );
        ensure!(status["flows"]["packet"].as_u64() > Some(0), "{status}");
        let servers: &[&str] = match proxy {
            Proxy::Edge(_) => &ORIGINS,
            Proxy::Origin(_) => &BACKENDS,
        };
        for server in servers {
            ensure_state(&site, proxy, server, "up")?;
            ensure!(
                site.tell(proxy, &["servers"])?.contains(server),
                "no {server} in the table"
            );
        }
        ensure!(site.tell(proxy, &["status"])?.contains("game"));
        ensure!(site.tell(proxy, &["flows"])?.contains("packet"));
    }

    let victim = sessions.all().next().context("a session")?;
    let edge = Proxy::Edge(0);
    let flows = site.limpid(edge).flows(site.host(edge))?;
    let flow = flows.iter().find(|flow| is_of(flow, victim));
    let id = flow.context("its flow")?["id"].to_string();
    site.tell(edge, &["flow", "kill", &id])?;
    let killed = |session: &Session| session.client == victim.client;
    sessions.ensure_broken(killed).await?;
    ensure_reset(&sessions)?;
    eventually("its record says so", || {
        Ok(site.ended(Proxy::EDGES, "killed")? == 1)
    })
    .await?;
    sessions.ensure_alive(|session| !killed(session)).await?;
    for wrong in [
        &["flow", "kill", &id][..],
        &["server", "set", "origins/nobody", "drain"],
        &["server", "set", "nowhere/origin1", "drain"],
    ] {
        let answer = site.limpid(edge).ask(site.host(edge), wrong)?;
        ensure!(!answer.status.success(), "{wrong:?}: {}", show(&answer));
    }
    let client = victim.client;
    finish_well("controlled", &site, load, vec![sessions], |session| {
        session.client == client
    })
    .await
}
