//! `dhaga::thread` beside `std::thread`: the same bodies over both, so that std says what is right.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hint::black_box;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::available_parallelism as cores;
use std::time::{Duration, Instant};

use dhaga::park::{self, WaitReason};
use dhaga::sync::{Condvar, Mutex, channel};
use dhaga::{Interrupt, JoinError, Runtime, SpawnError, thread};

use crate::common::{DEADLINE, everywhere, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

/// Makes a test of each body, in which `thread` is std's, on a thread, and then ours, on a thread and in a dhaga.
macro_rules! as_in_std {
    ($($(#[$attribute:meta])* fn $name:ident() $body:block)*) => {
        mod in_std {
            use super::*;
            use std::{thread, thread_local};
            $(pub fn $name() $body)*
        }
        mod here {
            use super::*;
            use dhaga::thread::{self, thread_local};
            $(pub fn $name() $body)*
        }
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                within_deadline(DEADLINE, in_std::$name);
                everywhere(here::$name);
            }
        )*
    };
}

/// The text of a panic.
fn text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// What a closure panics with.
fn panic_of<R>(f: impl FnOnce() -> R) -> Option<Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(f)).err()
}

/// Calls its closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn assert_send_sync<T: Send + Sync>(_: &T) {}

as_in_std! {
    // Spawning and joining

    fn a_join_returns_the_result() {
        let handle: thread::JoinHandle<String> = thread::spawn(|| "text".to_owned());
        assert_send_sync(&handle);
        let result: thread::Result<String> = handle.join();
        assert_eq!(result.unwrap(), "text");
        let ended = thread::spawn(|| 6 * 7);
        while !ended.is_finished() {
            thread::yield_now();
        }
        assert_eq!(ended.join().unwrap(), 42);
    }

    fn a_dropped_handle_lets_it_run_on() {
        let (sender, receiver) = channel::bounded(1);
        thread::spawn(move || sender.send(1).unwrap());
        assert_eq!(receiver.recv(), Ok(1));
    }

    fn it_is_not_finished_before_its_end() {
        let (go, gone) = channel::bounded::<()>(1);
        let handle = thread::spawn(move || gone.recv().is_err());
        assert!(!handle.is_finished());
        drop(go);
        assert!(handle.join().unwrap());
    }

    fn a_panic_is_joined_as_its_payload() {
        let joined = |body: fn()| thread::spawn(body).join().unwrap_err();
        assert_eq!(text(&*joined(|| panic!("plain"))), Some("plain"));
        assert_eq!(text(&*joined(|| panic!("number {}", 7))), Some("number 7"));
        assert_eq!(*joined(|| panic_any(7_u64)).downcast::<u64>().unwrap(), 7);
        let passed_on = panic_of(|| resume_unwind(joined(|| panic_any(8_u64)))).unwrap();
        assert_eq!(passed_on.downcast_ref(), Some(&8_u64));
        let inner = thread::spawn(|| resume_unwind(Box::new("thrown on"))).join();
        assert_eq!(text(&*inner.unwrap_err()), Some("thrown on"));
    }

    fn what_it_owns_is_gone_when_it_is_joined() {
        let dropped = Arc::new(AtomicBool::new(false));
        let seen = dropped.clone();
        let owned = OnDrop(move || seen.store(true, Ordering::SeqCst));
        thread::spawn(move || { let _ = black_box(&owned); }).join().unwrap();
        assert!(dropped.load(Ordering::SeqCst));
    }

    // Scopes

    fn a_scope_borrows_and_waits() {
        let (mut numbers, mut sum, count) = (vec![1, 2, 3], 0, AtomicUsize::new(0));
        let result = thread::scope(|s| {
            s.spawn(|| sum = numbers.iter().sum());
            let longest = s.spawn(|| numbers.len());
            // Spawned by one of its own, and waited for by nobody else.
            s.spawn(|| {
                s.spawn(|| count.fetch_add(1, Ordering::SeqCst));
            });
            assert_send_sync(&longest);
            longest.join().unwrap()
        });
        numbers.push(sum);
        assert_eq!((numbers, result, count.into_inner()), (vec![1, 2, 3, 6], 3, 1));
    }

    fn a_scope_panics_when_nobody_took_a_panic() {
        let ended = AtomicUsize::new(0);
        let scope = |is_joined: bool| {
            thread::scope(|s| {
                let handle = s.spawn(|| panic_any(1_u8));
                s.spawn(|| ended.fetch_add(1, Ordering::SeqCst));
                if is_joined {
                    assert_eq!(handle.join().unwrap_err().downcast_ref(), Some(&1_u8));
                }
            });
        };
        scope(true);
        assert!(panic_of(|| scope(false)).is_some());
        assert_eq!(ended.load(Ordering::SeqCst), 2);
    }

    fn a_scope_whose_own_code_panics_waits_and_panics_with_that() {
        let ended = AtomicBool::new(false);
        let panic = panic_of(|| {
            thread::scope(|s| {
                let (go, gone) = channel::bounded::<()>(1);
                s.spawn({
                    let ended = &ended;
                    move || {
                        let _ = gone.recv();
                        ended.store(true, Ordering::SeqCst);
                    }
                });
                s.spawn(|| panic!("second to its own"));
                let _go = go;
                panic!("its own");
            })
        });
        assert_eq!(text(&*panic.unwrap()), Some("its own"));
        assert!(ended.load(Ordering::SeqCst));
    }

    // Parking

    fn an_unpark_that_comes_first_is_saved() {
        thread::current().unpark();
        thread::park();
        let handle = thread::spawn(thread::park);
        handle.thread().unpark();
        handle.join().unwrap();
    }

    fn two_unparks_that_come_first_are_one() {
        let me = thread::current();
        me.unpark();
        me.clone().unpark();
        thread::park_timeout(DEADLINE);
        let began = Instant::now();
        thread::park_timeout(SHORT);
        assert!(began.elapsed() >= SHORT, "a second token was there");
    }

    fn an_unpark_wakes_who_is_parked() {
        for _ in 0..100 {
            let is_open = Arc::new(AtomicBool::new(false));
            let door = is_open.clone();
            let (entered, has_entered) = channel::bounded(1);
            let guest = thread::spawn(move || {
                entered.send(()).unwrap();
                while !door.load(Ordering::Relaxed) {
                    thread::park();
                }
            });
            has_entered.recv().unwrap();
            is_open.store(true, Ordering::Relaxed);
            guest.thread().unpark();
            guest.join().unwrap();
        }
    }

    fn two_pass_the_turn_to_each_other() {
        const TURNS: usize = 1000;
        let turn = Arc::new(AtomicUsize::new(0));
        let play = |turn: &AtomicUsize, mine: usize, other: &thread::Thread| {
            for mine in (mine..TURNS).step_by(2) {
                while turn.load(Ordering::Acquire) != mine {
                    thread::park();
                }
                turn.store(mine + 1, Ordering::Release);
                other.unpark();
            }
        };
        let (me, shared) = (thread::current(), turn.clone());
        let second = thread::spawn(move || play(&shared, 1, &me));
        play(&turn, 0, second.thread());
        second.join().unwrap();
        assert_eq!(turn.load(Ordering::Acquire), TURNS);
    }

    fn a_lock_that_is_waited_for_loses_no_token() {
        for _ in 0..100 {
            let lock = Arc::new(Mutex::new(()));
            let (held, wanted) = (lock.lock().unwrap(), lock.clone());
            let (entered, has_entered) = channel::bounded(1);
            let sleeper = thread::spawn(move || {
                entered.send(()).unwrap();
                drop(wanted.lock().unwrap());
                thread::park();
            });
            has_entered.recv().unwrap();
            thread::yield_now();
            sleeper.thread().unpark();
            drop(held);
            sleeper.join().unwrap();
        }
    }

    fn tokens_do_not_end_other_waits() {
        let (value, received) = channel::bounded(1);
        let shared = Arc::new((Mutex::new(0), Condvar::new()));
        let there = shared.clone();
        let waiter = thread::spawn(move || {
            let number = received.recv().unwrap();
            let guard = there.1.wait_while(there.0.lock().unwrap(), |number| *number == 0).unwrap();
            thread::park();
            (number, *guard)
        });
        for _ in 0..100 {
            waiter.thread().unpark();
            thread::yield_now();
        }
        value.send(1).unwrap();
        for _ in 0..100 {
            waiter.thread().unpark();
            thread::yield_now();
        }
        *shared.0.lock().unwrap() = 2;
        shared.1.notify_all();
        waiter.thread().unpark();
        assert_eq!(waiter.join().unwrap(), (1, 2));
    }

    fn a_park_with_a_timeout_ends() {
        let began = Instant::now();
        thread::park_timeout(Duration::ZERO);
        thread::park_timeout(SHORT);
        assert!(began.elapsed() >= SHORT);
        let sleeper = thread::spawn(|| thread::park_timeout(10 * DEADLINE));
        sleeper.thread().unpark();
        sleeper.join().unwrap();
        thread::current().unpark();
        thread::park_timeout(Duration::MAX);
    }

    fn an_unpark_of_one_that_has_ended_does_nothing() {
        let handle = thread::spawn(thread::current);
        let thread = handle.thread().clone();
        let same = handle.join().unwrap();
        assert_eq!(same.id(), thread.id());
        thread.unpark();
        same.unpark();
    }

    // Names and numbers

    fn names_are_those_that_were_given() {
        let name = || thread::current().name().map(str::to_owned);
        let named = thread::Builder::new().name("indexer".into()).spawn(name).unwrap();
        assert_eq!(named.thread().name(), Some("indexer"));
        assert_eq!(named.join().unwrap().as_deref(), Some("indexer"));
        let unnamed = thread::spawn(name);
        assert_eq!(unnamed.thread().name(), None);
        assert_eq!(unnamed.join().unwrap(), None);
        thread::scope(|s| {
            let named = thread::Builder::new().name("scoped".to_string()).spawn_scoped(s, name).unwrap();
            assert_eq!(named.thread().name(), Some("scoped"));
            assert_eq!(named.join().unwrap().as_deref(), Some("scoped"));
        });
    }

    fn a_name_with_a_null_byte_is_refused_by_a_panic() {
        let builder = thread::Builder::new().name("nu\0ll".to_owned());
        assert!(panic_of(|| builder.spawn(|| ())).is_some());
    }

    fn ids_tell_all_threads_apart() {
        const THREADS: usize = 100;
        let mut ids: HashSet<thread::ThreadId> = HashSet::new();
        for _ in 0..THREADS {
            let handle = thread::spawn(|| thread::current().id());
            let id = handle.thread().id();
            assert_eq!(handle.join().unwrap(), id);
            ids.insert(id);
        }
        ids.insert(thread::current().id());
        assert_eq!(ids.len(), THREADS + 1);
        assert_eq!(thread::current().id(), thread::current().id());
        thread::scope(|s| {
            let handle = s.spawn(|| thread::current().id());
            assert!(ids.insert(handle.thread().id()));
            assert!(!ids.insert(handle.join().unwrap()));
        });
    }

    fn all_can_be_shown() {
        let handle = thread::Builder::new().name("shown".into()).spawn(|| ()).unwrap();
        assert!(format!("{:?}", handle.thread()).contains("shown"));
        assert!(format!("{handle:?}").starts_with("JoinHandle"));
        assert!(format!("{:?}", thread::current().id()).contains(char::is_numeric));
        assert!(format!("{:?}", thread::Builder::new()).starts_with("Builder"));
        thread::scope(|s| {
            assert!(format!("{s:?}").starts_with("Scope"));
            assert!(format!("{:?}", s.spawn(|| ())).starts_with("ScopedJoinHandle"));
        });
        assert_send_sync(handle.thread());
        let shared = handle.thread().clone();
        assert_eq!(catch_unwind(|| shared.id()).unwrap(), handle.thread().id());
        handle.join().unwrap();
    }

    // Stacks

    fn stacks_hold_what_was_asked_for() {
        #[inline(never)]
        fn deep<const BYTES: usize>() -> usize {
            black_box([1_u8; BYTES]).iter().map(|&byte| usize::from(byte)).sum()
        }
        let run = |bytes, body: fn() -> usize| {
            thread::Builder::new().stack_size(bytes).spawn(body).unwrap().join().unwrap()
        };
        assert_eq!(run(0, || 1), 1);
        assert_eq!(run(1, || 1), 1);
        assert_eq!(run(32 << 10, deep::<{ 4 << 10 }>), 4 << 10);
        // `black_box` copies: two of them fit.
        assert_eq!(run(128 << 10, deep::<{ 56 << 10 }>), 56 << 10);
        assert_eq!(run(4 << 20, deep::<{ 1 << 20 }>), 1 << 20);
    }

    // The rest

    fn panicking_is_known_in_a_drop() {
        assert!(!thread::panicking());
        let seen = Cell::new(None);
        let panic = panic_of(|| {
            let _look = OnDrop(|| seen.set(Some(thread::panicking())));
            panic!("on purpose");
        });
        assert!(panic.is_some());
        assert_eq!((seen.get(), thread::panicking()), (Some(true), false));
    }

    fn a_sleep_lasts() {
        let began = Instant::now();
        thread::sleep(SHORT);
        assert!(began.elapsed() >= SHORT);
        thread::sleep(Duration::ZERO);
    }

    fn there_is_a_core() {
        assert_eq!(thread::available_parallelism().unwrap(), cores().unwrap());
    }

    fn each_has_thread_locals_of_its_own() {
        thread_local! {
            static COUNT: Cell<u32> = const { Cell::new(1) };
            static LINES: RefCell<Vec<u32>> = RefCell::new(vec![0]);
        }
        fn key() -> &'static thread::LocalKey<Cell<u32>> {
            &COUNT
        }
        let count = |step: u32| {
            key().set(COUNT.get() + step);
            LINES.with_borrow_mut(|lines| lines.push(step));
            thread::yield_now();
            (COUNT.get(), LINES.with(|lines| lines.borrow().len()), LINES.take().len())
        };
        COUNT.set(10);
        let handles: Vec<_> = (1..20).map(|step| thread::spawn(move || count(step))).collect();
        for (handle, step) in handles.into_iter().zip(1..) {
            assert_eq!(handle.join().unwrap(), (1 + step, 2, 2));
        }
        assert_eq!((COUNT.get(), COUNT.try_with(Cell::get)), (10, Ok::<_, thread::AccessError>(10)));
    }
}

