//! The order of things: legs of one device each, cycles within them.
//!
//! Two devices, one that writes its image and one that records, live from the beginning to the end:
//! theirs is the memory that must not grow. Between their legs come others that are killed all the
//! time, and are made anew for each leg, a recording among them.

use super::blows::{HARD, MILD, Spare};
use super::rest::RESTS;
use super::rig::{
    Device, Dice, Ground, Guest, Load, Part, Result, Store, reconnects, sha256_of, told,
};
use super::tally::Tally;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tornblk::vm::FrontEnd;

/// XFS wants 300 MiB.
const SIZE: u64 = 320 << 20;
/// What fio uses where there is no file system.
const ROOM: u64 = 64 << 20;
const SPARE: Spare = Spare { offset: 128 << 20, len: 64 << 20 };
/// Hashed at each look; all of it at the end of a leg.
const LOOK: u64 = 32 << 20;

/// fio may need so long for the pass that is under way.
const PASS: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    Killed(Store, FrontEnd),
    Steady(usize),
}

/// A device, and the name of its row.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) name: &'static str,
    pub(crate) device: Device,
    dir: PathBuf,
    killed: bool,
}

#[derive(Debug)]
pub(crate) struct Soak {
    pub(crate) ground: Ground,
    pub(crate) tally: Tally,
    dice: Dice,
    dir: PathBuf,
    guest: Option<Guest>,
    guests: u32,
    legs: u32,
    short: bool,
    steady: Vec<Seat>,
    killed: Option<Seat>,
}

impl Soak {
    pub(crate) fn new(dir: &Path, seed: u64) -> Result<Soak> {
        std::fs::create_dir_all(dir).map_err(told("cannot make the soak's folder"))?;
        Ok(Soak {
            ground: Ground::new(),
            tally: Tally::new(),
            dice: Dice(seed),
            dir: dir.to_owned(),
            guest: None,
            guests: 0,
            legs: 0,
            short: false,
            steady: Vec::new(),
            killed: None,
        })
    }

    /// All kinds of legs once, and again until the time is over.
    pub(crate) fn run(&mut self, time: Duration) -> Result<()> {
        let killed = [Store::Recorded, Store::Raw].map(|s| Leg::Killed(s, FrontEnd::Blk));
        // The shortest form is a part of every test run.
        self.short = time.is_zero();
        let mut legs = killed.to_vec();
        if !self.short {
            for (n, (name, store)) in
                [("steady, raw", Store::Raw), ("steady, recorded", Store::Recorded)]
                    .into_iter()
                    .enumerate()
            {
                let dir = self.dir.join(format!("steady-{n}"));
                let device = Device::new(&dir, store, FrontEnd::Blk, SIZE, &[])?;
                self.steady.push(Seat { name, device, dir, killed: false });
            }
            legs = vec![killed[0], Leg::Steady(0), killed[1], Leg::Steady(1)];
            if reconnects(self.ground.qemu(), FrontEnd::Scsi) {
                legs.insert(3, Leg::Killed(Store::Recorded, FrontEnd::Scsi));
            } else {
                let qemu = self.ground.qemu();
                self.tally.note(format!("SCSI is left out: {qemu} does not connect again there"));
            }
        }
        self.new_qemu(None)?;
        loop {
            for leg in &legs {
                let cycles = match leg {
                    _ if self.short => 1,
                    Leg::Killed(..) => 4,
                    // Two, or nothing can be said of its memory.
                    Leg::Steady(_) => 2,
                };
                self.leg(*leg, cycles)?;
                self.tally.grown()?;
                if self.legs as usize >= legs.len() && self.tally.elapsed() >= time {
                    return self.finish();
                }
            }
        }
    }

    fn leg(&mut self, leg: Leg, cycles: u32) -> Result<()> {
        self.legs += 1;
        let mut seat = match leg {
            Leg::Steady(n) => self.steady.remove(n),
            Leg::Killed(store, front_end) => self.new_killed(store, front_end)?,
        };
        let ended = self.cycles(&mut seat, cycles);
        match leg {
            Leg::Steady(n) => self.steady.insert(n, seat),
            Leg::Killed(..) if ended.is_err() => self.killed = Some(seat),
            Leg::Killed(..) => {
                self.retire(&mut seat)?;
                std::fs::remove_dir_all(&seat.dir).map_err(told("cannot tidy"))?;
            }
        }
        ended
    }

