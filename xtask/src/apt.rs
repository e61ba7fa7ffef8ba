//! Debian packages: what is missing, and installing it without side effects on the machine's
//! services.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{self, Command};

use anyhow::{Context as _, Result, ensure};

use crate::step::{output, step};

/// Whether packages can be installed here; if not, why.
fn usable() -> Result<()> {
    ensure!(
        Path::new("/etc/debian_version").exists(),
        "this is not Debian"
    );
    ensure!(is_root(), "installing packages needs root");
    Ok(())
}

/// Whether this process may change the system.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Installs those of `packages` that are not installed. Services that come with them are neither
/// started nor enabled.
///
/// Nothing is ever removed for it: where a package conflicts with an installed one (Debian's old
/// `rustc` with `rustc-web`, for instance), this fails and apt's message says with which.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    usable()
        .with_context(|| format!("missing here, by the names of Debian's packages: {names}"))?;

    step(&format!("installing Debian packages: {names}"), || {
        // A fresh machine has no package lists, an old one has lists of versions that are gone.
        // One broken third-party source is no reason to stop: the install will tell.
        if let Err(error) = output(apt_get().arg("update")) {
            eprintln!("    warning: {error:#}");
        }
        let _services = ServicesStayDown::new()?;
        output(
            apt_get()
                .args(["install", "--no-install-recommends", "--no-remove"])
                .args(&missing),
        )?;
        for service in missing.iter().filter(|name| is_service(name)) {
            // Fails where there is no systemd, and there nothing would start.
            let _ = output(Command::new("systemctl").args(["disable", "--quiet", service]));
        }
        Ok(())
    })
}

/// Whether apt knows a version of `package` that it could install. Needs no root.
pub(crate) fn offers(package: &str) -> bool {
    output(Command::new("apt-cache").args(["policy", package]))
        .is_ok_and(|policy| policy.contains("Candidate:") && !policy.contains("Candidate: (none)"))
}

fn installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Abbrev}", package]))
        .is_ok_and(|status| status.starts_with("ii"))
}

fn is_service(package: &str) -> bool {
    Path::new("/lib/systemd/system")
        .join(format!("{package}.service"))
        .exists()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-y", "-qq", "-o", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_SUSPEND", "1");
    command
}

/// While it lives, packages cannot start services: Debian's maintainer scripts ask `policy-rc.d`
/// first (`/usr/share/doc/init-system-helpers/README.policy-rc.d.gz`).
///
/// An administrator's own policy is left in force. Ours asks whether xtask still lives, so that one
/// left behind by a killed xtask forbids nothing.
struct ServicesStayDown {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const SIGNED: &str = "# written by limpid's cargo xtask";

impl ServicesStayDown {
    fn new() -> Result<Self> {
        let present = fs::read_to_string(POLICY).ok();
        let ours = present.is_none_or(|policy| policy.contains(SIGNED));
        if ours {
            let policy = format!(
                "#!/bin/sh\n{SIGNED}\n[ -d /proc/{} ] && exit 101\nexit 0\n",
                process::id()
            );
            fs::write(POLICY, policy)
                .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("could not write {POLICY}"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for ServicesStayDown {
    fn drop(&mut self) {
        if self.ours {
            // Harmless if it stays, see above.
            let _ = fs::remove_file(POLICY);
        }
    }
}
