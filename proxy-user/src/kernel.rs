//! What the daemon has in the kernel: programs, tables, interfaces; set up, tended and removed.

use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::bpf::attach::{self, AttachMode};
use crate::bpf::forwards::{Events, ForwardTable};
use crate::bpf::pins::{self, Elders, Pins};
use crate::bpf::sockmap::{Sockmap, SockmapError, kernel_version};
use crate::bpf::tables::Counters;
use crate::bpf::{self, Bpf};
use crate::config::{Config, Listener, Mismatch};
use crate::daemon::RunError;
use crate::daemon::shared::InKernel;
use crate::forwarded::Forwarded;
use crate::interfaces::{Downstream, Interfaces};
use crate::netlink::conntrack::Conntrack;
use crate::netlink::{self, Changes, Netlink};
use crate::paths::Paths;
use crate::splice::{Choice, Engines, EnginesError, GracePeriods, PacketEngine};
use crate::steering::Steering;
use crate::sys;
use crate::upstream::Source;

/// How often lingering flow-table entries are looked at.
const SWEEP: Duration = Duration::from_millis(500);

/// How long the kernel gets at the end to close the last sockets in their clients' names.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How often the programs on the interfaces are looked at: nothing tells when somebody removes them.
const VERIFY: Duration = Duration::from_secs(10);

/// How long link and route changes may go on before they are acted upon; they come in bursts.
const SETTLE: Duration = Duration::from_millis(100);

/// What the daemon has in the kernel; nothing, where it neither steers nor splices there.
pub struct Kernel {
    pins: Pins,
    bpf: Result<Bpf, String>,
    /// Once a listener has asked for it.
    sockmap: Option<Result<Arc<Sockmap>, Arc<SockmapError>>>,
    tc: Option<Tc>,
    changes: Changes,
    lock: Option<pins::Lock>,
}

/// What there is where the tc programs run.
struct Tc {
    interfaces: Interfaces,
    /// Clients' packets are forwarded, or were.
    forwards: bool,
    steering: Arc<Steering>,
    counters: Arc<Counters>,
    table: Arc<ForwardTable>,
    paths: Arc<Paths>,
    /// Told of changed routes.
    forwarded: Forwarded,
}

/// What the keeper of forwarded flows needs of the kernel.
pub struct ForwardedParts {
    /// The tables.
    pub table: Arc<ForwardTable>,
    /// What the programs tell.
    pub events: Events,
    /// Interfaces and routes.
    pub paths: Arc<Paths>,
    /// Where the flows' addresses are reserved.
    pub steering: Arc<Steering>,
}

/// What a daemon that takes over gets from the other.
#[derive(Debug)]
pub struct Inherited {
    /// The locked folder of the pins.
    pub folder: OwnedFd,
    /// The claim on the instance's filters, if it has any.
    pub filters: Option<OwnedFd>,
    /// There may be flows in the tables.
    pub steers: bool,
}

/// What a configuration needs of the kernel.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Backends of some listener see the clients' addresses.
    pub steer: bool,
    /// The engines of the listeners.
    pub engines: Vec<Choice>,
    /// Where the listeners are.
    pub downstream: Vec<Downstream>,
    /// Flows that the tables have room for.
    pub max_flows: u32,
    /// The interface towards the backends, if it is named.
    pub upstream_interface: Option<String>,
    /// How programs are put on interfaces.
    pub attach: AttachMode,
}

