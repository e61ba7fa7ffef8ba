//! The command line's end.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::{Command, FlowView, Request, Response, VERSION};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no limpid answers at {0}: {1} (is it running? its --instance or --control?)")]
    Connect(PathBuf, #[source] io::Error),
    /// The connection broke.
    #[error("asking the limpid at {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// The answer cannot be read.
    #[error("the limpid at {0} answers something else: {1}")]
    Answer(PathBuf, #[source] serde_json::Error),
    /// It refuses.
    #[error("the limpid at {0} refuses: {1}")]
    Refused(PathBuf, String),
}

/// The open flows of the daemon whose control socket is at `path`.
pub async fn flows(path: &Path) -> Result<Vec<FlowView>, AskError> {
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|e| AskError::Connect(path.to_owned(), e))?;
    let broken = |e| AskError::Io(path.to_owned(), e);
    let request = Request {
        version: VERSION,
        command: Command::Flows,
    };
    let mut line = serde_json::to_vec(&request).map_err(|e| broken(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(broken)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(broken)?;
    match serde_json::from_slice(&answer) {
        Ok(Response::Flows(flows)) => Ok(flows),
        Ok(Response::Error(e)) => Err(AskError::Refused(path.to_owned(), e)),
        Err(e) => Err(AskError::Answer(path.to_owned(), e)),
    }
}
