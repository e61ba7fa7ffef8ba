//! limpid's daemon and command line.
//!
//! The data plane reads in the order traffic takes: [`listener`], [`header`] (with
//! `proxy_core::network`), [`admission`], [`upstream`] with its [`pool`] and the header of [`send_proxy`],
//! [`splice`], [`forwarded`] for what needs no sockets any more, [`record`] with [`access_log`] and
//! [`metrics`]; [`flow`] strings them together, as [`config`] says. Beside it: [`steering`] with [`interfaces`], [`paths`] and
//! [`netlink`], the BPF side in [`kernel`] and [`bpf`], system calls in [`sys`] and [`reset`], and what an
//! operator talks to in [`cli`], [`control`] and [`daemon`]; [`takeover`] is what two daemons say to each
//! other.

pub mod access_log;
pub mod admission;
pub mod bpf;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod flow;
pub mod forwarded;
pub mod header;
pub mod interfaces;
pub mod kernel;
pub mod listener;
pub mod lock;
pub mod metrics;
pub mod netlink;
pub mod paths;
pub mod pool;
pub mod record;
pub mod registry;
pub mod reset;
pub mod send_proxy;
pub mod socket_options;
pub mod splice;
pub mod steering;
pub mod sys;
pub mod takeover;
pub mod upstream;
