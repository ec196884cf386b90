//! What the ratios are to be.

use super::session::Samples;
use super::{Cell, Load, Sample, Server};
use serde::Serialize;

/// A ratio of medians, and what it is to be.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub what: String,
    pub ratio: f64,
    /// The smallest and the largest ratio of one round.
    pub spread: (f64, f64),
    /// `None`: reported, nothing is promised.
    pub wanted: Option<Wanted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    pub fn met(&self) -> bool {
        match self.wanted {
            Some(Wanted::AtLeast(least)) => self.ratio >= least,
            Some(Wanted::AtMost(most)) => self.ratio <= most,
            None => true,
        }
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The smallest and the largest.
pub fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// One figure of each round of a cell.
fn figures(samples: &Samples, cell: Cell, figure: fn(&Sample) -> f64) -> Option<Vec<f64>> {
    let samples = samples.get(&cell)?;
    (!samples.is_empty()).then(|| samples.iter().map(figure).collect())
}

fn ratio(
    samples: &Samples,
    what: String,
    (one, other): (Cell, Cell),
    figure: fn(&Sample) -> f64,
    wanted: Option<Wanted>,
) -> Option<Goal> {
    let (one, other) = (figures(samples, one, figure)?, figures(samples, other, figure)?);
    let rounds: Vec<f64> = one.iter().zip(&other).map(|(a, b)| a / b).collect();
    let spread = spread(&rounds);
    Some(Goal { what, ratio: median(&one) / median(&other), spread, wanted })
}

fn speed(sample: &Sample) -> f64 {
    sample.requests_per_second
}

fn cpu(sample: &Sample) -> f64 {
    sample.cpu_ns_per_request
}

/// Judges everything that was measured on both sides.
pub fn judge(samples: &Samples, queues: &[u16]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let cell = |load, queues, server| Cell { load, queues, server };
    let plural = |n: u16| if n == 1 { "1 queue".to_owned() } else { format!("{n} queues") };
    let pairs =
        [(Server::RawCached, Server::AgainstCached), (Server::RawDirect, Server::AgainstDirect)];
    for load in Load::ALL {
        for n in queues {
            for (own, other) in pairs {
                let cells = (cell(load, *n, own), cell(load, *n, other));
                let least = if load == Load::RandRead32 { 1.2 } else { 1.0 };
                let wanted = Some(Wanted::AtLeast(least));
                let what = format!("{load}, {}, {own}", plural(*n));
                goals.extend(ratio(samples, what.clone(), cells, speed, wanted));
                let what = format!("CPU time a request: {what}");
                goals.extend(ratio(samples, what, cells, cpu, Some(Wanted::AtMost(1.0))));
            }
        }
    }
    for (load, wanted) in
        [(Load::RandRead32, Some(Wanted::AtLeast(1.3))), (Load::RandWrite32, None)]
    {
        for own in [Server::RawCached, Server::RawDirect] {
            let cells = (cell(load, 4, own), cell(load, 1, own));
            let what = format!("{load}, {own}: 4 queues over 1");
            goals.extend(ratio(samples, what, cells, speed, wanted));
        }
    }
    for (load, least) in [(Load::RandWrite32, 0.8), (Load::SeqWrite8, 0.7)] {
        let cells = (cell(load, 1, Server::Recording), cell(load, 1, Server::RawCached));
        let what = format!("{load}: recording over raw");
        goals.extend(ratio(samples, what, cells, speed, Some(Wanted::AtLeast(least))));
    }
    goals
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(speed: f64, cpu: f64) -> Sample {
        Sample { requests_per_second: speed, cpu_ns_per_request: cpu, anonymous_kib: 0 }
    }

    /// Speed and processor time, round by round.
    type Rounds<'a> = &'a [(f64, f64)];

    fn samples(cells: &[(Load, u16, Server, Rounds<'_>)]) -> Samples {
        let each = cells.iter().map(|(load, queues, server, rounds)| {
            let cell = Cell { load: *load, queues: *queues, server: *server };
            (cell, rounds.iter().map(|(s, c)| sample(*s, *c)).collect())
        });
        each.collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_judged_both_ways() {
        let slow = [(100.0, 2.0), (110.0, 2.2), (90.0, 2.0)];
        let fast = [(100.0, 2.0), (100.0, 2.0), (100.0, 2.0)];
        let measured = samples(&[
            (Load::RandRead1, 1, Server::RawCached, &slow),
            (Load::RandRead1, 1, Server::AgainstCached, &fast),
            (Load::RandRead32, 1, Server::RawCached, &slow),
            (Load::RandRead32, 1, Server::AgainstCached, &fast),
        ]);
        let goals = judge(&measured, &[1]);
        let met: Vec<(bool, bool)> =
            goals.iter().map(|g| (matches!(g.wanted, Some(Wanted::AtMost(_))), g.met())).collect();
        // Speed as good as the other's, and so is the time; but QD 32 is to be better.
        assert_eq!(met, [(false, true), (true, true), (false, false), (true, true)]);
        assert_eq!(goals[0].spread, (0.9, 1.1));
    }

    #[test]
    fn own_ratios_need_no_other_device() {
        let measured = samples(&[
            (Load::RandRead32, 1, Server::RawCached, &[(100.0, 1.0)]),
            (Load::RandRead32, 4, Server::RawCached, &[(129.0, 1.0)]),
            (Load::RandWrite32, 1, Server::RawCached, &[(100.0, 1.0)]),
            (Load::RandWrite32, 1, Server::Recording, &[(80.0, 1.0)]),
        ]);
        let goals = judge(&measured, &[1, 4]);
        let told: Vec<(&str, bool)> = goals.iter().map(|g| (&g.what[..], g.met())).collect();
        assert_eq!(
            told,
            [
                ("4k random read QD 32, raw: 4 queues over 1", false),
                ("4k random write QD 32: recording over raw", true)
            ]
        );
    }
}
