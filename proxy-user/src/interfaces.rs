//! Which interfaces lead to the backends, and steering on each of them.

use std::collections::BTreeMap;

use proxy_core::address::Upstream;
use thiserror::Error;

use crate::bpf::Bpf;
use crate::bpf::attach::{AttachError, AttachMode, Place};
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
    attached: BTreeMap<u32, (Interface, Place)>,
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

    /// Attaches to the interfaces as they are now; programs that are still attached stay.
    pub async fn attach(
        &mut self,
        bpf: &mut Bpf,
        netlink: &Netlink,
    ) -> Result<(), InterfacesError> {
        let wanted = self.wanted(netlink).await?;
        // An index may come back with another interface behind it.
        self.attached
            .retain(|_, attached| wanted.contains(attached));
        for (interface, place) in wanted {
            let known = self.attached.contains_key(&interface.index);
            if known && bpf.is_attached(&interface, place) {
                continue;
            }
            if known {
                tracing::warn!(interface = %interface, "somebody has removed steering: attached again");
            }
            let mode = bpf.attach_steering(&interface, place, self.mode)?;
            tracing::info!(interface = %interface, %place, by = %mode, "steering attached");
            self.attached.insert(interface.index, (interface, place));
        }
        Ok(())
    }

    /// The upstream interfaces, and the ports of those that are bridges.
    async fn wanted(&self, netlink: &Netlink) -> Result<Vec<(Interface, Place)>, InterfacesError> {
        let mut wanted = Vec::new();
        for upstream in self.upstream_interfaces(netlink).await? {
            if upstream.bridge {
                let ports = netlink.ports(&upstream).await;
                let unknown = |source| InterfacesError::Unknown {
                    upstream: upstream.name.clone(),
                    source,
                };
                let ports = ports.map_err(unknown)?;
                wanted.extend(ports.into_iter().map(|port| (port, Place::BridgePort)));
            }
            wanted.push((upstream, Place::Upstream));
        }
        Ok(wanted)
    }

    async fn upstream_interfaces(
        &self,
        netlink: &Netlink,
    ) -> Result<Vec<Interface>, InterfacesError> {
        if let Some(name) = &self.named {
            let found = netlink.interface(name).await;
            let unknown = |source| InterfacesError::Unknown {
                upstream: name.clone(),
                source,
            };
            return Ok(vec![found.map_err(unknown)?]);
        }
        let mut wanted = Vec::new();
        let mut unknown = None;
        for upstream in &self.upstreams {
            match netlink.route(upstream.ip()).await {
                Ok(Route::Via(interface)) if !wanted.contains(&interface) => wanted.push(interface),
                Ok(Route::Via(_) | Route::Local) => {}
                Err(source) => {
                    let upstream = upstream.to_string();
                    unknown = Some(InterfacesError::Unknown { upstream, source });
                }
            }
        }
        // An address that cannot be reached now does not keep the others from being served.
        match unknown {
            Some(e) if wanted.is_empty() => Err(e),
            _ => Ok(wanted),
        }
    }
}
