//! Boots guests: the image is built (the first time from the network, into the user's cache), the
//! agent answers, a disk comes and goes, the state is saved and restored, and every way in which a
//! guest can end is told as what it is.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::{Duration, Instant};

use tornblk::vm::process::Process;
use tornblk::vm::{Accel, BOOT_TIMEOUT, FrontEnd, Host, NoHost, Qemu, Vm, VmConfig, VmError};
use tornblk_agent::channel::{Command, MarkText, Outcome};
use tornblk_image::{Image, Request, build};

const PATIENCE: Duration = Duration::from_secs(120);

/// A size that no suite asks for, nor another run of this test at the same time: the saved state of
/// this size is this test's own.
fn memory_mib() -> u32 {
    520 + std::process::id() % 89
}

#[test]
fn a_guest_boots_and_ends_in_every_way() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::find().unwrap();
    let accel = Accel::probe(&qemu, &image, None);
    let config = VmConfig {
        image: &image,
        qemu,
        accel,
        memory_mib: memory_mib(),
        cpus: 2,
        dir: dir.path(),
        use_saved: false,
        append: None,
        gdb: None,
        stop: None,
    };
    let mut vm = Vm::boot(&config, BOOT_TIMEOUT).unwrap();
    assert_eq!(vm.ping(PATIENCE).unwrap(), image.release);
    a_disk_comes_and_goes(&mut vm, dir.path());
    stopping_ends_the_wait(&mut vm);
    let process = PathBuf::from(format!("/proc/{}", vm.pid()));
    assert!(process.exists());
    vm.kill();
    assert!(!process.exists());

    let saved = VmConfig { use_saved: true, ..config };
    let before = states(&image);
    let vm = Vm::start(&saved).unwrap();
    vm.quit();
    let made: Vec<_> = states(&image).into_iter().filter(|s| !before.contains(s)).collect();
    assert_eq!(made.len(), 1, "one state is made");
    let mut vm = Vm::start(&saved).unwrap();
    // The file systems are there, and no module is loaded after the disk came.
    let modules = ok(exec(&mut vm, &["/bin/cat", "/proc/filesystems"]));
    assert!(modules.contains("xfs") && modules.contains("ext4"), "{modules}");
    a_disk_comes_and_goes(&mut vm, dir.path());
    a_panic_is_told(vm);
    let vm = Vm::start(&saved).unwrap();
    assert_eq!(states(&image).iter().filter(|s| made.contains(s)).count(), 1, "it was used");
    a_death_of_qemu_is_told(vm);
    a_state_that_is_damaged_is_made_again(&saved, &made[0].0);
    for (path, _) in made {
        for suffix in ["state", "lock"] {
            std::fs::remove_file(path.with_extension(suffix)).unwrap();
        }
    }
}

fn image() -> Image {
    if tornblk_image::agent::find(None).is_err() {
        run(Program::new(root().join("images/build-agent")).arg("--quiet"));
    }
    let request = Request::new(tornblk_image::DEFAULT_KERNEL.parse().unwrap());
    let first = build(&request, &mut |doing| println!("{doing}")).unwrap();
    let second = build(&request, &mut |doing| panic!("built again: {doing}")).unwrap();
    assert_eq!(first.key, second.key);
    first
}

/// Saved states: path, and when it was made.
fn states(image: &Image) -> Vec<(PathBuf, std::time::SystemTime)> {
    let entries = std::fs::read_dir(image.dir.join("saved")).into_iter().flatten().flatten();
    entries
        .filter(|e| e.path().extension().is_some_and(|x| x == "state"))
        .map(|e| (e.path(), e.metadata().unwrap().modified().unwrap()))
        .collect()
}

