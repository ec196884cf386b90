//! States of file systems judged in a guest, a second: mount with log replay, content check,
//! unmount; against a guest started for each state, and against one booted for each.
//!
//! ```sh
//! cargo bench -p tornblk --bench guest_states -- [--states N] [--lane LANE]... [--keep FOLDER]
//! ```
//!
//! Records one cut of each lane with `tornblk run` (or takes what an earlier run of this left in
//! `FOLDER`), then explores it.

use anyhow::{Context as _, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tornblk::device::find_tornblkd;
use tornblk::explore::guest::{Case, GuestSettings, GuestVerifier, Stopwatch};
use tornblk::explore::{
    ByName, ExploreError, Failure, Job, Point, RecordingIds, Settings, Sink, State, StateText,
    Subject, Verdict, Verifier, explore, named,
};
use tornblk::run::RealLab;
use tornblk::vm::{Accel, BOOT_TIMEOUT, Qemu, Vm, VmConfig};
use tornblk_model::crash::{History, Profile, StateName, Strategy};
use tornblk_model::recording::Reader;
use tornblk_proto::Counters;

/// Lanes with file systems of 512 MiB (XFS) and 256 MiB (ext4).
const LANES: [&str; 2] = ["xfs-cow-lb512", "buffered-ext4"];

struct Options {
    states: u64,
    lanes: Vec<String>,
    keep: Option<PathBuf>,
    threads: usize,
    /// Guests started, and booted, for one state each.
    single: u64,
}

fn main() -> Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let options = options()?;
    let temp = tempfile::tempdir()?;
    let folder = options.keep.clone().unwrap_or_else(|| temp.path().to_owned());
    let stop = Arc::new(AtomicBool::new(false));
    let request = tornblk_image::Request::new(tornblk_image::DEFAULT_KERNEL.parse()?);
    let image = tornblk_image::build(&request, &mut |doing| eprintln!("{doing}"))?;
    let qemu = Qemu::find()?;
    let accel = Accel::probe(&qemu, &image, Some(&image.dir));
    let lab = RealLab::new(find_tornblkd()?, image, qemu, accel, 1);
    lab.prepare(&mut |doing| eprintln!("{doing}"))?;
    println!("{accel}, {} guests at a time, {} states", options.threads, options.states);
    for lane in &options.lanes {
        let recording = record(lane, &folder.join(lane))?;
        let work = temp.path().join(format!("{lane}-guests"));
        std::fs::create_dir_all(&work)?;
        let settings = GuestSettings::new(&lab, work, Arc::clone(&stop));
        measure(lane, &recording, &settings, &options)?;
    }
    Ok(())
}

fn options() -> Result<Options> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { states: 200, lanes: Vec::new(), keep: None, threads, single: 3 };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--states" => options.states = value.parse()?,
            "--threads" => options.threads = value.parse()?,
            "--single" => options.single = value.parse()?,
            "--lane" => options.lanes.push(value),
            "--keep" => options.keep = Some(value.into()),
            other => bail!("{other} is not known"),
        }
    }
    if options.lanes.is_empty() {
        options.lanes = LANES.map(str::to_owned).to_vec();
    }
    Ok(options)
}

