//! The first stage: connections are accepted, and the accepting never ends by itself.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use proxy_core::address::{Listener, Peer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;

use crate::flow::Accepted;
use crate::sys;

/// Why nothing can be accepted at an address.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {call}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    call: &'static str,
    #[source]
    source: io::Error,
}

/// Why the listening socket of another daemon cannot be used.
#[derive(Debug, Error)]
pub enum InheritError {
    /// It listens elsewhere.
    #[error("the running limpid listens on {theirs}, and this one is to listen on {ours}")]
    Address {
        /// Where it listens.
        theirs: SocketAddr,
        /// What was asked for.
        ours: SocketAddr,
    },
    /// It accepts what comes by other interfaces.
    #[error(
        "the running limpid accepts connections from {}, and this one is to accept them from {}",
        interface_name(.theirs),
        interface_name(.ours)
    )]
    Interface {
        /// The interface that it is bound to, if any.
        theirs: Option<String>,
        /// What was asked for.
        ours: Option<String>,
    },
    /// It is in another network namespace.
    #[error("the running limpid is in another network namespace")]
    Namespace,
    /// The kernel does not tell, or the socket cannot be waited for.
    #[error("the running limpid's listening socket: {0}")]
    Socket(#[from] io::Error),
}

fn interface_name(name: &Option<String>) -> String {
    name.as_ref().map_or_else(
        || "any interface".to_owned(),
        |name| format!("interface {name}"),
    )
}

/// Connections waiting to be accepted; `net.core.somaxconn` may cap it.
const BACKLOG: i32 = 4096;

/// How long accepting rests after an error that will not go away by itself at once (EMFILE,
/// ENFILE, ENOBUFS, ENOMEM), at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Binds a socket that is to listen ([`open`]). An IPv6 address accepts IPv6 only, except `::`, which
/// accepts both. With `interface` only connections that arrive there are accepted.
pub fn bind(address: SocketAddr, interface: Option<&str>) -> Result<Socket, ListenError> {
    let failed = |call| {
        move |source| ListenError {
            address,
            call,
            source,
        }
    };
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(failed("socket"))?;
    if let SocketAddr::V6(v6) = address {
        socket
            .set_only_v6(!v6.ip().is_unspecified())
            .map_err(failed("IPV6_V6ONLY"))?;
    }
    socket
        .bind_device(interface.map(str::as_bytes))
        .map_err(failed("SO_BINDTODEVICE"))?;
    // A restart must not wait for the last daemon's connections to leave TIME-WAIT.
    socket
        .set_reuse_address(true)
        .map_err(failed("SO_REUSEADDR"))?;
    // Accepted connections inherit it.
    socket
        .set_tcp_nodelay(true)
        .map_err(failed("TCP_NODELAY"))?;
    socket.set_nonblocking(true).map_err(failed("O_NONBLOCK"))?;
    socket.bind(&address.into()).map_err(failed("bind"))?;
    Ok(socket)
}

/// The listening socket of another daemon, if it is what [`bind`] would have made.
pub fn inherit(
    socket: OwnedFd,
    address: SocketAddr,
    interface: Option<&str>,
) -> Result<Socket, InheritError> {
    let socket = Socket::from(socket);
    let here = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if !sys::share_network_namespace(&here, &socket)? {
        return Err(InheritError::Namespace);
    }
    let theirs = socket.local_addr()?.as_socket();
    let theirs = theirs.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let any_port = address.port() == 0;
    if theirs.ip() != address.ip() || !(any_port || theirs.port() == address.port()) {
        let ours = address;
        return Err(InheritError::Address { theirs, ours });
    }
    let theirs = socket.device()?;
    let theirs = theirs.map(|name| String::from_utf8_lossy(&name).into_owned());
    if theirs.as_deref() != interface {
        let ours = interface.map(str::to_owned);
        return Err(InheritError::Interface { theirs, ours });
    }
    Ok(socket)
}

/// Listens, now that everything is ready for whoever connects.
pub fn open(socket: Socket, address: SocketAddr) -> Result<TcpListener, ListenError> {
    let failed = |call| {
        move |source| ListenError {
            address,
            call,
            source,
        }
    };
    socket.listen(BACKLOG).map_err(failed("listen"))?;
    // Not earlier: of a socket that does not listen epoll says that it is closed, and tokio never
    // forgets that.
    TcpListener::from_std(socket.into()).map_err(failed("epoll"))
}

/// Lets clients send no larger segments than `bytes` (RFC 9293, 3.7.1): a packet of theirs becomes one on
/// the way to a backend.
pub fn clamp_segments(listener: &impl AsFd, bytes: u32) -> io::Result<()> {
    SockRef::from(listener).set_tcp_mss(bytes)
}

/// The next connection. Errors are logged, waited out where that helps, and never returned.
pub async fn accept(listener: &TcpListener) -> Accepted {
    let mut backoff = BACKOFF.0;
    loop {
        let error = match listener.accept().await {
            Ok((stream, peer)) => match stream.local_addr() {
                Ok(local) => {
                    return Accepted {
                        stream,
                        peer: Peer::new(peer),
                        listener: Listener::new(local),
                    };
                }
                Err(e) => e, // It was reset meanwhile.
            },
            Err(e) => e,
        };
        if is_of_one_connection(&error) {
            tracing::debug!("a connection ended before it was accepted: {error}");
            continue;
        }
        tracing::warn!("accept: {error}; trying again in {backoff:?}");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Errors that concern the one connection only: accept(2), "Error handling".
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::ENOTCONN
                | libc::EPERM
        )
    )
}
