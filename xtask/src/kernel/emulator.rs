//! QEMU, and how it runs a guest.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use super::archive::Archive;
use super::folder;
use super::package::Kernel;
use crate::step::{output, step};

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself: anywhere, and two to five times slower.
    Emulation,
}

/// The programs that a guest takes on the host's side.
#[derive(Debug)]
pub(super) struct Emulator {
    /// Where QEMU has been unpacked, if it is not the machine's own.
    unpacked: Option<PathBuf>,
    /// A busybox that needs no libraries.
    pub(super) busybox: PathBuf,
}

/// What is made for, and left by, one run.
pub(super) struct Files {
    pub(super) initramfs: PathBuf,
    /// Written by the guest's kernel, and by its scripts until the job begins.
    pub(super) console: PathBuf,
    /// Written by the guest: `up`, then `ended` and the job's exit code.
    pub(super) status: PathBuf,
}

const QEMU: &str = "qemu-system-x86_64";

impl Emulator {
    /// The machine's QEMU, or else Debian's, unpacked and not installed: bookworm's cannot be beside a
    /// newer qemu-utils, and the backport's cannot be beside an older one.
    pub(super) fn provide() -> Result<Self> {
        let tools = folder().join("tools");
        let busybox = tools.join("bin/busybox");
        if !busybox.exists() {
            step("downloading busybox", || {
                archive()?.unpack("busybox-static", &tools)
            })?;
        }
        if output(Command::new(QEMU).arg("--version")).is_ok() {
            return Ok(Self {
                unpacked: None,
                busybox,
            });
        }
        let unpacked = folder().join("qemu");
        if !unpacked.exists() {
            step("downloading QEMU", || {
                let partial = folder().join("qemu.partial");
                archive()?.unpack_with_dependencies("qemu-system-x86", &partial)?;
                Ok(std::fs::rename(partial, &unpacked)?)
            })?;
        }
        Ok(Self {
            unpacked: Some(unpacked),
            busybox,
        })
    }

    /// A guest that writes its job's output to the command's stdout.
    pub(super) fn command(
        &self,
        accelerator: Accelerator,
        kernel: &Kernel,
        files: &Files,
    ) -> Command {
        let mut qemu = self.qemu();
        match accelerator {
            // An aborted start is soon noticed, and then there is emulation.
            Accelerator::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Emulation => qemu.args(["-accel", "tcg", "-cpu", EMULATED]),
        };
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"])
            // Two, for what races is raced for.
            .args(["-smp", "2", "-m", MEMORY])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&files.initramfs)
            .args(["-append", COMMAND_LINE])
            .arg("-serial")
            .arg(argument("file:", &files.console))
            .args([
                "-fsdev",
                "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
            .args(["-device", "virtio-rng-pci"])
            .args(["-device", "virtio-serial-pci"])
            // Not `stdio`, which is closed in both directions when stdin ends.
            .args(["-chardev", "file,id=output,append=on,path=/dev/stdout"])
            .args(["-device", "virtserialport,chardev=output,name=output"])
            .arg("-chardev")
            .arg(argument("file,id=status,path=", &files.status))
            .args(["-device", "virtserialport,chardev=status,name=status"])
            .stdin(Stdio::null());
        qemu
    }

    /// QEMU as it is found here, and not without the xtask that watches it.
    fn qemu(&self) -> Command {
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]);
        let Some(root) = &self.unpacked else {
            qemu.arg(QEMU);
            return qemu;
        };
        qemu.arg(root.join("usr/bin").join(QEMU));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(root.join(data));
        }
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let libraries = libraries.map(|folder| root.join(folder));
        if let Ok(libraries) = env::join_paths(libraries) {
            qemu.env("LD_LIBRARY_PATH", libraries);
        }
        qemu
    }
}

fn archive() -> Result<Archive> {
    Archive::open(folder().join("apt"))
}

/// All that QEMU can emulate but for fast `rep stosb`, in which the kernel would trust to clear
/// memory: emulated, it goes byte by byte. It was half of all time on 5.10.
const EMULATED: &str = "max,erms=off,fsrm=off";

/// A guest's memory. What its job writes to files is in there as well.
const MEMORY: &str = "3G";

/// A kernel that panics restarts at once, which `-no-reboot` makes QEMU's end.
///
/// `init_on_alloc`, `thash_entries`: Debian's kernels clear all they allocate, and size the table of
/// connections, which a test goes through whenever it lists sockets, for a server. An emulated
/// processor takes long for either.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off \
                            init_on_alloc=0 thash_entries=1024";

/// An argument of QEMU's with a path in it, where a comma has to be doubled.
fn argument(before: &str, path: &Path) -> OsString {
    let path = path.as_os_str().to_string_lossy().replace(',', ",,");
    OsString::from(format!("{before}{path}"))
}
