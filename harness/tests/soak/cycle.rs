//! The order of things: legs of one device each, cycles within them.
//!
//! Two devices, one that writes its image and one that records, live from the beginning to the end:
//! theirs is the memory that must not grow. Between their legs come others that are killed all the
//! time, and are made anew for each leg, a recording among them.

use super::blows::Spare;
use super::plan::{self, Cycle};
use super::rig::{
    Device, Dice, Ground, Guest, Load, Part, Result, Store, reconnects, sha256_of, told,
};
use super::tally::{Tally, WARM, due};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tornblk::vm::FrontEnd;

/// XFS wants 300 MiB.
const SIZE: u64 = 320 << 20;
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
    /// The shortest form, which is a part of every test run: a cycle each.
    short: Option<std::array::IntoIter<Cycle, 2>>,
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
            short: None,
            steady: Vec::new(),
            killed: None,
        })
    }

    /// All kinds of legs once, and again until the time is over.
    pub(crate) fn run(&mut self, time: Duration) -> Result<()> {
        let killed = [Store::Recorded, Store::Raw].map(|s| Leg::Killed(s, FrontEnd::Blk));
        let mut legs = killed.to_vec();
        if time.is_zero() {
            self.short = Some(plan::shortest(&mut self.dice, &looks()).into_iter());
        } else {
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
                self.leg(*leg)?;
                self.tally.grown()?;
                if self.legs as usize >= legs.len() && self.tally.elapsed() >= time {
                    return self.finish();
                }
            }
        }
    }

    /// What was to be done and was not: then it says nothing that all is well.
    pub(crate) fn lacks(&self) -> Vec<String> {
        self.tally.lacks(self.short.is_some())
    }

    fn leg(&mut self, leg: Leg) -> Result<()> {
        self.legs += 1;
        let mut seat = match leg {
            Leg::Steady(n) => self.steady.remove(n),
            Leg::Killed(store, front_end) => self.new_killed(store, front_end)?,
        };
        let (recorded, scsi) =
            (seat.device.store() == Store::Recorded, seat.device.front_end() == FrontEnd::Scsi);
        self.tally.row(seat.name).due = due(seat.killed, recorded, scsi);
        let plan = match &mut self.short {
            Some(cycles) => cycles.take(1).collect(),
            None if seat.killed => plan::leg(&mut self.dice, true, 4, &looks()),
            // One until it is warm, or nothing can be said of its memory.
            None => plan::leg(&mut self.dice, false, WARM as u32 + 2, &looks()),
        };
        let ended = self.cycles(&mut seat, plan);
        if let Leg::Steady(n) = leg {
            self.steady.insert(n, seat);
            return ended;
        }
        // It stays there for `evidence` until nothing can go wrong any more.
        let Soak { killed, tally, .. } = self;
        let seat = killed.insert(seat);
        ended?;
        retire(tally, seat)?;
        std::fs::remove_dir_all(&seat.dir).map_err(told("cannot tidy"))?;
        *killed = None;
        Ok(())
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

    fn cycles(&mut self, seat: &mut Seat, plan: Vec<Cycle>) -> Result<()> {
        self.plug(seat)?;
        // All of it takes some seconds: not for one cycle.
        let all = plan.len() > 1;
        for cycle in plan {
            self.cycle(seat, cycle)?;
        }
        if all {
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

    fn cycle(&mut self, seat: &mut Seat, cycle: Cycle) -> Result<()> {
        let start = Instant::now();
        let Cycle { fs, load, seed, blows, rests } = cycle;
        load.start(self.guest()?, seed)?;
        let names: Vec<_> = blows.iter().map(|(_, blow, _)| *blow).collect();
        let at_rest: Vec<_> = rests.iter().map(|(rest, _)| *rest).collect();
        for (after, blow, mut dice) in blows {
            std::thread::sleep(after);
            let guest = self.guest.as_mut().ok_or("no guest")?;
            let told = blow
                .strike(&mut seat.device, guest, &mut dice, fs.is_some(), SPARE)
                .map_err(|e| format!("{blow:?}: {e}"))?;
            for (what, n) in told {
                self.tally.count(seat.name, what, n);
            }
            seat.device.alive()?;
            Load::look(guest).map_err(|e| format!("after {blow:?} of {names:?}: {e}"))?;
        }
        let done =
            load.end(self.guest()?, PASS).map_err(|e| format!("{e}; {names:?}; {load:?}"))?;
        self.guest()?.no_complaints()?;
        for (rest, part) in &rests {
            self.rest(seat, *rest, *part).map_err(|e| format!("{rest:?}: {e}"))?;
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
            "{:>4} s  {}: {} {} depth {}; {names:?} {at_rest:?}; {} passes, {} MiB verified; RSS {} KiB, its own {}, {:.0} s",
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

    fn finish(&mut self) -> Result<()> {
        self.guest()?.no_complaints()?;
        self.take_guest()?.vm.quit();
        for seat in &mut self.steady {
            retire(&mut self.tally, seat)?;
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
        if let Some(guest) = &self.guest {
            // All there is where QEMU ended by itself.
            guest.console_has_no_complaints()?;
        }
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

/// Ends a device, and looks at what it recorded.
fn retire(tally: &mut Tally, seat: &mut Seat) -> Result<()> {
    seat.device.stop()?;
    seat.device.verify()?;
    if seat.device.store() == Store::Recorded {
        let told = seat.device.history()?;
        tally.count(seat.name, "requests resumed", told.resumed);
    }
    Ok(())
}

/// Parts of the disk that are hashed at each look.
fn looks() -> Vec<Part> {
    (0..SIZE / LOOK).map(|n| Part { offset: n * LOOK, len: LOOK }).collect()
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(15);
    lines[from..].iter().map(|line| format!("    {line}\n")).collect()
}
