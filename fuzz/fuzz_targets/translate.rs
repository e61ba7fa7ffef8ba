//! Any TCP header, by any constants: the translation is the one that the slow reference makes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_common::segment::check::translation(bytes));
