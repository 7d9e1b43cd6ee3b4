//! Code that blocks, on threads of its own.

use std::array;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::future::sleep;
use dhaga::sync::channel;
use dhaga::{Interrupt, JoinError, JoinHandle, Runtime};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

#[test]
fn it_returns_what_the_closure_returned() {
    everywhere(|| {
        let here = thread::current().id();
        let is_dhaga = dhaga::current().is_dhaga();
        let there = dhaga::blocking(|| thread::current().id()).expect("it runs");
        assert_eq!(there == here, !is_dhaga, "a plain thread blocks itself, a dhaga another");
    });
}

#[test]
fn a_panic_is_an_error_with_its_message() {
    everywhere(|| {
        match dhaga::blocking(|| panic!("on {}", "purpose")) {
            Err(JoinError::Panicked(panic)) => assert_eq!(panic.message(), "on purpose"),
            other => panic!("expected a panic, not {other:?}"),
        }
        assert_eq!(dhaga::blocking(|| 1).expect("the pool goes on"), 1);
    });
}

#[test]
fn a_hundred_block_at_once_while_a_ticker_goes_on() {
    const BLOCKED: usize = 100;
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let body = || {
            // All of them meet here: that many threads are blocked at the same time.
            let meeting = Arc::new(Barrier::new(BLOCKED + 1));
            let (ticks, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let (ticking, over) = (ticks.clone(), is_over.clone());
            let ticker = dhaga::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    dhaga::sleep(Duration::from_micros(100));
                    ticking.fetch_add(1, Ordering::SeqCst);
                }
            });
            let blocked: Vec<_> = (0..BLOCKED)
                .map(|_| {
                    let meeting = meeting.clone();
                    dhaga::spawn(move || {
                        dhaga::blocking(move || {
                            meeting.wait();
                            thread::current().id()
                        })
                    })
                })
                .collect();
            while ticks.load(Ordering::SeqCst) < 20 {
                dhaga::yield_now();
            }
            assert!(blocked.iter().all(|handle| !handle.is_finished()));
            dhaga::blocking(move || meeting.wait()).expect("it runs");
            let threads: HashSet<_> =
                blocked.into_iter().map(|handle| handle.join().expect("it ends").expect("it ran")).collect();
            assert_eq!(threads.len(), BLOCKED);
            is_over.store(true, Ordering::SeqCst);
            ticker.join().expect("it ends");
        };
        runtime.spawn(body).join().expect("the body ends well");
    });
}

#[test]
fn a_cancelled_caller_leaves_the_closure_running_and_can_join_it() {
    everywhere(|| {
        let ((starts, started), (go, gone)) = (channel::bounded(1), channel::bounded(1));
        let handle = dhaga::spawn(move || {
            let result = dhaga::blocking(move || {
                starts.send(()).expect("the test listens");
                gone.recv()
            });
            match result {
                Err(JoinError::Stopped(Interrupt::Cancelled, rest)) => rest,
                other => panic!("expected a cancel, not {other:?}"),
            }
        });
        started.recv().expect("it begins");
        handle.cancel();
        let rest = handle.join().expect("it ends");
        go.send(5).expect("the closure listens");
        assert!(matches!(rest.join(), Ok(Ok(5))));
    });
}

#[test]
fn the_closure_sees_the_deadline_and_the_values_of_who_waits() {
    static REQUEST: dhaga::ContextKey<u32> = dhaga::ContextKey::new();
    everywhere(|| {
        let at = Instant::now() + DEADLINE;
        let seen = dhaga::with_deadline(at, || {
            REQUEST.with(7, || dhaga::blocking(|| (dhaga::deadline(), REQUEST.get().as_deref().copied())))
        });
        assert_eq!(seen.expect("it ends"), (Some(at), Some(7)));
    });
}

/// Says when and where it is dropped.
struct Witness(Arc<Mutex<Option<thread::ThreadId>>>);

impl Drop for Witness {
    fn drop(&mut self) {
        *self.0.lock().expect("nobody panicked") = Some(thread::current().id());
    }
}

