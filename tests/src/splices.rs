//! The sockmap engine's table, as an operator sees it: by bpftool.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::net::Host;
use crate::tables::bpftool;

/// The directions that the kernel moves for one daemon.
#[derive(Clone, Debug)]
pub struct Splices(Vec<Value>);

impl Splices {
    /// Dumps the table of the process `pid` on `host`. It is not pinned: the process's descriptors
    /// tell which of the machine's maps it is.
    pub fn of(host: &Host, pid: u32) -> Result<Self> {
        for id in maps(pid)? {
            let shown = bpftool(host, &["map", "show", "id", &id])?;
            if shown["name"] == "SPLICES" {
                let dump = bpftool(host, &["map", "dump", "id", &id])?;
                let entries = dump.as_array().context("no array")?;
                let values = entries.iter().map(|entry| &entry["formatted"]["value"]);
                return Ok(Self(values.cloned().collect()));
            }
        }
        anyhow::bail!("process {pid} has no map SPLICES")
    }

    /// The values of all directions.
    pub fn values(&self) -> &[Value] {
        &self.0
    }

    /// A field's sum over all directions.
    pub fn sum(&self, field: &str) -> Result<u64> {
        let number = |value: &Value| value[field].as_u64();
        let numbers = self.0.iter().map(number);
        numbers
            .sum::<Option<u64>>()
            .with_context(|| format!("no {field} in {:?}", self.0))
    }
}

/// The maps that a process has open, by id.
fn maps(pid: u32) -> Result<Vec<String>> {
    let folder = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        // A descriptor may have been closed meanwhile.
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"));
        ids.extend(id.map(|id| id.trim().to_owned()));
    }
    Ok(ids)
}
