//! Listening sockets that others have made: the daemon that is taken over, this one before a reload, or
//! systemd (`sd_listen_fds(3)`).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use listenfd::ListenFd;
use socket2::{Domain, Socket, Type};
use thiserror::Error;

use crate::config::{ListenAddress, Ports};
use crate::sys;

/// Why a listening socket that was handed over is not used. It is closed; what waits in its backlog is reset.
#[derive(Debug, Error)]
pub enum InheritError {
    /// It listens elsewhere.
    #[error(
        "a socket that was handed over listens on {theirs}, and this limpid is to listen on {ours}"
    )]
    Elsewhere {
        /// Where it listens.
        theirs: Bind,
        /// What was asked for.
        ours: Asked,
    },
    /// It is in another network namespace.
    #[error("a socket that was handed over is in another network namespace")]
    Namespace,
    /// It is not one of TCP that listens.
    #[error("a socket that was handed over does not listen for TCP connections")]
    Kind,
    /// The kernel does not tell.
    #[error("a socket that was handed over: {0}")]
    Socket(#[from] io::Error),
}

/// Where something listens, or is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The address.
    pub address: ListenAddress,
    /// The interface that connections must come by, if any.
    pub interface: Option<String>,
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            None => write!(f, "{} (any interface)", self.address),
            Some(name) => write!(f, "{} (interface {name})", self.address),
        }
    }
}

/// All that is to be listened on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked(Vec<Bind>);

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, bind) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{bind}")?;
        }
        Ok(())
    }
}

/// Sockets that may be used in place of new ones.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Candidate>,
    unfit: Vec<InheritError>,
    asked: Asked,
    /// They are this very daemon's, which goes on with them for as long as others are not in their place.
    own: bool,
}

#[derive(Debug)]
struct Candidate {
    socket: Socket,
    address: SocketAddr,
    interface: Option<String>,
    only_v6: bool,
}

impl Inherited {
    /// Takes `sockets` over.
    #[must_use]
    pub fn new(sockets: impl IntoIterator<Item = OwnedFd>) -> Self {
        let mut inherited = Self::default();
        for socket in sockets {
            match Candidate::new(socket.into()) {
                Ok(candidate) => inherited.sockets.push(candidate),
                Err(e) => inherited.unfit.push(e),
            }
        }
        inherited
    }

    /// Takes those of this very daemon.
    #[must_use]
    pub fn own(sockets: impl IntoIterator<Item = OwnedFd>) -> Self {
        Self {
            own: true,
            ..Self::new(sockets)
        }
    }

    /// Those that systemd, or whoever else speaks its protocol, has passed on (`LISTEN_FDS`). The variables
    /// are removed, so it is to be called once, before there are other threads.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut passed = ListenFd::from_env();
        let (mut sockets, mut unfit) = (Vec::new(), Vec::new());
        for at in 0..passed.len() {
            match passed.take_tcp_listener(at) {
                Ok(socket) => sockets.extend(socket.map(OwnedFd::from)),
                Err(e) => unfit.push(e.into()),
            }
        }
        let mut inherited = Self::new(sockets);
        inherited.unfit.append(&mut unfit);
        inherited
    }

    /// Adds those of another source. Where two fit, the first is used.
    #[must_use]
    pub fn and(mut self, mut more: Self) -> Self {
        self.sockets.append(&mut more.sockets);
        self.unfit.append(&mut more.unfit);
        self
    }

    /// The socket that is what would be bound for `bind`. Of a range it is bound to one of its ports.
    pub(super) fn take(&mut self, bind: Bind) -> Option<Socket> {
        let found = self.sockets.iter().position(|socket| socket.fits(&bind));
        self.asked.0.push(bind);
        found.map(|at| self.sockets.remove(at).socket)
    }

    /// The one that has the port of `bind`, and does not fit.
    pub(super) fn occupant(&self, bind: &Bind) -> Option<Bind> {
        let wanted = bind.address.ports;
        let mut sockets = self.sockets.iter();
        let found = sockets.find(|socket| wanted == Ports::One(socket.address.port()));
        found.map(Candidate::bind)
    }

    /// Lets others of the same user bind the one port of `bind` beside those that have it, if they are this
    /// very daemon's, until they are closed (`inet_bind_conflict()`). False: nobody is in the way, or it is
    /// not for us to say.
    pub(super) fn make_room(&self, bind: &Bind) -> bool {
        let Ports::One(port) = bind.address.ports else {
            return false;
        };
        let mut made = false;
        for candidate in self.sockets.iter().filter(|one| one.address.port() == port) {
            made |= self.own && candidate.socket.set_reuse_port(true).is_ok();
        }
        made
    }

    /// Closes those that could not be used for anything, and says why.
    #[must_use]
    pub fn close_unfit(&mut self) -> Vec<InheritError> {
        std::mem::take(&mut self.unfit)
    }

    /// Closes those that nobody has asked for, and says why.
    #[must_use]
    pub fn close_rest(self) -> Vec<InheritError> {
        let mut errors = self.unfit;
        errors.extend(
            self.sockets
                .into_iter()
                .map(|socket| InheritError::Elsewhere {
                    theirs: socket.bind(),
                    ours: self.asked.clone(),
                }),
        );
        errors
    }
}

impl Candidate {
    fn new(socket: Socket) -> Result<Self, InheritError> {
        if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            return Err(InheritError::Kind);
        }
        let address = socket.local_addr()?.as_socket().ok_or(InheritError::Kind)?;
        let here = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if !sys::share_network_namespace(&here, &socket)? {
            return Err(InheritError::Namespace);
        }
        let interface = socket.device()?;
        let only_v6 = address.is_ipv6() && socket.only_v6()?;
        Ok(Self {
            socket,
            address,
            interface: interface.map(|name| String::from_utf8_lossy(&name).into_owned()),
            only_v6,
        })
    }

    fn bind(&self) -> Bind {
        Bind {
            address: self.address.into(),
            interface: self.interface.clone(),
        }
    }

    fn fits(&self, bind: &Bind) -> bool {
        let ListenAddress { ip, ports } = bind.address;
        let port = self.address.port();
        let has_port = match ports {
            Ports::One(0) => true,
            Ports::One(one) => one == port,
            Ports::Range(first, last) => (first..=last).contains(&port),
        };
        // Of any other address it makes no difference.
        let has_families = !ip.is_unspecified() || !self.only_v6;
        self.address.ip() == ip && has_port && has_families && self.interface == bind.interface
    }
}
