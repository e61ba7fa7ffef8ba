//! Booting a kernel for one job, and ending it when it hangs.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::emulator::{Accelerator, Emulator, Files};
use super::package::Kernel;
use super::watch::{Patience, Watch};
use super::{folder, initramfs};

/// How often a guest that is silent is looked at.
const TICK: Duration = Duration::from_millis(200);

/// How much of a console log is shown when its guest has failed.
const CONSOLE_LINES: usize = 60;

/// Where a processor that runs the guest's code itself is worth waiting for: for so long. A kernel
/// takes two seconds.
const KVM_PATIENCE: Patience = Patience {
    boot: Duration::from_secs(8),
    silence: Duration::from_secs(8),
    whole: Duration::from_secs(16),
};

/// Something that boots kernels.
#[derive(Debug)]
pub(super) struct Machine {
    emulator: Emulator,
    accelerator: Accelerator,
}

impl Machine {
    /// Finds QEMU and what it can do here, by booting `kernel`: that `/dev/kvm` can be opened says
    /// little on a host that is a guest itself.
    pub(super) fn provide(kernel: &Kernel) -> Result<Self> {
        let mut machine = Self {
            emulator: Emulator::provide()?,
            accelerator: Accelerator::Kvm,
        };
        if let Err(error) = try_kvm(&machine, kernel) {
            machine.accelerator = Accelerator::Emulation;
            let error = format!("{error:#}");
            let reason = error.lines().next().unwrap_or_default();
            eprintln!("    emulating a processor, for KVM is of no use here: {reason}");
        }
        Ok(machine)
    }

    /// What executes the guests' instructions.
    pub(super) fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Boots `kernel`, runs a shell script there as root, and returns its exit code. Each line of its
    /// output is given to `line` as soon as it is there.
    ///
    /// The script sees this machine's files, at their paths; what it writes is gone afterwards.
    /// An error is the kernel's failure to boot, or to get to the script's end in time; the end of
    /// its console log is then part of it.
    pub(super) fn run(
        &self,
        kernel: &Kernel,
        job: &str,
        patience: Patience,
        mut line: impl FnMut(&str),
    ) -> Result<i32> {
        let folder = folder().join("run").join(&kernel.release);
        fs::create_dir_all(&folder)?;
        let files = Files {
            initramfs: initramfs::make(kernel, &self.emulator.busybox, job, &folder)?,
            console: folder.join("console.log"),
            status: folder.join("status"),
        };
        for written in [&files.console, &files.status] {
            fs::write(written, "")?;
        }
        let errors = folder.join("qemu.log");
        let mut qemu = self.emulator.command(self.accelerator, kernel, &files);
        qemu.stdout(std::process::Stdio::piped())
            .stderr(fs::File::create(&errors)?);
        let mut guest = Guest(qemu.spawn().context("could not start QEMU")?);

        let end = guest
            .follow(
                &files.status,
                Watch::new(patience, Instant::now()),
                &mut line,
            )
            .and_then(|()| exit_code(&files.status));
        end.map_err(|reason| {
            anyhow!(
                "kernel {} failed: {reason:#}\n{}{}",
                kernel.release,
                fs::read_to_string(&errors).unwrap_or_default(),
                tail(&files.console)
            )
        })
    }
}

fn try_kvm(machine: &Machine, kernel: &Kernel) -> Result<()> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("/dev/kvm")?;
    machine.run(kernel, "true", KVM_PATIENCE, |_| {}).map(drop)
}

/// A QEMU that ends with this value.
struct Guest(Child);

impl Guest {
    /// Passes the guest's output on until QEMU ends.
    fn follow(
        &mut self,
        status: &Path,
        mut watch: Watch,
        line: &mut impl FnMut(&str),
    ) -> Result<()> {
        let stdout = self.0.stdout.take().context("stdout was asked for")?;
        let (said, lines) = mpsc::channel();
        // Ends with QEMU, or with the receiver.
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut bytes = Vec::new();
            while stdout.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                if said.send(text).is_err() {
                    break;
                }
            }
        });
        loop {
            match lines.recv_timeout(TICK) {
                Ok(text) => {
                    watch.heard(Instant::now());
                    line(&text);
                }
                Err(RecvTimeoutError::Timeout) if !watch.is_up() => {
                    if fs::metadata(status).is_ok_and(|status| status.len() > 0) {
                        watch.heard(Instant::now());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Err(hang) = watch.check(Instant::now()) {
                bail!("{hang}");
            }
        }
        // Its output has ended because it does.
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails for one that has ended, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The job's exit code. A kernel that panics takes it along.
fn exit_code(status: &PathBuf) -> Result<i32> {
    let said = fs::read_to_string(status)?;
    let code = said.lines().find_map(|line| line.strip_prefix("ended "));
    code.context("it went down before its job was done")?
        .parse()
        .context("an exit code")
}

fn tail(console: &Path) -> String {
    let log = fs::read(console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.len().saturating_sub(CONSOLE_LINES);
    format!(
        "--- console, the last {} of {} lines ({})\n{}",
        lines.len() - from,
        lines.len(),
        console.display(),
        lines[from..].join("\n")
    )
}
