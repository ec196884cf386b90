//! Mode parameters (SPC-5, 6.13 to 6.16 and 7.5; SBC-4, 6.5): MODE SENSE and MODE SELECT.
//!
//! One value can be changed, of a disk that is alone: WCE, the volatile write cache. The pages cannot be saved; a change
//! outlives resets all the same, as `writeback` does on virtio-blk, but no power cut.
//!
//! A MODE SELECT that says that WCE is 0 writes the cache out before it is GOOD (SBC-4, 6.5.6): from
//! its beginning on, what completes is stable; then a flush makes what completed before stable. Where
//! that flush fails, WCE is what it was and the command fails.

use super::command::{Asked, Work};
use super::sense::{Refused, Sense};
use super::unit::Lu;
use super::wire::{CDB_BYTES, be16, be32, be64};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const ALL: u8 = 0x3f;
const WCE: u8 = 0x04;

/// PAGE CONTROL.
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

/// SBC-4, 6.5.6; with the page code and length.
fn caching(wce: bool) -> Vec<u8> {
    let mut page = vec![0; 20];
    page[0] = CACHING;
    page[1] = 18;
    page[2] = if wce { WCE } else { 0 };
    page
}

/// SPC-5, 7.5.10: sense data in fixed format, one task set, commands in whatever order.
fn control(changeable: bool) -> Vec<u8> {
    const UNRESTRICTED: u8 = 0x10;
    let mut page = vec![0; 12];
    page[0] = CONTROL;
    page[1] = 10;
    if !changeable {
        page[3] = UNRESTRICTED;
        // BUSY TIMEOUT PERIOD: unlimited.
        page[8..10].fill(0xff);
    }
    page
}

fn page(disk: &Lu<'_>, code: u8, which: u8) -> Option<Vec<u8>> {
    match code {
        CACHING => Some(caching(match which {
            CHANGEABLE => disk.switches_wce(),
            2 => disk.default_wce(),
            _ => disk.wce(),
        })),
        CONTROL => Some(control(which == CHANGEABLE)),
        _ => None,
    }
}

/// The block descriptor, short or long (SBC-4, 6.5.2).
fn descriptor(disk: &Lu<'_>, long: bool) -> Vec<u8> {
    let (blocks, block) = (disk.disk().blocks(), disk.disk().lb_size);
    if long {
        let mut data = blocks.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(block.to_be_bytes());
        data
    } else {
        let mut data = u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        // Three bytes are enough: a block is at most 64 KiB.
        data.extend(block.to_be_bytes());
        data[4] = 0;
        data
    }
}

/// The data of MODE SENSE; `ten`: of the command with 10 bytes.
pub(super) fn sense(disk: &Lu<'_>, cdb: &[u8; CDB_BYTES], ten: bool) -> Result<Vec<u8>, Sense> {
    const DBD: u8 = 0x08;
    const LLBAA: u8 = 0x10;
    const WP: u8 = 0x80;
    const DPOFUA: u8 = 0x10;
    const LONGLBA: u8 = 0x01;
    let (which, code, subpage) = (cdb[2] >> 6, cdb[2] & 0x3f, cdb[3]);
    if which == SAVED {
        return Err(Sense::NOT_SAVED);
    }
    // Subpage FFh asks for all subpages: there is only 00h.
    if subpage != 0 && subpage != 0xff {
        return Err(Sense::in_cdb(3, None));
    }
    let pages = match code {
        ALL => [CACHING, CONTROL].iter().filter_map(|code| page(disk, *code, which)).collect(),
        code => vec![page(disk, code, which).ok_or(Sense::in_cdb(2, Some(5)))?],
    };
    let long = ten && cdb[1] & LLBAA != 0;
    let descriptor = if cdb[1] & DBD == 0 { descriptor(disk, long) } else { Vec::new() };
    let body = descriptor.len() + pages.iter().map(Vec::len).sum::<usize>();
    let specific = DPOFUA | if disk.read_only() { WP } else { 0 };
    // Lengths: far below 256.
    let mut data = if ten {
        let longlba = if long && !descriptor.is_empty() { LONGLBA } else { 0 };
        vec![0, body as u8 + 6, 0, specific, longlba, 0, 0, descriptor.len() as u8]
    } else {
        vec![body as u8 + 3, 0, specific, descriptor.len() as u8]
    };
    data.extend(descriptor);
    data.extend(pages.into_iter().flatten());
    Ok(data)
}

