//! The verifier: a state goes in, a verdict comes out, whatever becomes of the guest.

use super::super::{Checked, ExploreError, Point, State, Verdict, Verifier};
use super::GuestSettings;
use super::case::{Bar, Case};
use super::fsck::{Fsck, fsck};
use super::nested;
use super::seat::{Seat, SeatError, Stopwatch};
use super::shown::{Differs, Wanted};
use crate::oracle::{Clause, Finding, Recovery};
use crate::run::{is_broken, whole_file};
use std::path::PathBuf;
use tornblk_agent::channel::{Program, Ran, StateFound};
use tornblk_model::crash::{Content, Profile, Source, StateName};
use tornblk_model::event::Seq;

/// Guests that a state may use up before it counts as not to be judged.
const GUESTS: u32 = 3;

/// What the kernel says when it is not sound any more, whatever the file system: who goes on with
/// such a guest judges the last state's damage.
const SPOILT: [&str; 6] = [
    "BUG: ",
    "Oops",
    "blocked for more than",
    "shut down",
    "Shutting down filesystem",
    "Aborting journal",
];

/// Judges states in a guest of its own.
#[derive(Debug)]
pub struct GuestVerifier<'a> {
    case: &'a Case<'a>,
    settings: GuestSettings,
    seat: Seat,
    bar: Option<Bar>,
    /// Since the last state that the device was told.
    differs: Differs,
    /// States that were looked at.
    states: u64,
    /// Failing recoveries whose recording was kept.
    kept: u64,
}

/// A state to be judged.
struct Subject<'s> {
    /// For the device: the name where it matters, else just something.
    label: String,
    wanted: &'s dyn Wanted,
    differs: Differs,
}

impl Wanted for State<'_> {
    fn of(&self, block: u64) -> Source {
        State::of(self, block)
    }

    fn content(&self) -> Result<Content, ExploreError> {
        Ok(State::content(self)?)
    }
}

