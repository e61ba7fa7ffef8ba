//! The programs that tests start: limpid itself, and the two it has to get on with.

mod haproxy;
mod limpid;
pub mod load;
mod nginx;
pub mod service;

pub use haproxy::{Connection, Haproxy};
pub use limpid::{AccessLine, Engine, Limpid, Options, limpid_binary, run, show};
pub use nginx::{Nginx, Request, TLVS as NGINX_TLVS};
