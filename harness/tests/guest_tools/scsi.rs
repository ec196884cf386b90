//! sg3-utils: what the disk says of itself, and the commands that it carries out.

use crate::{Disk, Guest};

pub(crate) fn identity(guest: &mut Guest) {
    guest.says(
        "sg_inq -d /dev/sda",
        "PQual=0  PDT=0  RMB=0  LU_CONG=0  hot_pluggable=0  version=0x07  [SPC-5]
         [AERC=0]  [TrmTsk=0]  NormACA=0  HiSUP=1  Resp_data_format=2
         SCCS=0  ACC=0  TPGS=0  3PC=0  Protect=0  [BQue=0]
         length=96 (0x60)   Peripheral device type: disk
         Vendor identification: TORNBLK
         Product identification: tearable disk
         SAM-5 (no version claimed)
         SPC-5 (no version claimed)
         SBC-4 (no version claimed)",
    );
    guest.says(
        "sg_vpd /dev/sda",
        "Supported VPD pages [sv]
         Unit serial number [sn]
         Device identification [di]
         Block limits (SBC) [bl]
         Block device characteristics (SBC) [bdc]
         Logical block provisioning (SBC) [lbpv]",
    );
    for (device, serial) in [("sda", "whole"), ("sdb", "bounded"), ("sdc", "plain")] {
        let serial_number = format!("Product serial number: {serial}");
        guest.says(&format!("sg_vpd -p sn /dev/{device}"), &serial_number);
        guest.says(
            &format!("sg_vpd -p di /dev/{device}"),
            &format!(
                "designator type: T10 vendor identification,  code set: ASCII
                 vendor id: TORNBLK
                 vendor specific: tearable disk   {serial}"
            ),
        );
    }
    guest.says(
        "sg_vpd -p bdc /dev/sda",
        "Non-rotating medium (e.g. solid state)\nZONED=0 [not reported]",
    );
    guest.says(
        "sg_luns /dev/sda",
        "Lun list length = 8 which implies 1 lun entry\n0000000000000000",
    );
    guest.says("sg_luns -s 1 /dev/sda", "c101000000000000");
}

/// Block Limits and Logical Block Provisioning.
///
/// Where the tool says `Atomic alignment` a second time, it means the granularity.
pub(crate) fn limits(guest: &mut Guest) {
    guest.says(
        "sg_vpd -p bl /dev/sda",
        "Write same non-zero (WSNZ): 1
         Maximum compare and write length: 0 blocks [command not implemented]
         Optimal transfer length granularity: 0x1
         Maximum transfer length: 0x20000
         Maximum unmap LBA count: 0x20000
         Maximum unmap block descriptor count: 0x20
         Optimal unmap granularity: 0x1
         Maximum write same length: 0x8000
         Maximum atomic transfer length: 0x80
         Atomic alignment: 0 blocks [unaligned atomic writes permitted]
         Atomic alignment: 0x1
         Maximum atomic transfer length with atomic boundary: 0 blocks [not reported]
         Maximum atomic boundary size: 0 blocks [can only write atomic 1 block]",
    );
    guest.says(
        "sg_vpd -p bl /dev/sdb",
        "Optimal transfer length granularity: 0x8
         Optimal unmap granularity: 0x8
         Maximum atomic transfer length: 0 blocks [not reported]
         Atomic alignment: 0 blocks [unaligned atomic writes permitted]
         Atomic alignment: 0x8
         Maximum atomic transfer length with atomic boundary: 0x20
         Maximum atomic boundary size: 0x20",
    );
    guest.says(
        "sg_vpd -p bl /dev/sdc",
        "Maximum transfer length: 0x4000
         Maximum unmap LBA count: 0x4000
         Maximum write same length: 0x1000
         Maximum atomic transfer length: 0 blocks [not reported]
         Maximum atomic transfer length with atomic boundary: 0 blocks [not reported]
         Maximum atomic boundary size: 0 blocks [can only write atomic 1 block]",
    );
    guest.says(
        "sg_vpd -p lbpv /dev/sda",
        "LBPU=1
         LBPWS=1
         LBPWS10=1
         LBPRZ=0x0
         ANC_SUP=0
         DP=0
         Provisioning type: thin provisioned
         Threshold percentage: 0 [percentages not supported]",
    );
}

