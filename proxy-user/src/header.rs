//! The second stage: who is the client?
//!
//! A downstream connection goes in; it comes out with its client known and with the payload that
//! was read beyond the header. The rules are `proxy_core::header`'s; here are the socket and the
//! deadline.

use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proxy_core::address::{Client, Peer};
use proxy_core::header::{Decoder, Header, Refusal, Status};
use proxy_core::network::Networks;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sys;

/// Who may send a header, and for how long we wait for it.
#[derive(Clone, Debug)]
pub struct AcceptProxy {
    /// Peers that may send one.
    pub trusted: Networks,
    /// The header's rules.
    pub decoder: Decoder,
    /// How long it may take, from the connection's arrival on.
    pub timeout: Duration,
}

/// A downstream connection whose client is known.
#[derive(Debug)]
pub struct Identified {
    /// The connection; everything up to `early` has been read from it.
    pub downstream: TcpStream,
    /// Whom the connection is for.
    pub client: Client,
    /// The header, where one was expected.
    pub header: Option<Header>,
    /// Payload that came with the header.
    pub early: BytesMut,
    /// How long the header took.
    pub took: Duration,
}

/// Why a connection was not taken.
#[derive(Debug, Error)]
pub enum IdentifyError {
    /// The peer is in none of the trusted networks.
    #[error("peer is not trusted to send a PROXY header (--trust)")]
    Untrusted,
    /// What it sent is not a valid header.
    #[error("PROXY header refused: {0}")]
    Refused(#[from] Refusal),
    /// The header was not complete in time.
    #[error("no complete PROXY header within {0:?}, {1} bytes came")]
    Timeout(Duration, usize),
    /// It closed first; load balancers' health checks do that.
    #[error("closed before the PROXY header was complete, {0} bytes came")]
    Closed(usize),
    /// Reading failed.
    #[error("reading the PROXY header: {0}")]
    Read(#[source] io::Error),
}

impl IdentifyError {
    /// The reason's stable name.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted-peer",
            Self::Refused(refusal) => refusal.label(),
            Self::Timeout(..) => "header-timeout",
            Self::Closed(_) => "closed-before-header",
            Self::Read(_) => "header-read-error",
        }
    }
}

/// Finds out whom `downstream` is for; `None` for `accept` means that no header is expected. A
/// connection that is not taken is closed in order.
pub async fn identify(
    downstream: TcpStream,
    peer: Peer,
    accept: Option<&AcceptProxy>,
) -> Result<Identified, IdentifyError> {
    let started = Instant::now();
    let mut early = BytesMut::new();
    let header = match accept {
        None => None,
        Some(accept) => match expect(&downstream, peer, accept, &mut early).await {
            Ok(header) => Some(header),
            Err(e) => {
                sys::reset_on_close(&downstream, false);
                return Err(e);
            }
        },
    };
    // Without usable addresses (LOCAL, UNKNOWN, …) the connection speaks for itself: rules 14, 16
    // and 17.
    let named = header.as_ref().and_then(Header::client);
    let client = named.unwrap_or_else(|| Client::new(peer.socket_addr()));
    Ok(Identified {
        downstream,
        client,
        header,
        early,
        took: started.elapsed(),
    })
}

/// The header of a trusted peer; what follows it stays in `buffer`.
async fn expect(
    downstream: &TcpStream,
    peer: Peer,
    accept: &AcceptProxy,
    buffer: &mut BytesMut,
) -> Result<Header, IdentifyError> {
    if !accept.trusted.contains(peer.ip()) {
        return Err(IdentifyError::Untrusted);
    }
    timeout(accept.timeout, read(downstream, &accept.decoder, buffer))
        .await
        .unwrap_or_else(|_| Err(IdentifyError::Timeout(accept.timeout, buffer.len())))
}

/// Reads until the header is complete; leaves what follows it in `buffer`.
async fn read(
    downstream: &TcpStream,
    decoder: &Decoder,
    buffer: &mut BytesMut,
) -> Result<Header, IdentifyError> {
    /// Most headers are complete with the first read; more is read as it is needed.
    const FIRST_READ: usize = 536;
    let mut need = 0;
    loop {
        downstream.readable().await.map_err(IdentifyError::Read)?;
        buffer.reserve(FIRST_READ.max(need));
        match downstream.try_read_buf(buffer) {
            Ok(0) => return Err(IdentifyError::Closed(buffer.len())),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(IdentifyError::Read(e)),
        }
        match decoder.decode(buffer)? {
            Status::Incomplete { need: more } => need = more.saturating_sub(buffer.len()),
            Status::Complete { header, consumed } => {
                let _ = buffer.split_to(consumed);
                return Ok(header);
            }
        }
    }
}
