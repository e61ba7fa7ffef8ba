//! The harness of the scenario files: what a test needs, how long it may take, and what is shown
//! when it fails.
//!
//! A test whose need is not met is reported as ignored, with the reason. A missing limpid is no such
//! need: it is what is tested, so its tests fail.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::net::Host;

/// Tests at once, unless `--test-threads` says otherwise: each is a small network of busy hosts.
const TEST_THREADS: usize = 2;

/// How long one test may take, before scaling.
const TIME_LIMIT: Duration = Duration::from_secs(90);

/// How many lines of each log are shown of a failed test.
const LOG_LINES: usize = 80;

/// Multiplies time limits and divides sizes, for slow machines. 1 where it is not set.
const SCALE: &str = "LIMPID_TEST_SCALE";

/// Set to anything, it makes tests whose subject is numbers take large ones, and their time.
const LONG: &str = "LIMPID_TEST_LONG";

/// How much more time a test may then take.
const LONG_FACTOR: u32 = 10;

/// Something a machine may lack.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A program, by its path.
    Program(&'static str),
    /// TUN and TAP devices.
    Tun,
    /// A kernel of at least this version.
    Kernel(u32, u32),
    /// A file or folder that this kernel may not offer.
    File(&'static str),
    /// VLAN devices.
    Vlan,
    /// What only one file needs: it says why it is not met, if it is not.
    Other(fn() -> Option<String>),
}

/// HAProxy.
pub const HAPROXY: Need = Need::Program("/usr/sbin/haproxy");
/// nginx with its stream module.
pub const NGINX: Need = Need::Program("/usr/sbin/nginx");
/// What starts a program as a socket unit of systemd does.
pub const SOCKET_ACTIVATE: Need = Need::Program("/usr/bin/systemd-socket-activate");
/// What shows, and changes, the system calls of a process.
pub const STRACE: Need = Need::Program("/usr/bin/strace");

impl Need {
    /// Why it is not met, if it is not.
    fn lacking(self) -> Option<String> {
        match self {
            Self::Program(path) => {
                (!Path::new(path).exists()).then(|| format!("{path} is not installed"))
            }
            Self::Tun => std::fs::File::open("/dev/net/tun")
                .err()
                .map(|error| format!("no TUN devices: /dev/net/tun: {error}")),
            Self::Kernel(major, minor) => {
                let release = nix::sys::utsname::uname().ok()?;
                let release = release.release().to_string_lossy().into_owned();
                (version(&release) < Some((major, minor)))
                    .then(|| format!("needs Linux {major}.{minor}, this is {release}"))
            }
            Self::File(path) => {
                (!Path::new(path).exists()).then(|| format!("this kernel has no {path}"))
            }
            Self::Vlan => make_vlan()
                .err()
                .map(|error| format!("no VLAN devices: {error:#}")),
            Self::Other(lacking) => lacking(),
        }
    }
}

/// Makes one, on a host of its own.
fn make_vlan() -> Result<()> {
    let host = Host::new("vlan")?;
    host.ip("link add trunk type veth peer name end")?;
    host.ip("link add link trunk name vlan type vlan id 7")
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A test's own directory, for configurations, logs and sockets. It goes with its last handle.
#[derive(Clone)]
pub struct Lab {
    directory: Arc<TempDir>,
}

impl Lab {
    /// One for a program that is no suite of tests. To be called before any thread is made.
    pub fn alone() -> Result<Self> {
        isolate()?;
        Self::new()
    }

    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("limpid-test-").tempdir()?;
        Ok(Self {
            directory: Arc::new(directory),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn logs(&self) -> String {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.path())
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        files.sort();
        let mut shown = String::new();
        for file in files {
            let text =
                String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            shown += &format!("--- {name} ({} lines)\n{}\n", lines.len(), tail.join("\n"));
        }
        shown
    }
}

/// The tests of one file.
#[derive(Default)]
pub struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a test.
    pub fn test<F, T>(&mut self, name: impl Into<String>, needs: &[Need], body: F)
    where
        F: FnOnce(Lab) -> T + Send + 'static,
        T: Future<Output = Result<()>>,
    {
        let needs = needs.to_vec();
        self.trials
            .push(Trial::ignorable_test(name, move || run(&needs, body)));
    }

    /// Runs what the command line asks for.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(TEST_THREADS);
        if let Err(error) = isolate() {
            eprintln!("no mount namespace of our own: {error:#}");
        }
        libtest_mimic::run(&arguments, self.trials).exit_code()
    }
}

/// A mount namespace for this process, so that no mount outlives it. Before any thread is made:
/// threads take it from their maker.
fn isolate() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("making / private")
}

fn run<F, T>(needs: &[Need], body: F) -> Result<Completion, Failed>
where
    F: FnOnce(Lab) -> T,
    T: Future<Output = Result<()>>,
{
    if !nix::unistd::geteuid().is_root() {
        return Ok(Completion::ignored_with(
            "needs root, for network namespaces",
        ));
    }
    if let Some(reason) = needs.iter().find_map(|need| need.lacking()) {
        return Ok(Completion::ignored_with(reason));
    }
    let lab = Lab::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let limit = scaled(TIME_LIMIT) * numerous(1, LONG_FACTOR);
    let test = async { tokio::time::timeout(limit, body(lab.clone())).await };
    let problem = match catch_unwind(AssertUnwindSafe(|| runtime.block_on(test))) {
        Ok(Ok(Ok(()))) => return Ok(Completion::Completed),
        Ok(Ok(Err(error))) => format!("{error:#}"),
        Ok(Err(_)) => format!("not done after {limit:?}"),
        Err(panic) => format!("panicked: {}", panic_message(panic.as_ref())),
    };
    Err(Failed::from(format!("{problem}\n{}", lab.logs())))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

fn scale() -> u32 {
    std::env::var(SCALE)
        .ok()
        .and_then(|value| value.parse().ok())
        .filter(|n| *n > 0)
        .unwrap_or(1)
}

/// A time limit for this machine.
pub fn scaled(limit: Duration) -> Duration {
    limit * scale()
}

/// An amount of work for this machine.
pub fn shrunk(amount: u64) -> u64 {
    (amount / u64::from(scale())).max(1)
}

/// A bound on memory for this machine: the slower it is, the more of the daemon's own allocations fall into
/// the time that is measured.
pub fn allowed(bytes: u64) -> u64 {
    bytes * u64::from(scale())
}

/// How many: `usual`, or `long` where `LIMPID_TEST_LONG` is set.
pub fn numerous<T>(usual: T, long: T) -> T {
    match std::env::var_os(LONG) {
        Some(_) => long,
        None => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert!(version("5.10.0-46-cloud-amd64") > version("5.9.0"));
        assert!(version("6.6.1") > version("6.1.192"));
    }
}
