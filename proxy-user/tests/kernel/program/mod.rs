//! The BPF programs themselves, as the kernel runs them: `proxy_user::bpf::dry_run`.
//!
//! What should come out of them is made from scratch, checksums too: by `proxy_common::segment` what the
//! header should be, by etherparse the rest.

mod clock;
mod ecn;
mod egress;
mod ends;
mod frame;
mod header;
mod icmp;
mod passing;
mod random;
mod spliced;
mod verifier;

use std::sync::LazyLock;

use anyhow::{Error, Result};
use limpid_tests::net::Family;
use limpid_tests::suite::{Need, Suite};
use proxy_user::bpf::dry_run::DryRun;

pub(crate) fn add_to(suite: &mut Suite) {
    header::add_to(suite);
    clock::add_to(suite);
    ecn::add_to(suite);
    ends::add_to(suite);
    passing::add_to(suite);
    icmp::add_to(suite);
    egress::add_to(suite);
    random::add_to(suite);
    verifier::add_to(suite);
}

/// Adds a test for each version of IP.
fn for_each_family(suite: &mut Suite, name: &str, test: fn(Family) -> Result<()>) {
    for family in Family::ALL {
        let name = format!("program_{name}_{family}");
        suite.test(name, &[Need::Other(forbidden)], move |_| async move {
            test(family)
        });
    }
}

/// Root in a container may be nobody to the kernel. Whatever else it says is for the tests to fail of.
fn forbidden() -> Option<String> {
    static FORBIDDEN: LazyLock<Option<String>> = LazyLock::new(|| {
        let error = Error::from(DryRun::load().err()?);
        let forbidden = error.chain().any(|cause| {
            let cause: Option<&std::io::Error> = cause.downcast_ref();
            cause.and_then(std::io::Error::raw_os_error) == Some(libc::EPERM)
        });
        forbidden.then(|| format!("may not load BPF programs: {error}"))
    });
    FORBIDDEN.clone()
}
