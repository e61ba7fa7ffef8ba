//! HAProxy's `option tcplog` (its configuration manual, 8.2.2), for programs that read it:
//!
//! `%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq`

use std::time::Duration;

use super::line::Line;
use super::termination::During;
use super::time;

pub(super) fn format(line: &Line<'_>) -> String {
    let flow = line.flow;
    let client = flow.client.get().map(|client| client.socket_addr());
    let client = client.unwrap_or_else(|| flow.peer.socket_addr());
    let frontend = flow.listener().map_or("-", |name| name.as_str());
    let (reached, waited) = match (flow.client.get(), flow.pool(), flow.connect()) {
        (None, ..) => (During::Request, "-1"),
        // Who is known and has no pool yet is still being judged.
        (Some(_), None, None) => (During::Request, "-1"),
        (Some(_), Some(_), None) => (During::Connect, "0"),
        // There is no queue to wait in.
        (Some(_), _, Some(_)) => (During::Data, "0"),
    };
    let connecting = flow.connect().map_or(-1, millis);
    // A server that was not reached is not left either: its count is without this connection, as HAProxy's.
    let others = |open: u64| open.saturating_sub(1);
    format!(
        "{ip}:{port} [{accepted}] {frontend} {backend}/{server} {waited}/{connecting}/{total} {bytes} \
         {termination} {process}/{listener}/{pool}/{on_server}/{redispatched}{retries} 0/0",
        // IPv6 without brackets.
        ip = client.ip(),
        port = client.port(),
        accepted = time::haproxy(line.accepted()),
        // HAProxy's for a connection that has not got that far.
        backend = flow.pool().map_or(frontend, |name| name.as_str()),
        server = flow.server().unwrap_or("<NOSRV>"),
        total = millis(line.total),
        bytes = flow.progress.bytes_down(),
        termination = line.end.termination.letters(reached),
        process = line.open.process,
        listener = line.open.listener,
        pool = others(line.open.pool),
        on_server = others(line.open.server),
        // Each retry is with another server.
        redispatched = if flow.retries() > 0 { "+" } else { "" },
        retries = flow.retries(),
    )
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
