//! What must hold after a crash.
//!
//! Pure functions over three things: the [`Ledger`] (what the guest asked for and was told, from
//! the marks before the cut), the [`Wire`] (which requests carried which block, from the
//! recording) and the readback (what a guest found after the kernel's own recovery).
//!
//! The rules, for one *unit* (a block that the workload always writes whole):
//!
//! - **Durability** is demanded only for what was durable before the cut: a write with DSYNC that
//!   returned its full length, or any write that a sync covered, where the mark of that return
//!   lies before the cut. Anything below the last durable generation is [`Clause::Lost`], or
//!   [`Clause::Stale`] where the newer bytes are on the disk and older ones are shown.
//! - **Wholeness**: a unit that shows two generations is torn. A write that the kernel took as
//!   atomic (RWF_ATOMIC) must be whole always. Any other must be whole only where *every* request
//!   that carried sectors of it carried all of it, nothing else of that unit, and was one that the
//!   disk promises to keep whole (or all of it lay in one piece that this disk never tears). Everything else is a legal tear: counted, never a violation.
//! - **Origin**: a generation is legal only after its intent; what belongs elsewhere is
//!   [`Clause::Misdirected`], what nobody of this run wrote is [`Clause::Foreign`], a wrong
//!   checksum is [`Clause::Corrupt`], unless a buffered write's request carried it so already: pages
//!   are not kept still while a disk without checksums reads them, so that is a legal tear. What the
//!   disk made up itself is no finding where the crash model allows it (profile `garbage`: in blocks
//!   of volatile writes), but in a unit whose write had to be whole.
//!
//! - **Atomic on the wire**: where the kernel knows the disk's limits and nothing else makes a write
//!   whole, one with RWF_ATOMIC reaches the disk inside exactly one request that the disk keeps
//!   whole; else it is [`Clause::NotAtomic`]. What the kernel shows of those limits is what the
//!   device says ([`Clause::Limits`]), and what goes beyond them is refused ([`Clause::Accepted`]).
//!
//! - **Frozen**: between FIFREEZE's return and FITHAW nothing changes the disk ([`frozen`]).
//!
//! Not torn, durable and ordered are three verdicts: a unit can break more than one.

mod frozen;
mod judge;
mod ledger;
mod on_wire;
pub mod pages;
mod wire;

pub use frozen::{Frozen, frozen, is_frozen};
pub use judge::{Asking, Seen, judge, judge_unit};
pub use ledger::{Asked, Ledger, LedgerBuilder, UnitLedger};
pub use on_wire::{OnWire, Reached, on_wire};
pub use wire::{Anything, Carrier, Eligibility, Key, Reason, Wire, WireBuilder};

use crate::splat::Kind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use tornblk_agent::channel::WriteFlags;

/// Which promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clause {
    /// Parts of one write are there and parts are not, where all or nothing was promised.
    Torn,
    /// Acknowledged as durable, and not there.
    Lost,
    /// Acknowledged as durable and on the disk, but older content is shown.
    Stale,
    /// Belongs to another place.
    Misdirected,
    /// Written by nobody in this run, or never asked for.
    Foreign,
    /// Ours, but changed.
    Corrupt,
    /// The guest could not read it.
    Unreadable,
    /// The file system could not be recovered by its own kernel.
    Unrecoverable,
    /// A system call of the workload failed.
    Failed,
    /// Written with RWF_ATOMIC, but not sent as one atomic request.
    NotAtomic,
    /// The guest's kernel shows other atomic limits than the disk has.
    Limits,
    /// The guest's kernel took a write that it must refuse.
    Accepted,
    /// The guest's kernel complained: see [`crate::splat`].
    KernelWarning,
    /// A system call did not return, though all that it waits for was let go.
    Hung,
    /// Two ways of looking at a file show different bytes: mapped, read, on the disk.
    Incoherent,
    /// Space, or a reference, was not given back.
    Leaked,
    /// A request that changes the disk came while its file system was frozen.
    WroteFrozen,
    /// What was to be clean needed recovery.
    NotClean,
    /// A system call returned what it may not return.
    WrongResult,
    /// The user's own checker says so.
    Inconsistent,
}

impl Clause {
    pub const ALL: [Clause; 20] = [
        Clause::Torn,
        Clause::Lost,
        Clause::Stale,
        Clause::Misdirected,
        Clause::Foreign,
        Clause::Corrupt,
        Clause::Unreadable,
        Clause::Unrecoverable,
        Clause::Failed,
        Clause::NotAtomic,
        Clause::Limits,
        Clause::Accepted,
        Clause::KernelWarning,
        Clause::Hung,
        Clause::Incoherent,
        Clause::Leaked,
        Clause::WroteFrozen,
        Clause::NotClean,
        Clause::WrongResult,
        Clause::Inconsistent,
    ];