impl Needs {
    /// Those of `config`.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let listeners = || config.listeners.values();
        let mut downstream = Vec::new();
        for listener in listeners() {
            for address in &listener.listen {
                let place = Downstream {
                    listen: address.ip.to_canonical(),
                    named: listener.downstream_interface.clone(),
                };
                if !downstream.contains(&place) {
                    downstream.push(place);
                }
            }
        }
        Self {
            steer: listeners().any(Listener::steers),
            engines: listeners().map(|listener| listener.splice).collect(),
            downstream,
            max_flows: config.daemon.max_flows.get(),
            upstream_interface: config.daemon.upstream_interface.clone(),
            attach: config.daemon.attach,
        }
    }

    /// Where clients come from, if their packets are to be forwarded.
    fn clients(&self, forwards: bool) -> Vec<Downstream> {
        if forwards {
            self.downstream.clone()
        } else {
            Vec::new()
        }
    }

    fn has(&self, choices: &[Choice]) -> bool {
        self.engines.iter().any(|engine| choices.contains(engine))
    }

    /// Packets are forwarded.
    fn forward(&self) -> bool {
        self.has(&[Choice::Auto, Choice::Packet])
    }

    /// There is something that cannot be done without BPF.
    fn insist(&self) -> bool {
        self.steer || self.has(&[Choice::Packet, Choice::Sockmap])
    }
}

impl Kernel {
    /// Has nothing yet.
    #[must_use]
    pub fn new(pins: Pins) -> Self {
        Self {
            pins,
            bpf: Err("not needed".to_owned()),
            sockmap: None,
            tc: None,
            changes: futures_util::stream::pending().boxed(),
            lock: None,
        }
    }