pub(crate) fn opcodes(guest: &mut Guest) {
    // Of each line of the table: opcode, service action where it has one, bytes of the CDB.
    let table = |text: &str| -> Vec<String> {
        let after = text.lines().skip_while(|line| !line.starts_with("---")).skip(1);
        let row = |line: &str| line[..22].split_whitespace().collect::<Vec<_>>().join(" ");
        after.map(row).collect()
    };
    let all = "00 6,03 6,08 6,0a 6,12 6,15 6,1a 6,1b 6,1e 6,25 10,28 10,2a 10,35 10,41 10,42 10,\
               55 10,5a 10,88 16,8a 16,91 16,93 16,9c 16,9e 10 16,a0 12,a3 c 12,a3 d 12,a8 12,\
               aa 12";
    let all: Vec<&str> = all.split(',').collect();
    for device in ["sda", "sdb"] {
        assert_eq!(table(&guest.ok(&format!("sg_opcodes /dev/{device}"))), all, "{device}");
    }
    let without: Vec<&str> = all.into_iter().filter(|code| *code != "9c 16").collect();
    assert_eq!(table(&guest.ok("sg_opcodes /dev/sdc")), without);

    guest.says(
        "sg_opcodes --rctd -o 0x9c /dev/sda",
        "Command_name: Write atomic(16)
         Command is supported [conforming to SCSI standard]
         Usage data: 9c 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00
         no nominal timeout, no recommended timeout",
    );
    guest.says(
        "sg_opcodes -o 0x9e,0x10 /dev/sda",
        "Command_name: Read capacity(16)\nCommand is supported [conforming to SCSI standard]",
    );
    for (device, code) in [("sdc", "0x9c"), ("sda", "0x89"), ("sda", "0x7f,0xf")] {
        let line = format!("sg_opcodes -o {code} /dev/{device}");
        guest.says(&line, "Command is NOT supported");
    }
    guest.says(
        "sg_opcodes --rctd /dev/sda",
        "9c                 16         -          -    Write atomic(16)",
    );
    guest.says(
        "sg_opcodes -t /dev/sda",
        "Abort task
         Abort task set
         Clear task set
         Logical unit reset
         I_T nexus reset",
    );
}

pub(crate) fn mode_and_size(guest: &mut Guest) {
    let pages = "Block descriptor length=8
                 00     08 12 04 00 00 00 00 00  00 00 00 00 00 00 00 00
                 00     0a 0a 00 10 00 00 00 00  ff ff 00 00";
    let header = "Mode data length=48, medium type=0x00, WP=0, CAPPID=0, DpoFua=1, longlba=0";
    guest.says("sg_modes -a /dev/sda", &format!("{header}\n{pages}"));
    guest.says("sg_modes -6 -a /dev/sda", pages);
    guest.says(
        "sg_modes -c 1 -p 8 /dev/sda",
        ">> Caching, page_control: changeable
         00     08 12 04 00 00 00 00 00  00 00 00 00 00 00 00 00",
    );
    guest
        .says("sg_modes -L -a /dev/sdc", "00     00 00 00 00 00 02 00 00  00 00 00 00 00 00 10 00");
    guest.fails("sg_modes -p 0x1c /dev/sda", 5, &["invalid field in cdb"]);
    guest.fails("sg_modes -c 3 -p 8 /dev/sda", 5, &["Illegal request"]);

    guest.says(
        "sg_readcap /dev/sda",
        "Last LBA=1048575 (0xfffff), Number of logical blocks=1048576",
    );
    for (device, lines) in [
        ("sda", "Logical block length=512 bytes\nLogical blocks per physical block exponent=0"),
        (
            "sdb",
            "Logical block length=512 bytes\nLogical blocks per physical block exponent=3 [so physical block length=4096 bytes]",
        ),
        ("sdc", "Logical block length=4096 bytes\nLogical blocks per physical block exponent=0"),
    ] {
        let line = format!("sg_readcap --16 /dev/{device}");
        guest.says(
            &line,
            &format!(
                "{lines}
                 Protection: prot_en=0, p_type=0, p_i_exponent=0
                 Logical block provisioning: lbpme=1, lbprz=0
                 Lowest aligned LBA=0
                 Device size: 536870912 bytes, 512.0 MiB, 0.54 GB"
            ),
        );
    }
    // This version of sg_turs succeeds, and sends nothing.
    guest.ok("sg_turs /dev/sda");
    guest.says("sg_raw /dev/sda 00 00 00 00 00 00", "SCSI Status: Good");
    guest.says("sg_requests /dev/sda", "Fixed format, current; Sense key: No Sense");
    guest.fails("sg_requests -d /dev/sda", 5, &["Illegal request"]);
}

