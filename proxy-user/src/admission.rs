//! stub
#![allow(
    missing_docs,
    unused_variables,
    clippy::all,
    clippy::allow_attributes_without_reason
)]
use proxy_core::address::Client;
use std::time::Instant;
#[derive(Debug)]
pub struct Admission;
#[derive(Debug)]
pub struct Place;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Refused;
impl Refused {
    pub fn label(&self) -> &'static str {
        "x"
    }
}
impl Admission {
    pub fn admit(&self, c: Client, now: Instant) -> Result<Place, Refused> {
        Ok(Place)
    }
}
