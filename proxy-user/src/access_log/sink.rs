//! Where lines are written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::LogTarget;

/// Where syslog daemons listen (and systemd's, which is one).
const SYSLOG: &str = "/dev/log";

/// Where systemd's journal listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Why access lines cannot go where they should. Whoever tells it says that it is `--access-log`.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file or the socket cannot be opened.
    #[error("{}: {source}", .path.display())]
    Open {
        /// What could not be opened.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no thread for it.
    #[error("no thread to write it: {0}")]
    Thread(#[source] io::Error),
}

/// Something that takes lines, each in one piece.
#[derive(Debug)]
pub(super) enum Sink {
    Stream(Stream),
    Datagrams(Datagrams),
}

impl Sink {
    /// Opens what `target` names; `None`: it is no place of its own.
    pub(super) fn open(target: &LogTarget) -> Result<Option<Self>, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Open { path, source }
        };
        let datagrams = |path: &str| {
            let path = Path::new(path);
            let opened = Datagrams::to(path).map_err(failed(path))?;
            Ok(Some(Self::Datagrams(opened)))
        };
        match target {
            LogTarget::Log => Ok(None),
            // Not `Stdout`, which keeps back what is no whole line, and is locked by whoever prints.
            LogTarget::Stdout => {
                let path = Path::new("/dev/stdout");
                let stdout = stdout().map_err(failed(path))?;
                Ok(Some(Self::Stream(Stream::new(stdout))))
            }
            LogTarget::File(path) => {
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o640)
                    .open(path)
                    .map_err(failed(path))?;
                Ok(Some(Self::Stream(Stream::new(file))))
            }
            LogTarget::Syslog => datagrams(SYSLOG),
            LogTarget::Journald => datagrams(JOURNAL),
        }
    }

    /// Writes a line; an error means that it is lost.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write(line),
            Self::Datagrams(datagrams) => datagrams.write(line),
        }
    }
}

fn stdout() -> io::Result<File> {
    use std::os::fd::AsFd as _;
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// A file or pipe.
#[derive(Debug)]
pub(super) struct Stream {
    file: File,
    /// A line was not written to its end: the disk was full.
    broken: bool,
}

impl Stream {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            broken: false,
        }
    }

    /// By one write as a rule: several daemons may append to the same file.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.broken {
            self.file.write_all(b"\n")?;
            self.broken = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    rest = &rest[n..];
                    self.broken = !rest.is_empty();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A log daemon's socket.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Datagrams {
    pub(super) fn to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    fn write(&mut self, message: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(message).or_else(|_| {
            // The daemon may have been started anew.
            self.socket.connect(&self.path)?;
            self.socket.send(message)
        });
        sent.map(drop)
    }
}
