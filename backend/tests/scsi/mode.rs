//! Mode pages, and switching the write cache.

use crate::common::scsi::DISK;
use crate::common::scsi_with;
use crate::common::store::{MemStore, Told};
use crate::{Bench, FIRST, IN_CDB, IN_LIST, LIST_LENGTH, LimitOptions, SECTORS, memory};
use tornblk_backend::device::Device;
use tornblk_backend::store::Op;
use tornblk_model::event::{Negotiation, ResetCause};

fn sense6(flags: u8, page: u8, subpage: u8) -> [u8; 6] {
    [0x1a, flags, page, subpage, 255, 0]
}

fn sense10(flags: u8, page: u8) -> [u8; 10] {
    [0x5a, flags, page, 0, 0, 0, 0, 0, 255, 0]
}

fn select6(len: usize) -> [u8; 6] {
    [0x15, 0x10, 0, 0, len as u8, 0]
}

fn select10(len: usize) -> [u8; 10] {
    [0x55, 0x10, 0, 0, 0, 0, 0, 0, len as u8, 0]
}

/// The caching page, with WCE as it shall be.
fn caching(wce: bool) -> Vec<u8> {
    let mut page = vec![0; 20];
    (page[0], page[1], page[2]) = (8, 18, u8::from(wce) << 2);
    page
}

fn list6(pages: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0], pages].concat()
}

