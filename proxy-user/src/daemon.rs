//! `limpid run`: everything set up, in an order that leaves nothing behind when a step fails; the
//! accept loop; the orderly end, or another daemon in this one's place.

use std::future::pending;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_core::address::Upstream;
use proxy_core::header::{Decoder, LimitError, Limits as HeaderLimits};
use proxy_core::network::Networks;
use socket2::Socket;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bpf::LoadError;
use crate::bpf::attach::RemoveError;
use crate::bpf::pins;
use crate::cli::run::RunArgs;
use crate::control::server::{ControlError, Server};
use crate::flow::{self, Service};
use crate::forwarded::{self, Keeper};
use crate::header::AcceptProxy;
use crate::interfaces::InterfacesError;
use crate::kernel::{Inherited, Kernel};
use crate::listener::{self, InheritError, ListenError};
use crate::netlink::{Netlink, NetlinkError, Route};
use crate::registry::Registry;
use crate::reset::Resets;
use crate::resolve::{ResolveError, resolve};
use crate::send_proxy::SendProxy;
use crate::splice::{Choice, EnginesError, Limits};
use crate::takeover::{self, Deed, Estate, Predecessor, Preparing, Successor, TakeOverError};
use crate::upstream::Connector;

/// Why the daemon did not start.
#[derive(Debug, Error)]
pub enum RunError {
    /// Trust is missing.
    #[error(
        "--accept-proxy needs --trust CIDR: the networks whose hosts may say who the client is \
         (--trust 0.0.0.0/0 for anyone)"
    )]
    NoTrust,
    /// The largest header is out of range.
    #[error("--max-header: {0}")]
    MaxHeader(#[from] LimitError),
    /// The upstream has no address.
    #[error("--upstream: {0}")]
    Resolve(#[from] ResolveError),
    /// The upstream is this host.
    #[error(
        "--source client does not work with an upstream on this very host ({0}): its replies to the \
         client never reach an interface. Use --source proxy, or run the service in a network \
         namespace or container of its own"
    )]
    LocalUpstream(Upstream),
    /// The address cannot be listened on.
    #[error("--listen: {0}")]
    Listen(#[from] ListenError),
    /// The running daemon is not taken over.
    #[error("--take-over: {0}")]
    TakeOver(#[from] TakeOverError),
    /// The running daemon's socket is not the one to listen at.
    #[error("--take-over: {0}")]
    Inherit(#[from] InheritError),
    /// The running daemon's tables cannot be used.
    #[error(
        "--take-over: the tables of the running limpid have layout version {found}, this one needs \
         {expected}. The running one goes on. To change versions, stop it (its flows get \
         --drain-timeout to end), then start this one"
    )]
    OtherLayout {
        /// The version in the pins.
        found: u32,
        /// This program's.
        expected: u32,
    },
    /// There is no control socket.
    #[error("--control: {0}")]
    Control(#[from] ControlError),
    /// The kernel's tables cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The interfaces cannot be found or attached to.
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    /// The pins cannot be had.
    #[error(transparent)]
    Pins(#[from] pins::PinsError),
    /// The BPF side cannot be set up.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no BPF side.
    #[error("--splice packet: {0}")]
    NoBpf(String),
    /// Something stays that was to be removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// The engine asked for cannot be had.
    #[error(transparent)]
    Engines(#[from] EnginesError),
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Runs until a signal says otherwise.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    let accept_proxy = accept_proxy(&args)?;
    let steer = args.listener.steers();
    let has_sockets = matches!(args.listener.splice, Choice::Sockmap | Choice::Copy);
    if !steer && has_sockets && args.daemon.upstream_interface.is_some() {
        tracing::warn!(
            "--upstream-interface has no effect with --source proxy and --splice {}",
            args.listener.splice
        );
    }
    let signals = Signals::new().map_err(RunError::Signals)?;
    let descriptors = raise_limits();

    let netlink = Netlink::open()?;
    let upstreams = reachable(
        &netlink,
        resolve(&args.pool.upstream[0].target).await?,
        steer,
    )
    .await?;
    let path = args.control.path(&args.instance);
    let Place {
        mut control,
        listener,
        inherited,
        deed,
    } = Place::of(&args, &path).await?;
    let registry = Registry::default();
    let limits = Limits {
        idle: args.listener.idle_timeout.get(),
        half_close: args.listener.half_close_timeout.get(),
    };
    let (forwarded, told) = forwarded::channel();
    let takes_over = deed.is_some();
    let kernel = Kernel::set_up(&args, steer, &upstreams, &netlink, &forwarded, inherited);
    let mut kernel = match kernel.await {
        Err(RunError::Load(LoadError::LayoutVersion {
            found, expected, ..
        })) if takes_over => return Err(RunError::OtherLayout { found, expected }),
        kernel => kernel?,
    };
    let rest = async {
        let engines = kernel.engines(args.listener.splice)?;
        let conversation = match deed {
            Some(deed) => Some(deed.take().await?),
            None => None,
        };
        kernel.take_over();
        let predecessor = Predecessor::find(conversation, kernel.elders(), &forwarded);
        match kernel.forwarded_parts()? {
            Some(parts) => {
                let registry = registry.clone();
                let keeper = Keeper::new(
                    told,
                    parts,
                    resets(),
                    registry,
                    limits,
                    predecessor.is_some(),
                );
                tokio::spawn(keeper.run());
            }
            None => drop(told),
        }
        if engines.has_packet() {
            kernel.clamp_segments(&listener, &netlink).await;
        }
        let listener = listener::open(listener, args.listener.listen[0].first())?;
        Ok((engines, predecessor, listener))
    };
    let (engines, predecessor, listener) = match rest.await {
        Ok(rest) => rest,
        Err(e) => {
            kernel.tear_down().await?;
            return Err(e);
        }
    };
    if takes_over && let Err(e) = control.move_to(&path) {
        tracing::warn!("--control: {e}");
    }
    let service = Service {
        accept_proxy,
        connector: Connector {
            source: kernel.source(steer, args.listener.source_mismatch),
            upstreams,
            send_proxy: SendProxy::of(&args.pool),
            timeout: args.pool.connect_timeout.get(),
            alike: engines.has_packet(),
        },
        engines,
        forwarded,
        limits,
        registry,
    };
    tracing::info!(
        listen = %listener.local_addr().unwrap_or(args.listener.listen[0].first()),
        upstream = %args.pool.upstream[0].target,
        source = if steer { "client" } else { "proxy" },
        splice = %args.listener.splice,
        instance = %args.instance.instance,
        "ready"
    );
    let places = Arc::new(Semaphore::new(flows_for(descriptors)));
    let daemon = Daemon {
        service: Arc::new(service),
        places,
        control,
        signals,
        predecessor,
        drain: args.daemon.drain_timeout.get(),
    };
    daemon.run(listener, &mut kernel, &netlink).await;
    kernel.tear_down().await?;
    tracing::info!("ended");
    Ok(())
}

/// Where a daemon talks and listens, and what it has from the one before.
struct Place {
    control: Server,
    listener: Socket,
    inherited: Option<Inherited>,
    /// The way to take the place, where another daemon still has it.
    deed: Option<Deed>,
}

impl Place {
    async fn of(args: &RunArgs, path: &Path) -> Result<Self, RunError> {
        let (address, interface) = (
            args.listener.listen[0].first(),
            args.listener.downstream_interface.as_deref(),
        );
        if args.take_over {
            if let Some(heritage) = takeover::ask(path).await? {
                return Ok(Self {
                    control: Server::bind_beside(path, heritage.folder_made).await?,
                    listener: listener::inherit(heritage.listener, address, interface)?,
                    inherited: heritage.kernel,
                    deed: Some(heritage.deed),
                });
            }
            tracing::info!("there is no limpid to take over: an ordinary start");
        }
        Ok(Self {
            control: Server::bind(path).await?,
            listener: listener::bind(address, interface)?,
            inherited: None,
            deed: None,
        })
    }
}

/// A daemon that is set up.
struct Daemon {
    service: Arc<Service>,
    /// Flows that there are descriptors for. Connections beyond wait in the listener's backlog, so
    /// that none is accepted only to fail.
    places: Arc<Semaphore>,
    control: Server,
    signals: Signals,
    /// Whom it has taken over.
    predecessor: Option<Predecessor>,
    drain: Duration,
}

impl Daemon {
    /// Serves until a signal comes, or another daemon, and the flows have ended.
    async fn run(mut self, listener: TcpListener, kernel: &mut Kernel, netlink: &Netlink) {
        let flows = Flows::default();
        let successor = self.serve(&listener, &flows, kernel, netlink).await;
        drop(listener);
        let drain = Drain {
            flows: &flows,
            service: &self.service,
            signals: &mut self.signals,
            predecessor: self.predecessor.as_mut(),
        };
        tokio::select! {
            () = drain.run(successor, self.drain) => {}
            () = self.control.serve(&self.service.registry, None) => {}
            () = kernel.tend(netlink, None) => {}
        }
    }

    /// Serves until a signal comes, or another daemon has taken over.
    async fn serve(
        &mut self,
        listener: &TcpListener,
        flows: &Flows,
        kernel: &mut Kernel,
        netlink: &Netlink,
    ) -> Option<Successor> {
        let registry = &self.service.registry;
        let (asked, mut candidates) = mpsc::unbounded_channel();
        let mut preparing: Option<Preparing> = None;
        loop {
            let ready = async {
                match &mut preparing {
                    Some(candidate) => candidate.is_ready().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = accept(listener, &self.service, &self.places, flows) => {}
                () = self.control.serve(registry, Some(&asked)) => {}
                () = kernel.tend(netlink, Some(listener)) => {}
                name = self.signals.next() => {
                    tracing::info!("{name}: no more connections are accepted");
                    return None;
                }
                Some(candidate) = candidates.recv() => {
                    let estate = Estate {
                        listener: listener.as_fd(),
                        folder: kernel.folder(),
                        filters: kernel.filters(),
                        steers: kernel.steers(),
                        folder_made: self.control.folder_made(),
                    };
                    // An error: it has given up already.
                    if preparing.is_some() {
                        let _ = candidate.refuse("another limpid is about to take over").await;
                    } else {
                        preparing = candidate.offer(&estate).await.ok();
                    }
                }
                ready = ready => {
                    let taken = preparing.take().filter(|_| ready);
                    match taken {
                        Some(candidate) => {
                            if let Some(successor) = hand_over(&self.service, candidate, kernel).await {
                                if let Some(predecessor) = &self.predecessor {
                                    predecessor.retire();
                                }
                                return Some(successor);
                            }
                        }
                        None => tracing::info!("the limpid that was to take over has given up"),
                    }
                }
            }
        }
    }
}

/// Leaves flows and pins to a daemon that is ready for them.
async fn hand_over(
    service: &Service,
    candidate: Preparing,
    kernel: &mut Kernel,
) -> Option<Successor> {
    let (later, told) = mpsc::unbounded_channel();
    service.forwarded.hand_over(later).await;
    match candidate.succeed(told).await {
        Ok(successor) => {
            kernel.hand_over();
            let left = service.registry.len();
            tracing::info!("taken over by another limpid: {left} flow(s) stay until they end");
            Some(successor)
        }
        Err(e) => {
            tracing::warn!("the limpid that was to take over is gone: {e}");
            service.forwarded.take_back();
            None
        }
    }
}

/// What tells the peers of flows without sockets that these are over.
fn resets() -> Option<Resets> {
    Resets::open()
        .inspect_err(|e| tracing::warn!("flows that are ended here end without a RST: {e}"))
        .ok()
}

fn accept_proxy(args: &RunArgs) -> Result<Option<AcceptProxy>, RunError> {
    if !args.listener.accept_proxy {
        return Ok(None);
    }
    let trusted: Networks = args.listener.trust.iter().copied().collect();
    if trusted.is_empty() {
        return Err(RunError::NoTrust);
    }
    let limits = HeaderLimits::v2_len(args.listener.max_header.get() as usize)?;
    let decoder = Decoder::new(limits);
    Ok(Some(AcceptProxy {
        trusted,
        decoder,
        timeout: args.listener.header_timeout.get(),
    }))
}

/// Those of the upstream's addresses that there is a route to.
async fn reachable(
    netlink: &Netlink,
    upstreams: Vec<Upstream>,
    steer: bool,
) -> Result<Vec<Upstream>, RunError> {
    let mut reachable = Vec::new();
    let mut unreachable = None;
    for upstream in upstreams {
        match netlink.route(upstream.ip()).await {
            Ok(Route::Local) if steer => return Err(RunError::LocalUpstream(upstream)),
            Ok(Route::Local | Route::Via(_)) => reachable.push(upstream),
            Err(e) => {
                tracing::warn!("upstream address {upstream} is left out: {e}");
                unreachable = Some(e);
            }
        }
    }
    match unreachable {
        Some(e) if reachable.is_empty() => Err(e.into()),
        _ => Ok(reachable),
    }
}

async fn accept(
    listener: &TcpListener,
    service: &Arc<Service>,
    places: &Arc<Semaphore>,
    flows: &Flows,
) {
    while let Ok(place) = Arc::clone(places).acquire_owned().await {
        let accepted = listener::accept(listener).await;
        let (service, stop) = (Arc::clone(service), flows.stop.clone());
        flows.tasks.spawn(async move {
            flow::serve(service, accepted, stop).await;
            drop(place);
        });
    }
}

/// How many flows these descriptors are enough for: two sockets a flow, and some for the daemon
/// itself. (A transfer that finds none for a pipe goes without.)
fn flows_for(descriptors: usize) -> usize {
    (descriptors.saturating_sub(64) / 2).clamp(1, Semaphore::MAX_PERMITS)
}

/// The flows of this daemon that have sockets.
#[derive(Default)]
struct Flows {
    tasks: TaskTracker,
    /// Resets them.
    stop: CancellationToken,
}

/// The end of a daemon.
struct Drain<'a> {
    flows: &'a Flows,
    service: &'a Service,
    signals: &'a mut Signals,
    predecessor: Option<&'a mut Predecessor>,
}

impl Drain<'_> {
    /// Lets open flows end by themselves until the deadline, then resets them. After another daemon has
    /// taken over there is none: flows may take as long as they want.
    async fn run(mut self, successor: Option<Successor>, mut deadline: Duration) {
        let registry = &self.service.registry;
        let tasks = &self.flows.tasks;
        tasks.close();
        let predecessor = self.predecessor.as_ref().map(|other| other.gone());
        let mut ended = pin!(async {
            tasks.wait().await;
            if let Some(gone) = predecessor {
                gone.await;
            }
            // Not before: a flow that is still to be adopted is nowhere yet.
            self.service.forwarded.settled().await;
            registry.emptied().await;
        });
        if let Some(mut successor) = successor {
            tokio::select! {
                () = &mut ended => return,
                name = self.signals.next() => tracing::info!("{name}: flows have {deadline:?} to end"),
                () = successor.wants_end() => deadline = Duration::ZERO,
            }
        }
        tokio::select! {
            () = ended => return,
            () = sleep(deadline) => tracing::info!("{} flow(s) left after {deadline:?}: reset", registry.len()),
            name = self.signals.next() => tracing::info!("{name} again: {} flow(s) reset", registry.len()),
        }
        self.reset().await;
    }

    async fn reset(&mut self) {
        self.flows.stop.cancel();
        self.service.forwarded.stop();
        self.flows.tasks.wait().await;
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.end().await;
            if timeout(PREDECESSOR, predecessor.gone()).await.is_err() {
                tracing::warn!("the limpid that was taken over does not end");
            }
        }
        // Those that were just being handed over.
        self.service.forwarded.stop();
        self.service.registry.emptied().await;
    }
}

/// How long a daemon that was taken over may take to reset its flows.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// SIGTERM, SIGINT, and SIGHUP: a terminal that is closed asks for an end in order, too.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// As many descriptors as allowed, which is what is returned, and (for kernels before 5.11, which count
/// BPF maps) as much locked memory. Where that is refused, what we have must do.
fn raise_limits() -> usize {
    let _ = setrlimit(
        Resource::RLIMIT_MEMLOCK,
        libc::RLIM_INFINITY,
        libc::RLIM_INFINITY,
    );
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let limit = if raised.is_ok() { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}
