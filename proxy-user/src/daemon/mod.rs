//! `limpid run`: everything set up, in an order that leaves nothing behind when a step fails; the
//! accept loop; the orderly end, or another daemon in this one's place.

use std::fmt::Display;
use std::future::pending;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::future::try_join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_core::header::{Decoder, LimitError, Limits as HeaderLimits};
use thiserror::Error;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::timeout;

use crate::access_log::{AccessLog, OpenError};
use crate::bpf::LoadError;
use crate::bpf::attach::RemoveError;
use crate::bpf::pins::{self, Pins};
use crate::cli::run::RunArgs;
use crate::config::{self, Config};
use crate::control::server::{ControlError, Server};
use crate::flow::Service;
use crate::forwarded::{self, Keeper, Told as Tidings};
use crate::header::AcceptProxy;
use crate::interfaces::InterfacesError;
use crate::kernel::{Inherited, Kernel, Needs};
use crate::listener::inherit::{InheritError, Inherited as Sockets};
use crate::listener::{self, Bound, ListenError};
use crate::metrics::http::BindError;
use crate::netlink::{Netlink, NetlinkError, Route};
use crate::pool::resolve::Resolver;
use crate::pool::{Pool, PoolError};
use crate::reset::Resets;
use crate::send_proxy::SendProxy;
use crate::socket_options::SideOptions;
use crate::splice::{End, EnginesError, Fallback, Limits};
use crate::takeover::{self, Deed, Estate, Predecessor, Preparing, Successor, TakeOverError};
use crate::upstream::Connector;

pub mod accepting;
mod drain;
mod observing;
pub mod shared;
mod signals;

use accepting::{Accepting, Services};
use drain::Drain;
use observing::Scraped;
use shared::{Order, Pools, Reloaded, Shared};
use signals::{Signals, Told};

/// How long reading the configuration again may take.
const READING: Duration = Duration::from_secs(10);

