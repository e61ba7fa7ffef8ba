//! Does the verifier take the programs, and with how much room?

use anyhow::{Context as _, Result, ensure};
use limpid_tests::suite::{Need, Suite};
use proxy_user::bpf::dry_run;

/// Instructions that the verifier may walk through for one program: a quarter of what it ever does
/// (`BPF_COMPLEXITY_LIMIT_INSNS`, a million since 5.2). Which states it takes for ones that it has seen, and
/// so how far it walks, differs between kernels by more than a factor of two.
const LIMIT: u32 = 250_000;

pub(crate) fn add_to(suite: &mut Suite) {
    let allowed = Need::Other(super::forbidden);
    suite.test("program_is_taken", &[allowed], |_| async { taken() });
    // `bpf_prog_info::verified_insns`.
    let told = [allowed, Need::Kernel(5, 16)];
    suite.test("program_leaves_room", &told, |_| async { leaves_room() });
}

fn taken() -> Result<()> {
    for (program, verified) in dry_run::verify() {
        verified.context(program.name)?;
    }
    Ok(())
}

fn leaves_room() -> Result<()> {
    for (program, verified) in dry_run::verify() {
        let instructions = verified?.context("the kernel does not tell")?;
        println!("{}: {instructions} instructions", program.name);
        ensure!(
            instructions <= LIMIT,
            "{}: {instructions} instructions, of {LIMIT}",
            program.name
        );
    }
    Ok(())
}
