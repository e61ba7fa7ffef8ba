//! `GET /metrics`.
//!
//! Whoever asks slowly, often or in numbers costs no more than [`CONNECTIONS`] sockets, and one reading a
//! [`FRESH`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::Exporter;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 16;

/// How long a request's header may take.
const HEADER: Duration = Duration::from_secs(5);

/// How long a connection may take: Prometheus itself waits no longer, unless told to.
const CONNECTION: Duration = Duration::from_secs(10);

/// Metrics are read no more often than that.
const FRESH: Duration = Duration::from_secs(1);

/// How long nobody is accepted after an error: there may be no descriptors.
const BACKOFF: Duration = Duration::from_millis(100);

/// `OpenMetrics` 1.0, "Protocol Negotiation".
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The address cannot be listened on.
#[derive(Debug, Error)]
#[error("--metrics {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

impl BindError {
    /// Has a socket the address already?
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

/// Listens for scrapers.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| BindError { address, source })
}

/// Serves metrics until it is dropped, and all connections with it.
pub async fn serve(listener: TcpListener, exporter: Exporter) -> Infallible {
    let cache = Arc::new(Cache {
        exporter: Arc::new(exporter),
        latest: Mutex::new(None),
    });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Never closed, so always had in the end.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let cache = Arc::clone(&cache);
                connections.spawn(async move {
                    converse(stream, &cache).await;
                    drop(place);
                });
            }
            Err(e) => {
                tracing::debug!("--metrics: accept: {e}");
                sleep(BACKOFF).await;
            }
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, cache: &Cache) {
    let service = service_fn(|request| answer(request, cache));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever asks badly or leaves early hurts nobody.
    let _ = timeout(CONNECTION, connection).await;
}

async fn answer(
    request: Request<Incoming>,
    cache: &Cache,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, body) = if request.uri().path() != "/metrics" {
        let body = Bytes::from_static(b"metrics are at /metrics\n");
        (StatusCode::NOT_FOUND, PLAIN, body)
    } else if request.method() != Method::GET {
        let body = Bytes::from_static(b"only GET is answered\n");
        (StatusCode::METHOD_NOT_ALLOWED, PLAIN, body)
    } else {
        (StatusCode::OK, OPEN_METRICS, cache.get().await)
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    Ok(response)
}

/// The latest metrics, as long as they are fresh.
#[derive(Debug)]
struct Cache {
    exporter: Arc<Exporter>,
    /// Locked while they are read: whoever asks meanwhile gets the same.
    latest: Mutex<Option<(Instant, Bytes)>>,
}

impl Cache {
    async fn get(&self) -> Bytes {
        let mut latest = self.latest.lock().await;
        if let Some((when, metrics)) = &*latest
            && when.elapsed() < FRESH
        {
            return metrics.clone();
        }
        let exporter = Arc::clone(&self.exporter);
        // Fails where the reading panics: then there is nothing to say.
        let metrics = spawn_blocking(move || exporter.encode())
            .await
            .unwrap_or_default();
        let metrics = Bytes::from(metrics);
        *latest = Some((Instant::now(), metrics.clone()));
        metrics
    }
}
