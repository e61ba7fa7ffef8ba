//! One connection, through all its stages: header, upstream, splice, record.
//!
//! Each stage takes what the one before it made, so none can be skipped.

use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::sync::Arc;

use proxy_core::address::Client;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::admission::Admission;
use crate::config::{Name, Refuse};
use crate::forwarded::Forwarded;
use crate::header::{self, AcceptProxy};
use crate::listener::Accepted;
use crate::record::{Ending, Record};
use crate::registry::Registry;
use crate::send_proxy::UniqueId;
use crate::splice::{self, End, Engines, Limits, Spliced};
use crate::sys;
use crate::upstream::{ConnectError, Connected, Connector};

/// What all connections of a listener share, as the configuration says. A reload puts another in its place;
/// connections keep the one that they came to.
#[derive(Debug)]
pub struct Service {
    /// The listener's name.
    pub name: Name,
    /// Who may send a header; `None` where none is expected.
    pub accept_proxy: Option<AcceptProxy>,
    /// Which clients are let in, and how many.
    pub admission: Admission,
    /// How clients are refused.
    pub refuse: Refuse,
    /// How the backend is reached.
    pub connector: Connector,
    /// What moves the bytes.
    pub engines: Engines,
    /// Who keeps the flows that need no sockets.
    pub forwarded: Forwarded,
    /// Idle and half-close timeouts.
    pub limits: Limits,
    /// The open flows.
    pub registry: Registry,
}

/// Takes a connection to its end, or to where it goes on without sockets. What ends its flow early
/// ([`crate::registry::Flow::end`]) resets both sides.
pub async fn serve(service: Arc<Service>, accepted: Accepted) {
    let mut record = Record::open(
        &service.registry,
        &service.name,
        accepted.peer,
        accepted.listener,
    );
    let flow = Arc::clone(record.flow());
    // Until both sides are connected, whatever ends the flow early is a failure to its client.
    sys::reset_on_close(&accepted.stream, true);
    // In a box: it needs more memory than an open flow does, and gives that back.
    let opening = Box::pin(open(&service, accepted, &mut record));
    let opened = flow.stop.run_until_cancelled(opening).await;
    let end = match opened {
        None => End::Stopped.into(),
        Some(Err(end)) => end,
        Some(Ok((downstream, client, mut connected))) => {
            let age = u64::try_from(flow.accepted.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let legs = splice::Connected {
                downstream,
                accepted_ns: sys::monotonic_ns().saturating_sub(age),
                client,
                upstream: connected.stream,
                identity: connected.identity.as_mut(),
            };
            let spliced = splice::run(
                &service.engines,
                legs,
                &service.limits,
                &flow.progress,
                flow.stop.clone(),
            );
            match (spliced.await, connected.identity) {
                (Spliced::Forwarded(forwarding), Some(identity)) => {
                    let limits = service.limits;
                    return service.forwarded.keep(record, forwarding, identity, limits);
                }
                // The engine has switched what is steered, and nothing else.
                (Spliced::Forwarded(_), None) => End::Stopped.into(),
                // The identity goes only now: its entries are needed as long as its socket is open.
                (Spliced::Ended(end), _) => end.into(),
            }
        }
    };
    let stopped = flow.ended().filter(|_| end.label == End::Stopped.label());
    record.close(stopped.map_or(end, Ending::from));
}

/// Has a socket closed by a FIN. What is unread when it is closed would make that a RST
/// (`__tcp_close()`; RFC 2525, 2.17).
fn close(socket: &TcpStream) {
    /// A client that sends faster than this is read gets the RST.
    const MOST: usize = 64 << 10;
    sys::reset_on_close(socket, false);
    let socket = SockRef::from(socket);
    // An error: it is closed already.
    let _ = socket.shutdown(Shutdown::Write);
    let mut unread = [MaybeUninit::uninit(); 4 << 10];
    let mut read = 0;
    while read < MOST
        && let Ok(bytes) = socket.recv(&mut unread)
        && bytes > 0
    {
        read += bytes;
    }
}

/// Header, admission and upstream: everything until bytes can flow. Returns the client's side, whom it is for,
/// and the backend's side.
async fn open(
    service: &Service,
    accepted: Accepted,
    record: &mut Record,
) -> Result<(TcpStream, Client, Connected), Ending> {
    let Accepted {
        stream,
        peer,
        listener,
    } = accepted;
    let flow = Arc::clone(record.flow());
    let identified = header::identify(stream, peer, service.accept_proxy.as_ref())
        .await
        .map_err(|e| Ending::from(&e))?;
    let _ = flow.client.set(identified.client);
    let tlvs = identified.header.as_ref().map(|header| &header.tlvs);
    if let Some(id) = tlvs.and_then(UniqueId::among) {
        let _ = flow.unique_id.set(id);
    }
    flow.header_took(identified.took);
    let place = service.admission.admit(identified.client);
    record.admitted(place.map_err(|e| {
        match service.refuse {
            Refuse::Reset => sys::reset_on_close(&identified.downstream, true),
            Refuse::Close => close(&identified.downstream),
        }
        Ending::refused(e.label(), e.to_string())
    })?);
    flow.goes_to(service.connector.pool.name());
    let connected = tokio::select! {
        connected = service.connector.connect(&identified, listener, &flow) => connected,
        // A FIN is no reason: the request may have come before it.
        _ = identified.downstream.ready(Interest::ERROR) => Err(ConnectError::Left),
    };
    let (connected, lease) = connected.map_err(|e| Ending::from(&e))?;
    let _ = flow.source.set(connected.source);
    flow.connect_took(connected.took);
    flow.progress.sent_up(connected.sent);
    record.served_by(lease);
    Ok((identified.downstream, identified.client, connected))
}