// What std has not: deadlines, cancellation, shutdown, limits

#[test]
fn a_join_that_is_out_of_time_or_cancelled_says_so_in_its_payload() {
    everywhere(|| {
        let (go, gone) = channel::bounded::<()>(1);
        let (done, is_done) = channel::bounded(1);
        let handle = thread::spawn(move || (gone.recv().is_err(), done.send(())));
        let error = dhaga::within(SHORT, || handle.join()).expect_err("it waits");
        let interrupt = error.downcast_ref::<Interrupt>().expect("that is documented");
        assert!(matches!(interrupt, Interrupt::DeadlineExceeded { .. }));
        drop(go);
        is_done.recv().expect("the dhaga ran on");

        let (_go, gone) = channel::bounded::<()>(1);
        let handle = thread::spawn(move || gone.recv().is_err());
        let error = dhaga::scope(|s| {
            s.cancel();
            handle.join().expect_err("the scope is cancelled")
        });
        assert_eq!(error.downcast_ref(), Some(&Interrupt::Cancelled));
        let thrown_on = dhaga::spawn(move || resume_unwind(error)).join();
        assert_eq!(
            thrown_on.expect_err("it panics").to_string(),
            "the dhaga panicked: the surrounding scope was cancelled"
        );
    });
}

#[test]
fn what_a_shutdown_unwound_is_joined_with_an_error_in_words() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (entered, has_entered) = channel::bounded(1);
        let spawn = move || {
            thread::spawn(move || {
                entered.send(()).expect("the test waits");
                loop {
                    thread::park();
                }
            })
        };
        let handle = runtime.spawn(spawn).join().expect("it spawns");
        has_entered.recv().expect("it runs");
        drop(runtime);
        let error = handle.join().expect_err("it did not return");
        let error = error.downcast_ref::<JoinError<()>>().expect("that is documented");
        assert!(matches!(error, JoinError::Unwound), "{error}");
    });
}