    /// By its name.
    pub fn named(name: &str) -> Option<Clause> {
        Clause::ALL.into_iter().find(|clause| clause.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Clause::Torn => "torn",
            Clause::Lost => "lost",
            Clause::Stale => "stale",
            Clause::Misdirected => "misdirected",
            Clause::Foreign => "foreign",
            Clause::Corrupt => "corrupt",
            Clause::Unreadable => "unreadable",
            Clause::Unrecoverable => "unrecoverable",
            Clause::Failed => "failed",
            Clause::NotAtomic => "not-atomic",
            Clause::Limits => "limits",
            Clause::Accepted => "accepted",
            Clause::KernelWarning => "kernel-warning",
            Clause::Hung => "hung",
            Clause::Incoherent => "incoherent",
            Clause::Leaked => "leaked",
            Clause::WroteFrozen => "wrote-frozen",
            Clause::NotClean => "not-clean",
            Clause::WrongResult => "wrong-result",
            Clause::Inconsistent => "inconsistent",
        }
    }

    /// Does a state of the disk show it, to whoever looks at that state again?
    pub fn is_of_the_disk(self) -> bool {
        use Clause::{
            Corrupt, Foreign, Inconsistent, Lost, Misdirected, Stale, Torn, Unreadable,
            Unrecoverable,
        };
        matches!(
            self,
            Torn | Lost
                | Stale
                | Misdirected
                | Foreign
                | Corrupt
                | Unreadable
                | Unrecoverable
                | Inconsistent
        )
    }

    /// Is it neither in a state of the disk nor in the recording, but in what a guest said or did?
    pub fn is_of_a_guest(self) -> bool {
        use Clause::{Accepted, Hung, Incoherent, KernelWarning, Leaked, Limits, WrongResult};
        matches!(self, Limits | Accepted | KernelWarning | Hung | Incoherent | Leaked | WrongResult)
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one logical block of a unit shows, seen from the write that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    /// Content of that write, or newer.
    New,
    /// Older content (or none).
    Old,
    /// Neither.
    Other,
    /// More than one of these: only below the logical block, which no disk tears.
    Mixed,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub clause: Clause,
    /// Number of the target, and its path in the guest.
    pub file: u32,
    pub path: String,
    /// The unit, and where it begins in the file (bytes).
    pub unit: u64,
    pub offset: u64,
    pub len: u32,
    /// The write it is about.
    pub generation: Option<u32>,
    /// Generations shown, the lowest first; `None` is "no content yet".
    pub shown: Vec<Option<u32>>,
    /// The last generation that had to survive.
    pub durable: Option<u32>,
    /// The system call, as one would write it in C.
    pub call: String,
    /// One cell a logical block.
    pub strip: Vec<Cell>,
    /// What happened, in a sentence.
    pub text: String,
    /// What kind of complaint of the guest's kernel it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complaint: Option<Kind>,
    /// Where it was found, if not in the state itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// Of a race: who did what before, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<String>,
}

impl Finding {
    /// About no unit and no write yet.
    pub fn new(clause: Clause, text: String) -> Finding {
        Finding {
            clause,
            file: 0,
            path: String::new(),
            unit: 0,
            offset: 0,
            len: 0,
            generation: None,
            shown: Vec::new(),
            durable: None,
            call: String::new(),
            strip: Vec::new(),
            text,
            complaint: None,
            recovery: None,
            timeline: Vec::new(),
        }
    }
}

/// A state of the recovery on a state: what was done there was recorded, and the power cut again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Its name in the recording of the recovery.
    pub state: String,
    /// That recording, while it exists: a bundle has it in itself.
    #[serde(skip)]
    pub recording: PathBuf,
}

/// A tear that the disk is allowed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LegalTear {
    pub file: u32,
    pub unit: u64,
    pub generation: u32,
    pub reason: Reason,
    pub strip: Vec<Cell>,
}

/// How much was put to the test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Units read back.
    pub units: u64,
    /// Writes asked for before the cut.
    pub writes: u64,
    /// Writes that had to be whole...
    pub eligible: u64,
    /// ...of which so many had a request that was volatile at the cut: these are the ones that
    /// this cut could have torn.
    pub at_risk: u64,
    /// Writes seen on the wire that nobody promised to keep whole.
    pub not_eligible: u64,
    /// Units where a write of the workload (not of its load) had to survive.
    pub durable: u64,
    /// Units torn where that is allowed.
    pub legal_tears: u64,
    /// Writes with RWF_ATOMIC that reached the disk inside one atomic request each.
    #[serde(default)]
    pub atomic: u64,
    /// Requests that held more than one of them.
    #[serde(default)]
    pub merged: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, o: Counts) {
        self.units += o.units;
        self.writes += o.writes;
        self.eligible += o.eligible;
        self.at_risk += o.at_risk;
        self.not_eligible += o.not_eligible;
        self.durable += o.durable;
        self.legal_tears += o.legal_tears;
        self.atomic += o.atomic;
        self.merged += o.merged;
    }
}

/// The judgement of one cut.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    pub findings: Vec<Finding>,
    pub tears: Vec<LegalTear>,
    pub counts: Counts,
}

/// The system call of a write, as one would write it in C, or the commit that it is.
pub fn call(len: u32, offset: u64, flags: WriteFlags) -> String {
    if flags.protocol {
        return format!("commit(len {len}, offset {offset}, O_DIRECT), by a protocol of its own");
    }
    let rwf: Vec<&str> = [(flags.atomic, "RWF_ATOMIC"), (flags.dsync, "RWF_DSYNC")]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
    let rwf = if rwf.is_empty() { "0".to_owned() } else { rwf.join("|") };
    let open = if flags.direct { ", O_DIRECT" } else { "" };
    format!("pwritev2(len {len}, offset {offset}, {rwf}{open})")
}
