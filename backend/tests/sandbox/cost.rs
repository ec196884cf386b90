//! What the sandbox costs: `tornblkd` with and without it in turns, so that what else the machine
//! does meets both alike. Ignored, since it takes a while and depends on the machine:
//! `cargo test --release -p tornblk-backend --test sandbox -- --ignored --nocapture`.

use crate::common::driver::{Driver, WRITE};
use crate::guest::Guest;
use crate::served::Place;
use std::time::Instant;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

pub(crate) const TESTS: &[(&str, fn())] = &[("what_it_costs", what_it_costs)];

const DEPTH: usize = 32;
/// Requests of one turn.
const TURN: u64 = 5_000;
const PAIRS: usize = 61;

fn what_it_costs() {
    for (name, store) in [("raw", ""), ("recorded", "--recording r")] {
        for write in [false, true] {
            let places = [Place::new(), Place::new()];
            let runs = [("on", &places[0]), ("off", &places[1])].map(|(sandbox, place)| {
                place.start(&format!("--image disk.img {store} --sandbox {sandbox}"))
            });
            let mut guests = runs.each_ref().map(|running| running.guest(1));
            for guest in &mut guests {
                lay_out(&mut guest.queues[0].driver, write);
                // Everything made and mapped.
                turn(guest);
            }
            let rates: Vec<[f64; 2]> = (0..PAIRS).map(|_| guests.each_mut().map(turn)).collect();
            let mut ratios: Vec<f64> = rates.iter().map(|[on, off]| on / off).collect();
            ratios.sort_by(f64::total_cmp);
            let [on, off] = [0, 1].map(|which| {
                let mut all: Vec<f64> = rates.iter().map(|pair| pair[which]).collect();
                all.sort_by(f64::total_cmp);
                all[PAIRS / 2]
            });
            println!(
                "{name}, {} of 4 KiB, depth {DEPTH}: {on:.0} a second in the sandbox, {off:.0} \
                 outside; single pairs: median {:.1} %, half of them {:.1} to {:.1} %",
                if write { "writes" } else { "reads" },
                100.0 * ratios[PAIRS / 2],
                100.0 * ratios[PAIRS / 4],
                100.0 * ratios[PAIRS * 3 / 4],
            );
            drop(guests);
            runs.into_iter().for_each(|running| drop(running.end()));
        }
    }
}

/// One request in so many descriptors: `3 * n` is the head of the nth.
fn lay_out(driver: &mut Driver, write: bool) {
    let (kind, flags) = if write { (VIRTIO_BLK_T_OUT, 0) } else { (VIRTIO_BLK_T_IN, WRITE) };
    for n in 0..DEPTH as u64 {
        let header = driver.header(kind, 8 * n);
        let (data, status) = (driver.place(&[9; 4096]), driver.status_byte());
        driver.chain(&[(header, 16, 0), (data, 4096, flags), (status, 1, WRITE)]);
    }
}

/// → requests a second.
fn turn(guest: &mut Guest) -> f64 {
    let begin = Instant::now();
    (0..DEPTH as u16).for_each(|n| guest.queues[0].driver.offer(3 * n));
    let (mut sent, mut done) = (DEPTH as u64, 0);
    guest.kick(0);
    while done < TURN {
        let used = guest.wait(0);
        done += used.len() as u64;
        let again = used.iter().take((TURN - sent) as usize);
        sent += again.len() as u64;
        again.for_each(|(head, _)| guest.queues[0].driver.offer(*head));
        guest.kick(0);
    }
    TURN as f64 / begin.elapsed().as_secs_f64()
}
