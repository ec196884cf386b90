//! For tests: requests made and answered without a guest.

use super::{Buffers, Done, Failure, Op, Origin, Request, StoreQueue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::path::PathBuf;
use tornblk_model::event::Segment;

pub(crate) fn origin(position: u16) -> Origin {
    Origin { queue: 0, position, head: position, ioprio: 0 }
}

pub(crate) fn request(position: u16, op: Op, buffers: Buffers) -> Request {
    Request::new(origin(position), op, buffers)
}

pub(crate) fn write(position: u16, offset: u64, data: Vec<u8>) -> Request {
    let op = Op::Write { offset, fua: false, atomic: false };
    request(position, op, Buffers::from_vec(data))
}

pub(crate) fn read(position: u16, offset: u64, len: usize) -> Request {
    request(position, Op::Read { offset }, Buffers::from_vec(vec![0xee; len]))
}

pub(crate) fn flush(position: u16) -> Request {
    request(position, Op::FLUSH, Buffers::empty())
}

pub(crate) fn discard(position: u16, offset: u64, len: u64) -> Request {
    let segments = vec![Segment { offset, len, unmap: false }];
    request(position, Op::Discard { segments }, Buffers::empty())
}

pub(crate) fn zeroes(position: u16, offset: u64, len: u64, unmap: bool) -> Request {
    let segments = vec![Segment { offset, len, unmap }];
    request(position, Op::WriteZeroes { segments }, Buffers::empty())
}

pub(crate) fn data(done: &Done) -> Vec<u8> {
    let mut data = vec![0; done.request.buffers.len()];
    done.request.buffers.copy_to(0, &mut data);
    data
}

pub(crate) fn reap(queue: &mut dyn StoreQueue) -> Vec<Done> {
    let mut all = Vec::new();
    queue.reap(&mut |done| all.push(done));
    all
}

/// Waits for so many answers.
pub(crate) fn reap_all(queue: &mut dyn StoreQueue, n: usize) -> Vec<Done> {
    let mut all = reap(queue);
    while all.len() < n {
        let fd = queue.wake_fd().unwrap();
        let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let second = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert!(poll(&mut polled, Some(&second)).unwrap() > 0, "{} of {n} answered", all.len());
        rustix::io::read(fd, &mut [0u8; 8]).unwrap();
        all.extend(reap(queue));
    }
    all
}

/// Submits one and waits for its answer.
pub(crate) fn ask(queue: &mut dyn StoreQueue, request: Request) -> Result<Vec<u8>, Failure> {
    let origin = request.origin;
    queue.submit(request);
    let mut done = reap_all(queue, 1);
    assert_eq!(done.len(), 1, "one request, one answer");
    let done = done.remove(0);
    assert_eq!(done.request.origin, origin);
    let data = data(&done);
    done.result.map(|()| data)
}

/// An image of that many bytes, each block of 512 filled with its number.
pub(crate) fn image(size: u64) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let bytes: Vec<u8> = (0..size).map(|i| (i / 512 + 1) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    (dir, path, bytes)
}

/// Nothing is atomic above the logical block.
pub(crate) fn plain_profile() -> tornblk_model::crash::Profile {
    tornblk_model::crash::Profile::PLAIN
}
