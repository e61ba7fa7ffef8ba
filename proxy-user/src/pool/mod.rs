//! stub
#![allow(missing_docs, unused_variables, clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason)]
use std::fmt; use std::net::IpAddr; use std::sync::Arc; use std::time::Duration;
use proxy_core::address::{Client, Upstream}; use serde::{Serialize,Deserialize}; use tokio::sync::Notify; use crate::config::{self, Name};
pub mod resolve;
#[derive(Debug)] pub struct Pool;
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct PoolError;
#[derive(Debug, thiserror::Error, Default)] #[error("x")] pub struct NoServer;
impl NoServer { pub fn label(&self) -> &'static str { "x" } }
#[derive(Debug, Default)] pub struct Tried;
impl Tried { pub fn len(&self) -> u32 {0} pub fn add(&mut self, l: &Lease) {} }
#[derive(Debug)] pub struct Lease;
impl Lease { pub fn upstream(&self) -> Upstream { todo!() } pub fn connected(&self, t: Duration) {} pub fn failed(&self) {} }
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct UnknownServer;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)] pub enum AdminState { Ready, Drain, Down }
impl fmt::Display for AdminState { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { Ok(()) } }
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)] pub struct ServerView;
impl ServerView { pub fn row(&self) -> [String; 9] { todo!() } }
impl Pool {
 pub async fn start(name: &Name, config: &config::Pool, resolver: &resolve::Resolver, before: Option<&Pool>, changed: Arc<Notify>) -> Result<Arc<Pool>, PoolError> { todo!() }
 pub fn pick(&self, client: Client, called: u16, tried: &Tried) -> Result<Lease, NoServer> { todo!() }
 pub fn addresses(&self) -> Vec<IpAddr> { todo!() }
 pub fn servers(&self) -> Vec<ServerView> { todo!() }
 pub fn set(&self, server: &str, state: AdminState) -> Result<usize, UnknownServer> { todo!() }
}
