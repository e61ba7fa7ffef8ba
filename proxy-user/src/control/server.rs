//! The daemon's end.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{Command, FlowView, Request, Response, VERSION};
use crate::registry::{Flow, Registry};

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest request, in bytes.
const REQUEST_LIMIT: u64 = 4096;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another daemon has it.
    #[error(
        "another limpid answers at {0}: name this one with --instance, or another socket with --control"
    )]
    InUse(PathBuf),
    /// It could not be made.
    #[error("cannot listen for commands at {0}: {1}")]
    Bind(PathBuf, #[source] io::Error),
}

/// The control socket, removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`. A socket that nobody answers at is replaced.
    pub async fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |e| ControlError::Bind(path.to_owned(), e);
        if UnixStream::connect(path).await.is_ok() {
            return Err(ControlError::InUse(path.to_owned()));
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Answers requests; never returns.
    pub async fn serve(&self, registry: &Registry) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let registry = registry.clone();
                    tokio::spawn(async move {
                        if let Err(e) = answer(stream, &registry).await {
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
        let _ = fs::remove_file(&self.path);
    }
}

async fn answer(stream: UnixStream, registry: &Registry) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT));
    timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await??;
    let response = match serde_json::from_str::<Request>(&line) {
        Ok(Request {
            version: VERSION,
            command: Command::Flows,
        }) => Response::Flows(registry.list().iter().map(|flow| view(flow)).collect()),
        Ok(Request { version, .. }) => Response::Error(format!(
            "this limpid speaks version {VERSION} of the control protocol, not {version}"
        )),
        Err(e) => Response::Error(format!("not a request: {e}")),
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    writer.write_all(&bytes).await
}

fn view(flow: &Flow) -> FlowView {
    let text = |address: Option<&dyn std::fmt::Display>| address.map(ToString::to_string);
    FlowView {
        id: flow.id,
        client: text(flow.client.get().map(|a| a as _)),
        downstream: flow.peer.to_string(),
        upstream: text(flow.upstream.get().map(|a| a as _)),
        source: text(flow.source.get().map(|a| a as _)),
        engine: flow
            .progress
            .engine()
            .map(|engine| engine.label().to_owned()),
        state: flow.state().to_owned(),
        bytes_up: flow.progress.bytes_up(),
        bytes_down: flow.progress.bytes_down(),
        age_ms: u64::try_from(flow.accepted.elapsed().as_millis()).unwrap_or(u64::MAX),
        fallback: flow
            .progress
            .fallback()
            .map(|reason| reason.label().to_owned()),
    }
}
