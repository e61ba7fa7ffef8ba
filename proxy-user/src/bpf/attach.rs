//! The steering programs on interfaces: TCX links (Linux 6.6 and later) or clsact filters.
//!
//! Both outlive the daemon, so that the sockets it leaves behind can still finish in their client's
//! name. A TCX link is pinned; a clsact filter carries the instance's name ([`super::clsact`]).
//! Starting again replaces the program in place, without a gap.
//!
//! Among several programs on an interface ours is the first at ingress and the last at egress: the
//! others, like netfilter, see the proxy's own connections.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use thiserror::Error;

use super::clsact::{self, Claim, ClsactError};
use super::pins::{Pins, PinsError};
use super::{Bpf, LoadError};
use crate::netlink::tc::Hook;
use crate::netlink::{Interface, LinkHeader};
use crate::sys::tcx;

/// How programs are put on an interface.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
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
    /// The kernel refused a TCX link.
    #[error("cannot attach to {hook} of {interface} by tcx: {source}")]
    Tcx {
        /// The interface.
        interface: String,
        /// Where on it.
        hook: Hook,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A filter could not be put on an interface.
    #[error("cannot attach to {hook} of {interface} by clsact: {source}")]
    Clsact {
        /// The interface.
        interface: String,
        /// Where on it.
        hook: Hook,
        /// Why not.
        #[source]
        source: ClsactError,
    },
}

/// Why something stays that was to be removed. Everything else was removed nevertheless.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// Filters or qdiscs.
    #[error(transparent)]
    Clsact(#[from] ClsactError),
    /// Pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Several things.
    #[error("{}", list(.0))]
    Several(Vec<RemoveError>),
}

fn list(errors: &[RemoveError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// What an interface is to steering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Packets of flows come and leave by it.
    Routed,
    /// It is a port of such an interface.
    BridgePort,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routed => "routed",
            Self::BridgePort => "bridge port",
        })
    }
}

impl Place {
    // Replies first: no SYN may leave before its reply can be brought back.
    fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Routed => &[Hook::Ingress, Hook::Egress],
            Self::BridgePort => &[Hook::Ingress],
        }
    }
}

fn program_name(hook: Hook, header: LinkHeader) -> &'static str {
    match (hook, header) {
        (Hook::Ingress, LinkHeader::Ethernet) => "steer_ingress_l2",
        (Hook::Egress, LinkHeader::Ethernet) => "steer_egress_l2",
        (Hook::Ingress, LinkHeader::None) => "steer_ingress_l3",
        (Hook::Egress, LinkHeader::None) => "steer_egress_l3",
    }
}

fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}

