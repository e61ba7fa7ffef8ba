//! What this kernel offers, engine by engine: `limpid probe`.
//!
//! Features are asked of the kernel itself: a program or map of the kind is loaded and let go, limpid's own
//! programs among them. Versions count only where a kernel bug decides ([`fn@crate::splice::trust`]).

use std::error::Error;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::attach::query_tcx;
use super::dry_run;
use super::sockmap::{Globals, kernel_version};
use super::{LoadError, causes, errno};
use crate::splice::trust;
use crate::sys::repair;

mod report;

pub use report::Report;
use report::{Feature, Found, Program};

/// Asks the kernel. Nothing stays loaded.
#[must_use]
pub fn probe() -> Report {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let features = vec![
        Feature::essential(
            "tc programs",
            "steering",
            program(ProgramType::SchedClassifier),
        ),
        Feature::welcome("TCX links", "steering, next to other tc programs", tcx()),
        Feature::essential("hash maps", "steering", map(MapType::Hash)),
        Feature::essential(
            "ring buffer",
            "packet, messages of the programs",
            map(MapType::RingBuf),
        ),
        Feature::essential(
            "redirect_neigh",
            "packet",
            answer(is_helper_supported(
                ProgramType::SchedClassifier,
                BpfHelper::BPF_FUNC_redirect_neigh,
            )),
        ),
        Feature::essential("TCP_REPAIR", "packet", repair()),
        Feature::essential("sk_skb programs", "sockmap", program(ProgramType::SkSkb)),
        Feature::essential("sockhash maps", "sockmap", map(MapType::SockHash)),
        Feature::essential(
            "kernel BTF",
            "sockmap",
            match Globals::from_kernel().known() {
                Ok(()) => Found::Yes,
                Err(e) => Found::No(e.to_string()),
            },
        ),
    ];
    Report::new(
        release.trim().to_owned(),
        features,
        programs(),
        trust(kernel_version()),
    )
}

fn program(kind: ProgramType) -> Found {
    answer(is_program_supported(kind))
}

fn map(kind: MapType) -> Found {
    answer(is_map_supported(kind))
}

/// Does the verifier take the very programs? A kernel may have all that they need and yet refuse them.
fn programs() -> Vec<Program> {
    dry_run::verify()
        .into_iter()
        .map(|(program, verified)| {
            let instructions = verified.as_ref().ok().copied().flatten();
            let found = match verified {
                Ok(_) => Found::Yes,
                Err(e) if errno(&e) == Some(libc::EPERM) => Found::Forbidden,
                // Without what the verifier has to say: that fills pages, and is in the log of
                // `limpid run`.
                Err(LoadError::Program { .. }) => {
                    Found::No("no: the verifier refuses it".to_owned())
                }
                Err(e) => unanswered(&e),
            };
            Program {
                name: program.name,
                needed_for: program.needed_for,
                found,
                instructions,
            }
        })
        .collect()
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
