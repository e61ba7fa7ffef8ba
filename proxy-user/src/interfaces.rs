//! Which interfaces lead to the backends and to the clients, and the tc programs on each of them.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

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

/// Where clients come from, if their packets are to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downstream {
    /// The address that they connect to: the interfaces are those that have it.
    pub listen: IpAddr,
    /// Or the one that is named.
    pub named: Option<String>,
}

/// The interfaces of a daemon.
#[derive(Debug)]
pub struct Interfaces {
    named: Option<String>,
    upstreams: Vec<IpAddr>,
    downstream: Vec<Downstream>,
    mode: AttachMode,
    attached: BTreeMap<u32, (Interface, Place)>,
}

impl Interfaces {
    /// Those of the upstreams, or the one that is `named`; and those of the clients.
    #[must_use]
    pub fn new(named: Option<String>, mode: AttachMode) -> Self {
        Self {
            named,
            upstreams: Vec::new(),
            downstream: Vec::new(),
            mode,
            attached: BTreeMap::new(),
        }
    }

    /// Sets where clients and backends are; takes effect with [`Self::attach`].
    pub fn between(&mut self, downstream: Vec<Downstream>, upstreams: Vec<IpAddr>) {
        self.downstream = downstream;
        self.lead_to(upstreams);
    }

    /// Sets where backends are; takes effect with [`Self::attach`].
    pub fn lead_to(&mut self, upstreams: Vec<IpAddr>) {
        self.upstreams = upstreams;
    }

    /// Attaches to the interfaces as they are now; programs that are still attached stay.
    pub async fn attach(
        &mut self,
        bpf: &mut Bpf,
        netlink: &Netlink,
    ) -> Result<(), InterfacesError> {
        let wanted = self.wanted(netlink).await?;
        // An index may come back with another interface behind it; up or down, it is the same.
        let same = |(a, at): &(Interface, Place), (b, there): &(Interface, Place)| {
            (a.index, &a.name, a.header, at) == (b.index, &b.name, b.header, there)
        };
        self.attached
            .retain(|_, attached| wanted.iter().any(|other| same(attached, other)));
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

    /// The interfaces that the programs are on, by index.
    #[must_use]
    pub fn attached(&self) -> HashSet<u32> {
        self.attached.keys().copied().collect()
    }

    /// The largest TCP segment that fits on the way to every backend, in bytes without headers; `None`
    /// where that is not known.
    pub async fn largest_segment(&self, netlink: &Netlink) -> Option<u32> {
        let mut largest = None;
        for upstream in &self.upstreams {
            if let Ok(Route::Via(interface)) = netlink.route(*upstream).await {
                // IP and TCP headers without options (RFC 9293, 3.7.1).
                let headers = if upstream.is_ipv4() { 40 } else { 60 };
                let segment = interface.mtu.saturating_sub(headers);
                largest = Some(largest.map_or(segment, |other: u32| other.min(segment)));
            }
        }
        largest
    }

    /// The upstream interfaces, those of the clients, and the ports of those that are bridges.
    async fn wanted(&self, netlink: &Netlink) -> Result<Vec<(Interface, Place)>, InterfacesError> {
        let mut interfaces = self.upstream_interfaces(netlink).await?;
        for interface in self.downstream_interfaces(netlink).await? {
            if !interfaces
                .iter()
                .any(|known| known.index == interface.index)
            {
                interfaces.push(interface);
            }
        }
        let mut wanted = Vec::new();
        for interface in &interfaces {
            if interface.bridge {
                let ports = netlink.ports(interface).await;
                let unknown = |source| InterfacesError::Unknown {
                    upstream: interface.name.clone(),
                    source,
                };
                for port in ports.map_err(unknown)? {
                    wanted.push((port, Place::BridgePort));
                }
            }
        }
        wanted.extend(interfaces.into_iter().map(|i| (i, Place::Routed)));
        Ok(wanted)
    }

    async fn downstream_interfaces(
        &self,
        netlink: &Netlink,
    ) -> Result<Vec<Interface>, InterfacesError> {
        let mut wanted = Vec::new();
        for Downstream { listen, named } in &self.downstream {
            let unknown = |source| InterfacesError::Unknown {
                upstream: named.clone().unwrap_or_else(|| listen.to_string()),
                source,
            };
            if let Some(name) = named {
                wanted.push(netlink.interface(name).await.map_err(unknown)?);
                continue;
            }
            let found = netlink.interfaces_with_addresses().await.map_err(unknown)?;
            let suits =
                |addresses: &[IpAddr]| listen.is_unspecified() || addresses.contains(listen);
            let suited = found.into_iter().filter(|(_, addresses)| suits(addresses));
            wanted.extend(suited.map(|(interface, _)| interface));
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
            match netlink.route(*upstream).await {
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
