//! What a machine with a recording can do besides: marks, cuts, states.

use super::{MachineError, OpenError, Options};
use crate::made::Made;
use crate::store::live::{LiveGate, lock};
use crate::store::power::Cut;
use crate::store::recording::{RecordingOptions, RecordingStore};
use crate::store::state::StateStore;
use crate::store::{Image, Store};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tornblk_model::crash::{Content, Fault, History, ModelError, Parsed, Profile, StateName};
use tornblk_model::event::Seq;
use tornblk_model::recording::{Header, RecordingError, StateReader, Trust, Writer};
use tornblk_proto::{Crashed, RecordingStatus};

pub(super) struct Recorded {
    file: PathBuf,
    /// Where this process made it.
    made: Option<Arc<Made>>,
    store: Arc<RecordingStore>,
    gate: Arc<LiveGate>,
    options: RecordingOptions,
    /// What the events say, and how many they were: worked out anew when there are more.
    history: Mutex<Option<(u64, Arc<History>)>>,
    /// What the recording began with; locked, so that nobody writes to it.
    image: Image,
}

impl Drop for Recorded {
    /// The cut is put on record even where nobody started again: the disk that was live must not
    /// come back when the recording is opened anew.
    fn drop(&mut self) {
        if self.store.writer().is_frozen() {
            self.power_is_back();
        }
    }
}

/// What a cut left.
pub(super) struct Resolution {
    /// What the one who asked for it is told.
    pub(super) answer: Result<Crashed, String>,
    /// The state that the next front-end sees, and the disk in it; `None`: none could be made.
    pub(super) shown: Option<(String, Arc<dyn Store>)>,
}

impl Resolution {
    pub(super) fn state(&self) -> Option<String> {
        self.shown.as_ref().map(|(name, _)| name.clone())
    }
}

/// The state that `text` names: in full, or only what it chooses of this profile and crash point.
pub(super) fn state_name(text: &str, profile: &Profile, after: Seq) -> Result<Parsed, ModelError> {
    if text.contains('/') { text.parse() } else { format!("{profile}/p{after}:{text}").parse() }
}

impl Recorded {
    /// Makes the recording, or goes on with it where it is there.
    pub(super) fn open(
        file: &Path,
        image: Image,
        options: &Options,
        gate: &Arc<LiveGate>,
    ) -> Result<Recorded, OpenError> {
        let own = RecordingOptions {
            profile: options.profile.clone(),
            seed: options.seed,
            read_only: options.read_only,
        };
        let block = options.logical_block_size;
        let there = file.try_exists().unwrap_or(true);
        let (gate_of_store, own_options) = (Arc::clone(gate) as _, own.clone());
        let store = if there {
            let open = (image.file(), image.path());
            RecordingStore::reopen(file, open, block, gate_of_store, own_options)
        } else {
            let said = description(options);
            let open = (image.file(), image.path());
            RecordingStore::create(file, open, block, said, gate_of_store, own_options)
        };
        let store = store.map_err(OpenError::Recording)?;
        warn_of_another_profile(file, store.writer(), &options.profile);
        let before = &store.writer().header().base.path;
        if image.path().canonicalize().is_ok_and(|now| now != *before) {
            log::warn!(
                "{} was begun on {}, and goes on with {}, which is the same: tools that read it look \
                 there unless they are told (--base)",
                file.display(),
                before.display(),
                image.path().display()
            );
        }
        let made = (!there).then(|| Made::of(file, store.writer()).ok().map(Arc::new)).flatten();
        Ok(Recorded {
            file: file.to_owned(),
            store: Arc::new(store),
            made,
            gate: Arc::clone(gate),
            options: own,
            history: Mutex::default(),
            image,
        })
    }

    /// The file, if it was made here.
    pub(super) fn made(&self) -> Option<Arc<Made>> {
        self.made.clone()
    }

