//! `limpid run`: everything set up, in an order that leaves nothing behind when a step fails; the
//! accept loop; the orderly end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_core::address::Upstream;
use proxy_core::header::{Decoder, LimitError, Limits as HeaderLimits};
use proxy_core::trust::TrustedPeers;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bpf::attach::{self, RemoveError};
use crate::bpf::pins::{self, Pins};
use crate::bpf::sockmap::{SockmapError, kernel_version};
use crate::bpf::{self, Bpf, LoadError};
use crate::cli::run::{MismatchArg, RunArgs, SourceArg};
use crate::control::server::{ControlError, Server};
use crate::flow::{self, Service};
use crate::header::AcceptProxy;
use crate::interfaces::{Interfaces, InterfacesError};
use crate::listener::{self, ListenError};
use crate::netlink::{self, Changes, Netlink, NetlinkError, Route};
use crate::registry::Registry;
use crate::resolve::{ResolveError, resolve};
use crate::splice::{Choice, Engines, EnginesError, Limits};
use crate::steering::Steering;
use crate::sys;
use crate::upstream::{Connector, Source};

/// How often lingering flow-table entries are looked at.
const SWEEP: Duration = Duration::from_millis(500);

/// How long the kernel gets at the end to close the last sockets in their clients' names.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How often the programs on the interfaces are looked at: nothing tells when somebody removes them.
const VERIFY: Duration = Duration::from_secs(10);

/// How long link and route changes may go on before they are acted upon; they come in bursts.
const SETTLE: Duration = Duration::from_millis(100);

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
    let steer = match args.source {
        Some(SourceArg::Client) => true,
        Some(SourceArg::Proxy) => false,
        None => args.accept_proxy,
    };
    if !steer && args.upstream_interface.is_some() {
        tracing::warn!("--upstream-interface has no effect with --source proxy");
    }
    let signals = Signals::new().map_err(RunError::Signals)?;
    let descriptors = raise_limits();

    let netlink = Netlink::open()?;
    let upstreams = reachable(&netlink, resolve(&args.upstream).await?, steer).await?;
    let control = Server::bind(&args.control.path(&args.instance)).await?;
    let listener = listener::bind(args.listen, args.downstream_interface.as_deref())?;
    let mut kernel = Kernel::set_up(&args, steer, &upstreams, &netlink).await?;
    let engines = match kernel.engines(args.splice) {
        Ok(engines) => engines,
        Err(e) => {
            kernel.tear_down().await?;
            return Err(e.into());
        }
    };
    let service = Service {
        accept_proxy,
        connector: Connector {
            source: kernel.source(args.source_mismatch),
            upstreams,
            send_proxy: args.send_proxy,
            timeout: args.connect_timeout,
        },
        engines,
        limits: Limits {
            idle: args.idle_timeout,
            half_close: args.half_close_timeout,
        },
        registry: Registry::default(),
    };
    tracing::info!(
        listen = %listener.local_addr().unwrap_or(args.listen),
        upstream = %args.upstream,
        source = if steer { "client" } else { "proxy" },
        splice = %args.splice,
        instance = %args.instance.instance,
        "ready"
    );
    let places = Arc::new(Semaphore::new(flows_for(descriptors)));
    let daemon = Daemon {
        service: Arc::new(service),
        places,
        control,
        signals,
        drain: args.drain_timeout,
    };
    daemon.run(listener, &mut kernel, &netlink).await;
    kernel.tear_down().await?;
    tracing::info!("ended");
    Ok(())
}

/// A daemon that is set up.
struct Daemon {
    service: Arc<Service>,
    /// Flows that there are descriptors for. Connections beyond wait in the listener's backlog, so
    /// that none is accepted only to fail.
    places: Arc<Semaphore>,
    control: Server,
    signals: Signals,
    drain: Duration,
}

impl Daemon {
    /// Serves until a signal comes and the flows have ended.
    async fn run(mut self, listener: TcpListener, kernel: &mut Kernel, netlink: &Netlink) {
        let registry = &self.service.registry;
        let flows = TaskTracker::new();
        let stop = CancellationToken::new();
        tokio::select! {
            () = accept(&listener, &self.service, &self.places, &flows, &stop) => {}
            () = self.control.serve(registry) => {}
            () = kernel.tend(netlink) => {}
            name = self.signals.next() => tracing::info!("{name}: no more connections are accepted"),
        }
        drop(listener);
        tokio::select! {
            () = drain(&flows, registry, &stop, self.drain, &mut self.signals) => {}
            () = self.control.serve(registry) => {}
            () = kernel.tend(netlink) => {}
        }
    }
}

