//! `limpid cleanup`.

use clap::Args;
use thiserror::Error;

use super::{BpffsArgs, ControlArgs, InstanceArgs};
use crate::bpf::attach::{self, RemoveError};
use crate::bpf::forwards::ForwardTable;
use crate::bpf::pins::{Pins, PinsError};
use crate::control::server::remove_stale;
use crate::reset::Resets;

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

/// Tells both ends of every spliced flow that it is over: nobody would tell the backend later.
fn end_flows(pins: &Pins) {
    let Some(table) = ForwardTable::left_by(pins) else {
        return;
    };
    let resets = match Resets::open() {
        Ok(resets) => resets,
        Err(e) => return tracing::warn!("open flows end without a RST: {e}"),
    };
    for (tuple, entry) in table.entries() {
        table.end(entry.flow, &tuple);
        resets.answer(&tuple, &entry);
    }
}

/// Removes what the instance left; returns a line for each thing.
///
/// Filters of this network namespace are found without the pins too: a private BPF file system, as under
/// `ip netns exec`, goes with its last process, and they stay.
pub async fn cleanup(args: &CleanupArgs) -> Result<Vec<String>, CleanupError> {
    let pins = Pins::new(&args.bpffs.bpffs, &args.instance.instance);
    let _lock = pins.root().exists().then(|| pins.lock()).transpose()?;
    end_flows(&pins);
    let socket = args.control.path(&args.instance);
    let mut removed = attach::remove(&pins)?.what;
    match remove_stale(&socket).await {
        Ok(true) => removed.push(format!("socket {}", socket.display())),
        Ok(false) => {}
        Err(e) => tracing::warn!("not removed: {e}"),
    }
    Ok(removed)
}
