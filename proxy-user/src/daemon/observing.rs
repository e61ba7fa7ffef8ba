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
    at: Option<(SocketAddr, AbortOnDropHandle<()>)>,
}

impl Scraped {
    /// From now on at `address`. On an error all is as before.
    pub(super) async fn listen(
        &mut self,
        address: Option<SocketAddr>,
        shared: &Arc<Shared>,
    ) -> Result<(), BindError> {
        if self.at.as_ref().map(|(at, _)| *at) == address {
            return Ok(());
        }
        self.at = match address {
            None => None,
            Some(address) => {
                let listener = http::bind(address).await?;
                let exporter = Exporter::new(&shared.registry, Read(Arc::clone(shared)));
                let serving = tokio::spawn(async move {
                    http::serve(listener, exporter).await;
                });
                Some((address, AbortOnDropHandle::new(serving)))
            }
        };
        Ok(())
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
