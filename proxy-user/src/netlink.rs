//! What the kernel's routing and link tables say, by rtnetlink.
//!
//! Reads only, but for [`tc`]. No route, rule or address is ever changed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup};
use thiserror::Error;

pub mod conntrack;
pub mod tc;

/// What a packet of an interface begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkHeader {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: WireGuard, tun, PPP.
    None,
}

/// An interface that packets of flows pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its packets begin with.
    pub header: LinkHeader,
    /// Is it a bridge?
    pub bridge: bool,
    /// The largest packet that it sends, in bytes from the IP header on.
    pub mtu: u32,
    /// Is it switched on (`IFF_UP`)? It may have no carrier.
    pub up: bool,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// It is an address of this very host.
    Local,
    /// It is reached through this interface.
    Via(Interface),
}

/// Why the kernel's tables gave no answer.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// A request failed.
    #[error("netlink request `{request}` failed: {source}")]
    Request {
        /// The request, as `ip` would spell it.
        request: String,
        /// What the kernel answered.
        #[source]
        source: rtnetlink::Error,
    },
    /// There is no route.
    #[error("no route to {0}")]
    NoRoute(IpAddr),
    /// There is no such interface.
    #[error("no interface named {0:?} in this network namespace")]
    NoInterface(String),
    /// The interface's packets begin with something else.
    #[error(
        "interface {name} has link type {link_type}: limpid steers on Ethernet-like interfaces and \
         on those without a link header (WireGuard, tun, PPP)"
    )]
    LinkType {
        /// The interface.
        name: String,
        /// Its type (`ARPHRD_*`).
        link_type: String,
    },
}

/// A netlink socket of this network namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens the socket; its I/O runs as a task of the current tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The way to `address` (`ip route get`).
    pub async fn route(&self, address: IpAddr) -> Result<Route, NetlinkError> {
        let failed = |source| NetlinkError::Request {
            request: format!("route get {address}"),
            source,
        };
        let mut request = RouteMessage::default();
        let (family, bits, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        request.header.address_family = family;
        request.header.destination_prefix_length = bits;
        request
            .attributes
            .push(RouteAttribute::Destination(destination));
        let mut answers = std::pin::pin!(self.handle.route().get(request).execute());
        let answer = match answers.try_next().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(NetlinkError::NoRoute(address)),
            Err(rtnetlink::Error::NetlinkError(e)) if unreachable(e.raw_code()) => {
                return Err(NetlinkError::NoRoute(address));
            }
            Err(e) => return Err(failed(e)),
        };
        if answer.header.kind == RouteType::Local {
            return Ok(Route::Local);
        }
        let index = answer
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
        let index = index.ok_or(NetlinkError::NoRoute(address))?;
        let request = || format!("link show index {index}");
        self.link(self.handle.link().get().match_index(index), request)
            .await
            .map(Route::Via)
    }

    /// The interface of that name (`ip link show`).
    pub async fn interface(&self, name: &str) -> Result<Interface, NetlinkError> {
        let request = || format!("link show {name}");
        match self
            .link(
                self.handle.link().get().match_name(name.to_owned()),
                request,
            )
            .await
        {
            Err(NetlinkError::Request {
                source: rtnetlink::Error::NetlinkError(e),
                ..
            }) if e.raw_code() == -libc::ENODEV => Err(NetlinkError::NoInterface(name.to_owned())),
            other => other,
        }
    }

    /// The ports of a bridge (`ip link show master …`).
    pub async fn ports(&self, bridge: &Interface) -> Result<Vec<Interface>, NetlinkError> {
        let mut ports = Vec::new();
        let mut links = std::pin::pin!(self.handle.link().get().execute());
        let request = || format!("link show master {bridge}");
        while let Some(message) =
            links
                .try_next()
                .await
                .map_err(|source| NetlinkError::Request {
                    request: request(),
                    source,
                })?
        {
            if message
                .attributes
                .contains(&LinkAttribute::Controller(bridge.index))
            {
                ports.push(interface_of(&message)?);
            }
        }
        Ok(ports)
    }

    /// The interfaces with addresses that are known beyond their link (RFC 4007, 4: of global scope;
    /// RFC 4193's are), and these addresses, in the order of their indexes. Not the loopback
    /// interface, and none whose packets begin with something that limpid does not know.
    pub async fn interfaces_with_addresses(
        &self,
    ) -> Result<Vec<(Interface, Vec<IpAddr>)>, NetlinkError> {
        let failed = |request: &str| {
            let request = request.to_owned();
            move |source| NetlinkError::Request { request, source }
        };
        let mut addresses = BTreeMap::<u32, Vec<IpAddr>>::new();
        let mut messages = std::pin::pin!(self.handle.address().get().execute());
        while let Some(message) = messages.try_next().await.map_err(failed("addr show"))? {
            if let Some(address) = global_address(&message) {
                let of_interface = addresses.entry(message.header.index).or_default();
                of_interface.push(address);
            }
        }
        let mut interfaces = BTreeMap::new();
        let mut messages = std::pin::pin!(self.handle.link().get().execute());
        while let Some(message) = messages.try_next().await.map_err(failed("link show"))? {
            if message.header.flags.contains(LinkFlags::Loopback) {
                continue;
            }
            if let Some(addresses) = addresses.remove(&message.header.index)
                && let Ok(interface) = interface_of(&message)
            {
                interfaces.insert(interface.index, (interface, addresses));
            }
        }
        Ok(interfaces.into_values().collect())
    }

    async fn link(
        &self,
        get: rtnetlink::LinkGetRequest,
        request: impl Fn() -> String,
    ) -> Result<Interface, NetlinkError> {
        let mut answers = std::pin::pin!(get.execute());
        match answers.try_next().await {
            Ok(Some(message)) => interface_of(&message),
            Ok(None) => Err(NetlinkError::NoInterface(request())),
            Err(source) => Err(NetlinkError::Request {
                request: request(),
                source,
            }),
        }
    }
}

/// Yields whenever links or routes have changed.
pub type Changes = BoxStream<'static, ()>;

/// A stream that yields whenever links or routes have changed.
pub fn changes() -> Result<Changes, NetlinkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _, messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    Ok(messages.map(|_| ()).boxed())
}

fn unreachable(code: i32) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ESRCH].contains(&-code)
}

/// The interface's own address that `message` tells of, if it means something beyond the link.
fn global_address(message: &AddressMessage) -> Option<IpAddr> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point interface this is the other end, if there is a local address too.
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            AddressAttribute::Local(address) => own = Some(*address),
            _ => {}
        }
    }
    // To the kernel the scope of an IPv4 address is what its owner says.
    own.filter(|own| !matches!(own, IpAddr::V4(v4) if v4.is_link_local()))
}

fn interface_of(message: &LinkMessage) -> Result<Interface, NetlinkError> {
    let name = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
        .unwrap_or_else(|| format!("index {}", message.header.index));
    let header = match message.header.link_layer_type {
        // The loopback device has (empty) Ethernet headers.
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkHeader::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Ppp
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Rawip => LinkHeader::None,
        other => {
            return Err(NetlinkError::LinkType {
                name,
                link_type: format!("{other:?}"),
            });
        }
    };
    let bridge = message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    });
    let mtu = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    Ok(Interface {
        index: message.header.index,
        name,
        header,
        bridge,
        mtu: mtu.unwrap_or_default(),
        up: message.header.flags.contains(LinkFlags::Up),
    })
}
