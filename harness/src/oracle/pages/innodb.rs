//! InnoDB's pages as MariaDB writes them with `innodb_checksum_algorithm=full_crc32`, which is its default
//! since 10.5: the last four bytes are the CRC-32C of all before, big-endian. (`buf_page_is_corrupted` in
//! storage/innobase/buf/buf0buf.cc; the names below are those of fil0fil.h.)
//!
//! Page 0 of a file says whether it is so: bit 4 (0x10) of the space's flags, 32 bits big-endian at byte 54.
//! Files of the older `crc32` have a checksum of another kind at byte 0, and those of MySQL, too; compressed
//! pages end earlier. None of them is sound by these rules.

/// `FIL_PAGE_OFFSET`: 4 bytes, which page of its file it is.
const NUMBER: usize = 4;
/// `FIL_PAGE_LSN`: 8 bytes, of the last change.
const LSN: usize = 16;
/// `FIL_PAGE_FCRC32_CHECKSUM`, from the page's end.
const CHECKSUM: usize = 4;
/// `FIL_PAGE_FCRC32_END_LSN`, from the page's end: the lower half of the LSN once more.
const END_LSN: usize = 8;

fn u32_at(page: &[u8], at: usize) -> Option<u32> {
    page.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What is wrong with it, if anything is.
pub(super) fn wrong(page: &[u8]) -> Option<String> {
    let read = |from_end: usize| u32_at(page, page.len().checked_sub(from_end)?);
    let (Some(checksum), Some(end_lsn), Some(lsn)) =
        (read(CHECKSUM), read(END_LSN), u32_at(page, LSN + 4))
    else {
        return Some(format!("it has {} bytes, which is no page", page.len()));
    };
    let bytes = crc32c::crc32c(&page[..page.len() - CHECKSUM]);
    (checksum != bytes).then(|| {
        let lsn = match lsn == end_lsn {
            true => String::new(),
            false => {
                format!("; its LSN ends in {lsn:08x} at its head and in {end_lsn:08x} at its end")
            }
        };
        format!("its checksum is {checksum:08x}, and its bytes come to {bytes:08x}{lsn}")
    })
}

pub(super) fn is_headed(head: &[u8], number: u64) -> bool {
    u32_at(head, NUMBER).is_some_and(|own| u64::from(own) == number)
}

/// Makes a page of these bytes.
#[cfg(test)]
pub(super) fn seal(page: &mut [u8], number: u64, lsn: u64) {
    let size = page.len();
    page[NUMBER..NUMBER + 4].copy_from_slice(&(number as u32).to_be_bytes());
    page[LSN..LSN + 8].copy_from_slice(&lsn.to_be_bytes());
    page[size - END_LSN..size - CHECKSUM].copy_from_slice(&(lsn as u32).to_be_bytes());
    let crc = crc32c::crc32c(&page[..size - CHECKSUM]);
    page[size - CHECKSUM..].copy_from_slice(&crc.to_be_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::pattern;
    use super::*;

    /// The sums come from a CRC-32C of a few lines (bit by bit, 0x82f63b78), which finds all pages sound
    /// that MariaDB 10.11 makes.
    #[test]
    fn the_checksum_is_that_of_an_independent_program() {
        for (n, size, crc) in [(1, 16384, 0x65a5_346c_u32), (2, 4096, 0xf449_37bb)] {
            let mut page = pattern(n, size);
            page[size - 4..].copy_from_slice(&crc.to_be_bytes());
            assert_eq!(wrong(&page), None);
            page[size - 4..].copy_from_slice(&crc.to_le_bytes());
            let text = wrong(&page).unwrap();
            assert!(text.contains(&format!("come to {crc:08x}")), "{text}");
        }
    }

    #[test]
    fn a_torn_page_shows_two_moments_of_the_log() {
        let mut page = pattern(1, 16384);
        seal(&mut page, 3, 0x1_2345_6789);
        assert_eq!(wrong(&page), None);
        let mut newer = page.clone();
        newer[100] ^= 1;
        seal(&mut newer, 3, 0x1_2345_6790);
        newer[8192..].copy_from_slice(&page[8192..]);
        let text = wrong(&newer).unwrap();
        let lsn = "; its LSN ends in 23456790 at its head and in 23456789 at its end";
        assert!(text.starts_with("its checksum is ") && text.ends_with(lsn), "{text}");
        page[8000] ^= 1;
        assert!(!wrong(&page).unwrap().contains("LSN"));
    }
}
