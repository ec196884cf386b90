//! A kept cut again: the same disk, byte for byte, built from the recording by its state's name,
//! read and judged anew. A raw disk is read in place; a file system is mounted by a guest.

use super::cut::{CutReport, Evidence, SERIAL};
use super::volume::{Volume, Way};
use super::{GuestArgs, Lab, RunError};
use crate::device::DiskSpec;
use crate::oracle::{Finding, Judgement};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tornblk_agent::channel::{Found, Readback, UnitFound, Workload};
use tornblk_agent::payload::{self, SECTOR};
use tornblk_agent::planted::{PageId, recover, slot_of};
use tornblk_model::crash::{History, StateName};
use tornblk_model::recording::{Reader, RecordingError, StateReader, Trust};

/// What a kept cut's folder has, beside its recording.
const VERDICT: &str = "verdict.json";
const EVIDENCE: &str = "evidence.json";

/// What came of it.
#[derive(Clone, Debug)]
pub struct Reproduced {
    /// As it was then.
    pub then: CutReport,
    pub now: Judgement,
    /// Of the findings then, those that neither the disk nor the recording shows: what a guest's
    /// kernel said or took, and did not say again now.
    pub of_a_guest: Vec<Finding>,
    /// Sha256 of the disk, in hexadecimal.
    pub sha256: String,
}

/// Makes a lab with the guest that is told.
pub type MakeLab<'a> = dyn FnMut(&GuestArgs) -> Result<Box<dyn Lab>, RunError> + 'a;

/// `dir` is the folder of a kept cut. `lab` is only asked for where a guest is needed, and told
/// which it was.
pub fn repro(
    dir: &Path,
    lab: &mut MakeLab<'_>,
    interrupted: &AtomicBool,
    phase: &mut dyn FnMut(&str),
) -> Result<Reproduced, RunError> {
    check_folder(dir)?;
    let then: CutReport = load(&dir.join(VERDICT))?;
    let mut evidence: Evidence = load(&dir.join(EVIDENCE))?;
    // They were found by asking a guest that wrote.
    evidence.broken.retain(|finding| !finding.clause.is_of_a_guest());
    let recording = dir.join("disk.recording");
    phase("building the state");
    let state = state(&recording, &then.state, dir)?;
    let sha256 = state.sha256().map_err(bad)?.iter().map(|b| format!("{b:02x}")).collect();
    if evidence.volume.is_raw() {
        phase("reading the disk");
        evidence.readback = Some(read(&state, &evidence.workload)?);
        let now = evidence.judge(&mut Offline, &recording, &then.state, then.event)?;
        return Ok(Reproduced::new(then, now, sha256));
    }
    let mut lab = lab(&evidence.guest)?;
    let temp = tempfile::Builder::new()
        .prefix("tornblk-repro-")
        .tempdir()
        .map_err(RunError::io("make a folder in", &std::env::temp_dir()))?;
    let image = temp.path().join("disk.img");
    phase("writing the image");
    state.export(&image).map_err(bad)?;
    let volume = evidence.volume.clone();
    let mut disk = lab.disk(&DiskSpec {
        image,
        recording: None,
        profile: volume.profile.clone(),
        logical_block_size: volume.logical_block_size,
        front_end: volume.front_end,
        luns: Vec::new(),
        serial: SERIAL.to_owned(),
        seed: then.seed,
        faults: Vec::new(),
        hold_completions: None,
        log: temp.path().join("device.log"),
    })?;
    phase("recovering");
    let mut way = Way { dir: temp.path(), next: None, interrupted, phase: &mut *phase };
    let (readback, broken) =
        volume.recover(lab.as_mut(), disk.as_mut(), &evidence.workload, &mut way)?;
    disk.stop()?;
    (evidence.readback, evidence.broken) = (readback, broken);
    let mut now = evidence.judge(lab.as_mut(), &recording, &then.state, then.event)?;
    let again = super::complaints::again(temp.path(), &then, &now, &evidence.guest)?;
    now.findings.extend(again);
    if evidence.is_frozen() {
        now.findings.extend(lab.frozen(dir, temp.path(), then.number == 0)?);
    }
    Ok(Reproduced::new(then, now, sha256))
}

