//! Debian's archive, read beside the machine's own apt: sources, lists and downloads have folders of
//! their own, nothing is installed, and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::step::{output, step};

/// What to look in. Kernels: 5.10 is Debian 11's, 6.1 is Debian 12's, 6.12 is offered to Debian 12 as
/// a backport, and all three get security updates.
const SOURCES: [&str; 5] = [
    "debian bullseye main",
    "debian-security bullseye-security main",
    "debian bookworm main",
    "debian bookworm-backports main",
    "debian-security bookworm-security main",
];

/// Debian signs both releases with keys of this file (package debian-archive-keyring).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// For how long lists are good. Kernels get an update every few weeks.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Debian's archive as of today.
pub(super) struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Reads the lists, at most once a day. Lists that cannot be renewed are used as they are.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "Debian's keys are not here ({KEYRING}, of the package debian-archive-keyring)"
        );
        for needed in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(needed))?;
        }
        let archive = Self { folder };
        let sources = SOURCES.map(|source| {
            format!("deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/{source}\n")
        });
        fs::write(archive.sources(), sources.concat())?;

        let stamp = archive.folder.join("updated");
        if !is_fresh(&stamp) {
            let updated = step("reading Debian's package lists", || {
                output(archive.apt("apt-get").arg("update"))
            });
            match updated {
                Ok(_) => fs::write(&stamp, "")?,
                Err(error) if stamp.exists() => {
                    eprintln!("    going on with older lists: {error:#}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(archive)
    }

    /// The names of all packages that begin with `prefix`.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Unpacks one package into `folder`, without those it depends on.
    pub(super) fn unpack(&self, package: &str, folder: &Path) -> Result<()> {
        let downloads = self.downloads()?;
        output(
            self.apt("apt-get")
                .args(["download", package])
                .current_dir(&downloads),
        )?;
        unpack_all(&downloads, folder)
    }

    /// Unpacks a package of the backports into `folder`, with all it depends on that the machine
    /// does not have.
    pub(super) fn unpack_with_dependencies(&self, package: &str, folder: &Path) -> Result<()> {
        let downloads = self.downloads()?;
        output(
            self.apt("apt-get")
                .args(["install", "--download-only", "--yes"])
                .args(["--no-install-recommends", "--target-release"])
                .args(["bookworm-backports", package]),
        )?;
        unpack_all(&downloads, folder)
    }

    /// Where apt puts packages; empty.
    fn downloads(&self) -> Result<PathBuf> {
        let folder = self.folder.join("cache/archives");
        fs::remove_dir_all(&folder)?;
        fs::create_dir_all(folder.join("partial"))?;
        Ok(folder)
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    /// A program of apt that has the machine's configuration, for it may need a proxy, but neither
    /// its sources nor its preferences. It only asks the machine what is installed.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, path) in [
            ("Dir::State", self.folder.clone()),
            ("Dir::Cache", self.folder.join("cache")),
            ("Dir::Etc::sourcelist", self.sources()),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State::status", "/var/lib/dpkg/status".into()),
        ] {
            command.arg(format!("-o={option}={}", path.display()));
        }
        command
            // As root, apt would download as a user who may not enter these folders.
            .arg("-o=APT::Sandbox::User=root")
            .arg("-o=Acquire::Languages=none")
            .arg("-o=Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false")
            .arg("-qq");
        command
    }
}

fn is_fresh(stamp: &Path) -> bool {
    fs::metadata(stamp)
        .and_then(|stamp| stamp.modified())
        .is_ok_and(|written| written.elapsed().is_ok_and(|age| age < FRESH))
}

/// Unpacks each package in `downloads`, and removes it.
fn unpack_all(downloads: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(downloads)? {
        let package = entry?.path();
        if package.extension().is_some_and(|name| name == "deb") {
            output(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&package)
                    .arg(folder),
            )
            .context("could not unpack a package")?;
            fs::remove_file(package)?;
        }
    }
    Ok(())
}
