//! Tools that know block devices and files, whatever is beneath.

use crate::{Disk, Guest};

/// One write at `at` with RWF_ATOMIC and RWF_DSYNC.
fn write(path: &str, at: &str, size: &str) -> String {
    format!("xfs_io -d -c 'pwrite -A -D -V 1 -b {size} {at} {size}' {path}")
}

/// Lines with one space between words.
fn rows(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

pub(crate) fn lsblk_and_blkid(guest: &mut Guest, plain: &mut Disk) {
    guest.says(
        "lsblk -D",
        "NAME DISC-ALN DISC-GRAN DISC-MAX DISC-ZERO
         sda         0      512B      64M         0
         sdb         0        4K      64M         0
         sdc         0        4K      64M         0
         vda         0      512B      64M         0",
    );
    let columns = "NAME,ALIGNMENT,MIN-IO,OPT-IO,PHY-SEC,LOG-SEC,RQ-SIZE";
    let topology = rows(&guest.ok(&format!("lsblk -n -o {columns}")));
    let wanted = [
        "sda 0 512 0 512 512 128",
        "sdb 0 4096 0 4096 512 128",
        "sdc 0 4096 0 4096 4096 128",
        "vda 0 512 0 512 512 128",
    ];
    assert_eq!(topology, wanted);
    assert_eq!(rows(&guest.ok("lsblk -t")).len(), 1 + wanted.len());
    assert_eq!(
        rows(&guest.ok("lsblk -S -n -o NAME,TYPE,VENDOR,MODEL,SERIAL")),
        [
            "sda disk TORNBLK tearable disk whole",
            "sdb disk TORNBLK tearable disk bounded",
            "sdc disk TORNBLK tearable disk plain",
        ]
    );

    plain.came();
    guest.ok("blkdiscard -o 1M -l 1M /dev/sdc");
    assert_eq!(plain.came(), ["discard 1048576+1048576"]);
    guest.ok("mkfs.ext4 -q -F -U 12345678-1234-1234-1234-123456789abc /dev/sdc 4m");
    let found = guest.ok("blkid -p /dev/sdc");
    assert!(found.contains("TYPE=\"ext4\"") && found.contains("12345678-1234"), "{found}");
    guest.ok("e2fsck -fn /dev/sdc");
}

pub(crate) fn cache_and_rescan(guest: &mut Guest, disk: &mut Disk) {
    let cache = "/sys/class/scsi_disk/0:0:0:0/cache_type";
    disk.came();
    guest.ok(&format!("echo 'write through' >{cache}"));
    // The cache is written out before the answer.
    assert_eq!(disk.came(), ["writeback false", "flush"]);
    assert_eq!(
        guest.ok(&format!("cat {cache} /sys/block/sda/queue/write_cache")),
        "write through\nwrite through\n"
    );
    guest.says("sg_modes -p 8 /dev/sda", "00     08 12 00 00 00 00 00 00  00 00 00 00 00 00 00 00");
    // Nothing to flush, and nothing to write through.
    guest.ok(&write("/dev/sda", "0", "16k"));
    assert_eq!(disk.came(), ["write 0+16384 atomic"]);
    guest.ok(&format!("echo 'write back' >{cache}"));
    assert_eq!(disk.came(), ["writeback true"]);
    assert_eq!(
        guest.ok(&format!("cat {cache} /sys/block/sda/queue/write_cache")),
        "write back\nwrite back\n"
    );

    let limits = "cat /sys/block/sda/queue/atomic_write_*_bytes /sys/block/sda/size";
    let before = guest.ok(limits);
    guest.ok("echo 1 >/sys/block/sda/device/rescan");
    assert_eq!(guest.ok(limits), before);
    // Taken away, and found again where it was.
    guest.ok("echo 1 >/sys/block/sda/device/delete; test ! -e /sys/block/sda");
    guest.ok("echo '0 0 0' >/sys/class/scsi_host/host0/scan");
    guest
        .ok("for i in $(seq 100); do test -b /dev/sda && break; sleep 0.1; done; test -b /dev/sda");
    assert_eq!(guest.ok(limits), before);
    disk.came();
}

/// It gives the virtio-blk disk its limits.
pub(crate) fn the_module_is_loaded(guest: &mut Guest) {
    guest.ok("insmod /usr/lib/modules/*/extra/tornblk_atomic.ko disk=vda");
    assert_eq!(guest.ok("cat /sys/block/vda/queue/atomic_write_unit_max_bytes"), "65536\n");
}

pub(crate) fn xfs_io_on_disks(
    guest: &mut Guest,
    whole: &mut Disk,
    bounded: &mut Disk,
    virtio: &mut Disk,
) {
    guest.says("xfs_io -c 'help pwrite'", "-A   -- Perform the pwritev2() with RWF_ATOMIC");
    virtio.came();
    // RWF_DSYNC of a block device is FUA and a flush; where there is no FUA, that is a flush, too.
    for (disk, device, came) in [
        (&mut *whole, "/dev/sda", ["write 0+16384 atomic fua", "flush"].as_slice()),
        (bounded, "/dev/sdb", &["write 0+16384 atomic fua", "flush"]),
        (&mut *virtio, "/dev/vda", &["write 0+16384", "flush", "flush"]),
    ] {
        guest.ok(&write(device, "0", "16k"));
        assert_eq!(disk.came(), came, "{device}");
        for (at, size) in [("4k", "16k"), ("0", "128k"), ("0", "12k")] {
            guest.fails(&write(device, at, size), 1, &["pwrite: Invalid argument"]);
        }
        assert!(disk.came().is_empty(), "{device}");
    }
    guest.ok(&write("/dev/sda", "64k", "64k"));
    assert_eq!(whole.came(), ["write 65536+65536 atomic fua", "flush"]);
    guest.ok(&write("/dev/vda", "64k", "64k"));
    assert_eq!(virtio.came(), ["write 65536+65536", "flush", "flush"]);
    guest.fails(&write("/dev/sdb", "64k", "64k"), 1, &["pwrite: Invalid argument"]);
}

/// Over blocks that are there and lie as they must, XFS lets the disk keep a write whole.
pub(crate) fn xfs_io_on_a_file(guest: &mut Guest, disk: &mut Disk) {
    guest.ok("mkfs.xfs -q -f /dev/sda && mkdir -p /mnt && mount -t xfs /dev/sda /mnt");
    guest.ok("xfs_io -f -c 'extsize 64k' -c 'pwrite 0 64k' -c fsync /mnt/file");
    disk.came();
    guest.ok(&write("/mnt/file", "16k", "16k"));
    let came = disk.came();
    let atomic: Vec<_> = came.iter().filter(|line| line.contains("atomic")).collect();
    let [atomic] = atomic[..] else { panic!("{came:?}") };
    assert!(atomic.ends_with("+16384 atomic fua"), "{atomic}");
    guest.ok("umount /mnt && xfs_repair -n /dev/sda");
    disk.came();
}

/// Verified by fio itself; every write of it is found as one that is kept whole.
pub(crate) fn fio(guest: &mut Guest, whole: &mut Disk, bounded: &mut Disk, virtio: &mut Disk) {
    const START: u64 = 64 << 20;
    const LEN: u64 = 4 << 20;
    for (disk, device, mark, limit) in [
        (whole, "/dev/sda", " atomic", 65536),
        (bounded, "/dev/sdb", " atomic", 16384),
        (virtio, "/dev/vda", "", 65536),
    ] {
        let fio = |size: &str| {
            format!(
                "fio --name=atomic --filename={device} --rw=randwrite --direct=1 --atomic=1 \
                 --ioengine=io_uring --iodepth=8 --bs={size} --offset={START} --size={LEN} \
                 --verify=crc32c --do_verify=1 --verify_fatal=1"
            )
        };
        let said = guest.ok(&fio("16k"));
        assert!(said.contains("err= 0") && said.contains("issued rwts: total=256,256"), "{said}");
        let mut written = 0;
        for line in disk.came() {
            let extent = line.strip_prefix("write ").and_then(|line| line.strip_suffix(mark));
            let (offset, len) = extent.and_then(|extent| extent.split_once('+')).unwrap();
            let (offset, len): (u64, u64) = (offset.parse().unwrap(), len.parse().unwrap());
            assert!(
                (START..START + LEN).contains(&offset) && offset.is_multiple_of(16384),
                "{line}"
            );
            // Neighbours may have become one request within the limit.
            assert!(len.is_multiple_of(16384) && len <= limit, "{line}");
            written += len;
        }
        assert_eq!(written, LEN, "{device}");
        guest.fails(&fio("128k"), 1, &["error=Invalid argument"]);
        assert!(disk.came().is_empty(), "{device}");
    }
}
