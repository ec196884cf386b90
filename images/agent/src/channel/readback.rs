//! What a workload's files were found to hold.

use super::Workload;
use serde::{Deserialize, Serialize};

/// What was found, one entry a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readback {
    pub units: Vec<UnitFound>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitFound {
    pub file: u32,
    pub unit: u64,
    /// The unit's 512-byte sectors in order, equal neighbours together: (sectors, what).
    pub runs: Vec<(u32, Found)>,
}

/// A [`Readback`] in few bytes: mostly a number a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortReadback(pub Vec<(u32, Vec<ShortUnit>)>);

/// One unit, the units of a file being in order from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ShortUnit {
    /// The same in all of its sectors: our own block of this generation; -1: zeroes; -2: missing.
    Whole(i64),
    Runs(Vec<(u32, Found)>),
}

impl Readback {
    /// In few bytes. [`ShortReadback::expand`] takes it back.
    pub fn shorten(self) -> ShortReadback {
        let mut files: Vec<(u32, Vec<ShortUnit>)> = Vec::new();
        for unit in self.units {
            let short = match unit.runs.as_slice() {
                [(_, Found::Own { r#gen })] => ShortUnit::Whole(i64::from(*r#gen)),
                [(_, Found::Zero {})] => ShortUnit::Whole(-1),
                [(_, Found::Missing {})] => ShortUnit::Whole(-2),
                _ => ShortUnit::Runs(unit.runs),
            };
            match files.last_mut() {
                Some((file, units)) if *file == unit.file => units.push(short),
                _ => files.push((unit.file, vec![short])),
            }
        }
        ShortReadback(files)
    }
}

impl ShortReadback {
    /// `None`: it is not of this workload.
    pub fn expand(self, workload: &Workload) -> Option<Readback> {
        let mut units = Vec::new();
        for (file, shorts) in self.0 {
            let target = workload.files.iter().find(|target| target.file == file)?;
            let sectors = target.unit / 512;
            for (unit, short) in (0..).zip(shorts) {
                let runs = match short {
                    ShortUnit::Runs(runs) => runs,
                    ShortUnit::Whole(-1) => vec![(sectors, Found::Zero {})],
                    ShortUnit::Whole(-2) => vec![(sectors, Found::Missing {})],
                    ShortUnit::Whole(n) => {
                        vec![(sectors, Found::Own { r#gen: u32::try_from(n).ok()? })]
                    }
                };
                units.push(UnitFound { file, unit, runs });
            }
        }
        Some(Readback { units })
    }
}

/// What one sector holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Found {
    /// This workload's own block in its own place.
    Own {
        r#gen: u32,
    },
    /// This workload's block from another place.
    Misplaced {
        file: u32,
        unit: u64,
        sector: u32,
        r#gen: u32,
    },
    /// A block with our magic, but of another run.
    Foreign {
        nonce: u64,
    },
    /// Our magic, but the checksum is wrong.
    Corrupt {},
    Zero {},
    /// What lay on the disk before the file system was made ([`crate::payload::POISON`]).
    Poison {},
    /// Nothing we know.
    Unknown {},
    /// Beyond the end of the file, or no file.
    Missing {},
    /// The read failed.
    Error {
        errno: i32,
    },
}
