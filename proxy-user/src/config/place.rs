//! Where something stands in a configuration: `listeners.game.trust`.

use std::fmt;

use super::Name;

/// The way to a table or a value, from the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(Vec<Step>);

/// One step of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A key of a table.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

impl Place {
    /// `[daemon]`.
    pub(super) fn daemon() -> Self {
        Self::default().key("daemon")
    }

    /// `[listeners.NAME]`.
    pub(super) fn listener(name: &Name) -> Self {
        Self::default().key("listeners").key(name.as_str())
    }

    /// `[pools.NAME]`.
    pub(super) fn pool(name: &Name) -> Self {
        Self::default().key("pools").key(name.as_str())
    }

    /// A key there.
    #[must_use]
    pub(super) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// An element there.
    #[must_use]
    pub(super) fn at(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The way, step by step.
    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |key: &str| {
            let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            !key.is_empty() && key.bytes().all(legal)
        };
        for (nth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    f.write_str(if nth > 0 { "." } else { "" })?;
                    if bare(key) {
                        f.write_str(key)?;
                    } else {
                        write!(f, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_toml_has_it() {
        let name = "a.b".parse().unwrap();
        let place = Place::listener(&name).key("listen").at(1);
        assert_eq!(place.to_string(), "listeners.\"a.b\".listen[1]");
        assert_eq!(Place::daemon().key("metrics").to_string(), "daemon.metrics");
    }
}
