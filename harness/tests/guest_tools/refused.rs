//! What a disk does not do: refused with the sense that the standard names, without a trace on the
//! disk.

use crate::{Disk, Guest};

const OPCODE: [&str; 2] =
    ["Additional sense: Invalid command operation code", "Error in Command: byte 0"];
const RANGE: [&str; 1] = ["Additional sense: Logical block address out of range"];

/// INVALID FIELD IN CDB, with the place of the field.
fn field(place: &str) -> [&str; 2] {
    ["Additional sense: Invalid field in cdb", place]
}

fn write(guest: &mut Guest, options: &str, status: i64, says: &[&str]) {
    let says = [&["Sense key: Illegal Request"], says].concat();
    guest.fails(&format!("sg_write_x -v --in=/tmp/data {options}"), status, &says);
}

pub(crate) fn by_a_disk_with_limits(guest: &mut Guest, disk: &mut Disk) {
    let at = "--lba=1024 --num=32 /dev/sda";
    write(
        guest,
        "--atomic=0 --lba=1024 --num=129 /dev/sda",
        5,
        &field("Error in Command: byte 12"),
    );
    write(guest, &format!("--atomic=16 {at}"), 5, &field("Error in Command: byte 10"));
    write(guest, "--atomic=0 --lba=1048575 --num=32 /dev/sda", 22, &RANGE);
    write(guest, &format!("--atomic=0 --grpnum=3 {at}"), 5, &field("byte 14 bit 1"));
    write(guest, &format!("--atomic=0 --wrprotect=1 {at}"), 5, &field("byte 1 bit 5"));
    for other in ["--32 --atomic=0", "--or", "--stream=1"] {
        write(guest, &format!("{other} {at}"), 9, &OPCODE);
    }
    let says = [OPCODE.as_slice(), &["SCSI COMPARE AND WRITE: Illegal request, Invalid opcode"]];
    let line = "sg_compare_and_write -v --in=/dev/zero --lba=0 --num=1 --xferlen=1024 /dev/sda";
    guest.fails(line, 9, &says.concat());
    // LOG SENSE, PERSISTENT RESERVE IN, and what nobody knows.
    for cdb in
        ["4d 00 40 00 00 00 00 00 ff 00", "5e 00 00 00 00 00 00 00 ff 00", "c1 00 00 00 00 00"]
    {
        guest.fails(&format!("sg_raw -r 255 /dev/sda {cdb}"), 9, &OPCODE);
    }
    // REPORT TARGET PORT GROUPS: a service action of an operation code that is there.
    let line = "sg_raw -r 255 /dev/sda a3 0a 00 00 00 00 00 00 00 ff 00 00";
    guest.fails(line, 5, &field("byte 1 bit 4"));
    guest.fails("sg_vpd -f -p 0xc0 /dev/sda", 5, &["Illegal request"]);
    assert!(disk.came().is_empty());
}

pub(crate) fn by_a_disk_with_a_boundary(guest: &mut Guest, disk: &mut Disk) {
    for (options, place) in [
        ("--atomic=64 --lba=1024 --num=32", "Error in Command: byte 10"),
        ("--atomic=4 --lba=1024 --num=32", "Error in Command: byte 10"),
        ("--atomic=0 --lba=1024 --num=40", "Error in Command: byte 12"),
        // No multiple of the granularity.
        ("--atomic=0 --lba=1024 --num=9", "Error in Command: byte 12"),
    ] {
        write(guest, &format!("{options} /dev/sdb"), 5, &field(place));
    }
    assert!(disk.came().is_empty());
}

pub(crate) fn by_a_disk_without_limits(guest: &mut Guest, disk: &mut Disk) {
    disk.came();
    write(guest, "--atomic=0 --lba=128 --num=4 /dev/sdc", 9, &OPCODE);
    let (status, said) = guest.sh("xfs_io -d -c 'pwrite -A -D -V 1 -b 16k 0 16k' /dev/sdc");
    assert!(status == 1 && said.contains("pwrite: Operation not supported"), "{status}: {said}");
    assert!(disk.came().is_empty());
}

/// It takes no SCSI commands, and a tool is told so.
pub(crate) fn by_virtio_blk(guest: &mut Guest, disk: &mut Disk) {
    disk.came();
    for (line, status) in [
        ("sg_inq", 75),
        ("sg_vpd -p bl", 75),
        ("sg_opcodes", 99),
        ("sg_write_x --in=/tmp/data --atomic=0 --lba=1024 --num=32", 75),
        ("sg_compare_and_write --in=/dev/zero --lba=0 --num=1 --xferlen=1024", 75),
    ] {
        guest.fails(&format!("{line} /dev/vda"), status, &["Inappropriate ioctl for device"]);
    }
    assert!(disk.came().is_empty());
}
