//! Flows that go on without sockets: from the switch of the engine `packet` to their record.
//!
//! One task, the [`Keeper`], has them all. It sleeps until the tc programs tell of an end, until a flow
//! may have been silent for too long, or until routes change; nothing is done per packet or per second.
//! All that it must know is in pinned tables too, so that the next daemon can adopt them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use proxy_common::flow::{
    self as layout, Forward, HANDING_OVER, LEFT, SEEN_ENDED, SEEN_FIN, SEEN_RST, SETTLED, Tuple,
};
use proxy_core::address::{Client, Listener, Peer, Upstream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Instant as TokioInstant, sleep_until};
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use crate::bpf::forwards::{Events, ForwardTable};
use crate::daemon::shared::Shared;
use crate::kernel::ForwardedParts;
use crate::paths::Paths;
use crate::record::Record;
use crate::reset::Resets;
use crate::splice::{End, EngineKind, Forwarding, Limits, Progress, Side, State};
use crate::steering::{Identity, Steering};
use crate::sys;

/// How long the entries of a flow stay after its last packet: a lost last acknowledgement is asked for
/// again (a retransmission timeout is 200 ms and doubles).
const LINGER: Duration = Duration::from_secs(2);

/// The same where the last bytes are not acknowledged: TCP gives up on them after some 100 s
/// (`tcp_orphan_retries`, 8).
const LINGER_UNACKNOWLEDGED: Duration = Duration::from_secs(130);

/// How long a flow may be without a route to one of its sides. Links go down and come up again.
const UNROUTABLE: Duration = Duration::from_secs(10);

/// Where flows are handed in.
#[derive(Clone, Debug)]
pub struct Forwarded {
    tell: UnboundedSender<Message>,
    /// There is a keeper: the engine `packet` is in use, or may be.
    kept: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Message {
    Keep(Box<Kept>),
    RoutesChanged,
    Stop,
    End(u64, End),
    HandOver {
        later: UnboundedSender<u64>,
        done: oneshot::Sender<()>,
    },
    TakeBack,
    Adopt(u64),
    PredecessorGone,
    Settled(oneshot::Sender<()>),
}

/// A handle, and what the keeper is told by it.
#[must_use]
pub fn channel() -> (Forwarded, Told) {
    let (tell, told) = mpsc::unbounded_channel();
    let kept = Arc::new(AtomicBool::new(false));
    let forwarded = Forwarded {
        tell,
        kept: Arc::clone(&kept),
    };
    (forwarded, Told(told, kept))
}

/// The other end of a [`Forwarded`].
#[derive(Debug)]
pub struct Told(UnboundedReceiver<Message>, Arc<AtomicBool>);

impl Forwarded {
    /// Keeps a flow until it ends.
    pub fn keep(&self, record: Record, forwarding: Forwarding, identity: Identity, limits: Limits) {
        let Forwarding {
            flow,
            record: known,
            end,
            routes,
        } = forwarding;
        self.tell(Message::Keep(Box::new(Kept {
            flow,
            known,
            end,
            record,
            identity,
            limits,
            routes: Some(routes),
            deadline: None,
            unroutable: None,
        })));
    }

    /// Links or routes have changed.
    pub fn routes_changed(&self) {
        self.tell(Message::RoutesChanged);
    }

    /// Resets every flow.
    pub fn stop(&self) {
        self.tell(Message::Stop);
    }

    /// Resets the flow of this number in the registry, if it has no sockets any more.
    pub fn end(&self, id: u64, why: End) {
        self.tell(Message::End(id, why));
    }

    /// Leaves every flow to another daemon; those to come are told to `later`.
    pub async fn hand_over(&self, later: UnboundedSender<u64>) {
        let (done, told) = oneshot::channel();
        self.tell(Message::HandOver { later, done });
        self.answered(told).await;
    }

    /// The other daemon did not come: the flows are this one's again.
    pub fn take_back(&self) {
        self.tell(Message::TakeBack);
    }

