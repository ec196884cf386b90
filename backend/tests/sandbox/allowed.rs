//! What the device does after it entered, and what the crates that it is made of may do.

use crate::tried::READ;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use tornblk_model::recording::Fresh;

pub(crate) fn prepare() -> Box<dyn FnOnce() -> io::Result<()> + Send> {
    // A socket without a name, that can be connected to all the same.
    let listener = UnixListener::bind("own/private").unwrap();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
    let named = rustix::fs::open("own/private", flags, rustix::fs::Mode::empty()).unwrap();
    fs::remove_file("own/private").unwrap();
    let parent = std::os::unix::process::parent_id();
    Box::new(move || {
        files(parent)?;
        sockets(&listener, &named)?;
        memory()?;
        threads()
    })
}

fn files(parent: u32) -> io::Result<()> {
    assert_eq!(fs::read(READ)?, b"content");
    fs::write("own/new", "made")?;
    fs::write("own/there", "shorter")?;
    let file = OpenOptions::new().read(true).write(true).open("own/new")?;
    file.set_len(1 << 20)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20)?;
    file.write_all_at(b"x", 4096)?;
    file.sync_all()?;
    file.sync_data()?;
    file.try_lock().map_err(|e| io::Error::other(e.to_string()))?;
    file.metadata()?;
    fs::remove_file("own/new")?;
    fs::canonicalize("own/there")?;
    // Overlays, and a recording that has its name when it is whole.
    tempfile::tempfile_in("own")?.write_all(b"x")?;
    let fresh = Fresh::create("own/fresh".as_ref()).map_err(io::Error::other)?;
    fresh.file().write_all_at(b"whole", 0)?;
    fresh.keep().map_err(io::Error::other)?;
    assert_eq!(fs::read("own/fresh")?, b"whole");
    // Its own files, and who connects.
    assert!(fs::read_dir("/proc/self/fd")?.count() > 2);
    fs::read_to_string(format!("/proc/{parent}/comm"))?;
    fs::read_to_string("/proc/self/status").map(drop)
}

fn sockets(listener: &UnixListener, named: &OwnedFd) -> io::Result<()> {
    let (one, other) = UnixStream::pair()?;
    for patience in [None, Some(Duration::from_secs(9))] {
        one.set_read_timeout(patience)?;
        one.set_write_timeout(patience)?;
    }
    one.set_nonblocking(true)?;
    one.set_nonblocking(false)?;
    rustix::net::sockopt::socket_peercred(&one)?;
    rustix::net::getsockname(&one)?;
    one.try_clone()?.write_all(b"x")?;
    (&other).read_exact(&mut [0])?;

    // A descriptor comes along.
    let file = File::open("own/there")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut given = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    assert!(given.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&one, &[IoSlice::new(b"x")], &mut given, SendFlags::NOSIGNAL)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut taken = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(&other, &mut [IoSliceMut::new(&mut byte)], &mut taken, flags)?;
    let mut fds = taken.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let got: Vec<OwnedFd> = fds.by_ref().flatten().collect();
    assert_eq!(rustix::fs::fstat(&got[0])?.st_ino, rustix::fs::fstat(&file)?.st_ino);

    let client = UnixStream::connect(format!("/proc/self/fd/{}", named.as_raw_fd()))?;
    let (server, _) = listener.accept()?;
    drop(client);
    assert_eq!((&server).read(&mut [0])?, 0);
    server.shutdown(std::net::Shutdown::Both).or(Ok(()))
}

fn memory() -> io::Result<()> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let memfd = memfd_create("inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&memfd, 1 << 20)?;
    fcntl_add_seals(&memfd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping, chosen by the kernel, and known to nobody else.
    unsafe {
        let map = mmap(std::ptr::null_mut(), 1 << 20, prot, MapFlags::SHARED, &memfd, 0)?;
        *map.cast::<u8>() = 1;
        munmap(map, 1 << 20)?;
    }
    // As much as makes the allocator ask, give back, and move.
    let mut grown: Vec<Vec<u8>> = (0..64).map(|n| vec![1; n << 14]).collect();
    grown.iter_mut().for_each(|piece| piece.resize(piece.len() * 3, 2));
    grown.truncate(3);
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
    Ok(())
}

fn threads() -> io::Result<()> {
    let threads: Vec<_> = (0..40)
        .map(|n| {
            std::thread::Builder::new().name(format!("thread {n}")).spawn(|| {
                // An arena of its own, and a moment's sleep.
                let memory = vec![1u8; 1 << 20];
                std::thread::sleep(Duration::from_millis(1));
                std::thread::yield_now();
                memory.len()
            })
        })
        .collect::<io::Result<_>>()?;
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread died"))?;
    }
    std::thread::available_parallelism()?;
    let _ = std::time::SystemTime::now();
    Ok(())
}
