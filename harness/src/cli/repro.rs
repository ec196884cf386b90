//! `tornblk repro`

use super::explore::{GuestOptions, means};
use super::{run, signals};
use crate::device::{Device, DiskSpec};
use crate::explore::bundle::{Bundle, Judge, Meta, RaceAgain, Unpacked, is_bundle};
use crate::explore::guest::NESTED;
use crate::explore::{ByName, GuestNeeds, Means, Opened, Subject, Units, Verdict, judge};
use crate::oracle::Finding;
use crate::out::say;
use crate::report::strip::{strip, utf8_locale};
use crate::report::terminal::{Live, Look};
use crate::report::{findings, headline, text};
use crate::run::disks::{self, FurtherDisk};
use crate::run::{
    GuestArgs, Lab, RealLab, RunError, RunFolder, RunReport, Settings, kept_state, repro, run_lanes,
};
use crate::suite;
use crate::vm::{self, BOOT_TIMEOUT, FrontEnd, Vm, VmConfig};
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tornblk_agent::channel::MarkText;
use tornblk_image::Lock;
use tornblk_model::crash::StateName;
use tornblk_model::recording::StateReader;

const SERIAL: &str = "tornblk";

#[derive(Debug, Args)]
#[command(after_help = super::examples::REPRO)]
pub(super) struct ReproArgs {
    /// A failure that `tornblk explore` left (.tornblk), or the folder of a cut that a run kept,
    /// such as tornblk-out/.../raw/cut-002
    #[arg(value_name = "BUNDLE")]
    what: PathBuf,

    /// A shell in a guest that has the disk in that very state, instead of a judgement
    #[arg(long)]
    shell: bool,

    #[command(flatten)]
    guest: GuestOptions,
}

impl ReproArgs {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let interrupted = signals::watch()?;
        if is_bundle(&self.what) {
            return self.bundle(&interrupted);
        }
        if self.shell {
            let kept = kept_state(&self.what)?;
            let (state, name) = (&kept.state, kept.name.as_str());
            let (fstype, front_end) = (kept.volume.fstype.as_str(), kept.volume.front_end);
            let on = On { state, name, fstype, front_end, further: &[], partly: false };
            return shell(&on, &self.guest.given().or(kept.guest), None, &interrupted);
        }
        let live = Live::new(Look::detect());
        let given = self.guest.given();
        let mut lab = |then: &GuestArgs| -> Result<Box<dyn Lab>, RunError> {
            let lab = run::lab(
                &given.clone().or(then.clone()),
                &mut |text| live.note(text),
                &interrupted,
            );
            Ok(Box::new(lab.map_err(|e| {
                if super::interrupted(&e) {
                    RunError::Interrupted
                } else {
                    RunError::Bad(super::sentence(&e))
                }
            })?))
        };
        let mut phase = |text: &str| live.note(text);
        let result = repro(&self.what, &mut lab, &interrupted, &mut phase)?;
        live.finish();
        say!("state  {}", result.then.state);
        say!("sha256 {}", result.sha256);
        tell(&result.now.findings);
        tell(&result.of_a_guest);
        let (then, now) = (result.then.judgement.findings.len(), result.now.findings.len());
        say!("findings: {now} now, {then} then");
        if let Some(text) = result.only_a_run_shows() {
            say!("{text}");
        }
        Ok(u8::from(result.is_violated()))
    }

    fn bundle(&self, interrupted: &Arc<AtomicBool>) -> anyhow::Result<u8> {
        let bundle = Bundle::open(&self.what)?;
        let temp = tempfile::Builder::new()
            .prefix("tornblk-repro-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let Unpacked { meta, reader, base, recovery, state } = bundle.unpack(temp.path())?;
        let opened = Opened::open(reader.path(), Some(&base))?;
        let given = guest_of(&meta, opened.subject.as_ref(), &self.guest.given());
        if self.shell {
            let volume = opened.subject.as_ref().map(|s| &s.volume);
            let front_end = volume.map(|v| v.front_end).unwrap_or_default();
            let partly = meta.judge == Judge::InPlace;
            // Of a file system of which only the pages are there, nothing can be mounted.
            let fstype = volume.filter(|_| !partly).map_or("", |v| v.fstype.as_str());
            let further = opened.subject.as_ref().map_or(&[][..], |s| &s.disks);
            let name = &name_of(&meta);
            let on = On { state: &state, name, fstype, front_end, further, partly };
            let lock = meta.image.as_ref().filter(|_| self.guest.given().kernel.is_none());
            return shell(&on, &given, lock, interrupted);
        }
        if let Some(race) = &meta.race {
            return self.race(race, &meta, &given, temp.path(), interrupted);
        }
        let live = crate::report::explore::Live::new(Look::detect());
        live.note("judging the state");
        let needs = GuestNeeds {
            dir: temp.path().to_owned(),
            fsck_every: 1,
            nested: 0,
            seed: 0,
            stop: Arc::clone(interrupted),
        };
        let means: Box<dyn Means + '_> = match &meta.pages {
            Some(judged) => Box::new(Units::pages_again(&opened, judged)?),
            None => means(&opened, &given, &needs, None, &mut |text| live.note(text))?,
        };
        if means.judge() != meta.judge {
            bail!(
                "{} was judged {} when it was made, and cannot be here: use the tornblk that made it",
                self.what.display(),
                match meta.judge {
                    Judge::InPlace => "in place",
                    Judge::Guest => "by a guest",
                }
            );
        }
        if let (Some(then), Some(now), None) =
            (&meta.image, means.image(), self.guest.given().kernel)
        {
            same_kernel(then, &now)?;
        }
        let name: StateName = (&meta.state).into();
        let wanted = ByName { name: &name, recovery: recovery.as_ref() };
        let verdicts = judge(&opened, &*means, Some(&base), &meta.profile.parse()?, &[wanted])?;
        live.finish();
        say!("state  {}", name_of(&meta));
        if let Some(fault) = &meta.fault {
            say!("fault  {fault}");
        }
        say!("sha256 {} (of what is in the bundle)", meta.content);
        let findings = match verdicts.first() {
            Some(Verdict::Unsure(why)) => {
                say!("it could not be judged: {why}");
                return Ok(3);
            }
            Some(Verdict::Failed(findings)) => findings.as_slice(),
            Some(Verdict::Passed) | None => &[],
        };
        tell(findings);
        say!("findings: {} now, {} then", findings.len(), meta.findings.len());
        Ok(u8::from(!findings.is_empty()))
    }
}

