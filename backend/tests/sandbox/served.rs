//! `tornblkd` itself, with all that can be asked of it while it runs: nothing of it is forbidden.

use crate::common::scsi::DISK;
use crate::guest::{Guest, until};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tornblk_proto::{Client, Match, OpKind, Run, RunSource, StallWhen, Trigger};
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_recorded_disk_does_all_it_can", a_recorded_disk_does_all_it_can),
    ("a_raw_disk_takes_every_request", a_raw_disk_takes_every_request),
    ("a_scsi_disk_does_all_it_can", a_scsi_disk_does_all_it_can),
    ("states_are_shown_and_recorded_on", states_are_shown_and_recorded_on),
    ("a_recording_cut_short_is_survived", a_recording_cut_short_is_survived),
    ("everything_may_lie_in_a_folder_of_its_own", everything_may_lie_in_a_folder_of_its_own),
    ("sockets_in_two_folders_are_both_removed", sockets_in_two_folders_are_both_removed),
    ("who_starts_it_can_do_without", who_starts_it_can_do_without),
    ("every_thread_is_restricted", every_thread_is_restricted),
    ("a_file_elsewhere_is_closed_to_its_threads", a_file_elsewhere_is_closed_to_its_threads),
    ("it_still_dies_with_its_parent", it_still_dies_with_its_parent),
    ("a_folder_of_another_user_stays_open_to_root", a_folder_of_another_user_stays_open_to_root),
    ("a_user_without_privileges_can_run_it", a_user_without_privileges_can_run_it),
];

const OK: u8 = VIRTIO_BLK_S_OK as u8;

pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place::at(tempfile::tempdir().unwrap())
    }

    fn at(dir: TempDir) -> Place {
        std::fs::write(dir.path().join("disk.img"), vec![7; 1 << 20]).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tornblkd"));
        command
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG")
            .env_remove("TORNBLKD_SANDBOX")
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// With both sockets. Waits until a client is answered: the sandbox is entered before that.
    pub(crate) fn start(&self, line: &str) -> Running<'_> {
        let child = self.command(&format!("--socket s --control c {line}")).spawn().unwrap();
        let mut running = Running { place: self, child, client: None };
        until(|| {
            assert!(running.child.try_wait().unwrap().is_none(), "{}", running.log());
            running.place.path("s").exists()
        });
        let client = Client::connect(self.path("c")).unwrap();
        client.status().unwrap();
        running.client = Some(client);
        running
    }
}

pub(crate) struct Running<'a> {
    place: &'a Place,
    child: Child,
    client: Option<Client>,
}

impl Running<'_> {
    fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    pub(crate) fn guest(&self, queues: u16) -> Guest {
        Guest::ready(&self.place.path("s"), queues)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("log")).unwrap()
    }

    /// Ends it in order: nothing went wrong, and no socket is left.
    pub(crate) fn end(mut self) -> String {
        drop(self.client.take());
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("forbidden") && !log.contains("left behind"), "{log}");
        for socket in ["s", "c"] {
            assert!(!self.place.path(socket).exists(), "{log}");
        }
        log
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(guest: &mut Guest, n: usize, sector: u64, data: &[u8]) {
    guest.queues[n].driver.recycle();
    let (_, status) = guest.ask(n, |driver| driver.gives(VIRTIO_BLK_T_OUT, sector, data));
    assert_eq!(status, OK);
}

fn read(guest: &mut Guest, sector: u64) -> Vec<u8> {
    guest.queues[0].driver.recycle();
    let (sent, status) = guest.ask(0, |driver| driver.wants(VIRTIO_BLK_T_IN, sector, 4096));
    assert_eq!(status, OK);
    guest.queues[0].driver.bytes(sent.data, 4096)
}

