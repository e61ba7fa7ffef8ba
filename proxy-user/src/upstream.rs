//! The third stage: a connection to the backend, in the client's name.
//!
//! An identified downstream connection goes in; it comes out connected, with everything that the
//! backend must have before the splice already sent: the PROXY header, if we send one, together
//! with the payload at hand, in one write (rule 23).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_common::flow::{OFFER_SACK, OFFER_TIMESTAMPS};
use proxy_core::address::{Client, Listener, Upstream};
use proxy_core::header::EncodeError;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::header::Identified;
use crate::pool::{Lease, NoServer, Pool, Tried};
use crate::registry::Flow;
use crate::send_proxy::{Outgoing, SendProxy};
use crate::socket_options::SideOptions;
use crate::steering::{ClaimError, Identity, Offer, Steering};
use crate::sys::{self, repair};

/// Whose address the backend sees.
#[derive(Clone, Debug)]
pub enum Source {
    /// The proxy's own.
    Proxy {
        /// Where flows are entered whose packets the engine `packet` is to forward: they get a port
        /// that stays theirs when no socket has it.
        steering: Option<Arc<Steering>>,
    },
    /// The client's.
    Client {
        /// Where flows are entered.
        steering: Arc<Steering>,
        /// Where client and backend are of different families: the proxy's address, instead of a
        /// refusal.
        mismatch_proxy: bool,
    },
}

/// How backends are connected to.
#[derive(Clone, Debug)]
pub struct Connector {
    /// The servers.
    pub pool: Arc<Pool>,
    /// How many other servers are tried where connecting fails.
    pub retries: usize,
    /// Whose address it sees.
    pub source: Source,
    /// The header that it gets.
    pub send_proxy: Option<SendProxy>,
    /// How long connecting may take.
    pub timeout: Duration,
    /// What sockets of flows that keep theirs are told.
    pub options: SideOptions,
    /// What is offered to the backend is no more than the client's side has: the engine `packet` joins
    /// the two.
    pub alike: bool,
}

/// The upstream side of a flow.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub stream: TcpStream,
    /// Its place in the flow table, where it carries the client's address.
    pub identity: Option<Identity>,
    /// The source that the backend sees.
    pub source: SocketAddr,
    /// Payload that has gone to it, in bytes; not the header.
    pub sent: u64,
    /// How long connecting took.
    pub took: Duration,
}

/// Why the backend could not be reached.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// There is no server to connect to.
    #[error(transparent)]
    NoServer(#[from] NoServer),
    /// The flow could not get its client's address.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A socket could not be made.
    #[error("no socket for {0}: {1}")]
    Socket(Upstream, #[source] io::Error),
    /// The backend or the network on the way refused.
    #[error("connecting to {0}: {1}")]
    Connect(Upstream, #[source] io::Error),
    /// No answer at all.
    #[error("connecting to {0}: no answer within {1:?}")]
    Timeout(Upstream, Duration),
    /// SYNs left in the client's name, and nothing came back.
    #[error(
        "connecting to {upstream} as {source_address}: {syns} SYN(s) left within {timeout:?} and nothing \
         came back. The backend is down, drops them, or its replies to {source_address} do not come back \
         this way: its route to the client must lead through this host"
    )]
    NoReply {
        /// The backend.
        upstream: Upstream,
        /// The source that it saw.
        source_address: SocketAddr,
        /// How many SYNs left.
        syns: u64,
        /// How long we waited.
        timeout: Duration,
    },
    /// The SYN took a way without our programs, so the backend would see the proxy.
    #[error(
        "connecting to {0}: its packets leave by an interface that limpid is not attached to, or the \
         host translates them (see --upstream-interface); given up, since the backend would see the \
         proxy's address"
    )]
    NotSteered(Upstream),
    /// The header cannot be written.
    #[error("PROXY header to send: {0}")]
    Header(#[from] EncodeError),
    /// The header or the first payload could not be sent.
    #[error("sending the first bytes to {0}: {1}")]
    Send(Upstream, #[source] io::Error),
    /// The client's side could not be read.
    #[error("reading the client's first bytes: {0}")]
    Downstream(#[source] io::Error),
    /// The client's side was reset meanwhile.
    #[error("the client's side was reset while the backend was being connected to")]
    Left,
}

impl ConnectError {
    /// The reason's stable name.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoServer(e) => e.label(),
            Self::Claim(e) => e.label(),
            Self::Socket(..) => "socket-error",
            Self::Connect(_, e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                "upstream-refused"
            }
            Self::Connect(_, e) if e.kind() == io::ErrorKind::ConnectionReset => "upstream-reset",
            Self::Connect(_, e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
                "local-ports-exhausted"
            }
            Self::Connect(..) => "upstream-unreachable",
            Self::Timeout(..) => "upstream-timeout",
            Self::NoReply { .. } => "upstream-no-reply",
            Self::NotSteered(_) => "not-steered",
            Self::Header(e) => e.label(),
            Self::Send(..) => "upstream-send-error",
            Self::Downstream(_) => "downstream-read-error",
            Self::Left => "downstream-reset",
        }
    }

    /// Did the server, or the way to it, fail?
    fn is_the_servers(&self) -> bool {
        match self {
            Self::Connect(_, e) => e.kind() != io::ErrorKind::AddrNotAvailable,
            Self::Timeout(..) | Self::NoReply { .. } => true,
            _ => false,
        }
    }

    /// May it go better with another server? Nothing has been sent to this one.
    fn is_only_here(&self) -> bool {
        matches!(
            self,
            Self::Connect(..)
                | Self::Timeout(..)
                | Self::NoReply { .. }
                | Self::NotSteered(_)
                | Self::Claim(ClaimError::PortsTaken { .. } | ClaimError::ClientAddress { .. })
        )
    }
}

