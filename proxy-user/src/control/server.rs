//! The daemon's end.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Command, FOLDER, Request, Response, ServerSetting, VERSION, view};
use crate::config::Name;
use crate::daemon::shared::{Order, Reloaded, Shared};
use crate::pool::Admin;
use crate::splice::End;
use crate::takeover::Candidate;

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest request, in bytes.
const REQUEST_LIMIT: u64 = 4096;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another daemon has it.
    #[error(
        "another limpid answers at {0}: name this one with --instance, or another socket with --control"
    )]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{0} is there and is not a socket: name another with --control")]
    NotASocket(PathBuf),
    /// It could not be made.
    #[error("cannot listen for commands at {0}: {1}")]
    Bind(PathBuf, #[source] io::Error),
}

/// The control socket, removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    /// Where its file is.
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    folder_made: bool,
}

impl Server {
    /// Listens at `path`. A socket that nobody answers at is replaced.
    pub async fn bind(path: &Path) -> Result<Self, ControlError> {
        remove_stale(path).await?;
        let failed = |e| ControlError::Bind(path.to_owned(), e);
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let mut folder_made = false;
        if let Some(folder) = folder
            && !folder.exists()
        {
            fs::create_dir_all(folder).map_err(failed)?;
            folder_made = true;
        }
        let listener = listen(path).map_err(failed)?;
        let identity = identity(path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
            folder_made,
        })
    }

    /// Listens beside `path`, where another daemon has its socket, until [`Self::move_to`].
    pub async fn bind_beside(path: &Path, folder_made: bool) -> Result<Self, ControlError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let mut server = Self::bind(Path::new(&beside)).await?;
        server.folder_made = folder_made;
        Ok(server)
    }

    /// Puts the socket in the place of the one at `path`: there is always one that answers.
    pub fn move_to(&mut self, path: &Path) -> Result<(), ControlError> {
        fs::rename(&self.path, path).map_err(|e| ControlError::Bind(path.to_owned(), e))?;
        path.clone_into(&mut self.path);
        Ok(())
    }

    /// Was its folder made for it?
    #[must_use]
    pub fn folder_made(&self) -> bool {
        self.folder_made
    }

    /// Answers requests; never returns.
    pub async fn serve(&self, shared: &Arc<Shared>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shared = Arc::clone(shared);
                    tokio::spawn(async move {
                        if let Err(e) = answer(stream, &shared).await {
                            tracing::debug!("control socket: {e}");
                        }
                    });
                }
                Err(e) => {
                    tracing::warn!("control socket: accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Somebody may have put another in its place.
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        remove_folder(&self.path, self.folder_made);
    }
}

/// Removes the socket of a daemon that is gone; true if there was one. Nothing else is removed.
pub async fn remove_stale(path: &Path) -> Result<bool, ControlError> {
    let failed = |e| Err(ControlError::Bind(path.to_owned(), e));
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(ControlError::NotASocket(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return failed(e),
    }
    match UnixStream::connect(path).await {
        // EAGAIN: its backlog is full.
        Ok(_) => Err(ControlError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(ControlError::InUse(path.to_owned()))
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Ok(()) => {
                remove_folder(path, false);
                Ok(true)
            }
            Err(e) => failed(e),
        },
        Err(e) => failed(e),
    }
}

/// Removes the folder of a socket if it is limpid's own and empty.
fn remove_folder(path: &Path, made: bool) {
    if let Some(folder) = path.parent()
        && (made || folder == Path::new(FOLDER))
    {
        // ENOTEMPTY: other instances have theirs there.
        let _ = fs::remove_dir(folder);
    }
}

/// A listening socket that is its owner's alone from the first moment: its file takes the mode that the
/// socket has when it is bound (`unix_bind_bsd`).
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

async fn answer(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT + 1));
    timeout(REQUEST_TIMEOUT, reader.read_until(b'\n', &mut line)).await??;
    let response = match command(&line) {
        Ok(Command::Flows) => {
            let flows = shared.registry.list();
            Response::Flows(flows.iter().map(|flow| view::flow(flow)).collect())
        }
        Ok(Command::Status) => Response::Status(Box::new(view::status(shared))),
        Ok(Command::Servers) => {
            let pools = shared.pools();
            Response::Servers(
                pools
                    .values()
                    .flat_map(|pool| view::servers(pool))
                    .collect(),
            )
        }
        Ok(Command::SetServer {
            pool,
            server,
            state: wanted,
        }) => set_server(shared, &pool, &server, wanted),
        Ok(Command::KillFlow(id)) if shared.end(id, End::Killed) => {
            Response::Done(format!("flow {id} is reset"))
        }
        Ok(Command::KillFlow(id)) => Response::Error(format!("there is no flow {id}")),
        Ok(Command::Reload) => reload(shared).await,
        Ok(Command::TakeOver) => match shared.order(Order::TakeOver(Candidate::new(stream))) {
            Ok(()) => return Ok(()),
            Err(Order::TakeOver(candidate)) => return candidate.refuse(ENDING).await,
            Err(Order::Reload(_)) => return Ok(()),
        },
        Err(refusal) => Response::Error(refusal),
    };
    let bytes = super::line(&response)?;
    timeout(REQUEST_TIMEOUT, writer.write_all(&bytes)).await?
}

/// Why a daemon takes no orders.
const ENDING: &str = "it is ending, or taken over already";

fn set_server(shared: &Shared, pool: &str, server: &str, wanted: ServerSetting) -> Response {
    let pools = shared.pools();
    let found = pools.iter().find(|(name, _)| name.as_str() == pool);
    let Some((name, pool)) = found else {
        let known: Vec<&str> = pools.keys().map(Name::as_str).collect();
        return Response::Error(format!(
            "there is no pool {pool:?}, but {}",
            known.join(", ")
        ));
    };
    let (wanted, word) = match wanted {
        ServerSetting::Ready => (Admin::Ready, "ready"),
        ServerSetting::Drain => (Admin::Drain, "drain"),
        ServerSetting::Down => (Admin::Down, "down"),
    };
    match pool.set(server, wanted) {
        Ok(count) => Response::Done(format!("{name}/{server}: {word} ({count} address(es))")),
        Err(e) => Response::Error(e.to_string()),
    }
}

async fn reload(shared: &Shared) -> Response {
    let (done, told) = oneshot::channel();
    if shared.order(Order::Reload(done)).is_err() {
        return Response::Error(ENDING.to_owned());
    }
    match told.await {
        Ok(Ok(Reloaded { done, warnings })) => {
            Response::Done([&[done][..], &warnings].concat().join("\n"))
        }
        Ok(Err(e)) => Response::Error(format!("all is as before: {e}")),
        Err(_) => Response::Error(ENDING.to_owned()),
    }
}

/// What is asked, or what to say to it.
fn command(line: &[u8]) -> Result<Command, String> {
    /// What every version of a request has.
    #[derive(Deserialize)]
    struct AnyRequest {
        version: u32,
    }
    if line.len() as u64 > REQUEST_LIMIT {
        return Err(format!("a request has at most {REQUEST_LIMIT} bytes"));
    }
    let garbage = |e| format!("not a request: {e}");
    // The version first: the commands of another may be unknown to this one.
    let AnyRequest { version } = serde_json::from_slice(line).map_err(garbage)?;
    if version != VERSION {
        return Err(format!(
            "this limpid speaks version {VERSION} of the control protocol, not {version}"
        ));
    }
    let Request { command, .. } = serde_json::from_slice(line).map_err(garbage)?;
    Ok(command)
}
