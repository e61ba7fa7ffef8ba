//! Which engine a flow gets, and why not a better one.

use std::fmt;
use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::PacketEngine;
use super::trust::{Doubt, Trust, trust};
use crate::bpf::sockmap::{Sockmap, SockmapError};

/// Who moves the bytes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Nobody above tc: packets of one leg become packets of the other.
    Packet,
    /// The kernel, from one socket's receive queue to the other's send queue.
    Sockmap,
    /// Userspace.
    Copy,
}

impl EngineKind {
    /// Stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Sockmap => "sockmap",
            Self::Copy => "copy",
        }
    }
}

/// What the operator asks for: `--splice`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The best engine that the flow and the kernel allow.
    #[default]
    Auto,
    /// `packet`; what it cannot take gets the best of the others.
    Packet,
    /// `sockmap`, on kernels that are not known to be free of its bugs too.
    Sockmap,
    /// `copy`.
    Copy,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Packet => "packet",
            Self::Sockmap => "sockmap",
            Self::Copy => "copy",
        })
    }
}

/// Why a flow did not get a better engine that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This kernel's sockmap is not relied on.
    Kernel(Doubt),
    /// The kernel's structures are not known: no BTF.
    NoBtf,
    /// The kernel refused the programs or the maps.
    ProgramsRefused,
    /// A peer had ended its stream before the flow was spliced (the kernel's EOPNOTSUPP).
    HalfClosed,
    /// Its packets do not carry an address of limpid's choice: there is no free port, or they leave by an
    /// interface that limpid is not attached to.
    NotSteered,
    /// The client's side comes or goes by an interface that limpid is not attached to: the loopback
    /// device, for one.
    NotAttached,
    /// This host's netfilter changes the addresses of the client's side.
    Translated,
    /// The client's side and the backend speak different versions of IP.
    FamiliesDiffer,
    /// The two connections have not negotiated the same TCP options.
    OptionsDiffer,
    /// The client's side may send larger segments than the backend has asked for.
    SegmentsDiffer,
    /// A peer's window is smaller than the unit that the other side counts it in (`tcp_rmem` allows
    /// buffers of a GiB, say).
    WindowTooSmall,
    /// Its listener accepts data with the SYN (`--fast-open`).
    FastOpen,
    /// Another flow is still in the tables with the same addresses and ports.
    TupleTaken,
    /// The tables are full.
    TableFull,
    /// The kernel refused to take a socket for another reason: it has a TLS or other upper layer
    /// protocol, or is in a sockmap already.
    SocketRefused,
}

impl Fallback {
    /// Stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel(doubt) => doubt.label(),
            Self::NoBtf => "no-btf",
            Self::ProgramsRefused => "programs-refused",
            Self::HalfClosed => "half-closed",
            Self::NotSteered => "not-steered",
            Self::NotAttached => "not-attached",
            Self::Translated => "translated",
            Self::FamiliesDiffer => "families-differ",
            Self::OptionsDiffer => "options-differ",
            Self::SegmentsDiffer => "segments-differ",
            Self::WindowTooSmall => "window-too-small",
            Self::FastOpen => "fast-open",
            Self::TupleTaken => "tuple-taken",
            Self::TableFull => "table-full",
            Self::SocketRefused => "socket-refused",
        }
    }

    /// What an insertion's error means.
    pub(super) fn of_insertion(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::HalfClosed,
            Some(libc::E2BIG | libc::ENOMEM) => Self::TableFull,
            _ if error.kind() == io::ErrorKind::StorageFull => Self::TableFull,
            _ => Self::SocketRefused,
        }
    }
}

impl From<&SockmapError> for Fallback {
    fn from(error: &SockmapError) -> Self {
        match error {
            SockmapError::Btf(_) => Self::NoBtf,
            SockmapError::Object(_)
            | SockmapError::Missing(_)
            | SockmapError::Program { .. }
            | SockmapError::Map { .. } => Self::ProgramsRefused,
        }
    }
}

