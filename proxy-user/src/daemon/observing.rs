//! What Prometheus is told besides what connections tell themselves, and where.

use std::net::SocketAddr;
use std::sync::Arc;

use proxy_common::flow::SteeringCounters;
use tokio_util::task::AbortOnDropHandle;

use super::shared::Shared;
use crate::metrics::http::{self, BindError};
use crate::metrics::{Exporter, Readings, ServerState, ServerView, TableView};
use crate::pool::{self, State};

/// The listener for scrapers, if there is one.
#[derive(Debug, Default)]
pub(super) struct Scraped {
    at: Option<Serving>,
}

/// An address that is listened on.
#[derive(Debug)]
struct Serving {
    address: SocketAddr,
    task: AbortOnDropHandle<()>,
}

impl Scraped {
    /// From now on at `address`. On an error all is as before.
    pub(super) async fn listen(
        &mut self,
        address: Option<SocketAddr>,
        shared: &Arc<Shared>,
    ) -> Result<(), BindError> {
        let exporter = || Exporter::new(&shared.registry, Read(Arc::clone(shared)));
        self.serve(address, exporter).await
    }

    async fn serve(
        &mut self,
        address: Option<SocketAddr>,
        exporter: impl Fn() -> Exporter,
    ) -> Result<(), BindError> {
        if self.at.as_ref().map(|at| at.address) == address {
            return Ok(());
        }
        let Some(address) = address else {
            self.at = None;
            return Ok(());
        };
        let error = match Serving::start(address, exporter()).await {
            Ok(serving) => {
                self.at = Some(serving);
                return Ok(());
            }
            Err(error) => error,
        };
        // It may be the own socket that is in the way: the unspecified address is every other one too.
        let ports_meet = |old: &mut Serving| old.address.port() == address.port();
        let Some(old) = self.at.take_if(|old| error.is_in_use() && ports_meet(old)) else {
            return Err(error);
        };
        let before = old.address;
        old.stop().await;
        let (serving, outcome) = match Serving::start(address, exporter()).await {
            Ok(serving) => (Ok(serving), Ok(())),
            Err(error) => (Serving::start(before, exporter()).await, Err(error)),
        };
        self.at = serving
            .inspect_err(|lost| tracing::error!("not served any more: {lost}"))
            .ok();
        outcome
    }
}

impl Serving {
    async fn start(address: SocketAddr, exporter: Exporter) -> Result<Self, BindError> {
        let listener = http::bind(address).await?;
        let serving = tokio::spawn(async move {
            http::serve(listener, exporter).await;
        });
        Ok(Self {
            address,
            task: AbortOnDropHandle::new(serving),
        })
    }

    /// Returns when the socket is closed.
    async fn stop(self) {
        self.task.abort();
        // An error is what an aborted task ends with.
        let _ = self.task.await;
    }
}

/// What is read at each scrape.
#[derive(Debug)]
struct Read(Arc<Shared>);

impl Readings for Read {
    fn servers(&self) -> Vec<ServerView> {
        let pools = self.0.pools();
        let views = pools.iter().flat_map(|(name, pool)| {
            let servers = pool.servers().into_iter();
            servers.map(move |server| view(name.as_str(), &server))
        });
        views.collect()
    }

    fn tables(&self) -> Vec<TableView> {
        let Some(kernel) = self.0.in_kernel() else {
            return Vec::new();
        };
        let (open, capacity) = kernel.steering.fill();
        vec![TableView {
            table: "flows",
            entries: open as u64,
            capacity: capacity as u64,
        }]
    }

    fn packets(&self) -> Option<SteeringCounters> {
        self.0.in_kernel()?.counters.sum().ok()
    }
}

fn view(pool: &str, server: &pool::ServerView) -> ServerView {
    ServerView {
        pool: pool.to_owned(),
        server: server.name.to_string(),
        state: match server.state {
            State::Up => ServerState::Up,
            State::Ejected => ServerState::Ejected,
            State::Down => ServerState::Down,
            State::Drain => ServerState::Drain,
            State::Disabled => ServerState::Disabled,
        },
        weight: server.weight,
        connections: u64::from(server.counts.open),
        connections_total: server.counts.total,
        connect_failures: server.counts.failed,
        checks_ok: server.checks.succeeded,
        checks_failed: server.checks.failed,
        ejections: server.counts.ejections,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::registry::Registry;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    /// A port that nobody has.
    async fn port() -> u16 {
        let listener = TcpListener::bind((ANY, 0)).await.unwrap();
        listener.local_addr().unwrap().port()
    }

    async fn listen(scraped: &mut Scraped, address: SocketAddr) -> Result<(), BindError> {
        let registry = Registry::default();
        let exporter = || Exporter::new(&registry, ());
        scraped.serve(Some(address), exporter).await
    }

    #[tokio::test]
    async fn an_address_may_become_every_address() {
        let port = port().await;
        let mut scraped = Scraped::default();
        for ip in [LOOPBACK, ANY, LOOPBACK] {
            listen(&mut scraped, (ip, port).into()).await.unwrap();
            TcpStream::connect((LOOPBACK, port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_address_that_another_has_leaves_all_as_it_was() {
        let port = port().await;
        let mut scraped = Scraped::default();
        listen(&mut scraped, (LOOPBACK, port).into()).await.unwrap();
        let other = Ipv4Addr::new(127, 0, 0, 2);
        let _other = TcpListener::bind((other, port)).await.unwrap();
        let error = listen(&mut scraped, (ANY, port).into()).await.unwrap_err();
        assert!(error.is_in_use(), "{error}");
        TcpStream::connect((LOOPBACK, port)).await.unwrap();
    }
}
