//! `cargo xtask ci`: what decides about a change.

use anyhow::Result;

use crate::daemon::Profile;
use crate::test::Selection;
use crate::{demo, lint, test};

/// Lints, shows the demo and tests: both commands of the README. Each runs even if the one before it
/// fails, so that one run tells everything.
pub(crate) fn ci() -> Result<()> {
    let lint = lint::lint();
    let demo = demo::demo(Profile::Dev, &[]);
    let test = test::test(&Selection::default());
    for (name, result) in [("lint", &lint), ("demo", &demo)] {
        if let Err(error) = result {
            println!("{name}: {error:#} (see above)");
        }
    }
    lint.and(demo).and(test)
}
