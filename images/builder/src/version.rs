//! Orders version numbers as Debian does (Debian policy, 5.6.12).

use std::cmp::Ordering;

/// Compares `[epoch:]upstream[-revision]`.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    a.epoch
        .cmp(&b.epoch)
        .then_with(|| part(a.upstream, b.upstream))
        .then_with(|| part(a.revision, b.revision))
}

struct Parts<'a> {
    epoch: u64,
    upstream: &'a str,
    revision: &'a str,
}

impl Parts<'_> {
    fn of(s: &str) -> Parts<'_> {
        let (epoch, rest) = match s.split_once(':') {
            Some((e, rest)) => (e.parse().unwrap_or(0), rest),
            None => (0, s),
        };
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        Parts { epoch, upstream, revision }
    }
}

/// Turn by turn a run of other characters, by [`rank`], and a run of digits, as a number.
fn part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (text_a, rest_a) = split(a, |c| !c.is_ascii_digit());
        let (text_b, rest_b) = split(b, |c| !c.is_ascii_digit());
        let mut x = text_a.bytes().map(rank).chain([0]);
        let mut y = text_b.bytes().map(rank).chain([0]);
        loop {
            match (x.next(), y.next()) {
                (None, None) => break,
                // What ends counts as 0: after a tilde, before everything else.
                (p, q) => match p.unwrap_or(0).cmp(&q.unwrap_or(0)) {
                    Ordering::Equal => {}
                    other => return other,
                },
            }
        }
        let (number_a, next_a) = split(rest_a, |c| c.is_ascii_digit());
        let (number_b, next_b) = split(rest_b, |c| c.is_ascii_digit());
        let (p, q) = (number_a.trim_start_matches('0'), number_b.trim_start_matches('0'));
        match p.len().cmp(&q.len()).then_with(|| p.cmp(q)) {
            Ordering::Equal => {}
            other => return other,
        }
        (a, b) = (next_a, next_b);
    }
    Ordering::Equal
}

fn rank(c: u8) -> i32 {
    match c {
        b'~' => -1,
        c if c.is_ascii_alphabetic() => i32::from(c),
        c => i32::from(c) + 256,
    }
}

fn split(s: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    s.split_at(s.find(|c| !belongs(c)).unwrap_or(s.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_policy_says() {
        let ordered =
            ["1.0~~", "1.0~~a", "1.0~", "1.0", "1.0a", "1.0+b1", "1.0.1", "1.9", "1.10", "1:0.1"];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(compare("7.2.9-1~bpo13+1", "7.2.12-1~bpo13+1"), Ordering::Less);
        assert_eq!(compare("6.12.95-1~bpo12+1", "6.12.95-1"), Ordering::Less);
        assert_eq!(compare("1.01", "1.1"), Ordering::Equal);
        assert_eq!(compare("1.0-0", "1.0"), Ordering::Equal);
    }
}
