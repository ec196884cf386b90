//! The clock on the wall jumps: nothing that the guest asks for, and no waiting, depends on it.

use crate::guest::until;
use crate::rig::{OK, Place, skipped};
use std::process::Command;
use std::time::{Duration, Instant};
use tornblk_proto::{Match, StallWhen, Trigger};

/// Adds the seconds that stand in the file JUMP to what the clock on the wall says; monotonic
/// clocks are left alone, as by clock_settime(2).
const JUMPING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) {
    FILE *file = fopen(getenv("JUMP"), "r");
    long by = 0;
    if (file) { if (fscanf(file, "%ld", &by) != 1) by = 0; fclose(file); }
    return by;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int got = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += jump();
    return got;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    (void)zone;
    int got = clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return got;
}
time_t time(time_t *where) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (where) *where = t.tv_sec;
    return t.tv_sec;
}
"#;

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let place = Place::new();
    std::fs::write(place.path("jump.c"), JUMPING).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "jump.so", "jump.c", "-ldl"])
        .current_dir(place.path(""))
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return skipped("there is no C compiler (cc)");
    }
    // A hundred years either way, before 1970 too.
    const CENTURY: i64 = 100 * 365 * 86_400;
    let jumped = |by: i64| {
        std::fs::write(place.path("jump.new"), by.to_string()).unwrap();
        std::fs::rename(place.path("jump.new"), place.path("jump")).unwrap();
    };
    jumped(CENTURY);
    let setup = "export LD_PRELOAD=$PWD/jump.so JUMP=$PWD/jump";
    let line = "--socket s --control c --image disk.img --recording r --hold-completions idle";
    let mut daemon = place.start_after(setup, line);
    daemon.until_ready(&place.path("s"));
    // It does jump: the log's own times say so.
    daemon.until_says("[21");
    let client = place.client();
    let mut guest = place.guest(1);
    let mut before = None;
    for (round, by) in [0, -CENTURY, CENTURY, -CENTURY, 0].into_iter().enumerate() {
        jumped(by);
        let begin = Instant::now();
        // Held until the disk has been idle for some milliseconds, each of them.
        for n in 0..10 {
            assert_eq!(guest.write(n, &[round as u8; 512]), OK);
            assert_eq!(guest.read(n, 512).unwrap(), [round as u8; 512]);
        }
        assert_eq!(guest.flush(), OK);
        let token = client.stall(Match::default(), StallWhen::BeforeIo).unwrap();
        let sent = guest.queues[0].driver.wants(0, 3, 512);
        guest.kick(0);
        until(|| client.status().unwrap().in_flight == 1);
        jumped(-by);
        client.release(token).unwrap();
        assert_eq!(guest.wait(0), [(sent.head, 513)]);
        let event = client.mark(format!("round {round}")).unwrap().event;
        assert!(before < Some(event), "the order goes on");
        before = Some(event);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
    // 1869: what comes now, a nonce too, is drawn before 1970.
    jumped(-CENTURY);
    client.crash(Trigger::Now, Some("all"), None, None).unwrap();
    drop(guest);
    let mut guest = place.guest(1);
    assert_eq!(guest.read(3, 512).unwrap(), [4; 512]);
    drop((guest, client));
    daemon.end();
    place.recorded("r");
    // Made before 1970.
    let line = line.replace(" r ", " q ");
    let mut daemon = place.start_after(setup, &line);
    daemon.until_ready(&place.path("s"));
    assert_eq!(place.guest(1).write(0, &[1; 512]), OK);
    daemon.end();
    place.recorded("q");
}