    /// The daemon that was taken over has left another flow.
    pub fn adopt(&self, flow: u64) {
        self.tell(Message::Adopt(flow));
    }

    /// The daemon that was taken over is gone: whatever is still in the tables is this one's.
    pub fn predecessor_gone(&self) {
        self.tell(Message::PredecessorGone);
    }

    /// Waits until what was there to be adopted when the daemon started is in the registry, and what was told
    /// since has been done.
    pub async fn settled(&self) {
        let (done, told) = oneshot::channel();
        self.tell(Message::Settled(done));
        self.answered(told).await;
    }

    /// Waits for the keeper's answer. Where there is none there is no flow either, and nothing to wait for.
    async fn answered(&self, told: oneshot::Receiver<()>) {
        if self.kept.load(Ordering::Relaxed) {
            let _ = told.await;
        }
    }

    fn tell(&self, message: Message) {
        // To nobody, where there is no keeper.
        if self.kept.load(Ordering::Relaxed) {
            let _ = self.tell.send(message);
        }
    }
}

/// A flow without sockets.
#[derive(Debug)]
struct Kept {
    flow: u64,
    /// What the tables know of it.
    known: layout::Record,
    /// It is over before it has begun.
    end: Option<End>,
    record: Record,
    identity: Identity,
    limits: Limits,
    /// [`Paths::generation`] when its ways were looked up; `None`: by another daemon.
    routes: Option<u64>,
    deadline: Option<Key>,
    /// The side that there is no way to, and since when.
    unroutable: Option<(Side, Instant)>,
}

impl Kept {
    fn progress(&self) -> &Progress {
        &self.record.flow().progress
    }
}

/// Entries of a flow that is over.
#[derive(Clone, Copy, Debug)]
struct Lingering {
    downstream: Tuple,
    upstream: Tuple,
}

/// What the keeper works with.
#[derive(Debug)]
pub struct Keeper {
    told: UnboundedReceiver<Message>,
    events: Events,
    table: Arc<ForwardTable>,
    paths: Arc<Paths>,
    /// `None`: nobody can be told of an end (no `CAP_NET_RAW`).
    resets: Option<Resets>,
    steering: Arc<Steering>,
    shared: Arc<Shared>,
    flows: HashMap<u64, Kept>,
    lingering: HashMap<u64, Lingering>,
    deadlines: DelayQueue<u64>,
    /// When to look again for routes that were missing.
    look_again: Option<Instant>,
    /// A daemon that was taken over still has flows.
    predecessor: bool,
    /// Another daemon has taken over, and is told of further flows.
    successor: Option<UnboundedSender<u64>>,
}

impl Keeper {
    /// One that is told by `told`; `predecessor`: a daemon that was taken over is still there.
    #[must_use]
    pub fn new(
        Told(told, kept): Told,
        parts: ForwardedParts,
        resets: Option<Resets>,
        shared: Arc<Shared>,
        predecessor: bool,
    ) -> Self {
        let ForwardedParts {
            table,
            events,
            paths,
            steering,
        } = parts;
        kept.store(true, Ordering::Relaxed);
        Self {
            told,
            events,
            table,
            paths,
            resets,
            steering,
            shared,
            flows: HashMap::new(),
            lingering: HashMap::new(),
            deadlines: DelayQueue::new(),
            look_again: None,
            predecessor,
            successor: None,
        }
    }

