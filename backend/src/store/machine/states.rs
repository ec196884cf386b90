//! The states of a recording, one after another, and no live disk: for the one who explores it.
//!
//! The recording and its base image are only read, so any number of devices can show them at a
//! time. A state is asked for by its name, or (the fast way) as what is different from the one that
//! is shown. What is done to a state can be recorded in turn: the states of that *inner* recording
//! are then `OUTER // INNER`.

use super::recorded::failed;
use super::watch::{Watch, What};
use super::{Machine, MachineError, OpenError, Options, Shared};
use crate::store::live::{LiveGate, lock};
use crate::store::recording::{RecordingOptions, RecordingStore};
use crate::store::state::StateStore;
use crate::store::{Image, Store};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use tornblk_model::crash::{Content, History, Source, StateName};
use tornblk_model::event::{Disk, Seq};
use tornblk_model::recording::{
    Header, NewRecording, OuterState, Reader, RecordingError, StateReader, Trust, Writer,
};
use tornblk_proto::{RecordingStatus, Run, RunSource, StateShown};

/// Between the name of a state and that of a state of what was recorded on it.
const NESTED: &str = " // ";
/// What is shown before anything else is asked for: the base image.
pub(super) const BASE: &str = "base";
/// Of an inner recording: a recovery writes little.
const SEGMENT: u64 = 1 << 20;

pub(super) struct States {
    file: PathBuf,
    reader: Arc<Reader>,
    store: Arc<StateStore>,
    gate: Arc<LiveGate>,
    options: RecordingOptions,
    /// How many there are, once somebody asks.
    events: OnceLock<u64>,
    /// What the events say, once somebody asks for a state by its name.
    history: Mutex<Option<Arc<History>>>,
    inner: Mutex<Option<Inner>>,
    /// Kept for its lock: nobody writes to the base image while its states are shown.
    kept: Image,
    image: PathBuf,
}

/// What was recorded on a state.
struct Inner {
    file: PathBuf,
    outer: String,
    /// The disk as it began.
    base: StateReader,
    /// Once somebody asks for one of its states: then nothing is recorded any more.
    known: Option<(Arc<Reader>, History)>,
}

