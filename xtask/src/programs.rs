//! The programs that the integration tests, the demo and the benchmark put around limpid.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt;

/// A Debian package and a file of it that shows it is there, however it was installed.
struct Program {
    package: &'static str,
    proof: Proof,
}

enum Proof {
    Command(&'static str),
    File(&'static str),
}

/// Everything that tests and demo start. One line here is all that another program takes.
const PROGRAMS: &[Program] = &[
    Program {
        package: "bpftool",
        proof: Proof::Command("bpftool"),
    },
    Program {
        package: "curl",
        proof: Proof::Command("curl"),
    },
    Program {
        package: "haproxy",
        proof: Proof::Command("haproxy"),
    },
    Program {
        package: "iproute2",
        proof: Proof::Command("ip"),
    },
    Program {
        package: "iptables",
        proof: Proof::Command("iptables"),
    },
    Program {
        package: "libnginx-mod-stream",
        proof: Proof::File("/usr/lib/nginx/modules/ngx_stream_module.so"),
    },
    Program {
        package: "nftables",
        proof: Proof::Command("nft"),
    },
    Program {
        package: "nginx",
        proof: Proof::Command("nginx"),
    },
    Program {
        package: "prometheus",
        proof: Proof::Command("promtool"),
    },
    Program {
        package: "strace",
        proof: Proof::Command("strace"),
    },
    Program {
        package: "systemd",
        proof: Proof::Command("systemd-socket-activate"),
    },
];

/// What the benchmark starts beside these.
const LOAD_GENERATORS: &[Program] = &[
    Program {
        package: "iperf3",
        proof: Proof::Command("iperf3"),
    },
    Program {
        package: "wrk",
        proof: Proof::Command("wrk"),
    },
];

/// Installs what is missing for tests and demo, where packages can be installed.
pub(crate) fn install() -> Result<()> {
    provide(PROGRAMS.iter())
}

/// The same for the benchmark.
pub(crate) fn install_for_bench() -> Result<()> {
    provide(PROGRAMS.iter().chain(LOAD_GENERATORS))
}

fn provide(programs: impl Iterator<Item = &'static Program>) -> Result<()> {
    let missing: Vec<&str> = programs
        .filter(|program| !program.present())
        .map(|p| p.package)
        .collect();
    apt::install(&missing)
}

impl Program {
    fn present(&self) -> bool {
        match self.proof {
            Proof::File(path) => Path::new(path).exists(),
            Proof::Command(name) => {
                // Where administrators' commands are is not on every user's path.
                let path = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&path)
                    .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
                    .any(|folder| folder.join(name).is_file())
            }
        }
    }
}
