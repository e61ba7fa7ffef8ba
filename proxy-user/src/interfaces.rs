//! Which interfaces lead to the backends, and steering on each of them.

use std::collections::BTreeMap;

use proxy_core::address::Upstream;
use thiserror::Error;

use crate::bpf::Bpf;
use crate::bpf::attach::{AttachError, AttachMode};
use crate::netlink::{Interface, Netlink, NetlinkError, Route};

/// Why an interface could not be found or attached to.
#[derive(Debug, Error)]
pub enum InterfacesError {
    /// The kernel's tables do not tell.
    #[error("the interface towards {upstream}: {source}")]
    Unknown {
        /// The backend, or the interface's name.
        upstream: String,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// Attaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The upstream interfaces of a daemon.
#[derive(Debug)]
pub struct Interfaces {
    named: Option<String>,
    upstreams: Vec<Upstream>,
    mode: AttachMode,
    attached: BTreeMap<u32, Interface>,
}

impl Interfaces {
    /// Those of `upstreams`, or the one that is `named`.
    #[must_use]
    pub fn new(named: Option<String>, upstreams: Vec<Upstream>, mode: AttachMode) -> Self {
        Self {
            named,
            upstreams,
            mode,
            attached: BTreeMap::new(),
        }
    }

    /// Attaches to the interfaces as they are now; those that are attached already stay.
    pub async fn attach(
        &mut self,
        bpf: &mut Bpf,
        netlink: &Netlink,
    ) -> Result<(), InterfacesError> {
        let wanted = self.wanted(netlink).await?;
        self.attached.retain(|index, interface| {
            // An index may come back with another interface behind it.
            wanted.iter().all(|w| w.index != *index || w == interface)
        });
        for interface in wanted {
            if self.attached.contains_key(&interface.index) {
                continue;
            }
            let mode = bpf.attach_steering(&interface, self.mode)?;
            tracing::info!(interface = %interface, by = ?mode, "steering attached");
            self.attached.insert(interface.index, interface);
        }
        Ok(())
    }

    async fn wanted(&self, netlink: &Netlink) -> Result<Vec<Interface>, InterfacesError> {
        if let Some(name) = &self.named {
            let found = netlink.interface(name).await;
            let unknown = |source| InterfacesError::Unknown {
                upstream: name.clone(),
                source,
            };
            return Ok(vec![found.map_err(unknown)?]);
        }
        let mut wanted = Vec::new();
        for upstream in &self.upstreams {
            match netlink.route(upstream.ip()).await {
                Ok(Route::Via(interface)) if !wanted.contains(&interface) => wanted.push(interface),
                Ok(Route::Via(_) | Route::Local) => {}
                Err(source) => {
                    let upstream = upstream.to_string();
                    return Err(InterfacesError::Unknown { upstream, source });
                }
            }
        }
        Ok(wanted)
    }
}
