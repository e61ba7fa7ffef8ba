//! The first stage: connections are accepted, at several addresses and on ranges of ports.
//!
//! * [`Bound`]: the sockets of all listeners, before they listen; [`Listeners`]: after.
//! * [`inherit`]: sockets that others have made.
//! * [`ranges`]: one socket for many ports.
//! * [`accept`](fn@accept): the accepting, which never ends by itself.
//!
//! An address has one socket and one task that accepts. Two sockets by `SO_REUSEPORT`, on two CPUs, took as much
//! CPU a connection, and to close one of several would reset what waits in its backlog.
//!
//! A reload, a take-over and a start are the same: sockets that were there already are used where they fit,
//! others are bound, and whatever fails before they all listen has changed nothing.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;

mod accept;
pub mod inherit;
pub mod ranges;
mod survey;

pub use accept::{Accepted, accept};
use inherit::{Bind, Inherited};
use ranges::{Led, Ranges, RangesError};

use crate::config::{self, ListenAddress, Name, Ports};
use crate::socket_options::{OptionError, SideOptions, failed};
use crate::sys;

/// Why nothing can be accepted at an address.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A system call was refused.
    #[error("cannot listen on {address}: {call}: {source}")]
    Call {
        /// The address.
        address: ListenAddress,
        /// The call, or the option.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A socket that was handed over, and listens on, has the port.
    #[error(
        "cannot listen on {ours} while a socket that was handed over listens on {theirs}: that takes a \
         restart"
    )]
    Occupied {
        /// What was asked for.
        ours: Bind,
        /// The socket.
        theirs: Bind,
    },
    /// A range needs one port of its own, for its socket.
    #[error("cannot listen on {0}: others listen on each of its ports")]
    NoPort(ListenAddress),
    /// Ranges are not led to their sockets.
    #[error("cannot listen on a range of ports: {0}")]
    Ranges(#[from] RangesError),
}

impl ListenError {
    fn of(address: ListenAddress, call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call {
            address,
            call,
            source,
        }
    }

