//! The steering programs as filters of clsact qdiscs, for kernels without TCX.
//!
//! A filter outlives the daemon, and so do whatever notes it keeps about its filters only where a bpffs
//! does (not under `ip netns exec`, whose bpffs goes with the last process). So the filter is its own
//! record: its name, which the kernel keeps and `tc filter show` prints, is `limpid/INSTANCE`, with
//! `+clsact` behind it where limpid has added the qdisc too. Whatever has no such name is somebody
//! else's and not touched; a qdisc goes with limpid's last filter in it, unless others have filters
//! there, and stays where limpid's filters are gone: then it is not the one that limpid added.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use thiserror::Error;

use crate::netlink::Interface;
use crate::netlink::tc::{Filter, Hook, Tc, TcError, device};

/// The first of all priorities, for ingress.
const FIRST: u16 = 1;
/// What the kernel gives a filter for which nobody names a priority; later ones get lower ones. Ours at
/// egress is at least that.
const LAST: u16 = 0xc000;

/// Why filters could not be put on an interface or removed.
#[derive(Debug, Error)]
pub enum ClsactError {
    /// The kernel refused.
    #[error(transparent)]
    Tc(#[from] TcError),
    /// The interface has clsact's predecessor at clsact's place.
    #[error(
        "{0} has a qdisc of kind `ingress`, which leaves no place for clsact: replace it \
         (`tc qdisc del dev {0} ingress`; clsact takes the same filters), or use --attach tcx"
    )]
    LegacyIngress(String),
    /// A limpid of that name is running.
    #[error(
        "instance {0} is in use by a running limpid of this network namespace: stop it, or name \
         another --instance"
    )]
    InUse(String),
    /// The claim on the name could not be made.
    #[error("cannot claim the filters of instance {instance}: {source}")]
    Claim {
        /// The instance.
        instance: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The claim of one process on an instance's filters in this network namespace.
///
/// The lock on the pins does not do for filters: they are the namespace's, the bpffs is the mount
/// namespace's. An abstract socket name is the network namespace's too, and goes with the process.
#[derive(Debug)]
pub(super) struct Claim(UnixDatagram);

/// What another process hands over.
impl From<OwnedFd> for Claim {
    fn from(socket: OwnedFd) -> Self {
        Self(socket.into())
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Claim {
    pub(super) fn new(instance: &str) -> Result<Self, ClsactError> {
        let bind = || {
            let name = SocketAddr::from_abstract_name(format!("limpid/{instance}"))?;
            UnixDatagram::bind_addr(&name)
        };
        bind().map(Self).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ClsactError::InUse(instance.to_owned()),
            _ => ClsactError::Claim {
                instance: instance.to_owned(),
                source,
            },
        })
    }
}

/// Whose a filter is, and who added its qdisc: what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark<'a> {
    instance: &'a str,
    qdisc_added: bool,
}

impl Mark<'_> {
    fn name(self) -> String {
        let added = if self.qdisc_added { "+clsact" } else { "" };
        format!("limpid/{}{added}", self.instance)
    }

    fn of(filter: &Filter) -> Option<Mark<'_>> {
        let rest = filter.name.as_deref()?.strip_prefix("limpid/")?;
        let (instance, qdisc_added) = match rest.strip_suffix("+clsact") {
            Some(instance) => (instance, true),
            None => (rest, false),
        };
        Some(Mark {
            instance,
            qdisc_added,
        })
    }
}

fn find<'a>(filters: &'a [Filter], instance: &str) -> Option<(&'a Filter, Mark<'a>)> {
    filters
        .iter()
        .filter_map(|filter| Some((filter, Mark::of(filter)?)))
        .find(|(_, mark)| mark.instance == instance)
}

/// Puts a program on an interface, or in the place of the instance's earlier one there.
pub(super) fn attach(
    instance: &str,
    interface: &Interface,
    hook: Hook,
    program: BorrowedFd<'_>,
) -> Result<(), ClsactError> {
    let tc = Tc::open()?;
    let index = interface.index;
    let qdisc = tc.qdiscs()?.into_iter().find(|(at, _)| *at == index);
    let added_now = match qdisc.as_ref().map(|(_, kind)| kind.as_str()) {
        Some("ingress") => return Err(ClsactError::LegacyIngress(interface.name.clone())),
        Some(_) => false,
        None => {
            tc.add_clsact(index)?;
            true
        }
    };
    let attached = put(&tc, instance, interface, hook, program, added_now);
    if attached.is_err() && added_now {
        // Nothing says any more that it is ours.
        tc.remove_clsact(index)?;
    }
    attached
}

