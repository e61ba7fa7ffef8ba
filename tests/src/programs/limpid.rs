//! limpid, as an operator sees it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::net::Host;
use crate::process::{Process, eventually};
use crate::suite::Lab;

/// How the bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Through userspace.
    Copy,
    /// Between sockets, in the kernel.
    Sockmap,
    /// From packet to packet, with no socket left on the proxy.
    Packet,
}

impl Engine {
    /// All, for scenarios that are run with each.
    pub const ALL: [Self; 3] = [Self::Packet, Self::Sockmap, Self::Copy];

    /// Its name on the command line and in the records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Sockmap => "sockmap",
            Self::Packet => "packet",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The command line of `limpid run`, less what the fixture adds to keep instances apart.
#[derive(Clone, Debug)]
pub struct Options {
    listen: SocketAddr,
    args: Vec<String>,
    wrapper: Vec<String>,
    mounts_itself: bool,
}

impl Options {
    /// A plain listener: no header, the proxy's own address upstream.
    pub fn new(listen: SocketAddr, upstream: SocketAddr) -> Self {
        Self::of(
            listen,
            vec![
                "--log-format=json".to_owned(),
                format!("--listen={listen}"),
                format!("--upstream={upstream}"),
            ],
        )
    }

    /// All of it from a file, which has a listener at `listen` and `log-format = "json"`.
    pub fn from_file(listen: SocketAddr, file: &Path) -> Self {
        Self::of(listen, vec![format!("--config={}", file.display())])
    }

