//! Faults as they are written on the command line.
//!
//! `<kind>[,range=<offset>+<length>][,nth=<n>][,p=<probability>]`, sizes as in [`size`].

use super::{Fault, FaultKind, ModelError, size};
use crate::event::SECTOR;
use std::fmt;
use std::str::FromStr;

const KINDS: [(FaultKind, &str); 8] = [
    (FaultKind::TearAtomic, "tear-atomic"),
    (FaultKind::IgnoreFlush, "ignore-flush"),
    (FaultKind::LoseWrite, "lose-write"),
    (FaultKind::ReorderFlush, "reorder-flush"),
    (FaultKind::Misdirect, "misdirect"),
    (FaultKind::Corrupt, "corrupt"),
    (FaultKind::StaleRead, "stale-read"),
    (FaultKind::Eio, "eio"),
];

impl FaultKind {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// Happens while the disk is in use, not when a crash is resolved.
    pub fn is_live(self) -> bool {
        matches!(self, FaultKind::StaleRead | FaultKind::Eio)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Fault {
    /// A fault of this kind wherever it can happen.
    pub fn everywhere(kind: FaultKind) -> Fault {
        Fault { kind, range: None, nth: None, probability: None }
    }
}

impl FromStr for Fault {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let refuse = |why: String| ModelError::Fault(format!("fault '{text}': {why}"));
        let mut words = text.split(',');
        let head = words.next().unwrap_or_default();
        let kind = KINDS.iter().find(|(_, name)| *name == head).map(|(kind, _)| *kind);
        let Some(kind) = kind else {
            let known: Vec<_> = KINDS.iter().map(|(_, name)| *name).collect();
            return Err(refuse(format!("'{head}' is no fault; there are {}", known.join(", "))));
        };
        let mut fault = Fault::everywhere(kind);
        let mut seen = Vec::new();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if seen.contains(&key) {
                return Err(refuse(format!("{key}= is given twice")));
            }
            seen.push(key);
            match key {
                "range" => {
                    let range = value
                        .split_once('+')
                        .and_then(|(at, len)| Some((size::parse(at)?, size::parse(len)?)))
                        .filter(|(at, len)| *len != 0 && at.checked_add(*len).is_some());
                    let Some((at, len)) = range else {
                        return Err(refuse(
                            "a range is <offset>+<length> in bytes, such as range=0+1m".into(),
                        ));
                    };
                    if !at.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
                        let whole = len.checked_next_multiple_of(SECTOR);
                        return Err(refuse(format!(
                            "a range is made of whole sectors: use range={}+{}",
                            size::print(at / SECTOR * SECTOR),
                            size::print(whole.unwrap_or(len / SECTOR * SECTOR)),
                        )));
                    }
                    fault.range = Some((at, len));
                }
                "nth" => {
                    let nth = value.parse().ok().filter(|n: &u64| *n > 0);
                    fault.nth = Some(nth.ok_or_else(|| {
                        refuse("nth= counts from 1: use nth=1 for the first".into())
                    })?);
                }
                "p" => {
                    let p = value.parse().ok().filter(|p: &f64| 0.0 < *p && *p <= 1.0);
                    fault.probability = Some(p.ok_or_else(|| {
                        refuse("p= is a probability above 0, at most 1, such as p=0.01".into())
                    })?);
                }
                _ => {
                    return Err(refuse(format!("'{word}' is not known; use range=, nth= or p=")));
                }
            }
        }
        if fault.nth.is_some() && fault.probability.is_some() {
            return Err(refuse("nth= and p= exclude each other".into()));
        }
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if let Some((at, len)) = self.range {
            write!(f, ",range={}+{}", size::print(at), size::print(len))?;
        }
        if let Some(nth) = self.nth {
            write!(f, ",nth={nth}")?;
        }
        if let Some(p) = self.probability {
            write!(f, ",p={p}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn faults_round_trip() {
        for text in [
            "tear-atomic",
            "tear-atomic,nth=3",
            "ignore-flush",
            "lose-write,range=4k+8k",
            "reorder-flush,nth=1",
            "misdirect,p=0.25",
            "corrupt,range=0+1m,p=0.01",
            "stale-read",
            "eio,range=512+512",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_faults_are_refused_with_what_to_do() {
        for (text, hint) in [
            ("tear", "there are tear-atomic"),
            ("", "there are tear-atomic"),
            ("corrupt,nth=0", "from 1"),
            ("corrupt,p=0", "above 0"),
            ("corrupt,p=2", "at most 1"),
            ("corrupt,p=NaN", "at most 1"),
            ("corrupt,range=5", "range=0+1m"),
            ("corrupt,range=0+0", "range=0+1m"),
            ("corrupt,range=100+512", "range=0+512"),
            ("corrupt,range=0+18446744073709551615", "whole sectors"),
            ("corrupt,nth=1,nth=2", "twice"),
            ("corrupt,nth=1,p=0.5", "exclude"),
            ("corrupt,n=1", "use range="),
        ] {
            let said = text.parse::<Fault>().unwrap_err().to_string();
            assert!(said.contains(hint), "{text}: {said}");
        }
    }
}
