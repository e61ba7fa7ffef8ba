//! CPU time: of the whole machine, and of a process with its descendants.

use std::collections::HashMap;
use std::fs;
use std::ops::Sub;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU seconds up to a moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// What the machine's CPUs did that was not idling: load generators, servers, kernel, and
    /// whatever else runs here.
    pub machine: f64,
    /// User and system time of the process in the middle and its descendants.
    pub process: f64,
}

impl Cpu {
    /// Up to now. `pid` is the process in the middle.
    pub(crate) fn now(pid: Option<u32>) -> Result<Self> {
        let tick = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")? as f64;
        let stat = fs::read_to_string("/proc/stat")?;
        let machine = busy(&stat).context("/proc/stat")? as f64 / tick;
        let ticks: u64 = tree(pid)?.into_iter().map(|process| process.ticks).sum();
        Ok(Self {
            machine,
            process: ticks as f64 / tick,
        })
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            machine: self.machine - earlier.machine,
            process: self.process - earlier.process,
        }
    }
}

/// A line of /proc/PID/stat, of which we need three fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    /// Its process id.
    pub pid: u32,
    parent: u32,
    ticks: u64,
}

/// `root` and all its descendants.
pub(crate) fn tree(root: Option<u32>) -> Result<Vec<ProcessStat>> {
    let Some(root) = root else {
        return Ok(Vec::new());
    };
    let mut children: HashMap<u32, Vec<ProcessStat>> = HashMap::new();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // What ends while we look is not ours: the processes in the middle stay.
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        if let Some(process) = process(&stat) {
            if process.pid == root {
                found.push(process);
            }
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

/// proc(5): `cpu user nice system idle iowait irq softirq steal …`; guest time is part of user.
fn busy(stat: &str) -> Option<u64> {
    let fields = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let (idle, iowait, steal) = (*fields.get(3)?, *fields.get(4)?, *fields.get(7)?);
    Some(fields[..8].iter().sum::<u64>() - idle - iowait - steal)
}

/// proc(5): `pid (comm) state ppid …`, utime and stime being fields 14 and 15. The name may hold
/// anything, parentheses too.
fn process(stat: &str) -> Option<ProcessStat> {
    let (head, tail) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    Some(ProcessStat {
        pid: head.split_once(' ')?.0.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let stat = "cpu  100 1 20 5000 7 3 4 9 50 0\ncpu0 …";
        assert_eq!(busy(stat), Some(128));
        let stat = "42 (a) (b) S 7 42 42 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 5";
        let expected = ProcessStat {
            pid: 42,
            parent: 7,
            ticks: 42,
        };
        assert_eq!(process(stat), Some(expected));
    }

    #[test]
    fn this_process_is_in_its_own_tree() {
        let found = tree(Some(std::process::id())).expect("/proc");
        assert_eq!(found[0].pid, std::process::id());
    }
}