/// Keeps all threads of the pool busy until it is dropped.
struct Jam {
    _ends: Vec<mpsc::Sender<()>>,
}

impl Jam {
    fn new(threads: usize) -> Self {
        dhaga::blocking_pool().set_threads_max(threads);
        let jam = |_| {
            let ((starts, started), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
            dhaga::spawn_blocking(move || {
                starts.send(()).expect("the test listens");
                ended.recv()
            })
            .detach();
            started.recv().expect("a thread begins it");
            end
        };
        Self { _ends: (0..threads).map(jam).collect() }
    }
}

fn queued() -> usize {
    dhaga::blocking_pool().stats().queued
}

/// Spins until it is so; the deadline of the test ends it otherwise.
fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        thread::yield_now();
    }
}

/// What `blocking` says.
type Told = Result<(), JoinError<()>>;

/// Queues a closure in a dhaga behind a full pool, has `stop` end the wait, and checks that the closure is gone and never
/// runs. What the dhaga was told.
fn withdrawn_by(
    call: impl FnOnce(Box<dyn FnOnce() + Send>) -> Told + Send + 'static,
    stop: impl FnOnce(&Runtime, &JoinHandle<Told>),
) -> Result<Told, JoinError<Told>> {
    let jam = Jam::new(1);
    let (dropped, ran) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let (witness, runs) = (Witness(Arc::clone(&dropped)), ran.clone());
    let runtime = Runtime::builder().workers(1).build().expect("a runtime");
    let worker = runtime.spawn(|| thread::current().id()).join().expect("it ends");
    let closure = Box::new(move || {
        let _witness = witness;
        runs.store(true, Ordering::SeqCst);
    });
    let waiter = runtime.spawn(move || call(closure));
    until(|| queued() == 1 || waiter.is_finished());
    stop(&runtime, &waiter);
    let ended = waiter.join();
    assert_eq!(*dropped.lock().expect("nobody panicked"), Some(worker), "dropped where the caller is");
    assert_eq!(queued(), 0);
    drop(jam);
    dhaga::spawn_blocking(|| ()).join().expect("the pool goes on");
    assert!(!ran.load(Ordering::SeqCst));
    ended
}