fn put(
    tc: &Tc,
    instance: &str,
    interface: &Interface,
    hook: Hook,
    program: BorrowedFd<'_>,
    qdisc_added: bool,
) -> Result<(), ClsactError> {
    let index = interface.index;
    let [ingress, egress] = Hook::ALL.map(|hook| tc.filters(index, hook));
    let (ingress, egress) = (ingress?, egress?);
    let (here, there) = match hook {
        Hook::Ingress => (&ingress, &egress),
        Hook::Egress => (&egress, &ingress),
    };
    if let Some((filter, mark)) = find(here, instance) {
        let (priority, handle) = (filter.priority, Some(filter.handle));
        return Ok(tc.put_bpf(index, hook, &mark.name(), program, priority, handle)?);
    }
    let mark = Mark {
        instance,
        qdisc_added: qdisc_added || find(there, instance).is_some_and(|(_, m)| m.qdisc_added),
    };
    let priority = match hook {
        Hook::Ingress => first(here),
        Hook::Egress => last(here),
    };
    if hook == Hook::Ingress && priority != FIRST {
        tracing::warn!(
            interface = %interface,
            "another's filter has priority {FIRST} at ingress: limpid's comes behind it, and does not \
             see the packets that it drops, redirects or accepts"
        );
    }
    Ok(tc.put_bpf(index, hook, &mark.name(), program, priority, None)?)
}

/// The lowest number that the kernel allows. Among BPF filters of the same priority the newest is the
/// first.
fn first(filters: &[Filter]) -> u16 {
    let blocked = |priority: u16| {
        filters
            .iter()
            .any(|f| f.priority == priority && !f.shares_priority())
    };
    (FIRST..LAST).find(|p| !blocked(*p)).unwrap_or(FIRST)
}

/// Behind all that are there, and those for which nobody will name a priority. One that accepts packets
/// for good keeps them from limpid's: the SYN is not steered then, and the connection refused.
fn last(filters: &[Filter]) -> u16 {
    let behind = filters.iter().map(|f| f.priority.saturating_add(1));
    behind.fold(LAST, u16::max)
}

/// Does the instance's filter there run that program?
pub(super) fn is_attached(instance: &str, index: u32, hook: Hook, program: u32) -> bool {
    let filters = Tc::open().and_then(|tc| tc.filters(index, hook));
    filters.is_ok_and(|filters| {
        find(&filters, instance).is_some_and(|(filter, _)| filter.program == Some(program))
    })
}

/// Removes the instance's filters from every interface of this network namespace, and the qdiscs that
/// were added for them. Says what was removed, and what could not be.
pub(super) fn remove_all(instance: &str) -> (Vec<String>, Vec<ClsactError>) {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    let mut claim = None;
    match Tc::open().and_then(|tc| tc.qdiscs()) {
        Ok(qdiscs) => {
            for (index, _) in qdiscs {
                match remove(instance, index, &mut claim) {
                    Ok(what) => removed.extend(what),
                    Err(e) => failed.push(e),
                }
            }
        }
        Err(e) => failed.push(e.into()),
    }
    (removed, failed)
}

/// The same, of one interface. The claim is made when there is a filter to remove.
pub(super) fn remove(
    instance: &str,
    index: u32,
    claim: &mut Option<Claim>,
) -> Result<Vec<String>, ClsactError> {
    let tc = Tc::open()?;
    let interface = device(index);
    let mut removed = Vec::new();
    let (mut qdisc_added, mut others) = (false, false);
    for hook in Hook::ALL {
        for filter in tc.filters(index, hook)? {
            let Some(mark) = Mark::of(&filter).filter(|mark| mark.instance == instance) else {
                continue;
            };
            if claim.is_none() {
                *claim = Some(Claim::new(instance)?);
            }
            qdisc_added |= mark.qdisc_added;
            if not_gone(tc.remove(index, hook, &filter))? {
                removed.push(format!("filter {hook} of {interface}"));
            }
        }
        others |= !tc.filters(index, hook)?.is_empty();
    }
    if qdisc_added && others {
        tracing::info!("clsact of {interface} stays: others have filters there");
    } else if qdisc_added && not_gone(tc.remove_clsact(index))? {
        removed.push(format!("qdisc clsact of {interface}"));
    }
    Ok(removed)
}

/// Was it removed just now, or gone already?
fn not_gone(removal: Result<(), TcError>) -> Result<bool, TcError> {
    match removal {
        Ok(()) => Ok(true),
        Err(e) if e.is_gone() => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_whose_a_filter_is() {
        for qdisc_added in [false, true] {
            let mark = Mark {
                instance: "site-1_a",
                qdisc_added,
            };
            let filter = Filter {
                name: Some(mark.name()),
                ..Filter::default()
            };
            assert_eq!(Mark::of(&filter), Some(mark));
        }
        for name in [None, Some("steer"), Some("limpidity/default")] {
            let filter = Filter {
                name: name.map(str::to_owned),
                ..Filter::default()
            };
            assert_eq!(Mark::of(&filter), None, "{name:?}");
        }
    }
}