impl<'a> GuestVerifier<'a> {
    /// The verifier of worker `n`. Its guest is started with the first state.
    ///
    /// # Errors
    /// The device cannot be started.
    pub fn new(
        case: &'a Case<'a>,
        settings: &GuestSettings,
        n: usize,
    ) -> Result<GuestVerifier<'a>, ExploreError> {
        let seat = Seat::new(case, settings, &format!("guest-{n}"))?;
        Ok(GuestVerifier {
            case,
            settings: settings.clone(),
            seat,
            bar: None,
            differs: Differs::Anywhere,
            states: 0,
            kept: 0,
        })
    }

    /// Where the time went.
    pub fn watch(&self) -> Stopwatch {
        self.seat.watch
    }

    /// Guests that were started.
    pub fn guests(&self) -> u64 {
        self.seat.started
    }

    /// The guest and its disk: for tests, and for who wants to look.
    pub fn seat(&mut self) -> &mut Seat {
        &mut self.seat
    }

    /// Judges a state in as many guests as it takes.
    fn judge(&mut self, subject: &Subject<'_>) -> Result<Verdict, ExploreError> {
        let mut why = String::new();
        for _ in 0..GUESTS {
            let is_new = self.seat.age() == 0;
            match self.pass(subject) {
                Ok(Verdict::Failed(findings)) => return Ok(Verdict::Failed(findings)),
                Ok(verdict) => return Ok(verdict),
                Err(SeatError::Ends(error)) => return Err(error),
                Err(SeatError::Died(how)) => {
                    self.seat.discard();
                    if is_new {
                        // It was nobody else's fault.
                        let text = format!("recovering after the cut {how}");
                        return Ok(Verdict::Failed(vec![self.unrecoverable(text)]));
                    }
                    log::debug!("{}: {how}; in a new guest once more", subject.label);
                    why = how;
                }
                Err(SeatError::Failed(how)) => {
                    log::debug!("{}: {how}; in a new guest once more", subject.label);
                    self.seat.discard();
                    why = how;
                }
            }
        }
        Ok(Verdict::Unsure(why))
    }

    /// Judges a state by its name at a crash point, its file system's own checker asked: → what is
    /// wrong, and what the kernel said.
    ///
    /// # Errors
    /// There is no such state, or no guest can be started.
    pub fn named(
        &mut self,
        profile: &Profile,
        after: Seq,
        name: &StateName,
    ) -> Result<(Vec<Finding>, Vec<String>), ExploreError> {
        self.bar = Some(self.case.bar(profile, after)?);
        self.differs = Differs::Anywhere;
        let mut why = String::new();
        for _ in 0..GUESTS {
            let is_new = self.seat.age() == 0;
            match self.look_at(name) {
                Ok(seen) => return Ok(seen),
                Err(SeatError::Ends(error)) => return Err(error),
                Err(SeatError::Died(how)) if is_new => {
                    self.seat.discard();
                    let text = format!("recovering after the cut {how}");
                    return Ok((vec![self.unrecoverable(text)], Vec::new()));
                }
                Err(SeatError::Died(how) | SeatError::Failed(how)) => {
                    log::debug!("{}: {how}; in a new guest once more", name.0);
                    self.seat.discard();
                    why = how;
                }
            }
        }
        Err(ExploreError::Bad(format!("the state {} could not be judged: {why}", name.0)))
    }

    /// One try.
    fn look_at(&mut self, name: &StateName) -> Result<(Vec<Finding>, Vec<String>), SeatError> {
        let nonce = self.seat.use_state(&name.0)?;
        let found = self.seat.check(nonce, self.program())?;
        let said = found.messages.clone();
        let history = self.case.history;
        let findings = self.findings(found, true, &|| Ok(history.build(name)?))?;
        Ok((findings, said))
    }

    /// One try.
    fn pass(&mut self, subject: &Subject<'_>) -> Result<Verdict, SeatError> {
        let nonce = self.seat.switch(&subject.label, subject.wanted, &subject.differs)?;
        let inner = (self.settings.nested > 0).then(|| self.seat.dir().join("recovery.recording"));
        if let Some(file) = &inner {
            self.seat.record_here(file)?;
        }
        let found = self.seat.check(nonce, self.program())?;
        self.states += 1;
        let every = self.settings.fsck_every;
        let look = every > 0 && self.states.is_multiple_of(every);
        let findings = self.findings(found, look, &|| subject.wanted.content())?;
        if !findings.is_empty() {
            return Ok(Verdict::Failed(findings));
        }
        match inner {
            Some(file) => self.recovery(subject, file),
            None => Ok(Verdict::Passed),
        }
    }

    /// What is wrong with what the guest found, which it is still there to look at. `look`: have
    /// the file system checked even where nothing is.
    fn findings(
        &mut self,
        found: StateFound,
        look: bool,
        content: &dyn Fn() -> Result<Content, ExploreError>,
    ) -> Result<Vec<Finding>, SeatError> {
        if let Some(how) = &found.stuck {
            return Err(SeatError::Died(format!("did not come to an end: {how}")));
        }
        let spoilt = self.is_spoilt(&found);
        // Mounted still, or held by something: nothing that follows can be believed.
        if let Some(why) = found.umount.as_ref().or(found.held.as_ref()) {
            self.seat.discard();
            return Err(SeatError::Failed(format!("the guest did not let the disk go: {why}")));
        }
        let mut findings = Vec::new();
        if let Some(why) = &found.mount {
            let text = format!("the file system cannot be mounted after the cut: {why}");
            findings.push(self.unrecoverable(text));
        } else if let Some(line) = found.messages.iter().find(|line| is_broken(line)) {
            let text = format!("the kernel found the file system broken: {}", line.trim());
            findings.push(self.unrecoverable(text));
        }
        if let Some(why) = &found.read {
            findings.push(self.unrecoverable(format!("reading back after the cut failed: {why}")));
        }
        if let Some(short) = found.readback {
            let workload = &self.case.subject.workload;
            let readback = short.expand(workload).ok_or_else(|| {
                SeatError::Failed("what the guest read back is not of this workload".into())
            })?;
            let bar = self.bar.as_ref();
            let bar = bar.ok_or_else(|| SeatError::Failed("no crash point began".into()))?;
            let lb_size = self.case.history.disk().lb_size;
            let judged = bar.judge(workload, lb_size, &readback, content);
            findings.extend(judged.map_err(SeatError::Ends)?);
        }
        if let Some(ran) = &found.ran {
            findings.extend(self.checked(ran)?);
        }
        if found.mount.is_none() && !spoilt && (look || !findings.is_empty()) {
            self.look_over(&mut findings)?;
        }
        if spoilt {
            self.seat.discard();
        }
        Ok(findings)
    }

    /// The user's own checker, with what the program had marked at this crash point.
    fn program(&self) -> Option<Program> {
        let checker = self.case.subject.checker.as_ref()?;
        let said = self.bar.as_ref().map(|bar| bar.said.clone()).unwrap_or_default();
        Some(checker.program(said))
    }

    /// What the user's own checker found.
    fn checked(&self, ran: &Ran) -> Result<Option<Finding>, SeatError> {
        let Some(checker) = &self.case.subject.checker else { return Ok(None) };
        let finding = |text: String| Some(Finding::new(Clause::Inconsistent, text));
        Ok(match checker.verdict(ran) {
            Checked::Sound => None,
            Checked::Unsound(text) => finding(text),
            Checked::NoAnswer(text) => return Err(SeatError::Failed(text)),
        })
    }

    /// The checker's word on a file system that was recovered.
    fn look_over(&mut self, findings: &mut Vec<Finding>) -> Result<(), SeatError> {
        let subject = &self.case.subject;
        let main = (&subject.volume.fstype, String::new());
        let further = subject.disks.iter().map(|d| (&d.fstype, format!(" of the disk {}", d.name)));
        for ((fstype, whose), device) in
            std::iter::once(main).chain(further).zip(self.seat.disks()?)
        {
            if fstype.is_empty() {
                continue;
            }
            match fsck(&mut self.seat, device, fstype)? {
                Fsck::Clean => {}
                Fsck::Damaged(said) => findings.push(self.unrecoverable(format!(
                    "the file system{whose} is damaged after its log was replayed: {said}"
                ))),
                Fsck::None(why) => log::debug!("the file system{whose} was not checked: {why}"),
            }
        }
        Ok(())
    }

    fn is_spoilt(&self, found: &StateFound) -> bool {
        // The kernel's own warnings say where, and on which processor; file systems warn, too.
        let warning = |line: &String| line.contains("WARNING: ") && line.contains("CPU");
        let spoilt = |line: &String| warning(line) || SPOILT.iter().any(|word| line.contains(word));
        found.messages.iter().any(|line| spoilt(line) || is_broken(line))
    }

    fn unrecoverable(&self, text: String) -> Finding {
        let workload = &self.case.subject.workload;
        let file = workload.files.first().map_or(0, |target| target.file);
        whole_file(workload, file, Clause::Unrecoverable, text)
    }

    /// Judges states of the recovery that was just recorded.
    fn recovery(&mut self, subject: &Subject<'_>, file: PathBuf) -> Result<Verdict, SeatError> {
        let bar = self.bar.as_ref();
        let bar = bar.ok_or_else(|| SeatError::Failed("no crash point began".into()))?;
        let GuestSettings { nested: n, seed, .. } = self.settings;
        let sample = nested::sample(&file, &bar.profile, &subject.label, n, seed)
            .map_err(SeatError::Ends)?;
        let outer = subject.wanted.content().map_err(SeatError::Ends)?;
        for (inner, content) in sample {
            let name = within(&subject.label, &inner.0);
            let beneath = || Ok(nested::beneath(&outer, &content));
            let first = self.inner(&name, &beneath)?;
            if first.is_empty() {
                continue;
            }
            // As everywhere: it counts only if it fails in a new guest, too.
            self.seat.discard();
            let mut findings = self.inner(&name, &beneath)?;
            if findings.is_empty() {
                let text = &first[0].text;
                return Ok(Verdict::Unsure(format!("{name} failed once, and then not: {text}")));
            }
            self.kept += 1;
            let kept = self.seat.dir().join(format!("recovery-{}.recording", self.kept));
            // The next recovery is recorded under the same name, and this one is to be shown again.
            if let Err(e) = std::fs::rename(&file, &kept) {
                return Ok(Verdict::Unsure(format!(
                    "{name} failed, and the recording of that recovery cannot be kept: {e}"
                )));
            }
            tell_where(&mut findings, &Recovery { state: inner.0, recording: kept });
            return Ok(Verdict::Failed(findings));
        }
        Ok(Verdict::Passed)
    }

    /// One try at a state of a recovery that was recorded before.
    fn again(
        &mut self,
        subject: &Subject<'_>,
        recovery: &Recovery,
    ) -> Result<Vec<Finding>, SeatError> {
        self.seat.switch(&subject.label, subject.wanted, &subject.differs)?;
        self.seat.recorded_here(&recovery.recording)?;
        let outer = subject.wanted.content().map_err(SeatError::Ends)?;
        let content = nested::content(recovery).map_err(SeatError::Ends)?;
        let beneath = || Ok(nested::beneath(&outer, &content));
        self.inner(&within(&subject.label, &recovery.state), &beneath)
    }

    fn inner(
        &mut self,
        name: &str,
        content: &dyn Fn() -> Result<Content, ExploreError>,
    ) -> Result<Vec<Finding>, SeatError> {
        let is_new = self.seat.age() == 0;
        let nonce = self.seat.use_state(name)?;
        match self.seat.check(nonce, self.program()) {
            Ok(found) => self.findings(found, false, content),
            Err(SeatError::Died(how)) => {
                self.seat.discard();
                if !is_new {
                    // As any other failure, it is tried once more.
                    log::debug!("{name}: {how}");
                }
                Ok(vec![self.unrecoverable(format!("recovering after the cut {how}"))])
            }
            Err(error) => Err(error),
        }
    }
}

