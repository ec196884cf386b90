//! `tornblkd`: a vhost-user block device that can tear.
//!
//! - [`store`]: where the bytes live.
//! - [`device`]: what the guest sees; knows [`store::Store`], never files.
//! - [`vhost`]: sockets, queues, worker threads; knows [`device`], never requests.
//! - [`control`]: the control socket.
//! - [`sandbox`]: what the process can still do once a guest is served.

mod complaints;
pub mod control;
mod descriptors;
pub mod device;
mod listening;
mod made;
mod peer;
pub mod sandbox;
pub mod store;
pub mod vhost;

pub use made::folder_of;
