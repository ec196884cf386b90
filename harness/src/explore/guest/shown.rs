//! What the device shows, kept up to date at the cost of what changes.

use super::super::ExploreError;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tornblk_model::crash::{Content, Source};
use tornblk_model::event::Seq;
use tornblk_proto::{Client, ClientError, RefusalKind, Run, RunSource, StateShown};

/// Runs in one message: far below what a message may hold.
const RUNS: usize = 8000;
/// How long a device may have requests in flight that nobody waits for.
const IDLE: Duration = Duration::from_secs(10);

/// The content that the device shows, as far as we know.
#[derive(Debug, Default)]
pub(super) struct Shown {
    blocks: BTreeMap<u64, Source>,
    fingerprint: u128,
    /// Nothing is known: the next state goes over whole.
    unknown: bool,
}

/// Where the next state may differ from what is shown.
#[derive(Clone, Debug)]
pub(super) enum Differs {
    Anywhere,
    In(BTreeSet<u64>),
}

impl Default for Differs {
    fn default() -> Differs {
        Differs::In(BTreeSet::new())
    }
}

impl Differs {
    pub(super) fn also(&mut self, changed: Option<&[u64]>) {
        match (&mut *self, changed) {
            (Differs::In(blocks), Some(changed)) => blocks.extend(changed),
            _ => *self = Differs::Anywhere,
        }
    }
}

/// What can be asked what a block holds.
pub(super) trait Wanted {
    fn of(&self, block: u64) -> Source;
    fn content(&self) -> Result<Content, ExploreError>;
}

impl Wanted for Content {
    fn of(&self, block: u64) -> Source {
        Content::of(self, block)
    }

    fn content(&self) -> Result<Content, ExploreError> {
        Ok(self.clone())
    }
}

impl Shown {
    /// The device was started anew, or did something else.
    pub(super) fn forget(&mut self) {
        *self = Shown { unknown: true, ..Shown::default() };
    }

    /// Has the device show a state.
    pub(super) fn switch(
        &mut self,
        client: &Client,
        name: &str,
        wanted: &dyn Wanted,
        differs: &Differs,
    ) -> Result<StateShown, SwitchError> {
        if self.unknown {
            self.forget();
        }
        let mut changes: Vec<(u64, Source)> = Vec::new();
        match differs {
            Differs::In(blocks) if !self.unknown => {
                for block in blocks {
                    let source = wanted.of(*block);
                    if self.of(*block) != source {
                        changes.push((*block, source));
                    }
                }
            }
            _ => {
                let content = wanted.content().map_err(SwitchError::State)?;
                let gone = self.blocks.keys().filter(|b| !content.blocks.contains_key(b));
                changes.extend(gone.map(|block| (*block, Source::Base)));
                let differ = content.blocks.iter().filter(|(b, s)| self.of(**b) != **s);
                changes.extend(differ.map(|(block, source)| (*block, *source)));
                changes.sort_unstable_by_key(|(block, _)| *block);
            }
        }
        let runs = runs(&changes);
        let mut from = (!self.unknown).then(|| hex(self.fingerprint));
        for (block, source) in changes {
            self.set(block, source);
        }
        // Until the last part is there, nobody knows what it shows.
        self.unknown = true;
        let (parts, last) = runs.split_at(runs.len().saturating_sub(1) / RUNS * RUNS);
        for part in parts.chunks(RUNS) {
            from = ask(client, name, from, part)?.fingerprint;
        }
        let shown = ask(client, name, from, last)?;
        if shown.fingerprint != Some(hex(self.fingerprint)) {
            return Err(SwitchError::Drifted);
        }
        self.unknown = false;
        Ok(shown)
    }

    fn of(&self, block: u64) -> Source {
        self.blocks.get(&block).copied().unwrap_or(Source::Base)
    }

    fn set(&mut self, block: u64, source: Source) {
        let old = match source {
            Source::Base => self.blocks.remove(&block),
            source => self.blocks.insert(block, source),
        };
        let old = old.map_or(0, |old| old.fingerprint(block));
        self.fingerprint =
            self.fingerprint.wrapping_sub(old).wrapping_add(source.fingerprint(block));
    }
}

/// Waits a moment where requests are in flight: the guest let the disk go, but its last answer may
/// not be taken yet.
fn ask(
    client: &Client,
    name: &str,
    from: Option<String>,
    runs: &[Run],
) -> Result<StateShown, SwitchError> {
    let start = Instant::now();
    loop {
        match client.use_content(name, from.clone(), runs.to_vec()) {
            Err(ClientError::Refused(r))
                if r.kind == RefusalKind::Busy && start.elapsed() < IDLE =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            answer => return answer.map_err(SwitchError::Device),
        }
    }
}

/// Why a state is not shown.
#[derive(Debug)]
pub(super) enum SwitchError {
    State(ExploreError),
    Device(ClientError),
    /// The device shows something else than it was told to.
    Drifted,
}

fn hex(fingerprint: u128) -> String {
    format!("{fingerprint:032x}")
}

