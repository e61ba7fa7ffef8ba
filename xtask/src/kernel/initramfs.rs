//! The initial RAM disk of a guest: a shell, the modules without which it cannot see the host's
//! files, and the scripts of `guest/`.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::modules;
use super::package::Kernel;
use crate::step::output;

/// The host's files come by 9p, the ports to the host are of `virtio_console`.
const NEEDED: [&str; 5] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_console",
];

/// Makes the one with which `kernel` runs the shell script `job`, in `folder`. `busybox` has to be
/// linked statically.
pub(super) fn make(kernel: &Kernel, busybox: &Path, job: &str, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir(root.join("modules"))?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    let order = add_modules(&kernel.modules, &root.join("modules"))?;
    for (name, content) in [
        ("init", include_str!("guest/init.sh")),
        ("boot.sh", include_str!("guest/boot.sh")),
        ("job.sh", job),
        ("modules.order", &order),
        ("modules.folder", &kernel.modules.to_string_lossy()),
    ] {
        fs::write(root.join(name), content)?;
    }
    fs::set_permissions(root.join("init"), Permissions::from_mode(0o755))?;

    let archive = folder.join("initramfs.cpio");
    pack(&root, busybox, &archive).context("could not pack the initial RAM disk")?;
    Ok(archive)
}

/// Puts what is needed of a kernel's modules into a folder; returns the order to load them in.
fn add_modules(all: &Path, folder: &Path) -> Result<String> {
    let read = |name| fs::read_to_string(all.join(name)).with_context(|| format!("no {name}"));
    let files = modules::in_order(&NEEDED, &read("modules.dep")?, &read("modules.builtin")?)?;
    let mut order = String::new();
    for file in files {
        let source = all.join(&file);
        let name = format!("{}.ko", modules::module(&file));
        let target = folder.join(&name);
        match modules::unpacker(&file)? {
            None => drop(fs::copy(&source, &target)?),
            Some(program) => {
                let status = Command::new(program)
                    .args(["--decompress", "--stdout"])
                    .arg(&source)
                    .stdout(File::create(&target)?)
                    .status()
                    .with_context(|| format!("could not start {program}"))?;
                ensure!(status.success(), "{program} ended with {status}");
            }
        }
        order += &name;
        order.push('\n');
    }
    Ok(order)
}

/// Packs everything below `root` as the kernel expects it
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn pack(root: &Path, busybox: &Path, archive: &Path) -> Result<()> {
    let names = output(Command::new(busybox).arg("find").current_dir(root))?;
    let mut packer = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(File::create(archive)?)
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = packer.stdin.take().context("stdin was asked for")?;
    stdin.write_all(names.as_bytes())?;
    drop(stdin);
    let status = packer.wait()?;
    ensure!(status.success(), "cpio ended with {status}");
    Ok(())
}
