//! Texts in the form in which kernels of several versions print them.

use super::*;

fn kinds(log: &str) -> Vec<(Kind, String, usize)> {
    find(log).into_iter().map(|s| (s.kind, s.title, s.lines.len())).collect()
}

fn one(log: &str) -> (Kind, String, usize) {
    let found = kinds(log);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].clone()
}

const WARN: &str = "\
[   12.345678] ------------[ cut here ]------------
[   12.345700] WARNING: CPU: 1 PID: 311 at fs/iomap/buffered-io.c:1105 iomap_write_delalloc_release+0x2f1/0x310
[   12.345710] Modules linked in: xfs virtio_blk
[   12.345720] CPU: 1 UID: 0 PID: 311 Comm: tornblk-agent Not tainted 6.12.95 #1
[   12.345730] RIP: 0010:iomap_write_delalloc_release+0x2f1/0x310
[   12.345740] Code: 0f 0b e9 12 ff ff ff <0f> 0b eb 88
[   12.345750] RSP: 0018:ffffc90000a3bb58 EFLAGS: 00010246
[   12.345760] Call Trace:
[   12.345770]  <TASK>
[   12.345780]  ? __warn+0x81/0x130
[   12.345790]  xfs_buffered_write_iomap_end+0x9a/0x110 [xfs]
[   12.345800]  vfs_write+0x1c4/0x2a0
[   12.345810]  </TASK>
[   12.345820] ---[ end trace 0000000000000000 ]---
[   12.400000] XFS (vda): Unmounting Filesystem 9c6d
";

#[test]
fn a_warning_goes_from_its_cut_to_its_end() {
    let (kind, title, lines) = one(WARN);
    assert_eq!((kind, lines), (Kind::Warning, 14));
    assert!(
        title.starts_with("WARNING: CPU: 1 PID: 311 at fs/iomap/buffered-io.c:1105 "),
        "{title}"
    );
    // With the caller before each line, as CONFIG_PRINTK_CALLER wants it, and a serial line's ends.
    let other = WARN.replace("] ", "][  T311] ").replace('\n', "\r\n");
    assert_eq!(one(&other), one(WARN));
    // As newer kernels say it.
    let new = WARN.replace(
        "CPU: 1 PID: 311 at fs/iomap/buffered-io.c:1105 iomap_write_delalloc_release+0x2f1/0x310",
        "fs/iomap/buffered-io.c:1105 at iomap_write_delalloc_release+0x2f1/0x310, CPU#1: agent/311",
    );
    assert_eq!(one(&new).0, Kind::Warning);
}

#[test]
fn what_a_warning_is_about_stands_before_its_place() {
    let log = "------------[ cut here ]------------\n\
               refcount_t: underflow; use-after-free.\n\
               WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 refcount_warn_saturate+0xf4/0x150\n\
               ---[ end trace 0000000000000000 ]---\n";
    let (_, title, _) = one(log);
    assert!(title.ends_with("+0xf4/0x150 (refcount_t: underflow; use-after-free.)"), "{title}");
}

#[test]
fn a_guest_that_was_killed_in_the_middle_is_heard() {
    let cut: String = WARN.lines().take(6).map(|l| format!("{l}\n")).collect();
    assert_eq!(one(&cut[..cut.len() - 9]).2, 6);
    // And one cut off by the next.
    let two = format!("{cut}{WARN}");
    assert_eq!(kinds(&two).iter().map(|k| k.2).collect::<Vec<_>>(), [6, 14]);
}

#[test]
fn an_oops_and_the_panic_that_follows_are_one() {
    let log = "\
[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    9.1] #PF: supervisor read access in kernel mode
[    9.1] #PF: error_code(0x0000) - not-present page
[    9.1] PGD 0 P4D 0
[    9.1] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI
[    9.1] CPU: 0 UID: 0 PID: 77 Comm: mount Not tainted 7.2.12 #1
[    9.1] RIP: 0010:xfs_foo+0x12/0x80 [xfs]
[    9.1] Call Trace:
[    9.1]  <TASK>
[    9.1]  xfs_bar+0x33/0x90 [xfs]
[    9.1]  </TASK>
[    9.1] CR2: 0000000000000008
[    9.1] ---[ end trace 0000000000000000 ]---
[    9.1] Kernel panic - not syncing: Fatal exception
[    9.1] Kernel Offset: disabled
";
    let (kind, title, lines) = one(log);
    assert_eq!((kind, lines), (Kind::Bug, 14));
    assert!(title.starts_with("BUG: kernel NULL pointer"), "{title}");
    // BUG_ON: its sentence stands in a "cut here".
    let log = "------------[ cut here ]------------\nkernel BUG at fs/ext4/inode.c:2731!\n\
               Oops: invalid opcode: 0000 [#1] SMP\nRIP: 0010:f+0x1/0x2\n\
               ---[ end trace 0000000000000000 ]---\n";
    assert_eq!(one(log).1, "kernel BUG at fs/ext4/inode.c:2731!");
    let log = "general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP\n";
    assert_eq!(one(log).0, Kind::Bug);
    assert_eq!(one("invalid opcode: 0000 [#1] PREEMPT SMP PTI\n").0, Kind::Bug);
    assert_eq!(one("[ 1.0] Kernel panic - not syncing: sysrq triggered crash\n").0, Kind::Bug);
}

