//! Sizes as people write them: `512`, `4k`, `16k`, `1m`, `2g`.

/// Bytes in each unit; a unit is a power of 1024 (KiB, MiB, GiB, TiB).
const UNITS: [(&str, u32); 4] = [("t", 40), ("g", 30), ("m", 20), ("k", 10)];

/// Reads a size in bytes. `None` where the text is no size or does not fit 64 bits.
pub fn parse(text: &str) -> Option<u64> {
    let (digits, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, *shift)))
        .unwrap_or((text, 0));
    let canonical = digits == "0" || !digits.starts_with('0');
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || !canonical {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

/// Writes a size with the largest unit that divides it: the one spelling that names use.
pub fn print(bytes: u64) -> String {
    if bytes != 0 {
        for (unit, shift) in UNITS {
            if bytes.trailing_zeros() >= shift {
                return format!("{}{unit}", bytes >> shift);
            }
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::{parse, print};

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("4k", 4096), ("64k", 65536), ("1m", 1 << 20), ("3g", 3 << 30)]
        {
            assert_eq!(parse(text), Some(bytes));
            assert_eq!(print(bytes), text);
        }
        assert_eq!(print(1536), "1536");
        assert_eq!(parse("1024k"), Some(1 << 20), "read, though it is written 1m");
        for bad in ["", "k", "4K", "-1", "+1", "04k", "4kk", "1.5k", "99999999999t", " 4k"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
