//! What dies under a stock guest, and comes back: the device, killed under load and started again at
//! the same socket; QEMU, replaced by another one. And what must end although requests are held:
//! a guest that is stopped, a disk that is unplugged, a QEMU that quits.
//!
//! `ci/soak` does more of it for longer.
#![allow(clippy::unwrap_used)]

mod rig;

use rig::{Device, Dice, Ground, Guest, Load, Part, Store, history, sha256_of, wait_until};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tornblk::vm::FrontEnd;
use tornblk_proto::{Match, OpKind, StallWhen};

const SIZE: u64 = 64 << 20;

/// A command that must end although requests are held: far below what QEMU or a person would wait.
const SOON: Duration = Duration::from_secs(5);

const PASS: Duration = Duration::from_secs(120);

fn ground() -> &'static Ground {
    static GROUND: OnceLock<Ground> = OnceLock::new();
    GROUND.get_or_init(Ground::new)
}

/// A disk, its device, and a guest that has it.
struct Bench {
    guest: Option<Guest>,
    device: Device,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(store: Store, more: &[&str]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let device = Device::new(&dir.path().join("disk"), store, FrontEnd::Blk, SIZE, more);
        let mut bench = Bench { guest: None, device: device.unwrap(), dir };
        bench.new_qemu();
        bench
    }

    fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().unwrap()
    }

    /// A new QEMU, on the same device.
    fn new_qemu(&mut self) {
        let mut guest = Guest::start(ground(), &self.dir.path().join("guest")).unwrap();
        self.device.another_qemu().unwrap();
        guest.plug(&self.device).unwrap();
        self.guest = Some(guest);
    }

    fn load(&mut self, seed: u64) -> Load {
        let load = Load { depth: 16, fs: None, ..Load::random(&mut Dice(seed), None, SIZE / 2) };
        let writes = |device: &Device| rig::Result::Ok(device.status()?.counters.writes);
        let before = writes(&self.device).unwrap();
        load.start(self.guest(), seed).unwrap();
        // Now it does something.
        wait_until("requests", PASS, || Ok((writes(&self.device)? > before + 32).then_some(())))
            .unwrap();
        load
    }

    /// Holds every write, until some are held; gives the token.
    fn hold_writes(&self) -> u64 {
        let which = Match { op: Some(OpKind::Write), ..Match::default() };
        let token = self.device.stall(which, StallWhen::BeforeIo).unwrap();
        self.until_held(1);
        token
    }

    fn until_held(&self, n: u64) {
        wait_until("requests to hold", PASS, || Ok((self.device.held()? >= n).then_some(())))
            .unwrap();
    }

    /// No verification failed, no request did, and guest and host see the same disk.
    fn all_is_well(&mut self, load: &Load) -> String {
        let done = load.end(self.guest(), PASS).unwrap();
        assert!(done.passes > 0 && done.verified > 0, "{done:?}");
        self.device.alive().unwrap();
        assert_eq!(self.guest().complaints().unwrap(), Vec::<String>::new());
        self.same()
    }

    /// Guest and host see the same disk: its SHA-256.
    fn same(&mut self) -> String {
        let all = Part { offset: 0, len: SIZE };
        let seen = self.guest().sha256(all).unwrap();
        assert_eq!(seen, sha256_of(&self.device.content().unwrap(), all).unwrap());
        seen
    }

    /// Kills the device and starts it again; QEMU connects to it.
    fn again(&mut self) {
        self.device.kill().unwrap();
        self.device.verify().unwrap();
        self.device.start().unwrap();
        self.device.connected().unwrap();
    }

    /// The guest, asked for the last time, for its QEMU to be ended.
    fn last_of_guest(&mut self) -> Guest {
        let mut guest = self.guest.take().unwrap();
        guest.no_complaints().unwrap();
        guest
    }

    /// What the recording says of it.
    fn history(mut self) -> history::Resumed {
        self.last_of_guest().vm.quit();
        self.device.stop().unwrap();
        self.device.verify().unwrap();
        self.device.history().unwrap()
    }
}

#[test]
fn a_guest_is_stopped_and_continued_while_requests_are_held() {
    let mut bench = Bench::new(Store::Recorded, &[]);
    let load = bench.load(1);
    let token = bench.hold_writes();
    let start = Instant::now();
    bench.guest().vm.pause().unwrap();
    assert!(start.elapsed() < SOON, "`stop` took {:?}", start.elapsed());
    assert_eq!(bench.device.status().unwrap().in_flight, 0, "after `stop`");
    let start = Instant::now();
    bench.guest().vm.resume().unwrap();
    assert!(start.elapsed() < SOON, "`cont` took {:?}", start.elapsed());
    // The stall goes on for what comes now.
    bench.until_held(1);
    assert!(bench.device.release(token).unwrap() > 0);
    bench.all_is_well(&load);
}

