//! The listeners at work: whose connections are accepted, and what is done with them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shared::Shared;
use crate::config::Name;
use crate::flow::{self, Service};
use crate::listener::inherit::Inherited;
use crate::listener::{self, Accepted, Listeners, Listening};

/// What each listener's connections share.
pub type Services = BTreeMap<Name, Arc<Service>>;

/// Listeners, and one task for each socket.
#[derive(Debug)]
pub struct Accepting {
    shared: Arc<Shared>,
    listeners: Listeners,
    services: Services,
    tasks: TaskTracker,
    pause: CancellationToken,
}

impl Accepting {
    /// Accepts connections at `listeners`, for `services`.
    #[must_use]
    pub fn start(shared: Arc<Shared>, listeners: Listeners, services: Services) -> Self {
        let mut accepting = Self {
            shared,
            listeners,
            services,
            tasks: TaskTracker::new(),
            pause: CancellationToken::new(),
        };
        accepting.resume();
        accepting
    }

    /// Accepts no more, until [`Self::resume`]; connections wait in the sockets' backlogs.
    pub async fn pause(&self) {
        self.pause.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Accepts again.
    pub fn resume(&mut self) {
        self.tasks = TaskTracker::new();
        self.pause = CancellationToken::new();
        for socket in self.listeners.sockets() {
            let Some(service) = self.services.get(&socket.name) else {
                continue; // There is one for each listener.
            };
            let accepts = accept(
                Arc::clone(socket),
                Arc::clone(service),
                Arc::clone(&self.shared),
            );
            let pause = self.pause.clone();
            self.tasks.spawn(async move {
                pause.run_until_cancelled(accepts).await;
            });
        }
    }

    /// Serves what still waits at the sockets of `before`, which accepts no more: some may be closed with it.
    pub fn succeed(&self, before: &Self) {
        for socket in before.listeners.sockets() {
            while let Some(accepted) = socket.waiting() {
                let service = self.shared.listener_at(accepted.listener);
                let service = service.and_then(|(name, _)| self.services.get(&name));
                let place = Arc::clone(&self.shared.places).try_acquire_owned();
                // Without either it is reset.
                if let (Some(service), Ok(place)) = (service, place) {
                    serve(&self.shared, Arc::clone(service), accepted, place);
                }
            }
        }
    }

    /// Leaves ports of ranges to whoever else comes to listen there; never returns.
    pub async fn follow(&self) {
        self.listeners.follow().await;
    }

    /// The same sockets, for other listeners in this daemon.
    pub fn again(&self) -> io::Result<Inherited> {
        self.listeners.again()
    }

    /// The sockets.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.listeners.descriptors().collect()
    }

    /// Where they listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let sockets = self.listeners.sockets().iter();
        sockets.map(ToString::to_string).collect()
    }

    /// Lets clients send no larger segments than `bytes`.
    pub fn clamp_segments(&self, bytes: u32) {
        listener::clamp_segments(self.listeners.descriptors(), bytes);
    }
}

/// Accepts connections, for as long as it is polled.
async fn accept(socket: Arc<Listening>, service: Arc<Service>, shared: Arc<Shared>) {
    while let Ok(place) = Arc::clone(&shared.places).acquire_owned().await {
        let accepted = socket.accept().await;
        serve(&shared, Arc::clone(&service), accepted, place);
    }
}

fn serve(shared: &Shared, service: Arc<Service>, accepted: Accepted, place: OwnedSemaphorePermit) {
    shared.serving.spawn(async move {
        flow::serve(service, accepted).await;
        drop(place);
    });
}