    /// Sets up what is needed and is not there yet, and what is `inherited`; `upstreams` are the backends.
    /// After an error there may be more than before: it goes with [`Self::tear_down`].
    ///
    /// A daemon that takes over shares what is pinned with the other until [`Self::take_over`].
    pub async fn set_up(
        &mut self,
        needs: &Needs,
        upstreams: Vec<IpAddr>,
        netlink: &Netlink,
        forwarded: &Forwarded,
        inherited: Option<Inherited>,
    ) -> Result<(), RunError> {
        let inherits = inherited.is_some();
        let tables = inherited.as_ref().is_some_and(|theirs| theirs.steers);
        if !needs.insist() && !needs.forward() && !inherits && self.bpf.is_err() {
            return Ok(());
        }
        let optional = !needs.insist() && !inherits;
        if self.bpf.is_err() {
            match self.load(needs, inherited) {
                Ok(()) => {}
                // Without BPF one can still copy.
                Err(e) if optional => {
                    self.bpf = Err(e.to_string());
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        if !needs.steer && !needs.forward() && !tables && self.tc.is_none() {
            return Ok(());
        }
        let attached = self.attach_tc(needs, tables, upstreams, netlink, forwarded);
        match attached.await {
            Ok(()) => Ok(()),
            Err(e) if optional => {
                tracing::warn!("the engine packet is not used: {e}");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn load(&mut self, needs: &Needs, inherited: Option<Inherited>) -> Result<(), RunError> {
        let (lock, filters) = match inherited {
            None => {
                self.pins.create()?;
                (self.pins.lock()?, None)
            }
            Some(theirs) => (self.pins.lock_with(theirs.folder)?, theirs.filters),
        };
        let log_level = tracing::level_filters::LevelFilter::current();
        let options = bpf::Options {
            max_flows: needs.max_flows,
            log_level,
        };
        let mut bpf = Bpf::load(self.pins.clone(), &options)?;
        if let Some(filters) = filters {
            bpf.claim_filters(filters);
        }
        bpf.forward_log();
        self.bpf = Ok(bpf);
        self.lock = Some(lock);
        Ok(())
    }

    async fn attach_tc(
        &mut self,
        needs: &Needs,
        tables: bool,
        upstreams: Vec<IpAddr>,
        netlink: &Netlink,
        forwarded: &Forwarded,
    ) -> Result<(), RunError> {
        let bpf = match &mut self.bpf {
            Ok(bpf) => bpf,
            Err(reason) => return Err(RunError::NoBpf(reason.clone())),
        };
        if let Some(tc) = &mut self.tc {
            tc.forwards |= needs.forward();
            tc.interfaces.between(needs.clients(tc.forwards), upstreams);
            tc.interfaces.attach(bpf, netlink).await?;
            tc.paths.changed(tc.interfaces.attached());
            return Ok(());
        }
        let table = bpf.forwards()?;
        let forwards = needs.forward() || tables || !table.records().is_empty();
        let mut interfaces = Interfaces::new(needs.upstream_interface.clone(), needs.attach);
        interfaces.between(needs.clients(forwards), upstreams);
        interfaces.attach(bpf, netlink).await?;
        let table = Arc::new(table);
        let paths = Arc::new(Paths::new(netlink.clone()));
        paths.changed(interfaces.attached());
        let steering = Steering::new(
            bpf.flow_table()?,
            Arc::clone(&table),
            needs.max_flows as usize,
        );
        match netlink::changes() {
            Ok(changes) => self.changes = changes,
            Err(e) => tracing::warn!("link and route changes are not followed: {e}"),
        }
        self.tc = Some(Tc {
            interfaces,
            forwards,
            steering,
            counters: Arc::new(bpf.counters()?),
            table,
            paths,
            forwarded: forwarded.clone(),
        });
        Ok(())
    }

    /// What the keeper of forwarded flows needs; `None` where there can be none. To be called once,
    /// when no other daemon keeps them any more.
    pub fn forwarded_parts(&mut self) -> Result<Option<ForwardedParts>, RunError> {
        let (Some(tc), Ok(bpf)) = (&self.tc, &mut self.bpf) else {
            return Ok(None);
        };
        Ok(Some(ForwardedParts {
            table: Arc::clone(&tc.table),
            events: bpf.events()?,
            paths: Arc::clone(&tc.paths),
            steering: Arc::clone(&tc.steering),
        }))
    }

    /// What the metrics read of it; `None`: the tc programs do not run.
    #[must_use]
    pub fn in_kernel(&self) -> Option<InKernel> {
        let tc = self.tc.as_ref()?;
        Some(InKernel {
            steering: Arc::clone(&tc.steering),
            counters: Arc::clone(&tc.counters),
        })
    }

    /// The locked folder of the pins, if there is one.
    #[must_use]
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref()?.folder()
    }

    /// Daemons that were taken over and may still have flows.
    #[must_use]
    pub fn elders(&self) -> Option<Elders> {
        Some(self.lock.as_ref()?.elders())
    }

    /// The claim on the instance's filters, if there are any.
    #[must_use]
    pub fn filters(&self) -> Option<BorrowedFd<'_>> {
        self.bpf.as_ref().ok()?.filters()
    }

    /// May there be flows in the tables?
    #[must_use]
    pub fn steers(&self) -> bool {
        self.tc.is_some()
    }

    /// The other daemon has let go: what is pinned is this one's.
    pub fn take_over(&mut self) {
        if let Some(lock) = &mut self.lock {
            lock.make_ours();
        }
    }

    /// Lets go of what is pinned: it is another daemon's now, that of our last sockets too.
    pub fn hand_over(&mut self) {
        if let Some(lock) = &mut self.lock {
            lock.release();
        }
        if let Ok(bpf) = &mut self.bpf {
            bpf.release_filters();
        }
    }

    fn is_ours(&self) -> bool {
        self.lock.as_ref().is_some_and(pins::Lock::is_ours)
    }

    /// Whose address backends see, and where that is entered.
    #[must_use]
    pub fn source(&self, steer: bool, mismatch: Mismatch) -> Source {
        let steering = self.tc.as_ref().map(|tc| Arc::clone(&tc.steering));
        match steering {
            Some(steering) if steer => Source::Client {
                steering,
                mismatch_proxy: mismatch == Mismatch::Proxy,
            },
            steering => Source::Proxy { steering },
        }
    }

    /// The engines that `choice` allows here.
    pub fn engines(&mut self, choice: Choice) -> Result<Engines, EnginesError> {
        let (sockmap, bpf) = (&mut self.sockmap, &mut self.bpf);
        let engines = Engines::new(choice, kernel_version(), || {
            let load = || match bpf {
                Ok(bpf) => bpf.sockmap().map(Arc::new).map_err(Arc::new),
                Err(reason) => Err(Arc::new(SockmapError::Object(reason.clone()))),
            };
            // Once: what it needs of the object is taken by the first.
            sockmap.get_or_insert_with(load).clone()
        })?;
        let packet = match (&self.tc, choice) {
            (Some(tc), Choice::Auto | Choice::Packet) => Some(Arc::new(PacketEngine {
                table: Arc::clone(&tc.table),
                paths: Arc::clone(&tc.paths),
                conntrack: Conntrack::new(),
                grace_periods: GracePeriods::start(),
                wire_clock: bpf::timestamp_base(),
            })),
            _ => None,
        };
        Ok(engines.with_packet(packet))
    }

    /// The largest TCP segment that clients may send, so that it fits on the way to every backend; in
    /// bytes, `None` where that does not matter or is not known.
    pub async fn largest_segment(&self, netlink: &Netlink) -> Option<u32> {
        let tc = self.tc.as_ref().filter(|tc| tc.forwards)?;
        tc.interfaces.largest_segment(netlink).await
    }

    /// Forgets flows that are over, and follows link and route changes; never returns.
    /// `clamp` is told of the [largest segment](Self::largest_segment).
    pub async fn tend(&mut self, netlink: &Netlink, clamp: impl Fn(u32)) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes come in bursts: the first sets the time at which all are acted upon.
        let mut due = Instant::now() + VERIFY;
        // Perhaps, while nobody looked.
        let mut changed = true;
        loop {
            tokio::select! {
                _ = sweep.tick() => {
                    self.sweep().await;
                }
                Some(()) = self.changes.next() => {
                    changed = true;
                    due = due.min(Instant::now() + SETTLE);
                }
                () = sleep_until(due) => {
                    due = Instant::now() + VERIFY;
                    self.attach(netlink, std::mem::take(&mut changed)).await;
                    if let Some(largest) = self.largest_segment(netlink).await {
                        clamp(largest);
                    }
                }
            }
        }
    }

    /// The backends have other addresses now.
    pub async fn lead_to(&mut self, upstreams: Vec<IpAddr>, netlink: &Netlink) {
        if let Some(tc) = &mut self.tc {
            tc.interfaces.lead_to(upstreams);
        }
        self.attach(netlink, true).await;
    }

    async fn attach(&mut self, netlink: &Netlink, changed: bool) {
        let ours = self.is_ours();
        if let (Some(tc), Ok(bpf)) = (&mut self.tc, &mut self.bpf) {
            let before = tc.interfaces.attached();
            if ours && let Err(e) = tc.interfaces.attach(bpf, netlink).await {
                tracing::warn!("following the interfaces: {e}");
            }
            if changed || tc.interfaces.attached() != before {
                tc.paths.changed(tc.interfaces.attached());
                tc.forwarded.routes_changed();
            }
        }
    }

    /// Forgets flows that are over; returns how many are not quite.
    async fn sweep(&self) -> usize {
        let Some(steering) = self.tc.as_ref().map(|tc| Arc::clone(&tc.steering)) else {
            return 0;
        };
        // A system call or two a flow: not for the thread that accepts.
        spawn_blocking(move || steering.sweep(sys::monotonic_ns()))
            .await
            .unwrap_or(0)
    }

    /// Removes everything from the kernel, once the last sockets have closed; nothing that is another
    /// daemon's.
    pub async fn tear_down(self) -> Result<(), RunError> {
        if !self.is_ours() {
            return Ok(());
        }
        // Entries of a flow whose backend never closes do not hold up the end.
        let closed = async {
            while self.sweep().await > 0 {
                sleep(SWEEP / 5).await;
            }
        };
        let _ = timeout(LAST_WORDS, closed).await;
        let Ok(bpf) = self.bpf else { return Ok(()) };
        if let Some(tc) = &self.tc {
            match tc.counters.sum() {
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
