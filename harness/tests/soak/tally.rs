//! What was done, counted.

use super::blows::NOTHING;
use super::rig::device::Memory;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Own memory (KiB) that a device may have gained since it was warm: what the allocator keeps, and
/// the index of blocks that the first cycle did not touch.
pub(crate) const FLAT: u64 = 6 << 10;

/// The sample of a device's memory that later ones are compared with: before it, a device is cold.
pub(crate) const WARM: usize = 1;

/// Of one device, or of several one after another.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// Of what is counted, what must have happened.
    pub(crate) due: Vec<&'static str>,
    pub(crate) cycles: u64,
    pub(crate) passes: u64,
    pub(crate) verified: u64,
    /// Of what happened while fio ran or the disk was at rest.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// After each cycle of a device that is never killed.
    pub(crate) memory: Vec<Memory>,
}

#[derive(Debug)]
pub(crate) struct Tally {
    begun: Instant,
    rows: BTreeMap<&'static str, Row>,
    notes: Vec<String>,
}

/// Ends of QEMU that are its own doing.
pub(crate) const CRASHES: &str = "QEMU's own crashes";

/// More of them would be no accident.
const CRASHES_MOST: u64 = 3;

/// In the table, from left to right.
pub(crate) const COUNTED: [&str; 13] = [
    "kills",
    "of them stalled",
    "requests resumed",
    "stalls",
    "freezes",
    "cache switches",
    "discards",
    "hot-plugs",
    "VM snapshots",
    "QEMU kills",
    CRASHES,
    NOTHING,
    "hashes",
];

