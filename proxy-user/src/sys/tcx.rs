//! Which programs are attached by TCX (`BPF_PROG_QUERY`, `kernel/bpf/tcx.c`).
//!
//! By their ids alone: to open a program by its id takes `CAP_SYS_ADMIN` (`bpf_prog_get_fd_by_id()`), which a daemon
//! has no other use for.

use std::io;

use super::splice::check;
use crate::netlink::tc::Hook;

/// `BPF_MPROG_MAX`: no interface has more at a hook.
const MOST: usize = 64;

/// `union bpf_attr`, `query`.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    attach_flags_of_programs: u64,
    link_ids: u64,
    attach_flags_of_links: u64,
    revision: u64,
}

/// The ids of the programs that are attached to an interface by TCX, in the order in which they run. Needs
/// `CAP_NET_ADMIN`; `EINVAL` from kernels without TCX (before 6.6).
pub fn programs(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_int = 16;
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        ifindex,
        // `enum bpf_attach_type`.
        attach_type: match hook {
            Hook::Ingress => 46,
            Hook::Egress => 47,
        },
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: `query` has the size that is given and the layout of the kernel's; `ids` has room for `count`. Both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    check(result as libc::c_int)?;
    let count = MOST.min(query.count as usize);
    Ok(ids[..count].to_vec())
}
