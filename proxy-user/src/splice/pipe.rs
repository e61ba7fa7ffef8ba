//! Pipes for splice(2), kept for the next bulk transfer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use crate::lock::lock;

/// What one call moves at most.
pub(super) const CAPACITY: usize = 512 << 10;

/// Empty pipes. More transfers than this at one time make pipes of their own.
static IDLE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());
const MOST_IDLE: usize = 64;

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    len: usize,
}

impl Pipe {
    /// An empty pipe.
    pub(super) fn get() -> io::Result<Self> {
        let idle = lock(&IDLE).pop();
        if let Some(pipe) = idle {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused beyond the user's limit (pipe(7), pipe-user-pages-soft): it is smaller then.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as libc::c_int));
        Ok(Self {
            read,
            write,
            len: 0,
        })
    }

    /// Keeps an empty pipe for later.
    pub(super) fn put(self) {
        let mut idle = lock(&IDLE);
        if self.len == 0 && idle.len() < MOST_IDLE {
            idle.push(self);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes what the socket has. `WouldBlock` from an empty pipe: the socket has nothing.
    pub(super) fn fill(&mut self, from: &impl AsFd) -> io::Result<usize> {
        let moved = splice(from, None, &self.write, None, CAPACITY, flags())?;
        self.len += moved;
        Ok(moved)
    }

    /// Gives the socket what it takes.
    pub(super) fn drain(&mut self, to: &impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.read, None, to, None, self.len, flags())?;
        self.len -= moved;
        Ok(moved)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
