//! limpid's pure core.
//!
//! Bytes and instants go in, decisions come out: nothing here does I/O or asks for the time, so all
//! of it is tested and fuzzed without root.
#![forbid(unsafe_code)]