    /// Adopts what may be adopted, and keeps flows, for as long as there is a [`Forwarded`].
    pub async fn run(mut self) {
        self.adopt_all();
        loop {
            let look_again = self.look_again.map(TokioInstant::from);
            tokio::select! {
                message = self.told.recv() => match message {
                    Some(Message::Keep(kept)) => self.keep(*kept),
                    Some(Message::RoutesChanged) => self.reroute().await,
                    Some(Message::Stop) => self.stop(),
                    Some(Message::End(id, why)) => self.end(id, why),
                    Some(Message::HandOver { later, done }) => {
                        self.hand_over(later);
                        let _ = done.send(());
                    }
                    Some(Message::TakeBack) => {
                        self.successor = None;
                        self.adopt_all();
                    }
                    Some(Message::Adopt(flow)) => self.adopt_later(flow),
                    Some(Message::PredecessorGone) => self.predecessor_gone(),
                    Some(Message::Settled(done)) => _ = done.send(()),
                    None => return,
                },
                // The ring has one reader.
                flow = self.events.next(), if self.successor.is_none() => self.look(flow),
                Some(expired) = self.deadlines.next(), if !self.deadlines.is_empty() => {
                    self.expired(expired.into_inner());
                }
                () = sleep_until(look_again.unwrap_or_else(TokioInstant::now)), if look_again.is_some() => {
                    self.reroute().await;
                }
            }
        }
    }

    fn keep(&mut self, mut kept: Kept) {
        if let Some(successor) = &self.successor
            && kept.end.is_none()
        {
            let flow = kept.flow;
            self.leave(kept);
            // Gone itself: whoever comes next looks for what was left.
            let _ = successor.send(flow);
            return;
        }
        let flow = kept.flow;
        let end = match kept.end.take() {
            // It may have been told to end while it was on its way to here.
            None | Some(End::Stopped) => kept.record.flow().ended(),
            end => end,
        };
        if kept.routes != Some(self.paths.generation()) {
            // Nobody has looked after its ways meanwhile.
            self.look_again = Some(Instant::now());
        }
        self.flows.insert(flow, kept);
        match end {
            Some(end) => self.abort(flow, end),
            None => self.look(flow),
        }
    }

    /// What has happened to a flow, and when it is to be looked at again.
    fn look(&mut self, flow: u64) {
        let Some(kept) = self.flows.get(&flow) else {
            return self.look_at_stranger(flow);
        };
        let (Some(down), Some(up)) = self.entries(flow, &kept.known) else {
            // Somebody has removed them: its packets go nowhere.
            return self.close(flow, End::Stopped);
        };
        match standing(&down, &up) {
            Standing::Over(end) => return self.close(flow, end),
            Standing::Open => {}
            Standing::Half(state) => kept.progress().enter(state),
        }
        let half = (down.seen | up.seen) & SEEN_FIN != 0;
        let limit = if half {
            kept.limits.half_close
        } else {
            kept.limits.idle
        };
        let last = down.last_seen_ns.max(up.last_seen_ns);
        let last = if last == 0 {
            kept.known.accepted_ns
        } else {
            last
        };
        let idle = Duration::from_nanos(sys::monotonic_ns().saturating_sub(last));
        if idle >= limit {
            let end = if half {
                End::HalfCloseTimeout
            } else {
                End::IdleTimeout
            };
            return self.abort(flow, end);
        }
        self.look_in(flow, limit - idle);
    }

    fn look_in(&mut self, flow: u64, time: Duration) {
        // The queue's clock ends in two years.
        let time = time.min(Duration::from_secs(365 * 24 * 3600));
        let Some(kept) = self.flows.get_mut(&flow) else {
            return;
        };
        match &kept.deadline {
            Some(key) => self.deadlines.reset(key, time),
            None => kept.deadline = Some(self.deadlines.insert(flow, time)),
        }
    }

