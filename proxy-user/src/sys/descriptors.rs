//! Descriptors that go from one process to another over a Unix socket: unix(7), `SCM_RIGHTS`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Descriptors that go at once, at most: the kernel's `SCM_MAX_FD`. With more, sending is refused (EINVAL).
const MOST: usize = 253;

/// Sends `bytes`, and `descriptors` with the first of them. The receiver's are duplicates: the same
/// sockets, and the same locks of files (flock(2): a lock is the open file description's).
pub async fn send(
    stream: &mut UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let socket = stream.as_raw_fd();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let rights = [ControlMessage::ScmRights(&numbers)];
        let data = [IoSlice::new(bytes)];
        Ok(sendmsg::<()>(
            socket,
            &data,
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?)
    });
    let sent = sent.await?;
    stream.write_all(&bytes[sent..]).await
}

/// Receives bytes into `buffer`, and the descriptors that came with them. 0 bytes: the stream has ended.
pub async fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let socket = stream.as_raw_fd();
    stream
        .async_io(Interest::READABLE, || {
            let mut data = [IoSliceMut::new(&mut *buffer)];
            let mut space = cmsg_space!([RawFd; MOST]);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(socket, &mut data, Some(&mut space), flags)?;
            let mut descriptors = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    descriptors.extend(numbers.into_iter().map(|number| {
                        // SAFETY: the kernel has just made this descriptor for us, and nobody else
                        // knows its number.
                        unsafe { OwnedFd::from_raw_fd(number) }
                    }));
                }
            }
            Ok((message.bytes, descriptors))
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn what_arrives_is_the_same_open_file() {
        let (mut here, there) = UnixStream::pair().expect("a pair");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        send(&mut here, b"two", &[writer.as_fd(), writer.as_fd()])
            .await
            .expect("sent");
        drop((here, writer));
        let mut buffer = [0; 16];
        let (length, mut descriptors) = receive(&there, &mut buffer).await.expect("received");
        assert_eq!((&buffer[..length], descriptors.len()), (&b"two"[..], 2));
        let mut writer = io::PipeWriter::from(descriptors.remove(0));
        writer.write_all(b"through").expect("written");
        drop((writer, descriptors));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
        let (length, descriptors) = receive(&there, &mut buffer).await.expect("the end");
        assert_eq!((length, descriptors.len()), (0, 0));
    }
}