#[test]
fn lockdep_is_whole_with_its_chains() {
    let log = "\
[   20.1] ======================================================
[   20.1] WARNING: possible circular locking dependency detected
[   20.1] 6.12.95 #1 Not tainted
[   20.1] ------------------------------------------------------
[   20.1] kworker/u8:2/44 is trying to acquire lock:
[   20.1] ffff88800f5c4d18 (&ip->i_lock){++++}-{4:4}, at: xfs_ilock+0xb6/0x1a0 [xfs]
[   20.1] 
[   20.1] but task is already holding lock:
[   20.1] ffff888003d1a650 (sb_internal#2){.+.+}-{0:0}, at: xfs_trans_alloc+0xf3/0x240 [xfs]
[   20.1] 
[   20.1] which lock already depends on the new lock.
[   20.1] 
[   20.1] stack backtrace:
[   20.1] CPU: 0 UID: 0 PID: 44 Comm: kworker/u8:2 Not tainted 6.12.95 #1
[   20.1] Call Trace:
[   20.1]  <TASK>
[   20.1]  print_circular_bug+0x18f/0x1f0
[   20.1]  </TASK>
[   20.2] after
";
    let (kind, title, lines) = one(log);
    assert_eq!((kind, lines), (Kind::Locking, 18));
    assert_eq!(title, "WARNING: possible circular locking dependency detected");
    for title in [
        "WARNING: possible recursive locking detected",
        "WARNING: suspicious RCU usage",
        "WARNING: inconsistent lock state",
        "INFO: possible irq lock inversion dependency detected",
    ] {
        let other = log.replace("WARNING: possible circular locking dependency detected", title);
        assert_eq!(one(&other).0, Kind::Locking, "{title}");
    }
    // Older kernels put it in brackets.
    let old = log.replace(
        "WARNING: possible circular locking dependency detected",
        "[ INFO: possible circular locking dependency detected ]",
    );
    assert_eq!(one(&old).0, Kind::Locking);
}

#[test]
fn a_wait_context_is_lockdeps_and_swallows_nothing() {
    let rule = "=".repeat(29);
    let of = |lock: &str| {
        format!(
            "{rule}\n[ BUG: Invalid wait context ]\n6.12.95 #1 Not tainted\n\
             -----------------------------\nfsx/77 is trying to lock:\n\
             ffff88807fffd6c0 ({lock}){{....}}-{{3:3}}, at: get_page_from_freelist+0x1c/0x2a0\n\
             other info that might help us debug this:\ncontext-{{5:5}}\n\
             1 lock held by fsx/77:\n #0: ffffffff8296c5d8 (cpu_lock){{....}}-{{2:2}}, at: f+0x1/0x2\n\
             stack backtrace:\nCPU: 0 UID: 0 PID: 77 Comm: fsx Not tainted 6.12.95 #1\n\
             Call Trace:\n <TASK>\n dump_stack_lvl+0x5b/0x90\n </TASK>\n"
        )
    };
    let log = format!("{}fine\n{WARN}", of("&zone->lock"));
    let found = find(&log);
    let kinds: Vec<_> = found.iter().map(|s| (s.kind, s.lines.len())).collect();
    assert_eq!(kinds, [(Kind::Locking, 16), (Kind::Warning, 14)]);
    assert_eq!(found[0].title, "BUG: Invalid wait context");
    let signature = |log: &str| find(log)[0].signature();
    assert!(signature(&log).contains("&zone->lock"), "{}", signature(&log));
    assert_ne!(signature(&of("&a->lock")), signature(&of("&b->lock")));
    // Without its last line, and one that has a task in its title.
    let cut = of("&zone->lock").replace(" </TASK>\n", "");
    assert_eq!(kinds_of(&format!("{cut}fine\n{WARN}")), [Kind::Locking, Kind::Warning]);
    let held = |who: &str| {
        let log = of("&a->lock").replace("[ BUG: Invalid wait context ]", who);
        (one(&log).0, signature(&log))
    };
    let (kind, fsx) = held("WARNING: fsx/77 still has locks held!");
    assert_eq!(kind, Kind::Locking);
    assert_eq!(fsx, held("WARNING: kworker/u8:1/9 still has locks held!").1);
}

fn kinds_of(log: &str) -> Vec<Kind> {
    find(log).into_iter().map(|s| s.kind).collect()
}

#[test]
fn a_bug_that_is_no_oops_has_its_trace() {
    let trace = "CPU: 0 UID: 0 PID: 77 Comm: fsx Not tainted 7.2.12 #1\nCall Trace:\n <TASK>\n \
                 f+0x12/0x80 [xfs]\n </TASK>\n";
    let sleeping = format!(
        "BUG: sleeping function called from invalid context at mm/a.c:7\n\
         in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 77, name: fsx\n\
         preempt_count: 1, expected: 0\nRCU nest depth: 0, expected: 0\n\
         2 locks held by fsx/77:\n #0: ffff88800f5c4d18 (a){{.+.+}}-{{0:0}}, at: f+0x1/0x2\n\
         Preemption disabled at:\n[<ffffffff81234567>] f+0x1/0x2\n{trace}"
    );
    let page = format!(
        "BUG: Bad page state in process fsx  pfn:12345\n\
         page: refcount:0 mapcount:1 mapping:0000000000000000 index:0x0 pfn:0x12345\n\
         flags: 0x100000000000000(node=0|zone=1)\nraw: 0100000000000000 dead000000000122\n\
         page dumped because: nonzero mapcount\nModules linked in: xfs\n{trace}"
    );
    for log in [sleeping, page] {
        assert_eq!(one(&format!("{log}fine\n")).2, log.lines().count(), "{log}");
    }
}

#[test]
fn sanitizers_reports_end_with_their_rule() {
    let rule = "=".repeat(66);
    let log = format!(
        "{rule}\nBUG: KASAN: slab-use-after-free in iomap_finish_ioend+0x51/0x70\n\
         Read of size 8 at addr ffff88800abc1230 by task kworker/1:1/40\n\n\
         CPU: 1 UID: 0 PID: 40 Comm: kworker/1:1 Not tainted 6.12.95 #1\nCall Trace:\n <TASK>\n \
         kasan_report+0xb9/0xf0\n </TASK>\n\nAllocated by task 12:\n kasan_save_stack+0x30/0x50\n\n\
         Freed by task 40:\n kasan_save_stack+0x30/0x50\n{rule}\nafter\n"
    );
    let (kind, title, lines) = one(&log);
    assert_eq!((kind, lines), (Kind::Sanitizer, 16));
    assert_eq!(title, "BUG: KASAN: slab-use-after-free in iomap_finish_ioend+0x51/0x70");
    let ubsan = "------------[ cut here ]------------\n\
                 UBSAN: array-index-out-of-bounds in fs/xfs/libxfs/xfs_dir2.c:81:9\n\
                 index 17 is out of range for type '__u8 [16]'\nCPU: 0 PID: 1 Comm: x\nCall Trace:\n\
                 ---[ end trace ]---\n";
    assert_eq!(one(ubsan), (Kind::Sanitizer, ubsan.lines().nth(1).unwrap_or_default().into(), 6));
}

#[test]
fn a_task_that_hangs_is_told_with_its_trace() {
    let log = "\
[  245.1] INFO: task fsfreeze:91 blocked for more than 122 seconds.
[  245.1]       Not tainted 7.2.12 #1
[  245.1] \"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.
[  245.1] task:fsfreeze        state:D stack:0     pid:91    tgid:91    ppid:1      flags:0x00004002
[  245.1] Call Trace:
[  245.1]  <TASK>
[  245.1]  percpu_down_write+0xe4/0x1e0
[  245.1]  </TASK>
[  245.2] XFS (vda): Unmounting Filesystem
";
    assert_eq!(
        one(log),
        (Kind::Hung, "INFO: task fsfreeze:91 blocked for more than 122 seconds.".into(), 8)
    );
}

#[test]
fn file_systems_and_disks_complain_in_lines() {
    for (line, kind) in [
        (
            "XFS (vda): Metadata corruption detected at xfs_agi_verify+0x1/0x2 [xfs], xfs_agi block 0x2",
            Kind::FileSystem,
        ),
        (
            "XFS (vda): Internal error xfs_trans_cancel at line 1034 of file fs/xfs/xfs_trans.c.",
            Kind::FileSystem,
        ),
        (
            "XFS (vda): page discard on page 00000000a1b2c3d4, inode 0x83, pos 4096.",
            Kind::FileSystem,
        ),
        ("XFS (vda): log mount/recovery failed: error -117", Kind::FileSystem),
        ("XFS (vda): Filesystem has been shut down due to log error (0x2).", Kind::FileSystem),
        ("XFS (vda): log I/O error -5", Kind::FileSystem),
        ("XFS (vda): Failed to recover leftover CoW staging extents, err -5.", Kind::FileSystem),
        (
            "XFS: Assertion failed: ip->i_delayed_blks == 0, file: fs/xfs/xfs_super.c, line: 698",
            Kind::FileSystem,
        ),
        (
            "EXT4-fs error (device vda): ext4_find_extent:936: inode #12: comm x: pblk 33 bad header",
            Kind::FileSystem,
        ),
        (
            "EXT4-fs warning (device vda): ext4_end_bio:342: I/O error 10 writing to inode 12",
            Kind::FileSystem,
        ),
        ("EXT4-fs (vda): Remounting filesystem read-only", Kind::FileSystem),
        ("JBD2: Detected IO errors while flushing file data: error on vda-8", Kind::FileSystem),
        ("Aborting journal on device vda-8.", Kind::FileSystem),
        (
            "I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x8800 phys_seg 1 prio class 2",
            Kind::Io,
        ),
        (
            "timeout error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x8800 phys_seg 1 prio class 2",
            Kind::Io,
        ),
        (
            "protection error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2",
            Kind::Io,
        ),
        (
            "critical target error, dev sda, sector 8 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2",
            Kind::Io,
        ),
        ("blk_update_request: I/O error, dev vda, sector 8 op 0x1:(WRITE)", Kind::Io),
        ("vda: writeback error on inode 131, offset 0, sector 1048", Kind::Io),
        ("Buffer I/O error on dev vda, logical block 0, async page read", Kind::Io),
        ("rcu: INFO: rcu_preempt self-detected stall on CPU", Kind::Time),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [mkfs.xfs:80]", Kind::Time),
        (
            "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable because the skew is too large:",
            Kind::Time,
        ),
    ] {
        assert_eq!(one(&format!("[    3.0] {line}\n[    3.1] fine\n")), (kind, line.to_owned(), 1));
    }
}

#[test]
fn what_is_said_every_day_is_no_complaint() {
    let log = "\
[    0.000000] Linux version 7.2.12+deb13-cloud-amd64 (gcc 14.2.0) #1 SMP PREEMPT_DYNAMIC
[    0.000000] Command line: console=ttyS0 loglevel=5 panic=-1 oops=panic x=WARNING: y
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
[    0.031416] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible!
[    0.031420] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks!
[    0.100000] clocksource: refined-jiffies: mask: 0xffffffff max_cycles: 0xffffffff
[    0.200000] hpet: HPET dysfunctional in PC10. Force disabled.
[    1.100000] tornblk_atomic: loading out-of-tree module taints kernel.
[    1.100001] tornblk_atomic: module verification failed: signature and/or required key missing - tainting kernel
[    1.200000] virtio_blk virtio1: [vda] 131072 512-byte logical blocks (67.1 MB/64.0 MiB)
[    1.300000] XFS (vda): Mounting V5 Filesystem 9c6d2a1e
[    1.300100] XFS (vda): Starting recovery (logdev: internal)
[    1.300200] XFS (vda): Ending recovery (logdev: internal)
[    1.400000] EXT4-fs (vda): recovery complete
[    1.400100] EXT4-fs (vda): mounted filesystem 5e8c r/w with ordered data mode. Quota mode: none.
[    1.500000] tornblk-agent: WARNING: the agent quotes: XFS (vda): Corruption detected
[    1.550000] operation not supported error, dev vda, sector 0 op 0x9:(WRITE_ZEROES) flags 0x800 phys_seg 0
[    1.600000] INFO: lockdep is turned off.
[    1.700000] INFO: task accounting is on
[    1.800000] sysrq: Show Blocked State
[    1.900000] random: crng init done
==================================================================
";
    assert_eq!(kinds(log), []);
    assert_eq!(kinds(""), []);
}
