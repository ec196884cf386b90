//! Which system calls can be made: seccomp(2).
//!
//! What is not allowed here is answered with SIGSYS, whose handler says which call it was and ends
//! the process: a device that went on after a call that it never makes would hide that somebody
//! else makes it.

#![allow(unsafe_code)]

use super::SandboxError;
use libc::{c_int, c_void};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
};
use std::collections::BTreeMap;

const LAYER: &str = "seccomp";

struct Call {
    number: i64,
    /// As libc calls its number: `SYS_read`.
    constant: &'static str,
}

macro_rules! calls {
    ($($constant:ident)*) => {
        &[$(Call { number: libc::$constant, constant: stringify!($constant) }),*]
    };
}

/// Allowed whatever the arguments.
const ALLOWED: &[Call] = calls! {
    // Files that are open, and what landlock lets be opened.
    SYS_openat SYS_close SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64
    SYS_preadv SYS_preadv2 SYS_pwritev SYS_lseek SYS_fsync SYS_fdatasync SYS_sync_file_range SYS_ftruncate
    SYS_fallocate SYS_flock SYS_fstat SYS_newfstatat SYS_statx SYS_getdents64 SYS_readlinkat
    SYS_faccessat SYS_faccessat2
    SYS_linkat SYS_unlinkat SYS_getcwd SYS_memfd_create
    // The front-end and the clients of the control socket.
    SYS_connect SYS_accept4 SYS_getsockname SYS_sendmsg SYS_recvmsg SYS_sendto SYS_recvfrom
    SYS_shutdown
    // Waiting. The clock is asked by a call where it cannot be mapped.
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_ppoll SYS_eventfd2 SYS_futex
    SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_sched_yield SYS_restart_syscall
    // Memory, threads, and signals of this process.
    SYS_munmap SYS_mremap SYS_madvise SYS_brk SYS_set_robust_list SYS_rseq SYS_sched_getaffinity
    SYS_gettid SYS_getpid SYS_sigaltstack SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn
    SYS_exit SYS_exit_group SYS_getrandom
};

/// Older ones that say the same: what a C library calls depends on its age.
#[cfg(target_arch = "x86_64")]
const OLD: &[Call] = calls! {
    SYS_open SYS_stat SYS_lstat SYS_access SYS_readlink SYS_unlink SYS_poll SYS_epoll_wait
};
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[Call] = &[];

/// Not there, says the kernel: what calls these does something else then. The flags of clone3 lie
/// in memory, where they cannot be seen; those of clone are seen.
const ABSENT: &[Call] = calls! { SYS_clone3 };

/// Allowed with some arguments: see [`by_argument`].
const PARTLY: &[Call] = calls! {
    SYS_socket SYS_socketpair SYS_getsockopt SYS_setsockopt SYS_mmap SYS_mprotect SYS_clone
    SYS_ioctl SYS_fcntl SYS_prctl SYS_prlimit64 SYS_tgkill
};

/// For the message alone: what a program might come to call.
const FORBIDDEN: &[Call] = calls! {
    SYS_execve SYS_execveat SYS_kill SYS_tkill SYS_rt_sigqueueinfo SYS_ptrace SYS_process_vm_readv
    SYS_process_vm_writev SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_bpf
    SYS_perf_event_open SYS_userfaultfd SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_unshare
    SYS_setns SYS_setuid SYS_setgid SYS_setresuid SYS_setresgid SYS_capset SYS_seccomp
    SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_reboot SYS_keyctl
    SYS_add_key SYS_request_key SYS_personality SYS_bind SYS_listen SYS_openat2 SYS_pidfd_open
    SYS_pidfd_getfd SYS_pidfd_send_signal SYS_open_by_handle_at SYS_name_to_handle_at
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_mkdirat SYS_mknodat SYS_symlinkat
    SYS_renameat2 SYS_truncate SYS_utimensat SYS_setxattr SYS_splice SYS_sendfile
    SYS_copy_file_range SYS_pkey_mprotect SYS_mlock SYS_mlockall SYS_membarrier SYS_pipe2 SYS_dup
    SYS_dup3 SYS_inotify_init1 SYS_signalfd4 SYS_timerfd_create SYS_wait4 SYS_waitid
    SYS_sched_setaffinity SYS_sched_setscheduler SYS_setpriority SYS_getrusage
    SYS_fadvise64 SYS_statfs SYS_fstatfs SYS_umask
};

