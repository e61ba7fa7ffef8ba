//! The report: a table to read, numbers to keep, a plot to show.

mod json;
mod plot;
mod table;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::contender::Kind;
use crate::results::Results;
use crate::surroundings::Surroundings;

/// The file names in each folder that a report is written to.
const TEXT: &str = "bench.md";
const PLOT: &str = "bench.svg";
const NUMBERS: &str = "bench.json";

/// All there is to say about a run.
pub(crate) struct Report {
    /// What was asked for.
    pub settings: String,
    /// Who was measured, in the order of the columns.
    pub contenders: Vec<Kind>,
    /// What was measured.
    pub results: Results,
    /// Where.
    pub surroundings: Surroundings,
    /// What was left out, and what failed.
    pub notes: Vec<String>,
}

impl Report {
    fn names(&self) -> Vec<String> {
        self.contenders.iter().map(Kind::name).collect()
    }

    fn peers(&self) -> Vec<String> {
        let peers = self.contenders.iter().filter(|kind| kind.is_peer());
        peers.map(Kind::name).collect()
    }

    /// Tables, and what one has to know to read them. It is Markdown.
    pub(crate) fn text(&self) -> String {
        let (middle, most) = self.surroundings.company();
        let mut text = format!(
            "# Benchmark\n\nWritten by `cargo xtask bench`, all from one run.\n\n\
             * {}; {}\n* {}\n* load average before {}, after {}; CPUs busy with other work between \
             measurements: median {middle:.2}, at most {most:.2}\n",
            self.surroundings.machine,
            self.surroundings.programs.join(", "),
            self.settings,
            self.surroundings.load_before,
            self.surroundings.load_after,
        );
        for note in &self.notes {
            text += &format!("* {note}\n");
        }
        text += &format!("\n![Bars of the medians]({PLOT})\n\n## Medians\n\n");
        text += "± is half the range of the rounds, as a part of the median.\n\n";
        text += &table::medians(self);
        text += "\n\n## limpid, as a multiple of others\n\n";
        text += "The best peer is the best of HAProxy, HAProxy with splice and nginx, for each row. \
                 Of latencies, CPU time and memory less is better.\n\n";
        text += &table::ratios(self);
        text += &format!("\n\n{HOW}");
        text
    }

    /// Writes table and plot to each of `folders`, the numbers to the first only; returns what was
    /// written.
    pub(crate) fn write(&self, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for (n, folder) in folders.iter().enumerate() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            let mut files = vec![(TEXT, self.text() + "\n"), (PLOT, plot::svg(self)?)];
            if n == 0 {
                files.push((NUMBERS, format!("{:#}\n", json::numbers(self))));
            }
            for (name, content) in files {
                let path = folder.join(name);
                fs::write(&path, content).with_context(|| path.display().to_string())?;
                written.push(path);
            }
        }
        Ok(written)
    }
}

const HOW: &str = "\
## How it is measured

Client, proxy host and backend are network namespaces of one machine, joined by veth; every contender has
three of its own, so none meets another's rules, programs or sockets. They are measured in turn under each
load, and all of that once a round, with another one first in each round. The load generators run on the same
CPUs, so at saturation a contender is as fast as everything together is cheap.

* `direct`: routed, nothing else. `dnat`: routed, with the rules that Docker makes for a published port, and
  connection tracking. `haproxy`, `haproxy-splice` (`option splice-auto`), `nginx` (`stream`): a worker or
  thread for each CPU, no logs. `limpid-ENGINE`: `limpid run --splice ENGINE --source client` without access
  log, so the backend sees the client's address, which the peers do not show it.
* keep-alive, one request a connection: wrk against nginx, which answers 7 bytes. For one request a connection,
  64 connections at any time; hosts may use ports 1024 to 65535 and reuse those in TIME-WAIT.
* bulk: iperf3, one connection, as its receiver counts.
* CPU: busy time of all CPUs by `/proc/stat`, load generators and servers included; of the process (and its
  children) by `/proc/PID/stat`. Work in softirq is in the former only.
* fixed rate: our own client. Where a request is late because the answer before was, the wait counts.
* idle connection: growth of slabs and TCP's queue pages (`/proc/meminfo`, `/proc/net/sockstat`) while
  connections are opened that carry 5 bytes each way and then nothing. The kernel does not say which namespace
  its memory is for, so what `direct` grows by (the sockets of client and backend) is taken off, and the growth
  of the proxy process added (of the round in which it grew most, for it keeps its pages): that is the row of
  the proxy host. What is there before the first connection
  (tables of BPF maps, a proxy's pools) is not in it.
* stalled reader: one client sends, the backend accepts and does not read. What the client gets rid of, up to
  1 GiB, and the largest growth of kernel memory (total less free, cache and anonymous pages) and proxy process.
";
