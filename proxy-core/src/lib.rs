//! limpid's pure core.
//!
//! Bytes and instants go in, decisions come out: nothing here does I/O or asks for the time, so all
//! of it is tested and fuzzed without root.
//!
//! - [`address`]: socket addresses by the part they play, so that they cannot be mixed up
//! - [`admission`]: which clients a listener lets in, and how many
//! - [`balance`]: which server of a pool a connection goes to, and the health of servers
//! - [`network`]: lists of networks: which peers may name a client
//! - [`header`]: the PROXY protocol, received strictly and sent correctly
#![forbid(unsafe_code)]

pub mod address;
pub mod admission;
pub mod balance;
pub mod header;
pub mod network;