#[test]
fn pages_are_told_with_and_without_a_block_descriptor() {
    let mut b = Bench::plain();
    let data = b.told(&sense6(0, 8, 0), 255);
    // DPOFUA; eight bytes that say 2,048 blocks of 512.
    assert_eq!(data[..12], [31, 0, 0x10, 8, 0, 0, 8, 0, 0, 0, 2, 0]);
    assert_eq!(data[12..], caching(true));
    assert_eq!(b.told(&sense6(8, 8, 0), 255), [&[23, 0, 0x10, 0][..], &caching(true)].concat());
    let all = b.told(&sense6(8, 0x3f, 0), 255);
    assert_eq!((all.len(), usize::from(all[0])), (4 + 20 + 12, 4 + 20 + 12 - 1));
    assert_eq!((all[4], all[24], all[25]), (8, 0x0a, 10));
    assert_eq!(b.told(&sense6(8, 0x3f, 0xff), 255), all);
    // Of the long form, with a long block descriptor.
    let data = b.told(&sense10(0x10, 8), 255);
    assert_eq!(data[..8], [0, 42, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(data[8..24], [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(b.told(&sense10(8, 0x0a), 255)[..8], [0, 18, 0, 0x10, 0, 0, 0, 0]);
    // Cut off where the allocation length ends; the length is that of the whole.
    assert_eq!(b.told(&[0x1a, 8, 8, 0, 4, 0], 255), [23, 0, 0x10, 0]);
}

#[test]
fn of_all_values_only_the_write_cache_can_be_changed() {
    let mut b = Bench::plain();
    let changeable = b.told(&sense6(8, 0x40 | 0x3f, 0), 255);
    let mut expected = vec![0; 36];
    (expected[0], expected[2]) = (35, 0x10);
    (expected[4], expected[5], expected[6]) = (8, 18, 4);
    (expected[24], expected[25]) = (0x0a, 10);
    assert_eq!(changeable, expected);
    assert_eq!(b.ask(&sense6(8, 0xc0 | 8, 0), &[], 255).code(), (5, 0x39, 0));
    assert_eq!(b.ask(&sense6(8, 8, 1), &[], 255).code(), IN_CDB);
    for page in [0x00, 0x01, 0x1c] {
        assert_eq!(b.ask(&sense6(8, page, 0), &[], 255).code(), IN_CDB);
    }
}

#[test]
fn switching_the_cache_reaches_the_store() {
    let mut b = Bench::plain();
    b.device.negotiated(b.device.features());
    b.store.take_told();
    for (wce, ten) in [(false, false), (true, true), (false, true), (true, false)] {
        let reply = if ten {
            let list = [&[0; 8][..], &caching(wce)].concat();
            b.ask(&select10(list.len()), &list, 0)
        } else {
            let list = list6(&caching(wce));
            b.ask(&select6(list.len()), &list, 0)
        };
        assert!(reply.good() && reply.residual == 0, "{reply:?}");
        assert_eq!(b.store.take_told(), [Told::Writeback(wce)]);
        // What is in the cache is written out.
        assert_eq!(b.store.take_ops(), if wce { vec![] } else { vec![Op::FLUSH] });
        assert_eq!(b.device.wce(), wce);
        assert_eq!(b.told(&sense6(8, 8, 0), 255)[6], u8::from(wce) << 2);
        // The default value stays.
        assert_eq!(b.told(&sense6(8, 0x80 | 8, 0), 255)[6], 4);
        // Again: no news.
        let list = list6(&caching(wce));
        assert!(b.ask(&select6(list.len()), &list, 0).good());
        assert_eq!(b.store.take_told(), []);
        b.store.take_ops();
    }
    // What was switched is what the next driver finds, and what is recorded.
    let list = list6(&caching(false));
    assert!(b.ask(&select6(list.len()), &list, 0).good());
    b.device.reset(tornblk_model::event::ResetCause::Device, None);
    b.store.take_told();
    b.device.negotiated(b.device.features());
    let (flush_offered, flush, config_wce, writeback) = (true, true, true, false);
    let said = Negotiation { flush_offered, flush, config_wce, writeback };
    assert_eq!(b.store.take_told(), [Told::Negotiated(said)]);
}

#[test]
fn a_cache_that_cannot_be_written_out_stays_on() {
    let mut b = Bench::plain();
    let list = list6(&caching(false));
    b.store.fail_next(1);
    assert_eq!(b.ask(&select6(list.len()), &list, 0).code(), (3, 0x0c, 0));
    assert_eq!(b.store.take_told(), [Told::Writeback(false), Told::Writeback(true)]);
    assert!(b.device.wce());
    assert_eq!(b.told(&sense6(8, 8, 0), 255)[6], 4);

    // Not GOOD before it is written out.
    b.store.stall();
    b.driver.recycle();
    let sent = b.driver.command(DISK, 7, &select6(list.len()), &list, 0);
    let _ = b.pump();
    assert_eq!(b.driver.take_used(), []);
    b.store.release();
    assert!(b.answer(&sent).good());
    assert!(!b.device.wce());
    // What was off before stays off.
    b.store.fail_next(1);
    assert_eq!(b.ask(&select6(list.len()), &list, 0).code(), (3, 0x0c, 0));
    assert!(!b.device.wce());
}

#[test]
fn a_power_cut_brings_the_default_back() {
    let mut b = Bench::plain();
    let list = list6(&caching(false));
    assert!(b.ask(&select6(list.len()), &list, 0).good());
    b.device.reset(ResetCause::Reconnect, None);
    assert!(!b.device.wce(), "no power was lost");
    b.store.cut_power();
    b.device.reset(ResetCause::QueueStop, Some(FIRST));
    assert!(!b.device.wce());
    b.device.reset(ResetCause::Reconnect, None);
    assert!(b.device.wce());
    b.store.power_on();
    b.store.take_told();
    b.device.negotiated(b.device.features());
    let (flush_offered, flush, config_wce, writeback) = (true, true, true, true);
    let said = Negotiation { flush_offered, flush, config_wce, writeback };
    assert_eq!(b.store.take_told(), [Told::Negotiated(said)]);
}

#[test]
fn queues_that_switch_the_cache_at_once_agree_with_the_store() {
    let store = MemStore::new(SECTORS);
    let device = scsi_with(&store, 2, LimitOptions::default());
    let mem = memory();
    std::thread::scope(|scope| {
        for (index, base) in [(FIRST, 0x4_0000), (FIRST + 1, 0x9_0000)] {
            let (store, device, mem) = (store.clone(), device.clone(), mem.clone());
            let mut b = Bench::with(store, device, mem, base, index, false);
            scope.spawn(move || {
                for n in 0..3000 {
                    let list = list6(&caching(n % 2 == 1));
                    assert!(b.ask(&select6(list.len()), &list, 0).good());
                }
            });
        }
    });
    let mut on = true;
    for told in store.take_told() {
        assert_eq!(told, Told::Writeback(!on), "each is told once, in the order of the switches");
        on = !on;
    }
    assert_eq!(device.wce(), on);
}

#[test]
fn what_was_sensed_can_be_selected() {
    let mut b = Bench::plain();
    for (flags, page) in [(8, 0x3f), (0, 0x3f), (0, 8), (8, 0x0a)] {
        let mut list = b.told(&sense6(flags, page, 0), 255);
        list[0] = 0;
        assert!(b.ask(&select6(list.len()), &list, 0).good(), "page {page:#x}");
        let mut list = b.told(&sense10(flags | 0x10, page), 255);
        list[1] = 0;
        assert!(b.ask(&select10(list.len()), &list, 0).good(), "page {page:#x}");
    }
    assert!(b.ask(&select6(0), &[], 0).good());
    assert!(b.ask(&select6(4), &[0; 4], 0).good());
    assert_eq!(b.store.take_told(), []);
}

#[test]
fn what_cannot_be_selected_is_refused_and_changes_nothing() {
    let mut b = Bench::plain();
    let off = caching(false);
    let with = |at: usize, value: u8| {
        let mut list = list6(&off);
        list[at] = value;
        list
    };
    let two = list6(&[&off[..], &[0x0a, 10, 4, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0]].concat());
    let resize = [&[0, 0, 0, 8, 0, 0, 8, 1, 0, 0, 2, 0][..], &off].concat();
    let reblock = [&[0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 16, 0][..], &off].concat();
    for (list, code) in [
        (vec![0; 3], LIST_LENGTH),
        (list6(&off[..19]), LIST_LENGTH),
        (list6(&off[..1]), LIST_LENGTH),
        (with(3, 8), IN_LIST),
        (with(3, 3), IN_LIST),
        (with(3, 200), LIST_LENGTH),
        (with(1, 1), IN_LIST),
        (with(4, 0x1c), IN_LIST),
        // A subpage.
        (with(4, 0x48), IN_LIST),
        (with(5, 17), IN_LIST),
        // RCD, and a value behind it.
        (with(6, 1), IN_LIST),
        (with(20, 1), IN_LIST),
        // The first page is good, the second sets D_SENSE.
        (two, IN_LIST),
        (resize, IN_LIST),
        (reblock, IN_LIST),
    ] {
        assert_eq!(b.ask(&select6(list.len()), &list, 0).code(), code, "{list:02x?}");
    }
    // SP; a list in no page format.
    let list = list6(&off);
    for flags in [0x11, 0x01, 0x00] {
        let cdb = [0x15, flags, 0, 0, list.len() as u8, 0];
        assert_eq!(b.ask(&cdb, &list, 0).code(), IN_CDB);
    }
    // The field pointer names the byte of the list.
    let reply = b.ask(&select6(24), &with(6, 1), 0);
    assert_eq!(reply.sense[15..], [0x80, 0, 6]);
    assert_eq!(b.store.take_told(), []);
    assert!(b.device.wce());
}

#[test]
fn a_read_only_disk_says_so() {
    let mut b = Bench::new(MemStore::read_only(64), LimitOptions::default());
    assert_eq!(b.told(&sense6(8, 8, 0), 255)[2], 0x90);
    assert_eq!(b.told(&sense10(8, 8), 255)[3], 0x90);
}
