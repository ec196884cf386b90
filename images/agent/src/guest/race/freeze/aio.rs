//! Writes by libaio's system calls, which no crate has: io_setup, io_submit, io_getevents.

use std::io;
use std::os::fd::RawFd;

use super::write::Piece;

/// `IOCB_CMD_PWRITE` of `linux/aio_abi.h`.
const PWRITE: u16 = 1;

/// `struct iocb` of `linux/aio_abi.h`, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// A context, ended when dropped: which waits for what is in flight in it.
struct Context(u64);

impl Context {
    fn new(depth: usize) -> io::Result<Context> {
        let mut id: u64 = 0;
        // SAFETY: io_setup writes one context id.
        let n = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut id) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(Context(id)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: a context of our own.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// Submits all, one call where the kernel takes it, and waits for all: the results in their order.
pub(super) fn write_all(fd: RawFd, pieces: &[Piece], rwf: u32) -> io::Result<Vec<i64>> {
    let context = Context::new(pieces.len().max(1))?;
    let mut results = vec![0i64; pieces.len()];
    let mut iocbs: Vec<Iocb> = pieces
        .iter()
        .enumerate()
        .map(|(i, piece)| Iocb {
            data: i as u64,
            rw_flags: rwf,
            opcode: PWRITE,
            fd: fd as u32,
            buf: piece.address as u64,
            bytes: piece.len as u64,
            offset: piece.offset as i64,
            ..Iocb::default()
        })
        .collect();
    let pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(|iocb| &raw mut *iocb).collect();
    let (mut next, mut in_flight) = (0, 0);
    while next < pointers.len() {
        let left = pointers.len() - next;
        // SAFETY: reads `left` pointers to one `iocb` each, which live until the context is gone; of
        // the memory that they name it reads only, and checks that it may.
        let n = unsafe {
            libc::syscall(libc::SYS_io_submit, context.0, left, pointers[next..].as_ptr())
        };
        match usize::try_from(n) {
            Ok(n) => {
                next += n;
                in_flight += n;
            }
            // The first of them was refused.
            Err(_) => {
                let error = io::Error::last_os_error();
                results[next] = -i64::from(error.raw_os_error().unwrap_or(libc::EIO));
                next += 1;
            }
        }
    }
    let mut events = vec![IoEvent::default(); pieces.len()];
    while in_flight > 0 {
        // SAFETY: writes at most as many events as there is room for; no time limit.
        let n = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context.0,
                1usize,
                events.len(),
                events.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let Ok(n) = usize::try_from(n) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        for event in &events[..n] {
            results[event.data as usize] = event.result;
        }
        in_flight -= n;
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Iocb>(), size_of::<IoEvent>()), (64, 32));
    }
}