    fn is_in_use(&self) -> bool {
        matches!(self, Self::Call { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }

    fn option(address: ListenAddress) -> impl FnOnce(OptionError) -> Self {
        move |e| Self::of(address, e.option)(e.source)
    }
}

/// What a listening socket is told, and the sockets that it accepts inherit.
#[derive(Clone, Copy, Debug)]
struct Options {
    backlog: i32,
    /// Handshakes with data that may be open at once; 0: none.
    fast_open: i32,
    side: SideOptions,
}

impl From<&config::Listener> for Options {
    fn from(listener: &config::Listener) -> Self {
        // Neither is more than 65535.
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Self {
            backlog: number(listener.backlog.get()),
            fast_open: listener.fast_open.map_or(0, |most| number(most.get())),
            side: SideOptions::downstream(listener),
        }
    }
}

impl Options {
    fn apply(&self, socket: &Socket) -> Result<(), OptionError> {
        socket
            .set_tcp_nodelay(true)
            .map_err(failed("TCP_NODELAY"))?;
        sys::set_fast_open(socket, self.fast_open).map_err(failed("TCP_FASTOPEN"))?;
        self.side.apply(socket)
    }
}

/// The sockets of listeners, bound. Those that were inherited listen all the time, and have their old
/// options still.
#[derive(Debug)]
pub struct Bound(Vec<BoundSocket>);

#[derive(Debug)]
struct BoundSocket {
    name: Name,
    bind: Bind,
    options: Options,
    socket: Socket,
}

impl Bound {
    /// Binds a socket for each address of each listener, or takes one of those in `inherited`. One that is
    /// inherited from this very daemon, and does not fit, is in nobody's way.
    ///
    /// An IPv6 address accepts IPv6 only, except `::`, which accepts both.
    pub fn bind(
        listeners: &BTreeMap<Name, config::Listener>,
        inherited: &mut Inherited,
    ) -> Result<Self, ListenError> {
        let mut wanted: Vec<(&Name, &config::Listener, ListenAddress)> = listeners
            .iter()
            .flat_map(|(name, listener)| {
                listener.listen.iter().map(move |at| (name, listener, *at))
            })
            .collect();
        // Who has the least choice comes first.
        wanted.sort_by_key(|(_, _, address)| choice(address.ports));
        let mut found = Vec::new();
        // What is there already has its ports before anything is bound.
        for (name, listener, address) in wanted {
            let bind = Bind {
                address,
                interface: listener.downstream_interface.clone(),
            };
            let socket = inherited.take(bind.clone());
            found.push((name, listener, bind, socket));
        }
        let mut bound = Vec::new();
        let mut ports = HashSet::new();
        for (name, listener, bind, socket) in found {
            let failed = |call| ListenError::of(bind.address, call);
            let socket = match socket {
                Some(socket) => socket,
                None => match bind_new(&bind, &ports) {
                    Err(e) if e.is_in_use() => {
                        let theirs = inherited.occupant(&bind);
                        let occupied = |theirs| ListenError::Occupied {
                            ours: bind.clone(),
                            theirs,
                        };
                        match inherited.make_room(&bind) {
                            true => bind_at(&bind, bind.address.first(), Sharing::Own)?,
                            false => return Err(theirs.map_or(e, occupied)),
                        }
                    }
                    bound => bound?,
                },
            };
            let at = socket.local_addr().map_err(failed("getsockname"))?;
            ports.extend(at.as_socket().map(|at| at.port()));
            bound.push(BoundSocket {
                name: name.clone(),
                bind,
                options: listener.into(),
                socket,
            });
        }
        Ok(Self(bound))
    }

    /// The sockets, for options of the caller's.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|bound| bound.socket.as_fd())
    }

    /// Listens, now that everything is ready for whoever connects. Ranges are led to their sockets in the
    /// calling thread's network namespace.
    pub fn open(self) -> Result<Listeners, ListenError> {
        for one in &self.0 {
            let address = one.bind.address;
            let failed = |call| ListenError::of(address, call);
            one.socket
                .set_nonblocking(true)
                .map_err(failed("O_NONBLOCK"))?;
            one.options
                .apply(&one.socket)
                .map_err(ListenError::option(address))?;
            // Of one that listens already it changes the backlog.
            one.socket
                .listen(one.options.backlog)
                .map_err(failed("listen"))?;
        }
        let led: Vec<Led<'_, Socket>> = self
            .0
            .iter()
            .filter(|one| matches!(one.bind.address.ports, Ports::Range(..)))
            .map(|one| Led {
                address: one.bind.address,
                interface: one.bind.interface.as_deref(),
                socket: &one.socket,
            })
            .collect();
        let ranges = match led[..] {
            [] => None,
            _ => Some(Ranges::lead(&led)?),
        };
        let sockets = self.0.into_iter().map(|one| {
            let address = one.bind.address;
            // Not earlier: of a socket that does not listen epoll says that it is closed, and tokio never
            // forgets that.
            let socket = TcpListener::from_std(one.socket.into())
                .map_err(ListenError::of(address, "epoll"))?;
            Ok(Arc::new(Listening {
                name: one.name,
                address,
                socket,
            }))
        });
        Ok(Listeners {
            sockets: sockets.collect::<Result<_, ListenError>>()?,
            ranges,
        })
    }
}

/// All sockets that listen. Dropping it closes ranges; each socket is closed when nobody accepts from it
/// any more.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<Arc<Listening>>,
    ranges: Option<Ranges>,
}

impl Listeners {
    /// Each of them. Whoever accepts from one has it for as long.
    #[must_use]
    pub fn sockets(&self) -> &[Arc<Listening>] {
        &self.sockets
    }

    /// The sockets themselves, for a daemon that takes over.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|one| one.socket.as_fd())
    }

    /// The same sockets, for other listeners in this daemon (a reload). These here go on.
    pub fn again(&self) -> io::Result<Inherited> {
        let sockets: io::Result<Vec<OwnedFd>> = self
            .descriptors()
            .map(|socket| socket.try_clone_to_owned())
            .collect();
        Ok(Inherited::own(sockets?))
    }

    /// The ranges of ports, if there are any.
    #[must_use]
    pub fn ranges(&self) -> Option<&Ranges> {
        self.ranges.as_ref()
    }

    /// Leaves ports of ranges to whoever else comes to listen there; never returns.
    pub async fn follow(&self) {
        match &self.ranges {
            Some(ranges) => ranges.follow().await,
            None => std::future::pending().await,
        }
    }
}

