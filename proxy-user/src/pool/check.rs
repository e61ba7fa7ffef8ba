//! Active checks: is there somebody who accepts connections?
//!
//! A check connects as the proxy itself, whatever the source of clients' connections is. Servers that
//! expect a PROXY header get one that says so (rule 24), and the connection is closed in order, so
//! that no server logs an error.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_core::address::Upstream;
use proxy_core::balance::Policy;
use proxy_core::header::EncodeError;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use super::server::Server;
use crate::config::Pool;
use crate::send_proxy::SendProxy;

/// The first checks are spread over no more than this.
const FIRST_WITHIN: Duration = Duration::from_secs(2);

/// How the servers of a pool are checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checking {
    interval: Duration,
    timeout: Duration,
    header: Option<SendProxy>,
    policy: Policy,
}

/// Why a check has failed.
#[derive(Debug, Error)]
pub(super) enum CheckError {
    /// Nobody listens, or the network says so.
    #[error("check: connecting: {0}")]
    Connect(#[source] io::Error),
    /// No answer.
    #[error("check: no answer within {0:?}")]
    Timeout(Duration),
    /// The header cannot be written.
    #[error("check: PROXY header: {0}")]
    Header(#[from] EncodeError),
    /// It could not be sent.
    #[error("check: sending the PROXY header: {0}")]
    Send(#[source] io::Error),
}

impl Checking {
    /// As `pool` says; `None`: not at all.
    pub(super) fn new(pool: &Pool, policy: Policy) -> Option<Self> {
        Some(Self {
            interval: pool.check_interval?.get(),
            timeout: pool.check_timeout.get(),
            header: SendProxy::of(pool),
            policy,
        })
    }

    /// Checks the server at `upstream` for ever.
    pub(super) async fn run(self, server: Arc<Server>, upstream: Upstream) {
        let spread = self.interval.min(FIRST_WITHIN);
        let first = tokio::time::Instant::now() + spread.mul_f64(fastrand::f64());
        let mut ticks = interval_at(first, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !server.is_checked() {
                continue;
            }
            let started = Instant::now();
            let checked = timeout(self.timeout, self.connect(upstream)).await;
            let took = started.elapsed();
            match checked.unwrap_or(Err(CheckError::Timeout(self.timeout))) {
                Ok(stream) => {
                    server.checked(took, None, &self.policy);
                    // However long the server takes to close, the next check is in time.
                    let _ = timeout(self.timeout.min(self.interval / 2), close(stream)).await;
                }
                Err(error) => server.checked(took, Some(&error), &self.policy),
            }
        }
    }

    async fn connect(self, upstream: Upstream) -> Result<TcpStream, CheckError> {
        let connecting = TcpStream::connect(upstream.socket_addr());
        let mut stream = connecting.await.map_err(CheckError::Connect)?;
        if let Some(send_proxy) = self.header {
            let own = stream.local_addr().map_err(CheckError::Connect)?;
            let header = send_proxy.own_account(own, upstream)?;
            stream.write_all(&header).await.map_err(CheckError::Send)?;
        }
        Ok(stream)
    }
}

/// Sends a FIN and reads until the server's: what stays unread would make a RST of it.
async fn close(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unwanted = [0; 1024];
    while stream.read(&mut unwanted).await? > 0 {}
    Ok(())
}
