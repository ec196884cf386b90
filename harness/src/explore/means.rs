//! How the states of a recording are judged: in place where its oracle judges units, else by guests.

use super::bundle::{Judge, Needed};
use super::guest::{Case, GuestSettings, GuestVerifier};
use super::{
    Call, Carried, Explain, ExploreError, InPlace, JudgedPages, Ledgers, Opened, PageUnits, Pages,
    Promises, Subject, UnitOracle, Verifier, WorkloadUnits,
};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tornblk_image::Lock;
use tornblk_model::crash::Profile;
use tornblk_model::event::Seq;
use tornblk_model::recording::RecordingError;

/// What an exploration and a reproduction need of whoever judges.
pub trait Means: Sync {
    fn judge(&self) -> Judge;
    /// What of the base image a bundle must hold.
    fn needed(&self) -> Needed;
    /// Judges states of this disk.
    ///
    /// # Errors
    /// It cannot.
    fn on(&self, profile: &Profile) -> Result<Box<dyn OnProfile + '_>, ExploreError>;
    fn promises(&self) -> &Promises;
    fn explain(&self) -> &dyn Explain;
    /// Where pages are what is judged.
    fn pages(&self) -> Option<&PageUnits> {
        None
    }
    /// Of the guests.
    fn image(&self) -> Option<Lock> {
        None
    }
}

/// What guests that judge are told.
#[derive(Clone, Debug)]
pub struct GuestNeeds {
    /// An existing folder, for consoles and logs.
    pub dir: PathBuf,
    /// Of one state in so many the file system's own checker is asked.
    pub fsck_every: u64,
    /// So many states of the recovery on each state are judged, too.
    pub nested: u64,
    pub seed: u64,
    /// Ctrl-C.
    pub stop: Arc<AtomicBool>,
}

/// Judges states of one disk that one might buy.
pub trait OnProfile: Sync {
    /// A verifier of its own for each worker thread.
    ///
    /// # Errors
    /// No guest can be started.
    fn verifier(&self, thread: usize) -> Result<Box<dyn Verifier + '_>, ExploreError>;
}

type MakeOracle = dyn Fn(&Profile) -> Box<dyn UnitOracle> + Send + Sync;

/// Units, judged in place.
pub struct Units {
    make: Box<MakeOracle>,
    needed: Vec<Range<u64>>,
    promises: Promises,
    explain: Box<dyn Explain>,
    pages: Option<PageUnits>,
}

impl Units {
    /// `make` gives the oracle of a profile; the units are the same for all.
    pub fn new(make: Box<MakeOracle>, promises: Promises, explain: Box<dyn Explain>) -> Units {
        let units = make(&Profile::PLAIN);
        let needed = units.units().iter().flat_map(|unit| unit.ranges.iter().cloned()).collect();
        drop(units);
        Units { make, needed, promises, explain, pages: None }
    }

    /// Those of a workload on a raw disk.
    ///
    /// # Errors
    /// The recording or its base image cannot be read, or it cannot be judged in place.
    pub fn of(opened: &Opened, subject: &Subject) -> Result<Units, ExploreError> {
        let units = WorkloadUnits::of_recording(
            opened.reader.clone(),
            opened.base.as_deref(),
            opened.trust(),
            &opened.events,
            Arc::clone(&opened.history),
            subject,
            Profile::PLAIN,
        )?;
        let promises = units.ledgers().promises();
        let explain = Box::new(ByUnits(units.clone()));
        Ok(Units::new(
            Box::new(move |profile| Box::new(units.on(profile.clone()))),
            promises,
            explain,
        ))
    }

    /// Data pages of files, whatever else the recording says of its judge.
    ///
    /// # Errors
    /// The recording or its base image cannot be read, or it has no page that can be judged.
    pub fn pages(opened: &Opened, pages: &Pages) -> Result<Units, ExploreError> {
        Units::of_pages(opened, |opened| PageUnits::of(opened, pages))
    }

    /// Those that were judged when a bundle was made, of what is in the bundle.
    ///
    /// # Errors
    /// As [`Units::pages`].
    pub fn pages_again(opened: &Opened, judged: &JudgedPages) -> Result<Units, ExploreError> {
        Units::of_pages(opened, |opened| PageUnits::again(opened, judged))
    }

