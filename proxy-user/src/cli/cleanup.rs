//! `limpid cleanup`.

use clap::Args;
use thiserror::Error;

use super::{BpffsArgs, ControlArgs, InstanceArgs};
use crate::bpf::attach::{self, RemoveError};
use crate::bpf::pins::{Pins, PinsError};
use crate::control::server::remove_stale;

/// Arguments of `limpid cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Which limpid.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// Where it pinned.
    #[command(flatten)]
    pub bpffs: BpffsArgs,

    /// Where it listened.
    #[command(flatten)]
    pub control: ControlArgs,
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
pub async fn cleanup(args: &CleanupArgs) -> Result<Vec<String>, CleanupError> {
    let pins = Pins::new(&args.bpffs.bpffs, &args.instance.instance);
    let _lock = pins.root().exists().then(|| pins.lock()).transpose()?;
    let socket = args.control.path(&args.instance);
    let mut removed = attach::remove(&pins)?.what;
    match remove_stale(&socket).await {
        Ok(true) => removed.push(format!("socket {}", socket.display())),
        Ok(false) => {}
        Err(e) => tracing::warn!("not removed: {e}"),
    }
    Ok(removed)
}
