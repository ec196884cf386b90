//! Which thread writes what, in which order: known from the workload alone, whatever the timing.

use std::collections::VecDeque;

use crate::channel::{Target, Workload, WriteFlags};

/// One write of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub unit: u64,
    pub generation: u32,
    pub flags: WriteFlags,
    /// Followed by fdatasync.
    pub sync: bool,
}

/// The writes of one thread, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Index in [`Workload::files`].
    pub target: usize,
    pub thread: u32,
    threads: u64,
    /// Generations of the thread's own units: unit `thread + i * threads` is the `i`th.
    generations: Vec<u32>,
    flags: Vec<WriteFlags>,
    sync_every: u32,
    rng: Rng,
    /// The last units chosen (indices of `generations`), not to be chosen again until `window`
    /// others were: what is in flight is among them, as long as none is overtaken that often.
    recent: VecDeque<usize>,
    window: usize,
    sequential: bool,
    done: u32,
    writes: u32,
}

/// One plan a thread of each target. The workload is a checked one.
pub fn plans(workload: &Workload) -> Vec<Plan> {
    let workers: u32 = workload.files.iter().map(|t| t.threads).sum();
    let mut plans = Vec::new();
    for (index, target) in workload.files.iter().enumerate() {
        for thread in 0..target.threads {
            let nth = plans.len() as u32;
            let writes = workload.writes / workers + u32::from(nth < workload.writes % workers);
            plans.push(Plan::new(workload, index, target, thread, writes));
        }
    }
    plans
}

impl Plan {
    fn new(workload: &Workload, index: usize, target: &Target, thread: u32, writes: u32) -> Plan {
        let own = (target.units - thread).div_ceil(target.threads) as usize;
        Plan {
            target: index,
            thread,
            threads: u64::from(target.threads),
            generations: vec![0; own],
            flags: target.flags.clone(),
            sync_every: workload.sync_every,
            rng: Rng::of_thread(workload.seed, target.file, thread),
            recent: VecDeque::new(),
            window: (target.depth as usize - 1).min(own - 1),
            sequential: target.sequential,
            done: 0,
            writes,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.done == self.writes {
            return None;
        }
        let index = if self.sequential {
            self.done as usize % self.generations.len()
        } else {
            // Ends: at least one unit is not among the recent ones.
            loop {
                let index = self.rng.below(self.generations.len());
                if !self.recent.contains(&index) {
                    break index;
                }
            }
        };
        self.recent.push_back(index);
        if self.recent.len() > self.window {
            self.recent.pop_front();
        }
        let flags = self.flags[self.done as usize % self.flags.len()];
        self.done += 1;
        self.generations[index] += 1;
        Some(Step {
            unit: u64::from(self.thread) + index as u64 * self.threads,
            generation: self.generations[index],
            flags,
            sync: self.sync_every != 0 && self.done.is_multiple_of(self.sync_every),
        })
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// A sequence of its own for each thread of each file.
    fn of_thread(seed: u64, file: u32, thread: u32) -> Rng {
        let mut mixed = Rng(seed);
        mixed.0 = mixed.next() ^ u64::from(file);
        mixed.0 = mixed.next() ^ u64::from(thread);
        Rng(mixed.next())
    }

    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In any order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for n in (1..all.len()).rev() {
            all.swap(n, self.below(n + 1));
        }
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::channel::Prepare;

    fn target(file: u32, units: u32, threads: u32, depth: u32) -> Target {
        let direct = WriteFlags { direct: true, ..WriteFlags::default() };
        Target {
            file,
            path: format!("/f{file}"),
            offset: 0,
            unit: 4096,
            units,
            threads,
            depth,
            flags: vec![WriteFlags::default(), direct, WriteFlags { dsync: true, ..direct }],
            prepare: Prepare::Written,
            ..Target::default()
        }
    }

    fn workload(seed: u64) -> Workload {
        Workload {
            nonce: 1,
            seed,
            files: vec![target(1, 50, 3, 1), target(2, 7, 7, 4), target(3, 100, 2, 32)],
            load: true,
            writes: 1000,
            sync_every: 5,
            skip_sync: false,
        }
    }

    fn steps(seed: u64) -> Vec<Vec<Step>> {
        plans(&workload(seed)).into_iter().map(|plan| plan.collect()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_writes() {
        assert_eq!(steps(5), steps(5));
        assert_ne!(steps(5), steps(6));
        // Written down once: recordings and reports name writes by this order.
        let first: Vec<u64> = steps(5)[0].iter().take(8).map(|s| s.unit).collect();
        assert_eq!(first, PINNED);
    }

    const PINNED: [u64; 8] = [36, 18, 36, 3, 39, 27, 33, 36];

    #[test]
    fn all_writes_are_shared_out() {
        let all = steps(5);
        assert_eq!(all.len(), 12);
        assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 1000);
        assert!(all.iter().all(|s| s.len() == 83 || s.len() == 84));
    }

    #[test]
    fn no_unit_belongs_to_two_threads_and_all_to_one() {
        let mut owner = HashMap::new();
        for plan in plans(&workload(5)) {
            let (target, thread) = (plan.target, plan.thread);
            for step in plan {
                assert_eq!(*owner.entry((target, step.unit)).or_insert(thread), thread);
                let threads = u64::from(workload(5).files[target].threads);
                assert_eq!(step.unit % threads, u64::from(thread));
                assert!(step.unit < u64::from(workload(5).files[target].units));
            }
        }
        let reached = owner.keys().filter(|(target, _)| *target == 0).count();
        assert_eq!(reached, 50, "every unit is written sooner or later");
    }

    #[test]
    fn generations_count_up_from_one() {
        for plan in plans(&workload(9)) {
            let mut last = HashMap::new();
            for step in plan {
                let previous = last.insert(step.unit, step.generation).unwrap_or(0);
                assert_eq!(step.generation, previous + 1);
            }
        }
    }

    #[test]
    fn a_unit_comes_again_only_after_as_many_others_as_may_be_in_flight() {
        for plan in plans(&workload(3)) {
            let depth = workload(3).files[plan.target].depth as usize;
            let units = plan.generations.len();
            let steps: Vec<Step> = plan.collect();
            for window in steps.windows(depth.min(units)) {
                let different: HashSet<u64> = window.iter().map(|s| s.unit).collect();
                assert_eq!(different.len(), window.len());
            }
        }
    }

    #[test]
    fn a_sequential_target_is_written_from_front_to_back_again_and_again() {
        let mut workload = workload(5);
        workload.files = vec![Target { sequential: true, ..target(1, 5, 1, 4) }];
        workload.writes = 12;
        let units: Vec<u64> = plans(&workload).remove(0).map(|s| s.unit).collect();
        assert_eq!(units, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
    }

    #[test]
    fn flags_and_syncs_take_turns() {
        let all = steps(5);
        for (i, step) in all[0].iter().enumerate() {
            assert_eq!(step.flags, workload(5).files[0].flags[i % 3]);
            assert_eq!(step.sync, (i + 1) % 5 == 0);
        }
    }
}