/// Why the engine that was asked for cannot be had.
#[derive(Debug, Error)]
pub enum EnginesError {
    /// This kernel's sockmap does not work.
    #[error("--splice sockmap: this kernel cannot be used: {}", .0.reason())]
    Refused(Doubt),
    /// It could not be set up.
    #[error("--splice sockmap: {0}")]
    Sockmap(#[from] Arc<SockmapError>),
}

/// The engines of this daemon.
#[derive(Debug)]
pub struct Engines {
    /// `Err(None)`: it was not asked for, or cannot be had here.
    packet: Result<Arc<PacketEngine>, Option<Fallback>>,
    /// `Err(None)`: copying is what was asked for.
    sockmap: Result<Arc<Sockmap>, Option<Fallback>>,
}

impl Engines {
    /// Sets up what `choice` allows on a kernel of this version; `load` is called where sockmap is
    /// to be used.
    pub fn new(
        choice: Choice,
        version: Option<(u32, u32, u32)>,
        load: impl FnOnce() -> Result<Arc<Sockmap>, Arc<SockmapError>>,
    ) -> Result<Self, EnginesError> {
        let sockmap = match (choice, trust(version)) {
            (Choice::Copy, _) => Err(None),
            (Choice::Auto | Choice::Packet, Trust::OptIn(doubt) | Trust::Refused(doubt)) => {
                tracing::info!("sockmap is not used: {}", doubt.reason());
                Err(Some(Fallback::Kernel(doubt)))
            }
            (Choice::Auto | Choice::Packet, Trust::Trusted) => load().map_err(|error| {
                tracing::warn!("sockmap is not used: {error}");
                Some(Fallback::from(&*error))
            }),
            (Choice::Sockmap, Trust::Refused(doubt)) => return Err(EnginesError::Refused(doubt)),
            (Choice::Sockmap, Trust::OptIn(doubt)) => {
                tracing::warn!("sockmap at your own risk: {}", doubt.reason());
                Ok(load()?)
            }
            (Choice::Sockmap, Trust::Trusted) => Ok(load()?),
        };
        Ok(Self {
            packet: Err(None),
            sockmap,
        })
    }

    /// With the engine `packet` before the others.
    #[must_use]
    pub fn with_packet(self, packet: Option<Arc<PacketEngine>>) -> Self {
        let packet = packet.ok_or(None);
        Self { packet, ..self }
    }

    /// Without it, for this reason, if it was among them.
    #[must_use]
    pub fn without_packet(self, reason: Fallback) -> Self {
        let packet = self.packet.and(Err(Some(reason)));
        Self { packet, ..self }
    }

    /// Is the engine `packet` among them?
    #[must_use]
    pub fn has_packet(&self) -> bool {
        self.packet.is_ok()
    }

    pub(super) fn packet(&self) -> Result<&PacketEngine, Option<Fallback>> {
        self.packet.as_deref().map_err(|reason| *reason)
    }

    pub(super) fn sockmap(&self) -> Result<&Arc<Sockmap>, Option<Fallback>> {
        self.sockmap.as_ref().map_err(|fallback| *fallback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> Result<Arc<Sockmap>, Arc<SockmapError>> {
        Err(Arc::new(SockmapError::Missing("map SOURCES")))
    }

    #[test]
    fn auto_copies_on_a_kernel_without_the_fixes() {
        let engines =
            Engines::new(Choice::Auto, Some((6, 12, 34)), || panic!("not loaded")).expect("copies");
        assert_eq!(
            engines.sockmap().err(),
            Some(Some(Fallback::Kernel(Doubt::LosesData)))
        );
    }

    #[test]
    fn sockmap_asked_for_is_an_error_where_it_cannot_be() {
        let refused = Engines::new(Choice::Sockmap, Some((6, 2, 0)), unavailable);
        assert!(matches!(refused, Err(EnginesError::Refused(Doubt::Broken))));
        let opted_in = Engines::new(Choice::Sockmap, Some((5, 15, 100)), unavailable);
        assert!(
            matches!(opted_in, Err(EnginesError::Sockmap(_))),
            "it was tried"
        );
    }

    #[test]
    fn copy_asked_for_is_no_fallback() {
        let engines = Engines::new(Choice::Copy, Some((6, 18, 44)), unavailable).expect("copies");
        assert_eq!(engines.sockmap().err(), Some(None));
    }

    #[test]
    fn insertion_errors_have_reasons() {
        for (errno, reason) in [
            (libc::EOPNOTSUPP, "half-closed"),
            (libc::E2BIG, "table-full"),
            (libc::EBUSY, "socket-refused"),
            (libc::EINVAL, "socket-refused"),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(Fallback::of_insertion(&error).label(), reason);
        }
    }
}
