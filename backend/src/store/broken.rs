//! A queue that could not be made.

use super::{Done, Failure, Request, StoreQueue};
use std::io;
use std::os::fd::BorrowedFd;

/// The process has no file descriptors left, so nothing could ever wake this queue. Each of its
/// requests fails, and the device lives on.
#[derive(Debug)]
struct BrokenQueue {
    error: io::ErrorKind,
    requests: Vec<Request>,
}

/// The queue, or where it could not be made one that fails every request.
pub(super) fn or_broken(made: io::Result<impl StoreQueue + 'static>) -> Box<dyn StoreQueue> {
    match made {
        Ok(queue) => Box::new(queue),
        Err(e) => {
            log::error!("a queue cannot be made, its requests will fail: {e}");
            Box::new(BrokenQueue { error: e.kind(), requests: Vec::new() })
        }
    }
}

impl StoreQueue for BrokenQueue {
    fn submit(&mut self, request: Request) {
        self.requests.push(request);
    }

    fn reap(&mut self, f: &mut dyn FnMut(Done)) {
        for request in self.requests.drain(..) {
            f(Done { request, result: Err(Failure::Io(self.error.into())) });
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.requests.len()
    }

    fn drain(&mut self) {}
}