/// Why the daemon did not start.
#[derive(Debug, Error)]
pub enum RunError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] config::LoadError),
    /// What the command line says cannot be done.
    #[error(transparent)]
    Options(#[from] config::CheckError),
    /// The largest header is out of range.
    #[error("--max-header: {0}")]
    MaxHeader(#[from] LimitError),
    /// A pool has no servers.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The upstream is this host.
    #[error(
        "--source client does not work with an upstream on this very host ({0}): its replies to the \
         client never reach an interface. Use --source proxy, or run the service in a network \
         namespace or container of its own"
    )]
    LocalUpstream(IpAddr),
    /// The address cannot be listened on.
    #[error("--listen: {0}")]
    Listen(#[from] ListenError),
    /// The listening sockets cannot be used twice.
    #[error("the listening sockets: {0}")]
    Sockets(#[source] std::io::Error),
    /// The running daemon is not taken over.
    #[error("--take-over: {0}")]
    TakeOver(#[from] TakeOverError),
    /// The running daemon's sockets are not those to listen at.
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
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] BindError),
    /// Access lines cannot be written.
    #[error("--access-log: {0}")]
    AccessLog(#[from] OpenError),
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

/// Why a configuration was not put in force; the one before still is.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// There is no file to read again.
    #[error("this limpid was started without --config: there is no file to read again")]
    NoFile,
    /// What was changed cannot be changed while it runs.
    #[error(transparent)]
    NotReloadable(#[from] config::NotReloadable),
    /// It could not have been started with it either.
    #[error(transparent)]
    Run(Box<RunError>),
}

impl From<RunError> for ReloadError {
    fn from(error: RunError) -> Self {
        Self::Run(Box::new(error))
    }
}

/// What a command line asks for, by a file or by its options, checked; and warnings.
pub fn configuration(args: &RunArgs) -> Result<(Config, Vec<String>), RunError> {
    match &args.config {
        Some(file) => {
            let loaded = config::load(file)?;
            Ok((loaded.config, loaded.warnings.lines().collect()))
        }
        None => {
            let config = args.options();
            let warnings = config.check().of_command_line()?;
            Ok((config, warnings))
        }
    }
}

/// Serves `config` until a signal says otherwise; `args` say who and where it is, and `passed` are
/// listening sockets of whoever has started it.
pub async fn run(args: RunArgs, config: Config, passed: Sockets) -> Result<(), RunError> {
    let signals = Signals::new(args.config.is_some()).map_err(RunError::Signals)?;
    let descriptors = raise_limits();
    let netlink = Netlink::open()?;
    let resolver = Resolver::default();
    let moved = Arc::new(Notify::new());
    let pools = pools(&config, &resolver, &Pools::new(), &moved).await?;
    reachable(&netlink, &config, &pools).await?;

    let (orders, ordered) = mpsc::unbounded_channel();
    let (forwarded, told) = forwarded::channel();
    let shared = Arc::new(Shared::new(
        args.instance.instance.clone(),
        args.config.clone(),
        forwarded,
        flows_for(descriptors),
        orders,
    ));
    let path = args.control.path(&args.instance);
    let Place {
        control,
        mut sockets,
        inherited,
        deed,
    } = Place::of(&args, &path, passed).await?;
    let takes_over = deed.is_some();
    let bound = Bound::bind(&config.listeners, &mut sockets);
    for unused in sockets.close_rest() {
        // It would be closed with the other daemon, and what waits in its backlog with it. (It may be why
        // another cannot be bound.)
        if takes_over {
            return Err(unused.into());
        }
        tracing::warn!("{unused}");
    }
    let bound = bound?;
    let mut setup = Setup {
        shared,
        kernel: Kernel::new(Pins::new(&args.bpffs.bpffs, &args.instance.instance)),
        netlink,
        resolver,
        moved,
        told: Some(told),
        predecessor: None,
        scraped: Scraped::default(),
    };
    let accepting = match setup.start(config, pools, bound, inherited, deed).await {
        Ok(accepting) => accepting,
        Err(e) => {
            setup.kernel.tear_down().await?;
            return Err(match e {
                RunError::Load(LoadError::LayoutVersion {
                    found, expected, ..
                }) if takes_over => RunError::OtherLayout { found, expected },
                e => e,
            });
        }
    };
    let mut daemon = Daemon {
        setup,
        accepting,
        control,
        signals,
        ordered,
    };
    if takes_over && let Err(e) = daemon.control.move_to(&path) {
        tracing::warn!("--control: {e}");
    }
    daemon.say_ready();
    daemon.run().await?;
    tracing::info!("ended");
    Ok(())
}

/// Where a daemon talks and listens, and what it has from the one before.
struct Place {
    control: Server,
    /// Listening sockets of the daemon before, or of whoever has started this one.
    sockets: Sockets,
    inherited: Option<Inherited>,
    /// The way to take the place, where another daemon still has it.
    deed: Option<Deed>,
}

impl Place {
    async fn of(args: &RunArgs, path: &Path, passed: Sockets) -> Result<Self, RunError> {
        if args.take_over {
            if let Some(heritage) = takeover::ask(path).await? {
                return Ok(Self {
                    control: Server::bind_beside(path, heritage.folder_made).await?,
                    sockets: Sockets::new(heritage.listeners).and(passed),
                    inherited: heritage.kernel,
                    deed: Some(heritage.deed),
                });
            }
            tracing::info!("there is no limpid to take over: an ordinary start");
        }
        Ok(Self {
            control: Server::bind(path).await?,
            sockets: passed,
            inherited: None,
            deed: None,
        })
    }
}

/// What is ready for a configuration, and not in force yet.
struct Prepared {
    services: Services,
    log: AccessLog,
}

/// What a configuration is put in force with.
struct Setup {
    shared: Arc<Shared>,
    kernel: Kernel,
    netlink: Netlink,
    resolver: Resolver,
    /// A pool's servers have other addresses now.
    moved: Arc<Notify>,
    /// What the keeper of flows without sockets is told; `None`: there is one.
    told: Option<Tidings>,
    /// Whom this daemon has taken over.
    predecessor: Option<Predecessor>,
    scraped: Scraped,
}

impl Setup {
    /// Sets everything up, in an order in which a failure leaves nothing changed for whoever is taken over.
    async fn start(
        &mut self,
        config: Config,
        pools: Pools,
        bound: Bound,
        inherited: Option<Inherited>,
        deed: Option<Deed>,
    ) -> Result<Accepting, RunError> {
        let Prepared { services, log } = self.prepare(&config, &pools, inherited).await?;
        self.clamp_segments(&bound).await;
        // Whoever comes now waits in a backlog.
        let listeners = bound.open()?;
        let metrics = config.daemon.metrics;
        let conversation = match deed {
            Some(deed) => {
                let conversation = deed.take().await?;
                // The other one has let go of the address, and would not take it back.
                if let Err(e) = self.scraped.listen(metrics, &self.shared).await {
                    tracing::error!("{e}");
                }
                Some(conversation)
            }
            None => {
                self.scraped.listen(metrics, &self.shared).await?;
                None
            }
        };
        self.shared.registry.observer().log_to(log);
        self.kernel.take_over();
        let elders = self.kernel.elders();
        self.predecessor = Predecessor::find(conversation, elders, &self.shared.forwarded);
        self.shared.serves(config, pools, &services);
        self.keep_forwarded()?;
        Ok(Accepting::start(
            Arc::clone(&self.shared),
            listeners,
            services,
        ))
    }

    /// Lets clients send no larger segments than fit on the way to the backends.
    async fn clamp_segments(&self, bound: &Bound) {
        if let Some(largest) = self.kernel.largest_segment(&self.netlink).await {
            listener::clamp_segments(bound.sockets(), largest);
        }
    }

    /// What can fail of a configuration, except listening; connections that there are do not notice.
    async fn prepare(
        &mut self,
        config: &Config,
        pools: &Pools,
        inherited: Option<Inherited>,
    ) -> Result<Prepared, RunError> {
        let needs = Needs::of(config);
        let forwarded = &self.shared.forwarded;
        let upstreams = addresses(pools);
        self.kernel
            .set_up(&needs, upstreams, &self.netlink, forwarded, inherited)
            .await?;
        if let Some(in_kernel) = self.kernel.in_kernel() {
            self.shared.runs_in_kernel(in_kernel);
        }
        let services = self.services(config, pools)?;
        let (target, format) = (&config.daemon.access_log, config.daemon.access_log_format);
        let log = self.shared.registry.observer().open_log(target, format)?;
        Ok(Prepared { services, log })
    }

    /// Another configuration for a daemon at work. If this fails, all is as before.
    async fn put_in_force(
        &mut self,
        config: Config,
        accepting: &mut Accepting,
    ) -> Result<(), RunError> {
        let before = self.shared.pools();
        let pools = pools(&config, &self.resolver, &before, &self.moved).await?;
        reachable(&self.netlink, &config, &pools).await?;
        let mut sockets = accepting.again().map_err(RunError::Sockets)?;
        let bound = Bound::bind(&config.listeners, &mut sockets)?;
        let Prepared { services, log } = self.prepare(&config, &pools, None).await?;
        self.clamp_segments(&bound).await;
        self.keep_forwarded()?;
        let listeners = bound.open()?;
        self.scraped
            .listen(config.daemon.metrics, &self.shared)
            .await?;
        // Nothing fails from here on.
        self.shared.registry.observer().log_to(log);
        accepting.pause().await;
        self.shared.serves(config, pools, &services);
        let start = Accepting::start(Arc::clone(&self.shared), listeners, services);
        let before = std::mem::replace(accepting, start);
        accepting.succeed(&before);
        Ok(())
    }

    /// Has somebody keep the flows without sockets, where there can be any.
    fn keep_forwarded(&mut self) -> Result<(), RunError> {
        if self.told.is_none() {
            return Ok(());
        }
        if let Some(parts) = self.kernel.forwarded_parts()?
            && let Some(told) = self.told.take()
        {
            let keeper = Keeper::new(
                told,
                parts,
                resets(),
                Arc::clone(&self.shared),
                self.predecessor.is_some(),
            );
            tokio::spawn(keeper.run());
        }
        Ok(())
    }

    fn services(&mut self, config: &Config, pools: &Pools) -> Result<Services, RunError> {
        let mut services = Services::new();
        for (name, listener) in &config.listeners {
            let pool_name = config.pool_of(name, listener);
            let (Some(settings), Some(pool)) = (config.pools.get(pool_name), pools.get(pool_name))
            else {
                continue; // The configuration was checked.
            };
            let mut engines = self.kernel.engines(listener.splice)?;
            if listener.fast_open.is_some() {
                engines = engines.without_packet(Fallback::FastOpen);
            }
            let connector = Connector {
                source: self
                    .kernel
                    .source(listener.steers(), listener.source_mismatch),
                pool: Arc::clone(pool),
                retries: settings.retries.get() as usize,
                send_proxy: SendProxy::of(settings),
                timeout: settings.connect_timeout.get(),
                options: SideOptions::upstream(settings),
                alike: engines.has_packet(),
            };
            let service = Service {
                name: name.clone(),
                accept_proxy: accept_proxy(listener)?,
                admission: self.shared.admission(name, listener),
                refuse: listener.refuse_with,
                connector,
                engines,
                forwarded: self.shared.forwarded.clone(),
                limits: Limits::of(listener),
                registry: self.shared.registry.clone(),
            };
            services.insert(name.clone(), Arc::new(service));
        }
        Ok(services)
    }
}

/// A daemon at work.
struct Daemon {
    setup: Setup,
    accepting: Accepting,
    control: Server,
    signals: Signals,
    ordered: UnboundedReceiver<Order>,
}

impl Daemon {
    fn say_ready(&self) {
        let shared = &self.setup.shared;
        let config = shared.config();
        let listeners = config.listeners.iter();
        for (name, listener) in listeners {
            let pool = config.pool_of(name, listener);
            let upstream = config
                .pools
                .get(pool)
                .map(|pool| words(pool.upstream.iter().map(|s| &s.target)));
            tracing::info!(
                listener = %name,
                listen = words(listener.listen.iter()),
                upstream,
                source = if listener.steers() { "client" } else { "proxy" },
                splice = %listener.splice,
                "listening"
            );
        }
        tracing::info!(
            listen = words(self.accepting.addresses().iter()),
            instance = %shared.instance,
            "ready"
        );
    }

    /// Serves until a signal comes, or another daemon, and the flows have ended.
    async fn run(mut self) -> Result<(), RunError> {
        let successor = self.serve().await;
        let Self {
            mut setup,
            accepting,
            control,
            mut signals,
            ..
        } = self;
        let shared = &setup.shared;
        shared.is_to_end();
        accepting.pause().await;
        drop(accepting); // Closes the sockets.
        shared.serving.close();
        let drain = Drain {
            shared,
            signals: &mut signals,
            predecessor: setup.predecessor.as_mut(),
        };
        let deadline = shared.config().daemon.drain_timeout.get();
        tokio::select! {
            () = drain.run(successor, deadline) => {}
            () = control.serve(shared) => {}
            () = setup.kernel.tend(&setup.netlink, |_| ()) => {}
        }
        setup.kernel.tear_down().await?;
        setup.shared.registry.observer().flush().await;
        Ok(())
    }

    /// Serves until a signal comes, or another daemon has taken over.
    async fn serve(&mut self) -> Option<Successor> {
        let mut preparing: Option<Preparing> = None;
        loop {
            let ready = async {
                match &mut preparing {
                    Some(candidate) => candidate.is_ready().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.control.serve(&self.setup.shared) => {}
                () = self.setup.kernel.tend(&self.setup.netlink, |largest| self.accepting.clamp_segments(largest)) => {}
                () = self.accepting.follow() => {}
                () = self.setup.moved.notified() => {
                    let upstreams = addresses(&self.setup.shared.pools());
                    self.setup.kernel.lead_to(upstreams, &self.setup.netlink).await;
                }
                told = self.signals.next() => match told {
                    Told::End(name) => {
                        tracing::info!("{name}: no more connections are accepted");
                        return None;
                    }
                    Told::Reload => _ = self.reload().await,
                    Told::Reopen => self.setup.shared.reopen_logs(),
                },
                Some(order) = self.ordered.recv() => match order {
                    // It does not listen to the answer any more: it is done all the same.
                    Order::Reload(done) => _ = done.send(self.reload().await),
                    // An error: it has given up already.
                    Order::TakeOver(candidate) if preparing.is_some() => {
                        let _ = candidate.refuse("another limpid is about to take over").await;
                    }
                    Order::TakeOver(candidate) => preparing = candidate.offer(&self.estate()).await.ok(),
                },
                ready = ready => match preparing.take().filter(|_| ready) {
                    Some(candidate) => {
                        if let Some(successor) = self.hand_over(candidate).await {
                            return Some(successor);
                        }
                    }
                    None => tracing::info!("the limpid that was to take over has given up"),
                },
            }
        }
    }

    fn estate(&self) -> Estate<'_> {
        Estate {
            listeners: self.accepting.descriptors(),
            folder: self.setup.kernel.folder(),
            filters: self.setup.kernel.filters(),
            steers: self.setup.kernel.steers(),
            folder_made: self.control.folder_made(),
        }
    }

    /// Leaves flows and pins to a daemon that is ready for them.
    async fn hand_over(&mut self, candidate: Preparing) -> Option<Successor> {
        self.accepting.pause().await;
        self.setup.scraped = Scraped::default();
        let (later, told) = mpsc::unbounded_channel();
        self.setup.shared.forwarded.hand_over(later).await;
        match candidate.succeed(told).await {
            Ok(successor) => {
                self.setup.kernel.hand_over();
                let left = self.setup.shared.registry.len();
                tracing::info!("taken over by another limpid: {left} flow(s) stay until they end");
                if let Some(predecessor) = &self.setup.predecessor {
                    predecessor.retire();
                }
                Some(successor)
            }
            Err(e) => {
                tracing::warn!("the limpid that was to take over is gone: {e}");
                self.setup.shared.forwarded.take_back();
                self.accepting.resume();
                let shared = &self.setup.shared;
                let metrics = shared.config().daemon.metrics;
                if let Err(e) = self.setup.scraped.listen(metrics, shared).await {
                    tracing::error!("{e}");
                }
                None
            }
        }
    }

    /// Reads the file again. A file that cannot be used changes nothing.
    async fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let Self {
            setup,
            accepting,
            control,
            ..
        } = self;
        let shared = Arc::clone(&setup.shared);
        // Names may be waited for, and who asks for the status meanwhile gets it.
        let serving = async {
            control.serve(&shared).await;
            pending().await
        };
        let reloaded = tokio::select! {
            reloaded = setup.reload(accepting) => reloaded,
            never = serving => never,
        };
        let metrics = self.setup.shared.registry.observer().metrics();
        metrics.reloaded(reloaded.is_ok());
        match &reloaded {
            Ok(Reloaded { done, .. }) => tracing::info!("{done}"),
            Err(e) => tracing::error!("not reloaded, all is as before: {e}"),
        }
        reloaded
    }
}

/// A reload.
impl Setup {
    async fn reload(&mut self, accepting: &mut Accepting) -> Result<Reloaded, ReloadError> {
        let file = self.shared.file.as_ref().ok_or(ReloadError::NoFile)?;
        let config::Loaded { config, warnings } = read(file.clone()).await?;
        let warnings: Vec<String> = warnings.lines().collect();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        config.reload_of(&self.shared.config())?;
        self.put_in_force(config, accepting).await?;
        let ended = self.end_what_is_not_allowed();
        Ok(Reloaded {
            done: format!(
                "reloaded; {ended} flow(s) were reset whose listener is gone or whose client is no longer allowed"
            ),
            warnings,
        })
    }

    /// Ends flows that a reload has taken the right to exist from.
    fn end_what_is_not_allowed(&self) -> usize {
        let config = self.shared.config();
        let mut ended = 0;
        for flow in self.shared.registry.list() {
            // One that was adopted from a listener that nobody knows is nobody's.
            let Some(name) = flow.listener() else {
                continue;
            };
            let why = match (config.listeners.get(name), flow.client.get()) {
                (None, _) => End::ListenerGone,
                (Some(listener), Some(client)) if !listener.allows(*client) => End::NoLongerAllowed,
                (Some(_), _) => continue,
            };
            ended += usize::from(self.shared.end(flow.id, why));
        }
        ended
    }
}

/// Reads a file, on a thread of its own: one that cannot be read at once (a pipe, a file system that hangs) is
/// to stop nothing else, not even the end.
async fn read(file: PathBuf) -> Result<config::Loaded, RunError> {
    let (done, loaded) = oneshot::channel();
    let path = file.clone();
    thread::spawn(move || {
        // Nobody waits for it any more.
        let _ = done.send(config::load(&path));
    });
    match timeout(READING, loaded).await {
        Ok(Ok(loaded)) => Ok(loaded?),
        Ok(Err(_)) | Err(_) => Err(RunError::File(config::LoadError::Read {
            path: file,
            source: std::io::ErrorKind::TimedOut.into(),
        })),
    }
}

/// What tells the peers of flows without sockets that these are over.
fn resets() -> Option<Resets> {
    Resets::open()
        .inspect_err(|e| tracing::warn!("flows that are ended here end without a RST: {e}"))
        .ok()
}

fn words(things: impl Iterator<Item: Display>) -> String {
    let words: Vec<String> = things.map(|thing| thing.to_string()).collect();
    words.join(" ")
}

fn accept_proxy(listener: &config::Listener) -> Result<Option<AcceptProxy>, RunError> {
    if !listener.accept_proxy {
        return Ok(None);
    }
    let limits = HeaderLimits::v2_len(listener.max_header.get() as usize)?;
    Ok(Some(AcceptProxy {
        trusted: listener.trust.iter().copied().collect(),
        decoder: Decoder::new(limits),
        timeout: listener.header_timeout.get(),
    }))
}

/// The pools of a configuration; what is known of a server of `before` stays known.
async fn pools(
    config: &Config,
    resolver: &Resolver,
    before: &Pools,
    moved: &Arc<Notify>,
) -> Result<Pools, PoolError> {
    // All at once: a name server that does not answer is waited for once.
    let starting = config.pools.iter().map(async |(name, settings)| {
        let known = before.get(name).map(|pool| &**pool);
        let pool = Pool::start(name, settings, resolver, known, Arc::clone(moved)).await?;
        Ok((name.clone(), pool))
    });
    Ok(try_join_all(starting).await?.into_iter().collect())
}

/// The addresses of all servers.
fn addresses(pools: &Pools) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = pools.values().flat_map(|pool| pool.addresses()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Every pool has a server that there is a route to, and none is on this host whose clients' addresses it is
/// to see.
async fn reachable(netlink: &Netlink, config: &Config, pools: &Pools) -> Result<(), RunError> {
    for (name, pool) in pools {
        let mut listeners = config.listeners.iter();
        let steer = listeners.any(|(other, l)| l.steers() && config.pool_of(other, l) == name);
        let (mut unreachable, mut some) = (None, false);
        for upstream in pool.addresses() {
            match netlink.route(upstream).await {
                Ok(Route::Local) if steer => return Err(RunError::LocalUpstream(upstream)),
                Ok(Route::Local | Route::Via(_)) => some = true,
                Err(e) => {
                    tracing::warn!("upstream address {upstream}: {e}");
                    unreachable = Some(e);
                }
            }
        }
        if let (Some(e), false) = (unreachable, some) {
            return Err(e.into());
        }
    }
    Ok(())
}

/// How many flows these descriptors are enough for: two sockets a flow, and some for the daemon
/// itself. (A transfer that finds none for a pipe goes without.)
fn flows_for(descriptors: usize) -> usize {
    (descriptors.saturating_sub(64) / 2).clamp(1, Semaphore::MAX_PERMITS)
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
