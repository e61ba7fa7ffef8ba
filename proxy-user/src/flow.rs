//! One connection, through all its stages: header, upstream, splice, record.
//!
//! Each stage takes what the one before it made, so none can be skipped.

use std::sync::Arc;

use proxy_core::address::{Listener, Peer};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::config::Name;
use crate::forwarded::Forwarded;
use crate::header::{self, AcceptProxy, Identified};
use crate::record::{Ending, Record};
use crate::registry::{Flow, Registry};
use crate::splice::{self, End, Engines, Limits, Spliced};
use crate::sys;
use crate::upstream::{ConnectError, Connected, Connector};

/// What all connections of a listener share.
#[derive(Debug)]
pub struct Service {
    /// Who may send a header; `None` where none is expected.
    pub accept_proxy: Option<AcceptProxy>,
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

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Who connected.
    pub peer: Peer,
    /// The address that it connected to.
    pub listener: Listener,
}

/// Takes a connection to its end, or to where it goes on without sockets. `stop` ends it early, with a
/// reset to both sides.
pub async fn serve(service: Arc<Service>, accepted: Accepted, stop: CancellationToken) {
    let record = Record::open(&service.registry, &Name::default(), accepted.peer);
    let flow = Arc::clone(record.flow());
    // Until both sides are connected, whatever ends the flow early is a failure to its client.
    sys::reset_on_close(&accepted.stream, true);
    let end = match stop
        .run_until_cancelled(open(&service, accepted, &flow))
        .await
    {
        None => splice_ending(End::Stopped),
        Some(Err(end)) => end,
        Some(Ok((identified, mut connected))) => {
            let age = u64::try_from(flow.accepted.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let legs = splice::Connected {
                downstream: identified.downstream,
                accepted_ns: sys::monotonic_ns().saturating_sub(age),
                client: identified.client,
                upstream: connected.stream,
                identity: connected.identity.as_mut(),
            };
            let spliced = splice::run(
                &service.engines,
                legs,
                &service.limits,
                &flow.progress,
                stop,
            );
            match (spliced.await, connected.identity) {
                (Spliced::Forwarded(forwarding), Some(identity)) => {
                    return service.forwarded.keep(record, forwarding, identity);
                }
                // The engine has switched what is steered, and nothing else.
                (Spliced::Forwarded(_), None) => splice_ending(End::Stopped),
                // The identity goes only now: its entries are needed as long as its socket is open.
                (Spliced::Ended(end), _) => splice_ending(end),
            }
        }
    };
    record.close(end);
}

/// Header and upstream: everything until bytes can flow.
async fn open(
    service: &Service,
    accepted: Accepted,
    flow: &Flow,
) -> Result<(Identified, Connected), Ending> {
    let Accepted {
        stream,
        peer,
        listener,
    } = accepted;
    let identified = header::identify(stream, peer, service.accept_proxy.as_ref())
        .await
        .map_err(|e| Ending::from(&e))?;
    let _ = flow.client.set(identified.client);
    flow.header_took(identified.took);
    let connected = connect(&service.connector, &identified, listener, flow)
        .await
        .map_err(|e| Ending::from(&e))?;
    let _ = flow.source.set(connected.source);
    flow.connect_took(connected.took);
    flow.progress.sent_up(connected.sent);
    Ok((identified, connected))
}

async fn connect(
    connector: &Connector,
    identified: &Identified,
    listener: Listener,
    flow: &Flow,
) -> Result<Connected, ConnectError> {
    let prepared = connector.prepare(identified)?;
    let upstream = prepared.upstream;
    let _ = flow.upstream.set(upstream);
    if let Some(source) = prepared.source() {
        let _ = flow.source.set(source);
    }
    tokio::select! {
        connected = connector.connect(prepared, identified, listener) => connected,
        // A FIN is no reason: the request may have come before it.
        _ = identified.downstream.ready(Interest::ERROR) => Err(ConnectError::Left(upstream)),
    }
}

/// How the end of a spliced flow is recorded.
pub fn splice_ending(end: End) -> Ending {
    end.into()
}
