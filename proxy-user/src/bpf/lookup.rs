//! The program that leads ranges of ports to their listening sockets, attached to a network namespace.
//!
//! It is pinned nowhere and shares no map with the other programs: it ends with what holds it. What it
//! knows of the ranges never changes. Other ranges are another program, attached before this one goes:
//! while both are there a socket is found by either (the first that was attached chooses).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use aya::maps::{Array, HashMap, Map, MapData, MapError, SockMap};
use aya::programs::sk_lookup::SkLookupLink;
use aya::programs::{ProgramError, SkLookup};
use aya::{Ebpf, EbpfLoader};
pub use proxy_common::lookup::RANGES_LIMIT;
use proxy_common::lookup::{Place, Range};
use thiserror::Error;

use super::sockmap::Globals;
use super::{LoadError, OBJECT, errno};

const PROGRAM: &str = "listen_range";

/// Maps of the other programs.
const OTHERS: [&str; 8] = [
    "FLOWS",
    "CONNECTING",
    "FORWARDS",
    "RECORDS",
    "SPLICES",
    "GATES",
    "SOURCES",
    "TARGETS",
];

/// The file of the calling thread's network namespace.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Why ranges of ports are not listened on.
#[derive(Debug, Error)]
pub enum LookupError {
    /// More than the program goes through.
    #[error("{0} ranges of ports, and the most that can be listened on are {RANGES_LIMIT}")]
    TooMany(usize),
    /// The kernel does not tell by which interface a SYN comes.
    #[error(
        "a range of ports cannot be bound to an interface on this kernel (Linux 5.17 and later can): \
         {0}"
    )]
    Interface(#[source] Box<ProgramError>),
    /// The program cannot be loaded.
    #[error("ranges of ports need a program that finds listening sockets (Linux 5.9): {0}")]
    Load(#[from] LoadError),
    /// The program cannot be attached.
    #[error("the network namespace does not take the BPF program {PROGRAM}: {0}")]
    Attach(#[source] Box<ProgramError>),
    /// There is no network namespace to attach it to.
    #[error("{NAMESPACE}: {0}")]
    Namespace(#[source] io::Error),
    /// A map was refused.
    #[error("BPF map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What went wrong.
        #[source]
        source: Box<MapError>,
    },
}

/// The attached program. Dropping it takes it off: the ports are closed then but for those of the sockets
/// themselves.
#[derive(Debug)]
pub struct Lookup {
    listening: HashMap<MapData, Place, u32>,
    _link: SkLookupLink,
}

impl Lookup {
    /// Leads each range to its socket, in the calling thread's network namespace: the first range that
    /// holds a SYN decides ([`Range::rank`] is the order for that). The sockets must listen already.
    ///
    /// Needs `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn attach(
        ranges: &[(Range, BorrowedFd<'_>)],
        listening: impl IntoIterator<Item = Place>,
    ) -> Result<Self, LookupError> {
        if ranges.len() > RANGES_LIMIT as usize {
            return Err(LookupError::TooMany(ranges.len()));
        }
        let ask_interface = ranges.iter().any(|(range, _)| range.interface != 0);
        let mut ebpf = object(ask_interface)?;
        let mut values: Array<_, Range> = take(&mut ebpf, "RANGES")?;
        let mut sockets: SockMap<_> = take(&mut ebpf, "SOCKETS")?;
        for (slot, (range, socket)) in (0..).zip(ranges) {
            values
                .set(slot, range, 0)
                .map_err(|e| refused("RANGES", e))?;
            sockets
                .set(slot, socket, 0)
                .map_err(|e| refused("SOCKETS", e))?;
        }
        let mut taken = take(&mut ebpf, "LISTENING")?;
        replace(&mut taken, listening)?;
        let namespace = File::open(NAMESPACE).map_err(LookupError::Namespace)?;
        let program = ebpf
            .program_mut(PROGRAM)
            .ok_or(LoadError::Missing(PROGRAM))?;
        let program: &mut SkLookup = program.try_into().map_err(not_loaded)?;
        program.load().map_err(|source| match errno(&source) {
            // How the verifier refuses a field that it does not know.
            Some(libc::EACCES | libc::EINVAL) if ask_interface => {
                LookupError::Interface(Box::new(source))
            }
            _ => not_loaded(source).into(),
        })?;
        let link = program
            .attach(namespace)
            .and_then(|link| program.take_link(link))
            .map_err(|source| LookupError::Attach(Box::new(source)))?;
        Ok(Self {
            listening: taken,
            _link: link,
        })
    }

    /// Where somebody listens on a port of its own, which keeps it: `places`, and nowhere else.
    pub fn set_listening(
        &mut self,
        places: impl IntoIterator<Item = Place>,
    ) -> Result<(), LookupError> {
        replace(&mut self.listening, places)
    }
}

/// Makes `places` all that there are in the map.
fn replace(
    map: &mut HashMap<MapData, Place, u32>,
    places: impl IntoIterator<Item = Place>,
) -> Result<(), LookupError> {
    let failed = |e| refused("LISTENING", e);
    let mut gone: HashSet<Place> = map.keys().flatten().collect();
    for place in places {
        if !gone.remove(&place) {
            map.insert(place, 0, 0).map_err(failed)?;
        }
    }
    for place in gone {
        map.remove(&place).map_err(failed)?;
    }
    Ok(())
}

/// The maps, and the program before it is loaded. `ask_interface` is for a range that has one.
fn object(ask_interface: bool) -> Result<Ebpf, LoadError> {
    let globals = Globals::from_kernel();
    let ask_interface = u32::from(ask_interface);
    let mut loader = EbpfLoader::new();
    for map in OTHERS {
        loader.map_max_entries(map, 1);
    }
    globals.apply(&mut loader);
    loader.override_global("ASK_INTERFACE", &ask_interface, true);
    loader
        .load(OBJECT)
        .map_err(|e| LoadError::Object(Box::new(e)))
}

fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, LookupError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    M::try_from(map).map_err(|e| refused(name, e))
}

fn refused(map: &'static str, source: MapError) -> LookupError {
    LookupError::Map {
        map,
        source: Box::new(source),
    }
}

fn not_loaded(source: ProgramError) -> LoadError {
    LoadError::Program {
        program: PROGRAM,
        source: Box::new(source),
    }
}
