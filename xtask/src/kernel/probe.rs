//! `cargo xtask probe`: what limpid finds on other kernels.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::place::Place;
use super::{BOOT, Kernels, Patience, executables, job};
use crate::daemon::{self, Profile};

/// It takes two seconds.
const PATIENCE: Patience = Patience {
    boot: BOOT,
    silence: Duration::from_secs(60),
    whole: Duration::from_secs(300),
};

/// What `limpid probe --json` says, as far as it is shown in docs/kernels.md.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    /// The kernel's release.
    pub(super) kernel: String,
    pub(super) features: Vec<Answer>,
    pub(super) programs: Vec<Answer>,
    pub(super) engines: Vec<Answer>,
}

/// About one feature, program or engine.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) reason: Option<String>,
    /// Of a program, where the kernel tells.
    pub(super) verified_instructions: Option<u32>,
}

/// Whether it is there.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Yes,
    No,
    OnRequest,
    Forbidden,
}

/// Asks limpid what one kernel offers.
pub(super) fn report(place: Place<'_>, limpid: &Path) -> Result<Report> {
    let script = job::command([limpid.as_os_str(), "probe".as_ref(), "--json".as_ref()])?;
    serde_json::from_str(&place.output(&script, PATIENCE)?).context("what limpid probe says")
}

/// Shows what `limpid probe` says, given `arguments`, on each kernel.
pub(crate) fn probe(kernels: &Kernels, arguments: &[OsString]) -> Result<()> {
    let ready = kernels.provide()?;
    let limpid = executables::stripped(&daemon::build(Profile::Dev)?, "limpid")?;
    let words = [limpid.as_os_str(), OsStr::new("probe")];
    let script = job::command(
        words
            .into_iter()
            .chain(arguments.iter().map(OsString::as_os_str)),
    )?;
    for place in ready.places() {
        println!("{}", place.output(&script, PATIENCE)?);
    }
    Ok(())
}
