//! What was measured, as people and as programs read it.

use super::goals::{Goal, Wanted, median, spread};
use super::session::{Options, Samples};
use super::{Cell, Load, Sample};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::time::Duration;

/// Everything, for `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub tornblk: &'static str,
    pub against: Option<String>,
    pub kernel: String,
    pub processors: usize,
    pub rounds: u32,
    pub seconds: f64,
    pub size: u64,
    /// Bytes of a logical block.
    pub block: u32,
    pub cells: Vec<CellReport>,
    /// Of each start.
    pub startup_seconds: Vec<f64>,
    pub goals: Vec<Judged>,
}

#[derive(Debug, Serialize)]
pub struct CellReport {
    #[serde(flatten)]
    pub cell: Cell,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
pub struct Judged {
    #[serde(flatten)]
    pub goal: Goal,
    pub met: bool,
}

impl Report {
    pub fn new(
        options: &Options,
        against: Option<String>,
        samples: &Samples,
        startup: &[Duration],
        goals: &[Goal],
    ) -> Report {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cells = in_order(options, samples);
        Report {
            tornblk: env!("CARGO_PKG_VERSION"),
            against,
            kernel: read("/proc/sys/kernel/osrelease"),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            rounds: options.rounds,
            seconds: options.time.as_secs_f64(),
            size: options.size,
            block: options.places.block,
            cells: cells.map(|(cell, s)| CellReport { cell, samples: s.to_vec() }).collect(),
            startup_seconds: startup.iter().map(Duration::as_secs_f64).collect(),
            goals: goals.iter().map(|g| Judged { goal: g.clone(), met: g.met() }).collect(),
        }
    }
}

fn in_order<'a>(
    options: &'a Options,
    samples: &'a Samples,
) -> impl Iterator<Item = (Cell, &'a [Sample])> {
    let each = move |load: Load| {
        options.queues.iter().flat_map(move |queues| {
            let cell = move |server: &_| Cell { load, queues: *queues, server: *server };
            options.servers.iter().map(cell)
        })
    };
    options.loads.iter().flat_map(move |load| each(*load)).filter_map(|cell| {
        let samples = samples.get(&cell)?;
        Some((cell, &samples[..]))
    })
}

/// `123,456`
fn grouped(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn table(head: &[&str], numbers: impl IntoIterator<Item = usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    for n in numbers {
        if let Some(column) = table.column_mut(n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What each cell came to: medians.
pub fn cells(options: &Options, samples: &Samples) -> String {
    let head = ["load", "queues", "device", "requests/s", "MiB/s", "spread", "CPU us", "own KiB"];
    let mut table = table(&head, [1, 3, 4, 5, 6, 7]);
    for (cell, samples) in in_order(options, samples) {
        let of = |figure: fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<_>>();
        let speeds = of(|s| s.requests_per_second);
        let speed = median(&speeds);
        let (low, high) = spread(&speeds);
        table.add_row([
            cell.load.to_string(),
            cell.queues.to_string(),
            cell.server.to_string(),
            grouped(speed),
            grouped(speed * cell.load.block() as f64 / (1 << 20) as f64),
            format!("{:.0} %", (high - low) / speed * 100.0),
            format!("{:.2}", median(&of(|s| s.cpu_ns_per_request)) / 1e3),
            grouped(median(&of(|s| s.anonymous_kib as f64))),
        ]);
    }
    trimmed(&table)
}

/// The ratios, each with its goal.
pub fn goals(goals: &[Goal]) -> String {
    let mut table = table(&["", "ratio of medians", "ratio", "rounds", "goal"], [2, 3, 4]);
    for goal in goals {
        let wanted = match goal.wanted {
            Some(Wanted::AtLeast(least)) => format!(">= {least:.1}"),
            Some(Wanted::AtMost(most)) => format!("<= {most:.1}"),
            None => "reported".to_owned(),
        };
        let (low, high) = goal.spread;
        table.add_row([
            if goal.met() { "" } else { "below" }.to_owned(),
            goal.what.clone(),
            format!("{:.2}", goal.ratio),
            format!("{low:.2} to {high:.2}"),
            wanted,
        ]);
    }
    trimmed(&table)
}

fn trimmed(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
