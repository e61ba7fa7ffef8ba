//! `limpid cleanup`.

use clap::Args;
use thiserror::Error;

use super::{BpffsArgs, InstanceArgs};
use crate::bpf::attach::{self, AttachError};
use crate::bpf::pins::{Pins, PinsError};
use crate::netlink::{Netlink, NetlinkError};

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
    /// There is no netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something could not be undone.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Removes what the instance left; returns a line for each thing.
pub async fn cleanup(args: &CleanupArgs) -> Result<Vec<String>, CleanupError> {
    let pins = Pins::new(&args.bpffs.bpffs, &args.instance.instance);
    if !pins.root().exists() {
        return Ok(Vec::new());
    }
    let _lock = pins.lock()?;
    let netlink = Netlink::open()?;
    Ok(attach::remove(&pins, &netlink).await?.what)
}
