//! The engine `sockmap`'s programs and maps behind typed methods.
//!
//! Names as in `proxy-ebpf/src/maps.rs`. `SPLICES` may be pinned for inspection; the sockhashes and
//! the gates end with the daemon, and so do the flows.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use aya::maps::{Array, HashMap, MapData, MapError, SockHash};
use aya::programs::{Program, ProgramError, SkSkb, SocketFilter};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use proxy_common::splice::{Gate, KernelOffsets, Splice};
use thiserror::Error;

use super::btf::{Btf, BtfError};
use crate::lock::lock;
use crate::sys::splice::attach_filter;

const BPF_NOEXIST: u64 = 1;

/// Why the engine cannot be used on this host.
#[derive(Debug, Error)]
pub enum SockmapError {
    /// There is no loaded object to take it from; why not.
    #[error("{0}")]
    Object(String),
    /// The kernel's structures are not known.
    #[error(transparent)]
    Btf(BtfError),
    /// The embedded object lacks something.
    #[error("the embedded BPF object has no {0}: rebuild with `cargo xtask build`")]
    Missing(&'static str),
    /// A program was refused.
    #[error("the kernel refuses the BPF program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel or its verifier said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be used.
    #[error("BPF map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What went wrong.
        #[source]
        source: Box<MapError>,
    },
}

/// Globals of the object, to be applied before it is loaded.
#[derive(Debug)]
pub struct Globals {
    offsets: Result<KernelOffsets, BtfError>,
    /// What the object gets: zeroes where the offsets are not known, and the engine is not used.
    value: KernelOffsets,
}

impl Globals {
    /// Reads the running kernel's BTF.
    #[must_use]
    pub fn from_kernel() -> Self {
        let offsets = Btf::of_kernel().and_then(|btf| {
            Ok(KernelOffsets {
                tcp_copied_seq: btf.offset("tcp_sock", "copied_seq")?,
                tcp_rcv_nxt: btf.offset("tcp_sock", "rcv_nxt")?,
                tcp_bytes_acked: btf.offset("tcp_sock", "bytes_acked")?,
                skb_seq: btf.offset("sk_buff", "cb")? + btf.offset("tcp_skb_cb", "seq")?,
                skb_truesize: btf.offset("sk_buff", "truesize")?,
            })
        });
        let value = *offsets.as_ref().unwrap_or(&KernelOffsets::default());
        Self { offsets, value }
    }

    /// Are the kernel's structures known?
    pub fn known(&self) -> Result<(), &BtfError> {
        self.offsets.as_ref().map(|_| ())
    }

    /// Sets them in the object that `loader` will load.
    pub fn apply<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global("KERNEL_OFFSETS", &self.value, true);
    }
}

/// The running kernel's version as (major, minor, patch), distributions' own numbering undone.
#[must_use]
pub fn kernel_version() -> Option<(u32, u32, u32)> {
    let code = KernelVersion::current().ok()?.code();
    // LINUX_VERSION_CODE: the patch is capped at 255.
    Some((code >> 16, (code >> 8) & 0xff, code & 0xff))
}

/// `TARGETS`, `SOURCES`, `SPLICES` and `GATES`, with the programs attached.
///
/// The locks are only for the borrow checker's sake: each call is one system call on a map that the
/// kernel itself guards.
pub struct Sockmap {
    targets: Mutex<SockHash<MapData, u64>>,
    sources: Mutex<SockHash<MapData, u64>>,
    splices: Mutex<HashMap<MapData, u64, Splice>>,
    gates: Mutex<Array<MapData, Gate>>,
    free_gates: Mutex<Vec<u32>>,
    filter: OwnedFd,
}

impl fmt::Debug for Sockmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockmap").finish_non_exhaustive()
    }
}