impl Connector {
    /// Connects to a server for `identified`, which has called `called`; to another one where that fails,
    /// before the client notices.
    pub async fn connect(
        &self,
        identified: &Identified,
        called: Listener,
        flow: &Flow,
    ) -> Result<(Connected, Lease), ConnectError> {
        // Before anything is sent: one that cannot be written ends the connection (rule 25).
        let header = self.encode_header(identified, called)?;
        if let Some(id) = header.as_ref().and_then(|header| header.unique_id.clone()) {
            let _ = flow.unique_id.set(id);
        }
        let mut tried = Tried::default();
        let mut failure = None;
        loop {
            let picked = self.pool.pick(identified.client, called.port(), &tried);
            // What went wrong with the last one says more than that there is no other.
            let lease = picked.map_err(|none| failure.take().unwrap_or(none.into()))?;
            let error = match self
                .connect_to(lease.upstream(), identified, header.as_ref())
                .await
            {
                Ok(connected) => {
                    lease.connected(connected.took);
                    flow.is_at(&lease);
                    return Ok((connected, lease));
                }
                Err(error) => error,
            };
            if error.is_the_servers() {
                lease.failed();
            }
            tried.add(&lease);
            if !error.is_only_here() || tried.len() > self.retries {
                flow.is_at(&lease);
                return Err(error);
            }
            flow.retried();
            tracing::debug!(client = %identified.client, "trying another server: {error}");
            failure = Some(error);
        }
    }

