//! Accepting never ends by itself.

use std::io;
use std::time::Duration;

use proxy_core::address::{Listener, Peer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

/// How long accepting rests after an error that will not go away by itself at once (EMFILE,
/// ENFILE, ENOBUFS, ENOMEM), at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Who connected.
    pub peer: Peer,
    /// The address and port that it connected to, also where a range of ports has one socket.
    pub listener: Listener,
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

/// A connection that waits to be accepted, if there is one; the runtime is not asked, but the socket.
pub(super) fn waiting(listener: &TcpListener) -> Option<Accepted> {
    let (socket, peer) = SockRef::from(listener).accept().ok()?;
    socket.set_nonblocking(true).ok()?;
    let stream = TcpStream::from_std(socket.into()).ok()?;
    let local = stream.local_addr().ok()?;
    Some(Accepted {
        stream,
        peer: Peer::new(peer.as_socket()?),
        listener: Listener::new(local),
    })
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
