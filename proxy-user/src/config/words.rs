//! Values as they are written, in a file and on the command line alike.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use proxy_core::address::Listener;
use schemars::JsonSchema;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A word that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{word:?} is not {allowed}")]
pub struct WordError {
    word: String,
    allowed: String,
}

impl WordError {
    pub(super) fn new(word: &str, allowed: impl Into<String>) -> Self {
        Self {
            word: word.to_owned(),
            allowed: allowed.into(),
        }
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Within<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Within<MIN, MAX> {
    /// `number`, or what is next to it within the range.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(if number < MIN {
            MIN
        } else if number > MAX {
            MAX
        } else {
            number
        })
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<i64> for Within<MIN, MAX> {
    type Error = WordError;

    fn try_from(number: i64) -> Result<Self, WordError> {
        u32::try_from(number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .map(Self)
            .ok_or_else(|| {
                WordError::new(&number.to_string(), format!("a number from {MIN} to {MAX}"))
            })
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Within<MIN, MAX> {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match text.parse::<i64>() {
            Ok(number) => Self::try_from(number),
            Err(_) => Err(WordError::new(
                text,
                format!("a number from {MIN} to {MAX}"),
            )),
        }
    }
}

impl<const MIN: u32, const MAX: u32> fmt::Display for Within<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MIN: u32, const MAX: u32> Serialize for Within<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(Number)
    }
}

/// What reads a [`Within`].
struct Number<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Visitor<'_> for Number<MIN, MAX> {
    type Value = Within<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number from {MIN} to {MAX}")
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Within::try_from(number).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
        self.visit_i128(number.into())
    }

    fn visit_i128<E: serde::de::Error>(self, number: i128) -> Result<Self::Value, E> {
        // What does not fit is out of any range.
        let error = WordError::new(&number.to_string(), format!("a number from {MIN} to {MAX}"));
        self.visit_i64(i64::try_from(number).map_err(|_| E::custom(error))?)
    }
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Within<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("From{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// What reads a word: a string, of which `T` makes something.
pub(super) struct Word<T>(&'static str, PhantomData<T>);

impl<T> Word<T> {
    /// `allowed` says what the string may be.
    pub(super) fn new(allowed: &'static str) -> Self {
        Self(allowed, PhantomData)
    }
}

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Word<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string: {}", self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Makes a type a word: a string in files, in the schema and in what is written.
macro_rules! word {
    ($name:ident, $allowed:expr) => {
        impl $name {
            /// What may be written.
            pub(super) const ALLOWED: &'static str = $allowed;
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Word::new(Self::ALLOWED))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                String::json_schema(generator)
            }
        }
    };
}

/// The name of a listener, a pool or a server: 1 to 64 letters, digits, `-`, `_`, `.` and `:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of what a command line describes.
impl Default for Name {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl FromStr for Name {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if (1..=64).contains(&text.len()) && text.chars().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(WordError::new(text, Self::ALLOWED))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

word!(
    Name,
    "a name: 1 to 64 letters, digits, `-`, `_`, `.` and `:`"
);

/// The longest time: a sum with any of the system's clocks is far from their ends.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A time of more than 0 and up to a year, like `5s`, `500ms`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Duration);

impl Time {
    /// The time.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Time {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match humantime::parse_duration(text) {
            Ok(time) if !time.is_zero() && time <= LONGEST => Ok(Self(time)),
            Ok(_) | Err(_) => Err(WordError::new(text, Self::ALLOWED)),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

word!(
    Time,
    "a time of more than 0 and up to a year; write 500ms, 5s, 2m, 1h"
);

/// A time that may be 0, up to a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOrNone(Duration);

impl TimeOrNone {
    /// The time.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeOrNone {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match humantime::parse_duration(text) {
            Ok(time) if time <= LONGEST => Ok(Self(time)),
            Ok(_) | Err(_) => Err(WordError::new(text, Self::ALLOWED)),
        }
    }
}

impl fmt::Display for TimeOrNone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

word!(
    TimeOrNone,
    "a time of up to a year; write 0s, 500ms, 5s, 2m, 1h"
);

/// Ports of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// One; 0: any that is free.
    One(u16),
    /// From the first to the last, both included; more than one.
    Range(u16, u16),
}

