//! What was done, counted.

use super::rig::device::Memory;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Own memory (KiB) that a device may have gained since it was warm: what the allocator keeps, and
/// the index of blocks that the first cycle did not touch.
pub(crate) const FLAT: u64 = 6 << 10;

/// Of one device, or of several one after another.
#[derive(Debug, Default)]
pub(crate) struct Row {
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
pub(crate) const COUNTED: [&str; 12] = [
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
    "hashes",
];

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
            if let (Some(warm), Some(last)) = (row.memory.get(1), row.memory.last())
                && last.anon > warm.anon + FLAT
            {
                return Err(format!(
                    "{name}: the device's own memory grew from {} KiB to {} KiB in {} cycles",
                    warm.anon,
                    last.anon,
                    row.memory.len()
                ));
            }
        }
        Ok(())
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
        add("own memory, warm (KiB)", &|row| kib(row.memory.get(1), |m| m.anon));
        add("own memory, most (KiB)", &|row| {
            kib(row.memory.iter().max_by_key(|m| m.anon), |m| m.anon)
        });
        add("own memory, end (KiB)", &|row| kib(row.memory.last(), |m| m.anon));
        add("RSS, warm (KiB)", &|row| kib(row.memory.get(1), |m| m.rss));
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

#[test]
fn a_device_that_grows_is_told_of() {
    let mut tally = Tally::new();
    let memory = |anon| Memory { anon, ..Memory::default() };
    // The first is not warm yet.
    tally.row("it").memory.extend([100, 5000, 5000 + FLAT].map(memory));
    assert_eq!(tally.grown(), Ok(()));
    tally.row("it").memory.push(memory(5001 + FLAT));
    assert!(tally.grown().unwrap_err().contains("grew from 5000 KiB"));
}