    fn of_pages(
        opened: &Opened,
        units: impl FnOnce(&Opened) -> Result<PageUnits, ExploreError>,
    ) -> Result<Units, ExploreError> {
        if !opened.reader.header().data {
            let path = opened.reader.path().to_owned();
            return Err(RecordingError::NoPayload { path }.into());
        }
        let units = units(opened)?;
        let make = units.clone();
        let make = Box::new(move |_: &Profile| Box::new(make.clone()) as Box<dyn UnitOracle>);
        let explain = Box::new(opened.files.clone());
        Ok(Units { pages: Some(units), ..Units::new(make, Promises::default(), explain) })
    }
}

impl std::fmt::Debug for Units {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Units").finish_non_exhaustive()
    }
}

impl Means for Units {
    fn judge(&self) -> Judge {
        Judge::InPlace
    }

    fn needed(&self) -> Needed {
        Needed::Blocks(self.needed.clone())
    }

    fn on(&self, profile: &Profile) -> Result<Box<dyn OnProfile + '_>, ExploreError> {
        Ok(Box::new(OneOracle((self.make)(profile))))
    }

    fn promises(&self) -> &Promises {
        &self.promises
    }

    fn explain(&self) -> &dyn Explain {
        &*self.explain
    }

    fn pages(&self) -> Option<&PageUnits> {
        self.pages.as_ref()
    }
}

struct OneOracle(Box<dyn UnitOracle>);

impl OnProfile for OneOracle {
    fn verifier(&self, _: usize) -> Result<Box<dyn Verifier + '_>, ExploreError> {
        Ok(Box::new(InPlace::new(&*self.0)))
    }
}

struct ByUnits(WorkloadUnits);

impl Explain for ByUnits {
    fn call(&self, write: Seq, blocks: &Range<u64>) -> Option<Call> {
        self.0.carried().call(write, blocks)
    }
}

/// Guests that stay booted, one for each worker thread.
pub struct Guests<'a> {
    case: Case<'a>,
    settings: GuestSettings,
    promises: Promises,
    /// Says where a write came from.
    explain: Box<dyn Explain>,
}

impl std::fmt::Debug for Guests<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests").field("case", &self.case).finish_non_exhaustive()
    }
}

impl<'a> Guests<'a> {
    /// `settings` has the programs, the guest's image and where consoles and logs go.
    ///
    /// # Errors
    /// The recording or its base image cannot be read.
    pub fn of(
        opened: &'a Opened,
        subject: &Subject,
        settings: GuestSettings,
    ) -> Result<Guests<'a>, ExploreError> {
        let base = opened.base.as_deref();
        let (events, reader) = (&opened.events, opened.reader.clone());
        let case = Case::new(&reader, base, subject.clone(), events, &opened.history)?;
        let promises = case.promises();
        if subject.checker.is_some() {
            let files = opened.files.clone();
            return Ok(Guests { case, settings, promises, explain: Box::new(files) });
        }
        let ledgers = Arc::new(Ledgers::new(&subject.workload, events));
        let workload = &subject.workload;
        let carried = Carried::of(reader, base, opened.trust(), events, workload, ledgers)?;
        Ok(Guests { case, settings, promises, explain: Box::new(carried) })
    }
}

impl Means for Guests<'_> {
    fn judge(&self) -> Judge {
        Judge::Guest
    }

    /// A file system may look anywhere.
    fn needed(&self) -> Needed {
        Needed::All
    }

    fn on(&self, _: &Profile) -> Result<Box<dyn OnProfile + '_>, ExploreError> {
        Ok(Box::new(EachAGuest(self)))
    }

    fn promises(&self) -> &Promises {
        &self.promises
    }

    fn explain(&self) -> &dyn Explain {
        &*self.explain
    }

    fn image(&self) -> Option<Lock> {
        Some(self.settings.image.lock.clone())
    }
}

struct EachAGuest<'a>(&'a Guests<'a>);

impl OnProfile for EachAGuest<'_> {
    fn verifier(&self, thread: usize) -> Result<Box<dyn Verifier + '_>, ExploreError> {
        Ok(Box::new(GuestVerifier::new(&self.0.case, &self.0.settings, thread)?))
    }
}
