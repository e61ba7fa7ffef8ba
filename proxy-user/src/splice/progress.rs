//! What is known of a flow while it runs.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use proxy_common::flow::Tuple;

use super::{EngineKind, Fallback};
use crate::bpf::forwards::ForwardTable;
use crate::bpf::sockmap::Sockmap;
use crate::lock::lock;

/// Shared between a flow's task and whoever wants to know.
#[derive(Debug, Default)]
pub struct Progress {
    up: Carried,
    down: Carried,
    state: AtomicU8,
    engine: OnceLock<EngineKind>,
    fallback: OnceLock<Fallback>,
}

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not yet handed to an engine.
    Connecting,
    /// Both sides may send.
    Open,
    /// The downstream side has ended its stream, and the upstream side knows.
    DownstreamClosed,
    /// The upstream side has ended its stream, and the downstream side knows.
    UpstreamClosed,
    /// Over.
    Closed,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Connecting,
        Self::Open,
        Self::DownstreamClosed,
        Self::UpstreamClosed,
        Self::Closed,
    ];

    /// Stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open => "open",
            Self::DownstreamClosed => "downstream-closed",
            Self::UpstreamClosed => "upstream-closed",
            Self::Closed => "closed",
        }
    }
}

impl Progress {
    /// Bytes of payload sent to the backend so far, by whichever means.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.up.bytes()
    }

    /// Bytes of payload sent to the client so far.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.down.bytes()
    }

    /// Who moves the bytes, once that is decided.
    #[must_use]
    pub fn engine(&self) -> Option<EngineKind> {
        self.engine.get().copied()
    }

    /// Why the flow did not get a better engine than it has.
    #[must_use]
    pub fn fallback(&self) -> Option<Fallback> {
        self.fallback.get().copied()
    }

    /// Payload that went upstream before the splice: what came with the header.
    pub fn sent_up(&self, bytes: u64) {
        self.up.add(bytes);
    }

    /// Where the flow stands.
    #[must_use]
    pub fn state(&self) -> State {
        let state = usize::from(self.state.load(Relaxed));
        State::ALL.get(state).copied().unwrap_or(State::Closed)
    }

    /// It is at that state now.
    pub fn enter(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }

    /// The engine is decided; later calls change nothing.
    pub fn carried_by(&self, engine: EngineKind) {
        let _ = self.engine.set(engine);
    }

    /// Why it did not get a better engine; later calls change nothing.
    pub fn fell_back(&self, fallback: Fallback) {
        let _ = self.fallback.set(fallback);
    }

    /// What the client's side sends.
    pub fn up(&self) -> &Carried {
        &self.up
    }

    /// What the backend sends.
    pub fn down(&self) -> &Carried {
        &self.down
    }
}

/// Bytes of one direction: those that userspace moved, and those that the kernel moves.
#[derive(Debug, Default)]
pub struct Carried {
    userspace: AtomicU64,
    kernel: Mutex<Option<Kernel>>,
}

/// Where the kernel's count is.
#[derive(Debug)]
enum Kernel {
    /// Bytes that left the socket of cookie `source`.
    Redirected { sockmap: Arc<Sockmap>, source: u64 },
    /// Bytes in packets of the tuple `key`. Those `handed_over` by userspace are the first of them,
    /// whether or not a later packet has made the programs count them too.
    Forwarded {
        table: Arc<ForwardTable>,
        flow: u64,
        key: Tuple,
        handed_over: u64,
    },
}

impl Kernel {
    fn bytes(&self) -> u64 {
        match self {
            Self::Redirected { sockmap, source } => sockmap
                .splice(*source)
                .map_or(0, |splice| splice.redirected),
            Self::Forwarded {
                table,
                flow,
                key,
                handed_over,
            } => table
                .get(*flow, key)
                .map_or(0, |entry| entry.bytes)
                .max(*handed_over),
        }
    }
}

impl Carried {
    pub(super) fn add(&self, bytes: u64) {
        self.userspace.fetch_add(bytes, Relaxed);
    }

    /// From now on the kernel moves bytes of this direction too.
    pub(super) fn attach(&self, sockmap: Arc<Sockmap>, source: u64) {
        *self.kernel() = Some(Kernel::Redirected { sockmap, source });
    }

    /// From now on this direction's packets are forwarded.
    pub fn forwarded(&self, table: Arc<ForwardTable>, flow: u64, key: Tuple) {
        *self.kernel() = Some(Kernel::Forwarded {
            table,
            flow,
            key,
            handed_over: 0,
        });
    }

    /// Of what is forwarded, userspace has handed over so many bytes itself.
    pub fn handed_over(&self, bytes: u64) {
        if let Some(Kernel::Forwarded { handed_over, .. }) = &mut *self.kernel() {
            *handed_over = bytes;
        }
    }

    /// The kernel's count is about to go; what it was is kept.
    pub fn detach(&self) {
        let mut kernel = self.kernel();
        if let Some(kernel) = kernel.take() {
            self.add(kernel.bytes());
        }
    }

    fn bytes(&self) -> u64 {
        // Under the lock, lest `detach` is seen half done.
        let kernel = self.kernel();
        self.userspace.load(Relaxed) + kernel.as_ref().map_or(0, Kernel::bytes)
    }

    fn kernel(&self) -> MutexGuard<'_, Option<Kernel>> {
        lock(&self.kernel)
    }
}
