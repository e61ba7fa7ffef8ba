//! The engine `packet`'s tables: `FORWARDS`, `RECORDS`, and the ring buffer `EVENTS`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Mutex;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, RingBuf};
use proxy_common::flow::{Forward, LAYOUT_VERSION, Record, SEEN_ENDED, SEEN_SWITCH, Tuple};
use tokio::io::unix::AsyncFd;

use super::LoadError;
use super::pins::Pins;
use super::tables::{ReserveError, reserve_error, take};
use crate::lock::lock;
use crate::sys;

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// `FORWARDS` and `RECORDS`.
///
/// The locks are only for the borrow checker's sake, as in [`super::tables`].
#[derive(Debug)]
pub struct ForwardTable {
    forwards: Mutex<HashMap<MapData, Tuple, Forward>>,
    records: Mutex<HashMap<MapData, u64, Record>>,
}

impl ForwardTable {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            forwards: Mutex::new(take(ebpf, "FORWARDS")?),
            records: Mutex::new(take(ebpf, "RECORDS")?),
        })
    }

    /// The tables that an instance has left; `None` where it has left none, or another version's.
    #[must_use]
    pub fn left_by(pins: &Pins) -> Option<Self> {
        let version = super::pinned_layout(&pins.map("meta")).ok()?;
        let open = |file| Map::from_map_data(MapData::from_pin(pins.map(file)).ok()?).ok();
        (version == Some(LAYOUT_VERSION)).then_some(Self {
            forwards: Mutex::new(open("forwards")?.try_into().ok()?),
            records: Mutex::new(open("records")?.try_into().ok()?),
        })
    }

    /// Ends a direction of a flow: its packets go nowhere from now on, and each is an event.
    pub fn end(&self, flow: u64, tuple: &Tuple) {
        self.update(flow, tuple, |entry| entry.seen |= SEEN_ENDED);
    }

    /// Says whose connections are about to be read in repair mode: killed meanwhile, their daemon leaves two peers
    /// that nobody tells of it. [`Self::enter`] or [`Self::forget`] follows.
    pub fn announce(&self, flow: u64, record: &Record) -> Result<(), ReserveError> {
        lock(&self.records)
            .insert(flow, record, BPF_ANY)
            .map_err(reserve_error)
    }

    /// Enters both directions of an [announced](Self::announce) flow and what is to be known of it; all or
    /// nothing. From then on its packets are forwarded.
    pub fn enter(
        &self,
        record: Record,
        downstream: Forward,
        upstream: Forward,
    ) -> Result<(), ReserveError> {
        let flow = downstream.flow;
        let in_force = |entry: Forward| Forward {
            seen: entry.seen | SEEN_SWITCH,
            ..entry
        };
        let entered = lock(&self.records)
            .insert(flow, record, BPF_ANY)
            .map_err(reserve_error)
            // Room for both before either is in force: one direction alone would break the flow.
            .and_then(|()| self.reserve(&record.upstream, &upstream))
            .and_then(|()| self.reserve(&record.downstream, &in_force(downstream)))
            .and_then(|()| {
                lock(&self.forwards)
                    .insert(record.upstream, in_force(upstream), BPF_EXIST)
                    .map_err(reserve_error)
            });
        if entered.is_err() {
            self.remove(flow, &record.downstream);
            self.remove(flow, &record.upstream);
            self.forget(flow);
        }
        entered
    }

    /// Enters one where there is none, or one that is not in force any more: left by a flow whose client
    /// has come again since.
    fn reserve(&self, key: &Tuple, entry: &Forward) -> Result<(), ReserveError> {
        let mut forwards = lock(&self.forwards);
        let entered = forwards.insert(key, entry, BPF_NOEXIST);
        match entered.map_err(reserve_error) {
            Err(ReserveError::Taken)
                if forwards
                    .get(key, 0)
                    .is_ok_and(|other| other.seen & SEEN_SWITCH == 0) =>
            {
                forwards.insert(key, entry, BPF_ANY).map_err(reserve_error)
            }
            entered => entered,
        }
    }

    /// What packets of `tuple` become, if they are `flow`'s.
    #[must_use]
    pub fn get(&self, flow: u64, tuple: &Tuple) -> Option<Forward> {
        let entry = lock(&self.forwards).get(tuple, 0).ok()?;
        (entry.flow == flow).then_some(entry)
    }

    /// The same, whoever's they are.
    #[must_use]
    pub fn owner(&self, tuple: &Tuple) -> Option<u64> {
        Some(lock(&self.forwards).get(tuple, 0).ok()?.flow)
    }

    /// Changes an entry. What the programs note in it meanwhile may be lost, and is made up for by the
    /// next packet, for all but a flag; so this is for rare events.
    pub fn update(&self, flow: u64, tuple: &Tuple, change: impl FnOnce(&mut Forward)) {
        if let Some(mut entry) = self.get(flow, tuple) {
            change(&mut entry);
            // ENOENT: it has just been removed.
            let _ = lock(&self.forwards).insert(tuple, entry, BPF_EXIST);
        }
    }

    /// Removes an entry, if it is still `flow`'s.
    pub fn remove(&self, flow: u64, tuple: &Tuple) {
        if self.owner(tuple) == Some(flow) {
            let _ = lock(&self.forwards).remove(tuple);
        }
    }

    /// Every entry. Entries that come or go meanwhile may be missed.
    #[must_use]
    pub fn entries(&self) -> Vec<(Tuple, Forward)> {
        lock(&self.forwards).iter().flatten().collect()
    }

    /// Writes what is to be known of a flow.
    pub fn record(&self, flow: u64, record: Record) {
        if let Err(e) = lock(&self.records).insert(flow, record, BPF_ANY) {
            tracing::warn!("flow {flow}: its record is not updated: {e}");
        }
    }

    /// What is known of a flow.
    #[must_use]
    pub fn record_of(&self, flow: u64) -> Option<Record> {
        lock(&self.records).get(&flow, 0).ok()
    }

    /// What is known of all flows.
    #[must_use]
    pub fn records(&self) -> Vec<(u64, Record)> {
        lock(&self.records).iter().flatten().collect()
    }

    /// Forgets what is known of a flow.
    pub fn forget(&self, flow: u64) {
        let _ = lock(&self.records).remove(&flow);
    }
}

/// Flows of which something has ended, as the programs see it.
pub struct Events {
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let map = "EVENTS";
        let failed = |source| LoadError::Map {
            map,
            source: Box::new(source),
        };
        let ring = ebpf.take_map(map).ok_or(LoadError::Missing(map))?;
        let ring = RingBuf::try_from(ring).map_err(failed)?;
        let ready = ring.as_fd().try_clone_to_owned().and_then(sys::async_fd);
        let ready = ready.map_err(|e| failed(e.into()))?;
        Ok(Self { ring, ready })
    }

    /// The next flow. Cancelling loses none.
    pub async fn next(&mut self) -> u64 {
        loop {
            while let Some(event) = self.ring.next() {
                if let Ok(flow) = <[u8; 8]>::try_from(&*event) {
                    return u64::from_ne_bytes(flow);
                }
            }
            match self.ready.readable().await {
                // Events that came meanwhile make it ready again: it is edge-triggered.
                Ok(mut readiness) => readiness.clear_ready(),
                Err(e) => {
                    tracing::warn!("no more events of flows: {e}");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
