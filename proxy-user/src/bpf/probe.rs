//! What this kernel offers, engine by engine: `limpid probe`.
//!
//! Features are asked of the kernel itself: a program or map of the kind is loaded and let go.
//! Versions count only where a kernel bug decides ([`fn@crate::splice::trust`]).

use std::error::Error;
use std::fmt;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::attach::query_tcx;
use super::dry_run::DryRun;
use super::sockmap::{Globals, kernel_version};
use super::{CAPABILITIES, LoadError, causes, errno};
use crate::splice::{Doubt, Trust, trust};
use crate::sys::repair;

/// What was found.
#[derive(Debug)]
pub struct Report {
    features: Vec<Feature>,
    /// How far the kernel's sockmap is relied on.
    trust: Trust,
}

/// One thing that an engine needs.
#[derive(Debug)]
struct Feature {
    name: &'static str,
    needed_for: &'static str,
    found: Found,
    essential: bool,
}

impl Feature {
    fn is_for(&self, engine: &str) -> bool {
        self.needed_for.split(", ").any(|other| other == engine)
    }
}

/// An engine that can be had.
const YES: &str = "yes";

/// What the kernel says about a feature.
#[derive(Debug)]
enum Found {
    /// It is there.
    Yes,
    /// It is not, or cannot be told: why.
    No(String),
    /// This process may not ask.
    Forbidden,
}

/// Asks the kernel. Nothing stays loaded.
#[must_use]
pub fn probe() -> Report {
    let version = kernel_version();
    let essential = |name, needed_for, found| Feature {
        name,
        needed_for,
        found,
        essential: true,
    };
    let features = vec![
        essential(
            "tc programs",
            "steering",
            program(ProgramType::SchedClassifier),
        ),
        essential("limpid's programs", "steering", own_programs()),
        Feature {
            name: "TCX links",
            needed_for: "steering, next to other tc programs",
            found: tcx(),
            essential: false,
        },
        essential("hash maps", "steering", map(MapType::Hash)),
        essential(
            "ring buffer",
            "packet, messages of the programs",
            map(MapType::RingBuf),
        ),
        essential(
            "redirect_neigh",
            "packet",
            answer(is_helper_supported(
                ProgramType::SchedClassifier,
                BpfHelper::BPF_FUNC_redirect_neigh,
            )),
        ),
        essential("TCP_REPAIR", "packet", repair()),
        essential("sk_skb programs", "sockmap", program(ProgramType::SkSkb)),
        essential("sockhash maps", "sockmap", map(MapType::SockHash)),
        essential(
            "kernel BTF",
            "sockmap",
            match Globals::from_kernel().known() {
                Ok(()) => Found::Yes,
                Err(e) => Found::No(e.to_string()),
            },
        ),
    ];
    Report {
        features,
        trust: trust(version),
    }
}

fn program(kind: ProgramType) -> Found {
    answer(is_program_supported(kind))
}

fn map(kind: MapType) -> Found {
    answer(is_map_supported(kind))
}

/// Does the verifier take the very programs? A kernel may have all that they need and yet refuse them.
fn own_programs() -> Found {
    match DryRun::verify() {
        Ok(()) => Found::Yes,
        Err(e) if errno(&e) == Some(libc::EPERM) => Found::Forbidden,
        // Without what the verifier has to say: that fills pages, and is in the log of `limpid run`.
        Err(LoadError::Program { program, .. }) => {
            Found::No(format!("no: the kernel refuses {program}"))
        }
        Err(e) => unanswered(&e),
    }
}

fn tcx() -> Found {
    match query_tcx() {
        Ok(()) => Found::Yes,
        Err(e) if errno(&e) == Some(libc::EINVAL) => {
            Found::No("no (Linux 6.6 has them): clsact is used".to_owned())
        }
        Err(e) => unanswered(&e),
    }
}

fn repair() -> Found {
    match repair::probe() {
        Ok(()) => Found::Yes,
        Err(e) => unanswered(&e),
    }
}

fn answer<E: Error + 'static>(supported: Result<bool, E>) -> Found {
    match supported {
        Ok(true) => Found::Yes,
        Ok(false) => Found::No("no".to_owned()),
        Err(e) => unanswered(&e),
    }
}

/// Why the kernel did not answer, with every cause.
fn unanswered(error: &(dyn Error + 'static)) -> Found {
    if errno(error) == Some(libc::EPERM) {
        return Found::Forbidden;
    }
    let mut text = format!("cannot tell: {error}");
    for cause in causes(error).skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    Found::No(text)
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(why) => f.write_str(why),
            Self::Forbidden => write!(f, "cannot tell: needs root, or {CAPABILITIES}"),
        }
    }
}

impl Report {
    /// The features that `engine` needs and does not have.
    fn missing(&self, engine: &str) -> Vec<&Feature> {
        self.features
            .iter()
            .filter(|f| f.essential && f.is_for(engine) && !matches!(f.found, Found::Yes))
            .collect()
    }

    /// The packets of its flows are steered, too.
    fn packet(&self) -> String {
        let steering = self.engine("steering");
        if steering == YES {
            self.engine("packet")
        } else {
            steering
        }
    }

    fn engine(&self, engine: &str) -> String {
        let missing = self.missing(engine);
        if let Some(forbidden) = missing.iter().find(|f| matches!(f.found, Found::Forbidden)) {
            forbidden.found.to_string()
        } else if missing.is_empty() {
            YES.to_owned()
        } else {
            let names: Vec<&str> = missing.iter().map(|f| f.name).collect();
            format!("no: {} missing", names.join(", "))
        }
    }

    fn sockmap(&self) -> String {
        let opt_in = |doubt: Doubt| {
            format!(
                "only by --splice sockmap: {} ({})",
                doubt.reason(),
                doubt.label()
            )
        };
        match self.trust {
            Trust::Trusted => self.engine("sockmap"),
            Trust::OptIn(_) if !self.missing("sockmap").is_empty() => self.engine("sockmap"),
            Trust::OptIn(doubt) => opt_in(doubt),
            Trust::Refused(doubt) => format!("no: {} ({})", doubt.reason(), doubt.label()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        writeln!(f, "kernel {}\n", release.trim())?;
        for feature in &self.features {
            let Feature {
                name,
                needed_for,
                found,
                ..
            } = feature;
            writeln!(f, "  {name:<17} {needed_for:<36} {found}")?;
        }
        writeln!(
            f,
            "\nsteering (--source client)  {}",
            self.engine("steering")
        )?;
        writeln!(f, "engine packet               {}", self.packet())?;
        writeln!(f, "engine sockmap              {}", self.sockmap())?;
        writeln!(f, "engine copy                 yes")
    }
}