impl Verifier for GuestVerifier<'_> {
    fn depends_on_promises(&self) -> bool {
        self.case.subject.checker.is_some()
    }

    /// As the one in place.
    fn is_monotone(&self) -> bool {
        self.bar.as_ref().is_none_or(|bar| !bar.profile.garbage)
    }

    fn point(&mut self, point: &Point<'_>) -> Result<(), ExploreError> {
        self.differs.also(point.changed());
        self.bar = Some(self.case.bar(point.profile, point.after)?);
        Ok(())
    }

    fn verify(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.differs.also(state.changed());
        let label = match self.settings.nested {
            // A name takes longer to find than the state to be shown.
            0 => format!("{}/p{} {:032x}", state.profile, state.after, state.fingerprint()),
            _ => state.name()?.0,
        };
        let differs = std::mem::take(&mut self.differs);
        let subject = Subject { label, wanted: state, differs };
        let verdict = self.judge(&subject);
        if verdict.is_err() {
            self.differs = Differs::Anywhere;
        }
        verdict
    }

    fn confirm(&mut self, state: &State<'_>) -> Result<Verdict, ExploreError> {
        self.seat.discard();
        self.verify(state)
    }

    fn recovered(
        &mut self,
        state: &State<'_>,
        recovery: &Recovery,
    ) -> Result<Verdict, ExploreError> {
        let subject = Subject { label: state.name()?.0, wanted: state, differs: Differs::Anywhere };
        let mut why = String::new();
        for _ in 0..GUESTS {
            match self.again(&subject, recovery) {
                Ok(findings) if findings.is_empty() => return Ok(Verdict::Passed),
                Ok(mut findings) => {
                    tell_where(&mut findings, recovery);
                    return Ok(Verdict::Failed(findings));
                }
                Err(SeatError::Ends(error)) => return Err(error),
                Err(SeatError::Died(how) | SeatError::Failed(how)) => {
                    self.seat.discard();
                    why = how;
                }
            }
        }
        Ok(Verdict::Unsure(why))
    }
}

/// The name of a state of the recovery on a state.
fn within(outer: &str, inner: &str) -> String {
    format!("{outer}{}{inner}", super::NESTED)
}

fn tell_where(findings: &mut [Finding], recovery: &Recovery) {
    for finding in findings {
        let text = &finding.text;
        finding.text = format!("the recovery was cut, too, at {}: {text}", recovery.state);
        finding.recovery = Some(recovery.clone());
    }
}
