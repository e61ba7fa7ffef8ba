//! The record of clsact filters, so that whoever cleans up undoes what was done and nothing else.
//!
//! A TCX link is its own record: it is pinned, and gone with its pin. A clsact filter outlives its
//! maker without a trace in bpffs, so the daemon notes it in the pinned map `ATTACHMENTS` first.

/// Where a filter is. Key of `ATTACHMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttachPoint {
    /// The network namespace: inode number of `/proc/self/ns/net`. Interface indexes mean nothing
    /// outside of it.
    pub netns: u64,
    /// Interface index.
    pub ifindex: u32,
    /// 0: ingress; 1: egress.
    pub egress: u32,
}

/// What is there. Value of `ATTACHMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Handle of the filter (`tc filter show`), 0 until it is known.
    pub handle: u32,
    /// Its priority (`pref`).
    pub priority: u32,
    /// 1: limpid added the interface's clsact qdisc.
    pub qdisc_added: u32,
    /// Padding, 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<AttachPoint>() == 16);
const _: () = assert!(size_of::<Attachment>() == 16);

#[cfg(feature = "aya")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
    use super::{AttachPoint, Attachment};

    // SAFETY: `repr(C)`, integers only, no padding.
    unsafe impl aya::Pod for AttachPoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Attachment {}
}