/// MODE SELECT; `ten`: with 10 bytes.
pub(super) fn select(disk: &Lu<'_>, asked: &Asked<'_>, ten: bool) -> Result<Work, Refused> {
    const SP: u8 = 0x01;
    const PF: u8 = 0x10;
    let cdb = asked.cdb;
    if cdb[1] & SP != 0 {
        return Err(Sense::in_cdb(1, Some(0)).into());
    }
    let len = u64::from(if ten { be16(cdb, 7) } else { cdb[4].into() });
    let list = asked.parameters(len)?;
    if list.is_empty() {
        return Ok(Work::Done { taken: 0 });
    }
    if cdb[1] & PF == 0 {
        return Err(Sense::in_cdb(1, Some(4)).into());
    }
    match selected(disk, &list, ten)? {
        None => Ok(Work::Done { taken: len }),
        Some(true) => {
            disk.set_wce(true);
            Ok(Work::Done { taken: len })
        }
        Some(false) => {
            let was_on = disk.set_wce(false);
            Ok(Work::WriteThrough { flush: disk.flush(), was_on, taken: len })
        }
    }
}

/// What a parameter list says about WCE, if all of it is acceptable.
fn selected(disk: &Lu<'_>, list: &[u8], ten: bool) -> Result<Option<bool>, Sense> {
    let header = if ten { 8 } else { 4 };
    if list.len() < header {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let (medium, descriptor_len, long) =
        if ten { (2, be16(list, 6), list[4] & 1 != 0) } else { (1, list[3].into(), false) };
    if list[medium] != 0 {
        return Err(Sense::in_list(medium as u16));
    }
    let pages = header + usize::from(descriptor_len);
    if list.len() < pages {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    described(disk, &list[header..pages], long, header)?;
    let (mut at, mut wce) = (pages, None);
    while at < list.len() {
        if list.len() - at < 2 {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        // The PS bit is reserved here.
        let code = list[at] & 0x7f;
        let now = page(disk, code, 0).ok_or(Sense::in_list(at as u16))?;
        let may = page(disk, code, CHANGEABLE).unwrap_or_default();
        if usize::from(list[at + 1]) != now.len() - 2 {
            return Err(Sense::in_list(at as u16 + 1));
        }
        let wanted = list.get(at..at + now.len()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        for i in 2..now.len() {
            if (wanted[i] ^ now[i]) & !may[i] != 0 {
                return Err(Sense::in_list((at + i) as u16));
            }
        }
        if code == CACHING {
            wce = Some(wanted[2] & WCE != 0);
        }
        at += now.len();
    }
    Ok(wce)
}

/// A block descriptor may only say what is so already. A number of blocks of 0, or all ones, asks
/// for no change.
fn described(disk: &Lu<'_>, bytes: &[u8], long: bool, at: usize) -> Result<(), Sense> {
    let wrong = |offset: usize| Err(Sense::in_list((at + offset) as u16));
    let blocks = disk.disk().blocks();
    let (said, most, block, block_at) = match (bytes.len(), long) {
        (0, _) => return Ok(()),
        (8, false) => (be32(bytes, 0).into(), u64::from(u32::MAX), be32(bytes, 4) & 0xff_ffff, 5),
        (16, true) => (be64(bytes, 0), u64::MAX, be32(bytes, 12), 12),
        // The length itself: the last field of the header.
        _ => return Err(Sense::in_list(at as u16 - 1)),
    };
    if said != 0 && said != most && said != blocks {
        return wrong(0);
    }
    if block != disk.disk().lb_size {
        return wrong(block_at);
    }
    Ok(())
}
