//! The fixture of the integration tests.
