//! How often something may happen.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{WordError, word};

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
