//! Does the verifier take the programs, and with how much room?

use anyhow::{Context as _, Result, ensure};
use limpid_tests::suite::{Need, Suite};
use proxy_user::bpf::dry_run;

/// Instructions that the verifier may walk through for one program: a tenth of what it ever does
/// (`BPF_COMPLEXITY_LIMIT_INSNS`, a million since 5.2). How far it walks before it sees that it has been
/// there differs between kernels by a factor of three (5.10 and 6.1 walk as far as each other).
const LIMIT: u32 = 100_000;

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