/// What must happen to a disk: all that is counted and can.
pub(crate) fn due(killed: bool, recorded: bool, scsi: bool) -> Vec<&'static str> {
    let can = |what: &&str| match *what {
        "kills" | "of them stalled" => killed,
        "requests resumed" => killed && recorded,
        // Linux's driver of SCSI disks keeps that to itself.
        "cache switches" => !scsi,
        CRASHES | NOTHING => false,
        _ => true,
    };
    COUNTED.into_iter().filter(can).collect()
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally { begun: Instant::now(), rows: BTreeMap::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: &'static str) -> &mut Row {
        self.rows.entry(name).or_default()
    }

    pub(crate) fn count(&mut self, name: &'static str, what: &'static str, n: u64) {
        debug_assert!(COUNTED.contains(&what), "{what}");
        *self.row(name).counts.entry(what).or_default() += n;
    }

    pub(crate) fn note(&mut self, text: String) {
        println!("{text}");
        self.notes.push(text);
    }

    /// One more end of QEMU that is its own doing, unless there were too many.
    pub(crate) fn crash(&mut self, name: &'static str, text: &str) -> Result<(), String> {
        self.count(name, CRASHES, 1);
        let all: u64 = self.rows.values().filter_map(|row| row.counts.get(CRASHES)).sum();
        if all > CRASHES_MOST {
            return Err(format!("QEMU crashed {all} times: {text}"));
        }
        self.note(format!(
            "QEMU crashed where a disk came or went, which is its own doing (see `may_crash`), and was replaced: {text}"
        ));
        Ok(())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Grown since it was warm: after the first cycle.
    pub(crate) fn grown(&self) -> Result<(), String> {
        for (name, row) in &self.rows {
            let samples = row.memory.len();
            let (warm, last) = match row.memory[..] {
                // Of a device that is killed.
                [] => continue,
                [.., last] if samples >= WARM + 2 => (row.memory[WARM], last),
                _ => return Err(format!("{name}: {samples} cycles tell nothing of its memory")),
            };
            if last.anon > warm.anon + FLAT {
                return Err(format!(
                    "{name}: the device's own memory grew from {} KiB to {} KiB in {} cycles",
                    warm.anon, last.anon, samples
                ));
            }
        }
        Ok(())
    }

    /// What is due and did not happen: in each row, or in none of them all (`together`).
    pub(crate) fn lacks(&self, together: bool) -> Vec<String> {
        let done = |row: &Row, what| row.counts.get(what).is_some_and(|n| *n > 0);
        let mut lacks = Vec::new();
        for (name, row) in &self.rows {
            if row.cycles == 0 || row.verified == 0 {
                lacks.push(format!("{name}: nothing was verified"));
            }
            for what in &row.due {
                let anywhere = together && self.rows.values().any(|row| done(row, what));
                if !anywhere && !done(row, what) {
                    lacks.push(format!("{name}: no {what}"));
                }
            }
        }
        if self.rows.values().all(|row| row.due.is_empty()) {
            lacks.push("nothing was to be done".to_owned());
        }
        lacks
    }

    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        let names = self.rows.keys().map(|name| (*name).to_owned());
        table.set_header([String::new()].into_iter().chain(names));
        let mut add = |what: &str, cell: &dyn Fn(&Row) -> String| {
            let cells = self.rows.values().map(cell);
            table.add_row([what.to_owned()].into_iter().chain(cells));
        };
        add("cycles", &|row| row.cycles.to_string());
        add("fio passes", &|row| row.passes.to_string());
        add("MiB verified", &|row| (row.verified >> 20).to_string());
        for what in COUNTED {
            add(what, &|row| row.counts.get(what).copied().unwrap_or_default().to_string());
        }
        let kib = |memory: Option<&Memory>, of: fn(&Memory) -> u64| {
            memory.map_or("-".to_owned(), |memory| of(memory).to_string())
        };
        add("own memory, warm (KiB)", &|row| kib(row.memory.get(WARM), |m| m.anon));
        add("own memory, most (KiB)", &|row| {
            kib(row.memory.iter().max_by_key(|m| m.anon), |m| m.anon)
        });
        add("own memory, end (KiB)", &|row| kib(row.memory.last(), |m| m.anon));
        add("RSS, warm (KiB)", &|row| kib(row.memory.get(WARM), |m| m.rss));
        add("RSS, end (KiB)", &|row| kib(row.memory.last(), |m| m.rss));
        add("of it the recording and other files (KiB)", &|row| kib(row.memory.last(), |m| m.file));
        add("of it the guest's memory (KiB)", &|row| kib(row.memory.last(), |m| m.shared));
        let columns = table.column_count();
        for column in 1..columns {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let sum = |of: &dyn Fn(&Row) -> u64| self.rows.values().map(of).sum::<u64>();
        let mut text = format!("{table}\n");
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        let seconds = self.elapsed().as_secs();
        let kills = sum(&|row| row.counts.get("kills").copied().unwrap_or_default());
        let _ = writeln!(
            text,
            "soak: {} cycles in {} min {} s, {kills} kills, {} MiB verified; own memory may grow by {FLAT} KiB",
            sum(&|row| row.cycles),
            seconds / 60,
            seconds % 60,
            sum(&|row| row.verified) >> 20,
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(anon: &[u64]) -> Result<(), String> {
        let mut tally = Tally::new();
        let memory = |anon: &u64| Memory { anon: *anon, ..Memory::default() };
        tally.row("it").memory.extend(anon.iter().map(memory));
        tally.grown()
    }

    #[test]
    fn a_device_that_grows_is_told_of() {
        // The first is not warm yet.
        assert_eq!(grown(&[100, 5000, 5000 + FLAT]), Ok(()));
        for samples in [&[100, 5000, 5001 + FLAT][..], &[100, 100, 5000, 1_000_000]] {
            assert!(grown(samples).unwrap_err().contains("grew from"), "{samples:?}");
        }
    }

    #[test]
    fn too_few_samples_are_no_proof() {
        for samples in [&[100][..], &[100, 1_000_000], &[100, 100]] {
            assert!(grown(samples).unwrap_err().contains("tell nothing"), "{samples:?}");
        }
        // A device that is killed has none.
        assert_eq!(grown(&[]), Ok(()));
    }

    #[test]
    fn what_was_not_done_is_told() {
        let all = due(true, true, false);
        assert_eq!(all.len(), COUNTED.len() - 2, "{all:?}");
        let mut tally = Tally::new();
        assert_eq!(tally.lacks(true), ["nothing was to be done"]);
        let (raw, recorded) = (due(true, false, false), all.clone());
        for (name, due) in [("raw", &raw), ("recorded", &recorded)] {
            let row = tally.row(name);
            (row.due, row.cycles, row.verified) = (due.clone(), 1, 1);
        }
        for what in &all {
            let name = if *what == "requests resumed" { "recorded" } else { "raw" };
            assert!(tally.lacks(true).iter().any(|lack| lack.ends_with(what)), "{what}");
            tally.count(name, what, 1);
        }
        assert_eq!(tally.lacks(true), Vec::<String>::new());
        // Each for itself.
        assert_eq!(tally.lacks(false).len(), all.len() - 1);
        tally.row("raw").verified = 0;
        assert_eq!(tally.lacks(true), ["raw: nothing was verified"]);
    }
}
