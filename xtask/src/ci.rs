//! `cargo xtask ci`: what decides about a change.

use anyhow::Result;

use crate::{lint, test};

/// Lints and tests; the tests run even if lint fails, so that one run tells everything.
pub(crate) fn ci() -> Result<()> {
    let lint = lint::lint();
    let test = test::test(&[], &[]);
    if let Err(error) = &lint {
        println!("lint: {error:#} (see above)");
    }
    lint.and(test)
}
