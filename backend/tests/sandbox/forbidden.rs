//! What a process that was taken over might try.

#![allow(unsafe_code)]

use crate::tried::{OTHER, OWN, READ, SECRET};
use io_uring::{IoUring, opcode, types};
use libc::{EACCES, ENOSYS, EPERM, EXDEV, c_long};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) enum Ends {
    /// The process ends, and says that this call is forbidden.
    Trapped(&'static str),
    /// The call fails with one of these.
    Refused(&'static [i32]),
}

type Try = Box<dyn FnOnce() -> io::Result<()> + Send>;

pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    pub(crate) ends: Ends,
    /// Outside of the sandbox only root can do it.
    pub(crate) as_root: bool,
    /// The device has rings.
    pub(crate) rings: bool,
    /// Does what is to be done before the sandbox is entered: → what is tried after that.
    pub(crate) prepare: fn() -> Try,
}

const fn trapped(name: &'static str, call: &'static str, prepare: fn() -> Try) -> Attempt {
    Attempt { name, ends: Ends::Trapped(call), as_root: false, rings: false, prepare }
}

/// Is this the process that enters the sandbox? Elsewhere a ring is as the kernel makes it.
pub(crate) static INSIDE: AtomicBool = AtomicBool::new(false);

/// As the store makes it.
fn device_ring() -> IoUring {
    if !INSIDE.load(Ordering::Relaxed) {
        return IoUring::new(8).unwrap();
    }
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let file = File::open("own/there").unwrap();
    tornblk_backend::store::restricted_ring(&file, &file, bell).unwrap()
}

/// What `entry` points to lives until it ended.
fn through(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> io::Result<()> {
    // SAFETY: by contract, and it is waited for.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map_or(-libc::EIO, |entry| entry.result()) {
        failed if failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
        _ => Ok(()),
    }
}

const fn with_rings(attempt: Attempt) -> Attempt {
    Attempt { rings: true, ..attempt }
}

const fn refused(name: &'static str, prepare: fn() -> Try) -> Attempt {
    Attempt {
        name,
        ends: Ends::Refused(&[EACCES, EPERM, EXDEV]),
        as_root: false,
        rings: false,
        prepare,
    }
}

const fn as_root(attempt: Attempt) -> Attempt {
    Attempt { as_root: true, ..attempt }
}

pub(crate) const ALL: &[Attempt] = &[
    // Programs and processes.
    trapped("a_program", "execve", || {
        Box::new(|| {
            let words = [c"/bin/echo".as_ptr(), c"it worked".as_ptr(), null()];
            // SAFETY: three words, the last one null.
            done(unsafe { libc::execv(words[0], words.as_ptr()) }.into())
        })
    }),
    trapped("a_program_by_descriptor", "execveat", || {
        let echo = File::open("/bin/echo").unwrap();
        Box::new(move || {
            let words = [c"/bin/echo".as_ptr(), c"it worked".as_ptr(), null()];
            let environment = [null::<libc::c_char>()];
            // SAFETY: as above, and an empty environment.
            done(unsafe {
                let flags = libc::AT_EMPTY_PATH;
                libc::syscall(
                    libc::SYS_execveat,
                    echo.as_raw_fd(),
                    c"".as_ptr(),
                    words.as_ptr(),
                    environment.as_ptr(),
                    flags,
                )
            })
        })
    }),
    trapped("a_fork", "clone", || {
        // SAFETY: the child ends at once.
        Box::new(|| ended(unsafe { libc::fork() }))
    }),
    Attempt {
        // It would be a thread for who asks with clone after that.
        ends: Ends::Refused(&[ENOSYS]),
        ..trapped("a_fork_with_clone3", "", || {
            Box::new(|| {
                // Only the signal at its end is said: linux/sched.h, `struct clone_args`.
                let mut arguments = [0u64; 8];
                arguments[4] = libc::SIGCHLD as u64;
                let size = size_of_val(&arguments);
                // SAFETY: a structure of that size; the child ends at once.
                ended(unsafe {
                    libc::syscall(libc::SYS_clone3, &raw const arguments, size) as libc::pid_t
                })
            })
        })
    },
    trapped("a_namespace", "unshare", || call(libc::SYS_unshare, [libc::CLONE_FS.into(), 0, 0])),
    trapped("a_trace", "ptrace", || {
        // Its parent is not traced, which the kernel says where it may be asked.
        let asked = call(libc::SYS_ptrace, [libc::PTRACE_PEEKDATA as c_long, parent(), 0]);
        Box::new(|| match asked() {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        })
    }),
    trapped("another_s_memory", "process_vm_readv", || {
        Box::new(|| {
            let (mut to, from) = ([0u8; 8], [1u8; 8]);
            let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: 8 };
            let remote = libc::iovec { iov_base: from.as_ptr() as *mut _, iov_len: 8 };
            // SAFETY: this process's own memory, as good as another's.
            done(unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) as _ })
        })
    }),
    trapped("a_signal", "kill", || call(libc::SYS_kill, [parent(), 0, 0])),
    trapped("a_signal_to_a_thread", "tgkill", || call(libc::SYS_tgkill, [parent(), parent(), 0])),
    trapped("a_signal_by_descriptor", "pidfd_open", || {
        call(libc::SYS_pidfd_open, [parent(), 0, 0])
    }),
    trapped("a_signal_by_a_file", "fcntl", || {
        let ((one, _other), whom) = (UnixStream::pair().unwrap(), parent());
        Box::new(move || {
            // SAFETY: a descriptor that is open.
            done(unsafe { libc::fcntl(one.as_raw_fd(), libc::F_SETOWN, whom) }.into())
        })
    }),
    trapped("a_signal_when_a_terminal_is_ready", "fcntl", || {
        let (one, _other) = UnixStream::pair().unwrap();
        Box::new(move || {
            // SAFETY: a descriptor that is open.
            done(unsafe { libc::fcntl(one.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC) }.into())
        })
    }),
    trapped("a_filter_for_a_socket", "setsockopt", || {
        let (one, _other) = UnixStream::pair().unwrap();
        Box::new(move || {
            // BPF_RET | BPF_K: all of each message.
            let mut all = libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX };
            let program = libc::sock_fprog { len: 1, filter: &mut all };
            let len = size_of_val(&program) as libc::socklen_t;
            // SAFETY: a descriptor that is open, and a program of one instruction that is there.
            done(unsafe {
                let program = (&raw const program).cast();
                let (level, what) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
                libc::setsockopt(one.as_raw_fd(), level, what, program, len).into()
            })
        })
    }),
    // Sockets.
    trapped("a_network", "socket", || call(libc::SYS_socket, inet(libc::AF_INET))),
    trapped("another_network", "socket", || call(libc::SYS_socket, inet(libc::AF_INET6))),
    trapped("the_kernel_s_sockets", "socket", || {
        call(libc::SYS_socket, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0])
    }),
    trapped("a_datagram", "socket", || Box::new(|| UnixDatagram::unbound().map(drop))),
    trapped("a_server", "bind", || Box::new(|| UnixListener::bind("own/socket").map(drop))),
    Attempt {
        ends: Ends::Refused(&[EPERM]),
        ..trapped("an_abstract_socket", "", || {
            let name = format!("tornblk-test-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let listener = UnixListener::bind_addr(&address).unwrap();
            Box::new(move || {
                let connected = UnixStream::connect_addr(&address).map(drop);
                drop(listener);
                connected
            })
        })
    },
    // Memory that is executed.
    trapped("code", "mmap", || {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        Box::new(move || {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh page.
            let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
            done(if page == libc::MAP_FAILED { -1 } else { 0 })
        })
    }),
    trapped("code_in_a_file", "mmap", || {
        let file = File::open("/bin/echo").unwrap();
        Box::new(move || {
            let (prot, fd) = (libc::PROT_READ | libc::PROT_EXEC, file.as_raw_fd());
            // SAFETY: a fresh page.
            let page =
                unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_PRIVATE, fd, 0) };
            done(if page == libc::MAP_FAILED { -1 } else { 0 })
        })
    }),
    trapped("code_from_data", "mprotect", || {
        Box::new(|| {
            let (prot, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a fresh page, and only that is changed.
            done(unsafe {
                let page = libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
                libc::mprotect(page, 4096, prot | libc::PROT_EXEC).into()
            })
        })
    }),
    // The ring.
    trapped("a_ring", "io_uring_setup", || Box::new(|| IoUring::new(8).map(drop))),
    trapped("a_file_through_a_ring_made_before", "io_uring_enter", || {
        let mut ring = IoUring::new(8).unwrap();
        Box::new(move || {
            let path = c"other/secret";
            let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
                .flags(libc::O_RDONLY)
                .build();
            // SAFETY: the path lives as long as the program.
            unsafe { ring.submission().push(&open) }.map_err(io::Error::other)?;
            ring.submit_and_wait(1)?;
            let opened = ring.completion().next().map_or(-1, |entry| entry.result());
            if opened < 0 {
                return Err(io::Error::from_raw_os_error(-opened));
            }
            // SAFETY: opened by the ring a moment ago, for us alone.
            drop(unsafe { OwnedFd::from_raw_fd(opened) });
            Ok(())
        })
    }),
    trapped("a_file_given_to_a_ring", "io_uring_register", || {
        let (ring, file) = (IoUring::new(8).unwrap(), File::open("own/there").unwrap());
        Box::new(move || ring.submitter().register_files(&[file.as_raw_fd()]))
    }),
    // A ring of the device's own.
    with_rings(refused("a_file_through_the_device_s_ring", || {
        let mut ring = device_ring();
        Box::new(move || {
            let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"own/there".as_ptr());
            through(&mut ring, &open.flags(libc::O_RDONLY).build())
        })
    })),
    with_rings(refused("another_file_through_the_device_s_ring", || {
        let (mut ring, file) = (device_ring(), File::open("other/secret").unwrap());
        Box::new(move || {
            let mut byte = [0];
            let read = opcode::Read::new(types::Fd(file.as_raw_fd()), byte.as_mut_ptr(), 1);
            through(&mut ring, &read.build())
        })
    })),
    with_rings(refused("a_socket_through_the_device_s_ring", || {
        let mut ring = device_ring();
        Box::new(move || {
            let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0);
            through(&mut ring, &socket.build())
        })
    })),
    with_rings(trapped("a_file_given_to_the_device_s_ring", "io_uring_register", || {
        let (ring, file) = (device_ring(), File::open("own/there").unwrap());
        Box::new(move || {
            let _ = ring.submitter().unregister_files();
            ring.submitter().register_files(&[file.as_raw_fd()])
        })
    })),
    with_rings(trapped("another_ring", "io_uring_setup", || {
        Box::new(|| IoUring::new(8).map(drop))
    })),
    // The kernel.
    as_root(trapped("a_mount", "mount", || {
        // Of one's own, where the mount changes nothing for others.
        // SAFETY: changes only which mounts this thread, and those it starts, see.
        let _ = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        Box::new(|| {
            // SAFETY: paths that end with 0, or are null.
            done(unsafe {
                libc::mount(null(), c"/".as_ptr(), null(), libc::MS_PRIVATE, null()).into()
            })
        })
    })),
    as_root(trapped("another_root", "chroot", || {
        Box::new(|| std::os::unix::fs::chroot("/").map(drop))
    })),
    as_root(trapped("another_user", "setuid", || call(libc::SYS_setuid, [0, 0, 0]))),
    as_root(trapped("a_program_for_the_kernel", "bpf", || {
        Box::new(|| {
            // BPF_MAP_CREATE: an array of one element, linux/bpf.h.
            let attributes: [u32; 16] = [2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let size = size_of_val(&attributes);
            // SAFETY: attributes of that size.
            done(unsafe { libc::syscall(libc::SYS_bpf, 0, &raw const attributes, size) })
        })
    })),
    trapped("memory_faults_of_one_s_own", "userfaultfd", || {
        // UFFD_USER_MODE_ONLY, which every user may.
        call(libc::SYS_userfaultfd, [1, 0, 0])
    }),
    trapped("a_terminal_or_device", "ioctl", || {
        let (one, _other) = UnixStream::pair().unwrap();
        Box::new(move || {
            let mut there = 0;
            // SAFETY: writes an int.
            done(unsafe { libc::ioctl(one.as_raw_fd(), libc::FIONREAD, &raw mut there).into() })
        })
    }),
    trapped("its_own_limits", "prlimit64", || {
        Box::new(|| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: reads and writes a limit.
            done(unsafe {
                libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit).into()
            })
        })
    }),
    trapped("who_may_look_at_it", "prctl", || {
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0])
    }),
    // Files by calls that are not the device's.
    trapped("a_folder", "mkdirat", || {
        Box::new(|| Ok(rustix::fs::mkdirat(rustix::fs::CWD, "own/folder", 0o700.into())?))
    }),
    trapped("a_link", "symlinkat", || {
        Box::new(|| Ok(rustix::fs::symlinkat("/", rustix::fs::CWD, "own/link")?))
    }),
    trapped("another_name", "renameat2", || {
        let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
        Box::new(move || Ok(rustix::fs::renameat_with(cwd, "own/there", cwd, "own/b", flags)?))
    }),
    trapped("other_permissions", "fchmodat", || {
        Box::new(|| {
            let mode = 0o666.into();
            Ok(rustix::fs::chmodat(
                rustix::fs::CWD,
                "own/there",
                mode,
                rustix::fs::AtFlags::empty(),
            )?)
        })
    }),
    // Files that are not the device's.
    refused("another_s_file", || Box::new(|| fs::read(SECRET).map(drop))),
    refused("another_s_file_by_dots", || Box::new(|| fs::read("own/../other/secret").map(drop))),
    refused("another_s_file_by_a_link", || {
        std::os::unix::fs::symlink("../other/secret", "own/link").unwrap();
        Box::new(|| fs::read("own/link").map(drop))
    }),
    refused("another_s_file_by_its_folder", || {
        let folder = File::open(OTHER).unwrap();
        Box::new(move || {
            let flags = rustix::fs::OFlags::RDONLY;
            rustix::fs::openat(&folder, "secret", flags, rustix::fs::Mode::empty())?;
            Ok(())
        })
    }),
    refused("a_write_to_what_is_only_read", || {
        Box::new(|| OpenOptions::new().write(true).open(READ).map(drop))
    }),
    refused("a_write_to_another_s_file", || Box::new(|| fs::write(SECRET, "overwritten"))),
    refused("a_file_elsewhere", || Box::new(|| fs::write("other/new", "made"))),
    refused("a_removal_elsewhere", || Box::new(|| fs::remove_file(SECRET))),
    refused("a_name_elsewhere", || Box::new(|| fs::hard_link("own/there", "other/there"))),
    refused("another_s_file_named_here", || Box::new(|| fs::hard_link(SECRET, "own/mine"))),
    refused("a_list_of_files", || Box::new(|| fs::read_dir(OWN).map(drop))),
    refused("passwords", || Box::new(|| fs::read("/etc/passwd").map(drop))),
    refused("a_device", || Box::new(|| File::open("/dev/null").map(drop))),
    refused("a_setting_of_the_kernel", || {
        Box::new(|| OpenOptions::new().write(true).open("/proc/self/comm").map(drop))
    }),
    refused("another_process_s_environment", || {
        let path = format!("/proc/{}/environ", parent());
        Box::new(move || fs::read(path).map(drop))
    }),
    refused("another_process_s_files", || {
        let path = format!("/proc/{}/fd", parent());
        Box::new(move || {
            // Others come and go: it has other threads.
            fs::read_dir(&path)?.next().ok_or(io::ErrorKind::NotFound)??;
            fs::read_link(format!("{path}/0")).map(drop)
        })
    }),
    // What is another user's is closed, even where root asks and landlock does not mind.
    as_root(refused("another_user_s_file", || {
        let closed = fs::Permissions::from_mode(0o600);
        fs::set_permissions("own/there", closed).unwrap();
        // Fails for who is not root: then this try is not what counts.
        let _ = std::os::unix::fs::chown("own/there", Some(12345), Some(12345));
        Box::new(|| {
            // Root's own file would be open.
            if fs::symlink_metadata("own/there")?.permissions().mode() & 0o77 != 0 {
                return Err(io::Error::other("its mode changed"));
            }
            fs::read("own/there").map(drop)
        })
    })),
];

fn inet(family: i32) -> [c_long; 3] {
    [family.into(), libc::SOCK_STREAM.into(), 0]
}

fn parent() -> c_long {
    std::os::unix::process::parent_id().into()
}

/// A call of up to three numbers.
fn call(number: c_long, arguments: [c_long; 3]) -> Try {
    Box::new(move || {
        let [a, b, c] = arguments;
        // SAFETY: used with calls that take no pointers.
        done(unsafe { libc::syscall(number, a, b, c) })
    })
}

fn done(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// In a child: its end. In the parent: waits for it.
fn ended(pid: libc::pid_t) -> io::Result<()> {
    match pid {
        // SAFETY: ends this process without running anything of the parent's.
        0 => unsafe { libc::_exit(0) },
        pid if pid < 0 => Err(io::Error::last_os_error()),
        // SAFETY: a child of this process.
        pid => done(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }.into()),
    }
}
