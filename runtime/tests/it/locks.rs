//! Reader-writer locks, barriers, what is initialised once, wait groups: on plain threads, in dhagas, and between the two.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::{
    Barrier, Interrupt, LazyLock, LockTimeoutError, Mutex, Once, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard,
    WaitGroup, WaitTimeoutError, channel,
};
use dhaga::{JoinError, JoinHandle, Runtime};

use crate::child;
use crate::common::{DEADLINE, Part, everywhere, on_all_mixtures, within_deadline};
use crate::panicking::while_panicking;

/// How many parts a stress test has, and how often each does its work.
const PARTS: usize = 4;
const TIMES: usize = 10_000;

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

/// A timeout which passes sometimes before and sometimes after what it races with.
fn tight(round: usize) -> Duration {
    Duration::from_nanos((round * 7919 % 20_000) as u64)
}

fn parts(part: impl Fn(usize) -> Part) -> Vec<Part> {
    (0..PARTS).map(part).collect()
}

fn reading<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().expect("nobody panicked while writing")
}

fn writing<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().expect("nobody panicked while writing")
}

/// Spins until others have made it true; the test's deadline ends it otherwise.
fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        dhaga::yield_now();
        thread::yield_now();
    }
}

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a test can start a runtime")
}

/// Runs a body on a worker of its own, with nobody else there.
fn on_one_worker(body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, || runtime(1).spawn(body).join().expect("the body ends well"));
}

/// A dhaga of the caller's worker that has come to its first wait.
fn waiting<T: 'static>(wait: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    let begun = Arc::new(AtomicBool::new(false));
    let has_begun = begun.clone();
    let handle = dhaga::spawn_local(move || {
        begun.store(true, Ordering::SeqCst);
        wait()
    });
    // It gives its worker back when it waits, and not before.
    until(|| has_begun.load(Ordering::SeqCst));
    handle
}

/// Joins a dhaga that is not expected to fail.
macro_rules! join {
    ($handle:expr) => {
        $handle.join().expect("the dhaga ends well")
    };
}

/// What a closure said as it panicked.
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(f)) else {
        return "no panic".to_owned();
    };
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).expect("panics have a text")
}

const ON_PURPOSE: &str = "this panic is part of the test";

/// Panics with what `f` returns still alive.
fn panic_with<R>(f: impl FnOnce() -> R) {
    let message = panic_of(|| {
        let _kept = f();
        panic!("{ON_PURPOSE}");
    });
    assert_eq!(message, ON_PURPOSE);
}

/// The same tests twice: with std's own, to see that they are right, and with ours, on plain threads and in dhagas.
macro_rules! as_in_std {
    ($(fn $name:ident() $body:block)*) => {
        as_in_std! { in std_itself, std::sync, std::thread, |body: fn()| within_deadline(DEADLINE, body), $($name $body)* }
        as_in_std! { in ours, dhaga::sync, dhaga, |body: fn()| everywhere(body), $($name $body)* }
    };
    (in $module:ident, $sync:path, $threads:path, $run:expr, $($name:ident $body:block)*) => {
        mod $module {
            use super::*;
            use $sync as sync;
            use $threads as threads;
            use sync::{Barrier, LazyLock, Once, OnceLock, RwLock, TryLockError};
            use threads::scope;

            $(#[test]
            fn $name() {
                $run(|| $body);
            })*
        }
    };
}

