//! INQUIRY (SPC-5, 6.7) and the vital product data pages (SPC-5, 7.7; SBC-4, 6.6).

use super::block::{
    AtomicLimits, TRANSFER_MAX_BYTES, UNMAP_MAX_BYTES, UNMAP_MAX_DESCRIPTORS, WRITE_SAME_MAX_BYTES,
};
use super::sense::Sense;
use super::unit::Lu;
use super::wire::CDB_BYTES;
use tornblk_proto::nonce_of;

/// Peripheral device types (SPC-5, 6.7.2), with qualifier 000b but for the last.
const DISK: u8 = 0x00;
const WELL_KNOWN: u8 = 0x1e;
/// Qualifier 011b and type 1Fh: there is no such logical unit.
const NOBODY: u8 = 0x7f;

const VENDOR: [u8; 8] = *b"TORNBLK ";
const PRODUCT: [u8; 16] = *b"tearable disk   ";

const SUPPORTED: u8 = 0x00;
const SERIAL: u8 = 0x80;
const IDENTITY: u8 = 0x83;
const BLOCK_LIMITS: u8 = 0xb0;
const CHARACTERISTICS: u8 = 0xb1;
const PROVISIONING: u8 = 0xb2;

/// Data of INQUIRY to the disk.
pub(super) fn data(disk: &Lu<'_>, cdb: &[u8; CDB_BYTES]) -> Result<Vec<u8>, Sense> {
    if cdb[1] & 1 == 0 {
        return standard(DISK, cdb);
    }
    let page = match cdb[2] {
        SUPPORTED => {
            vec![SUPPORTED, SERIAL, IDENTITY, BLOCK_LIMITS, CHARACTERISTICS, PROVISIONING]
        }
        SERIAL => disk.serial().into_bytes(),
        IDENTITY => identity(disk),
        BLOCK_LIMITS => block_limits(disk),
        CHARACTERISTICS => characteristics(),
        PROVISIONING => provisioning(),
        _ => return Err(Sense::in_cdb(2, None)),
    };
    Ok(paged(DISK, cdb[2], page))
}

/// Data of INQUIRY to a logical unit that is not there.
pub(super) fn nobody(cdb: &[u8; CDB_BYTES]) -> Result<Vec<u8>, Sense> {
    if cdb[1] & 1 == 0 { standard(NOBODY, cdb) } else { Err(Sense::in_cdb(2, None)) }
}

/// Data of INQUIRY to the REPORT LUNS well-known logical unit.
pub(super) fn well_known(cdb: &[u8; CDB_BYTES]) -> Result<Vec<u8>, Sense> {
    match (cdb[1] & 1, cdb[2]) {
        (0, _) => standard(WELL_KNOWN, cdb),
        (_, SUPPORTED) => Ok(paged(WELL_KNOWN, SUPPORTED, vec![SUPPORTED])),
        _ => Err(Sense::in_cdb(2, None)),
    }
}

fn paged(peripheral: u8, code: u8, page: Vec<u8>) -> Vec<u8> {
    let mut data = vec![peripheral, code];
    data.extend((page.len() as u16).to_be_bytes());
    data.extend(page);
    data
}

/// SPC-5, 6.7.2.
fn standard(peripheral: u8, cdb: &[u8; CDB_BYTES]) -> Result<Vec<u8>, Sense> {
    const BYTES: usize = 96;
    /// SPC-5. Linux reads VPD pages from SPC-2 on.
    const VERSION: u8 = 0x07;
    /// HISUP, and the one response data format there is.
    const FORMAT: u8 = 0x12;
    const CMDQUE: u8 = 0x02;
    /// SAM-5, SPC-5, SBC-4: no version of them claimed (SPC-5, 6.7.3).
    const STANDARDS: [u16; 3] = [0x00a0, 0x05c0, 0x0600];
    if cdb[2] != 0 {
        return Err(Sense::in_cdb(2, None));
    }
    let mut data = vec![0; BYTES];
    data[0] = peripheral;
    data[2] = VERSION;
    data[3] = FORMAT;
    data[4] = BYTES as u8 - 5;
    data[7] = CMDQUE;
    data[8..16].copy_from_slice(&VENDOR);
    data[16..32].copy_from_slice(&PRODUCT);
    // PRODUCT REVISION LEVEL: four characters of the program's version.
    let version = env!("CARGO_PKG_VERSION").bytes().chain(std::iter::repeat(b' '));
    for (to, from) in data[32..36].iter_mut().zip(version) {
        *to = from;
    }
    for (i, standard) in STANDARDS.iter().enumerate() {
        data[58 + 2 * i..60 + 2 * i].copy_from_slice(&standard.to_be_bytes());
    }
    Ok(data)
}

