//! What limpid tells of connections, read by the programs that it is for: HAProxy's log analyser, beside a
//! line of HAProxy itself, and Prometheus.

mod haproxy;
mod prometheus;

use std::process::ExitCode;

use limpid_tests::suite::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    haproxy::add_to(&mut suite);
    prometheus::add_to(&mut suite);
    suite.run()
}