/// Clone's flags for a namespace of one's own: clone(2).
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What of `fcntl` does not send signals.
const FCNTL: [c_int; 10] = [
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_DUPFD_CLOEXEC,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
];

/// How long a peer is waited for, who it is, and how a connection went.
const SOCKET_OPTIONS: [c_int; 4] =
    [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, libc::SO_PEERCRED, libc::SO_ERROR];

/// IORING_ENTER_GETEVENTS of linux/io_uring.h, and the bits that an argument of 32 has.
const GETEVENTS: u64 = 1;
const MASK: u64 = u32::MAX as u64;

/// Lower bits of a socket's type; those above are flags.
const SOCKET_TYPE: u64 = 0xf;
/// `prctl` that gives memory a name (C libraries do): PR_SET_VMA of linux/prctl.h.
const PR_SET_VMA: c_int = 0x5356_4d41;

/// Restricts all threads.
pub(super) fn restrict(rings: bool) -> Result<(), SandboxError> {
    let refused = |e: &dyn std::fmt::Display| SandboxError::refused(LAYER, e);
    let (allowed, absent) = programs(rings).map_err(|e| refused(&e))?;
    tell_of_traps().map_err(|e| refused(&e))?;
    // The kernel heeds the strictest answer of all filters; what the first one says of `ABSENT` is
    // allowed. It goes last: it does not allow another one.
    for program in [absent, allowed] {
        apply_filter_all_threads(&program).map_err(|e| refused(&e))?;
    }
    Ok(())
}

fn programs(rings: bool) -> Result<(BpfProgram, BpfProgram), seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let named = |calls: &'static [Call]| calls.iter().map(|call| (call.number, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        named(ALLOWED).chain(named(OLD)).chain(named(ABSENT)).collect();
    for call in PARTLY {
        rules.insert(call.number, by_argument(call.number)?);
    }
    if rings {
        // To submit and to wait, and nothing else: no other ring by its number in another table.
        let flags = SeccompCondition::new(3, Len::Dword, Op::MaskedEq(!GETEVENTS & MASK), 0)?;
        rules.insert(libc::SYS_io_uring_enter, vec![SeccompRule::new(vec![flags])?]);
    }
    let allow = SeccompAction::Allow;
    let allowed = SeccompFilter::new(rules, SeccompAction::Trap, allow.clone(), arch)?;
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    let absent = SeccompFilter::new(named(ABSENT).collect(), allow, no_such_call, arch)?;
    Ok((allowed.try_into()?, absent.try_into()?))
}

/// Any of these rules allows the call.
fn by_argument(call: i64) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // An argument, 32 or 64 bits of it, and what it must be.
    let int = |at, op, value: c_int| SeccompCondition::new(at, Len::Dword, op, value as u32 as u64);
    let long = |at, op, value| SeccompCondition::new(at, Len::Qword, op, value);
    let is = |at, value| int(at, Op::Eq, value);
    let one_of = |at, values: &[c_int]| {
        values.iter().map(|value| SeccompRule::new(vec![is(at, *value)?])).collect()
    };
    let all = |conditions| Ok(vec![SeccompRule::new(conditions)?]);
    match call {
        libc::SYS_socket | libc::SYS_socketpair => {
            all(vec![is(0, libc::AF_UNIX)?, int(1, Op::MaskedEq(SOCKET_TYPE), libc::SOCK_STREAM)?])
        }
        // Not SO_ATTACH_FILTER and its like: programs for the kernel.
        libc::SYS_getsockopt | libc::SYS_setsockopt => SOCKET_OPTIONS
            .iter()
            .map(|option| SeccompRule::new(vec![is(1, libc::SOL_SOCKET)?, is(2, *option)?]))
            .collect(),
        libc::SYS_mmap | libc::SYS_mprotect => {
            all(vec![int(2, Op::MaskedEq(libc::PROT_EXEC as u64), 0)?])
        }
        libc::SYS_clone => {
            let thread = libc::CLONE_THREAD as u64;
            all(vec![long(0, Op::MaskedEq(thread | NAMESPACES), thread)?])
        }
        // How the standard library makes a socket (non-)blocking. It takes 64 bits, but a C library
        // may leave what it likes in the upper ones: the kernel takes the lower.
        libc::SYS_ioctl => one_of(1, &[libc::FIONBIO as c_int]),
        libc::SYS_fcntl => {
            // O_ASYNC on a terminal signals who has it.
            let silent = int(2, Op::MaskedEq(libc::O_ASYNC as u64), 0)?;
            let flags = SeccompRule::new(vec![is(1, libc::F_SETFL)?, silent])?;
            let mut rules: Vec<SeccompRule> = one_of(1, &FCNTL)?;
            rules.push(flags);
            Ok(rules)
        }
        libc::SYS_prctl => one_of(0, &[libc::PR_SET_NAME, PR_SET_VMA]),
        // Asking for one's own.
        libc::SYS_prlimit64 => all(vec![is(0, 0)?, long(2, Op::Eq, 0)?]),
        // To abort. There is no fork, so the number stays.
        libc::SYS_tgkill => one_of(0, &[rustix::process::getpid().as_raw_nonzero().get()]),
        // None: `PARTLY` has no other, see the tests.
        _ => Ok(Vec::new()),
    }
}