    fn new_killed(&mut self, store: Store, front_end: FrontEnd) -> Result<Seat> {
        let name = match (store, front_end) {
            (_, FrontEnd::Scsi) => "killed, SCSI",
            (Store::Raw, _) => "killed, raw",
            (Store::Recorded, _) => "killed, recorded",
        };
        let dir = self.dir.join(format!("killed-{}", self.legs));
        let hold = self.dice.one(&[None, Some("random"), Some("idle"), Some("3")]);
        let seed = self.dice.below(1000).to_string();
        let mut more = vec!["--seed", &seed];
        more.extend(hold.iter().flat_map(|hold| ["--hold-completions", *hold]));
        let device = Device::new(&dir, store, front_end, SIZE, &more)?;
        Ok(Seat { name, device, dir, killed: true })
    }

    fn cycles(&mut self, seat: &mut Seat, cycles: u32) -> Result<()> {
        self.plug(seat)?;
        for _ in 0..cycles {
            self.cycle(seat)?;
        }
        // All of it takes some seconds: not for one cycle.
        if cycles > 1 {
            self.same(seat, Part { offset: 0, len: SIZE })?;
        }
        self.unplug(seat)
    }

    /// Plugs the seat's disk in.
    pub(crate) fn plug(&mut self, seat: &Seat) -> Result<()> {
        match self.guest()?.plug(&seat.device) {
            Err(error) if self.excused(&error) => {
                self.tally.crash(seat.name, &error)?;
                self.new_qemu(Some(&seat.device))
            }
            other => other,
        }
    }

    /// Unplugs it.
    pub(crate) fn unplug(&mut self, seat: &Seat) -> Result<()> {
        match self.guest()?.unplug() {
            Err(error) if self.excused(&error) => {
                self.tally.crash(seat.name, &error)?;
                self.new_qemu(None)?;
                seat.device.another_qemu()
            }
            other => other.map(drop),
        }
    }

    fn excused(&self, error: &str) -> bool {
        self.ground.may_crash() && error.contains("QEMU ended (signal 11)")
    }

    fn cycle(&mut self, seat: &mut Seat) -> Result<()> {
        let start = Instant::now();
        let fs = self.dice.one(&[None, None, Some("ext4"), Some("xfs")]);
        let load = Load::random(&mut self.dice, fs, ROOM);
        let seed = self.dice.below(1 << 30);
        load.start(self.guest()?, seed)?;
        let mut blows = MILD.to_vec();
        if seat.killed {
            blows.extend(HARD);
            blows.extend(HARD);
        }
        self.dice.shuffle(&mut blows);
        blows.truncate(4 + self.dice.below(3) as usize);
        for blow in &blows {
            std::thread::sleep(self.dice.millis(100, 1500));
            let guest = self.guest.as_mut().ok_or("no guest")?;
            let told = blow
                .strike(&mut seat.device, guest, &mut self.dice, fs.is_some(), SPARE)
                .map_err(|e| format!("{blow:?}: {e}"))?;
            for (what, n) in told {
                self.tally.count(seat.name, what, n);
            }
            seat.device.alive()?;
            Load::look(guest).map_err(|e| format!("after {blow:?} of {blows:?}: {e}"))?;
        }
        let done =
            load.end(self.guest()?, PASS).map_err(|e| format!("{e}; {blows:?}; {load:?}"))?;
        let complaints = self.guest()?.complaints()?;
        if !complaints.is_empty() {
            return Err(format!("the guest's kernel complains: {}", complaints.join(" | ")));
        }
        let mut rests = RESTS.to_vec();
        self.dice.shuffle(&mut rests);
        rests.truncate(if self.short { 2 } else { 1 });
        for rest in &rests {
            self.rest(seat, *rest).map_err(|e| format!("{rest:?}: {e}"))?;
        }
        let memory = seat.device.memory()?;
        let row = self.tally.row(seat.name);
        row.cycles += 1;
        row.passes += done.passes;
        row.verified += done.verified;
        if !seat.killed {
            row.memory.push(memory);
        }
        println!(
            "{:>4} s  {}: {} {} depth {}; {blows:?} {rests:?}; {} passes, {} MiB verified; RSS {} KiB, its own {}, {:.0} s",
            self.tally.elapsed().as_secs(),
            seat.name,
            fs.unwrap_or("no fs"),
            load.engine,
            load.depth,
            done.passes,
            done.verified >> 20,
            memory.rss,
            memory.anon,
            start.elapsed().as_secs_f32(),
        );
        Ok(())
    }

