//! limpid's daemon and command line.
//!
//! The data plane reads in the order traffic takes: [`listener`], [`header`] (with
//! `proxy_core::trust`), [`upstream`], [`splice`], [`record`]; [`flow`] strings them together.
//! Beside it: [`steering`] with [`interfaces`] and [`netlink`], the BPF side in [`bpf`], system
//! calls in [`sys`], and what an operator talks to in [`cli`], [`control`] and [`daemon`].

pub mod bpf;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod flow;
pub mod header;
pub mod interfaces;
pub mod listener;
pub mod netlink;
pub mod record;
pub mod registry;
pub mod reset;
pub mod resolve;
pub mod splice;
pub mod steering;
pub mod sys;
pub mod upstream;
