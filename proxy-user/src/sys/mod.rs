//! System calls: the only module with `unsafe`, and thin functions with names.

#![expect(
    unsafe_code,
    reason = "what no crate wraps is called here, and nowhere else"
)]

pub mod arrival;
pub mod descriptors;
pub mod repair;
pub mod splice;
pub mod tcx;

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use socket2::SockRef;
use tokio::io::unix::AsyncFd;

/// The socket's cookie (`SO_COOKIE`): unique for this boot, over all network namespaces.
pub fn socket_cookie(socket: &impl AsFd) -> io::Result<u64> {
    SockRef::from(socket).cookie()
}

/// Are both sockets in the same network namespace?
///
/// Asked by cookies that are unique for this boot (`SO_NETNS_COOKIE`), or, where Linux before 5.14 has none, by the
/// namespaces' files, which takes `CAP_NET_ADMIN`.
pub fn share_network_namespace(one: &impl AsFd, other: &impl AsFd) -> io::Result<bool> {
    match network_namespace_cookie(one) {
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            Ok(network_namespace_file(one)? == network_namespace_file(other)?)
        }
        cookie => Ok(cookie? == network_namespace_cookie(other)?),
    }
}

fn network_namespace_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes, to an integer of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    splice::check(result)?;
    Ok(cookie)
}

/// Device and inode of the namespace's file (`SIOCGSKNS`, `net/socket.c`).
fn network_namespace_file(socket: &impl AsFd) -> io::Result<(u64, u64)> {
    // SAFETY: the request takes no argument.
    let file = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGSKNS) };
    splice::check(file)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows of it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Blocks until every RCU read-side section of the kernel that was entered before is left: 5 to 15 ms.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` (`kernel/sched/membarrier.c`); `EINVAL` with `nohz_full`.
pub fn wait_for_grace_period() -> io::Result<()> {
    // SAFETY: the command takes neither flags nor a CPU, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Who may have a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One.
    Alone,
    /// Many, while nobody has it alone.
    Shared,
}

/// Locks an open file for whoever has it open (flock(2)), also after it was handed to another process; until
/// nobody has. False: somebody has it already.
pub fn try_lock(file: &impl AsFd, sharing: Sharing) -> io::Result<bool> {
    let operation = match sharing {
        Sharing::Alone => libc::LOCK_EX,
        Sharing::Shared => libc::LOCK_SH,
    };
    // SAFETY: no memory is involved.
    let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), operation | libc::LOCK_NB) };
    match splice::check(result) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes closing a connection send a RST and throw away what is queued (`SO_LINGER` 0; RFC 9293,
/// 3.10.4, "ABORT"), or makes it orderly again.
pub fn reset_on_close(socket: &impl AsFd, reset: bool) {
    // If it fails the connection is gone, and neither has a reader.
    let _ = SockRef::from(socket).set_linger(reset.then_some(Duration::ZERO));
}

/// Takes data with the SYN (RFC 7413), of up to `most` connections at once whose handshake is not complete;
/// 0: of none (`TCP_FASTOPEN`). `net.ipv4.tcp_fastopen` must allow it, too.
pub fn set_fast_open(listener: &impl AsFd, most: i32) -> io::Result<()> {
    splice::set_int(listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, most)
}

/// `CLOCK_MONOTONIC` in ns, the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Waits for a descriptor with the runtime that is current.
pub fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same until it is dropped, and the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(|e| e.into_parts().1)
}

/// The ports that the kernel gives to sockets that do not ask for one (`net.ipv4.ip_local_port_range`, for
/// IPv6 too); where that cannot be read, Linux's default.
#[must_use]
pub fn local_ports() -> RangeInclusive<u16> {
    const DEFAULT: RangeInclusive<u16> = 32_768..=60_999;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => DEFAULT,
    }
}
