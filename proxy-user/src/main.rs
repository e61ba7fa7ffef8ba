//! limpid
fn main() {}