    pub(super) fn live(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn header(&self) -> &Header {
        self.store.writer().header()
    }

    pub(super) fn status(&self) -> RecordingStatus {
        let events = self.store.writer().events();
        RecordingStatus { file: self.file.display().to_string(), events }
    }

    pub(super) fn writer(&self) -> &Writer {
        self.store.writer()
    }

    pub(super) fn last_event(&self) -> Option<Seq> {
        self.store.writer().events().checked_sub(1).map(Seq)
    }

    pub(super) fn mark(&self, name: &str) -> Result<Seq, MachineError> {
        self.store.mark(name).map_err(unmarked)
    }

    pub(super) fn mark_last(&self, name: &str) -> Result<Seq, MachineError> {
        self.store.mark_last(name).map_err(unmarked)
    }

    pub(super) fn freeze(&self) -> Seq {
        self.store.freeze()
    }

    /// Says in the recording that the power was cut, while it is off.
    pub(super) fn note_cut(&self) {
        if let Err(e) = self.store.writer().note_cut() {
            log::warn!("{e}");
        }
    }

    /// The disk has started again, on what the cut left: the recording says so, since its live
    /// disk is no more.
    pub(super) fn power_is_back(&self) {
        if let Err(e) = self.store.writer().thaw() {
            log::warn!("{e}");
        }
    }

    /// Could a state be shown? Its base is still what it was.
    pub(super) fn base_is_there(&self) -> Result<(), MachineError> {
        let base = &self.header().base;
        if self.header().on.is_some() {
            return base.check(None, Trust::Unchanged).map_err(failed);
        }
        base.check_open(self.image.file(), &base.path, Trust::Unchanged).map_err(failed)
    }

    /// What the events so far say.
    pub(super) fn history(&self) -> Result<Arc<History>, MachineError> {
        let mut known = lock(&self.history);
        let events = self.store.writer().events();
        if let Some((n, history)) = &*known
            && *n == events
        {
            return Ok(Arc::clone(history));
        }
        let reader = self.store.writer().reader().map_err(failed)?;
        let all: Result<Vec<_>, RecordingError> = reader.events().collect();
        let history = Arc::new(self.history_of(all.map_err(failed)?)?);
        *known = Some((events, Arc::clone(&history)));
        Ok(history)
    }

    fn history_of(
        &self,
        events: Vec<(Seq, tornblk_model::event::Event)>,
    ) -> Result<History, MachineError> {
        History::new(self.store.disk(), events)
            .map_err(|e| MachineError::Failed(format!("{}: {e}", self.file.display())))
    }

    /// The disk in a state, with an overlay for what is written to it.
    pub(super) fn show(&self, content: Content) -> Result<Arc<StateStore>, MachineError> {
        // The files that are open, whatever has become of their names.
        let reader = Arc::new(self.store.writer().reader().map_err(failed)?);
        let state = if reader.header().on.is_some() {
            StateReader::new(reader, None, Trust::Unchanged, content)
        } else {
            let image = self.image.file().try_clone();
            let image = image.map_err(|e| MachineError::Failed(e.to_string()))?;
            StateReader::over(reader, image, content)
        };
        let state = state.map_err(failed)?;
        let gate = Arc::clone(&self.gate) as _;
        Ok(Arc::new(StateStore::new(state, gate, self.options.clone())))
    }

    /// Works out what a cut left. Where the plan's own state cannot be, the answer says so, and
    /// the disk is in the one that would have been drawn: a guest can only start on some state.
    pub(super) fn resolve(&self, cut: &Cut) -> Resolution {
        let left = self.history().map(|history| {
            let asked = cut.plan.state.as_deref();
            match (resolve(&history, cut, asked), asked) {
                (Err(problem), Some(asked)) => {
                    let drawn = resolve(&history, cut, None);
                    let state = drawn.as_ref().map_or("no state", |(c, _)| &c.state).to_owned();
                    let problem = format!(
                        "the power is cut, but {asked} cannot be shown ({problem}): the disk is \
                         in {state}"
                    );
                    (drawn, Some(problem))
                }
                (left, _) => (left, None),
            }
        });
        let shown = left.and_then(|(left, problem)| {
            let (crashed, content) = left.map_err(MachineError::Malformed)?;
            // A guest can only start on some state: at worst on one that cannot be written.
            Ok((crashed, self.show(content)?, problem))
        });
        match shown {
            Ok((crashed, store, problem)) => Resolution {
                shown: Some((crashed.state.clone(), store as _)),
                answer: problem.map_or(Ok(crashed), Err),
            },
            Err(e) => {
                let answer = format!("the power is cut, but no state can be shown: {e}");
                Resolution { answer: Err(answer), shown: None }
            }
        }
    }
}

/// Chooses the state: the one that is asked for, or a drawn one, and breaks it with the faults
/// that were armed.
fn resolve(
    history: &History,
    cut: &Cut,
    asked: Option<&str>,
) -> Result<(Crashed, Content), ModelError> {
    let asked = asked.map(|text| state_name(text, &cut.plan.profile, cut.after)).transpose()?;
    let (profile, after) =
        asked.as_ref().map_or((&cut.plan.profile, cut.after), |p| (&p.profile, p.after));
    if after > cut.after {
        return Err(ModelError::State(format!(
            "it lies after event {after}, and the power was cut after event {}",
            cut.after
        )));
    }
    let point = history.cut(after, profile)?;
    let name = match &asked {
        None => point.random(cut.plan.seed, 0),
        Some(asked) => StateName::from(asked),
    };
    // `nth` counts from the moment at which the fault was armed, the model from the beginning.
    let counted = |(fault, since): &(Fault, Option<Seq>)| {
        let before = since.map_or(0, |since| history.count_for(fault, profile, since));
        Fault { nth: fault.nth.map(|nth| nth + before), ..fault.clone() }
    };
    let faults: Vec<Fault> = cut.faults.iter().map(counted).collect();
    let (name, mut told) = point.break_with(&name, &faults, cut.plan.seed)?;
    for words in &mut told {
        for (meant, (given, _)) in faults.iter().zip(&cut.faults) {
            if let Some(rest) = words.strip_prefix(&format!("{meant}:")) {
                *words = format!("{given}:{rest}");
                break;
            }
        }
    }
    let content = history.build(&name)?;
    let crashed = Crashed {
        event: cut.after.0,
        state: name.0,
        faults: told,
        volatile_writes: point.volatile().len() as u64,
    };
    Ok((crashed, content))
}

/// A recording that goes on under another profile than it was begun with.
pub(super) fn warn_of_another_profile(file: &Path, writer: &Writer, now: &Profile) {
    let now = now.to_string();
    if let Some(before) = writer.header().options["profile"].as_str()
        && before != now
    {
        log::warn!(
            "{} was begun on a disk with the profile {before}, and goes on with {now}: crashes \
             are those of {now} unless they name another (--profile {before} goes on with it)",
            file.display()
        );
    }
}

/// What the recording says of the device that made it.
pub(super) fn description(options: &Options) -> serde_json::Value {
    json!({
        "profile": options.profile.to_string(),
        "logical_block_size": options.logical_block_size,
        "physical_block_size": options.physical_block_size,
        "read_only": options.read_only,
        "seed": options.seed,
        "faults": options.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "serial": options.serial,
    })
}

pub(super) fn failed(error: RecordingError) -> MachineError {
    MachineError::Failed(error.to_string())
}

/// A mark may come in the very moment of a cut: no fault of the host.
fn unmarked(error: RecordingError) -> MachineError {
    match error {
        RecordingError::Frozen => MachineError::JustCut,
        other => failed(other),
    }
}
