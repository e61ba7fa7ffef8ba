//! The daemon that is taken over, seen from the one that takes over.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Descriptor, FromNew, FromOld, Offer};
use crate::bpf::pins::Elders;
use crate::control::client::{self, AskError, TIMEOUT};
use crate::control::{Command, Request, Response, VERSION, line};
use crate::forwarded::Forwarded;
use crate::kernel::Inherited;
use crate::sys::descriptors;

/// How long the other daemon may take to let go of its flows: a system call or two each.
const LETTING_GO: Duration = Duration::from_secs(30);

/// How often elders are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// The longest offer, in bytes.
const OFFER_LIMIT: usize = 4096;

/// Why a running daemon was not taken over. It goes on as before.
#[derive(Debug, Error)]
pub enum TakeOverError {
    /// It refuses, or there was no answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What it offers cannot be used.
    #[error("the limpid at {0} offers {1}")]
    Offer(PathBuf, &'static str),
    /// It has ended meanwhile, or is about to.
    #[error("the running limpid has not let go: it has ended or is ending; start again")]
    Gone,
}

/// Asks the daemon whose control socket is at `path` for its place; `None` where there is none.
pub async fn ask(path: &Path) -> Result<Option<Heritage>, TakeOverError> {
    let asked = timeout(TIMEOUT, ask_one(path)).await;
    match asked.map_err(|_| AskError::Timeout(path.to_owned(), TIMEOUT))? {
        Ok(heritage) => Ok(Some(heritage)),
        Err(TakeOverError::Ask(AskError::Connect(_, e))) if is_nobody(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Nobody listens there: there is no socket, or that of a daemon that was killed.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

async fn ask_one(path: &Path) -> Result<Heritage, TakeOverError> {
    let request = Request {
        version: VERSION,
        command: Command::TakeOver,
    };
    let stream = client::request(path, &request).await?;
    let (answer, parts) = receive(&stream)
        .await
        .map_err(|e| AskError::Io(path.to_owned(), e))?;
    match serde_json::from_slice(&answer) {
        Ok(Response::TakeOver(offer)) => Heritage::new(stream, &offer, parts)
            .ok_or_else(|| TakeOverError::Offer(path.to_owned(), "no listening socket")),
        Ok(Response::Error(e)) => Err(AskError::Refused(path.to_owned(), e).into()),
        Ok(_) => Err(AskError::OtherAnswer(path.to_owned()).into()),
        Err(e) => Err(AskError::Answer(path.to_owned(), e).into()),
    }
}

/// Its one line. Nothing comes behind it before we speak.
async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut answer, mut parts) = (Vec::new(), Vec::new());
    let mut buffer = [0; OFFER_LIMIT];
    while answer.last() != Some(&b'\n') && answer.len() < OFFER_LIMIT {
        let (length, more) = descriptors::receive(stream, &mut buffer).await?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..length]);
        parts.extend(more);
    }
    Ok((answer, parts))
}

/// What a running daemon shares, and will give away.
#[derive(Debug)]
pub struct Heritage {
    /// The listening sockets.
    pub listeners: Vec<OwnedFd>,
    /// What it has in the kernel, if anything.
    pub kernel: Option<Inherited>,
    /// The folder of the control socket was made for it.
    pub folder_made: bool,
    /// The way to take it.
    pub deed: Deed,
}

/// The conversation, before anything has changed hands.
#[derive(Debug)]
pub struct Deed(UnixStream);

impl Heritage {
    fn new(stream: UnixStream, offer: &Offer, parts: Vec<OwnedFd>) -> Option<Self> {
        let (mut listeners, mut folder, mut filters) = (Vec::new(), None, None);
        for (what, part) in offer.descriptors.iter().zip(parts) {
            match what {
                Descriptor::Listener => listeners.push(part),
                Descriptor::Pins => folder = Some(part),
                Descriptor::Filters => filters = Some(part),
            }
        }
        let kernel = folder.map(|folder| Inherited {
            folder,
            filters,
            steers: offer.steers,
        });
        (!listeners.is_empty()).then_some(Self {
            listeners,
            kernel,
            folder_made: offer.folder_made,
            deed: Deed(stream),
        })
    }
}

impl Deed {
    /// Takes the place. The other daemon accepts no connections any more.
    pub async fn take(self) -> Result<Conversation, TakeOverError> {
        let (reader, mut writer) = self.0.into_split();
        let mut reader = BufReader::new(reader).lines();
        let asked = async {
            writer.write_all(&line(&FromNew::Go)?).await?;
            io::Result::Ok(next(&mut reader).await)
        };
        match timeout(LETTING_GO, asked).await {
            Ok(Ok(Some(FromOld::Yours))) => Ok(Conversation { reader, writer }),
            // It keeps everything when it finds that we are gone.
            Ok(Ok(Some(FromOld::Flow(_)) | None) | Err(_)) | Err(_) => Err(TakeOverError::Gone),
        }
    }
}

/// With a daemon that was taken over.
#[derive(Debug)]
pub struct Conversation {
    reader: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

/// Daemons that were taken over, and still have flows.
#[derive(Debug)]
pub struct Predecessor {
    /// To the last one; `None` where that was killed, and one before it is left.
    writer: Option<OwnedWriteHalf>,
    gone: CancellationToken,
    retired: CancellationToken,
}

impl Predecessor {
    /// That of a daemon that has just taken over, or finds `elders` that nobody speaks for. What it says
    /// of its flows goes to the keeper of `forwarded`.
    #[must_use]
    pub fn find(
        conversation: Option<Conversation>,
        elders: Option<Elders>,
        forwarded: &Forwarded,
    ) -> Option<Self> {
        if conversation.is_none() {
            if elders.as_ref().is_none_or(Elders::are_gone) {
                return None;
            }
            tracing::info!("a limpid that was taken over still has flows");
        }
        let (reader, writer) = conversation.map(|c| (c.reader, c.writer)).unzip();
        let (gone, retired) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn({
            let (forwarded, gone, retired) = (forwarded.clone(), gone.clone(), retired.clone());
            async move {
                if let Some(reader) = reader {
                    follow(reader, &forwarded).await;
                }
                if let Some(elders) = elders {
                    retired.run_until_cancelled(all_gone(&elders)).await;
                }
                tracing::info!("the limpid that was taken over is gone");
                forwarded.predecessor_gone();
                gone.cancel();
            }
        });
        Some(Self {
            writer,
            gone,
            retired,
        })
    }

    /// Waits until it is gone.
    pub fn gone(&self) -> impl Future<Output = ()> + use<> {
        self.gone.clone().cancelled_owned()
    }

    /// This daemon is taken over itself: who is left of those before it is no longer its matter. (It is an
    /// elder from now on, and would wait for itself.)
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// Asks it to reset what it still has.
    pub async fn end(&mut self) {
        if let (Some(writer), Ok(line)) = (&mut self.writer, line(&FromNew::End)) {
            // Fails where it is gone.
            let _ = writer.write_all(&line).await;
        }
    }
}

/// Passes on what the other daemon says, until it is gone.
async fn follow(mut reader: Lines<BufReader<OwnedReadHalf>>, forwarded: &Forwarded) {
    while let Some(FromOld::Flow(flow)) = next(&mut reader).await {
        forwarded.adopt(flow);
    }
}

/// Waits for the elders: there may be some left where the last of them was killed.
async fn all_gone(elders: &Elders) {
    while !elders.are_gone() {
        sleep(LOOK).await;
    }
}

async fn next(reader: &mut Lines<BufReader<OwnedReadHalf>>) -> Option<FromOld> {
    let line = reader.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}