fn order(hook: Hook) -> LinkOrder {
    match hook {
        Hook::Ingress => LinkOrder::first(),
        Hook::Egress => LinkOrder::last(),
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
            AttachMode::Auto if query_tcx().is_ok() => AttachMode::Tcx,
            AttachMode::Auto => AttachMode::Clsact,
            named => named,
        };
        for &hook in place.hooks() {
            match mode {
                AttachMode::Auto | AttachMode::Tcx => self.attach_tcx(interface, hook)?,
                AttachMode::Clsact => self.attach_clsact(interface, hook)?,
            }
        }
        if let Err(e) = self.detach_other(interface, mode) {
            tracing::warn!("what an earlier daemon had on {interface} stays: {e}");
        }
        Ok(mode)
    }

    /// Do the programs that [`Self::attach_steering`] put there still run?
    ///
    /// Not where somebody has removed them, or the interface has been made again: a new interface may
    /// have the index and the name of the old one. Attaching again is the cure.
    #[must_use]
    pub fn is_attached(&self, interface: &Interface, place: Place) -> bool {
        place.hooks().iter().all(|&hook| {
            let name = program_name(hook, interface.header);
            let program = self.ebpf.program(name).and_then(|program| {
                let program: &SchedClassifier = program.try_into().ok()?;
                Some(program.info().ok()?.id())
            });
            program.is_some_and(|id| {
                runs_by_tcx(interface, hook, id)
                    || clsact::is_attached(self.pins.instance(), interface.index, hook, id)
            })
        })
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

    fn attach_tcx(&mut self, interface: &Interface, hook: Hook) -> Result<(), AttachError> {
        let pin = self.pins.link(interface.index, hook.label());
        let program = self.steering_program(program_name(hook, interface.header))?;
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| AttachError::Tcx {
            interface: interface.name.clone(),
            hook,
            source,
        };
        match PinnedLink::from_pin(&pin) {
            Ok(pinned) => {
                let link: SchedClassifierLink = FdLink::from(pinned)
                    .try_into()
                    .map_err(|e: LinkError| refused(e.into()))?;
                if let Ok(id) = program.attach_to_link(link) {
                    // The pin still holds the link; this handle may go.
                    drop(program.take_link(id).map_err(|e| refused(e.into()))?);
                    let id = program.info().map_err(|e| refused(e.into()))?.id();
                    if runs_by_tcx(interface, hook, id) {
                        return Ok(());
                    }
                }
                // The pinned link is that of an interface that is gone (ENOLINK), or of one with the
                // same index in another network namespace.
                fs::remove_file(&pin).map_err(|e| refused(e.into()))?;
            }
            Err(LinkError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(refused(e.into())),
        }
        let options = TcAttachOptions::TcxOrder(order(hook));
        let id = program
            .attach_with_options(&interface.name, attach_type(hook), options)
            .map_err(|e| refused(e.into()))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|e| refused(e.into()))?
            .try_into()
            .map_err(|e: LinkError| refused(e.into()))?;
        link.pin(&pin).map_err(|e| refused(e.into()))?;
        Ok(())
    }

    fn attach_clsact(&mut self, interface: &Interface, hook: Hook) -> Result<(), AttachError> {
        let refused = |source| AttachError::Clsact {
            interface: interface.name.clone(),
            hook,
            source,
        };
        let instance = self.pins.instance().to_owned();
        if self.clsact.is_none() {
            self.clsact = Some(Claim::new(&instance).map_err(refused)?);
        }
        let name = program_name(hook, interface.header);
        let program = self.steering_program(name)?;
        let program = program.fd().map_err(|source| LoadError::Program {
            program: name,
            source: Box::new(source),
        })?;
        clsact::attach(&instance, interface, hook, program.as_fd()).map_err(refused)
    }

    /// Removes what a daemon that attached the other way has left: packets are to be steered once.
    fn detach_other(&mut self, interface: &Interface, mode: AttachMode) -> Result<(), RemoveError> {
        match mode {
            AttachMode::Auto | AttachMode::Tcx => {
                let instance = self.pins.instance();
                Ok(clsact::remove(instance, interface.index, &mut self.clsact).map(drop)?)
            }
            AttachMode::Clsact => Ok(self.pins.remove_links(interface.index)?),
        }
    }
}

fn runs_by_tcx(interface: &Interface, hook: Hook, program: u32) -> bool {
    tcx::programs(interface.index, hook).is_ok_and(|programs| programs.contains(&program))
}

/// What a clean-up removed, for people to read.
#[derive(Debug, Default)]
pub struct Removed {
    /// Pins, filters and qdiscs.
    pub what: Vec<String>,
}

/// Removes every pin, link, filter and qdisc of an instance, and nothing else.
///
/// Filters are looked for in this network namespace; those in another are removed by a clean-up there.
pub fn remove(pins: &Pins) -> Result<Removed, RemoveError> {
    let mut removed = Removed::default();
    let mut failed: Vec<RemoveError> = Vec::new();
    let (filters, errors) = clsact::remove_all(pins.instance());
    removed.what.extend(filters);
    failed.extend(errors.into_iter().map(RemoveError::from));
    match pins.remove() {
        Ok(gone) => {
            let gone = gone.iter().map(|pin| format!("pin {}", pin.display()));
            removed.what.extend(gone);
        }
        Err(e) => failed.push(e.into()),
    }
    if failed.is_empty() {
        return Ok(removed);
    }
    for what in removed.what {
        tracing::info!("removed {what}");
    }
    Err(match failed.pop() {
        Some(only) if failed.is_empty() => only,
        last => RemoveError::Several(failed.into_iter().chain(last).collect()),
    })
}

/// Does the kernel have TCX? Asked of the loopback device, with a query that changes nothing.
pub fn query_tcx() -> io::Result<()> {
    /// `LOOPBACK_IFINDEX` of the kernel's `net/net_namespace.h`.
    const LOOPBACK: u32 = 1;
    tcx::programs(LOOPBACK, Hook::Ingress).map(drop)
}
