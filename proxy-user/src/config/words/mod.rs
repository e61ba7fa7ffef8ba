//! Values as they are written, in a file and on the command line alike.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::Visitor;
use thiserror::Error;

mod keep_alive;
mod listen;
mod name;
mod number;
mod rate;
mod target;
mod time;

pub use keep_alive::KeepAlive;
pub use listen::{ListenAddress, Ports};
pub use name::Name;
pub use number::Within;
pub use rate::Rate;
pub use target::{Target, TargetPort};
pub use time::{Time, TimeOrNone};

/// A word that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{word:?} is not {allowed}")]
pub struct WordError {
    word: String,
    allowed: String,
}

impl WordError {
    pub(in crate::config) fn new(word: &str, allowed: impl Into<String>) -> Self {
        Self {
            word: word.to_owned(),
            allowed: allowed.into(),
        }
    }
}

/// What reads a word: a string, of which `T` makes something.
pub(in crate::config) struct Word<T>(&'static str, PhantomData<T>);

impl<T> Word<T> {
    /// `allowed` says what the string may be.
    pub(in crate::config) fn new(allowed: &'static str) -> Self {
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
            pub(in crate::config) const ALLOWED: &'static str = $allowed;
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str($crate::config::words::Word::new(Self::ALLOWED))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                <String as schemars::JsonSchema>::json_schema(generator)
            }
        }
    };
}

pub(in crate::config) use word;

/// An address with a port, where there may be none.
pub(in crate::config) fn socket_address<'de, D>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error>
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