    /// A part of the disk, read by the guest and by the host.
    pub(crate) fn same(&mut self, seat: &Seat, part: Part) -> Result<String> {
        let seen = self.guest()?.sha256(part)?;
        let is = sha256_of(&seat.device.content()?, part)?;
        self.tally.count(seat.name, "hashes", 1);
        if seen == is {
            Ok(seen)
        } else {
            Err(format!("of {part:?} the guest reads {seen}, and the host has {is}"))
        }
    }

    pub(crate) fn any_part(&mut self) -> Part {
        Part { offset: self.dice.below(SIZE / LOOK) * LOOK, len: LOOK }
    }

    /// Ends a device that was killed often enough, and looks at what it recorded.
    fn retire(&mut self, seat: &mut Seat) -> Result<()> {
        seat.device.stop()?;
        seat.device.verify()?;
        if seat.device.store() == Store::Recorded {
            let told = seat.device.history()?;
            self.tally.count(seat.name, "requests resumed", told.resumed);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(guest) = self.guest.take() {
            guest.vm.quit();
        }
        for mut seat in std::mem::take(&mut self.steady) {
            self.retire(&mut seat)?;
        }
        Ok(())
    }

    pub(crate) fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().ok_or_else(|| "there is no guest now".to_owned())
    }

    pub(crate) fn take_guest(&mut self) -> Result<Guest> {
        self.guest.take().ok_or_else(|| "there is no guest now".to_owned())
    }

    pub(crate) fn set_guest(&mut self, guest: Guest) {
        self.guest = Some(guest);
    }

    /// The folder of the next guest.
    pub(crate) fn next_guest(&mut self) -> PathBuf {
        self.guests += 1;
        self.dir.join(format!("guest-{}", self.guests))
    }

    /// Kills QEMU, if there is one, and starts another, which gets this disk.
    pub(crate) fn new_qemu(&mut self, disk: Option<&Device>) -> Result<()> {
        if let Some(guest) = self.guest.take() {
            guest.vm.kill();
        }
        let dir = self.next_guest();
        let mut guest = Guest::start(&self.ground, &dir)?;
        if let Some(device) = disk {
            device.another_qemu()?;
            guest.plug(device)?;
        }
        self.guest = Some(guest);
        Ok(())
    }

    /// What may tell why it failed.
    pub(crate) fn evidence(&mut self) -> String {
        let mut text = format!("it is kept in {}\n", self.dir.display());
        for seat in self.steady.iter().chain(&self.killed) {
            text += &format!("{}: {:?}\n", seat.name, seat.device.status());
            text += &last_lines(&seat.device.log());
        }
        if let Some(guest) = &self.guest {
            text += &last_lines(&self.dir.join(format!("guest-{}/qemu.log", self.guests)));
            text += &guest.vm.console_tail();
            text += "\n";
        }
        text
    }

    /// Leaves what is small: the logs, and the verdict.
    pub(crate) fn tidy(&mut self) {
        self.steady.clear();
        for n in 0..2 {
            for file in ["disk.img", "disk.rec", "exported.img"] {
                // Not each has each.
                let _ = std::fs::remove_file(self.dir.join(format!("steady-{n}")).join(file));
            }
        }
    }
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(15);
    lines[from..].iter().map(|line| format!("    {line}\n")).collect()
}
