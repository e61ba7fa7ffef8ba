//! Options of the TCP sockets of a side: those of a listener, which the sockets that it accepts inherit, and
//! those towards a server.

use std::io;
use std::os::fd::AsFd;

use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;

use crate::config::{KeepAlive, Listener, Pool, Time};

/// The kernel refuses an option.
#[derive(Debug, Error)]
#[error("{option}: {source}")]
pub struct OptionError {
    /// Its name, as in tcp(7) and socket(7).
    pub option: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// How the sockets of a side look after a peer that says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideOptions {
    /// Keep-alive probes (RFC 9293, 3.8.4); `None`: none.
    pub keep_alive: Option<KeepAlive>,
    /// How long what was sent may stay unacknowledged (RFC 5482); `None`: as the kernel is set.
    pub user_timeout: Option<Time>,
}

impl SideOptions {
    /// Those towards the clients of a listener.
    #[must_use]
    pub fn downstream(listener: &Listener) -> Self {
        Self {
            keep_alive: listener.downstream_keep_alive,
            user_timeout: listener.downstream_user_timeout,
        }
    }

    /// Those towards the servers of a pool.
    #[must_use]
    pub fn upstream(pool: &Pool) -> Self {
        Self {
            keep_alive: pool.upstream_keep_alive,
            user_timeout: pool.upstream_user_timeout,
        }
    }

    /// Sets them on a socket, also on one that had others. Only times and counts of probes that are not
    /// given any more stay: the kernel takes no word for its default.
    pub fn apply(&self, socket: &impl AsFd) -> Result<(), OptionError> {
        let socket = SockRef::from(socket);
        match self.keep_alive {
            Some(keep_alive) => socket.set_tcp_keepalive(&probes(keep_alive)),
            None => socket.set_keepalive(false),
        }
        .map_err(failed("SO_KEEPALIVE"))?;
        socket
            .set_tcp_user_timeout(self.user_timeout.map(Time::get))
            .map_err(failed("TCP_USER_TIMEOUT"))
    }
}

fn probes(keep_alive: KeepAlive) -> TcpKeepalive {
    let mut probes = TcpKeepalive::new();
    if let Some(idle) = keep_alive.idle {
        probes = probes.with_time(idle.get());
    }
    if let Some(interval) = keep_alive.interval {
        probes = probes.with_interval(interval.get());
    }
    if let Some(count) = keep_alive.count {
        probes = probes.with_retries(count);
    }
    probes
}

/// Names the option that was refused.
pub(crate) fn failed(option: &'static str) -> impl FnOnce(io::Error) -> OptionError {
    move |source| OptionError { option, source }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn what_is_set_is_set_and_what_is_taken_back_is_not() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        let options = SideOptions {
            keep_alive: Some("idle=1m,interval=7s,count=3".parse().expect("a setting")),
            user_timeout: Some("90s".parse().expect("a time")),
        };
        options.apply(&socket).expect("applied");
        let second = Duration::from_secs(1);
        assert!(socket.keepalive().expect("told"));
        assert_eq!(socket.tcp_keepalive_time().expect("told"), 60 * second);
        assert_eq!(socket.tcp_keepalive_interval().expect("told"), 7 * second);
        assert_eq!(socket.tcp_keepalive_retries().expect("told"), 3);
        assert_eq!(socket.tcp_user_timeout().expect("told"), Some(90 * second));
        SideOptions::default().apply(&socket).expect("applied");
        assert!(!socket.keepalive().expect("told"));
        assert_eq!(
            socket.tcp_user_timeout().expect("told").unwrap_or_default(),
            Duration::ZERO
        );
    }
}