fn a_disk_comes_and_goes(vm: &mut Vm, dir: &Path) {
    let disk_file = dir.join("disk");
    std::fs::File::create(&disk_file).unwrap().set_len(400 << 20).unwrap();
    let socket = dir.join("disk.sock");
    for round in ["first", "second"] {
        let _backend = backend(&disk_file, &socket, dir);
        let disk = vm.attach_disk(&socket, "boot-test", 2, FrontEnd::Blk).unwrap();
        let device = disk.device.clone();
        if round == "first" {
            ok(exec(vm, &["/usr/sbin/mkfs.xfs", "-q", &device]));
        }
        ok(exec(vm, &["/bin/mount", "-t", "xfs", &device, "/mnt"]));
        if round == "first" {
            ok(exec(vm, &["/bin/sh", "-c", "echo round one > /mnt/file"]));
        } else {
            assert_eq!(ok(exec(vm, &["/bin/cat", "/mnt/file"])), "round one\n");
        }
        ok(exec(vm, &["/bin/umount", "/mnt"]));
        vm.detach_disk(disk).unwrap();
    }
    let error = vm.attach_disk(&dir.join("nobody.sock"), "x", 1, FrontEnd::Blk).unwrap_err();
    assert!(matches!(error, VmError::Attach { .. }), "{error}");
    assert!(error.to_string().contains("nobody.sock"), "{error}");
    std::fs::remove_file(disk_file).unwrap();
}

fn backend(disk: &Path, socket: &Path, dir: &Path) -> Process {
    let target = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let program = target.join("tornblkd");
    if !program.exists() {
        run(Program::new("cargo").args([
            "build",
            "-q",
            "-p",
            "tornblk-backend",
            "--bin",
            "tornblkd",
        ]));
    }
    let _ = std::fs::remove_file(socket);
    let args = ["--serial", "boot-test", "--image"].map(Into::into).into_iter();
    let args = args.chain([disk.into(), "--socket".into(), socket.into()]).collect();
    let mut backend = Process::spawn(&program, args, &[], &dir.join("tornblkd.log")).unwrap();
    let start = Instant::now();
    while !socket.exists() {
        assert_eq!(backend.ended(), None, "{}", backend.words());
        assert!(start.elapsed() < PATIENCE, "{}", backend.words());
        std::thread::sleep(Duration::from_millis(5));
    }
    backend
}

fn stopping_ends_the_wait(vm: &mut Vm) {
    struct Impatient(u32);
    impl Host for Impatient {
        fn marks(&mut self, _: &[MarkText]) -> Result<(), String> {
            Ok(())
        }
        fn progress(&mut self, _: &str) {}
        fn stop(&mut self) -> bool {
            self.0 += 1;
            self.0 > 20
        }
    }
    let argv = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let sleep = Command::Exec { argv, timeout_ms: 1_000_000 };
    let error = vm.call(sleep, &mut Impatient(0), Instant::now() + PATIENCE).unwrap_err();
    assert!(matches!(error, VmError::Stopped), "{error}");
}

fn a_panic_is_told(mut vm: Vm) {
    let error = exec(&mut vm, &["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"]).unwrap_err();
    assert!(matches!(&error, VmError::Panic { line, .. } if line.contains("sysrq")), "{error}");
}

fn a_death_of_qemu_is_told(mut vm: Vm) {
    run(Program::new("/bin/kill").args(["-9", &vm.pid().to_string()]));
    let error = vm.ping(PATIENCE).unwrap_err();
    assert!(matches!(&error, VmError::Exited { status, .. } if status == "signal 9"), "{error}");
}

fn a_state_that_is_damaged_is_made_again(config: &VmConfig<'_>, state: &Path) {
    let whole = std::fs::metadata(state).unwrap().len();
    std::fs::File::options().write(true).open(state).unwrap().set_len(whole / 2).unwrap();
    // The guest is there all the same.
    let mut vm = Vm::start(config).unwrap();
    assert_eq!(vm.ping(PATIENCE).unwrap(), config.image.release);
    vm.quit();
    Vm::start(config).unwrap().quit();
    assert!(std::fs::metadata(state).unwrap().len() > whole / 2);
}

fn exec(vm: &mut Vm, argv: &[&str]) -> Result<Outcome, VmError> {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    let timeout_ms = PATIENCE.as_millis() as u64;
    vm.call(Command::Exec { argv, timeout_ms }, &mut NoHost, Instant::now() + PATIENCE)
}

/// What the program wrote; it must have ended well.
fn ok(outcome: Result<Outcome, VmError>) -> String {
    match outcome.unwrap() {
        Outcome::Ok { value } if value["status"] == 0 => {
            value["stdout"].as_str().unwrap().to_owned()
        }
        other => panic!("{other:?}"),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn run(program: &mut Program) {
    let status = program.current_dir(root()).status().unwrap();
    assert!(status.success(), "{program:?}: {status}");
}
