//! Which modules a guest must load before it can see the host's files, and in which order.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

/// The files to load, in order, so that each of `wanted` is there: below the folder of modules, as
/// depmod's `modules.dep` names them. What `builtin` (`modules.builtin`) lists needs no file.
pub(super) fn in_order(wanted: &[&str], dependencies: &str, builtin: &str) -> Result<Vec<String>> {
    let mut loaded = BTreeSet::new();
    let mut order = Vec::new();
    for name in wanted {
        if builtin.lines().any(|path| module(path) == *name) {
            continue;
        }
        let Some((path, needs)) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module(path) == *name)
        else {
            bail!("this kernel has no {name}");
        };
        // modules.dep(5) does not promise an order; depmod writes what modprobe loads, last first.
        for file in needs.split_whitespace().rev().chain([path]) {
            if loaded.insert(file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// The name of the module in a file: `kernel/fs/9p/9p.ko.xz` has `9p`.
pub(super) fn module(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// The program that unpacks a module's file, if it is packed.
pub(super) fn unpacker(path: &str) -> Result<Option<&'static str>> {
    let (_, kind) = path.rsplit_once('.').context("a module without suffix")?;
    match kind {
        "ko" => Ok(None),
        "xz" => Ok(Some("xz")),
        "zst" => Ok(Some("zstd")),
        "gz" => Ok(Some("gzip")),
        other => bail!("{path} is packed as .{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko
kernel/fs/fscache/fscache.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
";
    const BUILTIN: &str = "kernel/drivers/virtio/virtio_pci.ko\n";

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let order = in_order(&["9pnet_virtio", "9p"], DEPENDENCIES, BUILTIN).unwrap();
        let names: Vec<&str> = order.iter().map(|path| module(path)).collect();
        let expected = [
            "virtio",
            "virtio_ring",
            "9pnet",
            "9pnet_virtio",
            "fscache",
            "9p",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        let order = in_order(&["virtio_pci"], DEPENDENCIES, BUILTIN).unwrap();
        assert!(order.is_empty());
    }

    #[test]
    fn what_is_nowhere_is_named() {
        let error = in_order(&["overlay"], DEPENDENCIES, BUILTIN).unwrap_err();
        assert_eq!(error.to_string(), "this kernel has no overlay");
    }

    #[test]
    fn packed_files_are_known_by_their_suffix() {
        assert_eq!(unpacker("a/b.ko").unwrap(), None);
        assert_eq!(unpacker("a/b.ko.xz").unwrap(), Some("xz"));
        assert!(unpacker("a/b.ko.lzma").is_err());
    }
}
