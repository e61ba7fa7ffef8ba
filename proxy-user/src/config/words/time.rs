//! Times.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{WordError, word};

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