/// A serial number without the mark of the state that is shown.
pub(super) fn plain(serial: &str) -> &str {
    match serial.rsplit_once('@') {
        Some((plain, _)) if nonce_of(serial).is_some() => plain,
        _ => serial,
    }
}

/// A T10 vendor ID based designator (SPC-5, 7.7.6.4): vendor, product, serial number. The serial
/// number is here without the mark of the state that is shown: it is the same disk.
fn identity(disk: &Lu<'_>) -> Vec<u8> {
    let serial = disk.serial();
    // ASCII; of the logical unit, T10 vendor ID based.
    let mut page = vec![0x02, 0x01, 0, 0];
    page.extend(VENDOR);
    page.extend(PRODUCT);
    page.extend(plain(&serial).bytes());
    // At most 61 bytes.
    page[3] = page.len() as u8 - 4;
    page
}

/// SBC-4, 6.6.4. Linux looks at the atomic limits where PAGE LENGTH is 003Ch.
fn block_limits(disk: &Lu<'_>) -> Vec<u8> {
    const WSNZ: u8 = 0x01;
    let block = disk.block();
    // Offsets as in the standard, where the page's own header counts.
    let mut page = vec![0; 64];
    let put = |page: &mut Vec<u8>, at: usize, value: u32| {
        page[at..at + 4].copy_from_slice(&value.to_be_bytes());
    };
    // Quotients of constants below 4 GiB and a block of 512 bytes or more.
    let blocks = |bytes: u64| (bytes / block) as u32;
    let physical = disk.blocks_a_physical();
    page[4] = WSNZ;
    // OPTIMAL TRANSFER LENGTH GRANULARITY; at most 2,048 (`limits::PHYSICAL_BLOCK_MAX`).
    page[6..8].copy_from_slice(&(physical as u16).to_be_bytes());
    put(&mut page, 8, blocks(TRANSFER_MAX_BYTES));
    put(&mut page, 20, blocks(UNMAP_MAX_BYTES));
    put(&mut page, 24, UNMAP_MAX_DESCRIPTORS);
    put(&mut page, 28, physical);
    // MAXIMUM WRITE SAME LENGTH has 64 bits.
    put(&mut page, 40, blocks(WRITE_SAME_MAX_BYTES));
    let atomic = AtomicLimits::of(disk);
    // At most `block::ATOMIC_MAX_BLOCKS`.
    let longest = atomic.longest as u32;
    if atomic.boundary == 0 {
        put(&mut page, 44, longest);
    } else {
        // Without a maximum of its own, so that Linux sends a boundary with each command.
        put(&mut page, 56, longest);
        put(&mut page, 60, atomic.boundary);
    }
    put(&mut page, 52, atomic.granularity);
    page.split_off(4)
}

/// SBC-4, 6.6.2.
fn characteristics() -> Vec<u8> {
    let mut page = vec![0; 60];
    // MEDIUM ROTATION RATE: it does not turn.
    page[1] = 1;
    page
}

/// SBC-4, 6.6.7.
fn provisioning() -> Vec<u8> {
    const LBPU: u8 = 0x80;
    const LBPWS: u8 = 0x40;
    const LBPWS10: u8 = 0x20;
    const THIN: u8 = 0x02;
    vec![0, LBPU | LBPWS | LBPWS10, THIN, 0]
}
