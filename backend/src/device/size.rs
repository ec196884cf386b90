//! Sizes as users write them: `512`, `16k`, `1g`. Binary: `k` is 1024.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error(
        "`{0}` is no size: write bytes, or a number with k, m, g or t (1k is 1024), such as 16k"
    )]
    Malformed(String),
    #[error("`{0}` is too large: a size is below 16 EiB")]
    TooLarge(String),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(text.to_owned());
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(malformed()),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let too_large = || SizeError::TooLarge(text.to_owned());
        let number: u64 = digits.parse().map_err(|_| too_large())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(too_large)
    }
}

/// The shortest way to write it that says it exactly: `16k`, `1536`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut unit) = (self.0, 0);
        while number != 0 && number.is_multiple_of(1024) && unit < 4 {
            number /= 1024;
            unit += 1;
        }
        write!(f, "{number}{}", ["", "k", "m", "g", "t"][unit])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_users_write_is_understood_and_comes_back_in_its_shortest_form() {
        for (text, bytes, shortest) in [
            ("512", 512, "512"),
            ("16k", 16384, "16k"),
            ("16K", 16384, "16k"),
            ("16KiB", 16384, "16k"),
            ("1024k", 1 << 20, "1m"),
            ("1g", 1 << 30, "1g"),
            ("2T", 2 << 40, "2t"),
            ("0", 0, "0"),
            ("1536", 1536, "1536"),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
            assert_eq!(Size(bytes).to_string(), shortest);
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "k", "-1", "1.5g", "16 k", "0x10", "16q", "k16", "1k6", "١"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.to_string().contains("16k"), "{text}: {error}");
        }
        for text in ["18446744073709551616", "16777216t"] {
            assert!(matches!(text.parse::<Size>().unwrap_err(), SizeError::TooLarge(_)), "{text}");
        }
    }
}