as_in_std! {
    fn a_reader_writer_lock_has_many_readers_or_one_writer() {
        static COUNT: RwLock<u32> = RwLock::new(1);
        *COUNT.write().expect("nobody panicked") += 1;
        let lock = RwLock::from(5);
        let (one, other) = (lock.read().expect("nobody panicked"), lock.try_read().expect("it is read"));
        assert_eq!(*one + *other, 10);
        assert!(matches!(lock.try_write(), Err(TryLockError::WouldBlock)));
        assert_eq!(format!("{one} {other:?} {lock:?}"), "5 5 RwLock { data: 5, poisoned: false, .. }");
        drop((one, other));
        let mut writer = lock.try_write().expect("it is free");
        *writer += 1;
        assert!(matches!(lock.try_read(), Err(TryLockError::WouldBlock)));
        assert_eq!(format!("{writer} {writer:?} {lock:?}"), "6 6 RwLock { data: <locked>, poisoned: false, .. }");
        drop(writer);
        let mut lock = lock;
        *lock.get_mut().expect("nobody panicked") += 1;
        assert_eq!(lock.into_inner().expect("nobody panicked"), 7);
        assert_eq!(*RwLock::<u8>::default().read().expect("nobody panicked"), 0);
        let unsized_value: &RwLock<dyn Debug + Send + Sync> = &RwLock::new(3);
        assert_eq!(format!("{:?}", unsized_value.read()), "Ok(3)");
    }

    fn a_writer_that_panics_poisons_and_a_reader_does_not() {
        let mut lock = RwLock::new(7);
        panic_with(|| lock.read());
        assert!(!lock.is_poisoned());
        panic_with(|| lock.write());
        assert!(lock.is_poisoned());
        assert_eq!(*lock.read().expect_err("it is poisoned").into_inner(), 7);
        assert_eq!(*lock.write().expect_err("it is poisoned").into_inner(), 7);
        assert!(matches!(lock.try_read(), Err(TryLockError::Poisoned(_))));
        assert!(matches!(lock.try_write(), Err(TryLockError::Poisoned(_))));
        assert!(lock.get_mut().is_err());
        assert_eq!(format!("{lock:?}"), "RwLock { data: 7, poisoned: true, .. }");
        lock.clear_poison();
        assert_eq!(*lock.write().expect("it was cleared"), 7);
        panic_with(|| lock.write());
        assert_eq!(lock.into_inner().expect_err("it is poisoned").into_inner(), 7);
    }

    fn a_barrier_has_one_leader_each_time() {
        const ROUNDS: usize = 100;
        const WAITERS: usize = 4;
        let (barrier, leaders, arrived) = (Barrier::new(WAITERS), AtomicUsize::new(0), AtomicUsize::new(0));
        scope(|s| {
            let waiter = || {
                for round in 1..=ROUNDS {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    leaders.fetch_add(usize::from(barrier.wait().is_leader()), Ordering::SeqCst);
                    assert!(arrived.load(Ordering::SeqCst) >= WAITERS * round);
                }
            };
            (0..WAITERS).for_each(|_| drop(s.spawn(waiter)));
        });
        assert_eq!(leaders.load(Ordering::SeqCst), ROUNDS);
        for alone in [Barrier::new(0), Barrier::new(1)] {
            assert!(alone.wait().is_leader() && alone.wait().is_leader());
        }
        assert_eq!(format!("{barrier:?} {:?}", Barrier::new(1).wait()), "Barrier { .. } BarrierWaitResult { is_leader: true }");
    }

    fn once_is_done_once() {
        let (once, runs) = (Once::new(), AtomicUsize::new(0));
        assert!(!once.is_completed());
        scope(|s| {
            s.spawn(|| {
                once.wait();
                assert_eq!(runs.load(Ordering::SeqCst), 1);
            });
            for _ in 0..4 {
                s.spawn(|| {
                    once.call_once(|| {
                        runs.fetch_add(1, Ordering::SeqCst);
                    });
                    assert!(once.is_completed());
                    assert_eq!(runs.load(Ordering::SeqCst), 1);
                });
            }
        });
        once.call_once_force(|_| unreachable!("it is done"));
        once.wait();
        once.wait_force();
        assert_eq!(format!("{once:?}"), "Once { .. }");
    }

    fn a_once_whose_closure_panics_is_poisoned() {
        let once = Once::new();
        panic_with(|| once.call_once(|| panic!("this panic is part of the test")));
        assert!(!once.is_completed());
        assert_eq!(panic_of(|| once.call_once(|| ())), "Once instance has previously been poisoned");
        assert_eq!(panic_of(|| once.wait()), "Once instance has previously been poisoned");
        once.call_once_force(|state| {
            assert!(state.is_poisoned());
            assert_eq!(format!("{state:?}"), "OnceState { poisoned: true }");
        });
        once.call_once(|| unreachable!("it is done"));
        once.wait();
        Once::new().call_once_force(|state| assert!(!state.is_poisoned()));
    }

    fn a_once_lock_is_set_once() {
        static CELL: OnceLock<u32> = OnceLock::new();
        assert_eq!(CELL.get_or_init(|| 3), &3);
        let mut cell = OnceLock::new();
        assert_eq!(format!("{:?} {cell:?}", cell.get()), "None OnceLock(<uninit>)");
        assert_eq!(cell.get_mut(), None);
        assert_eq!(cell.set(1), Ok(()));
        assert_eq!(cell.set(2), Err(2));
        assert_eq!(cell.get_or_init(|| unreachable!("it is set")), &1);
        assert_eq!((cell.wait(), format!("{cell:?}")), (&1, "OnceLock(1)".to_owned()));
        *cell.get_mut().expect("it is set") = 5;
        assert!(cell == cell.clone() && cell == OnceLock::from(5) && cell != OnceLock::default());
        assert_eq!(cell.take(), Some(5));
        assert_eq!(cell.take(), None);
        panic_with(|| *cell.get_or_init(|| panic!("this panic is part of the test")));
        assert_eq!(cell.get(), None);
        assert_eq!(cell.get_or_init(|| 6), &6);
        assert_eq!(cell.into_inner(), Some(6));
    }

    fn a_lazy_lock_is_made_when_it_is_needed() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        static LAZY: LazyLock<String> = LazyLock::new(|| {
            MADE.fetch_add(1, Ordering::SeqCst);
            "made".to_owned()
        });
        scope(|s| (0..4).for_each(|_| drop(s.spawn(|| assert_eq!(LAZY.len(), 4)))));
        assert_eq!((LAZY.as_str(), MADE.load(Ordering::SeqCst)), ("made", 1));
        let captured = String::from("cap");
        let lazy = LazyLock::new(move || captured + "tured");
        assert_eq!(format!("{lazy:?}"), "LazyLock(<uninit>)");
        assert_eq!(LazyLock::force(&lazy), "captured");
        assert_eq!(format!("{lazy:?}"), "LazyLock(\"captured\")");
        assert_eq!(*LazyLock::<u8>::default(), 0);
        let poisoned = LazyLock::<u8, fn() -> u8>::new(|| panic!("this panic is part of the test"));
        panic_with(|| *poisoned);
        assert_eq!(panic_of(|| *poisoned), "LazyLock instance has previously been poisoned");
    }
}

