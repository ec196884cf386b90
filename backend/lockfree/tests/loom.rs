//! Every interleaving of a few threads, as far as loom tries them: see the crate's documentation.

#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;
use tornblk_lockfree::{Flag, Order, Places, Seen, Window};

/// Tries all of them, with so many changes of the thread where one could still go on.
fn all(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(f);
}

/// A recording: what is committed under each number. The stores are relaxed: what makes them
/// seen is the order's own doing.
struct Log {
    order: Order,
    slots: [AtomicU64; 8],
}

impl Log {
    fn new() -> Arc<Log> {
        Arc::new(Log { order: Order::new(0), slots: std::array::from_fn(|_| AtomicU64::new(0)) })
    }

    /// Commits `what`: under which number.
    fn record(&self, what: u64, last: bool) -> Option<u64> {
        self.order.record(last, |number| {
            self.commit(number, what);
            number
        })
    }

    fn commit(&self, number: u64, what: u64) {
        let before = self.slots[number as usize].swap(what, Ordering::Relaxed);
        assert_eq!(before, 0, "number {number} was given twice");
    }

    fn at(&self, number: u64) -> u64 {
        self.slots[number as usize].load(Ordering::Relaxed)
    }

    /// All numbers below are committed, as seen from this thread.
    fn whole_to(&self, numbers: u64) {
        for number in 0..numbers {
            assert_ne!(self.at(number), 0, "number {number} of {numbers} is not there");
        }
    }

    fn nothing_from(&self, numbers: u64) {
        for number in numbers..self.slots.len() as u64 {
            assert_eq!(self.at(number), 0, "number {number}, after {numbers}");
        }
    }
}

#[test]
fn numbers_are_unique_and_without_gaps() {
    all(3, || {
        let log = Log::new();
        let threads: Vec<_> = (1..3)
            .map(|n| {
                let log = log.clone();
                thread::spawn(move || (log.record(n, false), log.record(n + 10, false)))
            })
            .collect();
        let third = log.record(20, false).unwrap();
        let mut taken = vec![third];
        for thread in threads {
            let (first, second) = thread.join().unwrap();
            assert!(first < second, "a thread's own events are in their order");
            taken.extend([first.unwrap(), second.unwrap()]);
        }
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        assert_eq!(log.order.events(), 5);
        log.whole_to(5);
    });
}

#[test]
fn a_cut_waits_for_all_that_have_a_number_and_nothing_comes_after_it() {
    all(3, || {
        let log = Log::new();
        let threads: Vec<_> = (1..3)
            .map(|n| {
                let log = log.clone();
                thread::spawn(move || (log.record(n, false), log.record(n + 10, false)))
            })
            .collect();
        let cut = log.order.freeze();
        log.whole_to(cut);
        log.nothing_from(cut);
        assert_eq!(log.order.frozen(), Some(cut));
        assert_eq!(log.order.events(), cut);
        for thread in threads {
            let (first, second) = thread.join().unwrap();
            assert!(first.is_none_or(|n| n < cut) && second.is_none_or(|n| n < cut));
            assert!(first.is_some() || second.is_none(), "the power does not come back");
        }
        log.nothing_from(cut);
        assert_eq!((log.order.events(), log.record(9, false)), (cut, None));
    });
}

// Of two threads that wait for each other's progress loom would try one after the other for ever:
// in each of these at most one waits.

#[test]
fn of_two_cuts_there_is_one() {
    all(4, || {
        let log = Log::new();
        let last = {
            let log = log.clone();
            thread::spawn(move || {
                let ends = (log.record(1, false), log.record(2, true));
                assert_eq!(log.record(3, false), None);
                ends
            })
        };
        let cut = log.order.freeze();
        log.whole_to(cut);
        log.nothing_from(cut);
        let (first, last) = last.join().unwrap();
        // The last one is the last one, or came too late.
        assert!(last.is_none_or(|number| number + 1 == cut), "{last:?} {cut}");
        assert_eq!(cut, [first, last].iter().flatten().count() as u64);
        log.nothing_from(cut);
        assert_eq!((log.order.freeze(), log.order.events()), (cut, cut));
    });
}

#[test]
fn who_looks_meanwhile_sees_what_is_there() {
    all(4, || {
        let log = Log::new();
        let writer = {
            let log = log.clone();
            thread::spawn(move || {
                log.record(1, false);
                let cut = log.order.freeze();
                // In vain, and not to be counted.
                assert_eq!((log.record(2, false), log.record(3, true)), (None, None));
                cut
            })
        };
        let events = log.order.events();
        if let Some(cut) = log.order.frozen() {
            log.whole_to(cut);
            assert_eq!((cut, log.order.events()), (1, 1));
        }
        assert!(events <= 1, "{events}");
        assert_eq!(writer.join().unwrap(), 1);
    });
}

