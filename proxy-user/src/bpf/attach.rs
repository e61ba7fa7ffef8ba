//! The steering programs on interfaces: TCX links (Linux 6.6 and later) or clsact filters.
//!
//! Both outlive the daemon, so that the sockets it leaves behind can still finish in their client's
//! name. A TCX link is pinned; a clsact filter is noted in `ATTACHMENTS` before it is made.
//! Starting again replaces the program in place, without a gap.
//!
//! Among several programs on an interface ours is the first at ingress and the last at egress: the
//! others, like netfilter, see the proxy's own connections.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use aya::maps::{HashMap, MapData};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use nix::net::if_::if_indextoname;
use proxy_common::attachment::{AttachPoint, Attachment};
use thiserror::Error;

use super::pins::{Pins, PinsError};
use super::{Bpf, LoadError};
use crate::netlink::{Interface, LinkHeader, Netlink, NetlinkError};

/// How programs are put on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (Linux 6.6 and later).
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Why steering could not be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A program could not be loaded, or a map not be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel refused to attach.
    #[error("cannot attach to {direction} of {interface} by {mode}: {source}")]
    Refused {
        /// The interface.
        interface: String,
        /// "ingress" or "egress".
        direction: &'static str,
        /// "tcx" or "clsact".
        mode: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was attached before could not be read or undone.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A qdisc of ours could not be removed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The network namespace could not be told.
    #[error("cannot read /proc/self/ns/net: {0}")]
    Namespace(#[source] io::Error),
}

/// What an interface is to steering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Packets to the backends leave by it.
    Upstream,
    /// It is a port of such an interface.
    BridgePort,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upstream => "upstream",
            Self::BridgePort => "bridge port",
        })
    }
}

impl Place {
    // Replies first: no SYN may leave before its reply can be brought back.
    fn directions(self) -> &'static [Direction] {
        match self {
            Self::Upstream => &[Direction::Ingress, Direction::Egress],
            Self::BridgePort => &[Direction::Ingress],
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    fn program(self, header: LinkHeader) -> &'static str {
        match (self, header) {
            (Self::Ingress, LinkHeader::Ethernet) => "steer_ingress_l2",
            (Self::Egress, LinkHeader::Ethernet) => "steer_egress_l2",
            (Self::Ingress, LinkHeader::None) => "steer_ingress_l3",
            (Self::Egress, LinkHeader::None) => "steer_egress_l3",
        }
    }

    fn order(self) -> LinkOrder {
        match self {
            Self::Ingress => LinkOrder::first(),
            Self::Egress => LinkOrder::last(),
        }
    }

    /// Filters of a lower priority number run first.
    fn priority(self) -> u16 {
        match self {
            Self::Ingress => 1,
            Self::Egress => 0xc000,
        }
    }
}

impl Bpf {
    /// Puts the steering programs on `interface`, or replaces those of an earlier daemon there.
    /// Says which way was taken.
    ///
    /// A bridge's port gets the ingress program only: where `br_netfilter` is on, netfilter sees a
    /// reply there first, before the bridge itself does (`br_nf_pre_routing`), and what it makes of the
    /// packet then holds for good (`ip_sabotage_in`).
    pub fn attach_steering(
        &mut self,
        interface: &Interface,
        place: Place,
        mode: AttachMode,
    ) -> Result<AttachMode, AttachError> {
        let mode = match mode {
            AttachMode::Auto if tcx_supported() => AttachMode::Tcx,
            AttachMode::Auto => AttachMode::Clsact,
            named => named,
        };
        for &direction in place.directions() {
            match mode {
                AttachMode::Auto | AttachMode::Tcx => self.attach_tcx(interface, direction)?,
                AttachMode::Clsact => self.attach_clsact(interface, direction)?,
            }
        }
        Ok(mode)
    }