impl Reproduced {
    fn new(then: CutReport, now: Judgement, sha256: String) -> Reproduced {
        let of_a_guest = of_a_guest(&then.judgement.findings, &now.findings);
        Reproduced { then, now, of_a_guest, sha256 }
    }

    /// Is anything wrong with it?
    pub fn is_violated(&self) -> bool {
        !self.now.findings.is_empty() || !self.of_a_guest.is_empty()
    }

    /// What has to be run to see again what this did not show; `None`: it showed all.
    pub fn only_a_run_shows(&self) -> Option<String> {
        let n = self.of_a_guest.len();
        let run = self.then.again.iter().find(|command| command.starts_with("tornblk run "))?;
        (n > 0).then(|| {
            format!(
                "{n} of those then came of what the guest's kernel said or took while the run was \
                 made: neither this disk nor its recording shows that again, only\n  {run}"
            )
        })
    }
}

fn of_a_guest(then: &[Finding], now: &[Finding]) -> Vec<Finding> {
    let key = |f: &Finding| (f.clause, f.text.lines().next().map(str::to_owned));
    let now: Vec<_> = now.iter().map(key).collect();
    let gone = |f: &&Finding| f.clause.is_of_a_guest() && !now.contains(&key(f));
    then.iter().filter(gone).cloned().collect()
}

/// The disk of a kept cut.
#[derive(Debug)]
pub struct KeptState {
    pub state: StateReader,
    pub name: String,
    pub volume: Volume,
    pub guest: GuestArgs,
}

/// The disk of the cut that was kept in `dir`, in the state that it was left in.
///
/// # Errors
/// Something of it is not there.
pub fn kept_state(dir: &Path) -> Result<KeptState, RunError> {
    check_folder(dir)?;
    let then: CutReport = load(&dir.join(VERDICT))?;
    let evidence: Evidence = load(&dir.join(EVIDENCE))?;
    let state = state(&dir.join("disk.recording"), &then.state, dir)?;
    let (volume, guest) = (evidence.volume, evidence.guest);
    Ok(KeptState { state, name: then.state, volume, guest })
}

/// Judging needs recordings, and nothing else of a lab.
struct Offline;

impl Lab for Offline {
    fn disk(&mut self, _: &DiskSpec) -> Result<Box<dyn super::Disk>, RunError> {
        Err(RunError::Bad("no disk is started where only a recording is judged".into()))
    }

    fn machine(&mut self, _: &Path) -> Result<Box<dyn super::Machine>, RunError> {
        Err(RunError::Bad("no guest is started where only a recording is judged".into()))
    }

    fn wire(
        &mut self,
        recording: &Path,
        query: &super::WireQuery,
    ) -> Result<crate::oracle::Wire, RunError> {
        super::read_wire(recording, query)
    }
}

/// Is it the folder of a cut? Where it is something near it, what to give instead is said.
fn check_folder(dir: &Path) -> Result<(), RunError> {
    let is_cut = |dir: &Path| dir.join(EVIDENCE).is_file() && dir.join(VERDICT).is_file();
    if is_cut(dir) {
        return Ok(());
    }
    let instead = "give a failure that `tornblk explore` left (failure-001.tornblk), or the folder of \
                   a cut that a run kept (as in tornblk-out/.../raw/cut-002)";
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Err(RunError::Bad(format!("there is no {}: {instead}", dir.display())));
    };
    let bundle = |path: &Path| path.extension().is_some_and(|e| e == "tornblk");
    let mut near: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| is_cut(p) || bundle(p)).collect();
    near.sort();
    // "control" sorts before the cuts, and is what one wants least.
    let one = near.iter().find(|path| !path.ends_with("control")).or(near.first());
    Err(RunError::Bad(match one {
        Some(one) => format!(
            "{} is not one cut or failure, but has {} of them: give one, such as {}",
            dir.display(),
            near.len(),
            one.display()
        ),
        None => format!("{} is no cut that was kept: {instead}", dir.display()),
    }))
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, RunError> {
    let bytes = std::fs::read(path).map_err(RunError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        RunError::Bad(format!("{} is not what a run of this version keeps: {e}", path.display()))
    })
}

