//! What the daemon has in the kernel: programs, tables, interfaces; set up, tended and removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use proxy_core::address::Upstream;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::bpf::attach;
use crate::bpf::forwards::{Events, ForwardTable};
use crate::bpf::pins::{self, Elders, Pins};
use crate::bpf::sockmap::{SockmapError, kernel_version};
use crate::bpf::{self, Bpf};
use crate::cli::run::{MismatchArg, RunArgs};
use crate::daemon::RunError;
use crate::forwarded::Forwarded;
use crate::interfaces::{Downstream, Interfaces};
use crate::listener::{self, Listening};
use crate::netlink::conntrack::Conntrack;
use crate::netlink::{self, Changes, Netlink};
use crate::paths::Paths;
use crate::splice::{Choice, Engines, EnginesError, PacketEngine};
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
    bpf: Result<Bpf, String>,
    tc: Option<Tc>,
    changes: Changes,
    lock: Option<pins::Lock>,
}

/// What there is where the tc programs run.
struct Tc {
    interfaces: Interfaces,
    steering: Arc<Steering>,
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

impl Kernel {
    /// Sets up what these arguments need, and what is `inherited`. `steer`: backends see the clients'
    /// addresses.
    ///
    /// A daemon that takes over shares what is pinned with the other until [`Self::take_over`].
    pub async fn set_up(
        args: &RunArgs,
        steer: bool,
        upstreams: &[Upstream],
        netlink: &Netlink,
        forwarded: &Forwarded,
        inherited: Option<Inherited>,
    ) -> Result<Self, RunError> {
        let with = |bpf, lock| Self {
            bpf,
            tc: None,
            changes: futures_util::stream::pending().boxed(),
            lock,
        };
        let inherits = inherited.is_some();
        let forwards = matches!(args.splice, Choice::Auto | Choice::Packet)
            || inherited.as_ref().is_some_and(|theirs| theirs.steers);
        if !steer && args.splice == Choice::Copy && !inherits {
            return Ok(with(Err("not needed".to_owned()), None));
        }
        let optional = !steer && args.splice == Choice::Auto && !inherits;
        let mut kernel = match Self::load(args, inherited) {
            Ok((bpf, lock)) => with(Ok(bpf), Some(lock)),
            // Without BPF one can still copy.
            Err(e) if optional => return Ok(with(Err(e.to_string()), None)),
            Err(e) => return Err(e),
        };
        if !steer && !forwards {
            return Ok(kernel);
        }
        let attached = kernel.attach_tc(args, forwards, upstreams, netlink, forwarded);
        match attached.await {
            Ok(()) => Ok(kernel),
            Err(e) if optional => {
                tracing::warn!("the engine packet is not used: {e}");
                Ok(kernel)
            }
            Err(e) => {
                kernel.tear_down().await?;
                Err(e)
            }
        }
    }

    fn load(args: &RunArgs, inherited: Option<Inherited>) -> Result<(Bpf, pins::Lock), RunError> {
        let pins = Pins::new(&args.bpffs.bpffs, &args.instance.instance);
        let (lock, filters) = match inherited {
            None => {
                pins.create()?;
                (pins.lock()?, None)
            }
            Some(theirs) => (pins.lock_with(theirs.folder)?, theirs.filters),
        };
        let log_level = tracing::level_filters::LevelFilter::current();
        let options = bpf::Options {
            max_flows: args.max_flows,
            log_level,
        };
        let mut bpf = Bpf::load(pins, &options)?;
        if let Some(filters) = filters {
            bpf.claim_filters(filters);
        }
        bpf.forward_log();
        Ok((bpf, lock))
    }

    async fn attach_tc(
        &mut self,
        args: &RunArgs,
        forwards: bool,
        upstreams: &[Upstream],
        netlink: &Netlink,
        forwarded: &Forwarded,
    ) -> Result<(), RunError> {
        let bpf = match &mut self.bpf {
            Ok(bpf) => bpf,
            Err(reason) => return Err(RunError::NoBpf(reason.clone())),
        };
        let table = bpf.forwards()?;
        let forwards = forwards || !table.records().is_empty();
        let downstream = forwards.then(|| Downstream {
            listen: args.listen.ip().to_canonical(),
            named: args.downstream_interface.clone(),
        });
        let mut interfaces = Interfaces::new(
            args.upstream_interface.clone(),
            upstreams.to_vec(),
            downstream,
            args.attach,
        );
        interfaces.attach(bpf, netlink).await?;
        let table = Arc::new(table);
        let paths = Arc::new(Paths::new(netlink.clone()));
        paths.changed(interfaces.attached());
        let steering = Steering::new(
            bpf.flow_table()?,
            Arc::clone(&table),
            args.max_flows as usize,
        );
        match netlink::changes() {
            Ok(changes) => self.changes = changes,
            Err(e) => tracing::warn!("link and route changes are not followed: {e}"),
        }
        self.tc = Some(Tc {
            interfaces,
            steering,
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
    pub fn source(&self, steer: bool, mismatch: MismatchArg) -> Source {
        let steering = self.tc.as_ref().map(|tc| Arc::clone(&tc.steering));
        match steering {
            Some(steering) if steer => Source::Client {
                steering,
                mismatch_proxy: mismatch == MismatchArg::Proxy,
            },
            steering => Source::Proxy { steering },
        }
    }

    /// The engines that `choice` allows here.
    pub fn engines(&mut self, choice: Choice) -> Result<Engines, EnginesError> {
        let engines = Engines::new(choice, kernel_version(), || match &mut self.bpf {
            Ok(bpf) => bpf.sockmap(),
            Err(reason) => Err(SockmapError::Object(reason.clone())),
        })?;
        let packet = match (&self.tc, choice) {
            (Some(tc), Choice::Auto | Choice::Packet) => Some(Arc::new(PacketEngine {
                table: Arc::clone(&tc.table),
                paths: Arc::clone(&tc.paths),
                conntrack: Conntrack::new(),
                wire_clock: bpf::timestamp_base(),
            })),
            _ => None,
        };
        Ok(engines.with_packet(packet))
    }

    /// Lets clients send no larger segments than the way to the backends takes.
    pub async fn clamp_segments(&self, listener: &impl AsFd, netlink: &Netlink) {
        let Some(tc) = &self.tc else { return };
        if let Some(largest) = tc.interfaces.largest_segment(netlink).await
            && let Err(e) = listener::clamp_segments(listener, largest)
        {
            tracing::warn!("clients may send segments larger than {largest} bytes: {e}");
        }
    }

    /// Forgets flows that are over, and follows link and route changes; never returns.
    pub async fn tend(&mut self, netlink: &Netlink, listener: Option<&Listening>) {
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
                    if let Some(listener) = listener {
                        self.clamp_segments(listener, netlink).await;
                    }
                }
            }
        }
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
        if self.tc.is_some() {
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