impl Ports {
    /// All of them.
    pub const ALL: Self = Self::Range(1, u16::MAX);
}

/// Where connections are accepted: `ADDR:PORT`, `ADDR:FIRST-LAST` or `ADDR:*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenAddress {
    /// The address; unspecified: all of its family, and with `::` all of both.
    pub ip: IpAddr,
    /// The ports.
    pub ports: Ports,
}

impl ListenAddress {
    /// Does a connection to `called` come to here? If so, how exactly is that said: the port, the address.
    #[must_use]
    pub fn fits(self, called: Listener) -> Option<(bool, bool)> {
        let ip = self.ip.to_canonical();
        let any = ip.is_unspecified() && (ip.is_ipv6() || called.ip().is_ipv4());
        let (port, exact) = match self.ports {
            Ports::One(0) => (true, false),
            Ports::One(port) => (port == called.port(), true),
            Ports::Range(first, last) => ((first..=last).contains(&called.port()), false),
        };
        (port && (any || ip == called.ip())).then_some((exact, !any))
    }

    /// With the first of the ports.
    #[must_use]
    pub fn first(self) -> SocketAddr {
        let (Ports::One(port) | Ports::Range(port, _)) = self.ports;
        SocketAddr::new(self.ip, port)
    }
}

impl FromStr for ListenAddress {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = || WordError::new(text, Self::ALLOWED);
        let (ip, ports) = text.rsplit_once(':').ok_or_else(wrong)?;
        // With a port in its place the standard library reads the rest.
        let ip = format!("{ip}:0")
            .parse::<SocketAddr>()
            .map_err(|_| wrong())?
            .ip();
        let port = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits
                .parse::<u16>()
                .ok()
                .filter(|_| plain)
                .ok_or_else(wrong)
        };
        let ports = match ports.split_once('-') {
            None if ports == "*" => Ports::ALL,
            None => Ports::One(port(ports)?),
            Some((first, last)) => match (port(first)?, port(last)?) {
                (first, last) if first == last && first > 0 => Ports::One(first),
                (first, last) if first > 0 && first < last => Ports::Range(first, last),
                _ => return Err(wrong()),
            },
        };
        Ok(Self { ip, ports })
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            ports: Ports::One(address.port()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ports {
            Ports::One(_) => self.first().fmt(f),
            Ports::Range(..) => {
                match self.ip {
                    IpAddr::V4(ip) => write!(f, "{ip}:"),
                    IpAddr::V6(ip) => write!(f, "[{ip}]:"),
                }?;
                match self.ports {
                    Ports::ALL => f.write_str("*"),
                    Ports::Range(first, last) => write!(f, "{first}-{last}"),
                    Ports::One(port) => port.fmt(f),
                }
            }
        }
    }
}

word!(
    ListenAddress,
    "an address with ports: ADDR:PORT, ADDR:FIRST-LAST or ADDR:*, an IPv6 address in brackets"
);

/// The port of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// This one.
    Is(u16),
    /// The one that the client has called.
    Same,
}

/// Where servers are: `HOST:PORT`, `HOST:same`, or the name of SRV records, `_service._tcp.example.net`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// An address, or a name that is resolved to addresses.
    Host {
        /// The name, or the address without brackets.
        host: String,
        /// The port.
        port: TargetPort,
    },
    /// A name that is resolved to names with ports, weights and priorities (RFC 2782).
    Service(String),
}

impl FromStr for Target {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = |name: &str| (1..=253).contains(&name.len()) && name.chars().all(legal);
        if text.starts_with('_') && is_name(text) {
            return Ok(Self::Service(text.to_owned()));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| WordError::new(text, Self::ALLOWED))?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = match port.parse() {
            _ if port == "same" => TargetPort::Same,
            Ok(port) if digits && port > 0 => TargetPort::Is(port),
            Ok(_) | Err(_) => return Err(WordError::new(port, "a port: 1 to 65535, or `same`")),
        };
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_name(host),
        };
        if !valid {
            return Err(WordError::new(
                host,
                "a name or an address; an IPv6 address stands in brackets",
            ));
        }
        Ok(Self::Host {
            host: bracketed.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = match self {
            Self::Host { host, port } => (host, port),
            Self::Service(name) => return name.fmt(f),
        };
        match host.parse() {
            Ok(IpAddr::V6(v6)) => write!(f, "[{v6}]:"),
            _ => write!(f, "{host}:"),
        }?;
        match port {
            TargetPort::Is(port) => port.fmt(f),
            TargetPort::Same => f.write_str("same"),
        }
    }
}