pub(crate) fn syncs_discards_and_zeroes(guest: &mut Guest, disk: &mut Disk) {
    disk.came();
    for line in ["sg_sync", "sg_sync --16", "sg_sync -l 5 -c 8", "sg_sync -i"] {
        guest.ok(&format!("{line} /dev/sda"));
        assert_eq!(disk.came(), ["flush"], "{line}");
    }
    guest.fails("sg_sync -l 1048570 -c 100 /dev/sda", 22, &["LBA out of range"]);

    guest.ok("sg_unmap -f -l 100,200 -n 8,16 /dev/sda");
    assert_eq!(disk.came(), ["discard 51200+4096", "discard 102400+8192"]);
    guest.fails("sg_unmap -f -l 1048576 -n 8 /dev/sda", 22, &["LBA out of range"]);
    // More than MAXIMUM UNMAP LBA COUNT.
    guest.fails("sg_unmap -f -l 0 -n 200000 /dev/sda", 19, &["bad field in UNMAP parameter list"]);

    guest.ok("head -c 512 /dev/zero | tr '\\0' w >/tmp/pattern");
    let read = "dd if=/dev/sda iflag=direct skip=63 count=10 2>/dev/null | tr -c w . | fold -w 512 | cut -c 512";
    guest.ok("sg_write_same -l 64 -n 8 -i /tmp/pattern /dev/sda");
    // A disk writes the pattern again and again: nothing keeps all of it whole.
    let blocks: Vec<String> = (64..72).map(|lba| format!("write {}+512", lba * 512)).collect();
    assert_eq!(disk.came(), blocks);
    assert_eq!(guest.ok(read).replace('\n', ""), ".wwwwwwww.");
    for (options, came) in [
        ("", "zeroes 32768+4096"),
        ("-U", "zeroes 32768+4096 unmap"),
        ("-S -N", "zeroes 32768+4096"),
        ("-S -N -U", "zeroes 32768+4096 unmap"),
    ] {
        guest.ok(&format!("sg_write_same -l 64 -n 8 {options} /dev/sda"));
        assert_eq!(disk.came(), [came], "{options}");
    }
    assert_eq!(guest.ok(read).replace('\n', ""), "..........");
    for (options, status, says) in [
        ("-T -l 64 -n 8 -U", 9, "Invalid opcode"),
        ("-S -l 64 -n 8 -N -U -a", 5, "Illegal request"),
        ("-l 64 -n 0 -i /tmp/pattern", 5, "Illegal request"),
        // More than MAXIMUM WRITE SAME LENGTH.
        ("-S -l 64 -n 32769 -i /tmp/pattern", 5, "Illegal request"),
        ("-S -l 1048575 -n 2 -i /tmp/pattern", 22, "LBA out of range"),
    ] {
        guest.fails(&format!("sg_write_same {options} /dev/sda"), status, &[says]);
    }
    assert!(disk.came().is_empty());
}

/// What a tool writes as atomic is one atomic write, or one for each piece that it asked for.
pub(crate) fn atomic_writes(guest: &mut Guest, whole: &mut Disk, bounded: &mut Disk) {
    guest.ok("head -c 65536 /dev/urandom >/tmp/data");
    let write = |guest: &mut Guest, options: &str| {
        guest.ok(&format!("sg_write_x --in=/tmp/data {options}"));
    };
    write(guest, "--atomic=0 --lba=1024 --num=32 /dev/sda");
    assert_eq!(whole.came(), ["write 524288+16384 atomic"]);
    write(guest, "--atomic=0 --fua --lba=2048 --num=128 /dev/sda");
    assert_eq!(whole.came(), ["write 1048576+65536 atomic fua"]);
    let read = "dd if=/dev/sda iflag=direct bs=64k skip=16 count=1 2>/dev/null | cmp - /tmp/data";
    guest.ok(read);
    // No alignment is asked for.
    write(guest, "--atomic=0 --lba=1001 --num=3 /dev/sda");
    assert_eq!(whole.came(), ["write 512512+1536 atomic"]);
    write(guest, "--atomic=0 --lba=1024 --num=0 /dev/sda");
    assert!(whole.came().is_empty());
    write(guest, "--normal --lba=1024 --num=32 /dev/sda");
    assert_eq!(whole.came(), ["write 524288+16384"]);

    bounded.came();
    write(guest, "--atomic=32 --lba=1024 --num=32 /dev/sdb");
    assert_eq!(bounded.came(), ["write 524288+16384 atomic"]);
    write(guest, "--atomic=16 --lba=1024 --num=32 /dev/sdb");
    assert_eq!(bounded.came(), ["write 524288+8192 atomic", "write 532480+8192 atomic"]);
    write(guest, "--atomic=0 --lba=1024 --num=8 /dev/sdb");
    assert_eq!(bounded.came(), ["write 524288+4096 atomic"]);
}

/// A reset is told once, and nothing else is lost with it.
pub(crate) fn reset(guest: &mut Guest, disk: &mut Disk) {
    let ready = "sg_raw /dev/sda 00 00 00 00 00 00";
    guest.ok("sg_reset -d /dev/sda");
    let told =
        ["Sense key: Unit Attention", "Additional sense: Bus device reset function occurred"];
    guest.fails(ready, 6, &told);
    guest.says(ready, "SCSI Status: Good");
    guest.ok("sg_reset -d /dev/sda");
    let (_, text) = guest.sh("sg_requests /dev/sda");
    assert!(told.iter().all(|part| text.contains(part)), "{text}");
    guest.says(ready, "SCSI Status: Good");
    // The kernel takes it for what it is, and tries again.
    guest.ok("sg_reset -d /dev/sda");
    guest.ok("dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct");
    guest.says("sg_modes -p 8 /dev/sda", "00     08 12 04 00 00 00 00 00  00 00 00 00 00 00 00 00");
    assert!(disk.came().is_empty());
}
