//! `limpid run`: everything set up, in an order that leaves nothing behind when a step fails; the
//! accept loop; the orderly end.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_core::address::Upstream;
use proxy_core::header::{Decoder, LimitError, Limits as HeaderLimits};
use proxy_core::trust::TrustedPeers;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bpf::LoadError;
use crate::bpf::attach::RemoveError;
use crate::bpf::pins;
use crate::cli::run::{RunArgs, SourceArg};
use crate::control::server::{ControlError, Server};
use crate::flow::{self, Service};
use crate::forwarded::{self, Keeper};
use crate::header::AcceptProxy;
use crate::interfaces::InterfacesError;
use crate::kernel::Kernel;
use crate::listener::{self, ListenError};
use crate::netlink::{Netlink, NetlinkError, Route};
use crate::registry::Registry;
use crate::reset::Resets;
use crate::resolve::{ResolveError, resolve};
use crate::splice::{EnginesError, Limits};
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
    let registry = Registry::default();
    let limits = Limits {
        idle: args.idle_timeout,
        half_close: args.half_close_timeout,
    };
    let (forwarded, told) = forwarded::channel();
    let mut kernel = Kernel::set_up(&args, steer, &upstreams, &netlink, &forwarded, None).await?;
    let engines = match kernel.engines(args.splice) {
        Ok(engines) => engines,
        Err(e) => {
            kernel.tear_down().await?;
            return Err(e.into());
        }
    };
    if let Some(parts) = kernel.forwarded_parts()? {
        let keeper = Keeper::new(told, parts, resets(), registry.clone(), limits, false);
        tokio::spawn(keeper.run());
    }
    if engines.has_packet() {
        kernel.clamp_segments(&listener, &netlink).await;
    }
    let service = Service {
        accept_proxy,
        connector: Connector {
            source: kernel.source(steer, args.source_mismatch),
            upstreams,
            send_proxy: args.send_proxy,
            timeout: args.connect_timeout,
            alike: engines.has_packet(),
        },
        engines,
        forwarded,
        limits,
        registry,
    };
    if let Err(e) = listener::open(&listener, args.listen) {
        kernel.tear_down().await?;
        return Err(e.into());
    }
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
            () = kernel.tend(netlink, Some(&listener)) => {}
            name = self.signals.next() => tracing::info!("{name}: no more connections are accepted"),
        }
        drop(listener);
        tokio::select! {
            () = drain(&flows, &self.service, &stop, self.drain, &mut self.signals) => {}
            () = self.control.serve(registry) => {}
            () = kernel.tend(netlink, None) => {}
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
    service: &Service,
    stop: &CancellationToken,
    deadline: Duration,
    signals: &mut Signals,
) {
    let registry = &service.registry;
    flows.close();
    let ended = async {
        flows.wait().await;
        registry.emptied().await;
    };
    tokio::select! {
        () = ended => return,
        () = sleep(deadline) => tracing::info!("{} flow(s) left after {deadline:?}: reset", registry.len()),
        name = signals.next() => tracing::info!("{name} again: {} flow(s) reset", registry.len()),
    }
    stop.cancel();
    service.forwarded.stop();
    flows.wait().await;
    // A flow that was just being handed over.
    service.forwarded.stop();
    registry.emptied().await;
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
