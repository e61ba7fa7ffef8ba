//! Kernels to boot: Debian's newest of a series, or one that somebody has built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::archive::Archive;
use super::folder;
use crate::apt;
use crate::step::{output, step};

/// A kernel that is ready to be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says it there.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// All its modules, as `/lib/modules/RELEASE` has them.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The newest of a series, such as 5.10, that Debian has. It is downloaded, unless that version
    /// is there already.
    pub(super) fn of_debian(series: &str) -> Result<Self> {
        debian(series).with_context(|| format!("there is no kernel {series} to be had"))
    }

    /// Any image, with the folder of its modules.
    pub(super) fn given(image: &Path, modules: &Path) -> Result<Self> {
        let modules = fs::canonicalize(modules)
            .with_context(|| format!("there are no modules in {}", modules.display()))?;
        let release = modules.file_name().unwrap_or_default();
        ensure!(
            modules.join("modules.dep").exists(),
            "{} is not a folder as depmod leaves it: /lib/modules/RELEASE of some kernel",
            modules.display()
        );
        Ok(Self {
            release: release.to_string_lossy().into_owned(),
            image: fs::canonicalize(image)
                .with_context(|| format!("there is no image {}", image.display()))?,
            modules,
        })
    }
}

fn debian(series: &str) -> Result<Kernel> {
    // For depmod here and for modprobe in the guest.
    apt::install(&["kmod"])?;
    let archive = Archive::open(folder().join("apt"))?;
    let Some(release) = newest(series, &archive.names(&format!("{PACKAGE}{series}."))?) else {
        bail!("none of Debian's packages {PACKAGE}* is of this series");
    };

    let unpacked = folder().join(&release);
    if !unpacked.exists() {
        step(&format!("downloading kernel {release}"), || {
            // What is there under its name is complete.
            let partial = folder().join(format!("{release}.partial"));
            archive.unpack(&format!("{PACKAGE}{release}"), &partial)?;
            output(
                Command::new("/sbin/depmod")
                    .arg("--basedir")
                    .arg(&partial)
                    .arg(&release),
            )?;
            Ok(fs::rename(partial, &unpacked)?)
        })?;
    }
    Ok(Kernel {
        image: unpacked.join(format!("boot/vmlinuz-{release}")),
        modules: unpacked.join("lib/modules").join(&release),
        release,
    })
}

/// How Debian names its kernels' packages, before the kernel's release.
const PACKAGE: &str = "linux-image-";

/// Of packages by name, the newest kernel of a series; its release.
///
/// The flavour for ordinary machines: the one for clouds has no 9p, through which the guest sees the
/// host's files.
fn newest(series: &str, names: &[String]) -> Option<String> {
    const FLAVOUR: &str = "-amd64";
    const OTHERS: [&str; 2] = ["-cloud", "-rt"];
    names
        .iter()
        .filter_map(|name| name.strip_prefix(PACKAGE)?.strip_suffix(FLAVOUR))
        .filter(|version| {
            version
                .strip_prefix(series)
                .is_some_and(|v| v.starts_with('.'))
        })
        .filter(|version| !OTHERS.iter().any(|flavour| version.ends_with(flavour)))
        .max_by_key(|version| numbers(version))
        .map(|version| format!("{version}{FLAVOUR}"))
}

/// The numbers in a version, by which those of one series are ordered.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(releases: &[&str]) -> Vec<String> {
        releases
            .iter()
            .map(|release| format!("{PACKAGE}{release}"))
            .collect()
    }

    #[test]
    fn the_newest_is_by_number_and_not_by_letter() {
        let debian_11 = names(&["5.10.0-46-amd64", "5.10.0-9-amd64", "5.10.0-30-amd64"]);
        assert_eq!(
            newest("5.10", &debian_11).as_deref(),
            Some("5.10.0-46-amd64")
        );
        let backports = names(&[
            "6.12.90+deb12-amd64",
            "6.12.117+deb12-amd64",
            "6.12.90+deb12.1-amd64",
        ]);
        assert_eq!(
            newest("6.12", &backports).as_deref(),
            Some("6.12.117+deb12-amd64")
        );
    }

    #[test]
    fn a_repaired_build_comes_after_the_one_it_repairs() {
        let repaired = names(&["6.12.90+deb12.1-amd64", "6.12.90+deb12-amd64"]);
        assert_eq!(
            newest("6.12", &repaired).as_deref(),
            Some("6.12.90+deb12.1-amd64")
        );
    }

    #[test]
    fn one_of_debian_12_comes_before_its_backport_to_debian_11() {
        let both = names(&["6.1.0-0.deb11.52-amd64", "6.1.0-9-amd64"]);
        assert_eq!(newest("6.1", &both).as_deref(), Some("6.1.0-9-amd64"));
    }

    #[test]
    fn other_series_and_flavours_are_not_taken() {
        let others = names(&[
            "6.12.117+deb12-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-56-rt-amd64",
            "6.1.0-56-amd64-unsigned",
            "6.1.0-56-amd64-dbg",
            "6.1.0-56-arm64",
            "6.1-amd64",
        ]);
        assert_eq!(newest("6.1", &others), None);
    }
}