impl States {
    /// Opens the recording; its base image, too, or a copy of that.
    pub(super) fn open(
        file: &Path,
        options: &Options,
        gate: impl FnOnce(&Disk) -> Arc<LiveGate>,
    ) -> Result<States, OpenError> {
        let reader = Arc::new(Reader::open(file).map_err(OpenError::Recording)?);
        let disk = reader.header().disk.clone();
        if disk.lb_size != options.logical_block_size {
            let (has, asked) = (disk.lb_size, options.logical_block_size);
            return Err(OpenError::OtherBlocks { path: file.to_owned(), has, asked });
        }
        let base = Some(options.image.as_path()).filter(|path| !path.as_os_str().is_empty());
        let trust = if base.is_some() { Trust::SameContent } else { Trust::Unchanged };
        let state = StateReader::new(Arc::clone(&reader), base, trust, Content::default())
            .map_err(OpenError::Recording)?;
        let image = base.unwrap_or(&reader.header().base.path).to_owned();
        let kept = Image::open(&image, 1, true)?;
        let gate = gate(&disk);
        let own = RecordingOptions {
            profile: options.profile.clone(),
            seed: options.seed,
            read_only: options.read_only,
        };
        Ok(States {
            file: file.to_owned(),
            store: Arc::new(StateStore::new(state, Arc::clone(&gate) as _, own.clone())),
            reader,
            gate,
            options: own,
            events: OnceLock::new(),
            history: Mutex::default(),
            inner: Mutex::default(),
            kept,
            image,
        })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn header(&self) -> &Header {
        self.reader.header()
    }

    pub(super) fn known(&self, watch: &Watch) {
        watch.know(What::Recording, &self.file, &*self.reader);
        watch.know(What::Image, &self.image, self.kept.file());
    }

    pub(super) fn disk(&self) -> Disk {
        self.reader.header().disk.clone()
    }

    pub(super) fn gate(&self) -> Arc<LiveGate> {
        Arc::clone(&self.gate)
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    pub(super) fn status(&self) -> RecordingStatus {
        let events = *self.events.get_or_init(|| self.reader.info().map_or(0, |info| info.events));
        RecordingStatus { file: self.file.display().to_string(), events }
    }

    fn history(&self) -> Result<Arc<History>, MachineError> {
        let mut known = lock(&self.history);
        if let Some(history) = &*known {
            return Ok(Arc::clone(history));
        }
        let history = Arc::new(history_of(&self.reader)?);
        *known = Some(Arc::clone(&history));
        Ok(history)
    }

    /// The disk in a state of what was recorded on `outer`.
    fn inner(&self, outer: &str, name: &str) -> Result<StateStore, MachineError> {
        let mut inner = lock(&self.inner);
        let inner = inner.as_mut().filter(|i| i.outer == outer).ok_or(MachineError::NoInner)?;
        let (reader, history) = match &mut inner.known {
            Some(known) => known,
            none => {
                let reader = Arc::new(Reader::open(&inner.file).map_err(failed)?);
                let history = history_of(&reader)?;
                none.insert((reader, history))
            }
        };
        let content = history.build(&StateName(name.to_owned())).map_err(MachineError::NoState)?;
        let base = inner.base.try_clone().map_err(failed)?;
        let state = StateReader::on(Arc::clone(reader), base, content).map_err(failed)?;
        Ok(StateStore::new(state, Arc::clone(&self.gate) as _, self.options.clone()))
    }
}

fn history_of(reader: &Reader) -> Result<History, MachineError> {
    let events: Result<Vec<_>, RecordingError> = reader.events().collect();
    History::new(reader.header().disk.clone(), events.map_err(failed)?)
        .map_err(|e| MachineError::Failed(format!("{}: {e}", reader.path().display())))
}

fn hex(fingerprint: u128) -> String {
    format!("{fingerprint:032x}")
}

impl Machine {
    fn states(&self, what: &'static str) -> Result<&States, MachineError> {
        self.shared.states.as_ref().ok_or(MachineError::NeedsStates(what))
    }

    /// [`Machine::use_state`] where there is no live disk.
    pub(super) fn use_state_of(
        &self,
        states: &States,
        name: &str,
    ) -> Result<StateShown, MachineError> {
        if let Some((outer, inner)) = name.split_once(NESTED) {
            let store = states.inner(outer, inner)?;
            let fingerprint = store.fingerprint();
            self.shared.exchange(Arc::new(store), Shared::idle)?;
            return Ok(self.shown(name, Some(hex(fingerprint))));
        }
        let content = match name {
            BASE => Content::default(),
            name => {
                let history = states.history()?;
                history.build(&StateName(name.to_owned())).map_err(MachineError::NoState)?
            }
        };
        let mut fingerprint = 0;
        self.shared.exchange(states.store(), |shared| {
            shared.idle()?;
            fingerprint = states.store.set_content(content);
            Ok(())
        })?;
        Ok(self.shown(name, Some(hex(fingerprint))))
    }

    /// Shows the state that differs in `runs` from the one of this fingerprint, which must be shown
    /// (or the base image).
    ///
    /// # Errors
    /// There are no states, another one is shown, a run lies outside of the disk, or requests are
    /// in flight.
    pub fn use_content(
        &self,
        name: &str,
        from: Option<&str>,
        runs: &[Run],
    ) -> Result<StateShown, MachineError> {
        let states = self.states("use-content")?;
        let _one = lock(&self.shared.exchanging);
        let disk = states.disk();
        let blocks = disk.capacity / u64::from(disk.lb_size);
        for Run(first, n, _) in runs {
            if first.checked_add(*n).is_none_or(|end| end > blocks) {
                return Err(MachineError::Outside(*first, first.saturating_add(*n)));
            }
        }
        let mut fingerprint = 0;
        self.shared.exchange(states.store(), |shared| {
            shared.idle()?;
            match from {
                None => {
                    states.store.set_content(Content::default());
                }
                Some(from) => {
                    let shown = hex(states.store.fingerprint());
                    if from != shown {
                        return Err(MachineError::OtherContent { from: from.to_owned(), shown });
                    }
                }
            }
            fingerprint = states.store.patch(runs.iter().flat_map(expand));
            Ok(())
        })?;
        Ok(self.shown(name, Some(hex(fingerprint))))
    }

    /// Records what is done to the state that is shown, until the next change of state.
    ///
    /// # Errors
    /// There are no states, requests are in flight, or the file exists or cannot be made.
    pub fn record_here(&self, file: &Path) -> Result<(), MachineError> {
        let states = self.states("record-here")?;
        let _one = lock(&self.shared.exchanging);
        let outer = lock(&self.shared.view).state.clone().unwrap_or_default();
        if outer.is_empty() || outer.contains(NESTED) {
            let text = format!(
                "what is done to {outer} cannot be recorded: it is a state of a \
                                recording that was made on a state itself"
            );
            return Err(MachineError::Failed(text));
        }
        self.shared.idle()?;
        let base = states.store.reader().map_err(failed)?;
        let header = states.reader.header();
        let mut new = NewRecording::new(
            header.disk.clone(),
            header.base.clone(),
            serde_json::json!({ "profile": states.options.profile.to_string() }),
        );
        let recording = states.file.canonicalize().unwrap_or_else(|_| states.file.clone());
        new.on = Some(OuterState { recording, state: outer.clone() });
        new.segment_size = SEGMENT;
        let writer = Writer::create(file, new).map_err(failed)?;
        let kept = base.try_clone().map_err(failed)?;
        let gate = Arc::clone(&states.gate) as _;
        let store = RecordingStore::on_state(writer, base, gate, states.options.clone());
        self.shared.exchange(Arc::new(store.map_err(failed)?), Shared::idle)?;
        let inner = Inner { file: file.to_owned(), outer, base: kept, known: None };
        *lock(&states.inner) = Some(inner);
        Ok(())
    }

    /// Takes up what [`Machine::record_here`] recorded on the state that is shown.
    ///
    /// # Errors
    /// There are no states, or the file is no recording that was made on this one.
    pub fn recorded_here(&self, file: &Path) -> Result<(), MachineError> {
        let states = self.states("recorded-here")?;
        let _one = lock(&self.shared.exchanging);
        let outer = lock(&self.shared.view).state.clone().unwrap_or_else(|| BASE.to_owned());
        let reader = Reader::open(file).map_err(failed)?;
        let header = reader.header();
        let on = header.on.as_ref().map(|on| on.state.as_str());
        if on != Some(outer.as_str()) || header.disk != states.disk() {
            return Err(MachineError::Failed(format!(
                "{} was recorded on {}, and the disk shows {outer}: use-state, and then \
                 recorded-here",
                file.display(),
                on.unwrap_or("no state of a recording"),
            )));
        }
        let base = states.store.reader().map_err(failed)?;
        *lock(&states.inner) = Some(Inner { file: file.to_owned(), outer, base, known: None });
        Ok(())
    }
}

/// The blocks of a run, with what they hold.
fn expand(run: &Run) -> impl Iterator<Item = (u64, Source)> {
    let Run(first, n, source) = *run;
    (0..n).map(move |i| {
        let block = |block: u32| block.saturating_add(u32::try_from(i).unwrap_or(u32::MAX));
        let source = match source {
            RunSource::Base => Source::Base,
            RunSource::Zeroes => Source::Zeroes,
            RunSource::Written(request, b) => {
                Source::Written { request: Seq(request), block: block(b) }
            }
            RunSource::Garbage(seed) => Source::Garbage { seed },
            RunSource::Flipped(request, b, bit) => {
                let number = if request.is_some() { block(b) } else { b };
                Source::Flipped { request: request.map(Seq), block: number, bit }
            }
        };
        (first + i, source)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{Rig, SIZE, bytes, options, rig};
    use super::*;
    use crate::store::testing::{ask, flush, read, write};
    use tornblk_proto::{RefusalKind, nonce_of};

    /// A recording of some writes, and a machine that shows its states.
    fn states_rig() -> (Rig, Rig) {
        let recorded = rig("lb512", |_| {});
        let mut queue = recorded.machine.queue(0);
        ask(&mut *queue, write(0, 0, bytes(0xa1))).unwrap();
        ask(&mut *queue, flush(1)).unwrap();
        ask(&mut *queue, write(2, 2048, bytes(0xb2))).unwrap();
        ask(&mut *queue, write(3, 65536, bytes(0xc3))).unwrap();
        drop(queue);
        let shows = states_of(&recorded);
        (recorded, shows)
    }

    /// A machine that shows the states of what another recorded.
    fn states_of(recorded: &Rig) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::open(Options {
            image: PathBuf::new(),
            recording: None,
            states: Some(recorded.dir.path().join("disk.rec")),
            ..options(dir.path(), "lb512")
        });
        let shows = Rig { machine: machine.unwrap(), dir, base: recorded.base.clone() };
        shows.connect();
        shows
    }

    fn runs(from: &Content, to: &Content) -> Vec<Run> {
        let blocks = from.blocks.keys().chain(to.blocks.keys());
        let blocks: std::collections::BTreeSet<u64> = blocks.copied().collect();
        let differ = blocks.into_iter().filter(|b| from.of(*b) != to.of(*b));
        let run = |b| match to.of(b) {
            Source::Base => Run(b, 1, RunSource::Base),
            Source::Written { request, block } => Run(b, 1, RunSource::Written(request.0, block)),
            other => panic!("{other:?}"),
        };
        differ.map(run).collect()
    }

    #[test]
    fn a_state_is_the_same_by_name_and_by_difference() {
        let (recorded, shows) = states_rig();
        let history = recorded.history();
        let last = history.requests().last().unwrap().id();
        let names = ["none", "all", "none", "none,+w5", "all,-w5.3"];
        assert!(shows.content() == recorded.base, "the base image is shown first");
        assert_eq!(shows.machine.status().store, "states");
        assert_eq!(shows.machine.status().state, "base");
        let (mut from, mut fingerprint) = (Content::default(), None);
        for choice in names {
            let name = format!("lb512/p{}:{choice}", last.0 + 1);
            let write = history.requests()[2].id().0.to_string();
            let name = name.replace("w5", &format!("w{write}"));
            let by_name = shows.machine.use_state(&name).unwrap();
            let bytes_by_name = shows.content();
            let to = history.build(&StateName(name.clone())).unwrap();
            let known = fingerprint.as_deref().map(str::to_owned);
            // Back to where the difference begins.
            let all = runs(&Content::default(), &from);
            shows.machine.use_content("from", None, &all).unwrap();
            let patch = runs(&from, &to);
            let shown =
                shows.machine.use_content(&name, known.as_deref().or(Some(&hex(0))), &patch);
            let shown = shown.unwrap();
            assert!(shows.content() == bytes_by_name, "{name}");
            assert_eq!(shown.fingerprint, by_name.fingerprint, "{name}");
            assert_eq!(shown.fingerprint, Some(hex(to.fingerprint())));
            let id = String::from_utf8(shows.machine.id_string().to_vec()).unwrap();
            assert_eq!(nonce_of(&id), Some(shown.nonce));
            // What is written is gone with the next state.
            let mut queue = shows.machine.queue(0);
            ask(&mut *queue, write_at(8192)).unwrap();
            (from, fingerprint) = (to, shown.fingerprint);
        }
    }

    fn write_at(at: u64) -> crate::store::Request {
        write(0, at, bytes(0xee))
    }

    #[test]
    fn a_difference_against_another_state_and_what_needs_a_live_disk_are_refused() {
        let (_recorded, shows) = states_rig();
        let machine = &shows.machine;
        let kind = Rig::kind::<StateShown>;
        assert_eq!(kind(machine.use_content("x", Some(&hex(7)), &[])), RefusalKind::NotFound);
        let outside = [Run(SIZE / 512, 1, RunSource::Zeroes)];
        assert_eq!(kind(machine.use_content("x", None, &outside)), RefusalKind::Malformed);
        assert_eq!(
            kind(machine.use_state("lb512/p0:none // lb512/p0:none")),
            RefusalKind::NotFound
        );
        assert_eq!(kind(machine.use_state("nonsense")), RefusalKind::NotFound);
        assert_eq!(Rig::kind(machine.mark("x")), RefusalKind::Unsupported);
        let crash = machine.arm_crash(tornblk_proto::Trigger::Now, None, None, None);
        assert_eq!(Rig::kind(crash), RefusalKind::Unsupported);
        let live = rig("lb512", |_| {});
        assert_eq!(kind(live.machine.use_content("x", None, &[])), RefusalKind::Unsupported);
    }

    #[test]
    fn what_is_done_to_a_state_is_recorded_and_has_states_of_its_own() {
        let (recorded, shows) = states_rig();
        let last = recorded.history().requests().last().unwrap().id();
        let outer = format!("lb512/p{}:none", last.0 + 1);
        shows.machine.use_state(&outer).unwrap();
        let before = shows.content();
        let file = shows.dir.path().join("inner.rec");
        shows.machine.record_here(&file).unwrap();
        assert!(shows.content() == before);
        let mut queue = shows.machine.queue(0);
        // Half of a block of 4 KiB that the outer state shows, and beyond.
        ask(&mut *queue, write(0, 2048, bytes(0xd4))).unwrap();
        ask(&mut *queue, flush(1)).unwrap();
        ask(&mut *queue, write(2, 0, vec![0xe5; 1024])).unwrap();
        let all = shows.content();
        let reader = Reader::open(&file).unwrap();
        assert_eq!(reader.header().on.as_ref().unwrap().state, outer);
        let history = history_of(&reader).unwrap();
        let end = history.requests().last().unwrap().id();
        let mut expected = before.clone();
        expected[2048..6144].fill(0xd4);
        for (choice, then) in [("none", expected), ("all", all)] {
            let inner = format!("lb512/p{}:{choice}", end.0 + 1);
            let name = format!("{outer}{NESTED}{inner}");
            shows.machine.use_state(&name).unwrap();
            assert!(shows.content() == then, "{name}");
            assert_eq!(shows.machine.status().state, name);
            // The same, by whoever finds the inner recording.
            let content = history.build(&StateName(inner)).unwrap();
            let reader = Arc::new(Reader::open(&file).unwrap());
            let state = StateReader::new(reader, None, Trust::Unchanged, content).unwrap();
            let mut bytes = vec![0; SIZE as usize];
            state.read_at(0, &mut bytes).unwrap();
            assert!(bytes == then, "{name}");
        }
        // Another device takes up what this one recorded, on that very state.
        let other = states_of(&recorded);
        let shown = other.machine.recorded_here(&file);
        assert!(shown.unwrap_err().to_string().contains("and the disk shows base"));
        other.machine.use_state(&outer).unwrap();
        other.machine.recorded_here(&file).unwrap();
        for choice in ["none", "all"] {
            let name = format!("{outer}{NESTED}lb512/p{}:{choice}", end.0);
            assert!(other.machine.use_state(&name).is_ok());
            shows.machine.use_state(&name).unwrap();
            assert!(other.content() == shows.content(), "{name}");
        }
        let again = shows.machine.record_here(&shows.dir.path().join("deeper.rec"));
        assert_eq!(Rig::kind(again), RefusalKind::Failed);
        shows.machine.use_state(&outer).unwrap();
        assert!(shows.content() == before);
        assert_eq!(ask(&mut *queue, read(3, 2048, 4096)).unwrap(), before[2048..6144]);
        assert_eq!(Rig::kind(shows.machine.record_here(&file)), RefusalKind::Failed, "it exists");
    }
}