#[test]
fn a_park_goes_on_in_spite_of_the_scope_and_one_with_a_timeout_ends_with_it() {
    everywhere(|| {
        let began = Instant::now();
        dhaga::within(SHORT, || thread::park_timeout(10 * DEADLINE));
        assert!(began.elapsed() >= SHORT);
        let (has_ended, may_unpark) = (AtomicBool::new(false), AtomicBool::new(false));
        dhaga::scope(|s| {
            let (me, has_ended, may_unpark) = (thread::current(), &has_ended, &may_unpark);
            s.spawn(move || {
                thread::park_timeout(10 * DEADLINE);
                has_ended.store(dhaga::is_cancelled(), Ordering::SeqCst);
                while !may_unpark.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                (0..100).for_each(|_| thread::yield_now());
                may_unpark.store(false, Ordering::SeqCst);
                me.unpark();
            });
            s.cancel();
            thread::park_timeout(10 * DEADLINE);
            may_unpark.store(true, Ordering::SeqCst);
            thread::park();
            assert!(!may_unpark.load(Ordering::SeqCst), "the cancel ended a park");
        });
        assert!(has_ended.into_inner());
    });
}

#[test]
fn a_permit_of_the_runtimes_own_is_no_token() {
    everywhere(|| {
        park::unparker().unpark();
        let began = Instant::now();
        thread::park_timeout(SHORT);
        assert!(began.elapsed() >= SHORT);
        thread::current().unpark();
        park::park_until(WaitReason::Park, Some(Instant::now()));
        thread::park();
    });
}