    fn expired(&mut self, flow: u64) {
        if let Some(kept) = self.flows.get_mut(&flow) {
            kept.deadline = None;
            return self.look(flow);
        }
        let Some(lingering) = self.lingering.get(&flow).copied() else {
            return;
        };
        let now = sys::monotonic_ns();
        let keys = [lingering.downstream, lingering.upstream];
        let entries = keys.map(|key| self.table.get(flow, &key));
        let last = entries.iter().flatten().map(|entry| entry.last_seen_ns);
        let silent = last
            .max()
            .map(|last| Duration::from_nanos(now.saturating_sub(last)));
        let linger = match &entries {
            [Some(down), Some(up)] if !is_quiet(down, up) => LINGER_UNACKNOWLEDGED,
            _ => LINGER,
        };
        match silent {
            Some(silent) if silent < linger => {
                self.deadlines.insert(flow, linger - silent);
            }
            _ => {
                self.lingering.remove(&flow);
                for key in keys {
                    self.table.remove(flow, &key);
                }
            }
        }
    }

    /// A flow that is not kept: it is over and not quiet, or another daemon has just left it.
    fn look_at_stranger(&mut self, flow: u64) {
        if let Some(lingering) = self.lingering.get(&flow).copied() {
            self.reset(flow, lingering.downstream, lingering.upstream);
        } else {
            self.adopt_left(flow);
        }
    }

    /// Ends a flow that has no end of its own: both peers are told.
    fn abort(&mut self, flow: u64, end: End) {
        if let Some(kept) = self.flows.get(&flow) {
            let (downstream, upstream) = (kept.known.downstream, kept.known.upstream);
            for key in [downstream, upstream] {
                self.table.end(flow, &key);
            }
            self.reset(flow, downstream, upstream);
            self.close(flow, end);
        }
    }

    /// Sends a RST to each peer that has not sent one, with the number that it expects as far as is known.
    /// Where it expects another, it says so (RFC 5961, 3.2), and gets another RST.
    fn reset(&self, flow: u64, downstream: Tuple, upstream: Tuple) {
        let Some(resets) = &self.resets else { return };
        for key in [downstream, upstream] {
            let Some(entry) = self.table.get(flow, &key) else {
                continue;
            };
            if entry.seen & SEEN_ENDED == 0 || entry.seen & SEEN_RST != 0 {
                continue;
            }
            resets.answer(&key, &entry);
        }
    }

    /// Writes the flow's record; its entries linger.
    fn close(&mut self, flow: u64, end: End) {
        let Some(kept) = self.flows.remove(&flow) else {
            return;
        };
        let progress = kept.progress();
        progress.up().detach();
        progress.down().detach();
        progress.enter(State::Closed);
        if let Some(key) = &kept.deadline {
            self.deadlines.remove(key);
        }
        self.table.forget(flow);
        self.linger(flow, kept.known.downstream, kept.known.upstream);
        kept.identity.release();
        kept.record.close(end.into());
    }

    fn linger(&mut self, flow: u64, downstream: Tuple, upstream: Tuple) {
        let lingering = Lingering {
            downstream,
            upstream,
        };
        if self.lingering.insert(flow, lingering).is_none() {
            self.deadlines.insert(flow, LINGER);
        }
    }

    fn stop(&mut self) {
        let flows: Vec<u64> = self.flows.keys().copied().collect();
        for flow in flows {
            self.abort(flow, End::Stopped);
        }
    }

    fn end(&mut self, id: u64, why: End) {
        let kept = self.flows.values().find(|kept| kept.record.flow().id == id);
        if let Some(flow) = kept.map(|kept| kept.flow) {
            self.abort(flow, why);
        }
    }

    fn hand_over(&mut self, later: UnboundedSender<u64>) {
        self.successor = Some(later);
        self.lingering.clear();
        self.deadlines.clear();
        self.look_again = None;
        for kept in std::mem::take(&mut self.flows).into_values() {
            self.leave(kept);
        }
    }

    /// Makes a flow one that another daemon may adopt.
    fn leave(&self, kept: Kept) {
        let left = layout::Record {
            state: LEFT,
            ..kept.known
        };
        self.table.record(kept.flow, left);
        kept.record.hand_over();
        kept.identity.hand_over();
    }

