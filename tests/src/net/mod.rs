//! Hosts, the links between them, and the standard network that the scenarios run on.

mod address;
mod frame;
mod host;
mod link;
mod topology;
mod wire;

pub use address::{Family, Host as HostAddress, PREFIXES, Segment};
pub use host::Host;
pub use link::{Link, LinkKind};
pub use topology::{Plan, Topology};
pub use wire::{Counts, Impairment, Wire};
