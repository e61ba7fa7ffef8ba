//! Memory: of the process in the middle, and of the kernel.
//!
//! The kernel does not say which namespace its memory is for. So it is taken of the whole machine,
//! as a difference over a moment, and what the same connections take without a proxy is to be
//! subtracted.

use std::fs;
use std::ops::Sub;

use anyhow::{Context as _, Result};

use crate::cpu::tree;

const PAGE: f64 = 4096.0;

/// Bytes at a moment, or between two (then also negative).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// Resident pages of the process in the middle and its descendants.
    pub process: f64,
    /// What the kernel's connections are made of and hold: all slabs, and the pages of TCP's queues
    /// (`TCP: … mem` of /proc/net/sockstat).
    pub objects: f64,
    /// All the kernel has in use, by /proc/meminfo: total less free, page cache and anonymous pages.
    /// It sees what no account names, and everything else that happens on the machine.
    pub kernel: f64,
}

impl Memory {
    /// Now. `pid` is the process in the middle.
    pub(crate) fn now(pid: Option<u32>) -> Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let of = |name| kib(&meminfo, name).with_context(|| format!("no {name} in /proc/meminfo"));
        let queues = tcp_pages(&fs::read_to_string("/proc/net/sockstat")?).context("sockstat")?;
        let used = of("MemTotal:")? - of("MemFree:")?;
        let mut process = 0.0;
        for member in tree(pid)? {
            let status = fs::read_to_string(format!("/proc/{}/status", member.pid))?;
            process += kib(&status, "VmRSS:").unwrap_or(0.0);
        }
        Ok(Self {
            process,
            objects: of("Slab:")? + queues * PAGE,
            kernel: used - of("Cached:")? - of("Buffers:")? - of("AnonPages:")?,
        })
    }
}

impl Sub for Memory {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            process: self.process - earlier.process,
            objects: self.objects - earlier.objects,
            kernel: self.kernel - earlier.kernel,
        }
    }
}

/// In bytes.
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number * 1024.0)
}

/// `TCP: inuse 5 orphan 0 tw 0 alloc 9 mem 3`: the last is of all namespaces.
fn tcp_pages(sockstat: &str) -> Option<f64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))?;
    line.rsplit_once(" mem ")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let sockstat =
            "sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 9 mem 3\nUDP: inuse 0 mem 7";
        assert_eq!(tcp_pages(sockstat), Some(3.0));
        assert_eq!(kib("Slab:   12 kB\n", "Slab:"), Some(12288.0));
    }
}