impl ReproArgs {
    /// Runs a race again: what was found is in no state of the disk.
    fn race(
        &self,
        again: &RaceAgain,
        meta: &Meta,
        guest: &GuestArgs,
        temp: &Path,
        interrupted: &Arc<AtomicBool>,
    ) -> anyhow::Result<u8> {
        let suite = suite::parse(&again.text, &format!("the suite in {}", self.what.display()))?;
        let lane = suite.lanes.into_iter().find(|lane| lane.name == again.lane);
        let lane = lane.with_context(|| format!("the suite has no lane {}", again.lane))?;
        let faults = again.faults.iter().map(|fault| fault.parse().map_err(anyhow::Error::msg));
        let settings = Settings {
            seed: again.seed,
            cuts: again.cuts,
            only: Some(again.cut),
            faults: faults.collect::<anyhow::Result<_>>()?,
            profile: Some(meta.profile.clone()),
            guest: guest.clone(),
            ..Settings::default()
        };
        let mut live = Live::new(Look::detect());
        let mut lab = run::lab(guest, &mut |text| live.note(text), interrupted)?;
        if let (Some(lock), None) = (&meta.image, &self.guest.given().kernel) {
            same_kernel(lock, &lab.image.lock)?;
        }
        let folder = RunFolder::create(Some(&temp.join("run")), again.seed)?;
        let (lanes, mut reports) = ([(again.suite.clone(), lane)], Vec::new());
        run_lanes(&mut lab, &lanes, &settings, &folder, interrupted, &mut live, &mut reports)?;
        live.finish();
        let Some(report) = reports.first() else { bail!("the race was not run") };
        let now: Vec<Finding> = findings(report).map(|(_, finding)| finding.clone()).collect();
        tell(&now);
        say!("findings: {} now, {} then", now.len(), meta.findings.len());
        Ok(RunReport::exit_code(&reports, &[]))
    }
}

/// With that of the state of the recovery on it, if that is what failed.
fn name_of(meta: &Meta) -> String {
    match &meta.recovery {
        Some(inner) => format!("{}{NESTED}{inner}", meta.state),
        None => meta.state.0.clone(),
    }
}

fn tell(findings: &[Finding]) {
    for finding in findings {
        say!("{}", headline(finding));
        say!("  {}", text(finding));
        finding.timeline.iter().for_each(|line| say!("  {line}"));
        if !finding.strip.is_empty() {
            say!("  blocks {}", strip(&finding.strip, utf8_locale()));
        }
    }
}

/// The guest that judged: what is given goes first, then the kernel of the image's lock. Paths of
/// the machine where it was made mean nothing here.
fn guest_of(meta: &Meta, subject: Option<&Subject>, given: &GuestArgs) -> GuestArgs {
    let version = |lock: &Lock| {
        let release = lock.kernel.release.as_str();
        let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
        release[..end].trim_end_matches('.').to_owned()
    };
    let of_lock = meta.image.as_ref().filter(|l| l.kernel.file.is_none()).map(version);
    // A file of the user's own, which may be at the same place here.
    let of_run = subject.and_then(|s| s.guest.kernel.clone());
    given.clone().or(GuestArgs {
        kernel: of_lock.or(of_run),
        modules: None,
        ..GuestArgs::default()
    })
}

fn same_kernel(then: &Lock, now: &Lock) -> anyhow::Result<()> {
    if then.kernel.sha256 == now.kernel.sha256 {
        return Ok(());
    }
    bail!(
        "the bundle was judged with kernel {}, and what can be had here is {}: give --kernel to try \
         another",
        then.kernel.release,
        now.kernel.release
    )
}

