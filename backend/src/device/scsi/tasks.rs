//! How the control queue reaches what is in flight on the request queues, which other threads work
//! on: it leaves an [`Order`] with each and rings. Each of them looks for orders, takes everything
//! that the driver has made visible, and carries out those orders that it found before: so an order
//! reaches every command that was visible before it. Nothing here costs a request more than looking
//! at a flag. The transport has every queue at work before the control queue takes anything
//! ([`Device::reaches_all`](crate::device::Device::reaches_all)).

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The request queues that are at work.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    inboxes: Mutex<Vec<Weak<Inbox>>>,
}

/// Where orders for one request queue wait.
#[derive(Debug)]
pub(super) struct Inbox {
    waiting: AtomicBool,
    orders: Mutex<Vec<Order>>,
    /// Wakes the queue's thread.
    bell: Option<OwnedFd>,
}

/// Which requests: of a logical unit, with a tag; of any, where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Which {
    pub(super) unit: Option<usize>,
    pub(super) tag: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Say whether there are such requests.
    Find(Which),
    /// Wait until such requests are answered.
    Wait(Which),
    /// Let go what is held, and wait until such requests are answered.
    End(Which),
}

#[derive(Debug)]
pub(super) struct Order {
    pub(super) what: What,
    pub(super) open: Open,
}

/// A task management function that is being carried out.
#[derive(Debug)]
pub(super) struct Function {
    found: AtomicBool,
    /// Wakes the control queue.
    bell: Arc<OwnedFd>,
}

/// Held by whoever has still to do something for a function: it is over when all are dropped.
#[derive(Debug)]
pub(super) struct Open(Option<Arc<Function>>);

impl Open {
    pub(super) fn found(&self) {
        if let Some(function) = &self.0 {
            function.found.store(true, Ordering::Release);
        }
    }
}

impl Clone for Open {
    fn clone(&self) -> Open {
        Open(self.0.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(function) = self.0.take() else { return };
        let bell = Arc::clone(&function.bell);
        // Before the bell: who hears it must not find us still here.
        drop(function);
        ring(bell.as_fd());
    }
}

impl Function {
    /// Gives the order to every queue.
    pub(super) fn begin(tasks: &Tasks, what: What, bell: &Arc<OwnedFd>) -> Arc<Function> {
        let bell = Arc::clone(bell);
        let function = Arc::new(Function { found: AtomicBool::new(false), bell });
        let open = Open(Some(Arc::clone(&function)));
        for inbox in tasks.inboxes().iter().filter_map(Weak::upgrade) {
            inbox.leave(Order { what, open: open.clone() });
        }
        function
    }

    /// Over? Then whether a request was found.
    pub(super) fn over(self: &mut Arc<Function>) -> Option<bool> {
        Arc::get_mut(self).map(|function| *function.found.get_mut())
    }
}

impl Tasks {
    /// A request queue's inbox; `bell` wakes its thread.
    pub(super) fn inbox(&self, bell: Option<BorrowedFd<'_>>) -> Arc<Inbox> {
        let bell = bell.and_then(|fd| match fd.try_clone_to_owned() {
            Ok(fd) => Some(fd),
            Err(error) => {
                log::error!("task management will wait for the next request: {error}");
                None
            }
        });
        let (waiting, orders) = (AtomicBool::new(false), Mutex::default());
        let inbox = Arc::new(Inbox { waiting, orders, bell });
        let mut inboxes = self.inboxes();
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(&inbox));
        inbox
    }

    fn inboxes(&self) -> MutexGuard<'_, Vec<Weak<Inbox>>> {
        // Whole between two statements, whatever happened to who held the lock.
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn leave(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waiting.store(true, Ordering::Release);
        if let Some(bell) = &self.bell {
            ring(bell.as_fd());
        }
    }

    /// Adds the orders that wait to `to`. Costs a load where there is none.
    pub(super) fn take(&self, to: &mut Vec<Order>) {
        if self.waiting.load(Ordering::Acquire) && self.waiting.swap(false, Ordering::AcqRel) {
            to.append(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// An eventfd for a control queue.
pub(super) fn bell() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}

fn ring(bell: BorrowedFd<'_>) {
    // Fails only where the counter is full: then it is readable anyway.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}
