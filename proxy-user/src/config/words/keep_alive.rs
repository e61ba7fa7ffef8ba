//! TCP keep-alive.

use std::fmt;
use std::str::FromStr;

use super::{Time, WordError, word};

/// TCP keep-alive probes (`SO_KEEPALIVE`); what is not set is as the kernel is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first probe (`TCP_KEEPIDLE`), in whole seconds.
    pub idle: Option<Time>,
    /// Between probes (`TCP_KEEPINTVL`), in whole seconds.
    pub interval: Option<Time>,
    /// Probes without an answer before the connection is over (`TCP_KEEPCNT`), 1 to 127.
    pub count: Option<u32>,
}

impl FromStr for KeepAlive {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let mut setting = Self::default();
        if text == "on" {
            return Ok(setting);
        }
        for word in text.split(',') {
            let wrong = || WordError::new(word, Self::ALLOWED);
            // tcp(7): both are counted in whole seconds, up to MAX_TCP_KEEPIDLE.
            let time = |value: &str| {
                let time: Time = value.parse().map_err(|_| wrong())?;
                let legal =
                    time.get().subsec_nanos() == 0 && (1..=32_767).contains(&time.get().as_secs());
                legal.then_some(time).ok_or_else(wrong)
            };
            match word.split_once('=').ok_or_else(wrong)? {
                ("idle", value) => setting.idle = Some(time(value)?),
                ("interval", value) => setting.interval = Some(time(value)?),
                ("count", value) => {
                    let count = value.parse().ok().filter(|n| (1..=127).contains(n));
                    setting.count = Some(count.ok_or_else(wrong)?);
                }
                _ => return Err(wrong()),
            }
        }
        Ok(setting)
    }
}

impl fmt::Display for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            self.idle.map(|time| format!("idle={time}")),
            self.interval.map(|time| format!("interval={time}")),
            self.count.map(|count| format!("count={count}")),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        f.write_str(if words.is_empty() { "on" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

word!(
    KeepAlive,
    "`on`, or any of idle=TIME, interval=TIME (1s to 32767s) and count=N (1 to 127)"
);