/// The guest's own driver waits for its requests before it lets the disk go: no device can end that
/// but by answering. Once it does, the rest is quick.
#[test]
fn a_disk_is_unplugged_while_a_request_is_held() {
    let mut bench = Bench::new(Store::Raw, &[]);
    let which = Match { op: Some(OpKind::Read), ..Match::default() };
    let token = bench.device.stall(which, StallWhen::BeforeIo).unwrap();
    let device = bench.guest().path().to_owned();
    let read = format!("dd if={device} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null &");
    bench.guest().sh(&read).unwrap();
    bench.until_held(1);
    let held = Duration::from_secs(2);
    let Bench { guest, device, .. } = &mut bench;
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(held);
            assert_eq!(device.release(token).unwrap(), 1);
        });
        guest.as_mut().unwrap().unplug().unwrap()
    });
    assert!(took < held + SOON, "`device_del` took {took:?}");
    bench.device.alive().unwrap();
    let Bench { guest, device, .. } = &mut bench;
    let guest = guest.as_mut().unwrap();
    guest.plug(device).unwrap();
    guest.sh(&format!("dd if={} of=/dev/null bs=4k count=1 iflag=direct", guest.path())).unwrap();
}

#[test]
fn qemu_quits_while_requests_are_held_and_another_one_goes_on() {
    let mut bench = Bench::new(Store::Recorded, &[]);
    bench.load(3);
    bench.hold_writes();
    let guest = bench.last_of_guest();
    let start = Instant::now();
    guest.vm.quit();
    // It is killed after five seconds.
    assert!(start.elapsed() < Duration::from_secs(4), "`quit` took {:?}", start.elapsed());
    bench.device.alive().unwrap();
    bench.device.another_qemu().unwrap();
    assert_eq!(bench.device.status().unwrap().in_flight, 0);
    let token = bench.device.status().unwrap().stalls[0].token;
    bench.device.release(token).unwrap();
    bench.new_qemu();
    let load = bench.load(4);
    bench.all_is_well(&load);
    assert_eq!(bench.device.starts, 1);
}

#[test]
fn qemu_is_killed_and_another_one_finds_the_disk_as_it_was() {
    for store in [Store::Raw, Store::Recorded] {
        let mut bench = Bench::new(store, &[]);
        let load = bench.load(5);
        let before = bench.all_is_well(&load);
        bench.last_of_guest().vm.kill();
        bench.new_qemu();
        assert_eq!(bench.same(), before);
        // Under load: whatever the disk has now, both see it.
        bench.load(6);
        bench.last_of_guest().vm.kill();
        bench.new_qemu();
        assert_ne!(bench.same(), before);
        let load = bench.load(7);
        bench.all_is_well(&load);
        assert_eq!(bench.device.starts, 1);
    }
}

#[test]
fn a_device_is_killed_under_load_again_and_again() {
    let mut dice = Dice(8);
    let mut bench = Bench::new(Store::Recorded, &["--hold-completions", "random"]);
    let load = bench.load(8);
    for n in 0..8 {
        std::thread::sleep(dice.millis(50, 700));
        // Whether a kill at any moment leaves something behind is luck: these do.
        if n % 4 == 3 {
            bench.hold_writes();
        }
        bench.again();
    }
    bench.all_is_well(&load);
    let told = bench.history();
    assert!(told.restarts == 8 && told.resumed >= 2, "{told:?}");
}

#[test]
fn a_device_is_killed_when_its_first_request_is_held_and_later_ones_are_done() {
    let mut bench = Bench::new(Store::Recorded, &[]);
    let load = bench.load(9);
    for when in [StallWhen::BeforeIo, StallWhen::BeforeCompletion] {
        for op in [OpKind::Write, OpKind::Read] {
            let which = Match { op: Some(op), nth: Some(1), ..Match::default() };
            bench.device.stall(which, when).unwrap();
            bench.until_held(1);
            let at = bench.device.status().unwrap().counters;
            wait_until("later requests", PASS, || {
                let now = bench.device.status()?.counters;
                Ok((now.reads + now.writes >= at.reads + at.writes + 4).then_some(()))
            })
            .unwrap();
            bench.again();
        }
    }
    bench.all_is_well(&load);
    let told = bench.history();
    assert!(told.restarts == 4 && told.resumed >= 4, "{told:?}");
}

#[test]
fn a_disk_grows_while_the_guest_uses_it() {
    let mut bench = Bench::new(Store::Raw, &[]);
    let load = bench.load(10);
    let grown = SIZE + (32 << 20);
    let file = std::fs::File::options().write(true).open(bench.device.image()).unwrap();
    file.set_len(grown).unwrap();
    assert_eq!(bench.device.client().unwrap().resize().unwrap(), grown);
    let name = bench.guest().name().to_owned();
    let sectors = format!("cat /sys/block/{name}/size");
    wait_until("the guest sees a larger disk", SOON, || {
        let seen: u64 = bench.guest.as_mut().unwrap().sh(&sectors)?.trim().parse().unwrap();
        Ok((seen == grown / 512).then_some(()))
    })
    .unwrap();
    // The new part is there, to be written and read.
    let last = (grown >> 20) - 1;
    bench
        .guest()
        .sh(&format!(
            "dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null
             dd if=/tmp/noise of=/dev/{name} bs=1M seek={last} oflag=direct 2>/dev/null
             dd if=/dev/{name} bs=1M skip={last} iflag=direct 2>/dev/null | cmp - /tmp/noise"
        ))
        .unwrap();
    bench.all_is_well(&load);
    // It is as large when it was killed and started again.
    bench.again();
    assert_eq!(bench.guest().sh(&sectors).unwrap().trim(), (grown / 512).to_string());
}