fn a_recorded_disk_does_all_it_can() {
    let place = Place::new();
    for hold in ["", "--hold-completions random"] {
        let running =
            place.start(&format!("--image disk.img --recording r --profile req16k {hold}"));
        let client = running.client();
        let mut guest = running.guest(2);
        write(&mut guest, 0, 8, &[1; 4096]);
        assert_eq!(read(&mut guest, 8), [1; 4096]);
        for kind in [VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID] {
            let (_, status) = guest.ask(0, |driver| driver.wants(kind, 0, 20 * (kind / 8)));
            assert_eq!(status, OK, "{kind}");
        }
        // Part of a logical block, and more than a segment of the recording holds.
        write(&mut guest, 1, 9, &[2; 512]);
        for n in 0..600u32 {
            write(&mut guest, (n % 2) as usize, 16, &vec![n as u8; 128 << 10]);
        }
        let event = client.mark("here").unwrap().event;

        let which = Match { op: Some(OpKind::Write), ..Match::default() };
        let token = client.stall(which.clone(), StallWhen::BeforeIo).unwrap();
        guest.queues[0].driver.recycle();
        let held = guest.queues[0].driver.gives(VIRTIO_BLK_T_OUT, 0, &[3; 512]);
        guest.kick(0);
        until(|| client.status().unwrap().stalls[0].held == 1);
        assert_eq!(client.release(token).unwrap(), 1);
        guest.wait(0);
        assert_eq!(guest.queues[0].driver.byte(held.status), OK);
        client.release(client.fault("eio,nth=1000").unwrap()).unwrap();

        // A front-end that goes, another that comes, and one too many.
        drop(guest);
        until(|| !client.status().unwrap().connected);
        let mut guest = running.guest(2);
        std::os::unix::net::UnixStream::connect(place.path("s")).unwrap();
        assert_eq!(read(&mut guest, 8)[..512], [1; 512]);
        client.use_state(format!("req16k/p{event}:all")).unwrap();
        write(&mut guest, 0, 8, &[9; 4096]);
        assert_eq!(read(&mut guest, 8), [9; 4096]);
        client.use_state("live").unwrap();
        assert_eq!(read(&mut guest, 8)[..512], [1; 512]);

        let crashed = client.crash_start(Trigger::Submit(which), Some("none"), None, None).unwrap();
        // Answered after it was armed.
        client.status().unwrap();
        guest.queues[1].driver.recycle();
        guest.queues[1].driver.gives(VIRTIO_BLK_T_OUT, 0, &[4; 512]);
        guest.kick(1);
        crashed.wait().unwrap();
        drop(guest);
        until(|| !client.status().unwrap().connected);
        let mut guest = running.guest(1);
        read(&mut guest, 8);
        write(&mut guest, 0, 8, &[5; 4096]);
        client.use_state(format!("req16k/p{event}:none")).unwrap();
        drop(guest);
        let log = running.end();
        assert!(log.contains("sandboxed: seccomp, "), "{log}");
        std::fs::remove_file(place.path("r")).unwrap();
    }
}

fn a_raw_disk_takes_every_request() {
    for cache in ["writeback", "writethrough", "unsafe"] {
        let place = Place::new();
        let running =
            place.start(&format!("--image disk.img --cache {cache} --hold-completions 4"));
        let mut guest = running.guest(2);
        write(&mut guest, 0, 8, &[1; 4096]);
        assert_eq!(read(&mut guest, 8), [1; 4096]);
        let (_, status) = guest.ask(0, |driver| driver.gives(VIRTIO_BLK_T_FLUSH, 0, &[]));
        assert_eq!(status, OK);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            // Sector 8, eight of them, no flags.
            let mut segment = 8u64.to_le_bytes().to_vec();
            segment.extend(8u32.to_le_bytes());
            segment.extend([0; 4]);
            let (_, status) = guest.ask(0, |driver| driver.gives(kind, 0, &segment));
            assert_eq!(status, OK, "{kind}");
        }
        assert_eq!(read(&mut guest, 8), [0; 4096]);
        guest.frontend.reset_device().unwrap();
        drop(guest);
        // Not the sandbox's business.
        let refusal = running.client().record_here(&place.path("r")).unwrap_err().to_string();
        assert!(refusal.contains("--states") && !refusal.contains("sandbox"), "{refusal}");
        running.end();
    }
}

