//! `limpid cleanup`.

use clap::Args;
use thiserror::Error;

use super::{BpffsArgs, InstanceArgs};
use crate::bpf::attach::{self, RemoveError};
use crate::bpf::pins::{Pins, PinsError};

/// Arguments of `limpid cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Which limpid.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// Where it pinned.
    #[command(flatten)]
    pub bpffs: BpffsArgs,
}

/// Why something stays.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// The instance is running, or its lock cannot be had.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Something could not be undone.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// Removes what the instance left; returns a line for each thing.
///
/// Filters of this network namespace are found without the pins too: a private BPF file system, as under
/// `ip netns exec`, goes with its last process, and they stay.
pub fn cleanup(args: &CleanupArgs) -> Result<Vec<String>, CleanupError> {
    let pins = Pins::new(&args.bpffs.bpffs, &args.instance.instance);
    let _lock = match pins.root().exists() {
        true => Some(pins.lock()?),
        false => None,
    };
    Ok(attach::remove(&pins)?.what)
}
