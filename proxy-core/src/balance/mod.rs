//! Which server of a pool a connection goes to, and what makes a server fit for connections.
//!
//! [`choose()`] takes the servers as they are now, each a [`Candidate`], and a [`Method`]. [`Health`] is what
//! is known of one server: what an operator has said of it, what checks have found, and how clients'
//! connections to it have gone.
//!
//! Servers are taken in this order, and the method chooses among those that are equal in it:
//!
//! 1. usable ones before those that are ejected,
//! 2. those of the client's address family before those of the other,
//! 3. primaries before backups.
//!
//! That ejected servers are in the list at all is what Envoy calls panic mode. An ejection says no more than
//! that a few connections in a row have failed, which a fault of our own network would do to all servers
//! at once. So where nothing better is left, it is better to try than to refuse. A server that is down
//! by its checks, drained, disabled or of weight 0 gets no connection in any case.
//!
//! Belongs here: decisions. Does not: addresses of names, sockets, the time (it is an argument).

mod choose;
mod health;
mod source;

pub use choose::{Candidate, Method, Standing, choose};
pub use health::{Admin, Change, Checks, Ejection, Health, Policy, State, WEIGHT_UNIT};
pub use source::key;
