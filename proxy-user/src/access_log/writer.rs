//! A thread that writes lines, and the queue before it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::sink::{OpenError, Sink};
use crate::config::LogTarget;
use crate::lock::lock;

/// Lines that may wait: with half a KiB each, a few MiB.
const QUEUE: usize = 8192;

/// How often it is told that lines are lost.
const TELL: Duration = Duration::from_secs(10);

/// How long all that waits may take to be written.
const FLUSH: Duration = Duration::from_secs(5);

/// Lines that were lost.
pub type Lost = Counter;

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(oneshot::Sender<()>),
}

/// The near end of the queue. When it is dropped the thread writes what waits, and ends.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    complaint: Complaint,
}

impl Writer {
    pub(super) fn start(sink: Sink, target: &LogTarget, lost: Lost) -> Result<Self, OpenError> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let complaint = |lost| Complaint {
            target: target.clone(),
            lost,
            told: Mutex::default(),
        };
        let of_writing = complaint(lost.clone());
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(sink, messages, &of_writing))
            .map_err(OpenError::Thread)?;
        Ok(Self {
            queue,
            complaint: complaint(lost),
        })
    }

    /// Leaves a line to the thread; where too many wait it is lost.
    pub(super) fn write(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.complaint.lost("too many wait to be written");
        }
    }

    /// Waits until what waits now is written.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = written.await;
            }
        };
        if timeout(FLUSH, flushed).await.is_err() {
            tracing::warn!("the access log is not written to its end within {FLUSH:?}");
        }
    }
}

fn write_all(mut sink: Sink, mut messages: mpsc::Receiver<Message>, complaint: &Complaint) {
    while let Some(message) = messages.blocking_recv() {
        match message {
            Message::Line(line) => {
                if let Err(e) = sink.write(&line) {
                    complaint.lost(&e.to_string());
                }
            }
            // An error: nobody waits any more.
            Message::Flush(done) => _ = done.send(()),
        }
    }
}

/// Counts lost lines, and tells of them now and then.
#[derive(Debug)]
struct Complaint {
    target: LogTarget,
    lost: Lost,
    told: Mutex<Option<Instant>>,
}

impl Complaint {
    fn lost(&self, why: &str) {
        let lost = self.lost.inc() + 1;
        let mut told = lock(&self.told);
        if told.is_none_or(|last| last.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(
                "--access-log {}: {lost} line(s) lost so far: {why}",
                self.target
            );
        }
    }
}