#[test]
fn the_order_goes_on_after_the_power_came_back() {
    for noted in [false, true] {
        all(3, move || {
            let log = Log::new();
            let writer = {
                let log = log.clone();
                thread::spawn(move || (log.record(1, false), log.record(2, false)))
            };
            let cut = log.order.freeze();
            log.whole_to(cut);
            if noted {
                log.commit(cut, 9);
            }
            assert!(log.order.thaw(noted));
            assert_eq!(log.order.thaws(), 1);
            let (first, second) = writer.join().unwrap();
            // Every number again, each once, and the second cut has them all.
            let taken = [first, second].iter().flatten().count() as u64 + u64::from(noted);
            assert_eq!(log.order.events(), taken);
            assert_eq!(log.order.freeze(), taken);
            log.whole_to(taken);
            assert!(log.order.thaw(false) && !log.order.thaw(false));
        });
    }
}

#[test]
fn a_cut_in_the_moment_the_power_comes_back_is_a_cut() {
    all(3, || {
        let log = Log::new();
        log.record(1, false);
        log.order.freeze();
        let back = {
            let log = log.clone();
            thread::spawn(move || log.order.thaw(false))
        };
        let was_back = !log.order.is_frozen();
        // The one that was there, or a new one; never none.
        assert_eq!(log.order.freeze(), 1);
        let off = log.order.is_frozen();
        assert!(off || !was_back);
        assert!(back.join().unwrap());
        assert_eq!(log.order.events(), 1);
    });
}

#[test]
fn a_cut_of_before_is_not_taken_for_the_one_that_is_being_made() {
    all(3, || {
        let log = Log::new();
        assert_eq!(log.order.freeze(), 0);
        assert!(log.order.thaw(false));
        log.record(1, false);
        let again = {
            let log = log.clone();
            thread::spawn(move || log.order.freeze())
        };
        if let Some(cut) = log.order.frozen() {
            assert_eq!(cut, 1);
        }
        assert_eq!(again.join().unwrap(), 1);
    });
}

#[test]
fn whoever_knows_that_the_power_is_back_knows_that_it_was_off() {
    all(3, || {
        let order = Arc::new(Order::new(0));
        let thaws = order.thaws();
        order.freeze();
        let store = {
            let order = order.clone();
            // As a store asks whether it is over: off, or another time.
            thread::spawn(move || order.is_frozen() || order.thaws() != thaws)
        };
        assert!(order.thaw(false));
        assert!(store.join().unwrap(), "it would have gone on");
    });
}

#[test]
fn a_number_without_a_place_is_given_up_and_holds_up_nobody() {
    all(3, || {
        let log = Log::new();
        // Room for one, and two who looked before.
        let places = Arc::new(Places::new(1, 2));
        assert!(places.add(7));
        let threads: Vec<_> = (1..3)
            .map(|n| {
                let (log, places) = (log.clone(), places.clone());
                thread::spawn(move || {
                    log.order.record(false, |number| {
                        let found = places.find(number);
                        if found.is_some() {
                            log.commit(number, n);
                        }
                        found
                    })
                })
            })
            .collect();
        let cut = log.order.freeze();
        assert!(cut <= 2);
        log.whole_to(cut.min(1));
        log.nothing_from(1);
        for thread in threads {
            assert!(thread.join().unwrap().flatten().is_none_or(|found| found == (7, 0)));
        }
    });
}

#[test]
fn who_finds_room_finds_its_segment() {
    all(4, || {
        let places = Arc::new(Places::new(2, 2));
        let looks = {
            let places = places.clone();
            thread::spawn(move || [0, 1, 2, 3].map(|number| places.find(number)))
        };
        assert!(places.add(5) && places.add(6) && !places.add(7));
        let found = looks.join().unwrap();
        for (number, found) in (0..).zip(found) {
            assert!(found.is_none_or(|f| f == (5 + number as u32 / 2, number % 2)), "{found:?}");
        }
        assert_eq!(places.find(4), None);
    });
}