#[test]
fn a_closure_that_waits_for_a_thread_is_taken_back_at_the_deadline() {
    child::succeeds(child::name_of!(a_closure_that_waits_for_a_thread_is_taken_back_at_the_deadline), || {
        let call = |closure| dhaga::within(Duration::from_millis(5), || dhaga::blocking(closure));
        match withdrawn_by(call, |_, _| ()).expect("it ends well") {
            Err(error @ JoinError::Withdrawn(Interrupt::DeadlineExceeded { .. })) => {
                assert!(error.to_string().contains("never ran"), "{error}");
                assert!(error.to_string().contains("dhaga::blocking_pool()"), "it names the knob: {error}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_closure_that_waits_for_a_thread_is_taken_back_at_a_cancel() {
    child::succeeds(child::name_of!(a_closure_that_waits_for_a_thread_is_taken_back_at_a_cancel), || {
        let ended = withdrawn_by(dhaga::blocking, |_, waiter| waiter.cancel()).expect("it ends well");
        assert!(matches!(ended, Err(JoinError::Withdrawn(Interrupt::Cancelled))), "{ended:?}");
    });
}

#[test]
fn a_closure_that_waits_for_a_thread_is_taken_back_when_its_dhaga_unwinds() {
    child::succeeds(child::name_of!(a_closure_that_waits_for_a_thread_is_taken_back_when_its_dhaga_unwinds), || {
        let call = |closure| dhaga::uncancellable(|| dhaga::blocking(closure));
        let ended = withdrawn_by(call, |runtime, _| runtime.shutdown(Duration::ZERO).expect("all end"));
        assert!(matches!(ended, Err(JoinError::Unwound)), "{ended:?}");
    });
}

#[test]
fn over_the_limit_the_caller_waits_for_room() {
    child::succeeds(child::name_of!(over_the_limit_the_caller_waits_for_room), || {
        let pool = dhaga::blocking_pool();
        pool.set_queued_max(2);
        let jam = Jam::new(1);
        let waiting: Vec<_> = (0..2).map(|n| dhaga::spawn(move || dhaga::blocking(move || n))).collect();
        until(|| queued() == 2);
        let late = dhaga::spawn(|| dhaga::within(Duration::from_millis(5), || dhaga::blocking(|| 7)));
        assert!(matches!(
            late.join().expect("it ends well"),
            Err(JoinError::Withdrawn(Interrupt::DeadlineExceeded { .. }))
        ));
        let third = dhaga::spawn(|| dhaga::blocking(|| 2));
        let fourth = dhaga::spawn(|| dhaga::spawn_blocking(|| 3).join());
        assert_eq!(queued(), 2);
        assert!(!third.is_finished() && !fourth.is_finished());
        pool.set_queued_max(3);
        until(|| queued() == 3);
        drop(jam);
        for (n, handle) in waiting.into_iter().chain([third]).enumerate() {
            assert_eq!(handle.join().expect("it ends").expect("it ran"), n);
        }
        assert_eq!(fourth.join().expect("it ends").expect("it ran"), 3);
        // Lower, while there is room and while there is none.
        pool.set_queued_max(1);
        let jam = Jam::new(1);
        let first = dhaga::spawn_blocking(|| 1);
        assert_eq!(queued(), 1);
        let second = dhaga::within(Duration::from_millis(5), || dhaga::spawn_blocking(|| 2));
        assert!(matches!(second.join(), Err(JoinError::NeverRan)), "there was no room to the end of the scope");
        drop(jam);
        assert_eq!(first.join().expect("it ran"), 1);
    });
}

#[test]
fn a_limit_that_was_as_good_as_none_is_lowered_at_once() {
    child::succeeds(child::name_of!(a_limit_that_was_as_good_as_none_is_lowered_at_once), || {
        let pool = dhaga::blocking_pool();
        pool.set_queued_max(usize::MAX);
        assert_eq!(dhaga::spawn_blocking(|| 1).join().expect("it ran"), 1);
        pool.set_queued_max(1);
        let jam = Jam::new(1);
        let first = dhaga::spawn_blocking(|| 2);
        let second = dhaga::within(Duration::from_millis(5), || dhaga::spawn_blocking(|| 3));
        assert!(matches!(second.join(), Err(JoinError::NeverRan)), "there was no room to the end of the scope");
        drop(jam);
        assert_eq!(first.join().expect("it ran"), 2);
    });
}

/// Counts its wakes.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A worker that stops has the wakers of other executors woken by the pool.
#[test]
fn a_pool_without_room_loses_no_wake_of_a_future() {
    child::succeeds(child::name_of!(a_pool_without_room_loses_no_wake_of_a_future), || {
        const FUTURES: usize = 5;
        let pool = dhaga::blocking_pool();
        pool.set_queued_max(1);
        let jam = Jam::new(1);
        let queued_too = dhaga::spawn_blocking(|| 7);
        assert_eq!(queued(), 1, "there is no room left");
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let sleeps = runtime.spawn(move || {
            let mut sleeps: [_; FUTURES] = array::from_fn(|_| sleep(Duration::from_secs(3600)));
            for sleep in &mut sleeps {
                assert!(Pin::new(sleep).poll(&mut Context::from_waker(&waker)).is_pending());
            }
            sleeps
        });
        let sleeps = sleeps.join().expect("it ends well");
        runtime.shutdown(DEADLINE).expect("nothing is left");
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0, "all threads are busy");
        drop(jam);
        until(|| wakes.0.load(Ordering::SeqCst) == FUTURES);
        assert_eq!(queued_too.join().expect("it ran"), 7);
        assert_eq!(dhaga::spawn_blocking(|| 8).join().expect("there is room again"), 8);
        drop(sleeps);
    });
}

#[test]
fn more_threads_take_up_what_waits_and_fewer_end() {
    child::succeeds(child::name_of!(more_threads_take_up_what_waits_and_fewer_end), || {
        let pool = dhaga::blocking_pool();
        let jam = Jam::new(1);
        let waiting = [1, 2].map(|n| dhaga::spawn_blocking(move || n));
        assert_eq!(queued(), 2);
        pool.set_threads_max(2);
        assert_eq!(waiting.map(|handle| handle.join().expect("it ran")), [1, 2]);
        pool.set_threads_max(1);
        drop(jam);
        until(|| pool.stats().threads == 1);
        assert_eq!(dhaga::spawn_blocking(|| 3).join().expect("it ran"), 3);
        pool.set_keep_alive(Duration::from_millis(1));
        until(|| pool.stats().threads == 0);
        assert_eq!(dhaga::spawn_blocking(|| 4).join().expect("it ran"), 4);
    });
}

#[test]
fn closures_that_wait_for_closures_cannot_use_up_all_threads() {
    child::succeeds(child::name_of!(closures_that_wait_for_closures_cannot_use_up_all_threads), || {
        dhaga::blocking_pool().set_threads_max(1);
        let nested = dhaga::spawn(|| dhaga::blocking(|| dhaga::blocking(|| dhaga::blocking(|| 5))));
        let ended = nested.join().expect("it ends").expect("it ran").expect("it ran").expect("it ran");
        assert_eq!(ended, 5);
    });
}

#[test]
fn a_spawned_closure_does_not_wait_and_its_handle_tells_its_end() {
    everywhere(|| {
        let (go, gone) = channel::bounded(1);
        let handle = dhaga::spawn_blocking(move || gone.recv());
        assert!(!handle.is_finished());
        go.send(5).expect("it listens");
        assert_eq!(handle.join().expect("it ran"), Ok(5));
        match dhaga::spawn_blocking(|| panic!("on {}", "purpose")).join() {
            Err(JoinError::Panicked(panic)) => assert_eq!(panic.message(), "on purpose"),
            other => panic!("expected a panic, not {:?}", other),
        }
        let name = dhaga::spawn_blocking(|| thread::current().name().map(str::to_owned)).join().expect("it ran");
        assert_eq!(name.as_deref(), Some("dhaga-blocking"));
    });
}

#[test]
fn a_cancel_of_the_handle_reaches_the_waits_of_the_closure() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded::<()>(1);
        let (starts, started) = channel::bounded(1);
        let handle = dhaga::spawn_blocking(move || {
            starts.send(()).expect("the test listens");
            (receiver.recv(), dhaga::is_cancelled())
        });
        started.recv().expect("it begins");
        handle.cancel();
        let (received, is_cancelled) = handle.join().expect("it ran");
        assert!(matches!(received, Err(channel::RecvError::Interrupted(Interrupt::Cancelled))), "{received:?}");
        assert!(is_cancelled);
        // The next closure of that thread is not.
        assert!(!dhaga::spawn_blocking(dhaga::is_cancelled).join().expect("it ran"));
        drop(sender);
    });
}

#[test]
fn a_closure_that_never_ends_holds_no_shutdown_up_and_is_reported() {
    let test = child::name_of!(a_closure_that_never_ends_holds_no_shutdown_up_and_is_reported);
    let output = child::run(test, || {
        child::log_to_stderr();
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let ((starts, started), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let waiter = runtime.spawn(move || {
            dhaga::blocking(move || {
                starts.send(()).expect("the test listens");
                ended.recv()
            })
        });
        started.recv().expect("it begins");
        runtime.shutdown(Duration::ZERO).expect("nothing is left");
        match waiter.join().expect("it ends well") {
            Err(JoinError::Stopped(Interrupt::Cancelled, rest)) => {
                assert!(!rest.is_finished());
                drop(end);
                assert!(rest.join().expect("it ends").is_err());
            }
            other => panic!("{other:?}"),
        }
    });
    let Some(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().any(|line| line.starts_with("WARN") && line.contains("blocking.rs:")), "{text}");
}
