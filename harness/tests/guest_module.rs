//! The guest module on stock kernels: the limits that a disk has in byte 33 of its configuration
//! space become queue limits, and what cannot be is refused with an errno and a sentence.
//!
//! With a QEMU that lets all of a device through (from 10.2 on), the fields behind the feature bit
//! are tried, too. The default kernel; `$TORNBLK_KERNELS` (such as `6.12,7.3`) names more. Needs QEMU, and guest
//! images, which are built where missing.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tornblk::vm::{Accel, FrontEnd, NoHost, Qemu, Vm, VmConfig};
use tornblk_agent::channel::{Command, Outcome};

const EINVAL: i64 = 22;

/// A running tornblkd.
struct Backend(Child);

impl Backend {
    fn start(dir: &Path, serial: &str, options: &[&str]) -> Backend {
        let image = dir.join(format!("{serial}.img"));
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let socket = dir.join(format!("{serial}.sock"));
        let child = Process::new(tornblk::device::find_tornblkd().unwrap())
            .arg("--socket")
            .arg(&socket)
            .arg("--image")
            .arg(image)
            .args(["--serial", serial])
            .args(options)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "tornblkd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Backend(child)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest with the module's path.
struct Guest {
    vm: Vm,
    module: String,
}

impl Guest {
    fn call(&mut self, command: Command) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(120);
        self.vm.call(command, &mut NoHost, deadline).unwrap()
    }

    fn attach(&mut self, dir: &Path, serial: &str, front_end: FrontEnd, device: &str) {
        let socket = dir.join(format!("{serial}.sock"));
        let disk = self.vm.attach_disk(&socket, serial, 1, front_end).unwrap();
        assert_eq!(disk.device, format!("/dev/{device}"));
        assert_eq!(disk.info["queue"]["atomic_write_unit_max_bytes"], 0, "before the module");
    }

    /// Status and all that it wrote.
    fn sh(&mut self, line: &str) -> (i64, String) {
        let argv = ["sh", "-c", line].map(String::from).to_vec();
        match self.call(Command::Exec { argv, timeout_ms: 100_000 }) {
            Outcome::Ok { value } => {
                let text = |name: &str| value[name].as_str().unwrap().to_owned();
                (value["status"].as_i64().unwrap(), text("stdout") + &text("stderr"))
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    /// What the module said since the last time.
    fn said(&mut self) -> String {
        let (status, text) = self.sh("dmesg -c | sed -n 's/.*tornblk_atomic: //p'");
        assert_eq!(status, 0, "{text}");
        text
    }

    fn load(&mut self, params: &str) -> Outcome {
        let (path, params) = (self.module.clone(), params.to_owned());
        self.call(Command::LoadModule { path, params })
    }

    /// Sets a parameter of the loaded module; the errno where that fails.
    fn set(&mut self, parameter: &str, value: &str) -> Result<(), i64> {
        let path = format!("/sys/module/tornblk_atomic/parameters/{parameter}");
        match self.call(Command::Tune { set: vec![(path, value.to_owned())] }) {
            Outcome::Ok { .. } => Ok(()),
            Outcome::Failed { errno: Some(errno), .. } => Err(errno.into()),
            other => panic!("{parameter}={value}: {other:?}"),
        }
    }

    /// unit_min, unit_max, max and boundary, in bytes, as sysfs tells them.
    fn limits(&mut self, device: &str) -> [u64; 4] {
        ["unit_min", "unit_max", "max", "boundary"].map(|name| {
            let path = format!("/sys/block/{device}/queue/atomic_write_{name}_bytes");
            match self.call(Command::ReadFile { path }) {
                Outcome::Ok { value } => value["text"].as_str().unwrap().trim().parse().unwrap(),
                other => panic!("{device} {name}: {other:?}"),
            }
        })
    }

    /// One write at the start of the disk with RWF_ATOMIC and O_DIRECT.
    fn write(&mut self, device: &str, size: &str) -> (i64, String) {
        self.sh(&format!("xfs_io -d -c 'pwrite -A -D -V 1 -b {size} 0 {size}' /dev/{device}"))
    }
}

#[test]
fn a_stock_disk_gets_the_limits_that_it_tells() {
    let more = std::env::var("TORNBLK_KERNELS").unwrap_or_default();
    let more = more.split(',').map(str::trim).filter(|k| !k.is_empty());
    for kernel in [tornblk_image::DEFAULT_KERNEL].into_iter().chain(more) {
        on(kernel);
    }
}

fn on(kernel: &str) {
    let request = tornblk_image::Request::new(kernel.parse().unwrap());
    let image = tornblk_image::build(&request, &mut |doing| eprintln!("{doing}")).unwrap();
    eprintln!("{}", image.release);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let qemu = Qemu::find().unwrap();
    let whole = qemu.has_test_device();
    let accel = Accel::probe(&qemu, &image, tornblk_image::cache::default_dir().ok().as_deref());
    let vm = Vm::start(&VmConfig {
        image: &image,
        qemu,
        accel,
        memory_mib: 512,
        cpus: 1,
        dir,
        append: None,
        gdb: None,
        use_saved: false,
        stop: None,
    })
    .unwrap();
    // A host that cannot compile it is no host for this test.
    let mut guest = Guest { vm, module: image.guest_module().unwrap().to_owned() };
    let _first = Backend::start(dir, "first", &["--atomic-unit-max", "64k"]);
    let options = ["--logical-block-size", "4k", "--atomic-unit-max", "16k"];
    let _second = Backend::start(dir, "second", &options);
    let _plain = Backend::start(dir, "plain", &[]);
    for (serial, device) in [("first", "vda"), ("second", "vdb"), ("plain", "vdc")] {
        guest.attach(dir, serial, FrontEnd::Blk, device);
    }
    guest.said();

    limits_are_set(&mut guest);
    a_boundary_is_a_parameter(&mut guest);
    what_cannot_be_is_refused(&mut guest);
    if whole {
        let options = "--atomic-unit-min 4k --atomic-unit-max 16k --atomic-max-bytes 32k \
                       --atomic-boundary 64k";
        let options: Vec<&str> = options.split_whitespace().collect();
        let _full = Backend::start(dir, "full", &options);
        guest.attach(dir, "full", FrontEnd::BlkFull, "vdd");
        fields_come_first(&mut guest);
    }
    // None of that has changed what was set.
    assert_eq!(guest.limits("vda"), [512, 65536, 65536, 0]);
    let (_, log) = guest.sh("dmesg -r | grep -E '^<[0-4]>.*(WARNING|BUG|Oops)'");
    assert_eq!(log, "");
    guest.vm.quit();
}

fn limits_are_set(guest: &mut Guest) {
    // A write that asks for more than there is, is refused; nothing else changes at this disk.
    assert_ne!(guest.write("vda", "16k").0, 0);
    let failed = guest.load("disk=vdc");
    assert!(matches!(failed, Outcome::Failed { errno: Some(95), .. }), "{failed:?}");
    assert!(guest.said().contains("vdc: the device gives no atomic-write limits"));

    assert_eq!(guest.load("disk=vda"), Outcome::Ok { value: json!({}) });
    assert_eq!(guest.limits("vda"), [512, 65536, 65536, 0]);
    let said = guest.said();
    let wanted =
        "vda: atomic writes of 512 to 65536 bytes, at most 65536 in a request, boundary 0\n";
    assert_eq!(said, wanted);
    let statx = guest.call(Command::StatAtomic { path: "/dev/vda".into() });
    let Outcome::Ok { value: Value::Object(statx) } = statx else { panic!("{statx:?}") };
    assert_eq!((&statx["unit_min"], &statx["unit_max"]), (&json!(512), &json!(65536)));
    for size in ["16k", "64k"] {
        let (status, said) = guest.write("vda", size);
        assert_eq!(status, 0, "{size}: {said}");
    }
    let (status, said) = guest.write("vda", "128k");
    assert!(status != 0 && said.contains("Invalid argument"), "{said}");
}

fn a_boundary_is_a_parameter(guest: &mut Guest) {
    guest.set("boundary", "65536").unwrap();
    guest.set("disk", "vdb").unwrap();
    assert_eq!(guest.limits("vdb"), [4096, 16384, 16384, 65536]);
    assert_eq!(guest.write("vdb", "16k").0, 0);
    // Again, with none.
    guest.set("boundary", "0").unwrap();
    guest.set("disk", "/dev/vdb").unwrap();
    assert_eq!(guest.limits("vdb"), [4096, 16384, 16384, 0]);
    guest.said();
    for boundary in ["12345", "8192"] {
        guest.set("boundary", boundary).unwrap();
        assert_eq!(guest.set("disk", "vdb"), Err(EINVAL));
        let said = guest.said();
        assert!(said.contains("vdb: unusable limits: the boundary must"), "{said}");
    }
    guest.set("boundary", "0").unwrap();
    assert_eq!(guest.limits("vdb"), [4096, 16384, 16384, 0]);
}

/// Byte 33 of this disk has neither its longest request nor its boundary.
fn fields_come_first(guest: &mut Guest) {
    guest.set("boundary", "131072").unwrap();
    guest.set("disk", "vdd").unwrap();
    assert_eq!(guest.limits("vdd"), [4096, 16384, 32768, 65536]);
    let said = guest.said();
    assert!(said.contains("vdd: boundary=131072 is not used"), "{said}");
    assert_eq!(guest.write("vdd", "16k").0, 0);
    assert_ne!(guest.write("vdd", "32k").0, 0);
}

fn what_cannot_be_is_refused(guest: &mut Guest) {
    let (status, text) = guest.sh("echo 2048,8192 | sfdisk -q /dev/vda && ls /dev/vda1");
    assert_eq!(status, 0, "{text}");
    let (status, text) = guest.sh("modprobe loop 2>/dev/null; test -b /dev/loop0");
    assert_eq!(status, 0, "{text}");
    for (disk, errno, sentence) in [
        ("vdc", 95, "vdc: the device gives no atomic-write limits (byte 33 of its configuration"),
        ("vda1", EINVAL, "vda1: a partition has the limits of its disk: give vda"),
        ("loop0", 19, "loop0: not a virtio-blk disk"),
        ("vdz", 2, "vdz: cannot open /dev/vdz: "),
        ("a-name-that-no-disk-can-have-because-of-its-length", EINVAL, "not the name of a disk"),
        ("/dev/", EINVAL, "not the name of a disk"),
    ] {
        assert_eq!(guest.set("disk", disk), Err(errno), "{disk}");
        let said = guest.said();
        assert!(said.contains(sentence) && said.lines().count() == 1, "{disk}: {said}");
    }
    // The last that was set stands there.
    let path = "/sys/module/tornblk_atomic/parameters/disk".to_owned();
    let read = guest.call(Command::ReadFile { path });
    assert_eq!(read, Outcome::Ok { value: json!({ "text": "vdb\n" }) });
}
