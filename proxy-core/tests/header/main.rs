//! The rules of `proxy_core::header`, one test each, under their numbers.
//!
//! Rules 2 and 8 are the daemon's and have no test here; rule 3 has its test in `trust`, and what
//! holds for any bytes at all is in `header::properties`.

mod general;
mod sending;
mod v1;
mod v2;
mod wire;
