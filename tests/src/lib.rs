//! The fixture of limpid's integration tests: whole networks of real kernels' sockets.
//!
//! A test draws a [`net::Topology`] (client, edge, proxy, backends: a thread, a network namespace
//! and an async runtime each), starts real programs on its hosts ([`programs`]), moves checked bytes
//! through them ([`transfer`]), and says what it needs to run ([`suite`]). Nothing made here
//! outlives the test process, even one that is killed: namespaces have no name and mounts live in
//! a mount namespace of the process's own.
//!
//! To run them: `cargo build && sudo -E cargo test -p limpid-tests`, or one scenario by
//! `cargo test -p limpid-tests --test lifecycle -- half_close`. `LIMPID_BIN` names another
//! limpid than the one built beside the tests; `LIMPID_TEST_SCALE=4` gives a slow machine four times
//! the time for a quarter of the bytes; `LIMPID_TEST_LONG=1` makes those tests long whose subject is
//! numbers.
//!
//! What does not belong here: any knowledge of limpid's insides. The daemon is seen as an operator
//! sees it: its command line, its log, its sockets, the host's state.

pub mod firewall;
pub mod header;
pub mod host_state;
pub mod memory;
pub mod net;
pub mod pattern;
pub mod process;
pub mod programs;
pub mod repair;
pub mod scene;
pub mod splices;
pub mod stall;
pub mod suite;
pub mod tables;
pub mod talk;
pub mod transfer;