#[test]
fn a_token_that_was_left_before_the_first_wait_ends_it() {
    everywhere(|| {
        let first_wait = || {
            thread::current().unpark();
            park::park(WaitReason::Park);
            thread::park();
        };
        thread::spawn(first_wait).join().expect("it ends");
    });
}

#[test]
fn a_park_while_unwinding_returns() {
    everywhere(|| {
        let panic = panic_of(|| {
            let _parks = OnDrop(|| {
                thread::park();
                thread::park_timeout(10 * DEADLINE);
            });
            panic!("on purpose");
        });
        assert!(panic.is_some());
    });
}

#[test]
fn limits_are_errors_of_the_kinds_that_std_has() {
    let bytes = usize::MAX;
    let error = thread::Builder::new().stack_size(bytes).spawn(|| ()).expect_err("that is too much");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<SpawnError>());
    assert_eq!(inner, Some(&SpawnError::StackSize { bytes }));
    let largest = thread::Builder::new().stack_size(1 << 30).spawn(|| 1).expect("that can be given");
    assert_eq!(largest.join().expect("it ends"), 1);

    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).tasks_max(1).build().expect("a test can start a runtime");
        let spawned = runtime.spawn(|| thread::Builder::new().spawn(|| ()).map(|_| ()).map_err(|error| error.kind()));
        assert_eq!(spawned.join().expect("it ends"), Err(ErrorKind::WouldBlock));
    });
}

#[test]
fn a_plain_thread_is_known_by_stds_name() {
    let named = std::thread::Builder::new().name("plain".to_owned());
    let name = named.spawn(|| thread::current().name().map(str::to_owned)).expect("there are threads");
    assert_eq!(name.join().expect("it ends").as_deref(), Some("plain"));
}

#[test]
fn a_park_while_the_threads_locals_are_destroyed_returns() {
    struct Parks;
    impl Drop for Parks {
        fn drop(&mut self) {
            thread::park();
        }
    }
    std::thread_local! {
        static LAST: Parks = const { Parks };
    }
    within_deadline(DEADLINE, || {
        let thread = std::thread::spawn(|| {
            // Made first, destroyed last: the runtime's own are gone by then.
            LAST.with(|_| ());
            let _ = thread::current().id();
        });
        thread.join().expect("it ends");
    });
}