    fn of(listen: SocketAddr, args: Vec<String>) -> Self {
        Self {
            listen,
            args,
            wrapper: Vec::new(),
            mounts_itself: false,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn with(mut self, argument: impl Into<String>) -> Self {
        self.args.push(argument.into());
        self
    }

    /// Headers are expected, from the peers in `trust`.
    #[must_use]
    pub fn accept_proxy(self, trust: &str) -> Self {
        self.with("--accept-proxy").with(format!("--trust={trust}"))
    }

    /// Started by another program, which takes the rest of the command line: `prlimit`, `unshare`.
    #[must_use]
    pub fn under(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With a folder for a bpffs and no bpffs on it.
    #[must_use]
    pub fn without_bpffs(mut self) -> Self {
        self.mounts_itself = true;
        self
    }

    /// The engine to use.
    #[must_use]
    pub fn engine(self, engine: Engine) -> Self {
        self.with(format!("--splice={engine}"))
    }
}

/// A running daemon with an instance name, a control socket and a bpffs of its own.
pub struct Limpid {
    process: Process,
    instance: String,
    control: PathBuf,
    bpffs: PathBuf,
    // Last: pins go when nothing uses them any more.
    _mount: BpfFs,
}

impl Limpid {
    /// Starts `limpid run` on `host` and waits until it listens.
    pub fn start(host: &Host, lab: &Lab, options: &Options) -> Result<Self> {
        Self::start_as("test", host, lab, options)
    }

    /// The same, as the instance `name`: for a second daemon on a host.
    pub fn start_as(name: &str, host: &Host, lab: &Lab, options: &Options) -> Result<Self> {
        let mut limpid = Self::spawn_as(name, host, lab, options)?;
        limpid
            .process
            .wait_until_listening(host, options.listen.port())?;
        Ok(limpid)
    }

    /// Starts `limpid run` on `host` without waiting.
    pub fn spawn(host: &Host, lab: &Lab, options: &Options) -> Result<Self> {
        Self::spawn_as("test", host, lab, options)
    }

    fn spawn_as(name: &str, host: &Host, lab: &Lab, options: &Options) -> Result<Self> {
        let instance = format!("{name}-{}", host.name());
        let name = format!("limpid-{instance}");
        // A restarted instance finds the file system of the one before.
        let mount = BpfFs::at(
            lab.path().join(format!("{name}.bpf")),
            options.mounts_itself,
        )?;
        let control = lab.path().join(format!("{name}.sock"));
        let mut args = vec!["run".to_owned()];
        args.extend([
            instance_arg(&instance),
            bpffs_arg(&mount.path),
            control_arg(&control),
        ]);
        args.extend(options.args.iter().cloned());
        let words = [
            &options.wrapper[..],
            &[limpid_binary()?.display().to_string()],
            &args,
        ]
        .concat();
        let process = Process::start(host, lab.path(), &name, Path::new(&words[0]), &words[1..])?;
        let bpffs = mount.path.clone();
        Ok(Self {
            process,
            instance,
            control,
            bpffs,
            _mount: mount,
        })
    }

    /// The daemon's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The directory of its pins.
    pub fn pins(&self) -> PathBuf {
        self.bpffs.join("limpid").join(&self.instance)
    }

    /// Runs `limpid COMMAND`, told which daemon is meant.
    pub fn ask(&self, host: &Host, command: &[&str]) -> Result<Output> {
        let mut args: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        args.extend([instance_arg(&self.instance), control_arg(&self.control)]);
        run(host, &args)
    }

    /// The same for one that must succeed; returns what it printed.
    pub fn tell(&self, host: &Host, command: &[&str]) -> Result<String> {
        let output = self.ask(host, command)?;
        ensure!(
            output.status.success(),
            "limpid {command:?}: {}",
            show(&output)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `limpid COMMAND --json` prints.
    pub fn json(&self, host: &Host, command: &str) -> Result<Value> {
        let text = self.tell(host, &[command, "--json"])?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The flows of `limpid flows --json`.
    pub fn flows(&self, host: &Host) -> Result<Vec<Value>> {
        Ok(serde_json::from_value(self.json(host, "flows")?)?)
    }

    /// Waits until `limpid flows` shows `count` flows, and returns them.
    pub async fn wait_for_flows(&self, host: &Host, count: usize) -> Result<Vec<Value>> {
        let what = format!("{count} flows of `limpid flows`");
        eventually(&what, || Ok(self.flows(host)?.len() == count)).await?;
        self.flows(host)
    }

    /// Waits until every open flow is in the hands of `engine`: before that, a flow whose one side
    /// ends is left to `copy`.
    pub async fn wait_for_engine(&self, host: &Host, engine: Engine) -> Result<()> {
        eventually(&format!("all flows are carried by {engine}"), || {
            let flows = self.flows(host)?;
            Ok(!flows.is_empty() && flows.iter().all(|flow| flow["engine"] == engine.name()))
        })
        .await
    }

    /// Runs `limpid cleanup`, which must succeed.
    pub fn cleanup(&self, host: &Host) -> Result<String> {
        let mut args = vec!["cleanup".to_owned()];
        args.extend([instance_arg(&self.instance), bpffs_arg(&self.bpffs)]);
        let output = run(host, &args)?;
        ensure!(output.status.success(), "limpid cleanup: {}", show(&output));
        Ok(show(&output))
    }

    /// The access lines written so far.
    pub fn access_lines(&self) -> Result<Vec<AccessLine>> {
        let output = self.process.output()?;
        let records = output
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(records
            .filter(|record| record["target"] == "access")
            .map(AccessLine)
            .collect())
    }

    /// Waits until `count` access lines are written, and returns them.
    pub async fn wait_for_access_lines(&self, count: usize) -> Result<Vec<AccessLine>> {
        let what = format!("{count} access lines");
        eventually(&what, || Ok(self.access_lines()?.len() >= count)).await?;
        self.access_lines()
    }

    /// Waits until the log holds `text`.
    pub async fn wait_for_log(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} in limpid's log"), || {
            Ok(self.process.output()?.contains(text))
        })
        .await
    }

    /// Everything logged so far.
    pub fn log(&self) -> Result<String> {
        self.process.output()
    }

    /// Asks it to end, and waits for that. Its file system stays until it is dropped.
    pub fn terminate(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(limit)
    }

    /// Kills it without a chance to tidy up.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(crate::process::PATIENCE).map(drop)
    }

    /// Every path below its bpffs, less the two that a new bpffs has.
    pub fn pinned(&self) -> Result<Vec<PathBuf>> {
        const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];
        let mut found = Vec::new();
        let mut folders = vec![self.bpffs.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let path = entry?.path();
                if PRELOADED.iter().any(|name| path == self.bpffs.join(name)) {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path.clone());
                }
                found.push(path);
            }
        }
        Ok(found)
    }
}