fn a_scsi_disk_does_all_it_can() {
    let place = Place::new();
    let running = place.start("--image disk.img --front-end scsi --recording r --profile lb512");
    let mut guest = running.guest(4);
    let mut command = |n: usize, cdb: &[u8], out: &[u8], room| {
        let sent = guest.queues[n].driver.command(DISK, 1, cdb, out, room);
        guest.kick(n);
        guest.wait(n);
        let reply = guest.queues[n].driver.reply(&sent);
        assert!(reply.good(), "{reply:?}");
        reply.data
    };
    command(2, &[0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0], &[3; 512], 0);
    assert_eq!(command(3, &[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0], &[], 512), [3; 512]);
    // SYNCHRONIZE CACHE, WRITE SAME, UNMAP of nothing.
    command(2, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    command(2, &[0x41, 0, 0, 0, 0, 9, 0, 0, 1, 0], &[0; 512], 0);
    command(2, &[0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[0, 6, 0, 0, 0, 0, 0, 0], 0);
    // A reset of the logical unit: subtype 5 of a task management function.
    let (_, answer) = guest.queues[0].driver.manage(5, DISK, 0);
    guest.kick(0);
    guest.wait(0);
    assert_eq!(guest.queues[0].driver.byte(answer), 0);
    running.client().mark("end").unwrap();
    running.client().crash(Trigger::Now, None, Some(1), None).unwrap();
    drop(guest);
    until(|| !running.client().status().unwrap().connected);
    drop(running.guest(4));
    running.end();
}

/// A recording with a write in it.
fn recorded(place: &Place) -> u64 {
    let running = place.start("--image disk.img --recording r --profile lb512");
    let mut guest = running.guest(1);
    write(&mut guest, 0, 8, &[1; 4096]);
    let event = running.client().mark("written").unwrap().event;
    drop(guest);
    running.end();
    event
}

fn states_are_shown_and_recorded_on() {
    let (place, allowed, elsewhere) = (Place::new(), Place::new(), Place::new());
    let event = recorded(&place);
    let line = format!("--states r --profile lb512 --allow {}", allowed.dir.path().display());
    let running = place.start(&line);
    let client = running.client();
    let mut guest = running.guest(1);
    let outer = format!("lb512/p{event}:all");
    for folder in [&place, &allowed] {
        client.use_state(&outer).unwrap();
        assert_eq!(read(&mut guest, 8), [1; 4096]);
        let file = folder.path("inner");
        client.record_here(&file).unwrap();
        write(&mut guest, 0, 8, &[2; 4096]);
        client.use_state(&outer).unwrap();
        client.recorded_here(&file).unwrap();
        client.use_state(format!("{outer} // lb512/p2:all")).unwrap();
    }
    let run = Run(8, 8, RunSource::Zeroes);
    client.use_content("by hand", None, vec![run]).unwrap();
    assert_eq!(read(&mut guest, 8), [0; 4096]);

    client.use_state(&outer).unwrap();
    // By way of a folder that is open, too: to resolve that takes another call.
    let round = place.path("..").join(elsewhere.dir.path().file_name().unwrap());
    for ask in [Client::record_here, Client::recorded_here] {
        for folder in [elsewhere.dir.path(), &round] {
            let refusal = ask(client, &folder.join("inner")).unwrap_err().to_string();
            let way_out = format!("start it with --allow {}", elsewhere.dir.path().display());
            assert!(refusal.contains(&way_out), "{refusal}");
        }
    }
    assert!(!elsewhere.path("inner").exists());
    drop(guest);
    running.end();
    let running = place.start("--states r --profile lb512 --sandbox off");
    running.client().use_state(&outer).unwrap();
    running.client().record_here(&elsewhere.path("inner")).unwrap();
    assert!(running.end().contains("not sandboxed"));
}

/// What handles SIGBUS maps memory.
fn a_recording_cut_short_is_survived() {
    let place = Place::new();
    let running = place.start("--image disk.img --recording r --profile lb512");
    let mut guest = running.guest(1);
    write(&mut guest, 0, 8, &[1; 4096]);
    std::fs::File::options().write(true).open(place.path("r")).unwrap().set_len(4096).unwrap();
    let (_, status) = guest.ask(0, |driver| driver.gives(VIRTIO_BLK_T_OUT, 8, &[2; 4096]));
    assert_ne!(status, OK);
    running.client().status().unwrap();
    drop(guest);
    running.end();
}

fn everything_may_lie_in_a_folder_of_its_own() {
    let [sockets, other, third] = [(); 3].map(|()| Place::new());
    let (image, recording) = (other.path("disk.img"), third.path("r"));
    let running = sockets.start(&format!(
        "--image {} --recording {} --profile lb512",
        image.display(),
        recording.display()
    ));
    let event = running.client().mark("begun").unwrap().event;
    running.client().use_state(format!("lb512/p{event}:all")).unwrap();
    let mut guest = running.guest(1);
    write(&mut guest, 0, 8, &[1; 4096]);
    assert_eq!(read(&mut guest, 0), [7; 4096]);
    drop(guest);
    running.end();
}

fn sockets_in_two_folders_are_both_removed() {
    let (place, other) = (Place::new(), Place::new());
    let control = other.path("c");
    let line = format!("--socket s --image disk.img --control {}", control.display());
    let child = place.command(&line).spawn().unwrap();
    let mut running = Running { place: &place, child, client: None };
    let client = Client::connect_within(&control, Duration::from_secs(20)).unwrap();
    client.status().unwrap();
    running.client = Some(client);
    running.end();
    assert!(!control.exists());
    assert!(other.path("disk.img").exists());
}

fn who_starts_it_can_do_without() {
    for (variable, option, on) in
        [("off", "", false), ("on", "", true), ("off", "--sandbox on", true)]
    {
        let place = Place::new();
        let mut command =
            place.command(&format!("--socket s --control c --image disk.img {option}"));
        let child = command.env("TORNBLKD_SANDBOX", variable).spawn().unwrap();
        let mut running = Running { place: &place, child, client: None };
        let client = Client::connect_within(place.path("c"), Duration::from_secs(20)).unwrap();
        client.status().unwrap();
        running.client = Some(client);
        let log = running.end();
        assert_eq!(log.contains("INFO ] sandboxed: "), on, "{log}");
        assert_eq!(log.contains("INFO ] not sandboxed: "), !on, "{log}");
    }
}

/// What /proc says of each thread: its name, and the value of `key`.
fn of_threads(pid: u32, key: &str) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
            found.unwrap_or_default().to_owned()
        };
        Some((value("Name"), value(key)))
    };
    tasks.filter_map(of_task).collect()
}

