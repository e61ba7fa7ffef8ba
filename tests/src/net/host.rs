//! A host: a thread in a network namespace of its own, with an async runtime on it.
//!
//! A namespace belongs to a thread, so whatever is to happen "on" a host (a socket opened, a program
//! started, a file of /proc/net read) is sent to its thread. A socket stays in the namespace it was
//! made in, so once made it may be used from anywhere: test bodies read as one story.
//!
//! The namespaces have no name under /run/netns: they end with the thread and the processes in them,
//! also when the test process is killed. `nsenter --net=/proc/PID/task/TID/ns/net` looks inside.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task;

/// A thread in a namespace. Dropping it ends its tasks, and its namespace with the last process.
pub struct Host {
    name: &'static str,
    runtime: Handle,
    namespace: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// A host with nothing but a loopback interface.
    pub fn new(name: &'static str) -> Result<Self> {
        let (ready_tx, ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime = enter_new_namespace();
                let (runtime, answer) = match runtime {
                    Ok((runtime, path)) => {
                        let handle = runtime.handle().clone();
                        (Some(runtime), Ok((handle, path)))
                    }
                    Err(error) => (None, Err(error)),
                };
                if ready_tx.send(answer).is_ok()
                    && let Some(runtime) = runtime
                {
                    // Either answer means that the host is over.
                    let _ = runtime.block_on(stopped);
                }
            })?;
        let (runtime, namespace) = ready.recv().context("host thread")??;
        let host = Self {
            name,
            runtime,
            namespace,
            stop: Some(stop),
            thread: Some(thread),
        };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The name it was given.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The file that stands for its namespace.
    pub fn namespace(&self) -> &PathBuf {
        &self.namespace
    }

    /// Starts `future` on the host.
    pub fn spawn<F>(&self, future: F) -> task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Runs `job` on the host's thread and waits for it. For short things: it holds the host up.
    pub fn block<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (tx, rx) = mpsc::channel();
        self.runtime.spawn(async move {
            let _ = tx.send(job());
        });
        rx.recv()
            .with_context(|| format!("a job on {} panicked", self.name))
    }

    /// Runs a command line (split at spaces) to its end and returns what it printed.
    pub fn sh(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((program, args)) = words.split_first() else {
            bail!("empty command line")
        };
        self.run(program, args)
    }

    /// Runs a program to its end and returns what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.try_run(program, args)?;
        ensure!(
            output.status.success(),
            "{}: {program} {args:?}: {}: {}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Like [`Self::run`], for programs whose failure is an answer.
    pub fn try_run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(args);
        self.block(move || command.output())?
            .with_context(|| format!("{}: {program}", self.name))
    }

    /// `ip ARGS` of iproute2.
    pub fn ip(&self, args: &str) -> Result<()> {
        self.sh(&format!("ip {args}")).map(drop)
    }

    /// Sets one of the host's own sysctls, named as a path below /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let (path, value) = (format!("/proc/sys/{path}"), value.to_owned());
        self.block(move || std::fs::write(&path, value).with_context(|| path))?
    }

    /// Reads a file below this host's /proc/net.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{file}");
        self.block(move || std::fs::read_to_string(&path).with_context(|| path))?
    }

    /// Connects from this host; the kernel chooses the source.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.spawn(async move { TcpStream::connect(to).await })
            .await?
            .with_context(|| format!("{}: connect to {to}", self.name))
    }

    /// Connects from this host with socket options set, or an address bound, before the SYN.
    pub async fn connect_with(
        &self,
        to: SocketAddr,
        prepare: impl FnOnce(&TcpSocket) -> std::io::Result<()> + Send + 'static,
    ) -> Result<TcpStream> {
        self.spawn(async move {
            let socket = if to.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            prepare(&socket)?;
            socket.connect(to).await
        })
        .await?
        .with_context(|| format!("{}: connect to {to}", self.name))
    }

    /// Listens on this host.
    pub async fn listen(&self, on: SocketAddr) -> Result<TcpListener> {
        self.listen_with(on, |_| Ok(())).await
    }

    /// Listens on this host with socket options that accepted sockets inherit.
    pub async fn listen_with(
        &self,
        on: SocketAddr,
        prepare: impl FnOnce(&Socket) -> std::io::Result<()> + Send + 'static,
    ) -> Result<TcpListener> {
        self.spawn(async move {
            let socket = Socket::new(Domain::for_address(on), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            prepare(&socket)?;
            socket.bind(&on.into())?;
            socket.listen(4096)?;
            TcpListener::from_std(socket.into())
        })
        .await?
        .with_context(|| format!("{}: listen on {on}", self.name))
    }

    /// Whether something on this host listens on `port`, asked without connecting to it.
    pub fn listens(&self, port: u16) -> Result<bool> {
        let tables = self.proc_net("tcp")? + &self.proc_net("tcp6")?;
        Ok(tables.lines().any(|line| is_listener(line, port)))
    }

    /// Whether `address` is one of this host's own.
    pub fn owns(&self, address: IpAddr) -> Result<bool> {
        Ok(self
            .sh("ip -o addr show")?
            .contains(&format!(" {address}/")))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn enter_new_namespace() -> Result<(tokio::runtime::Runtime, PathBuf)> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
    let thread = nix::unistd::gettid();
    let path = PathBuf::from(format!("/proc/{}/task/{thread}/ns/net", std::process::id()));
    // Duplicate address detection would make every IPv6 address wait for a second.
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").context("accept_dad")?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok((runtime, path))
}

/// A line of /proc/net/tcp: slot, local address:port in hex, remote, state; 0A is LISTEN.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|local| local.rsplit_once(':'));
    let state = fields.nth(1);
    state == Some("0A") && local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port))
}

#[cfg(test)]
mod tests {
    use super::is_listener;

    #[test]
    fn reads_proc_net_tcp() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 0";
        assert!(is_listener(line, 8080));
        assert!(!is_listener(line, 8081));
        assert!(!is_listener(&line.replace("0A", "01"), 8080));
        assert!(!is_listener(
            "  sl  local_address rem_address   st tx_queue",
            8080
        ));
    }
}
