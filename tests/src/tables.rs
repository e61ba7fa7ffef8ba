//! BPF maps, as an operator sees them: by bpftool.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::net::Host;

/// Where bpftool is.
pub const BPFTOOL: &str = "/usr/sbin/bpftool";

/// The entries of the map pinned at `pin`, each with its fields by name.
pub fn pinned(host: &Host, pin: &Path) -> Result<Vec<Value>> {
    let dump = bpftool(host, &["map", "dump", "pinned", &pin.to_string_lossy()])?;
    let entries = dump.as_array().context("no array")?;
    let formatted = entries.iter().map(|entry| entry["formatted"].clone());
    Ok(formatted.collect())
}

/// What `bpftool --json ARGS` prints.
pub(crate) fn bpftool(host: &Host, args: &[&str]) -> Result<Value> {
    let printed = host.run(BPFTOOL, &[args, &["--json"]].concat())?;
    ensure!(!printed.is_empty(), "bpftool {args:?} printed nothing");
    serde_json::from_str(&printed).with_context(|| printed)
}
