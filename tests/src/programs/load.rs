//! Clients of a [service](super::service): new connections all the time, and sessions that stay open.
//!
//! They behave as clients of a name with several addresses do: where connecting to one edge fails, the next
//! one is tried. What fails later is a failure.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::service::{Answer, Call};
use crate::net::Host;
use crate::process::{PATIENCE, eventually};
use crate::suite::scaled;

/// Between two connections of a client, or two questions of a session.
const PAUSE: Duration = Duration::from_millis(15);

/// How long a question of a session is, in bytes.
const QUESTION: usize = 500;

/// The longest question of a new connection, in bytes.
const LONGEST_QUESTION: u64 = 4000;

/// Who calls, and where.
#[derive(Clone, Copy, Debug)]
pub struct Road {
    /// The client's address.
    pub client: IpAddr,
    /// The edge's.
    pub edge: SocketAddr,
}

impl Road {
    async fn connect(self) -> io::Result<TcpStream> {
        let socket = match self.client {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.bind(SocketAddr::new(self.client, 0))?;
        match timeout(scaled(PATIENCE), socket.connect(self.edge)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A new connection that is over.
#[derive(Clone, Debug)]
pub struct Made {
    /// The edge that took it, or was tried last.
    pub edge: SocketAddr,
    /// Its client's address and port; `None`: no edge took it.
    pub client: Option<SocketAddr>,
    /// When its client first tried to connect.
    pub begun: Instant,
    /// From then to its end.
    pub took: Duration,
    /// How many edges could not be connected to before.
    pub refused: usize,
    /// The answer, or what failed.
    pub outcome: Result<Answer, String>,
}

/// Clients that make one connection after the other, with one question each.
pub struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<Mutex<Vec<Made>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts one client an address, on `host`; each goes to the next edge each time.
    pub fn start(host: &Host, clients: &[IpAddr], edges: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let made: Arc<Mutex<Vec<Made>>> = Arc::default();
        let clients = (0..).zip(clients).map(|(n, client)| {
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            let (client, edges) = (*client, edges.to_vec());
            host.spawn(async move {
                let mut round: usize = n;
                while !stop.load(Ordering::Relaxed) {
                    let seed = (n << 32 | round) as u64;
                    let one = call(client, &edges, round, seed).await;
                    lock(&made).push(one);
                    round += 1;
                    sleep(PAUSE).await;
                }
            })
        });
        let clients = clients.collect();
        Self {
            stop,
            made,
            clients,
        }
    }

    /// Waits until all clients together have made `count` more.
    pub async fn more(&self, count: usize) -> Result<()> {
        /// What always takes far less than the time that is waited for it.
        const SOME: usize = 100;
        let mut made = lock(&self.made).len();
        let enough = made + count;
        while made < enough {
            made = enough.min(made + SOME);
            let so_many = || Ok(lock(&self.made).len() >= made);
            eventually(&format!("{SOME} more connections"), so_many).await?;
        }
        Ok(())
    }

    /// Those that are over and were begun after `instant`.
    pub fn begun_after(&self, instant: Instant) -> Vec<Made> {
        let made = lock(&self.made);
        made.iter().filter(|m| m.begun > instant).cloned().collect()
    }

    /// Lets every client finish its last connection, and returns all.
    pub async fn stop(self) -> Result<Vec<Made>> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await?;
        }
        Ok(std::mem::take(&mut *lock(&self.made)))
    }
}

/// One connection, by the first of `edges` that takes it, beginning with the `round`th.
async fn call(client: IpAddr, edges: &[SocketAddr], round: usize, seed: u64) -> Made {
    let begun = Instant::now();
    let mut refused = 0;
    let mut local = None;
    let (edge, outcome) = loop {
        let edge = edges[(round + refused) % edges.len()];
        match (Road { client, edge }).connect().await {
            Ok(stream) => {
                local = stream.local_addr().ok();
                break (edge, converse(stream, seed).await);
            }
            Err(e) if refused + 1 == edges.len() => break (edge, Err(e.into())),
            Err(_) => refused += 1,
        }
    };
    Made {
        edge,
        client: local,
        begun,
        took: begun.elapsed(),
        refused,
        outcome: outcome.map_err(|e| format!("{e:#}")),
    }
}

async fn converse(stream: TcpStream, seed: u64) -> Result<Answer> {
    let talk = async {
        let mut call = Call::over(stream, seed)?;
        let length = usize::try_from(seed.wrapping_mul(0x9e37_79b9) % LONGEST_QUESTION)?;
        let answer = call.ask(length).await?;
        call.end().await?;
        Ok(answer)
    };
    timeout(scaled(PATIENCE), talk).await.context("no answer")?
}

/// A connection that stays open and asks all the time.
#[derive(Debug)]
pub struct Session {
    /// Its client's address and port.
    pub client: SocketAddr,
    /// The edge that took it.
    pub edge: SocketAddr,
    /// The first answer; all others must be the same.
    pub answer: Answer,
    answers: AtomicU64,
    longest_us: AtomicU64,
    broken: OnceLock<Broken>,
}

/// How a session ended that should not have, or was meant to.
#[derive(Clone, Debug)]
pub struct Broken {
    /// By a RST.
    pub reset: bool,
    /// In words.
    pub why: String,
}

impl Session {
    /// How it ended; `None`: it goes on.
    pub fn broken(&self) -> Option<&Broken> {
        self.broken.get()
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    async fn go_on(&self, call: &mut Call, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let answer = timeout(scaled(PATIENCE), call.ask(QUESTION)).await;
            let answer = answer.context("no answer")??;
            ensure!(answer == self.answer, "now {answer:?}");
            let took = u64::try_from(asked.elapsed().as_micros())?;
            self.longest_us.fetch_max(took, Ordering::Relaxed);
            self.answers.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Sessions, open until they are ended.
pub struct Sessions {
    stop: Arc<AtomicBool>,
    sessions: Vec<Arc<Session>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Sessions {
    /// Opens `count` on `host` by each of `roads`.
    pub async fn open(host: &Host, roads: &[Road], count: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut sessions, mut tasks) = (Vec::new(), Vec::new());
        for (seed, road) in (0..).zip(roads.iter().flat_map(|road| vec![*road; count])) {
            let (session, mut call) = host.spawn(open(road, seed)).await??;
            let session = Arc::new(session);
            sessions.push(Arc::clone(&session));
            let stop = Arc::clone(&stop);
            tasks.push(host.spawn(async move {
                let talked = session.go_on(&mut call, &stop).await;
                let ended = match talked {
                    Ok(()) => call.end().await,
                    Err(e) => Err(e),
                };
                if let Err(e) = ended {
                    let kind = e.downcast_ref().map(io::Error::kind);
                    let _ = session.broken.set(Broken {
                        reset: kind == Some(io::ErrorKind::ConnectionReset),
                        why: format!("{e:#}"),
                    });
                }
            }));
        }
        Ok(Self {
            stop,
            sessions,
            tasks,
        })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().map(|session| &**session)
    }

    /// Waits until each of `which` has more answers; none may break.
    pub async fn ensure_alive(&self, which: impl Fn(&Session) -> bool) -> Result<()> {
        /// So that one of them was asked for after the call.
        const MORE: u64 = 3;
        let before: Vec<u64> = self.all().map(Session::answers).collect();
        eventually("all sessions get answers", || {
            let mut waiting = 0;
            for (session, before) in self.all().zip(&before).filter(|(s, _)| which(s)) {
                ensure!(session.broken().is_none(), "broke: {session:?}");
                waiting += usize::from(session.answers() < before + MORE);
            }
            Ok(waiting == 0)
        })
        .await
    }

    /// Waits until each of `which` is broken, and says how many those are.
    pub async fn ensure_broken(&self, which: impl Fn(&Session) -> bool) -> Result<usize> {
        eventually("the sessions break", || {
            Ok(self
                .all()
                .filter(|s| which(s))
                .all(|s| s.broken().is_some()))
        })
        .await?;
        Ok(self.all().filter(|s| which(s)).count())
    }

    /// The longest that an answer took.
    pub fn longest(&self) -> Duration {
        let longest = self.all().map(|s| s.longest_us.load(Ordering::Relaxed));
        Duration::from_micros(longest.max().unwrap_or(0))
    }

    /// Ends all that go on, in order, and returns what became of each.
    pub async fn end(self) -> Result<Vec<Arc<Session>>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(self.sessions)
    }
}

async fn open(road: Road, seed: u64) -> Result<(Session, Call)> {
    let stream = road.connect().await.context("opening a session")?;
    let client = stream.local_addr()?;
    let mut call = Call::over(stream, seed)?;
    let answer = timeout(scaled(PATIENCE), call.ask(QUESTION)).await;
    let session = Session {
        client,
        edge: road.edge,
        answer: answer.context("opening a session: no answer")??,
        answers: AtomicU64::new(1),
        longest_us: AtomicU64::new(0),
        broken: OnceLock::new(),
    };
    Ok((session, call))
}

/// Nobody panics with it, and a list of what happened is good at any time.
fn lock(made: &Mutex<Vec<Made>>) -> MutexGuard<'_, Vec<Made>> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}
