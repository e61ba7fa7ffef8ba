//! Deciding that a guest hangs.

use std::time::{Duration, Instant};

/// For how long a guest may take, and be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the start until its job begins.
    pub(super) boot: Duration,
    /// Between two lines of the job.
    pub(super) silence: Duration,
    /// In all.
    pub(super) whole: Duration,
}

/// Why a guest is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hang {
    /// Its job did not begin.
    Boot(Duration),
    /// It said nothing for so long.
    Silence(Duration),
    /// It did not end.
    Whole(Duration),
}

/// What is known of a guest that runs.
#[derive(Debug)]
pub(super) struct Watch {
    patience: Patience,
    start: Instant,
    /// When it was last heard, once its job has begun.
    heard: Option<Instant>,
}

impl Watch {
    pub(super) fn new(patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            start: now,
            heard: None,
        }
    }

    /// The job has begun, or said something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Whether the guest's job has begun.
    pub(super) fn is_up(&self) -> bool {
        self.heard.is_some()
    }

    /// Whether there is still hope.
    pub(super) fn check(&self, now: Instant) -> Result<(), Hang> {
        let Patience {
            boot,
            silence,
            whole,
        } = self.patience;
        if now.duration_since(self.start) >= whole {
            return Err(Hang::Whole(whole));
        }
        match self.heard {
            None if now.duration_since(self.start) >= boot => Err(Hang::Boot(boot)),
            Some(heard) if now.duration_since(heard) >= silence => Err(Hang::Silence(silence)),
            None | Some(_) => Ok(()),
        }
    }
}

impl std::fmt::Display for Hang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Boot(limit) => write!(f, "it was not up after {} s", limit.as_secs()),
            Self::Silence(limit) => write!(f, "it said nothing for {} s", limit.as_secs()),
            Self::Whole(limit) => write!(f, "it was not done after {} s", limit.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience {
        boot: Duration::from_secs(5),
        silence: Duration::from_secs(10),
        whole: Duration::from_secs(30),
    };

    #[test]
    fn a_guest_that_does_not_come_up_hangs() {
        let start = Instant::now();
        let watch = Watch::new(PATIENCE, start);
        assert!(!watch.is_up());
        assert_eq!(watch.check(start + 4 * SECOND), Ok(()));
        let late = start + 5 * SECOND;
        assert_eq!(watch.check(late), Err(Hang::Boot(5 * SECOND)));
    }

    #[test]
    fn each_line_is_a_new_beginning() {
        let start = Instant::now();
        let mut watch = Watch::new(PATIENCE, start);
        watch.heard(start + 4 * SECOND);
        assert!(watch.is_up());
        assert_eq!(watch.check(start + 13 * SECOND), Ok(()));
        watch.heard(start + 13 * SECOND);
        assert_eq!(watch.check(start + 22 * SECOND), Ok(()));
        let late = start + 23 * SECOND;
        assert_eq!(watch.check(late), Err(Hang::Silence(10 * SECOND)));
    }

    #[test]
    fn talking_does_not_help_for_ever() {
        let start = Instant::now();
        let mut watch = Watch::new(PATIENCE, start);
        watch.heard(start + 29 * SECOND);
        assert_eq!(watch.check(start + 29 * SECOND), Ok(()));
        let late = start + 30 * SECOND;
        assert_eq!(watch.check(late), Err(Hang::Whole(30 * SECOND)));
    }
}
