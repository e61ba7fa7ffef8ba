//! Ranges of ports: one socket each, which a BPF program finds for every SYN to the range.
//!
//! Whoever listens on one port keeps it, be it another program or another listener of this daemon, be it on
//! the address itself or on all: a range takes what is left. The program itself cannot see that (see
//! `proxy-ebpf/src/lookup.rs`), so it is told here: before it starts, and then by [`Ranges::follow`]. Who
//! starts to listen within a range has its port within [`SURVEY`].

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use proxy_common::lookup::{Place, Range};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};

use super::survey::Survey;
use crate::bpf::lookup::{Lookup, LookupError};
use crate::config::{ListenAddress, Ports};
use crate::lock::lock;
use crate::sys;

/// How often it is looked who else listens.
pub const SURVEY: Duration = Duration::from_secs(1);

/// Why ranges of ports are not listened on.
#[derive(Debug, Error)]
pub enum RangesError {
    /// The same ports twice.
    #[error("{0} is listened on twice")]
    Twice(ListenAddress),
    /// There is no such interface.
    #[error("--downstream-interface {name}: {source}")]
    Interface {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A socket does not tell who it is.
    #[error("SO_COOKIE: {0}")]
    Cookie(#[source] io::Error),
    /// The kernel does not tell who listens.
    #[error("cannot ask who listens within a range of ports (sock_diag): {0}")]
    Survey(#[source] io::Error),
    /// The program is not in force.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// A range with the socket that listens for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Led<'a, S> {
    pub(super) address: ListenAddress,
    pub(super) interface: Option<&'a str>,
    pub(super) socket: &'a S,
}

/// Ranges that are listened on. They are not any more when it is dropped.
#[derive(Debug)]
pub struct Ranges {
    lookup: Mutex<Lookup>,
    others: Mutex<Others>,
}

impl Ranges {
    /// Leads each range to its socket, which listens already, in the calling thread's network namespace.
    pub(super) fn lead<S: AsFd>(led: &[Led<'_, S>]) -> Result<Self, RangesError> {
        let mut cookies = HashSet::new();
        let mut ranges = Vec::new();
        for one in led {
            cookies.insert(sys::socket_cookie(one.socket).map_err(RangesError::Cookie)?);
            ranges.push((range(one.address, one.interface)?, one));
        }
        ranges.sort_by_key(|(range, _)| range.rank());
        for (at, (range, one)) in ranges.iter().enumerate() {
            if ranges[..at].iter().any(|(other, _)| other == range) {
                return Err(RangesError::Twice(one.address));
            }
        }
        let mut others = Others {
            survey: Survey::open().map_err(RangesError::Survey)?,
            ranges: ranges.iter().map(|(range, _)| *range).collect(),
            own: cookies,
            last: HashSet::new(),
        };
        let listening = others.places()?;
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(range, one)| (range, one.socket.as_fd()))
            .collect();
        Ok(Self {
            lookup: Mutex::new(Lookup::attach(&ranges, listening)?),
            others: Mutex::new(others),
        })
    }

    /// Leaves their ports to those who have come to listen there, and takes those of which nobody is left.
    pub fn look(&self) -> Result<(), RangesError> {
        let places = lock(&self.others).places()?;
        Ok(lock(&self.lookup).set_listening(places)?)
    }

    /// Does so time and again; never returns.
    pub async fn follow(&self) {
        let mut due = interval(SURVEY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            due.tick().await;
            let looked = self.look();
            if let Err(e) = &looked
                && !failing
            {
                tracing::warn!("who else listens within the ranges of ports is not followed: {e}");
            }
            failing = looked.is_err();
        }
    }
}

/// Those who listen within the ranges.
#[derive(Debug)]
struct Others {
    survey: Survey,
    ranges: Vec<Range>,
    /// The cookies of the ranges' own sockets.
    own: HashSet<u64>,
    /// What the last survey has found.
    last: HashSet<Place>,
}

impl Others {
    /// Where they listen. Since a survey may miss one, a place counts until two have not found it.
    fn places(&mut self) -> Result<HashSet<Place>, RangesError> {
        let listening = self.survey.listening().map_err(RangesError::Survey)?;
        let found: HashSet<Place> = listening
            .into_iter()
            .filter(|socket| !self.own.contains(&socket.cookie))
            .filter(|socket| self.concerns(socket.address.port()))
            .flat_map(|socket| {
                let port = socket.address.port();
                socket.addresses().map(move |ip| Place::new(ip, port))
            })
            .collect();
        let last = std::mem::replace(&mut self.last, found);
        Ok(&last | &self.last)
    }

    fn concerns(&self, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|range| (range.first..=range.last).contains(&port))
    }
}

fn range(address: ListenAddress, interface: Option<&str>) -> Result<Range, RangesError> {
    let index = match interface {
        None => 0,
        Some(name) => if_nametoindex(name).map_err(|e| RangesError::Interface {
            name: name.to_owned(),
            source: e.into(),
        })?,
    };
    let (Ports::One(first) | Ports::Range(first, _)) = address.ports;
    let (Ports::One(last) | Ports::Range(_, last)) = address.ports;
    let ip: IpAddr = address.ip.to_canonical();
    Ok(Range::new(ip.into(), first, last, index))
}