fn every_thread_is_restricted() {
    let none = "0000000000000000";
    let place = Place::new();
    for sandbox in ["on", "off"] {
        let line = "--image disk.img --hold-completions idle --num-queues 3";
        let running = place.start(&format!("{line} --sandbox {sandbox}"));
        let mut guest = running.guest(3);
        for n in 0..3 {
            write(&mut guest, n, 0, &[1; 512]);
        }
        let second = Client::connect(place.path("c")).unwrap();
        second.status().unwrap();
        let pid = running.child.id();
        let names: Vec<String> = of_threads(pid, "Pid").into_iter().map(|(n, _)| n).collect();
        for expected in ["tornblkd", "tornblk-control", "tornblk-client", "tornblk-idle"] {
            assert!(names.iter().any(|name| name.starts_with(expected)), "{names:?}");
        }
        // Itself, control, two clients, who holds back, three queues and the front-end's.
        assert!(names.len() >= 9, "{names:?}");
        for (key, value) in
            [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", none), ("CapPrm", none)]
        {
            let threads = of_threads(pid, key);
            let restricted = threads.iter().filter(|(_, is)| is == value).count();
            if sandbox == "on" {
                assert_eq!(restricted, threads.len(), "{key}: {threads:?}");
            } else if !key.starts_with("Cap") || rustix::process::geteuid().is_root() {
                assert_eq!(restricted, 0, "{key}: {threads:?}");
            }
        }
        if sandbox == "on" && rustix::process::geteuid().is_root() {
            assert!(of_threads(pid, "CapBnd").iter().all(|(_, bound)| bound == none));
        }
        drop(guest);
        running.end();
    }
}

/// What a control client's thread opens by name.
fn a_file_elsewhere_is_closed_to_its_threads() {
    for sandbox in ["on", "off"] {
        let (place, elsewhere) = (Place::new(), Place::new());
        let running = place.start("--image disk.img --recording r --profile lb512");
        let event = running.client().mark("begun").unwrap().event;
        running.end();
        let running = place.start(&format!("--states r --profile lb512 --sandbox {sandbox}"));
        running.client().use_state(format!("lb512/p{event}:all")).unwrap();
        let made = running.client().record_here(&elsewhere.path("inner"));
        if sandbox == "on" {
            let refusal = made.unwrap_err().to_string();
            assert!(refusal.contains("--allow"), "{refusal}");
        } else {
            made.unwrap();
        }
        assert_eq!(elsewhere.path("inner").exists(), sandbox == "off");
        running.end();
    }
}

/// A change of credentials would make the kernel forget what was asked for: prctl(2).
#[allow(unsafe_code)]
fn it_still_dies_with_its_parent() {
    let place = Place::new();
    let started = |sandbox: &str| {
        let line = format!("--socket s --control c --image disk.img --sandbox {sandbox}");
        let mut command = place.command(&line);
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                Ok(rustix::process::set_parent_process_death_signal(signal)?)
            });
        }
        // The kernel means the thread that is the parent.
        let path = place.path("c");
        let parent = std::thread::spawn(move || {
            let child = command.spawn().unwrap();
            // It has its name a moment before it is listened at.
            let patience = Duration::from_secs(20);
            Client::connect_within(&path, patience).unwrap().status().unwrap();
            child
        });
        parent.join().unwrap()
    };
    for sandbox in ["on", "off"] {
        let mut child = started(sandbox);
        let begin = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > Duration::from_secs(10) {
                let _ = child.kill();
                panic!("--sandbox {sandbox}: it lives on");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for left in ["s", "c"] {
            std::fs::remove_file(place.path(left)).unwrap();
        }
    }
}

