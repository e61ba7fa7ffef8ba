//! `cargo xtask ci`: what decides about a change.

use anyhow::Result;

use crate::daemon::Profile;
use crate::kernel::Kernels;
use crate::tally::Tally;
use crate::test::Selection;
use crate::{demo, kernel, lint, test};

/// What differs between kernels: which programs and system calls they take, how programs are attached, and
/// what becomes of packets and sockets. All tests would take half an hour for each kernel.
const PER_KERNEL: [&str; 5] = ["kernel", "leftovers", "packet", "sockmap", "survival"];

/// Lints, shows the demo and tests: both commands of the README; then the tests that differ between
/// kernels, on others. Each runs even if the one before it fails, so that one run tells everything.
pub(crate) fn ci() -> Result<()> {
    let lint = lint::lint();
    let demo = demo::demo(Profile::Dev, &[]);
    let mut total = Tally::default();
    let test = test::test(&Selection::default(), &mut total);
    let per_kernel = Selection {
        files: PER_KERNEL.map(str::to_owned).into(),
        ..Selection::default()
    };
    let kernels = kernel::test(&Kernels::of_debian(), &per_kernel, false, &mut total);
    for (name, result) in [("lint", &lint), ("demo", &demo), ("test", &test)] {
        if let Err(error) = result {
            println!("{name}: {error:#} (see above)");
        }
    }
    println!("\n{}", total.counts());
    lint.and(demo).and(test).and(kernels)
}