#[test]
fn nothing_that_was_changed_before_a_wake_up_is_missed() {
    all(4, || {
        // The bell is an eventfd: what rings before it is silenced is one with it.
        struct Queue {
            flag: Flag,
            bell: AtomicBool,
            changed: [AtomicBool; 2],
        }
        let no = || AtomicBool::new(false);
        let queue = Arc::new(Queue { flag: Flag::new(), bell: no(), changed: [no(), no()] });
        let wakers: Vec<_> = (0..2)
            .map(|n| {
                let queue = queue.clone();
                thread::spawn(move || {
                    queue.changed[n].store(true, Ordering::Relaxed);
                    queue.flag.wake(|| queue.bell.store(true, Ordering::Release));
                })
            })
            .collect();
        let mut seen = [false; 2];
        let mut serve = || {
            if queue.bell.swap(false, Ordering::AcqRel) && queue.flag.take() {
                for (seen, changed) in seen.iter_mut().zip(&queue.changed) {
                    *seen |= changed.load(Ordering::Relaxed);
                }
            }
        };
        serve();
        // A kick of the guest: the flag is taken, and the bell left to ring.
        let kicked = queue.flag.take();
        let by_kick = [0, 1].map(|n| kicked && queue.changed[n].load(Ordering::Relaxed));
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
        serve();
        for n in 0..2 {
            assert!(seen[n] || by_kick[n], "{seen:?} {by_kick:?}");
        }
    });
}

#[test]
fn who_leaves_out_an_index_comes_after_its_event() {
    all(3, || {
        // A completion is 100 and more, what became visible before is 1.
        let log = Log::new();
        let seen = Arc::new(Seen::new(1));
        let ends = |log: &Log, seen: &Seen, n: u64| {
            let commit = |news: &[(u16, u16)]| {
                if news.is_empty() {
                    let before = (0..8).any(|number| log.at(number) == 1);
                    assert!(before, "left out, and not to be seen");
                } else {
                    assert_eq!(news, [(0, 4)]);
                    log.record(1, false);
                }
                log.record(n, false).ok_or(())
            };
            seen.record(|found| found(0, 4), commit).unwrap()
        };
        let threads: Vec<_> = (100..102)
            .map(|n| {
                let (log, seen) = (log.clone(), seen.clone());
                thread::spawn(move || ends(&log, &seen, n))
            })
            .collect();
        for thread in threads {
            let number = thread.join().unwrap();
            assert!((0..number).any(|before| log.at(before) == 1), "not before {number}");
        }
    });
}

/// Is this index news? It stays so.
fn is_news(seen: &Seen, queue: u16) -> bool {
    let told = seen.record(|found| found(queue, 4), |news| Err::<(), _>(!news.is_empty()));
    told.unwrap_err()
}

#[test]
fn after_a_reset_an_index_is_news() {
    all(4, || {
        let seen = Arc::new(Seen::new(1));
        // Looks in the middle of a reset, and records afterwards.
        let other = {
            let seen = seen.clone();
            thread::spawn(move || seen.record(|found| found(0, 4), |_| Ok::<(), ()>(())))
        };
        seen.forget();
        other.join().unwrap().unwrap();
        seen.forget();
        assert!(is_news(&seen, 0) && is_news(&seen, 0));
        seen.record(|found| found(0, 4), |_| Ok::<(), ()>(())).unwrap();
        assert!(!is_news(&seen, 0));
        assert!(is_news(&seen, 1), "a queue that is not remembered");
    });
}

#[test]
fn what_was_read_before_a_reset_does_not_count_after_it() {
    all(1, || {
        let seen = Seen::new(1);
        let look = |found: &mut dyn FnMut(u16, u16)| {
            found(0, 4);
            seen.forget();
        };
        seen.record(look, |_| Ok::<(), ()>(())).unwrap();
        assert!(is_news(&seen, 0), "it was of before");
    });
}

#[test]
fn no_more_is_admitted_than_may_be_and_all_others_are_counted() {
    all(3, || {
        let window = Arc::new(Window::new());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let window = window.clone();
                thread::spawn(move || [window.admit(1, 1), window.admit(2, 1)])
            })
            .collect();
        let own = window.admit(2, 1);
        let mut said = vec![own];
        threads.into_iter().for_each(|thread| said.extend(thread.join().unwrap()));
        let admitted = said.iter().flatten().count();
        // One in the second while; in the first one or, where the second had begun, none.
        assert!((1..=2).contains(&admitted), "{said:?}");
        let told: u64 = said.iter().flatten().sum();
        assert_eq!(admitted as u64 + told + window.kept_back(), 5, "{said:?}");
    });
}