impl Sockmap {
    /// Loads and attaches the program. `ebpf` must outlive what is returned, and have been loaded
    /// with `globals`.
    pub fn load(ebpf: &mut Ebpf, globals: Globals) -> Result<Self, SockmapError> {
        globals.offsets.map_err(SockmapError::Btf)?;
        let sources: SockHash<_, u64> = take(ebpf, "SOURCES")?;
        let program = "splice_verdict";
        let verdict: &mut SkSkb = program_of(ebpf, program)?;
        verdict
            .load()
            .and_then(|()| verdict.attach(sources.fd()).map(drop))
            .map_err(|source| refused(program, source))?;
        let program = "splice_filter";
        let filter: &mut SocketFilter = program_of(ebpf, program)?;
        let filter = filter
            .load()
            .and_then(|()| Ok(filter.fd()?.as_fd().try_clone_to_owned()?))
            .map_err(|source| refused(program, source))?;
        let gates: Array<_, Gate> = take(ebpf, "GATES")?;
        Ok(Self {
            targets: Mutex::new(take(ebpf, "TARGETS")?),
            sources: Mutex::new(sources),
            splices: Mutex::new(take(ebpf, "SPLICES")?),
            free_gates: Mutex::new((0..gates.len()).rev().collect()),
            gates: Mutex::new(gates),
            filter,
        })
    }

    /// Makes a socket one that can be redirected to.
    pub fn insert_target(&self, cookie: u64, socket: &impl AsFd) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        lock(&self.targets)
            .insert(cookie, fd, BPF_NOEXIST)
            .map_err(errno)
    }

    /// The opposite. What is still on its way to the socket is lost.
    pub fn remove_target(&self, cookie: u64) {
        // ENOENT is no error: a closed socket leaves by itself.
        let _ = lock(&self.targets).remove(&cookie);
    }

    /// Runs the programs for what arrives on a socket from now on.
    pub fn insert_source(&self, cookie: u64, socket: &impl AsFd) -> io::Result<()> {
        attach_filter(socket, &self.filter)?;
        let fd = socket.as_fd().as_raw_fd();
        lock(&self.sources)
            .insert(cookie, fd, BPF_NOEXIST)
            .map_err(errno)
    }

    /// Enters what the programs do for a source that is not inserted yet: where it goes, the
    /// position of the target's next byte, and the state of the gate, whose index it returns.
    pub fn insert_splice(
        &self,
        cookie: u64,
        target: u64,
        base: u64,
        state: Gate,
    ) -> io::Result<u32> {
        let gate = lock(&self.free_gates)
            .pop()
            .ok_or(io::ErrorKind::StorageFull)?;
        let splice = Splice {
            target,
            base,
            epoch: base,
            gate,
            ..Splice::default()
        };
        let entered = self.set_gate(gate, state).and_then(|()| {
            lock(&self.splices)
                .insert(cookie, splice, BPF_NOEXIST)
                .map_err(errno)
        });
        if entered.is_err() {
            lock(&self.free_gates).push(gate);
        }
        entered.map(|()| gate)
    }

    /// Forgets a source that is closed or was never inserted.
    pub fn remove_splice(&self, cookie: u64, gate: u32) {
        if lock(&self.splices).remove(&cookie).is_ok() {
            lock(&self.free_gates).push(gate);
        }
    }

    /// What the programs have done for a source.
    #[must_use]
    pub fn splice(&self, cookie: u64) -> Option<Splice> {
        lock(&self.splices).get(&cookie, 0).ok()
    }

    /// Tells the programs what userspace has done.
    pub fn set_gate(&self, index: u32, gate: Gate) -> io::Result<()> {
        lock(&self.gates).set(index, gate, 0).map_err(errno)
    }
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, SockmapError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(SockmapError::Missing(name))?;
    program.try_into().map_err(|source| refused(name, source))
}

fn refused(program: &'static str, source: ProgramError) -> SockmapError {
    SockmapError::Program {
        program,
        source: Box::new(source),
    }
}

fn take<M: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, SockmapError> {
    let map = ebpf.take_map(name).ok_or(SockmapError::Missing(name))?;
    M::try_from(map).map_err(|source| SockmapError::Map {
        map: name,
        source: Box::new(source),
    })
}

/// The system call's error, which says why a socket was not taken.
fn errno(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        other => io::Error::other(other),
    }
}