/// A socket that listens, for an address of a listener.
#[derive(Debug)]
pub struct Listening {
    /// The listener's name.
    pub name: Name,
    /// What it listens on.
    pub address: ListenAddress,
    socket: TcpListener,
}

impl Listening {
    /// The next connection. Cancelling loses none.
    pub async fn accept(&self) -> Accepted {
        accept(&self.socket).await
    }

    /// A connection that waits to be accepted, if there is one.
    #[must_use]
    pub fn waiting(&self) -> Option<Accepted> {
        accept::waiting(&self.socket)
    }

    /// Where it is bound: for a range, one of its ports.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What it listens on; of port 0, the port that it has got.
impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address.ports, self.local_addr()) {
            (Ports::One(0), Ok(bound)) => bound.fmt(f),
            _ => self.address.fmt(f),
        }
    }
}

/// How many ports would do, less one.
fn choice(ports: Ports) -> u16 {
    match ports {
        Ports::One(0) => u16::MAX,
        Ports::One(_) => 0,
        Ports::Range(first, last) => last - first,
    }
}

/// Binds a socket that is to listen. Of a range it gets the last port that is free: the first ones are what
/// others rather want. `ours` are not: the kernel binds two sockets to one port (`SO_REUSEADDR`) until one of
/// them listens.
fn bind_new(bind: &Bind, ours: &HashSet<u16>) -> Result<Socket, ListenError> {
    let address = bind.address;
    let candidates: RangeInclusive<u16> = match address.ports {
        // The kernel's choice.
        Ports::ALL => 0..=0,
        Ports::One(port) => port..=port,
        Ports::Range(first, last) => first..=last,
    };
    let is_range = matches!(address.ports, Ports::Range(..));
    for port in candidates.rev() {
        if is_range && ours.contains(&port) {
            continue;
        }
        match bind_at(bind, SocketAddr::new(address.ip, port), Sharing::None) {
            Err(e) if is_range && e.is_in_use() => {}
            done => return done,
        }
    }
    Err(ListenError::NoPort(address))
}

/// With whom a socket may share its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    None,
    /// Sockets of this daemon that listen there until it listens ([`Inherited::make_room`]); and, since the
    /// kernel remembers it (`sk_reuseport_match()`), with others of the same user that ask for it.
    Own,
}

fn bind_at(bind: &Bind, at: SocketAddr, sharing: Sharing) -> Result<Socket, ListenError> {
    let failed = |call| ListenError::of(bind.address, call);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed("socket"))?;
    if let SocketAddr::V6(v6) = at {
        socket
            .set_only_v6(!v6.ip().is_unspecified())
            .map_err(failed("IPV6_V6ONLY"))?;
    }
    socket
        .bind_device(bind.interface.as_deref().map(str::as_bytes))
        .map_err(failed("SO_BINDTODEVICE"))?;
    // A restart must not wait for the last daemon's connections to leave TIME-WAIT. A port of the kernel's
    // choice is to be nobody's.
    socket
        .set_reuse_address(at.port() != 0)
        .map_err(failed("SO_REUSEADDR"))?;
    socket
        .set_reuse_port(sharing == Sharing::Own)
        .map_err(failed("SO_REUSEPORT"))?;
    socket.bind(&at.into()).map_err(failed("bind"))?;
    Ok(socket)
}

/// Lets clients send no larger segments than `bytes` (RFC 9293, 3.7.1): a packet of theirs becomes one on
/// the way to a backend.
pub fn clamp_segments<'a>(sockets: impl IntoIterator<Item = BorrowedFd<'a>>, bytes: u32) {
    for socket in sockets {
        let socket = SockRef::from(&socket);
        if let Err(e) = socket.set_tcp_mss(bytes) {
            let at = socket.local_addr().ok().and_then(|at| at.as_socket());
            tracing::warn!(
                at = at.map(tracing::field::display),
                "clients may send segments larger than {bytes} bytes: {e}"
            );
        }
    }
}