word!(
    Target,
    "HOST:PORT, HOST:same or _service._tcp.NAME; an IPv6 address stands in brackets"
);

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
                let legal = time.0.subsec_nanos() == 0 && (1..=32_767).contains(&time.0.as_secs());
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

/// How often something may happen: `10/s`, `100/m`, `1000/h`. That many may happen at once, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How often.
    pub times: u32,
    /// In how long.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = || WordError::new(text, Self::ALLOWED);
        let (times, unit) = text.split_once('/').ok_or_else(wrong)?;
        let per = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let times = times.parse().ok().filter(|n| (1..=1_000_000).contains(n));
        Ok(Self {
            times: times.ok_or_else(wrong)?,
            per: Duration::from_secs(per),
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.times)
    }
}

word!(Rate, "a rate: N/s, N/m or N/h, N from 1 to 1000000");

pub(super) use word;

/// An address with a port, where there may be none.
pub(super) fn socket_address<'de, D>(deserializer: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: Deserializer<'de>,
{
    const ALLOWED: &str = "an address with a port: ADDR:PORT, an IPv6 address in brackets";
    let text = deserializer.deserialize_str(Word::<String>::new(ALLOWED))?;
    let wrong = |_| serde::de::Error::custom(WordError::new(&text, ALLOWED));
    text.parse().map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: FromStr<Err = WordError> + fmt::Display>(words: &[&str]) {
        for word in words {
            let value: T = word.parse().unwrap_or_else(|e| panic!("{word}: {e}"));
            assert_eq!(value.to_string(), *word);
        }
    }

    fn refuses<T: FromStr<Err = WordError>>(words: &[&str]) {
        for word in words {
            assert!(word.parse::<T>().is_err(), "{word:?}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        round_trip::<ListenAddress>(&[
            "192.0.2.1:80",
            "[::]:0",
            "0.0.0.0:8000-8099",
            "[2001:db8::1]:*",
        ]);
        round_trip::<Target>(&[
            "nginx:80",
            "192.0.2.1:65535",
            "[2001:db8::1]:1",
            "game:same",
            "_game._tcp.example.net",
        ]);
        round_trip::<KeepAlive>(&["on", "idle=1m,interval=10s,count=3", "count=9"]);
        round_trip::<Rate>(&["10/s", "5/m", "1000/h"]);
        round_trip::<Time>(&["5s", "500ms", "2m", "1h"]);
        round_trip::<Within<1, 5>>(&["1", "5"]);
        round_trip::<Name>(&["game", "a-b_c.9:80"]);
    }

    #[test]
    fn anything_else_is_refused() {
        refuses::<ListenAddress>(&[
            "",
            "80",
            ":80",
            "1.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:5-4",
            "1.2.3.4:0-9",
            "::1:80",
            "a:80",
            "1.2.3.4:+1",
            "1.2.3.4:65536",
        ]);
        refuses::<Target>(&[
            "nginx",
            "nginx:",
            "nginx:0",
            "nginx:65536",
            "nginx:+80",
            ":80",
            "2001:db8::1:80",
            "[192.0.2.1]:80",
            "a b:80",
            "_a b",
        ]);
        refuses::<KeepAlive>(&[
            "",
            "off",
            "idle=0s",
            "idle=1500ms",
            "count=0",
            "count=128",
            "idle",
        ]);
        refuses::<Rate>(&["", "10", "0/s", "10/d", "-1/s"]);
        refuses::<Time>(&["", "0s", "5", "-1s", "2y", "999999999999999999999s"]);
        refuses::<TimeOrNone>(&["", "5", "-1s", "2y"]);
        refuses::<Within<1, 5>>(&["0", "6", "x", "-1", "1.5"]);
        refuses::<Name>(&["", "a b", "ä", "a/b"]);
    }
}
