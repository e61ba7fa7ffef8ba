//! The listeners: their sockets, and what is done with the connections of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use arc_swap::ArcSwap;
use socket2::Socket;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::state::State;
use crate::config::{self, ListenAddress, Name};
use crate::flow::{self, Service};
use crate::listener::{self, ListenError};

/// What each listener's connections share.
pub type Services = BTreeMap<Name, Service>;

/// The listeners of a daemon.
#[derive(Debug)]
pub struct Listeners {
    state: Arc<State>,
    sites: BTreeMap<Name, Site>,
    accepting: TaskTracker,
    /// Ends the accepting, not the sockets.
    pause: CancellationToken,
}

/// One listener.
#[derive(Debug)]
struct Site {
    service: Arc<ArcSwap<Service>>,
    sockets: Vec<Open>,
}

/// A socket that listens.
#[derive(Debug)]
struct Open {
    place: Place,
    socket: Arc<TcpListener>,
    /// Ends the accepting at this one.
    stop: CancellationToken,
}

/// Where a socket listens. Those of the same place are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    address: ListenAddress,
    interface: Option<String>,
}

/// Sockets for another configuration, bound and not yet listening.
#[derive(Debug)]
pub struct Prepared(BTreeMap<Name, Vec<(Place, Option<Socket>)>>);

impl Listeners {
    /// There are none yet.
    #[must_use]
    pub fn new(state: Arc<State>) -> Self {
        Self {
            state,
            sites: BTreeMap::new(),
            accepting: TaskTracker::new(),
            pause: CancellationToken::new(),
        }
    }

    /// Binds what `config` needs and is neither there nor in `inherited`. Nothing has changed if this fails.
    pub fn prepare(
        &self,
        config: &config::Config,
        mut inherited: Vec<Socket>,
    ) -> Result<Prepared, ListenError> {
        let mut prepared = BTreeMap::new();
        for (name, listener) in &config.listeners {
            let mut sockets = Vec::new();
            for address in &listener.listen {
                let place = Place {
                    address: *address,
                    interface: listener.downstream_interface.clone(),
                };
                let socket = if self.find(&place).is_some() {
                    None
                } else {
                    let theirs = listener::inherit(
                        &mut inherited,
                        address.first(),
                        place.interface.as_deref(),
                    );
                    Some(match theirs {
                        Some(socket) => socket,
                        None => listener::bind(address.first(), place.interface.as_deref())?,
                    })
                };
                sockets.push((place, socket));
            }
            prepared.insert(name.clone(), sockets);
        }
        Ok(Prepared(prepared))
    }

    fn find(&self, place: &Place) -> Option<&Open> {
        let mut sockets = self.sites.values().flat_map(|site| &site.sockets);
        sockets.find(|open| open.place == *place)
    }

    /// Listens as prepared, for these services. Sockets that are in neither are closed; connections that
    /// were accepted go on.
    pub fn apply(&mut self, prepared: Prepared, mut services: Services) -> Result<(), ListenError> {
        let mut sites = BTreeMap::new();
        let mut old: Vec<(Name, Open)> = Vec::new();
        let mut shared = BTreeMap::new();
        for (name, site) in std::mem::take(&mut self.sites) {
            old.extend(site.sockets.into_iter().map(|open| (name.clone(), open)));
            shared.insert(name, site.service);
        }
        let mut failed = None;
        for (name, places) in prepared.0 {
            let Some(service) = services.remove(&name) else {
                continue;
            };
            let service = match shared.remove(&name) {
                Some(known) => {
                    known.store(Arc::new(service));
                    known
                }
                None => Arc::new(ArcSwap::from_pointee(service)),
            };
            let mut sockets = Vec::new();
            for (place, socket) in places {
                let known = old.iter().position(|(_, open)| open.place == place);
                match (known.map(|at| old.swap_remove(at)), socket) {
                    (Some((before, open)), _) if before == name => sockets.push(open),
                    // It was another listener's: others accept at it from now on.
                    (Some((_, open)), _) => {
                        open.stop.cancel();
                        sockets.push(self.accept_at(place, open.socket, &service));
                    }
                    (None, Some(socket)) => match listener::open(socket, place.address.first()) {
                        Ok(socket) => {
                            sockets.push(self.accept_at(place, Arc::new(socket), &service));
                        }
                        Err(e) => failed = Some(e),
                    },
                    (None, None) => {}
                }
            }
            sites.insert(name, Site { service, sockets });
        }
        for (_, open) in old {
            open.stop.cancel();
        }
        self.sites = sites;
        failed.map_or(Ok(()), Err)
    }

    fn accept_at(
        &self,
        place: Place,
        socket: Arc<TcpListener>,
        service: &Arc<ArcSwap<Service>>,
    ) -> Open {
        let stop = CancellationToken::new();
        self.accept(&socket, service, &stop);
        Open {
            place,
            socket,
            stop,
        }
    }

    fn accept(
        &self,
        socket: &Arc<TcpListener>,
        service: &Arc<ArcSwap<Service>>,
        stop: &CancellationToken,
    ) {
        let (socket, service) = (Arc::clone(socket), Arc::clone(service));
        let (stop, pause) = (stop.clone(), self.pause.clone());
        let state = Arc::clone(&self.state);
        self.accepting.spawn(async move {
            tokio::select! {
                () = accept(&socket, &service, &state) => {}
                () = stop.cancelled() => {}
                () = pause.cancelled() => {}
            }
        });
    }

    /// Accepts no more, until [`Self::resume`]; connections wait in the sockets' backlogs.
    pub async fn pause(&self) {
        self.pause.cancel();
        self.accepting.close();
        self.accepting.wait().await;
    }

    /// Accepts again.
    pub fn resume(&mut self) {
        self.pause = CancellationToken::new();
        self.accepting = TaskTracker::new();
        for site in self.sites.values() {
            for open in &site.sockets {
                self.accept(&open.socket, &site.service, &open.stop);
            }
        }
    }

    /// Accepts no more, and closes the sockets.
    pub async fn close(&mut self) {
        self.pause().await;
        self.sites.clear();
    }

    /// The sockets.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let sockets = self.sites.values().flat_map(|site| &site.sockets);
        sockets.map(|open| open.socket.as_fd()).collect()
    }

    /// Where each listens, the ports that the kernel chose included.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let sockets = self.sites.values().flat_map(|site| &site.sockets);
        sockets
            .filter_map(|open| open.socket.local_addr().ok())
            .collect()
    }

    /// Lets clients send no larger segments than `bytes`.
    pub fn clamp_segments(&self, bytes: u32) {
        for open in self.sites.values().flat_map(|site| &site.sockets) {
            if let Err(e) = listener::clamp_segments(&open.socket, bytes) {
                tracing::warn!("clients may send segments larger than {bytes} bytes: {e}");
            }
        }
    }
}

/// Accepts connections, for as long as it is polled.
async fn accept(socket: &TcpListener, service: &ArcSwap<Service>, state: &State) {
    while let Ok(place) = Arc::clone(&state.places).acquire_owned().await {
        let accepted = listener::accept(socket).await;
        let service = service.load_full();
        state.serving.spawn(async move {
            flow::serve(service, accepted).await;
            drop(place);
        });
    }
}