    /// Connects to one.
    async fn connect_to(
        &self,
        upstream: Upstream,
        identified: &Identified,
        header: Option<&Outgoing>,
    ) -> Result<Connected, ConnectError> {
        let socket = self
            .new_socket(upstream)
            .map_err(|e| ConnectError::Socket(upstream, e))?;
        let offer = if self.alike {
            offer(&identified.downstream)
        } else {
            Offer::ANY
        };
        let mut identity = self.claim(&socket, identified.client, upstream, offer)?;
        let started = Instant::now();
        let connecting = timeout(self.timeout, socket.connect(upstream.socket_addr()));
        let mut stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            // The kernel's own limit (tcp_syn_retries) was the shorter one.
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ETIMEDOUT) => {
                return Err(self.no_answer(upstream, identity.as_ref()));
            }
            Ok(Err(e)) => return Err(ConnectError::Connect(upstream, e)),
            Err(_) => return Err(self.no_answer(upstream, identity.as_ref())),
        };
        let local = stream
            .local_addr()
            .map_err(|e| ConnectError::Socket(upstream, e))?;
        if let Some(claimed) = &mut identity
            && !claimed.confirm(local)
        {
            if let Source::Client { .. } = self.source {
                return Err(ConnectError::NotSteered(upstream));
            }
            // It shows the proxy's address all the same, with a port of the kernel's.
            identity = None;
        }
        let source = identity.as_ref().map_or(local, Identity::source);
        let took = started.elapsed();
        let sent = self
            .send_first(&mut stream, header, identified, upstream)
            .await?;
        Ok(Connected {
            stream,
            identity,
            source,
            sent,
            took,
        })
    }

    fn new_socket(&self, upstream: Upstream) -> io::Result<TcpSocket> {
        let socket = match upstream.socket_addr() {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // What the client sent in one piece has been sent in one piece: nothing is gained by waiting.
        socket.set_nodelay(true)?;
        sys::reset_on_close(&socket, true);
        if self.options != SideOptions::default() {
            self.options.apply(&socket).map_err(|e| e.source)?;
        }
        Ok(socket)
    }

    fn claim(
        &self,
        socket: &TcpSocket,
        client: Client,
        upstream: Upstream,
        offer: Offer,
    ) -> Result<Option<Identity>, ConnectError> {
        match &self.source {
            Source::Client {
                steering,
                mismatch_proxy,
            } => match steering.claim(socket, client, upstream, offer) {
                Ok(identity) => Ok(Some(identity)),
                Err(ClaimError::FamilyMismatch { .. }) if *mismatch_proxy => Ok(None),
                Err(e) => Err(e.into()),
            },
            Source::Proxy { steering } => {
                let own = steering.as_ref().zip(own_address(upstream));
                // Without, the flow is as good, and another engine's.
                Ok(own.and_then(|(steering, own)| {
                    steering.claim_own(socket, own, upstream, offer).ok()
                }))
            }
        }
    }

    fn no_answer(&self, upstream: Upstream, identity: Option<&Identity>) -> ConnectError {
        let Some(identity) = identity else {
            return ConnectError::Timeout(upstream, self.timeout);
        };
        match identity.packets() {
            (0, _) => ConnectError::NotSteered(upstream),
            (syns, 0) => ConnectError::NoReply {
                upstream,
                source_address: identity.source(),
                syns,
                timeout: self.timeout,
            },
            (_, _) => ConnectError::Timeout(upstream, self.timeout),
        }
    }

    /// The header that this connection begins with, if one is sent.
    fn encode_header(
        &self,
        identified: &Identified,
        called: Listener,
    ) -> Result<Option<Outgoing>, EncodeError> {
        let received = identified.header.as_ref();
        self.send_proxy
            .map(|send_proxy| send_proxy.header(identified.client, received, called))
            .transpose()
    }

    /// Sends the header and the payload that is at hand, in one write (rule 23). Returns the payload's
    /// length, in bytes.
    async fn send_first(
        &self,
        stream: &mut TcpStream,
        header: Option<&Outgoing>,
        identified: &Identified,
        upstream: Upstream,
    ) -> Result<u64, ConnectError> {
        let header = header.map_or(&[][..], |header| &header.bytes);
        let mut first = [header, &identified.early].concat();
        if !header.is_empty() && identified.early.is_empty() {
            append_at_hand(&identified.downstream, &mut first).map_err(ConnectError::Downstream)?;
        }
        if !first.is_empty() {
            stream
                .write_all(&first)
                .await
                .map_err(|e| ConnectError::Send(upstream, e))?;
        }
        Ok((first.len() - header.len()) as u64)
    }
}

/// The address that this host has towards a backend elsewhere.
fn own_address(upstream: Upstream) -> Option<IpAddr> {
    let any: IpAddr = if upstream.ip().is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // Connecting a datagram socket sends nothing: it looks the route up.
    let probe = UdpSocket::bind((any, 0)).ok()?;
    probe.connect(upstream.socket_addr()).ok()?;
    let own = probe.local_addr().ok()?.ip();
    (own != upstream.ip() && !own.is_loopback()).then_some(own)
}

/// What the client's side has.
fn offer(downstream: &TcpStream) -> Offer {
    let Ok(has) = repair::negotiated(downstream) else {
        return Offer::ANY; // It is gone, which will be seen.
    };
    let timestamps = if has.timestamps { OFFER_TIMESTAMPS } else { 0 };
    let sack = if has.sack { OFFER_SACK } else { 0 };
    Offer {
        mss: u16::try_from(has.largest_out).unwrap_or(u16::MAX),
        options: timestamps | sack,
    }
}

/// Reads what the client has already sent, without waiting for it: as much as one segment has room for
/// behind the header.
fn append_at_hand(downstream: &TcpStream, first: &mut Vec<u8>) -> io::Result<()> {
    /// What a segment carries on all usual paths, in bytes.
    const SEGMENT: usize = 1400;
    let room = SEGMENT.saturating_sub(first.len());
    if room == 0 {
        return Ok(());
    }
    first.reserve_exact(room);
    match downstream.try_read_buf(first) {
        // An end of file is for the splice to find: it is seen again.
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(e),
    }
}
