//! What this kernel offers, engine by engine: `limpid probe`.
//!
//! Features are asked of the kernel itself (a program or map of the kind is loaded and let go);
//! versions only count where a kernel bug decides.
pub fn probe() -> String {
    String::new()
}
