//! A wire made of two TUN or TAP devices and a thread for each direction, which reads frames from
//! one device and writes them to the other. Such devices have no offloads unless asked: what is read
//! are the segments that a real cable would carry.

mod impairment;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tappers::{Interface, Tap, Tun};

pub use impairment::{Counts, Impairment};

use super::host::Host;
use impairment::Mangler;

/// What kind of device the ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// Frames with an Ethernet header.
    Tap,
    /// Packets that start at the IP header.
    Tun,
}

impl Device {
    fn ip_offset(self) -> usize {
        match self {
            Self::Tap => 14,
            Self::Tun => 0,
        }
    }

    /// Makes the device on `host`; it goes when the last handle to it is closed.
    fn create(self, host: &Host, name: &str) -> Result<File> {
        let context = format!("{}: {self:?} device {name}", host.name());
        let name = name.to_owned();
        let open = move || -> std::io::Result<File> {
            let name = Interface::new(&name)?;
            let fd = match self {
                Self::Tap => {
                    let mut tap = Tap::new_named(name)?;
                    tap.set_nonblocking(true)?;
                    tap.as_fd().try_clone_to_owned()?
                }
                Self::Tun => {
                    let mut tun = Tun::new_named(name)?;
                    tun.set_nonblocking(true)?;
                    tun.as_fd().try_clone_to_owned()?
                }
            };
            Ok(File::from(fd))
        };
        host.block(open)?.context(context)
    }
}

/// Two devices and the threads between them. Dropping it unplugs both ends.
pub struct Wire {
    // Each direction's thread watches the other end of its socket pair, and ends when it closes.
    stop: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
    counts: [Arc<Mutex<Counts>>; 2],
}

impl Wire {
    pub(super) fn new(
        device: Device,
        near: (&Host, &str),
        far: (&Host, &str),
        impairment: &Impairment,
    ) -> Result<Self> {
        let near = Arc::new(device.create(near.0, near.1)?);
        let far = Arc::new(device.create(far.0, far.1)?);
        let mut wire = Self {
            stop: Vec::new(),
            threads: Vec::new(),
            counts: Default::default(),
        };
        for (direction, (from, to)) in [(Arc::clone(&near), Arc::clone(&far)), (far, near)]
            .into_iter()
            .enumerate()
        {
            let (stop, stopped) = UnixStream::pair()?;
            let counts = Arc::clone(&wire.counts[direction]);
            let mangler = Mangler::new(impairment, direction as u64, device.ip_offset());
            let carry = move || carry(&from, &to, mangler, &stopped, &counts);
            wire.threads
                .push(thread::Builder::new().name("wire".into()).spawn(carry)?);
            wire.stop.push(stop);
        }
        Ok(wire)
    }

    /// What was done so far to frames from the near to the far end, and to those that came back.
    pub fn counts(&self) -> [Counts; 2] {
        self.counts
            .each_ref()
            .map(|counts| *counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.clear();
        for thread in self.threads.drain(..) {
            // A panic there has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Carries frames one way until `stopped` closes.
fn carry(
    mut from: &File,
    mut to: &File,
    mut mangler: Mangler,
    stopped: &UnixStream,
    counts: &Mutex<Counts>,
) {
    // Keyed by due time and arrival, so that equal delays keep the order.
    let mut waiting: BTreeMap<(Instant, u64), Vec<u8>> = BTreeMap::new();
    let mut arrivals = 0;
    let mut buffer = vec![0; 65536];
    loop {
        loop {
            match from.read(&mut buffer) {
                Ok(length) => {
                    for (delay, frame) in mangler.pass(buffer[..length].to_vec()) {
                        arrivals += 1;
                        waiting.insert((Instant::now() + delay, arrivals), frame);
                    }
                    *counts.lock().unwrap_or_else(PoisonError::into_inner) = mangler.counts;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The device is down, or not up yet.
                Err(_) => break,
            }
            deliver_due(&mut waiting, &mut to);
        }
        deliver_due(&mut waiting, &mut to);
        let timeout = waiting.keys().next().map_or(PollTimeout::NONE, |(due, _)| {
            // Rounded up: a poll that ends early would spin.
            let left = due.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut fds, timeout);
        if fds[1].any() == Some(true) {
            return;
        }
        if polled.is_ok()
            && fds[0]
                .revents()
                .is_some_and(|got| got.contains(PollFlags::POLLERR))
        {
            // Not up yet.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn deliver_due(waiting: &mut BTreeMap<(Instant, u64), Vec<u8>>, to: &mut &File) {
    let now = Instant::now();
    while let Some(next) = waiting.first_entry() {
        if next.key().0 > now {
            return;
        }
        // A frame that the device does not take is a frame lost, as on any wire.
        let _ = to.write(&next.remove());
    }
}