/// Has SIGSYS say what happened.
fn tell_of_traps() -> std::io::Result<()> {
    // SAFETY: `sigaction` with valid arguments; the handler does only what a signal handler may:
    // write(2) and abort(3), and no allocation.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigsys;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        match libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// The beginning of `siginfo_t` as a SIGSYS fills it: sigaction(2).
#[repr(C)]
struct Trapped {
    signal: c_int,
    errno: c_int,
    code: c_int,
    address: *mut c_void,
    call: c_int,
    arch: u32,
}

extern "C" fn on_sigsys(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid `siginfo_t` to a handler installed with SA_SIGINFO, of 128
    // bytes, whose first ones are these for this signal.
    let call = unsafe { (*info.cast::<Trapped>()).call };
    let mut line = Line { bytes: [0; 256], len: 0 };
    line.text("tornblkd: forbidden system call ");
    line.number(call.unsigned_abs().into());
    if let Some(name) = name(call.into()) {
        line.text(" (");
        line.text(name);
        line.text(")");
    }
    // SAFETY: the third argument of such a handler is a valid `ucontext_t`.
    let [first, second] = unsafe { arguments(context) };
    line.text(", first arguments ");
    line.number(first);
    line.text(" and ");
    line.number(second);
    line.text(": start it with --sandbox off and report this\n");
    // SAFETY: writes bytes that are there; `abort` may be called in a signal handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::abort();
    }
}

/// # Safety
/// `context` is the `ucontext_t` of a signal handler.
#[cfg(target_arch = "x86_64")]
unsafe fn arguments(context: *mut c_void) -> [u64; 2] {
    // SAFETY: by contract.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    [libc::REG_RDI, libc::REG_RSI].map(|register| registers[register as usize] as u64)
}

/// # Safety
/// `context` is the `ucontext_t` of a signal handler.
#[cfg(target_arch = "aarch64")]
unsafe fn arguments(context: *mut c_void) -> [u64; 2] {
    // SAFETY: by contract.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.regs };
    [registers[0], registers[1]]
}

fn name(number: i64) -> Option<&'static str> {
    let all = [PARTLY, FORBIDDEN, ALLOWED, OLD, ABSENT];
    let call = all.iter().find_map(|calls| calls.iter().find(|call| call.number == number))?;
    call.constant.strip_prefix("SYS_")
}

/// A line that is put together without memory of its own; what does not fit is left out.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let (mut rest, mut at) = (number, digits.len());
        while at == digits.len() || rest > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.text(std::str::from_utf8(&digits[at..]).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_call_is_in_one_list_and_each_that_is_looked_at_has_a_rule() {
        let all = [ALLOWED, OLD, ABSENT, PARTLY, FORBIDDEN];
        let numbers = all.iter().flat_map(|calls| calls.iter().map(|call| call.number));
        let mut seen = BTreeSet::new();
        for number in numbers {
            assert!(seen.insert(number), "{} twice", name(number).unwrap());
        }
        for call in PARTLY {
            assert!(!by_argument(call.number).unwrap().is_empty(), "{}", call.constant);
        }
        assert_eq!(name(libc::SYS_read), Some("read"));
        assert_eq!(name(libc::SYS_clone3), Some("clone3"));
        assert_eq!(name(5000), None);
        programs(false).unwrap();
        programs(true).unwrap();
    }

    #[test]
    fn a_line_is_cut_where_it_does_not_fit() {
        let mut line = Line { bytes: [0; 256], len: 0 };
        for number in [0, 7, 10, u64::MAX] {
            line.number(number);
            line.text(" ");
        }
        assert_eq!(&line.bytes[..line.len], b"0 7 10 18446744073709551615 ");
        line.text(&"x".repeat(1000));
        assert_eq!(line.len, 256);
    }
}
