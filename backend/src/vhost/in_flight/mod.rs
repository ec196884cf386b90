//! Where a queue's [`Ledger`](crate::device::ledger::Ledger) is kept, so that a device that is
//! killed and started again finds it.
//!
//! - [`region`]: memory that the front-end keeps (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD), laid out as
//!   the vhost-user protocol has it for split rings. QEMU and cloud-hypervisor offer it.
//! - [`file`]: a file beside the socket, for front-ends that do not: the same layout, which counts
//!   only for the same guest memory, the same rings and the same used index.

pub(super) mod file;
pub(super) mod region;

pub(super) use file::Beside;
pub(super) use region::Region;
