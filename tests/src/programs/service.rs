//! The service at the end of the road. It says who asks, whom it takes itself for and what it was asked,
//! and gives the question back.
//!
//! A question is its length in 4 bytes, the most significant first, and as many bytes. An answer is a line,
//! `NAME CLIENT CALLED CRC32C`, and the question's bytes.

use std::io::{Error, ErrorKind, Result as IoResult};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::net::Host;
use crate::pattern::Pattern;
use crate::transfer::expect_end;

/// The longest question, in bytes.
const LONGEST: usize = 8 << 10;

/// A running service. Dropping it closes all its sockets, as the kernel does for a program that is killed.
pub struct Service(Vec<JoinHandle<()>>);

impl Service {
    /// Serves at `addresses` under the host's name.
    pub async fn start(host: &Host, addresses: &[SocketAddr]) -> Result<Self> {
        let mut serving = Vec::new();
        for address in addresses {
            let listener = host.listen(*address).await?;
            serving.push(host.spawn(serve(host.name(), listener)));
        }
        Ok(Self(serving))
    }

    /// Closes all its sockets, and returns when nothing listens any more.
    pub async fn kill(mut self) {
        for task in std::mem::take(&mut self.0) {
            task.abort();
            // An error: it was aborted.
            let _ = task.await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn serve(name: &'static str, listener: TcpListener) {
    let mut open = JoinSet::new();
    while let Ok((stream, client)) = listener.accept().await {
        open.spawn(answer(name, stream, client));
        while open.try_join_next().is_some() {}
    }
}

/// Answers until the client's end; what goes wrong shows there.
async fn answer(name: &'static str, stream: TcpStream, client: SocketAddr) -> IoResult<()> {
    stream.set_nodelay(true)?;
    let called = stream.local_addr()?;
    let mut stream = BufReader::new(stream);
    let mut question = Vec::new();
    loop {
        let length = match stream.read_u32().await {
            Ok(length) => length as usize,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return stream.shutdown().await,
            Err(e) => return Err(e),
        };
        if length > LONGEST {
            return Err(Error::from(ErrorKind::InvalidData));
        }
        question.resize(length, 0);
        stream.read_exact(&mut question).await?;
        let sum = crc32c::crc32c(&question);
        let mut answer = format!("{name} {client} {called} {sum:08x}\n").into_bytes();
        answer.extend_from_slice(&question);
        stream.write_all(&answer).await?;
    }
}

/// Who answered, and what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The backend's name.
    pub backend: String,
    /// Whom it took the client for.
    pub client: SocketAddr,
    /// The address that it was called at.
    pub called: SocketAddr,
}

/// A client's end of a connection.
pub struct Call {
    stream: BufReader<TcpStream>,
    pattern: Pattern,
    asked: u64,
}

impl Call {
    /// Over a connection that is there; the questions of each `seed` are other ones.
    pub fn over(stream: TcpStream, seed: u64) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            pattern: Pattern::new(seed),
            asked: 0,
        })
    }

    /// Asks a question of `length` bytes. The answer must be whole, and to this client.
    pub async fn ask(&mut self, length: usize) -> Result<Answer> {
        let mut question = vec![0; length.min(LONGEST)];
        self.pattern.fill(self.asked, &mut question);
        let mut message = u32::try_from(question.len())?.to_be_bytes().to_vec();
        message.extend_from_slice(&question);
        self.stream.write_all(&message).await.context("asking")?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await;
        ensure!(
            read.context("no answer")? > 0,
            "an end instead of an answer"
        );
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[backend, client, called, sum] = words.as_slice() else {
            anyhow::bail!("not an answer: {line:?}");
        };
        let own = crc32c::crc32c(&question);
        ensure!(sum == format!("{own:08x}"), "another question was heard");
        let answer = Answer {
            backend: backend.to_owned(),
            client: client.parse()?,
            called: called.parse()?,
        };
        let mut back = vec![0; question.len()];
        let read = self.stream.read_exact(&mut back).await;
        read.context("the answer is cut short")?;
        self.pattern.check(self.asked, &back)?;
        self.asked += question.len() as u64;
        let local = self.stream.get_ref().local_addr()?;
        ensure!(
            answer.client == local,
            "seen as {}, not {local}",
            answer.client
        );
        Ok(answer)
    }

    /// Ends it, and waits for the service's end.
    pub async fn end(mut self) -> Result<()> {
        self.stream.shutdown().await.context("ending")?;
        expect_end(&mut self.stream).await
    }
}
