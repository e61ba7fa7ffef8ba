//! Every map. Sizes are defaults: the loader sets those that are configured.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SockHash, SockMap};
use aya_ebpf::macros::btf_map;
use proxy_common::flow::{Connecting, Forward, Meta, Record, SteeringCounters, Translation, Tuple};
use proxy_common::lookup::{Place, RANGES_LIMIT, Range};
use proxy_common::splice::{Gate, Splice};

use crate::forward::Scratch;

/// Two entries a flow; allocated as flows come, since the limit is meant to be generous.
#[btf_map]
pub static FLOWS: HashMap<Tuple, Translation, 524_288, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Upstream sockets about to connect, by cookie.
#[btf_map]
pub static CONNECTING: HashMap<u64, Connecting, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// What the packets of spliced flows become: two entries a flow of the engine `packet`.
#[btf_map]
pub static FORWARDS: HashMap<Tuple, Forward, 524_288, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// What an adopting daemon must know of these flows; the programs do not use it.
#[btf_map]
pub static RECORDS: HashMap<u64, Record, 262_144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Flows of which a side has ended, or that the daemon has ended and that are not quiet.
#[btf_map]
pub static EVENTS: RingBuf<u64, { 256 * 1024 }> = RingBuf::new();

/// The header that this CPU is at work on.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The layout of the pinned maps; written by the daemon that pins them.
#[btf_map]
pub static META: Array<Meta, 1> = Array::new();

/// What the steering programs count.
#[btf_map]
pub static COUNTERS: PerCpuArray<SteeringCounters, 1> = PerCpuArray::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(field: impl FnOnce(&mut SteeringCounters) -> &mut u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the map's value, of this CPU alone; tc programs are not preempted by one another
        // on a CPU.
        *field(unsafe { &mut *counters }) += 1;
    }
}

/// Sockets that the sockmap engine sends to, by cookie. It has no programs of its own: both sockets
/// of a flow are in it before either is in `SOURCES`, so a redirect always finds its target.
#[btf_map]
pub static TARGETS: SockHash<u64, 131_072> = SockHash::new();

/// Sockets that the sockmap engine's programs run for, by cookie.
#[btf_map]
pub static SOURCES: SockHash<u64, 131_072> = SockHash::new();

/// The directions of spliced flows, by cookie of the source.
#[btf_map]
pub static SPLICES: HashMap<u64, Splice, 131_072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What userspace tells the programs about each direction; `Splice::gate` is the index.
#[btf_map]
pub static GATES: Array<Gate, 131_072> = Array::new();

/// Ranges of ports that are listened on, the narrowest first. Written before the program is attached, and
/// never after.
#[btf_map]
pub static RANGES: Array<Range, { RANGES_LIMIT as usize }> = Array::new();

/// The listening socket of each range.
#[btf_map]
pub static SOCKETS: SockMap<{ RANGES_LIMIT as usize }> = SockMap::new();

/// Where within the ranges somebody listens on a port of its own.
#[btf_map]
pub static LISTENING: HashMap<Place, u32, 16_384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
