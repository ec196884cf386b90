//! State names: what they say, how they are read and written.

use super::{Mask, ModelError, Profile, StateName};
use crate::event::Seq;
use std::fmt::{self, Write as _};
use std::str::FromStr;

/// A state's name, taken apart.
///
/// ```text
/// <profile>/p<event>:<all|none>[,+w<id>[.<mask>]|,-w<id>[.<mask>]]...
///     [;w<id>[.<mask>]>w<id>[.<mask>]]... [;d<id>=<mask>]... [;g<block>=<hex>]...
///     [;t<id>=<mask>]... [;m<id>=<block>]... [;x<block>.<bit>]...
/// <profile>/p<event>:r<version>.<seed>.<n>
/// ```
///
/// - `p<event>`: the crash point, right after that event.
/// - `all`, `none`: everything, or nothing, that is volatile there is persisted; what is stable is.
/// - `+w`, `-w`: this write (discard, write zeroes) is persisted or lost after all; with a mask,
///   only those fragments of it. `id` is the event that submitted it.
/// - `w<a>>w<b>`: where both are persisted, `a` lies over `b`. Unsaid, the one submitted last
///   (the greater id) lies above.
/// - `d`: the blocks of a discard that read as zeroes; the others show what was there before.
///   Unsaid: all, or none where the profile says `discard-old`.
/// - `g`: the block holds garbage of this seed.
/// - `t`: although all-or-nothing, the write is cut into tear units, of which these are persisted.
/// - `m`: the write landed at this block instead of its place.
/// - `x`: this bit of the block is inverted.
///
/// Numbers are decimal, but masks and garbage seeds hexadecimal; bit 0 of a mask is the first
/// fragment (of `d`, the first block). `t`, `m` and `x` are how faults are named and never legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub profile: Profile,
    /// The crash point lies right after this event.
    pub after: Seq,
    pub choice: Choice,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    These(Selection),
    /// The nth sample of a seed.
    Random {
        version: u32,
        seed: u64,
        n: u64,
    },
}

/// What a name chooses, item by item, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Begin with everything volatile persisted.
    pub all: bool,
    /// (persisted?, write, fragments; `None` = all of it).
    pub changes: Vec<(bool, Seq, Option<Mask>)>,
    /// (what lies above, what lies below).
    pub order: Vec<(Part, Part)>,
    pub discards: Vec<(Seq, Mask)>,
    /// (block, seed).
    pub garbage: Vec<(u64, u64)>,
    pub torn: Vec<(Seq, Mask)>,
    /// (write, first block where it landed).
    pub misdirected: Vec<(Seq, u64)>,
    /// (block, bit).
    pub flipped: Vec<(u64, u32)>,
}

/// A write, or some fragments of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub write: Seq,
    pub fragments: Option<Mask>,
}

impl StateName {
    /// Which of `n` shards this state belongs to, from 0: the same on every machine.
    pub fn shard(&self, n: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.0.as_bytes()) % n.max(1)
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A decimal number without leading zeros.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let plain = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain && digits { text.parse().ok() } else { None }
}

/// `w<id>[.<mask>]`
fn part(text: &str) -> Option<Part> {
    let text = text.strip_prefix('w')?;
    let (id, fragments) = match text.split_once('.') {
        Some((id, mask)) => (id, Some(Mask::parse(mask)?)),
        None => (text, None),
    };
    Some(Part { write: Seq(decimal(id)?), fragments })
}

/// `<id>=<mask>`
fn masked(text: &str) -> Option<(Seq, Mask)> {
    let (id, mask) = text.split_once('=')?;
    Some((Seq(decimal(id)?), Mask::parse(mask)?))
}

fn selection(text: &str) -> Option<Selection> {
    let mut selection = Selection::default();
    let mut items = text.split(';');
    let mut changes = items.next()?.split(',');
    selection.all = match changes.next()? {
        "all" => true,
        "none" => false,
        _ => return None,
    };
    for change in changes {
        let keep = match change.as_bytes().first()? {
            b'+' => true,
            b'-' => false,
            _ => return None,
        };
        let Part { write, fragments } = part(&change[1..])?;
        selection.changes.push((keep, write, fragments));
    }
    for item in items {
        match *item.as_bytes().first()? {
            b'w' => {
                let (over, under) = item.split_once('>')?;
                selection.order.push((part(over)?, part(under)?));
            }
            b'd' => selection.discards.push(masked(&item[1..])?),
            b't' => selection.torn.push(masked(&item[1..])?),
            b'g' => {
                let (block, seed) = item[1..].split_once('=')?;
                let small = seed.len() <= 16 && Mask::parse(seed).is_some();
                let seed = u64::from_str_radix(seed, 16).ok().filter(|_| small)?;
                selection.garbage.push((decimal(block)?, seed));
            }
            b'm' => {
                let (id, block) = item[1..].split_once('=')?;
                selection.misdirected.push((Seq(decimal(id)?), decimal(block)?));
            }
            b'x' => {
                let (block, bit) = item[1..].split_once('.')?;
                selection.flipped.push((decimal(block)?, decimal(bit)?));
            }
            _ => return None,
        }
    }
    Some(selection)
}

fn choice(text: &str) -> Option<Choice> {
    let Some(random) = text.strip_prefix('r') else {
        return selection(text).map(Choice::These);
    };
    let mut numbers = random.split('.');
    let choice = Choice::Random {
        version: decimal(numbers.next()?)?,
        seed: decimal(numbers.next()?)?,
        n: decimal(numbers.next()?)?,
    };
    numbers.next().is_none().then_some(choice)
}

impl FromStr for Parsed {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let refuse = || {
            ModelError::State(format!(
                "'{name}' is no state: write <profile>/p<event>:all, :none or :r1.<seed>.<n>, as \
                 in req16k/p120:all,-w97"
            ))
        };
        let (profile, rest) = name.split_once('/').ok_or_else(refuse)?;
        let (after, rest) =
            rest.strip_prefix('p').and_then(|rest| rest.split_once(':')).ok_or_else(refuse)?;
        Ok(Parsed {
            profile: profile.parse()?,
            after: Seq(decimal(after).ok_or_else(refuse)?),
            choice: choice(rest).ok_or_else(refuse)?,
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.write)?;
        match &self.fragments {
            Some(mask) => write!(f, ".{mask}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.all { "all" } else { "none" })?;
        for (keep, write, fragments) in &self.changes {
            let part = Part { write: *write, fragments: fragments.clone() };
            write!(f, ",{}{part}", if *keep { '+' } else { '-' })?;
        }
        for (over, under) in &self.order {
            write!(f, ";{over}>{under}")?;
        }
        for (id, mask) in &self.discards {
            write!(f, ";d{id}={mask}")?;
        }
        for (block, seed) in &self.garbage {
            write!(f, ";g{block}={seed:x}")?;
        }
        for (id, mask) in &self.torn {
            write!(f, ";t{id}={mask}")?;
        }
        for (id, block) in &self.misdirected {
            write!(f, ";m{id}={block}")?;
        }
        for (block, bit) in &self.flipped {
            write!(f, ";x{block}.{bit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/p{}:", self.profile, self.after)?;
        match &self.choice {
            Choice::These(selection) => selection.fmt(f),
            Choice::Random { version, seed, n } => write!(f, "r{version}.{seed}.{n}"),
        }
    }
}

impl From<&Parsed> for StateName {
    fn from(parsed: &Parsed) -> StateName {
        let mut name = String::new();
        // Writing to a string cannot fail.
        let _ = write!(name, "{parsed}");
        StateName(name)
    }
}
