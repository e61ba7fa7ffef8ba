//! Hosts, the links between them, and the standard network that the scenarios run on.

mod address;
mod frame;
mod host;
mod link;
mod roads;
mod topology;
mod wire;

pub use address::{Family, Host as HostAddress, PREFIXES, Segment};
pub use host::Host;
pub use link::{Link, LinkKind};
pub use roads::{BACKENDS, CLIENTS, EDGES, ORIGINS, Roads};
pub use topology::{Plan, Topology};
pub use wire::{Counts, Impairment, Wire};
