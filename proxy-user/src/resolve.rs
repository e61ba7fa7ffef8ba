//! Names of upstreams.

use std::io;

use proxy_core::address::Upstream;
use thiserror::Error;

use crate::config::{Target, TargetPort};

/// Why a name has no addresses.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The resolver failed.
    #[error("cannot resolve {0}: {1}")]
    Failed(Target, #[source] io::Error),
    /// It found nothing.
    #[error("{0} has no address")]
    NoAddress(Target),
}

/// The addresses of `name`, in the resolver's order.
pub async fn resolve(name: &Target) -> Result<Vec<Upstream>, ResolveError> {
    let Target::Host {
        host,
        port: TargetPort::Is(port),
    } = name
    else {
        return Err(ResolveError::NoAddress(name.clone()));
    };
    let found = tokio::net::lookup_host((host.as_str(), *port))
        .await
        .map_err(|e| ResolveError::Failed(name.clone(), e))?;
    let mut upstreams = Vec::new();
    for upstream in found.map(Upstream::new) {
        if !upstreams.contains(&upstream) {
            upstreams.push(upstream);
        }
    }
    if upstreams.is_empty() {
        return Err(ResolveError::NoAddress(name.clone()));
    }
    Ok(upstreams)
}