fn accept_proxy(args: &RunArgs) -> Result<Option<AcceptProxy>, RunError> {
    if !args.accept_proxy {
        return Ok(None);
    }
    let trusted: TrustedPeers = args.trust.iter().copied().collect();
    if trusted.is_empty() {
        return Err(RunError::NoTrust);
    }
    let limits = HeaderLimits::v2_len(args.max_header as usize)?;
    let decoder = Decoder::new(limits);
    Ok(Some(AcceptProxy {
        trusted,
        decoder,
        timeout: args.header_timeout,
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
    flows: &TaskTracker,
    stop: &CancellationToken,
) {
    while let Ok(place) = Arc::clone(places).acquire_owned().await {
        let accepted = listener::accept(listener).await;
        let (service, stop) = (Arc::clone(service), stop.clone());
        flows.spawn(async move {
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

/// Lets open flows end by themselves for a while, then resets them.
async fn drain(
    flows: &TaskTracker,
    registry: &Registry,
    stop: &CancellationToken,
    deadline: Duration,
    signals: &mut Signals,
) {
    flows.close();
    tokio::select! {
        () = flows.wait() => return,
        () = sleep(deadline) => tracing::info!("{} flow(s) left after {deadline:?}: reset", registry.len()),
        name = signals.next() => tracing::info!("{name} again: {} flow(s) reset", registry.len()),
    }
    stop.cancel();
    flows.wait().await;
}

/// What the daemon has in the kernel; nothing, where it neither steers nor splices there.
struct Kernel {
    bpf: Result<Bpf, String>,
    interfaces: Option<Interfaces>,
    steering: Option<Arc<Steering>>,
    changes: Changes,
    _lock: Option<pins::Lock>,
}

impl Kernel {
    async fn set_up(
        args: &RunArgs,
        steer: bool,
        upstreams: &[Upstream],
        netlink: &Netlink,
    ) -> Result<Self, RunError> {
        let with = |bpf, lock| Self {
            bpf,
            interfaces: None,
            steering: None,
            changes: futures_util::stream::pending().boxed(),
            _lock: lock,
        };
        if !steer && args.splice == Choice::Copy {
            return Ok(with(Err("not needed".to_owned()), None));
        }
        let mut kernel = match Self::load(args) {
            Ok((bpf, lock)) => with(Ok(bpf), Some(lock)),
            // Without BPF one can still copy.
            Err(e) if !steer && args.splice == Choice::Auto => with(Err(e.to_string()), None),
            Err(e) => return Err(e),
        };
        if steer && let Err(e) = kernel.steer(args, upstreams, netlink).await {
            kernel.tear_down().await?;
            return Err(e);
        }
        Ok(kernel)
    }

    fn load(args: &RunArgs) -> Result<(Bpf, pins::Lock), RunError> {
        let pins = Pins::new(&args.bpffs.bpffs, &args.instance.instance);
        pins.create()?;
        let lock = pins.lock()?;
        let log_level = tracing::level_filters::LevelFilter::current();
        let options = bpf::Options {
            max_flows: args.max_flows,
            log_level,
        };
        let mut bpf = Bpf::load(pins, &options)?;
        bpf.forward_log();
        Ok((bpf, lock))
    }

    async fn steer(
        &mut self,
        args: &RunArgs,
        upstreams: &[Upstream],
        netlink: &Netlink,
    ) -> Result<(), RunError> {
        let Ok(bpf) = &mut self.bpf else {
            return Ok(());
        };
        let mut interfaces = Interfaces::new(
            args.upstream_interface.clone(),
            upstreams.to_vec(),
            args.attach,
        );
        interfaces.attach(bpf, netlink).await?;
        self.interfaces = Some(interfaces);
        self.steering = Some(Steering::new(bpf.flow_table()?, args.max_flows as usize));
        match netlink::changes() {
            Ok(changes) => self.changes = changes,
            Err(e) => tracing::warn!("link and route changes are not followed: {e}"),
        }
        Ok(())
    }

    fn source(&self, mismatch: MismatchArg) -> Source {
        match &self.steering {
            None => Source::Proxy,
            Some(steering) => Source::Client {
                steering: Arc::clone(steering),
                mismatch_proxy: mismatch == MismatchArg::Proxy,
            },
        }
    }

    fn engines(&mut self, choice: Choice) -> Result<Engines, EnginesError> {
        Engines::new(choice, kernel_version(), || match &mut self.bpf {
            Ok(bpf) => bpf.sockmap(),
            Err(reason) => Err(SockmapError::Object(reason.clone())),
        })
    }

    /// Forgets flows that are over, and follows link and route changes; never returns.
    async fn tend(&mut self, netlink: &Netlink) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes come in bursts: the first sets the time at which all are acted upon.
        let mut due = Instant::now() + VERIFY;
        loop {
            tokio::select! {
                _ = sweep.tick() => {
                    self.sweep().await;
                }
                Some(()) = self.changes.next() => {
                    due = due.min(Instant::now() + SETTLE);
                }
                () = sleep_until(due) => {
                    due = Instant::now() + VERIFY;
                    self.attach(netlink).await;
                }
            }
        }
    }

    async fn attach(&mut self, netlink: &Netlink) {
        if let (Some(interfaces), Ok(bpf)) = (&mut self.interfaces, &mut self.bpf)
            && let Err(e) = interfaces.attach(bpf, netlink).await
        {
            tracing::warn!("following the interfaces: {e}");
        }
    }

    /// Forgets flows that are over; returns how many are not quite.
    async fn sweep(&self) -> usize {
        let Some(steering) = self.steering.clone() else {
            return 0;
        };
        // A system call or two a flow: not for the thread that accepts.
        spawn_blocking(move || steering.sweep(sys::monotonic_ns()))
            .await
            .unwrap_or(0)
    }

    /// Removes everything from the kernel, once the last sockets have closed.
    async fn tear_down(self) -> Result<(), RunError> {
        // Entries of a flow whose backend never closes do not hold up the end.
        let closed = async {
            while self.sweep().await > 0 {
                sleep(SWEEP / 5).await;
            }
        };
        let _ = timeout(LAST_WORDS, closed).await;
        let Ok(bpf) = self.bpf else { return Ok(()) };
        if self.steering.is_some() {
            match bpf.counters() {
                Ok(counters) => tracing::info!("{counters:?}"),
                Err(e) => tracing::warn!("{e}"),
            }
        }
        let pins = bpf.pins().clone();
        drop(bpf);
        attach::remove(&pins)?;
        Ok(())
    }
}

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
