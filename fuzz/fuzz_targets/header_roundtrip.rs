//! Any header: what was received can be written anew, and reads back the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_core::header::check::round_trip(bytes));
