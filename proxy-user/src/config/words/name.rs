//! What listeners, pools and servers are called.

use std::fmt;
use std::str::FromStr;

use super::{WordError, word};

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
