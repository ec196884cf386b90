//! The string that the disk answers to VIRTIO_BLK_T_GET_ID.
//!
//! While the disk is live this is its serial. While it shows a state it is at most the first 11
//! bytes of the serial, `@`, and the nonce of [`StateShown`](crate::StateShown) as 8 lower-case
//! hexadecimal digits: `tornblk@0000002a`. Linux asks the device anew at each read of
//! `/sys/block/vdX/serial`, so a guest that reads it knows which state its next read will see.

/// VIRTIO_BLK_ID_BYTES (VIRTIO 1.2, 5.2.6): shorter strings are padded with NUL.
pub const DEVICE_ID_BYTES: usize = 20;

const DIGITS: usize = 8;
const SEPARATOR: u8 = b'@';

/// The `GET_ID` string of a disk with that serial, of which 20 bytes count; `nonce` where it shows
/// a state, of which the low 32 bits count.
pub fn device_id(serial: &str, nonce: Option<u64>) -> [u8; DEVICE_ID_BYTES] {
    let mut id = [0; DEVICE_ID_BYTES];
    let tail = match nonce {
        None => String::new(),
        Some(n) => format!("{}{:08x}", char::from(SEPARATOR), n & 0xffff_ffff),
    };
    let head = serial.len().min(DEVICE_ID_BYTES - tail.len());
    id[..head].copy_from_slice(&serial.as_bytes()[..head]);
    id[head..head + tail.len()].copy_from_slice(tail.as_bytes());
    id
}

/// The nonce in a `GET_ID` string (as a guest reads it, with or without padding); `None` where the
/// disk is live.
pub fn nonce_of(id: &str) -> Option<u64> {
    let id = id.trim_end_matches(['\0', '\n', ' ']).as_bytes();
    let (head, digits) = id.split_at_checked(id.len().checked_sub(DIGITS)?)?;
    let hex = |d: &u8| matches!(d, b'0'..=b'9' | b'a'..=b'f');
    if head.last() != Some(&SEPARATOR) || !digits.iter().all(hex) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(serial: &str, nonce: Option<u64>) -> String {
        String::from_utf8(device_id(serial, nonce).to_vec()).unwrap()
    }

    #[test]
    fn a_live_disk_shows_its_serial_and_a_state_its_nonce() {
        assert_eq!(text("tornblk", None), "tornblk\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(text("0123456789abcdefghijk", None), "0123456789abcdefghij");
        assert_eq!(text("tornblk", Some(42)), "tornblk@0000002a\0\0\0\0");
        assert_eq!(text("0123456789abcdefghij", Some(0xdead_beef)), "0123456789a@deadbeef");
        assert_eq!(text("", Some(1)).trim_end_matches('\0'), "@00000001");
    }

    #[test]
    fn the_nonce_comes_back() {
        for nonce in [0, 1, 0xffff_ffff] {
            for serial in ["", "s", "a-serial-of-20-bytes"] {
                assert_eq!(nonce_of(&text(serial, Some(nonce))), Some(nonce));
            }
        }
        for live in ["", "tornblk", "@1234567", "tornblk@0000002A", "tornblk-0000002a", "a@b"] {
            assert_eq!(nonce_of(live), None, "{live}");
        }
    }
}
