//! What this kernel offers, engine by engine: `limpid probe`.
//!
//! Features are asked of the kernel itself: a program or map of the kind is loaded and let go.
//! Versions count only where a kernel bug decides ([`crate::splice::trust`]).

use std::error::Error;
use std::fmt;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

use super::attach::query_tcx;
use super::sockmap::{Globals, kernel_version};
use super::{CAPABILITIES, causes, errno};
use crate::splice::{Doubt, Trust, trust};

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
    /// What is there, or what is missing.
    found: Result<String, String>,
    essential: bool,
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
        Feature {
            name: "TCX links",
            needed_for: "steering, next to other tc programs",
            found: tcx(),
            essential: false,
        },
        essential("hash maps", "steering", map(MapType::Hash)),
        essential(
            "ring buffer",
            "messages of the programs",
            map(MapType::RingBuf),
        ),
        essential("sk_skb programs", "sockmap", program(ProgramType::SkSkb)),
        essential("sockhash maps", "sockmap", map(MapType::SockHash)),
        essential(
            "kernel BTF",
            "sockmap",
            Globals::from_kernel()
                .known()
                .map(|()| "yes".to_owned())
                .map_err(ToString::to_string),
        ),
    ];
    Report {
        features,
        trust: trust(version),
    }
}

fn program(kind: ProgramType) -> Result<String, String> {
    answer(is_program_supported(kind))
}

fn map(kind: MapType) -> Result<String, String> {
    answer(is_map_supported(kind))
}

fn tcx() -> Result<String, String> {
    match query_tcx() {
        Ok(()) => Ok("yes".to_owned()),
        Err(e) if errno(&e) == Some(libc::EINVAL) => {
            Err("no (Linux 6.6 has them): clsact is used".to_owned())
        }
        Err(e) => Err(unknown(&e)),
    }
}

fn answer<E: Error + 'static>(supported: Result<bool, E>) -> Result<String, String> {
    match supported {
        Ok(true) => Ok("yes".to_owned()),
        Ok(false) => Err("no".to_owned()),
        Err(e) => Err(unknown(&e)),
    }
}

/// Why the kernel did not answer, with every cause.
fn unknown(error: &(dyn Error + 'static)) -> String {
    if errno(error) == Some(libc::EPERM) {
        return format!("needs root, or {CAPABILITIES}");
    }
    let mut text = format!("cannot tell: {error}");
    for cause in causes(error).skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl Report {
    /// What of the features that `engine` needs is missing.
    fn missing(&self, engine: &str) -> Vec<&'static str> {
        self.features
            .iter()
            .filter(|f| f.essential && f.found.is_err() && f.needed_for == engine)
            .map(|f| f.name)
            .collect()
    }

    fn engine(&self, engine: &str) -> String {
        let missing = self.missing(engine);
        if missing.is_empty() {
            "yes".to_owned()
        } else {
            format!("no: {} missing", missing.join(", "))
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
            let found = match &feature.found {
                Ok(found) | Err(found) => found,
            };
            writeln!(
                f,
                "  {:<16} {:<36} {found}",
                feature.name, feature.needed_for
            )?;
        }
        writeln!(
            f,
            "\nsteering (--source client)  {}",
            self.engine("steering")
        )?;
        writeln!(f, "engine sockmap              {}", self.sockmap())?;
        writeln!(f, "engine copy                 yes")
    }
}