    fn entries(&self, flow: u64, known: &layout::Record) -> (Option<Forward>, Option<Forward>) {
        let entry = |key| self.table.get(flow, key);
        (entry(&known.downstream), entry(&known.upstream))
    }
}

/// Adopting what an earlier daemon has left.
impl Keeper {
    /// Adopts what may be adopted. While the earlier daemon is there, that is what it has left; the rest
    /// is in its hands.
    fn adopt_all(&mut self) {
        // Entries first: those whose record is gone by then are of flows that are over.
        let entries = self.table.entries();
        let (mut recorded, mut adopted) = (HashSet::new(), 0);
        for (flow, known) in self.table.records() {
            let others = self.predecessor && known.state != LEFT;
            if others || self.steering.is_open(flow) {
                recorded.insert(flow);
            } else if self.adopt(flow, known) {
                recorded.insert(flow);
                adopted += 1;
            }
        }
        if adopted > 0 {
            tracing::info!("{adopted} flow(s) adopted");
        }
        // What lingered, or was lost halfway.
        for (key, entry) in entries {
            if !recorded.contains(&entry.flow) {
                self.linger(entry.flow, key, entry.rewrite.reversed());
            }
        }
        if !self.predecessor {
            self.steering.inherit();
        }
    }

    fn predecessor_gone(&mut self) {
        self.predecessor = false;
        // Else it is the next daemon's, which will find it when this one is gone.
        if self.successor.is_none() {
            self.adopt_all();
        }
    }

    /// The earlier daemon has told of a flow.
    fn adopt_later(&mut self, flow: u64) {
        match &self.successor {
            Some(successor) => _ = successor.send(flow),
            None => self.adopt_left(flow),
        }
    }

    /// Adopts a flow, if the earlier daemon has left it.
    fn adopt_left(&mut self, flow: u64) {
        if !self.steering.is_open(flow)
            && let Some(known) = self.table.record_of(flow)
            && known.state == LEFT
        {
            self.adopt(flow, known);
        }
    }

    fn adopt(&mut self, flow: u64, mut known: layout::Record) -> bool {
        if !matches!(self.entries(flow, &known), (Some(_), Some(_))) {
            if known.state == HANDING_OVER {
                self.not_switched(&known);
            }
            self.table.forget(flow);
            return false;
        }
        let age = Duration::from_nanos(sys::monotonic_ns().saturating_sub(known.accepted_ns));
        let now = Instant::now();
        let accepted = now.checked_sub(age).unwrap_or(now);
        let mut record = Record::adopt(
            &self.shared.registry,
            Peer::new(known.downstream.source()),
            Listener::new(known.downstream.destination()),
            accepted,
        );
        let details = Arc::clone(record.flow());
        if let Some((listener, pool)) = self.shared.listener_at(details.called) {
            details.came_by(&listener);
            let client = SocketAddr::new(known.client.into(), known.client_port);
            if let Some(place) = self.shared.place(&listener, Client::new(client)) {
                record.admitted(place);
            }
            details.goes_to(&pool);
            if let Some(lease) = self
                .shared
                .lease(&pool, Upstream::new(known.upstream.source()))
            {
                details.is_at(&lease);
                record.served_by(lease);
            }
        }
        let client = SocketAddr::new(known.client.into(), known.client_port);
        let _ = details.client.set(Client::new(client));
        let _ = details.upstream.set(Upstream::new(known.upstream.source()));
        let _ = details.source.set(known.upstream.destination());
        let progress = &details.progress;
        progress.carried_by(EngineKind::Packet);
        progress.sent_up(known.early_bytes);
        progress.enter(State::Open);
        let [handed_up, handed_down] = known.handed_over;
        for (direction, key, handed_over) in [
            (progress.up(), known.downstream, handed_up),
            (progress.down(), known.upstream, handed_down),
        ] {
            direction.forwarded(Arc::clone(&self.table), flow, key);
            direction.handed_over(handed_over);
        }
        let limits = self.shared.limits_at(details.called);
        let identity = self.steering.adopt(flow, known.upstream);
        details.count_from_here();
        if known.state == LEFT {
            known.state = SETTLED;
            self.table.record(flow, known);
        }
        // Whatever the entries say of its end since: who is reset by the one side may have told the other.
        let lost = known.state == HANDING_OVER;
        self.keep(Kept {
            flow,
            known,
            end: lost.then_some(End::HandoverLost),
            record,
            identity,
            limits,
            routes: None,
            deadline: None,
            unroutable: None,
        });
        true
    }

