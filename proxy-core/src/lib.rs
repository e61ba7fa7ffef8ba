//! limpid's pure core.
//!
//! Bytes and instants go in, decisions come out: nothing here does I/O or asks for the time, so all
//! of it is tested and fuzzed without root.
//!
//! - [`address`]: socket addresses by the part they play, so that they cannot be mixed up
//! - [`network`]: lists of networks: which peers may name a client
//! - [`balance`]: which server of a pool a connection goes to, and the health of servers
//! - [`header`]: the PROXY protocol, received strictly and sent correctly
#![forbid(unsafe_code)]

pub mod address;
pub mod balance;
pub mod header;
pub mod network;