/// One line of the access log.
#[derive(Clone, Debug)]
pub struct AccessLine(Value);

impl AccessLine {
    /// A field that is text, or a number as text.
    pub fn get(&self, field: &str) -> Result<String> {
        let value = match &self.0["fields"][field] {
            Value::Null => &self.0[field],
            value => value,
        };
        match value {
            Value::Null => bail!("access line without {field}: {}", self.0),
            Value::String(text) => Ok(text.clone()),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Ok(value.to_string())
            }
        }
    }

    /// The flow was carried by `engine`, and by nothing else before that was a second choice: an
    /// explicit `--splice` falls back too.
    pub fn ensure_carried_by(&self, engine: Engine) -> Result<()> {
        ensure!(
            self.get("engine")? == engine.name() && self.get("fallback").is_err(),
            "not by {engine}: {}",
            self.0
        );
        Ok(())
    }

    /// The payload that was counted in each direction.
    pub fn ensure_bytes(&self, up: u64, down: u64) -> Result<()> {
        for (field, bytes) in [("bytes_up", up), ("bytes_down", down)] {
            ensure!(
                self.get(field)? == bytes.to_string(),
                "{field} is not {bytes}: {}",
                self.0
            );
        }
        Ok(())
    }

    /// Whether `engine` carried the flow; false where the flow was half closed before any engine had
    /// it, and so was copied. Anything else is an error.
    pub fn carried_by(&self, engine: Engine) -> Result<bool> {
        if self.get("engine")? == engine.name() {
            return Ok(true);
        }
        ensure!(
            self.get("fallback")? == "half-closed",
            "not by {engine}: {}",
            self.0
        );
        Ok(false)
    }

    /// A field that is a number.
    pub fn number(&self, field: &str) -> Result<f64> {
        let text = self.get(field)?;
        text.parse()
            .with_context(|| format!("{field}={text:?} is no number"))
    }
}

/// The program under test: `LIMPID_BIN`, or the one built beside the tests.
pub fn limpid_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LIMPID_BIN") {
        return Ok(path.into());
    }
    // The test is target/PROFILE/deps/NAME.
    let here = std::env::current_exe()?;
    let built = here
        .parent()
        .and_then(Path::parent)
        .map(|folder| folder.join("limpid"));
    match built {
        Some(path) if path.exists() => Ok(path),
        Some(_) | None => bail!("no limpid to test: build it, or name it in LIMPID_BIN"),
    }
}

/// Runs the program to its end on `host`.
pub fn run<S: AsRef<str>>(host: &Host, args: &[S]) -> Result<Output> {
    let mut command = std::process::Command::new(limpid_binary()?);
    command.args(args.iter().map(AsRef::as_ref));
    Ok(host.block(move || command.output())??)
}

/// Status and output of a run, for messages.
pub fn show(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!(
        "{}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn instance_arg(instance: &str) -> String {
    format!("--instance={instance}")
}

fn bpffs_arg(path: &Path) -> String {
    format!("--bpffs={}", path.display())
}

fn control_arg(path: &Path) -> String {
    format!("--control={}", path.display())
}

/// A bpffs that is there as long as the guard that mounted it.
struct BpfFs {
    path: PathBuf,
    mounted: bool,
}

impl BpfFs {
    fn at(path: PathBuf, bare: bool) -> Result<Self> {
        if path.exists() {
            return Ok(Self {
                path,
                mounted: false,
            });
        }
        std::fs::create_dir(&path)?;
        if bare {
            return Ok(Self {
                path,
                mounted: false,
            });
        }
        mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting a bpffs on {}", path.display()))?;
        Ok(Self {
            path,
            mounted: true,
        })
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if self.mounted {
            // Without a mount the folder goes with the test's directory either way.
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
    }
}
