//! Hands the compiled BPF programs to the crate: copies the object that `cargo xtask build` made
//! to `OUT_DIR/limpid.bpf.o`, where `aya::include_bytes_aligned!` embeds it in the binary.
//!
//! It does not compile them: another compiler does that, and only `cargo xtask` knows how to find
//! it. `LIMPID_BPF_OBJECT` names another object.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let object = env::var_os("LIMPID_BPF_OBJECT").map_or_else(
        || variable("CARGO_MANIFEST_DIR").join("../target/bpf/limpid.bpf.o"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-env-changed=LIMPID_BPF_OBJECT");
    println!("cargo::rerun-if-changed={}", object.display());

    if let Err(error) = fs::copy(&object, variable("OUT_DIR").join("limpid.bpf.o")) {
        println!(
            "cargo::error=no BPF object at {}: {error}",
            object.display()
        );
        println!("cargo::error=run `cargo xtask build`, which compiles it");
    }
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).expect("cargo sets it")
}
