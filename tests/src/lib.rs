//! The fixture of limpid's integration tests: whole networks of real kernels' sockets.
//!
//! A test draws a [`net::Topology`] (client, edge, proxy, backends: a thread, a network namespace
//! and an async runtime each), starts real programs on its hosts ([`programs`]), moves checked bytes
//! through them ([`transfer`]), and says what it needs to run ([`suite`]). Nothing made here
//! outlives the test process, even one that is killed: namespaces have no name and mounts live in
//! a mount namespace of the process's own.
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
pub mod scene;
pub mod suite;
pub mod transfer;