fn bad(error: impl std::fmt::Display) -> RunError {
    RunError::Bad(error.to_string())
}

/// The base image is where it was, or beside the cut where the run's folder was moved.
fn state(recording: &Path, name: &str, dir: &Path) -> Result<StateReader, RunError> {
    let reader = Arc::new(Reader::open(recording).map_err(bad)?);
    let events: Result<Vec<_>, _> = reader.events().collect();
    let history = History::new(reader.header().disk.clone(), events.map_err(bad)?).map_err(bad)?;
    let content = history.build(&StateName(name.to_owned())).map_err(bad)?;
    let beside = dir.join("..").join("base.img");
    let base = beside.is_file().then_some(beside.as_path());
    let image = reader.header().base.path.clone();
    StateReader::new(reader, base, Trust::SameContent, content).map_err(|error| match error {
        RecordingError::Io { source, .. }
            if base.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
        {
            RunError::Bad(format!(
                "the base image {} is not there: put it back, or beside the cut as {}",
                image.display(),
                beside.display()
            ))
        }
        other => bad(other),
    })
}

/// What a guest would read from the raw disk, after the recovery of a unit's protocol.
pub(crate) fn read(state: &StateReader, workload: &Workload) -> Result<Readback, RunError> {
    let mut readback = Readback::default();
    for target in &workload.files {
        let mut bytes = vec![0; target.unit as usize];
        for unit in 0..u64::from(target.units) {
            state.read_at(target.disk_offset_of(unit), &mut bytes).map_err(bad)?;
            if let Some(range) = slot_of(target, unit) {
                let mut slot = vec![0; (range.end - range.start) as usize];
                state.read_at(range.start, &mut slot).map_err(bad)?;
                recover(
                    &mut bytes,
                    &slot,
                    PageId { nonce: workload.nonce, file: target.file, unit },
                );
            }
            let mut runs: Vec<(u32, Found)> = Vec::new();
            for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                let found = payload::classify(sector, workload.nonce, target.file, unit, i as u32);
                match runs.last_mut() {
                    Some((n, last)) if *last == found => *n += 1,
                    _ => runs.push((1, found)),
                }
            }
            readback.units.push(UnitFound { file: target.file, unit, runs });
        }
    }
    Ok(readback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Clause;

    #[test]
    fn what_a_guest_said_or_took_is_in_no_disk() {
        let of = |clause, text: &str| Finding::new(clause, text.to_owned());
        let then = [
            of(Clause::Torn, "a"),
            of(Clause::NotAtomic, "a"),
            of(Clause::Limits, "a"),
            of(Clause::Accepted, "a"),
            of(Clause::KernelWarning, "WARNING: a\nsaid by one guest"),
            of(Clause::KernelWarning, "WARNING: b\nsaid by one guest"),
        ];
        // The guest that recovers said it again.
        let now = [of(Clause::KernelWarning, "WARNING: b\nsaid by another")];
        let left = of_a_guest(&then, &now);
        assert_eq!(left, then[2..5]);
        for clause in Clause::ALL {
            assert!(!(clause.is_of_the_disk() && clause.is_of_a_guest()), "{clause}");
        }
        let mut report = crate::report::testing::report().lanes.remove(0).reports.remove(0);
        report.judgement.findings = then[2..3].to_vec();
        report.again.push("tornblk run --cut 2".into());
        let again = |now: &[Finding]| {
            let now = Judgement { findings: now.to_vec(), ..Judgement::default() };
            let again = Reproduced::new(report.clone(), now, String::new());
            (again.is_violated(), again.only_a_run_shows())
        };
        let (violated, text) = again(&[]);
        assert!(violated && text.is_some_and(|text| text.ends_with("tornblk run --cut 2")));
        assert_eq!(again(&then[2..3]), (true, None));
    }
}
