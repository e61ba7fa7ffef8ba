//! `cargo xtask`: build, test and demo commands.

fn main() {}
