//! What the daemon asks of the kernel, asked of a real one: each test in network namespaces of its own,
//! or (`program`) in none: there the kernel runs the BPF programs on packets that never were on a wire.

mod arrival;
mod conntrack;
mod lookup;
mod netlink;
mod pair;
mod program;
mod repair;
mod reset;

use std::process::ExitCode;

use limpid_tests::suite::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    repair::add_to(&mut suite);
    arrival::add_to(&mut suite);
    conntrack::add_to(&mut suite);
    netlink::add_to(&mut suite);
    reset::add_to(&mut suite);
    lookup::add_to(&mut suite);
    program::add_to(&mut suite);
    suite.run()
}
