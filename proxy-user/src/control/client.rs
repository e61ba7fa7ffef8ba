//! The command line's end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Command, FlowView, Request, Response, ServerView, StatusView, VERSION, line};

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes: some hundred thousand flows.
const ANSWER_LIMIT: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no limpid answers at {0}: {1} (is it running? its --instance or --control?)")]
    Connect(PathBuf, #[source] io::Error),
    /// The connection broke.
    #[error("asking the limpid at {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// The answer does not come.
    #[error(
        "what listens at {0} has not answered within {1:?}: is it a limpid, and is it stopped?"
    )]
    Timeout(PathBuf, Duration),
    /// The answer has no end.
    #[error("what listens at {0} answers with more than {ANSWER_LIMIT} bytes")]
    TooLong(PathBuf),
    /// The answer cannot be read.
    #[error("the limpid at {0} answers something else: {1}")]
    Answer(PathBuf, #[source] serde_json::Error),
    /// The answer is that to another request.
    #[error("the limpid at {0} answers what it was not asked")]
    OtherAnswer(PathBuf),
    /// It refuses.
    #[error("the limpid at {0} refuses: {1}")]
    Refused(PathBuf, String),
}

/// Asks the daemon whose control socket is at `path`; `pick` takes the answer that it waits for.
pub async fn command<T>(
    path: &Path,
    command: Command,
    limit: Duration,
    pick: impl FnOnce(Response) -> Option<T>,
) -> Result<T, AskError> {
    let request = Request {
        version: VERSION,
        command,
    };
    let answer = timeout(limit, ask(path, &request))
        .await
        .map_err(|_| AskError::Timeout(path.to_owned(), limit))??;
    match serde_json::from_slice(&answer) {
        Ok(Response::Error(e)) => Err(AskError::Refused(path.to_owned(), e)),
        Ok(response) => pick(response).ok_or_else(|| AskError::OtherAnswer(path.to_owned())),
        Err(e) => Err(AskError::Answer(path.to_owned(), e)),
    }
}

/// Its open flows.
pub async fn flows(path: &Path) -> Result<Vec<FlowView>, AskError> {
    command(path, Command::Flows, TIMEOUT, |response| match response {
        Response::Flows(flows) => Some(flows),
        _ => None,
    })
    .await
}

/// How it does.
pub async fn status(path: &Path) -> Result<StatusView, AskError> {
    command(path, Command::Status, TIMEOUT, |response| match response {
        Response::Status(status) => Some(*status),
        _ => None,
    })
    .await
}

/// The servers of its pools.
pub async fn servers(path: &Path) -> Result<Vec<ServerView>, AskError> {
    command(path, Command::Servers, TIMEOUT, |response| match response {
        Response::Servers(servers) => Some(servers),
        _ => None,
    })
    .await
}

/// Has something done; what was done comes back in words, with a further line for each warning.
pub async fn order(path: &Path, what: Command, limit: Duration) -> Result<String, AskError> {
    command(path, what, limit, |response| match response {
        Response::Done(what) => Some(what),
        _ => None,
    })
    .await
}

/// Connects, and sends a request.
pub async fn request(path: &Path, request: &Request) -> Result<UnixStream, AskError> {
    let broken = |e| AskError::Io(path.to_owned(), e);
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|e| AskError::Connect(path.to_owned(), e))?;
    let line = line(request).map_err(broken)?;
    stream.write_all(&line).await.map_err(broken)?;
    Ok(stream)
}

async fn ask(path: &Path, what: &Request) -> Result<Vec<u8>, AskError> {
    let broken = |e| AskError::Io(path.to_owned(), e);
    let stream = request(path, what).await?;
    let mut answer = Vec::new();
    let mut reader = stream.take(ANSWER_LIMIT + 1);
    reader.read_to_end(&mut answer).await.map_err(broken)?;
    if answer.len() as u64 > ANSWER_LIMIT {
        return Err(AskError::TooLong(path.to_owned()));
    }
    Ok(answer)
}