// Reader-writer locks

#[test]
fn readers_see_no_half_written_value() {
    on_all_mixtures(|| {
        let pair = Arc::new(RwLock::new((0, 0)));
        let ended = Arc::new(AtomicUsize::new(0));
        parts(|part| {
            let (pair, ended) = (pair.clone(), ended.clone());
            Box::new(move || {
                for round in 0..TIMES {
                    if round % PARTS == part {
                        let mut pair = writing(&pair);
                        pair.0 += 1;
                        if round % 64 == part {
                            dhaga::yield_now();
                        }
                        pair.1 += 1;
                    } else {
                        let pair = reading(&pair);
                        if round % 64 == part {
                            dhaga::yield_now();
                        }
                        assert_eq!(pair.0, pair.1);
                    }
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == PARTS {
                    assert_eq!(*reading(&pair), (TIMES, TIMES));
                }
            })
        })
    });
}

#[test]
fn all_readers_that_waited_for_a_writer_are_inside_together() {
    on_all_mixtures(|| {
        let lock = Arc::new(RwLock::new(0));
        let (ready, inside) = (Arc::new(Barrier::new(PARTS)), Arc::new(Barrier::new(PARTS - 1)));
        parts(|part| {
            let (lock, ready, inside) = (lock.clone(), ready.clone(), inside.clone());
            Box::new(move || {
                for round in 1..=100 {
                    if part == 0 {
                        let mut writer = writing(&lock);
                        ready.wait();
                        *writer = round;
                        drop(writer);
                    } else {
                        ready.wait();
                        let reader = reading(&lock);
                        assert_eq!(*reader, round);
                        inside.wait();
                    }
                    ready.wait();
                }
            })
        })
    });
}

#[test]
fn neither_readers_nor_writers_are_starved() {
    on_all_mixtures(|| {
        let lock = Arc::new(RwLock::new(()));
        let satisfied = Arc::new(AtomicUsize::new(0));
        parts(|part| {
            let (lock, satisfied) = (lock.clone(), satisfied.clone());
            let enter = move || match part % 3 {
                0 => {
                    let _writer = writing(&lock);
                    dhaga::yield_now();
                }
                _ => {
                    let _reader = reading(&lock);
                    dhaga::yield_now();
                }
            };
            Box::new(move || {
                (0..100).for_each(|_| enter());
                satisfied.fetch_add(1, Ordering::SeqCst);
                while satisfied.load(Ordering::SeqCst) < PARTS {
                    enter();
                }
            })
        })
    });
}

#[test]
fn those_who_wait_enter_in_the_order_in_which_they_came() {
    on_one_worker(|| {
        let (lock, order) = (Arc::new(RwLock::new(())), Arc::new(Mutex::new(String::new())));
        let enter = |name: char| {
            let (lock, order) = (lock.clone(), order.clone());
            waiting(move || {
                let log = |name| order.lock().expect("nobody panicked").push(name);
                if name.is_uppercase() {
                    let _writer = writing(&lock);
                    log(name);
                } else {
                    let _reader = reading(&lock);
                    log(name);
                }
            })
        };
        let held = reading(&lock);
        let all: Vec<_> = "AbbDEf".chars().map(enter).collect();
        assert!(lock.try_read().is_err(), "a writer waits");
        drop(held);
        all.into_iter().for_each(|one| join!(one));
        assert_eq!(*order.lock().expect("nobody panicked"), "AbbDEf");
        assert!(lock.try_write().is_ok());
    });
}

#[test]
fn a_reader_that_holds_the_lock_keeps_no_other_reader_out() {
    everywhere(|| {
        let lock = Arc::new(RwLock::new(1));
        let held = reading(&lock);
        let there = lock.clone();
        assert_eq!(join!(dhaga::spawn(move || *reading(&there))), *held);
    });
}

#[test]
fn a_timeout_ends_the_wait_for_a_reader_writer_lock() {
    everywhere(|| {
        let lock = Arc::new(RwLock::new(1));
        let started = Instant::now();
        let held = reading(&lock);
        assert!(matches!(lock.write_timeout(SHORT), Err(LockTimeoutError::Timeout)));
        assert_eq!(*lock.read_timeout(SHORT).expect("the writer has given up"), 1);
        drop(held);
        let held = lock.write_timeout(SHORT).expect("it is free");
        assert!(matches!(lock.read_timeout(SHORT), Err(LockTimeoutError::Timeout)));
        assert!(started.elapsed() >= 2 * SHORT);
        drop(held);
        panic_with(|| lock.write());
        assert!(matches!(lock.read_timeout(SHORT), Err(LockTimeoutError::Poisoned(_))));
        assert!(matches!(lock.write_timeout(SHORT), Err(LockTimeoutError::Poisoned(_))));
    });
}

#[test]
fn a_writer_that_gives_up_lets_the_readers_behind_it_pass() {
    on_one_worker(|| {
        let lock = Arc::new(RwLock::new(()));
        let held = reading(&lock);
        let (there, behind) = (lock.clone(), lock.clone());
        let writer = waiting(move || matches!(there.write_timeout(SHORT), Err(LockTimeoutError::Timeout)));
        let reader = waiting(move || drop(reading(&behind)));
        join!(reader);
        assert!(join!(writer));
        drop(held);
    });
}

#[test]
fn timeouts_that_race_with_releases_lose_no_lock() {
    on_all_mixtures(|| {
        let lock = Arc::new(RwLock::new(0));
        let (written, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        parts(|part| {
            let (lock, written, ended) = (lock.clone(), written.clone(), ended.clone());
            Box::new(move || {
                for round in part..TIMES {
                    if round % 3 == 0 {
                        let Ok(mut writer) = lock.write_timeout(tight(round)) else { continue };
                        *writer += 1;
                        written.fetch_add(1, Ordering::SeqCst);
                    } else {
                        let _reader = lock.read_timeout(tight(round));
                        if round % 64 == part {
                            dhaga::yield_now();
                        }
                    }
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == PARTS {
                    assert_eq!(*lock.try_write().expect("nobody is left"), written.load(Ordering::SeqCst));
                }
            })
        })
    });
}

#[test]
fn a_downgrade_lets_readers_in_and_no_writer_between() {
    on_one_worker(|| {
        let lock = Arc::new(RwLock::new(0));
        let mut held = writing(&lock);
        let (there, behind) = (lock.clone(), lock.clone());
        let reader = waiting(move || *reading(&there));
        let writer = waiting(move || *writing(&behind) += 1);
        *held = 5;
        let held = RwLockWriteGuard::downgrade(held);
        assert_eq!(join!(reader), 5);
        assert_eq!(*held, 5);
        drop(held);
        join!(writer);
        assert_eq!(*reading(&lock), 6);
    });
}

// What does not end with the scope, and what does

/// Cancels a dhaga at `wait`, and sees that it goes on until `release`.
fn check_goes_on<T: PartialEq + Debug + Send + 'static>(
    wait: impl FnOnce() -> T + Send + 'static,
    release: impl FnOnce() + Send + 'static,
    expected: T,
) {
    on_one_worker(move || {
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = has_ended.clone();
        let waiter = waiting(move || {
            let result = wait();
            ended.store(true, Ordering::SeqCst);
            result
        });
        waiter.cancel();
        (0..100).for_each(|_| dhaga::yield_now());
        assert!(!has_ended.load(Ordering::SeqCst), "a cancel ended the wait");
        release();
        assert_eq!(join!(waiter), expected);
    });
}

#[test]
fn a_cancelled_dhaga_also_begins_to_wait() {
    on_one_worker(|| {
        let lock = Arc::new(RwLock::new(1));
        let (there, held) = (lock.clone(), writing(&lock));
        let waiter = dhaga::spawn_local(move || *reading(&there));
        waiter.cancel();
        (0..100).for_each(|_| dhaga::yield_now());
        assert!(!waiter.is_finished());
        drop(held);
        assert_eq!(join!(waiter), 1);
    });
}

#[test]
fn a_cancelled_dhaga_still_waits_for_locks_and_gets_them() {
    for access in [|lock: &RwLock<i32>| *reading(lock), |lock: &RwLock<i32>| *writing(lock)] {
        let lock = Arc::new(RwLock::new(3));
        let there = lock.clone();
        let (held, release) = channel::bounded(1);
        let holder = thread::spawn(move || {
            let writer = writing(&there);
            held.send(()).expect("the test waits");
            until(|| held.is_disconnected());
            drop(writer);
        });
        release.recv().expect("the holder sends");
        check_goes_on(move || access(&lock), move || drop(release), 3);
        holder.join().expect("it ends well");
    }
}

#[test]
fn a_cancelled_dhaga_still_waits_at_a_barrier_for_an_initialisation_and_for_a_group() {
    let barrier = Arc::new(Barrier::new(2));
    let there = barrier.clone();
    check_goes_on(move || there.wait().is_leader(), move || assert!(barrier.wait().is_leader()), false);

    let cell = Arc::new(OnceLock::new());
    let there = cell.clone();
    check_goes_on(move || *there.wait(), move || assert_eq!(cell.set(4), Ok(())), 4);

    let group = Arc::new(WaitGroup::new());
    let (there, entered) = (group.clone(), group.enter_owned());
    check_goes_on(move || there.wait(), move || drop(entered), ());
}

#[test]
fn timed_forms_end_with_the_scope() {
    on_one_worker(|| {
        let waiter = dhaga::spawn_local(|| {
            let (lock, group) = (RwLock::new(()), WaitGroup::new());
            // Even when there is nothing to wait for, as all that can fail.
            let read = matches!(lock.read_timeout(DEADLINE), Err(LockTimeoutError::Interrupted(Interrupt::Cancelled)));
            let write =
                matches!(lock.write_timeout(DEADLINE), Err(LockTimeoutError::Interrupted(Interrupt::Cancelled)));
            (read, write, group.wait_timeout(DEADLINE))
        });
        waiter.cancel();
        assert_eq!(join!(waiter), (true, true, Err(WaitTimeoutError::Interrupted(Interrupt::Cancelled))));

        let lock = Arc::new(RwLock::new(()));
        let (there, held) = (lock.clone(), reading(&lock));
        let waiter = waiting(move || there.write_timeout(DEADLINE).map(drop).map_err(|error| error.to_string()));
        waiter.cancel();
        assert_eq!(join!(waiter), Err("the wait for the lock was interrupted".to_owned()));
        assert!(lock.try_read().is_ok(), "who gave up keeps nobody out");
        drop(held);

        let group = Arc::new(WaitGroup::new());
        let (there, entered) = (group.clone(), group.enter());
        let waiter = waiting(move || there.wait_timeout(DEADLINE));
        waiter.cancel();
        assert_eq!(join!(waiter), Err(WaitTimeoutError::Interrupted(Interrupt::Cancelled)));
        drop(entered);
    });
}

// The end of a runtime

/// Shuts a runtime down while a dhaga of it is at `wait`.
fn tear_down<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) {
    let runtime = runtime(1);
    let (started, has_started) = mpsc::channel();
    let handle = runtime.spawn(move || {
        // Sent by a dhaga that runs when the other is parked.
        dhaga::spawn_local(move || started.send(())).detach();
        wait()
    });
    has_started.recv_timeout(DEADLINE).expect("it starts");
    runtime.shutdown(Duration::ZERO).expect("it unwinds");
    assert!(matches!(handle.join(), Err(JoinError::Unwound)));
}

#[test]
fn who_is_torn_down_while_it_waits_for_a_lock_is_in_nobodys_way() {
    within_deadline(DEADLINE, || {
        let lock = Arc::new(RwLock::new(1));
        let held = reading(&lock);
        let there = lock.clone();
        tear_down(move || *writing(&there) += 1);
        assert_eq!(*lock.try_read().expect("no writer waits any more"), 1);
        drop(held);
        let held = writing(&lock);
        let there = lock.clone();
        tear_down(move || *reading(&there));
        drop(held);
        assert_eq!(*lock.try_write().expect("no reader is left inside"), 1);
    });
}

#[test]
fn who_is_torn_down_while_it_holds_a_lock_releases_and_does_not_poison_it() {
    within_deadline(DEADLINE, || {
        let lock = Arc::new(RwLock::new(1));
        for _ in 0..2 {
            let there = lock.clone();
            tear_down(move || {
                let _held = writing(&there);
                dhaga::sleep(2 * DEADLINE);
            });
            let there = lock.clone();
            tear_down(move || {
                let _held = reading(&there);
                dhaga::sleep(2 * DEADLINE);
            });
        }
        assert_eq!(*lock.try_write().expect("it is free and sound"), 1);
    });
}

#[test]
fn who_is_torn_down_at_a_barrier_has_come() {
    within_deadline(DEADLINE, || {
        let barrier = Arc::new(Barrier::new(2));
        for _ in 0..2 {
            let there = barrier.clone();
            tear_down(move || there.wait().is_leader());
            assert!(barrier.wait().is_leader());
        }
    });
}

#[test]
fn who_is_torn_down_while_it_waits_for_a_group_leaves_it_as_it_is() {
    within_deadline(DEADLINE, || {
        let group = Arc::new(WaitGroup::new());
        let (there, entered) = (group.clone(), group.enter());
        tear_down(move || there.wait());
        assert_eq!(group.wait_timeout(SHORT), Err(WaitTimeoutError::Timeout));
        drop(entered);
        let entered = group.enter_owned();
        tear_down(move || {
            let _entered = entered;
            dhaga::sleep(2 * DEADLINE);
        });
        group.wait();
    });
}

#[test]
fn an_initialisation_that_is_torn_down_is_done_by_the_next() {
    within_deadline(DEADLINE, || {
        let (once, cell) = (Arc::new(Once::new()), Arc::new(OnceLock::new()));
        let there = once.clone();
        tear_down(move || there.call_once(|| dhaga::sleep(2 * DEADLINE)));
        let there = cell.clone();
        tear_down(move || {
            *there.get_or_init(|| {
                dhaga::sleep(2 * DEADLINE);
                1
            })
        });
        assert!(!once.is_completed());
        once.call_once(|| ());
        assert_eq!(cell.get_or_init(|| 2), &2);
        // The same for one who waits for an initialisation.
        let (waited, there) = (Arc::new(Once::new()), Arc::new(OnceLock::<i32>::new()));
        let (once, cell) = (waited.clone(), there.clone());
        tear_down(move || once.wait());
        tear_down(move || *cell.wait());
        waited.call_once(|| ());
        assert_eq!(there.set(1), Ok(()));
    });
}

#[test]
fn who_waits_for_an_initialisation_that_is_torn_down_does_it_itself() {
    within_deadline(DEADLINE, || {
        let (cell, runtime) = (Arc::new(OnceLock::new()), runtime(1));
        let (started, has_started) = mpsc::channel();
        let there = cell.clone();
        let torn_down = runtime.spawn(move || {
            *there.get_or_init(|| {
                started.send(()).expect("the test waits");
                dhaga::sleep(2 * DEADLINE);
                1
            })
        });
        has_started.recv_timeout(DEADLINE).expect("it starts");
        let waiters = [0; 3].map(|_| {
            let cell = cell.clone();
            dhaga::spawn(move || *cell.get_or_init(|| 2))
        });
        runtime.shutdown(Duration::ZERO).expect("it unwinds");
        assert!(matches!(torn_down.join(), Err(JoinError::Unwound)));
        assert_eq!(waiters.map(|waiter| join!(waiter)), [2; 3]);
    });
}

#[test]
fn a_lazy_lock_whose_closure_is_torn_down_is_poisoned() {
    static LAZY: LazyLock<u8> = LazyLock::new(|| {
        dhaga::sleep(2 * DEADLINE);
        1
    });
    within_deadline(DEADLINE, || {
        tear_down(|| *LAZY);
        assert_eq!(panic_of(|| *LAZY), "LazyLock instance has previously been poisoned");
    });
}

// Barriers

#[test]
fn a_barrier_holds_all_until_the_last_has_come() {
    on_all_mixtures(|| {
        let barrier = Arc::new(Barrier::new(PARTS));
        let (arrived, leaders) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        parts(|_| {
            let (barrier, arrived, leaders) = (barrier.clone(), arrived.clone(), leaders.clone());
            Box::new(move || {
                for round in 1..=1000 {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    leaders.fetch_add(usize::from(barrier.wait().is_leader()), Ordering::SeqCst);
                    let so_many = arrived.load(Ordering::SeqCst);
                    assert!((PARTS * round..PARTS * (round + 1)).contains(&so_many), "{so_many} in round {round}");
                }
                barrier.wait();
                assert_eq!(leaders.load(Ordering::SeqCst), 1000);
            })
        })
    });
}

// Once

#[test]
fn an_initialisation_may_wait_while_others_wait_for_it() {
    on_all_mixtures(|| {
        let (once, cell) = (Arc::new(Once::new()), Arc::new(OnceLock::new()));
        let (runs, makes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        parts(|part| {
            let (once, cell, runs, makes) = (once.clone(), cell.clone(), runs.clone(), makes.clone());
            Box::new(move || {
                once.call_once(|| {
                    dhaga::sleep(SHORT);
                    runs.fetch_add(1, Ordering::SeqCst);
                });
                assert_eq!(runs.load(Ordering::SeqCst), 1);
                if part == 0 {
                    assert_eq!(cell.wait(), &"made");
                }
                let made = cell.get_or_init(|| {
                    let there = dhaga::spawn(|| "made");
                    let made = join!(there);
                    makes.fetch_add(1, Ordering::SeqCst);
                    made
                });
                assert_eq!((*made, makes.load(Ordering::SeqCst)), ("made", 1));
            })
        })
    });
}

#[test]
fn others_of_the_same_worker_run_while_an_initialisation_waits() {
    static LAZY: LazyLock<u32> = LazyLock::new(|| join!(dhaga::spawn_local(|| 7)));
    on_one_worker(|| {
        let all = [0; 3].map(|_| dhaga::spawn_local(|| *LAZY));
        assert_eq!(all.map(|one| join!(one)), [7; 3]);
    });
}

#[test]
fn who_waits_for_an_initialisation_that_panics_is_told_or_makes_the_value() {
    on_one_worker(|| {
        let (once, cell) = (Arc::new(Once::new()), Arc::new(OnceLock::new()));
        let (begun, begun_cell) = (once.clone(), cell.clone());
        let failing = [
            waiting(move || panic_with(|| begun.call_once(fail_after_a_while))),
            waiting(move || panic_with(|| *begun_cell.get_or_init(fail_after_a_while))),
        ];
        let waiters = [0; 2].map(|_| {
            let (once, cell) = (once.clone(), cell.clone());
            waiting(move || {
                let told = panic_of(|| once.wait());
                assert_eq!(*cell.get_or_init(|| 3), 3);
                told
            })
        });
        failing.into_iter().for_each(|one| join!(one));
        for waiter in waiters {
            assert_eq!(join!(waiter), "Once instance has previously been poisoned");
        }
    });
}

fn fail_after_a_while<T>() -> T {
    (0..10).for_each(|_| dhaga::yield_now());
    panic!("this panic is part of the test")
}

#[test]
fn an_initialisation_that_needs_itself_panics_in_words() {
    fn check(f: impl FnOnce()) {
        assert_eq!(panic_of(f), "an initialisation needs its own result: it would wait for itself");
    }
    static LAZY: LazyLock<u32> = LazyLock::new(|| *LAZY + 1);
    everywhere(|| {
        let once = Once::new();
        check(|| once.call_once(|| once.call_once(|| ())));
        let once = Once::new();
        check(|| once.call_once(|| once.wait()));
        let cell = OnceLock::new();
        check(|| assert_eq!(cell.get_or_init(|| *cell.get_or_init(|| 1)), &1));
    });
    within_deadline(DEADLINE, || check(|| assert_eq!(*LAZY, 1)));
}

#[test]
fn an_owned_lazy_lock_gives_its_value_to_change() {
    everywhere(|| {
        let mut lazy = LazyLock::new(|| vec![1]);
        assert_eq!(LazyLock::get(&lazy), None);
        assert_eq!(LazyLock::get_mut(&mut lazy), None);
        lazy.push(2);
        LazyLock::force_mut(&mut lazy).push(3);
        assert_eq!(LazyLock::get_mut(&mut lazy), Some(&mut vec![1, 2, 3]));
        assert_eq!(LazyLock::get(&lazy), Some(&vec![1, 2, 3]));
    });
}

// Wait groups

#[test]
fn a_group_is_waited_for_until_all_are_done() {
    on_all_mixtures(|| {
        let (group, done) = (Arc::new(WaitGroup::new()), Arc::new(AtomicUsize::new(0)));
        group.add(PARTS - 2);
        parts(|part| {
            let (group, done) = (group.clone(), done.clone());
            Box::new(move || match part {
                0 | 1 => {
                    group.wait();
                    assert_eq!(done.load(Ordering::SeqCst), PARTS - 2);
                }
                _ => {
                    dhaga::yield_now();
                    done.fetch_add(1, Ordering::SeqCst);
                    group.done();
                }
            })
        })
    });
}

#[test]
fn a_group_counts_what_is_under_way() {
    everywhere(|| {
        let group = Arc::new(WaitGroup::new());
        group.wait();
        assert_eq!(group.wait_timeout(Duration::ZERO), Ok(()));
        let entered = group.enter();
        let started = Instant::now();
        assert_eq!(group.wait_timeout(SHORT), Err(WaitTimeoutError::Timeout));
        assert!(started.elapsed() >= SHORT);
        assert_eq!(format!("{group:?}"), "WaitGroup { under_way: 1, .. }");
        let owned = group.enter_owned();
        let panics = dhaga::spawn(move || {
            let _owned = owned;
            panic!("{ON_PURPOSE}");
        });
        assert!(panics.join().is_err());
        drop(entered);
        group.wait();
        for _ in 0..100 {
            let workers = [0; 3].map(|_| {
                let owned = group.enter_owned();
                dhaga::spawn(move || drop(owned))
            });
            assert_eq!(group.wait_timeout(DEADLINE), Ok(()));
            workers.into_iter().for_each(|worker| join!(worker));
        }
    });
}

#[test]
fn a_group_that_is_done_too_often_panics_and_stays_sound() {
    everywhere(|| {
        let group = WaitGroup::new();
        assert_eq!(panic_of(|| group.done()), "`done` was called more often on a wait group than was added to it");
        group.add(usize::MAX);
        assert_eq!(panic_of(|| group.add(1)), "a wait group was given more than it can count");
        assert_eq!(format!("{group:?}"), format!("WaitGroup {{ under_way: {}, .. }}", usize::MAX));
    });
}

// While unwinding

#[test]
fn what_needs_no_wait_is_done_while_unwinding_and_what_can_fail_does() {
    everywhere(|| {
        let lock = RwLock::new(1);
        assert_eq!(while_panicking(|| *reading(&lock)), 1);
        while_panicking(|| *writing(&lock) += 1);
        assert!(!lock.is_poisoned(), "the panic began before");
        let held = reading(&lock);
        assert_eq!(while_panicking(|| *reading(&lock)), 2);
        let refused = while_panicking(|| lock.write_timeout(DEADLINE).map(drop).map_err(|error| error.to_string()));
        assert_eq!(refused, Err("the wait for the lock was interrupted".to_owned()));
        drop(held);
        let (cell, group) = (OnceLock::new(), WaitGroup::new());
        assert_eq!(while_panicking(|| *cell.get_or_init(|| 3)), 3);
        while_panicking(|| group.wait());
        let entered = group.enter();
        let refused = while_panicking(|| group.wait_timeout(DEADLINE));
        assert_eq!(refused, Err(WaitTimeoutError::Interrupted(Interrupt::Panicking)));
        while_panicking(|| drop(entered));
        assert!(while_panicking(|| Barrier::new(1).wait().is_leader()));
    });
}

#[test]
fn a_reader_that_unwinds_enters_past_a_writer_that_waits() {
    on_one_worker(|| {
        let lock = Arc::new(RwLock::new(1));
        let held = reading(&lock);
        let there = lock.clone();
        let writer = waiting(move || *writing(&there) += 1);
        assert!(lock.try_read().is_err(), "a writer waits");
        assert_eq!(while_panicking(|| *reading(&lock)), 1);
        drop(held);
        join!(writer);
        assert_eq!(*reading(&lock), 2);
    });
}

#[test]
fn what_another_thread_will_do_is_waited_for_while_unwinding() {
    everywhere(|| {
        let lock = Arc::new(RwLock::new(1));
        let (cell, barrier, group) = (Arc::new(OnceLock::new()), Arc::new(Barrier::new(2)), Arc::new(WaitGroup::new()));
        let (begin, has_begun) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let other = {
            let (lock, cell, barrier, entered) = (lock.clone(), cell.clone(), barrier.clone(), group.enter_owned());
            thread::spawn(move || {
                let mut writer = writing(&lock);
                ready.send(()).expect("the test waits");
                has_begun.recv_timeout(DEADLINE).expect("the test sends");
                // Long enough that the other really blocks; the test holds either way.
                thread::sleep(SHORT);
                *writer += 1;
                drop(writer);
                cell.set(3).expect("nobody else does");
                barrier.wait();
                drop(entered);
            })
        };
        is_ready.recv_timeout(DEADLINE).expect("the other sends");
        let seen = while_panicking(|| {
            begin.send(()).expect("the other waits");
            let seen = (*reading(&lock), *cell.wait());
            barrier.wait();
            group.wait();
            seen
        });
        assert_eq!(seen, (2, 3));
        other.join().expect("it ends well");
    });
}

/// What a process says that dies because one dhaga, as it unwinds, waits for what another of its worker holds.
fn check_deadlock(
    test: &str,
    words: &[&str],
    hold: fn(&(RwLock<()>, OnceLock<()>)),
    wait: fn(&(RwLock<()>, OnceLock<()>)),
) {
    let text = child::aborts(test, || {
        let runtime = runtime(1);
        let shared = Arc::new((RwLock::new(()), OnceLock::new()));
        let there = shared.clone();
        let holder = dhaga::Builder::new().name("the holder").spawn_on(&runtime, move || hold(&there));
        let holder = holder.expect("there is room");
        let unwinder = move || {
            (0..10).for_each(|_| dhaga::yield_now());
            while_panicking(|| wait(&shared));
        };
        let unwinder = dhaga::Builder::new().name("the unwinder").spawn_on(&runtime, unwinder).expect("there is room");
        unwinder.join().expect("it aborts first");
        drop(holder);
    });
    let Some(text) = text else { return };
    for word in words.iter().chain(&["\"the unwinder\""]) {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_lock_that_a_writer_of_the_same_worker_holds_aborts_and_names_both() {
    check_deadlock(
        child::name_of!(a_lock_that_a_writer_of_the_same_worker_holds_aborts_and_names_both),
        &["waits for a reader-writer lock", "\"the holder\""],
        |shared| {
            let _held = shared.0.write();
            dhaga::sleep(DEADLINE);
        },
        |shared| drop(shared.0.read()),
    );
}

#[test]
fn a_lock_that_a_reader_of_the_same_worker_holds_aborts_and_names_both() {
    check_deadlock(
        child::name_of!(a_lock_that_a_reader_of_the_same_worker_holds_aborts_and_names_both),
        &["waits for a reader-writer lock", "\"the holder\""],
        |shared| {
            let _held = shared.0.read();
            dhaga::sleep(DEADLINE);
        },
        |shared| drop(shared.0.write()),
    );
}

#[test]
fn an_initialisation_on_the_same_worker_aborts_and_names_both() {
    check_deadlock(
        child::name_of!(an_initialisation_on_the_same_worker_aborts_and_names_both),
        &["waits for an initialisation", "\"the holder\""],
        |shared| {
            shared.1.get_or_init(|| dhaga::sleep(DEADLINE));
        },
        |shared| {
            shared.1.wait();
        },
    );
}

#[test]
fn a_lock_with_readers_that_nobody_can_name_aborts_after_ten_seconds() {
    check_deadlock(
        child::name_of!(a_lock_with_readers_that_nobody_can_name_aborts_after_ten_seconds),
        &["has waited 10s for a reader-writer lock"],
        |shared| {
            let (_held, _second) = (shared.0.read(), drop(shared.0.read()));
            dhaga::sleep(DEADLINE);
        },
        |shared| drop(shared.0.write()),
    );
}

#[test]
fn an_event_that_does_not_come_while_unwinding_aborts_after_ten_seconds() {
    check_deadlock(
        child::name_of!(an_event_that_does_not_come_while_unwinding_aborts_after_ten_seconds),
        &["has waited 10s for others at a barrier"],
        |_| (),
        |_| {
            Barrier::new(2).wait();
        },
    );
}
