//! A program running on a host: started there, its output kept, ended by its own pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::net::Host;
use crate::suite::scaled;

/// How long a program may take to start or to end, before scaling.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often a condition is looked at while waiting for it.
pub const GLANCE: Duration = Duration::from_millis(5);

/// A running program. Dropping it kills it and waits for its end.
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `program ARGS` on `host`, with its output in files of `directory` named after `name`.
    pub fn start<S: AsRef<str>>(
        host: &Host,
        directory: &Path,
        name: &str,
        program: &Path,
        args: &[S],
    ) -> Result<Self> {
        let stdout = directory.join(format!("{name}.stdout.log"));
        let stderr = directory.join(format!("{name}.stderr.log"));
        // The namespace is that of the thread that forks. setpriv makes the child end with that
        // thread, so nothing is left running when a test process is killed; it execs, so the pid
        // is the program's.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command.args(args.iter().map(AsRef::as_ref));
        command.stdin(std::process::Stdio::null());
        command.stdout(File::options().append(true).create(true).open(&stdout)?);
        command.stderr(File::options().append(true).create(true).open(&stderr)?);
        let child = host
            .block(move || command.spawn())?
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output.
    pub fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.stdout)?).into_owned())
    }

    /// What it has written to its standard error.
    pub fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.stderr)?).into_owned())
    }

    /// Both outputs, one after the other.
    pub fn output(&self) -> Result<String> {
        Ok(self.stdout()? + &self.stderr()?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().try_into()?);
        kill(pid, signal).with_context(|| format!("{}: {signal}", self.name))
    }

    /// Stops it (SIGSTOP): when this returns none of its threads runs any more.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let deadline = Instant::now() + scaled(PATIENCE);
        while !self.is_stopped()? {
            ensure!(Instant::now() < deadline, "{} does not stop", self.name);
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    fn is_stopped(&self) -> Result<bool> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            // proc_pid_stat(5): the state follows the name, which stands in parentheses.
            let state = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next());
            if state != Some('T') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {limit:?}", self.name);
            }
            thread::sleep(GLANCE);
        }
    }

    /// Waits until it listens on `port` of `host`; fails at once if it ends instead.
    pub fn wait_until_listening(&mut self, host: &Host, port: u16) -> Result<()> {
        let deadline = Instant::now() + scaled(PATIENCE);
        while !host.listens(port)? {
            if let Some(status) = self.ended()? {
                bail!(
                    "{} ended instead of listening: {status}: {}",
                    self.name,
                    self.output()?
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not listen on port {port}: {}",
                    self.name,
                    self.output()?
                );
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: neither failure means that something is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds, without holding up the runtime.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + scaled(PATIENCE);
    while !condition()? {
        if Instant::now() > deadline {
            bail!("did not happen: {what}");
        }
        tokio::time::sleep(GLANCE).await;
    }
    Ok(())
}

/// User and system time of a process, in clock ticks (hundredths of a second): fields 14 and 15 of
/// /proc/PID/stat.
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("stat")?;
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields
        .map(|field| field.parse::<u64>().context("stat"))
        .sum()
}