const SOMEBODY: u32 = 12345;

fn give(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    std::os::unix::fs::chown(path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
}

fn a_folder_of_another_user_stays_open_to_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    give(place.dir.path(), 0o700);
    let running = place.start("--image disk.img --recording r --profile lb512");
    let event = running.client().mark("begun").unwrap().event;
    // Needs a file in that folder.
    running.client().use_state(format!("lb512/p{event}:all")).unwrap();
    let mut guest = running.guest(1);
    write(&mut guest, 0, 8, &[1; 4096]);
    // CAP_DAC_OVERRIDE is number 1.
    let left = "0000000000000002";
    let threads = of_threads(running.child.id(), "CapPrm");
    assert!(threads.iter().all(|(_, capabilities)| capabilities == left), "{threads:?}");
    drop(guest);
    let log = running.end();
    assert!(log.contains("CAP_DAC_OVERRIDE, without which"), "{log}");
}

fn a_user_without_privileges_can_run_it() {
    let place = Place::at(crate::common::anybody::folder());
    let mut command = place.command("--socket s --control c --image disk.img --recording r");
    if rustix::process::geteuid().is_root() {
        give(place.dir.path(), 0o700);
        give(&place.path("disk.img"), 0o600);
        // The program itself may lie where only root comes.
        std::fs::copy(env!("CARGO_BIN_EXE_tornblkd"), place.path("tornblkd")).unwrap();
        command = Command::new(place.path("tornblkd"));
        command
            .current_dir(place.dir.path())
            .args("--socket s --control c --image disk.img --recording r".split(' '))
            .stderr(std::fs::File::create(place.path("log")).unwrap())
            .uid(SOMEBODY)
            .gid(SOMEBODY);
    }
    let child = command.spawn().unwrap();
    let mut running = Running { place: &place, child, client: None };
    until(|| {
        assert!(running.child.try_wait().unwrap().is_none(), "{}", running.log());
        place.path("s").exists()
    });
    running.client = Some(Client::connect(place.path("c")).unwrap());
    let mut guest = running.guest(1);
    write(&mut guest, 0, 8, &[1; 4096]);
    let threads = of_threads(running.child.id(), "Seccomp");
    assert!(threads.iter().all(|(_, mode)| mode == "2"), "{threads:?}");
    drop(guest);
    assert!(running.end().contains("no capabilities"));
}
