//! By which interfaces packets of spliced flows come and leave: those with the programs, and the way to
//! each address.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lock::lock;
use crate::netlink::{Netlink, Route};

/// Addresses whose way is remembered, at most.
const REMEMBERED: usize = 65_536;

/// What is known of interfaces and routes; follows their changes when it is told of them.
#[derive(Debug)]
pub struct Paths {
    netlink: Netlink,
    attached: Mutex<HashSet<u32>>,
    routes: Mutex<HashMap<IpAddr, Way>>,
    generation: AtomicU64,
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface that packets leave by.
    pub ifindex: u32,
    /// The largest packet that it takes, in bytes with IP header.
    pub mtu: u32,
}

impl Paths {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            attached: Mutex::default(),
            routes: Mutex::default(),
            generation: AtomicU64::new(0),
        }
    }

    /// The programs are on these interfaces, and routes may have changed.
    pub fn changed(&self, attached: HashSet<u32>) {
        *lock(&self.attached) = attached;
        lock(&self.routes).clear();
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// How often anything has changed: what was asked at another count may be out of date.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Are the programs on the interface of this index?
    #[must_use]
    pub fn is_attached(&self, index: u32) -> bool {
        lock(&self.attached).contains(&index)
    }

    /// How packets to `address` leave, if the programs are on that interface.
    pub async fn towards(&self, address: IpAddr) -> Option<Way> {
        let known = lock(&self.routes).get(&address).copied();
        let way = match known {
            Some(way) => way,
            None => {
                let Ok(Route::Via(interface)) = self.netlink.route(address).await else {
                    return None;
                };
                let way = Way {
                    ifindex: interface.index,
                    mtu: interface.mtu,
                };
                let mut routes = lock(&self.routes);
                if routes.len() >= REMEMBERED {
                    routes.clear();
                }
                routes.insert(address, way);
                way
            }
        };
        self.is_attached(way.ifindex).then_some(way)
    }
}
