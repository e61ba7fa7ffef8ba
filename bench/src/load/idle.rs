//! What an idle connection costs the proxy host.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::{Extent, Reading};
use crate::contender::Contender;
use crate::memory::Memory;
use crate::metric::Metric;
use crate::services::{echo, open};

/// For buffers to be given back and sockets to be done with.
const SETTLE: Duration = Duration::from_secs(2);

/// Opens connections, each of which carries a message each way and then nothing.
///
/// The kernel's part is of client and backend as well: the report takes off what `direct` needs.
pub(super) fn idle(on: &Contender, extent: &Extent) -> Result<Vec<Reading>> {
    let _echo = echo(&on.bed.backend)?;
    // The first one pays for what is made once.
    let first = open(&on.bed.client, on.target(), 1)?;
    let before = Memory::now(on.pid())?;
    let connections = open(&on.bed.client, on.target(), extent.idle)?;
    thread::sleep(SETTLE);
    let grown = Memory::now(on.pid())? - before;
    drop((first, connections));
    // Not in the way of what is measured next.
    thread::sleep(SETTLE);
    let each = |bytes: f64| bytes / extent.idle as f64 / 1024.0;
    Ok(vec![
        (Metric::IdleKernel, each(grown.objects)),
        (Metric::IdleProcess, each(grown.process)),
    ])
}
