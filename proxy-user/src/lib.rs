//! limpid
