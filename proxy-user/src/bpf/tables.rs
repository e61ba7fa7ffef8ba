//! The flow table behind typed methods.

use std::fmt;
use std::io;
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use proxy_common::flow::{Connecting, STEER_IN, SteeringCounters, Translation, Tuple};
use thiserror::Error;

use super::LoadError;
use crate::lock::lock;

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// Why a flow could not be entered.
#[derive(Debug, Error)]
pub enum ReserveError {
    /// Another flow has the same addresses and ports on the wire.
    #[error("these addresses and ports are taken by another flow")]
    Taken,
    /// No room.
    #[error("the flow table is full (--max-flows)")]
    Full,
    /// The kernel refused.
    #[error("the flow table: {0}")]
    Map(#[source] Box<MapError>),
}

/// `FLOWS` and `CONNECTING`.
///
/// The lock is only for the borrow checker's sake: each call is one system call on a map that the
/// kernel itself guards.
#[derive(Debug)]
pub struct FlowTable {
    flows: Mutex<HashMap<MapData, Tuple, Translation>>,
    connecting: Mutex<HashMap<MapData, u64, Connecting>>,
}

/// What the tc programs count.
pub struct Counters(PerCpuArray<MapData, SteeringCounters>);

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counters").field(&self.sum()).finish()
    }
}

impl Counters {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let map = ebpf
            .take_map("COUNTERS")
            .ok_or(LoadError::Missing("map COUNTERS"))?;
        PerCpuArray::try_from(map).map(Self).map_err(Self::failed)
    }

    /// What they have counted, over all CPUs.
    pub fn sum(&self) -> Result<SteeringCounters, LoadError> {
        let values = self.0.get(&0, 0).map_err(Self::failed)?;
        Ok(values
            .iter()
            .fold(SteeringCounters::default(), |sum, cpu| sum + *cpu))
    }

    fn failed(source: MapError) -> LoadError {
        LoadError::Map {
            map: "COUNTERS",
            source: Box::new(source),
        }
    }
}

impl FlowTable {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            flows: Mutex::new(take(ebpf, "FLOWS")?),
            connecting: Mutex::new(take(ebpf, "CONNECTING")?),
        })
    }

    /// Reserves what the backend's replies will carry for the flow (its upstream socket's cookie),
    /// and announces the socket to the egress program.
    pub fn reserve(&self, flow: u64, connecting: Connecting) -> Result<(), ReserveError> {
        let reply = connecting.reply;
        // Completed when the SYN leaves.
        let reserved = Translation::new(flow, STEER_IN, reply);
        lock(&self.flows)
            .insert(reply, reserved, BPF_NOEXIST)
            .map_err(reserve_error)?;
        lock(&self.connecting)
            .insert(flow, connecting, BPF_ANY)
            .map_err(|e| {
                self.remove(&reply);
                reserve_error(e)
            })
    }

    /// The socket is connected, or has given up: no SYN of it is expected any more.
    pub fn withdraw(&self, flow: u64) {
        // ENOENT is no error: withdrawing twice is the same as once.
        let _ = lock(&self.connecting).remove(&flow);
    }

    /// Withdraws all that are not to `stay`: those that another daemon announced.
    pub fn withdraw_all_but(&self, stay: impl Fn(u64) -> bool) {
        let mut connecting = lock(&self.connecting);
        let flows: Vec<u64> = connecting.keys().flatten().collect();
        for flow in flows {
            if !stay(flow) {
                let _ = connecting.remove(&flow);
            }
        }
    }

    /// What is done to packets of `tuple`.
    #[must_use]
    pub fn get(&self, tuple: &Tuple) -> Option<Translation> {
        lock(&self.flows).get(tuple, 0).ok()
    }

    /// Forgets `tuple`.
    pub fn remove(&self, tuple: &Tuple) {
        // ENOENT is no error: the entry may have been replaced and removed meanwhile.
        let _ = lock(&self.flows).remove(tuple);
    }

    /// Every entry. Entries that come or go meanwhile may be missed.
    #[must_use]
    pub fn entries(&self) -> Vec<(Tuple, Translation)> {
        lock(&self.flows).iter().flatten().collect()
    }
}

pub(super) fn take<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    HashMap::try_from(map).map_err(|source| LoadError::Map {
        map: name,
        source: Box::new(source),
    })
}

pub(super) fn reserve_error(error: MapError) -> ReserveError {
    let errno = match &error {
        MapError::SyscallError(e) => e.io_error.raw_os_error(),
        MapError::IoError(e) => io::Error::raw_os_error(e),
        _ => None,
    };
    match errno {
        Some(libc::EEXIST) => ReserveError::Taken,
        // ENOMEM: entries are allocated as they come.
        Some(libc::E2BIG | libc::ENOMEM) => ReserveError::Full,
        _ => ReserveError::Map(Box::new(error)),
    }
}