    fn steering_program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        let failed = |source| LoadError::Program {
            program: name,
            source: Box::new(source),
        };
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or(LoadError::Missing(name))?;
        let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(e) => Err(failed(e)),
        }
    }

    fn attach_tcx(&mut self, interface: &Interface, to: Direction) -> Result<(), AttachError> {
        let pin = self.pins.link(interface.index, to.label());
        let program = self.steering_program(to.program(interface.header))?;
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| AttachError::Refused {
            interface: interface.name.clone(),
            direction: to.label(),
            mode: "tcx",
            source,
        };
        match PinnedLink::from_pin(&pin) {
            Ok(pinned) => {
                let link: SchedClassifierLink = FdLink::from(pinned)
                    .try_into()
                    .map_err(|e: LinkError| refused(e.into()))?;
                match program.attach_to_link(link) {
                    Ok(id) => {
                        // The pin still holds the link; this handle may go.
                        drop(program.take_link(id).map_err(|e| refused(e.into()))?);
                        return Ok(());
                    }
                    // The interface of that index is gone (ENOLINK): the pin holds a dead link.
                    Err(_) => {
                        fs::remove_file(&pin).map_err(|e| refused(e.into()))?;
                    }
                }
            }
            Err(LinkError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(refused(e.into())),
        }
        let options = TcAttachOptions::TcxOrder(to.order());
        let id = program
            .attach_with_options(&interface.name, to.attach_type(), options)
            .map_err(|e| refused(e.into()))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|e| refused(e.into()))?
            .try_into()
            .map_err(|e: LinkError| refused(e.into()))?;
        link.pin(&pin).map_err(|e| refused(e.into()))?;
        Ok(())
    }

    fn attach_clsact(&mut self, interface: &Interface, to: Direction) -> Result<(), AttachError> {
        let point = attach_point(interface.index, to)?;
        let other = AttachPoint {
            egress: 1 - point.egress,
            ..point
        };
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| AttachError::Refused {
            interface: interface.name.clone(),
            direction: to.label(),
            mode: "clsact",
            source,
        };
        let record = attachments(&mut self.ebpf)?;
        let earlier = record.get(&point, 0).ok();
        let mut qdisc_added = earlier
            .or(record.get(&other, 0).ok())
            .map_or(0, |a| a.qdisc_added);
        match tc::qdisc_add_clsact(&interface.name) {
            Ok(()) => qdisc_added = 1,
            Err(TcError::AlreadyAttached) => {}
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(e) => return Err(refused(e.into())),
        }
        let program = self.steering_program(to.program(interface.header))?;
        let priority = earlier.map_or(to.priority(), |a| a.priority as u16);
        let replaced = earlier.filter(|a| a.handle != 0).and_then(|a| {
            let handle = TcHandle::from(a.handle);
            let link = SchedClassifierLink::attached(
                &interface.name,
                to.attach_type(),
                priority,
                handle,
                None,
            )
            .ok()?;
            program.attach_to_link(link).ok()
        });
        let id = match replaced {
            Some(id) => id,
            None => {
                let options = NlOptions {
                    priority,
                    handle: TcHandle::AUTO_ASSIGN,
                    classid: None,
                };
                program
                    .attach_with_options(
                        &interface.name,
                        to.attach_type(),
                        TcAttachOptions::Netlink(options),
                    )
                    .map_err(|e| refused(e.into()))?
            }
        };
        let link = program.take_link(id).map_err(|e| refused(e.into()))?;
        let noted = Attachment {
            handle: link.handle().map_err(|e| refused(e.into()))?.into(),
            priority: link.priority().map_err(|e| refused(e.into()))?.into(),
            qdisc_added,
            reserved: 0,
        };
        // The filter is to outlive this handle, whose drop would remove it.
        std::mem::forget(link);
        attachments(&mut self.ebpf)?
            .insert(point, noted, 0)
            .map_err(|source| {
                AttachError::Load(LoadError::Map {
                    map: "ATTACHMENTS",
                    source: Box::new(source),
                })
            })
    }
}

