//! The sockmap engine's table and its gate.
