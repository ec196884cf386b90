//! What a disk promises, in words.

use crate::report::picture::size;
use tornblk_model::crash::{AtomicMode, Profile};

/// "keeps requests of at most 64 KiB whole"
pub(super) fn words(profile: &str) -> String {
    let Ok(profile) = profile.parse::<Profile>() else { return String::new() };
    let most = match profile.max_bytes {
        0 => profile.unit_max,
        bytes => bytes,
    };
    let mut words = match profile.mode {
        AtomicMode::Implicit => format!("keeps every request of at most {} whole", size(most)),
        AtomicMode::Explicit => {
            format!("keeps whole what is sent as atomic, up to {}", size(most))
        }
        AtomicMode::None if profile.tear_unit > 0 => {
            format!("never tears an aligned piece of {}", size(profile.tear_unit))
        }
        AtomicMode::None => "keeps nothing whole but its logical blocks".to_owned(),
    };
    if profile.mode != AtomicMode::None && profile.tear_unit > 0 {
        words += &format!(", and never tears an aligned piece of {}", size(profile.tear_unit));
    }
    if profile.boundary > 0 {
        words += &format!(", but for what crosses a boundary of {}", size(profile.boundary));
    }
    if profile.garbage {
        words += "; what is volatile may hold anything after a power cut";
    }
    words
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn profiles_are_told_as_what_they_promise() {
        for (profile, text) in [
            ("lb512", "keeps nothing whole but its logical blocks"),
            ("req16k", "keeps every request of at most 16 KiB whole"),
            (
                "req64k+b128k",
                "keeps every request of at most 64 KiB whole, but for what crosses a boundary of 128 KiB",
            ),
            ("explicit64k", "keeps whole what is sent as atomic, up to 64 KiB"),
            ("piece4k", "never tears an aligned piece of 4 KiB"),
        ] {
            assert_eq!(words(profile), text);
        }
        assert_eq!(words("nonsense"), "");
    }
}
