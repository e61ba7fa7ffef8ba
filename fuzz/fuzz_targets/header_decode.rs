//! Any bytes: the decoder keeps its promises, and agrees with `proxy-header` on what it accepts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_core::header::check::decode(bytes));