/// Blocks in a row that come from one place in a row are one run.
fn runs(changes: &[(u64, Source)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (block, source) in changes {
        let source = match *source {
            Source::Base => RunSource::Base,
            Source::Zeroes => RunSource::Zeroes,
            Source::Written { request: Seq(request), block } => RunSource::Written(request, block),
            Source::Garbage { seed } => RunSource::Garbage(seed),
            Source::Flipped { request, block, bit } => {
                RunSource::Flipped(request.map(|r| r.0), block, bit)
            }
        };
        let goes_on = |Run(first, n, from): &Run| {
            first + n == *block
                && match (from, source) {
                    (RunSource::Base, RunSource::Base) => true,
                    (RunSource::Zeroes, RunSource::Zeroes) => true,
                    (RunSource::Written(a, i), RunSource::Written(b, k)) => {
                        *a == b && u64::from(*i) + n == u64::from(k)
                    }
                    _ => false,
                }
        };
        match runs.last_mut() {
            Some(run) if goes_on(run) => run.1 += 1,
            _ => runs.push(Run(*block, 1, source)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use tornblk_proto::{Answer, Refusal, codec};

    const LIMIT: u64 = 60_000;

    fn written(request: u64, block: u32) -> Source {
        Source::Written { request: Seq(request), block }
    }

    #[test]
    fn neighbours_of_one_write_are_one_run() {
        let flipped = Source::Flipped { request: None, block: 0, bit: 3 };
        let changes = [
            (4, written(9, 0)),
            (5, written(9, 1)),
            (6, written(9, 3)),
            (8, written(9, 4)),
            (9, Source::Zeroes),
            (10, Source::Zeroes),
            (11, Source::Base),
            (12, Source::Base),
            (13, flipped),
        ];
        let expected = [
            Run(4, 2, RunSource::Written(9, 0)),
            Run(6, 1, RunSource::Written(9, 3)),
            Run(8, 1, RunSource::Written(9, 4)),
            Run(9, 2, RunSource::Zeroes),
            Run(11, 2, RunSource::Base),
            Run(13, 1, RunSource::Flipped(None, 0, 3)),
        ];
        assert_eq!(runs(&changes), expected);
    }

    /// A device that keeps what it is told, refuses what is not against what it has, is busy now
    /// and then, and may lie.
    fn device(mut stream: UnixStream, lie: bool) -> (u64, BTreeMap<u64, Source>) {
        let (mut calls, mut blocks) = (0, BTreeMap::<u64, Source>::new());
        let sum =
            |blocks: &BTreeMap<u64, Source>| hex(Content { blocks: blocks.clone() }.fingerprint());
        let mut length = [0; 4];
        while stream.read_exact(&mut length).is_ok() {
            let mut text = vec![0; u32::from_le_bytes(length) as usize];
            stream.read_exact(&mut text).unwrap();
            let call: serde_json::Value = serde_json::from_slice(&text).unwrap();
            calls += 1;
            let refuse = |kind| Answer {
                id: call["id"].as_u64(),
                ok: None,
                error: Some(Refusal { kind, message: "no".into() }),
            };
            let from = call.get("from").and_then(|f| f.as_str()).map(str::to_owned);
            let answer = if calls % 2 == 0 {
                refuse(RefusalKind::Busy)
            } else if from.as_ref().is_some_and(|from| *from != sum(&blocks)) {
                refuse(RefusalKind::NotFound)
            } else {
                if from.is_none() {
                    blocks.clear();
                }
                let runs: Vec<Run> = serde_json::from_value(call["runs"].clone()).unwrap();
                for Run(first, n, source) in runs {
                    for i in 0..n {
                        let source = match source {
                            RunSource::Base => {
                                blocks.remove(&(first + i));
                                continue;
                            }
                            RunSource::Zeroes => Source::Zeroes,
                            RunSource::Written(r, b) => written(r, b + i as u32),
                            RunSource::Garbage(seed) => Source::Garbage { seed },
                            RunSource::Flipped(r, block, bit) => {
                                Source::Flipped { request: r.map(Seq), block, bit }
                            }
                        };
                        blocks.insert(first + i, source);
                    }
                }
                if lie {
                    blocks.insert(LIMIT, Source::Zeroes);
                }
                let shown = serde_json::json!({
                    "name": call["name"], "nonce": calls, "fingerprint": sum(&blocks)
                });
                Answer { id: call["id"].as_u64(), ok: Some(shown), error: None }
            };
            stream.write_all(&codec::encode(&answer).unwrap()).unwrap();
        }
        (calls, blocks)
    }

    fn content(blocks: impl IntoIterator<Item = (u64, Source)>) -> Content {
        Content { blocks: blocks.into_iter().collect() }
    }

    #[test]
    fn the_device_shows_each_state_whatever_was_shown_before() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let device = std::thread::spawn(move || device(theirs, false));
        let client = Client::over(ours).unwrap();
        let mut shown = Shown::default();
        // Every other block, so that nothing is one run, and several messages are needed.
        let many = content((0..LIMIT / 2).map(|i| (2 * i, written(i, 0))));
        let few = content([(0, Source::Zeroes), (6, written(3, 0)), (7, written(8, 5))]);
        let none = Content::default();
        for (state, differs) in [
            (&few, Differs::In([0, 6, 7, 8].into())),
            (&none, Differs::In([0, 6, 7].into())),
            (&many, Differs::Anywhere),
            (&many, Differs::default()),
            (&few, Differs::Anywhere),
        ] {
            shown.switch(&client, "x", state, &differs).unwrap();
            assert_eq!(shown.blocks, state.blocks);
            assert_eq!(shown.fingerprint, state.fingerprint());
        }
        shown.forget();
        // Not even this is believed when nothing is known.
        shown.switch(&client, "x", &many, &Differs::default()).unwrap();
        drop(client);
        assert_eq!(device.join().unwrap().1, many.blocks);
    }

    #[test]
    fn a_device_that_shows_something_else_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let device = std::thread::spawn(move || device(theirs, true));
        let client = Client::over(ours).unwrap();
        let mut shown = Shown::default();
        let state = content([(1, Source::Zeroes)]);
        let error = shown.switch(&client, "x", &state, &Differs::Anywhere).unwrap_err();
        assert!(matches!(error, SwitchError::Drifted), "{error:?}");
        assert!(shown.unknown);
        drop(client);
        device.join().unwrap();
    }
}
