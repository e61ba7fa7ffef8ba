//! What limpid's BPF programs and its daemon share.
//!
//! * [`flow`]: the layout of the pinned flow table, with its version.
//! * [`lookup`]: the layout of the ranges of ports that are listened on, and which of them holds a SYN.
//! * [`packet`]: pure decisions about packet headers, called by the tc programs and by host tests.
//! * [`segment`]: pure translation of TCP headers, for the engine `packet`.
//! * [`splice`]: the layout of the sockmap engine's table and its gate.
//!
//! Every struct here is read by two compilers and by `bpftool`: fixed width, explicit padding, no
//! `bool`, no `Option`, size asserted at compile time, byte order and unit in each field's doc.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod flow;
pub mod lookup;
pub mod packet;
pub mod segment;
pub mod splice;