    /// A flow whose daemon was killed while it was switched: its sockets may have been closed without a word.
    fn not_switched(&self, known: &layout::Record) {
        let Some(resets) = &self.resets else { return };
        for key in [known.downstream, known.upstream] {
            resets.provoke(key.destination(), key.source());
        }
    }
}

/// Following routes.
impl Keeper {
    /// Lets every flow leave by the interfaces that routes lead to now.
    async fn reroute(&mut self) {
        self.look_again = None;
        let flows: Vec<(u64, layout::Record)> = self
            .flows
            .values()
            .map(|kept| (kept.flow, kept.known))
            .collect();
        for (flow, known) in flows {
            // What one side sends leaves towards the other.
            let way = [
                (Side::Upstream, known.downstream, known.upstream.src),
                (Side::Downstream, known.upstream, known.downstream.src),
            ];
            let mut lost = None;
            for (side, key, towards) in way {
                match self.paths.towards(IpAddr::from(towards)).await {
                    Some(way) => self.leave_by(flow, &key, way.ifindex),
                    None => lost = Some(side),
                }
            }
            self.unroutable(flow, lost);
        }
    }

    fn leave_by(&self, flow: u64, key: &Tuple, ifindex: u32) {
        let entry = self.table.get(flow, key);
        if entry.is_some_and(|entry| entry.ifindex != ifindex) {
            self.table
                .update(flow, key, |entry| entry.ifindex = ifindex);
        }
    }

    /// There is no way to that side.
    fn unroutable(&mut self, flow: u64, side: Option<Side>) {
        let Some(kept) = self.flows.get_mut(&flow) else {
            return;
        };
        let Some(side) = side else {
            kept.unroutable = None;
            return;
        };
        let (_, since) = *kept.unroutable.get_or_insert((side, Instant::now()));
        if since.elapsed() >= UNROUTABLE {
            self.abort(flow, End::Unroutable(side));
        } else {
            let due = since + UNROUTABLE;
            self.look_again = Some(self.look_again.map_or(due, |other| other.min(due)));
        }
    }
}

/// Has neither side of a flow that is over anything left to repeat?
fn is_quiet(down: &Forward, up: &Forward) -> bool {
    let acknowledged = |sent: &Forward, back: &Forward| {
        let acked = back.acked.wrapping_add(back.shift.ack);
        // A FIN takes a number. What went through our sockets is not in `next_seq`.
        (1..1 << 31).contains(&acked.wrapping_sub(sent.next_seq))
    };
    (down.seen | up.seen) & (SEEN_RST | SEEN_ENDED) != 0
        || acknowledged(down, up) && acknowledged(up, down)
}

/// Where a flow stands, by its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    Half(State),
    Over(End),
}

fn standing(down: &Forward, up: &Forward) -> Standing {
    let has = |entry: &Forward, bit| entry.seen & bit != 0;
    match (has(down, SEEN_FIN), has(up, SEEN_FIN)) {
        // A RST after both was the answer to a FIN that had come already.
        (true, true) => Standing::Over(End::Finished),
        _ if has(down, SEEN_RST) => Standing::Over(End::Reset(Side::Downstream)),
        _ if has(up, SEEN_RST) => Standing::Over(End::Reset(Side::Upstream)),
        (true, false) => Standing::Half(State::DownstreamClosed),
        (false, true) => Standing::Half(State::UpstreamClosed),
        (false, false) => Standing::Open,
    }
}
