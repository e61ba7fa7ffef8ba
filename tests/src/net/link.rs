//! Links between two hosts: a virtual cable, a bridge, or a wire that a thread of ours carries.

use anyhow::Result;

use super::address::{Family, Host as HostAddress, PREFIXES, Segment};
use super::host::Host;
use super::wire::{Device, Impairment, Wire};

/// What joins two hosts.
#[derive(Clone, Debug, Default)]
pub enum LinkKind {
    /// A veth pair.
    #[default]
    Veth,
    /// A bridge on the near host, the far host plugged into it: Docker's shape.
    Bridge,
    /// A virtual network in a veth pair's frames (802.1Q): both ends are VLAN devices.
    Vlan,
    /// TUN devices, whose packets start at the IP header: WireGuard's shape.
    Tun(Impairment),
    /// TAP devices whose frames the test process carries, and may lose, repeat or rewrite.
    Tap(Impairment),
}

/// The number of the virtual network.
const VLAN: u16 = 7;

/// A link that is up and addressed. Dropping it stops the wire, if there is one; the interfaces end
/// with their namespaces.
pub struct Link {
    wire: Option<Wire>,
}

/// One end of a link.
pub(super) struct End<'a> {
    pub(super) host: &'a Host,
    /// The name of the interface that carries the address.
    pub(super) interface: &'a str,
    pub(super) address: HostAddress,
}

impl Link {
    /// Joins two hosts and gives both ends their addresses in `segment`.
    pub(super) fn join(
        kind: &LinkKind,
        segment: Segment,
        near: &End<'_>,
        far: &End<'_>,
    ) -> Result<Self> {
        let wire = match kind {
            LinkKind::Veth => {
                veth(near.host, near.interface, far.host, far.interface)?;
                None
            }
            LinkKind::Bridge => {
                let port = format!("{}p{}", near.interface, far.address.0);
                let bridge = near.host.try_run("ip", &["link", "show", near.interface])?;
                if !bridge.status.success() {
                    near.host
                        .ip(&format!("link add {} type bridge", near.interface))?;
                }
                veth(near.host, &port, far.host, far.interface)?;
                near.host
                    .ip(&format!("link set {port} master {} up", near.interface))?;
                None
            }
            LinkKind::Vlan => {
                let names = [near, far].map(|end| format!("{}-trunk", end.interface));
                veth(near.host, &names[0], far.host, &names[1])?;
                for (end, trunk) in [near, far].into_iter().zip(&names) {
                    end.host.ip(&format!("link set {trunk} up"))?;
                    end.host.ip(&format!(
                        "link add link {trunk} name {} type vlan id {VLAN}",
                        end.interface
                    ))?;
                }
                None
            }
            LinkKind::Tun(impairment) => Some(Wire::new(
                Device::Tun,
                (near.host, near.interface),
                (far.host, far.interface),
                impairment,
            )?),
            LinkKind::Tap(impairment) => Some(Wire::new(
                Device::Tap,
                (near.host, near.interface),
                (far.host, far.interface),
                impairment,
            )?),
        };
        near.address(segment)?;
        far.address(segment)?;
        Ok(Self { wire })
    }

    /// The wire, where the test process carries the frames.
    pub fn wire(&self) -> Option<&Wire> {
        self.wire.as_ref()
    }
}

impl<'a> End<'a> {
    pub(super) fn new(host: &'a Host, interface: &'a str, address: HostAddress) -> Self {
        Self {
            host,
            interface,
            address,
        }
    }

    /// Brings it up with its address in `segment`, if it has not got it.
    pub(super) fn address(&self, segment: Segment) -> Result<()> {
        let v4 = segment.address(self.address, Family::V4);
        let v6 = segment.address(self.address, Family::V6);
        if self.host.owns(v4)? {
            return Ok(());
        }
        let interface = self.interface;
        self.host.ip(&format!("link set {interface} up"))?;
        self.host
            .ip(&format!("addr add {v4}/{} dev {interface}", PREFIXES.0))?;
        self.host.ip(&format!(
            "addr add {v6}/{} dev {interface} nodad",
            PREFIXES.1
        ))
    }
}

fn veth(near: &Host, near_name: &str, far: &Host, far_name: &str) -> Result<()> {
    near.ip(&format!(
        "link add {near_name} type veth peer name {far_name} netns {}",
        far.namespace().display()
    ))
}
