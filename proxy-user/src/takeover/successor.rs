//! The daemon that takes over, seen from the one that it takes over from.

use std::future::pending;
use std::io;
use std::os::fd::BorrowedFd;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Descriptor, FromNew, FromOld, Offer};
use crate::control::{Response, line};
use crate::sys::descriptors;

/// What there is to share.
#[derive(Debug)]
pub struct Estate<'a> {
    /// The listening sockets.
    pub listeners: Vec<BorrowedFd<'a>>,
    /// The locked folder of the pins.
    pub folder: Option<BorrowedFd<'a>>,
    /// The claim on the filters.
    pub filters: Option<BorrowedFd<'a>>,
    /// There may be flows in the pinned tables.
    pub steers: bool,
    /// The folder of the control socket was made for it.
    pub folder_made: bool,
}

/// A daemon that has asked.
#[derive(Debug)]
pub struct Candidate(UnixStream);

impl Candidate {
    /// The daemon at the other end of a connection to the control socket.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Says why not.
    pub async fn refuse(mut self, why: &str) -> io::Result<()> {
        let refusal = line(&Response::Error(why.to_owned()))?;
        self.0.write_all(&refusal).await
    }

    /// Shares what there is.
    pub async fn offer(mut self, estate: &Estate<'_>) -> io::Result<Preparing> {
        let listeners = estate.listeners.iter().map(|l| (Descriptor::Listener, *l));
        let others = [
            (Descriptor::Pins, estate.folder),
            (Descriptor::Filters, estate.filters),
        ];
        let others = others
            .into_iter()
            .filter_map(|(what, part)| Some((what, part?)));
        let parts = listeners.chain(others);
        let (names, parts): (Vec<Descriptor>, Vec<BorrowedFd<'_>>) = parts.unzip();
        let offer = line(&Response::TakeOver(Offer {
            descriptors: names,
            steers: estate.steers,
            folder_made: estate.folder_made,
        }))?;
        descriptors::send(&mut self.0, &offer, &parts).await?;
        let (reader, writer) = self.0.into_split();
        Ok(Preparing {
            reader: BufReader::new(reader).lines(),
            writer,
        })
    }
}

/// A daemon that sets itself up with what was offered.
#[derive(Debug)]
pub struct Preparing {
    reader: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Preparing {
    /// Waits until it is ready; false if it has given up. Cancelling loses nothing.
    pub async fn is_ready(&mut self) -> bool {
        next(&mut self.reader).await == Some(FromNew::Go)
    }

    /// Tells it that the place is its own; of the flows in `later` it is told as they come. An error:
    /// it is gone, and the place is still ours.
    pub async fn succeed(self, mut later: UnboundedReceiver<u64>) -> io::Result<Successor> {
        let Self { reader, mut writer } = self;
        writer.write_all(&line(&FromOld::Yours)?).await?;
        tokio::spawn(async move {
            while let Some(flow) = later.recv().await {
                // Where this fails there is another daemon soon, which looks for itself.
                if let Ok(line) = line(&FromOld::Flow(flow)) {
                    let _ = writer.write_all(&line).await;
                }
            }
        });
        Ok(Successor { reader })
    }
}

/// The daemon that has taken over.
#[derive(Debug)]
pub struct Successor {
    reader: Lines<BufReader<OwnedReadHalf>>,
}

impl Successor {
    /// Waits until it asks for the end of what is left. Its own end does not ask for that.
    pub async fn wants_end(&mut self) {
        if next(&mut self.reader).await != Some(FromNew::End) {
            pending::<()>().await;
        }
    }
}

async fn next(reader: &mut Lines<BufReader<OwnedReadHalf>>) -> Option<FromNew> {
    let line = reader.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}
