//! Moving checked bytes over connections: both ways at once, slowly, or up to a reset.
//!
//! Every byte is compared with the one that was sent ([`crate::pattern`]), the length is compared,
//! and the end of each direction must be a FIN that comes when the last byte has come.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pattern::Pattern;

/// How one direction is sent and received.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// How many bytes.
    pub length: u64,
    /// Which bytes.
    pub pattern: Pattern,
    /// The size of each write.
    pub write_size: usize,
    /// The size of each read.
    pub read_size: usize,
    /// A pause after each read.
    pub read_pause: Duration,
}

impl Flow {
    /// `length` bytes as fast as they go.
    pub fn new(length: u64, seed: u64) -> Self {
        Self {
            length,
            pattern: Pattern::new(seed),
            write_size: 64 << 10,
            read_size: 64 << 10,
            read_pause: Duration::ZERO,
        }
    }

    /// Sends the bytes from `offset` on.
    async fn send_from(&self, mut offset: u64, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        let mut buffer = vec![0; self.write_size];
        while offset < self.length {
            let length = buffer.len().min(usize::try_from(self.length - offset)?);
            self.pattern.fill(offset, &mut buffer[..length]);
            to.write_all(&buffer[..length])
                .await
                .with_context(|| format!("sending at byte {offset} of {}", self.length))?;
            offset += length as u64;
        }
        Ok(())
    }

    /// Sends all bytes and leaves the direction open.
    pub async fn send(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        self.send_from(0, to).await
    }

    /// Sends all bytes, then the end.
    pub async fn send_to_end(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        self.send(to).await?;
        to.shutdown().await.context("shutdown")
    }

    /// Receives and checks all bytes, and leaves the direction open.
    pub async fn receive(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        let mut buffer = vec![0; self.read_size];
        let mut offset = 0;
        while offset < self.length {
            let most = buffer.len().min(usize::try_from(self.length - offset)?);
            let length = from
                .read(&mut buffer[..most])
                .await
                .with_context(|| format!("receiving at byte {offset} of {}", self.length))?;
            ensure!(length > 0, "ended after {offset} of {} bytes", self.length);
            self.pattern.check(offset, &buffer[..length])?;
            offset += length as u64;
            if !self.read_pause.is_zero() {
                tokio::time::sleep(self.read_pause).await;
            }
        }
        Ok(())
    }

    /// Receives and checks all bytes, then the end.
    pub async fn receive_to_end(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        self.receive(from).await?;
        expect_end(from).await
    }
}

/// Both directions of a connection at once, each half-closed after its last byte.
pub async fn exchange(
    client: &mut TcpStream,
    server: &mut TcpStream,
    up: Flow,
    down: Flow,
) -> Result<()> {
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    let done = tokio::try_join!(
        async {
            up.send_to_end(&mut client_write)
                .await
                .context("client to backend")
        },
        async {
            up.receive_to_end(&mut server_read)
                .await
                .context("client to backend")
        },
        async {
            down.send_to_end(&mut server_write)
                .await
                .context("backend to client")
        },
        async {
            down.receive_to_end(&mut client_read)
                .await
                .context("backend to client")
        },
    );
    done.map(|_| ())
}

/// Both directions of a connection at once, neither ended.
pub async fn both_ways(
    client: &mut TcpStream,
    server: &mut TcpStream,
    up: Flow,
    down: Flow,
) -> Result<()> {
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    let done = tokio::try_join!(
        up.send(&mut client_write),
        up.receive(&mut server_read),
        down.send(&mut server_write),
        down.receive(&mut client_read),
    );
    done.map(|_| ())
}

/// The next read must be the orderly end.
pub async fn expect_end(from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let mut byte = [0];
    let length = from.read(&mut byte).await.context("reading the end")?;
    ensure!(length == 0, "a byte after the last one: {:#04x}", byte[0]);
    Ok(())
}

/// What comes until the end must be exactly `expected`.
pub async fn expect_bytes(from: &mut (impl AsyncRead + Unpin), expected: &[u8]) -> Result<()> {
    let mut received = vec![0; expected.len()];
    from.read_exact(&mut received)
        .await
        .context("reading what is expected")?;
    ensure!(
        received == expected,
        "received {:?}, not {:?}",
        String::from_utf8_lossy(&received),
        String::from_utf8_lossy(expected)
    );
    Ok(())
}

/// Reads until the connection fails, and the failure must be a reset.
pub async fn expect_reset(from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => anyhow::bail!("an orderly end instead of a reset"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("waiting for a reset"),
        }
    }
}

/// The other end must close without a byte, one way or the other.
pub async fn expect_closed(from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let mut byte = [0];
    match from.read(&mut byte).await {
        Ok(0) => Ok(()),
        Ok(_) => anyhow::bail!("a byte instead of the end: {:#04x}", byte[0]),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("waiting for the end"),
    }
}

/// Closes with a reset: `SO_LINGER` of zero.
pub fn reset(stream: TcpStream) -> Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}
