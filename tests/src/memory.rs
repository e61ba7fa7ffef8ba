//! How much memory flows hold: the daemon's own, and the kernel's for the sockets of its host.

use anyhow::{Context, Result};

use crate::net::Host;

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The daemon's resident pages, but for its code, which is read in as it is first run.
    pub daemon: u64,
    /// What the sockets of the host hold, by their own accounts (`ss -m`).
    pub sockets: u64,
    /// Kernel memory in use on the whole machine, by /proc/meminfo: total less free, page cache and
    /// anonymous pages. It sees what no account names.
    pub kernel: u64,
}

impl Memory {
    /// Measures the daemon `pid` on `host`.
    pub fn measure(host: &Host, pid: u32) -> Result<Self> {
        Ok(Self {
            daemon: resident(pid)?,
            sockets: sockets(&host.sh("ss -tmnH")?),
            kernel: kernel(&std::fs::read_to_string("/proc/meminfo")?).context("meminfo")?,
        })
    }

    /// The daemon's memory and that of its host's sockets.
    pub fn own(&self) -> u64 {
        self.daemon + self.sockets
    }
}

fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path)?;
    kib(&status, "RssAnon:").context("no RssAnon")
}

/// Sums `skmem:(r…,rb…,t…,tb…,f…,w…,…)`: receive queue, send queue and forward allocation.
///
/// What is allocated ahead can be negative for a moment, while the queues take from it; `ss` prints
/// its 32 bits without a sign.
fn sockets(printed: &str) -> u64 {
    let fields = printed
        .split("skmem:(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let sum: i64 = fields
        .flat_map(|list| list.split(','))
        .filter_map(|field| {
            let digits = field.find(|c: char| c.is_ascii_digit())?;
            let (name, value) = field.split_at(digits);
            let value = matches!(name, "r" | "w" | "f").then(|| value.parse::<u32>())?;
            Some(i64::from(value.ok()?.cast_signed()))
        })
        .sum();
    u64::try_from(sum).unwrap_or_default()
}

fn kernel(meminfo: &str) -> Option<u64> {
    let of = |name| kib(meminfo, name);
    let used = of("MemTotal:")?.checked_sub(of("MemFree:")?)?;
    Some(used.saturating_sub(of("Cached:")? + of("Buffers:")? + of("AnonPages:")?))
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let ss = "ESTAB 0 0 a b skmem:(r100,rb131072,t0,tb87040,f24,w1000,o0,bl0,d0)\n\
                  ESTAB 0 0 a b skmem:(r1,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)";
        assert_eq!(sockets(ss), 1125);
        let ahead = "ESTAB 0 0 a b skmem:(r9000,rb131072,t0,tb87040,f4294965248,w0,o0,bl0,d0)";
        assert_eq!(sockets(ahead), 9000 - 2048);
        let meminfo =
            "MemTotal: 100 kB\nMemFree: 50 kB\nBuffers: 1 kB\nCached: 9 kB\nAnonPages: 10 kB";
        assert_eq!(kernel(meminfo), Some(30 * 1024));
    }
}