/// The recording of one cut of a lane.
fn record(lane: &str, out: &Path) -> Result<PathBuf> {
    let recording = out.join(lane).join("cut-001/disk.recording");
    if !recording.exists() {
        let mut run = Command::new(env!("CARGO_BIN_EXE_tornblk"));
        run.args(["run", "--lane", lane, "--crashes", "1", "--seed", "1", "--keep", "--out"]);
        let output = run.arg(out).output()?;
        if !output.status.success() {
            bail!("tornblk run failed: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
    Ok(recording)
}

/// Adds up what the guests' verifiers took.
#[derive(Default)]
struct Totals {
    watch: Stopwatch,
    guests: u64,
    requests: Counters,
}

/// A verifier that leaves its times behind.
struct Timed<'a> {
    verifier: GuestVerifier<'a>,
    totals: &'a Mutex<Totals>,
}

impl Verifier for Timed<'_> {
    fn point(&mut self, point: &Point<'_>) -> Result<(), ExploreError> {
        self.verifier.point(point)
    }

    fn verify(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.verifier.verify(state)
    }

    fn confirm(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.verifier.confirm(state)
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let (sum, one) = (&mut totals.watch, self.verifier.watch());
        sum.states += one.states;
        sum.switch += one.switch;
        sum.check += one.check;
        sum.steps.nonce += one.steps.nonce;
        sum.steps.mount += one.steps.mount;
        sum.steps.read += one.steps.read;
        sum.steps.umount += one.steps.umount;
        sum.steps.flush += one.steps.flush;
        totals.guests += self.verifier.guests();
        if let Ok(status) = self.verifier.seat().device().client().status() {
            totals.requests.reads += status.counters.reads;
            totals.requests.writes += status.counters.writes;
            totals.requests.flushes += status.counters.flushes;
        }
    }
}

struct Told;

impl Sink for Told {
    fn failure(&mut self, failure: &Failure) -> Result<(), ExploreError> {
        println!("  FAILED {}: {}", failure.state, failure.findings[0].text);
        Ok(())
    }

    fn unsure(&mut self, state: &StateText, why: &str) {
        println!("  unsure {state}: {why}");
    }
}

fn measure(
    lane: &str,
    recording: &Path,
    settings: &GuestSettings,
    options: &Options,
) -> Result<()> {
    let reader = Arc::new(Reader::open(recording)?);
    let events = reader.events().collect::<Result<Vec<_>, _>>()?;
    let history = History::new(reader.header().disk.clone(), events.iter().cloned())?;
    let subject = Subject::read(&reader)?.context("the recording does not say what it is of")?;
    let profile: Profile = subject.volume.profile.parse()?;
    let case = Case::new(&reader, None, subject, &events, &history)?;
    let ids =
        RecordingIds::new(Arc::clone(&reader), None, tornblk_model::recording::Trust::Unchanged)?;
    let promises = case.ledgers().promises();
    let job = Job {
        history: &history,
        ids: &ids,
        promises: &promises,
        explain: &(),
        settings: &Settings {
            profiles: vec![profile.clone()],
            strategies: vec![Strategy::Random { seed: 1, count: 20 }],
            states: Some(options.states),
            threads: options.threads,
            ..Settings::default()
        },
        before: None,
    };
    let totals = Mutex::new(Totals::default());
    let make = |n: usize| {
        let verifier = GuestVerifier::new(&case, settings, n)?;
        Ok(Box::new(Timed { verifier, totals: &totals }) as Box<dyn Verifier + '_>)
    };
    let before = children()?;
    let start = Instant::now();
    let summary = explore(&job, &make, &mut Told, &settings.stop)?;
    let took = start.elapsed();
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rate = summary.counts.judged as f64 / took.as_secs_f64();
    println!(
        "{lane}: {} states judged in {:.1} s: {rate:.1} a second ({} failed, {} unsure, {} guests)",
        summary.counts.judged,
        took.as_secs_f64(),
        summary.counts.failed,
        summary.counts.unsure,
        totals.guests
    );
    let n = totals.watch.states.max(1);
    let steps = &totals.watch.steps;
    let ms = |micros: u64| micros as f64 / 1000.0 / n as f64;
    println!(
        "  each: switch {:.1} ms, guest {:.1} ms (nonce {:.1}, mount {:.1}, read {:.1}, unmount {:.1}, flush {:.1})",
        totals.watch.switch.as_secs_f64() * 1000.0 / n as f64,
        totals.watch.check.as_secs_f64() * 1000.0 / n as f64,
        ms(steps.nonce),
        ms(steps.mount),
        ms(steps.read),
        ms(steps.umount),
        ms(steps.flush),
    );
    let of = |requests: u64| requests / n;
    println!(
        "  requests of each: {} reads, {} writes, {} flushes; {:.0} ms of a processor for guest and device",
        of(totals.requests.reads),
        of(totals.requests.writes),
        of(totals.requests.flushes),
        (children()? - before).as_secs_f64() * 1000.0 / n as f64,
    );
    if options.single == 0 {
        return Ok(());
    }
    let points = history.points(false);
    let middle = points.get(points.len() / 2).copied().unwrap_or_default();
    let cut = history.cut(middle, &profile)?;
    // As many at a time as above, so that all three have the same processors.
    let restored = side_by_side(options, |worker, n| {
        let name: StateName = cut.random(1, n);
        let mut verifier = GuestVerifier::new(&case, settings, worker)?;
        let verdict = named(
            &history,
            &ids,
            &promises,
            &ByName { name: &name, recovery: None },
            &mut verifier,
        )?;
        if verdict != Verdict::Passed {
            println!("  {name}: {verdict:?}");
        }
        Ok(())
    })?;
    // The state itself costs the same as in a guest that is there.
    let booted = side_by_side(options, |worker, _| boot(settings, worker))? + 1.0 / rate;
    println!(
        "  a restored guest for each: {:.2} a second (1/{:.0} of that); a booted one: {:.2} (1/{:.0})",
        1.0 / restored,
        restored * rate,
        1.0 / booted,
        booted * rate,
    );
    Ok(())
}

/// Seconds for one, of so many in each worker.
fn side_by_side(options: &Options, one: impl Fn(usize, u64) -> Result<()> + Sync) -> Result<f64> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let worker = |worker: usize| {
            let one = &one;
            scope.spawn(move || (0..options.single).try_for_each(|n| one(worker, n)))
        };
        let workers: Vec<_> = (0..options.threads).map(worker).collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    Ok(start.elapsed().as_secs_f64() / (options.threads as u64 * options.single) as f64)
}

/// Processor time of the programs that this one started and that have ended: proc_pid_stat(5).
fn children() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // Fields 16 and 17, of which the first here is the third; ticks of a hundredth.
    let ticks = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Ok(Duration::from_millis((ticks(16) + ticks(17)) * 10))
}

/// A guest that boots as a run without saved states would boot it, for one state.
fn boot(settings: &GuestSettings, worker: usize) -> Result<()> {
    let dir = settings.dir.join(format!("boot-{worker}"));
    std::fs::create_dir_all(&dir)?;
    let vm = Vm::boot(
        &VmConfig {
            image: &settings.image,
            qemu: settings.qemu.clone(),
            accel: settings.accel,
            memory_mib: 512,
            cpus: 1,
            dir: &dir,
            use_saved: false,
            append: None,
            gdb: None,
            stop: None,
        },
        BOOT_TIMEOUT,
    )?;
    vm.kill();
    Ok(())
}