/// What a shell is on.
struct On<'a> {
    state: &'a StateReader,
    name: &'a str,
    /// Empty: the raw disk.
    fstype: &'a str,
    front_end: FrontEnd,
    /// Disks beside the main one.
    further: &'a [FurtherDisk],
    /// Only the blocks that its judge needs are there.
    partly: bool,
}

/// Boots a guest that has the disk in that state, and leaves it to the user.
fn shell(
    on: &On<'_>,
    guest: &GuestArgs,
    lock: Option<&Lock>,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<u8> {
    let live = Live::new(Look::detect());
    let lab: RealLab = run::lab(guest, &mut |text| live.note(text), stop)?;
    if let Some(lock) = lock {
        same_kernel(lock, &lab.image.lock)?;
    }
    let temp = tempfile::Builder::new()
        .prefix("tornblk-shell-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    live.note("writing the image");
    let image = temp.path().join("disk.img");
    on.state.export(&image)?;
    let device = Device::start(
        &lab.tornblkd,
        &DiskSpec {
            image,
            recording: None,
            profile: "lb".into(),
            logical_block_size: on.state.disk().lb_size,
            front_end: on.front_end,
            luns: disks::luns(on.state.disk().capacity, on.further),
            serial: SERIAL.into(),
            seed: 0,
            faults: Vec::new(),
            hold_completions: None,
            log: temp.path().join("device.log"),
        },
    )?;
    live.note("booting a guest");
    let config = VmConfig {
        image: &lab.image,
        qemu: lab.qemu.clone(),
        accel: lab.accel,
        memory_mib: 512,
        cpus: lab.cpus,
        dir: temp.path(),
        use_saved: false,
        append: lab.append.clone(),
        gdb: None,
        stop: Some(Arc::clone(stop)),
    };
    let (mut vm, console) = Vm::boot_with_console(&config, BOOT_TIMEOUT)?;
    let serials = disks::serials(SERIAL, on.further);
    let mut found = vec![vm.attach_disk(&device.socket(), &serials[0], 1, on.front_end)?.device];
    for serial in &serials[1..] {
        found.push(vm.find_disk(serial)?);
    }
    live.finish();
    let mut mount = match on.fstype {
        "" => String::new(),
        fstype => format!("\n  mount -t {fstype} {} /mnt", found[0]),
    };
    for (further, disk) in on.further.iter().zip(&found[1..]) {
        mount += &match further.mount() {
            None => format!("\n{disk} is {}", further.name),
            Some(at) => format!(
                "\n{disk} is {}\n  mkdir -p {2} && mount -t {} {disk} {2}",
                further.name, at.fstype, at.target
            ),
        };
    }
    let disk = &found[0];
    let partly = match on.partly {
        true => "\nOnly the blocks that judge it are there; all others are zero.",
        false => "",
    };
    let greeting = format!(
        "{disk} is in the state {}{mount}{partly}\nLeaving the shell ends the guest; nothing is kept.",
        on.name
    );
    let result = vm.shell(&console, &greeting, &mut Patient(stop));
    vm.kill();
    drop(device);
    result?;
    say!("the guest is gone");
    Ok(0)
}

/// Waits as long as the user likes.
struct Patient<'a>(&'a AtomicBool);

impl vm::Host for Patient<'_> {
    fn marks(&mut self, _: &[MarkText]) -> Result<(), String> {
        Err("nobody records marks now".into())
    }

    fn progress(&mut self, text: &str) {
        log::debug!("guest: {text}");
    }

    fn stop(&mut self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tornblk_image::{KernelFormat, KernelLock};

    fn lock(release: &str, file: Option<&str>) -> Lock {
        Lock {
            kernel: KernelLock {
                release: release.into(),
                format: KernelFormat::Vmlinux,
                sha256: release.len().to_string(),
                packages: Vec::new(),
                file: file.map(Into::into),
                modules: Vec::new(),
            },
            programs: Vec::new(),
            agent_sha256: String::new(),
            guest_module: None,
        }
    }

    #[test]
    fn the_guest_is_the_one_of_the_lock_unless_another_is_given() {
        let mut meta = Meta::new(StateName("lb/p1:all".into()), "lb".into(), Judge::Guest);
        let none = GuestArgs::default();
        assert_eq!(guest_of(&meta, None, &none).kernel, None);
        meta.image = Some(lock("7.2.12+deb13-cloud-amd64", None));
        assert_eq!(guest_of(&meta, None, &none).kernel.unwrap(), "7.2.12");
        let given = GuestArgs { kernel: Some("6.12".into()), ..GuestArgs::default() };
        assert_eq!(guest_of(&meta, None, &given).kernel.unwrap(), "6.12");
        meta.image = Some(lock("7.3.0-mine", Some("/boot/mine")));
        assert_eq!(guest_of(&meta, None, &none).kernel, None);
    }

    #[test]
    fn another_kernel_is_no_proof() {
        let (a, b) = (lock("7.2.12", None), lock("7.2.13-x", None));
        assert!(same_kernel(&a, &a).is_ok());
        let error = same_kernel(&a, &b).unwrap_err().to_string();
        assert!(error.contains("7.2.12") && error.contains("--kernel"), "{error}");
    }
}