/// What a clean-up removed, for people to read.
#[derive(Debug, Default)]
pub struct Removed {
    /// Pins, filters and qdiscs.
    pub what: Vec<String>,
}

/// Removes every pin, link, filter and qdisc of an instance, and nothing else.
pub async fn remove(pins: &Pins, netlink: &Netlink) -> Result<Removed, AttachError> {
    let mut removed = Removed::default();
    let record = pins.map("attachments");
    if record.exists() {
        let failed = |source| {
            AttachError::Load(LoadError::Map {
                map: "ATTACHMENTS",
                source: Box::new(source),
            })
        };
        let map = MapData::from_pin(&record).map_err(failed)?;
        let map = aya::maps::Map::from_map_data(map).map_err(failed)?;
        let map: HashMap<_, AttachPoint, Attachment> = HashMap::try_from(map).map_err(failed)?;
        remove_filters(&map, netlink, &mut removed).await?;
    }
    removed.what.extend(
        pins.remove()?
            .iter()
            .map(|pin| format!("pin {}", pin.display())),
    );
    Ok(removed)
}

async fn remove_filters(
    record: &HashMap<MapData, AttachPoint, Attachment>,
    netlink: &Netlink,
    removed: &mut Removed,
) -> Result<(), AttachError> {
    let here = netns()?;
    let entries: Vec<_> = record.iter().flatten().collect();
    let mut qdiscs = std::collections::BTreeSet::new();
    for (point, attachment) in entries {
        if point.netns != here {
            tracing::warn!(
                "a filter is in another network namespace (net:[{}]): run cleanup there as well",
                point.netns
            );
            continue;
        }
        let Ok(name) = if_indextoname(point.ifindex) else {
            continue; // Gone with its interface.
        };
        let name = name.to_string_lossy().into_owned();
        let (to, direction) = match point.egress {
            0 => (TcAttachType::Ingress, "ingress"),
            _ => (TcAttachType::Egress, "egress"),
        };
        let link = SchedClassifierLink::attached(
            &name,
            to,
            attachment.priority as u16,
            TcHandle::from(attachment.handle),
            None,
        );
        match link.map(aya::programs::links::Link::detach) {
            Ok(Ok(())) => removed.what.push(format!("filter {direction} of {name}")),
            Ok(Err(e)) => tracing::warn!("filter {direction} of {name} was gone already: {e}"),
            Err(e) => tracing::warn!("interface {name}: {e}"),
        }
        if attachment.qdisc_added == 1 {
            qdiscs.insert((point.ifindex, name));
        }
    }
    for (ifindex, name) in qdiscs {
        if netlink.has_clsact_filters(ifindex).await? {
            tracing::info!("clsact of {name} stays: others have filters there");
            continue;
        }
        netlink.remove_clsact(ifindex).await?;
        removed.what.push(format!("qdisc clsact of {name}"));
    }
    Ok(())
}

/// Does the kernel have TCX? Asked of the loopback device, with a query that changes nothing.
#[must_use]
pub fn tcx_supported() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

fn attachments(
    ebpf: &mut aya::Ebpf,
) -> Result<HashMap<&mut MapData, AttachPoint, Attachment>, LoadError> {
    let map = ebpf
        .map_mut("ATTACHMENTS")
        .ok_or(LoadError::Missing("map ATTACHMENTS"))?;
    HashMap::try_from(map).map_err(|source| LoadError::Map {
        map: "ATTACHMENTS",
        source: Box::new(source),
    })
}

fn attach_point(ifindex: u32, direction: Direction) -> Result<AttachPoint, AttachError> {
    let egress = match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    };
    Ok(AttachPoint {
        netns: netns()?,
        ifindex,
        egress,
    })
}

/// The network namespace, as its inode number.
fn netns() -> Result<u64, AttachError> {
    fs::metadata("/proc/self/ns/net")
        .map(|file| file.ino())
        .map_err(AttachError::Namespace)
}
