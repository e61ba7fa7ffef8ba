//! Waiting until packets that the programs have let pass are where they were going.
//!
//! From the tc hook to a socket's queue a packet stays in one RCU read-side section
//! (`process_backlog()` to `ip_local_deliver_finish()`). Once a grace period has passed since the switch, no
//! packet from before it is on its way, however long a CPU, perhaps a virtual one, was held up in between.
//! What userspace does for it is membarrier(2).

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::sys;

/// What is waited instead where the kernel does not tell: many times what a packet takes.
const INSTEAD: Duration = Duration::from_millis(20);

/// Somebody who waits.
type Waiting = oneshot::Sender<()>;

/// Grace periods, shared by all that wait for one: each takes the kernel 5 to 15 ms, for however many.
#[derive(Debug)]
pub struct GracePeriods(UnboundedSender<Waiting>);

impl GracePeriods {
    /// Ready to be asked; on a Tokio runtime, until it is dropped.
    #[must_use]
    pub fn start() -> Self {
        let (ask, asked) = unbounded_channel();
        tokio::spawn(serve(asked));
        Self(ask)
    }

    /// One that begins now or later, not when the result is first polled.
    pub fn next(&self) -> impl Future<Output = ()> + Send + use<> {
        let (done, passed) = oneshot::channel();
        // Its only error: the runtime is shutting down, and nothing is waited for any more.
        let _ = self.0.send(done);
        async move {
            let _ = passed.await;
        }
    }
}

async fn serve(mut asked: UnboundedReceiver<Waiting>) {
    let mut told = false;
    while let Some(first) = asked.recv().await {
        let mut all = vec![first];
        while let Ok(more) = asked.try_recv() {
            all.push(more);
        }
        if let Err(e) = grace_period().await {
            if !told {
                tracing::debug!("membarrier: {e}; flows wait for {INSTEAD:?} instead");
                told = true;
            }
            sleep(INSTEAD).await;
        }
        for waiting in all {
            // Whoever has gone does not wait.
            let _ = waiting.send(());
        }
    }
}

async fn grace_period() -> io::Result<()> {
    spawn_blocking(sys::wait_for_grace_period)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_share_one() {
        let periods = GracePeriods::start();
        let all: Vec<_> = (0..1000).map(|_| periods.next()).collect();
        for one in all {
            one.await;
        }
        periods.next().await;
    }

    #[tokio::test]
    async fn it_passes_without_being_polled() {
        let periods = GracePeriods::start();
        let first = periods.next();
        periods.next().await;
        let mut first = std::pin::pin!(first);
        let polled = is_ready(first.as_mut());
        assert!(polled, "the first has not passed");
    }

    fn is_ready(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context).is_ready()
    }
}
