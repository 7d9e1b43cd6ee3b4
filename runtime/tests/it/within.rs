//! Deadlines and cancellation follow the code: inwards, to what it calls and spawns, and no further.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use dhaga::net::UnixStream;
use dhaga::sync::channel::{self, Receiver, RecvError, Sender};
use dhaga::sync::{Mutex, Semaphore};
use dhaga::{Interrupt, JoinError, Runtime, checkpoint, deadline, is_cancelled, uncancellable, with_deadline, within};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

const SHORT: Duration = Duration::from_millis(5);
/// Much longer than a test may take.
const LONG: Duration = Duration::from_secs(3600);

/// A channel that nobody sends on. Keep the sender.
fn silence() -> (Sender<()>, Receiver<()>) {
    channel::bounded(1)
}

/// The line at which the deadline was set that ended a wait.
fn set_at_line<T: std::fmt::Debug>(outcome: Result<T, RecvError>) -> u32 {
    match outcome {
        Err(RecvError::Interrupted(Interrupt::DeadlineExceeded { set_at })) => set_at.line(),
        other => panic!("no deadline ended this wait: {other:?}"),
    }
}

#[test]
fn a_wait_ends_at_the_deadline_around_it_and_later_ones_go_on() {
    everywhere(|| {
        let (_sender, receiver) = silence();
        let start = Instant::now();
        let line = line!() + 1;
        let outcome = within(SHORT, || receiver.recv());
        assert_eq!(set_at_line(outcome), line);
        assert!(start.elapsed() >= SHORT);
        assert_eq!((checkpoint(), deadline()), (Ok(()), None));
    });
}

#[test]
fn of_nested_deadlines_the_earliest_counts_and_is_named() {
    everywhere(|| {
        let (_sender, receiver) = silence();
        let outer = line!() + 1;
        let outcome = within(SHORT, || within(LONG, || receiver.recv()));
        assert_eq!(set_at_line(outcome), outer);
        let at = Instant::now();
        let (inner, (outcome, after)) = within(LONG, || {
            let inner = line!() + 1;
            let outcome = with_deadline(at, || receiver.recv());
            (inner, (outcome, checkpoint()))
        });
        assert_eq!(set_at_line(outcome), inner);
        assert_eq!(after, Ok(()), "the outer code has time left");
    });
}

#[test]
fn a_deadline_that_has_passed_fails_even_what_would_not_wait() {
    everywhere(|| {
        let (sender, receiver) = silence();
        sender.send(()).expect("there is room");
        let line = line!() + 1;
        let outcome = with_deadline(Instant::now(), || receiver.recv());
        assert_eq!(set_at_line(outcome), line);
        assert_eq!(receiver.recv(), Ok(()), "it was not consumed");
    });
}

#[test]
fn a_deadline_is_left_by_a_panic_too() {
    everywhere(|| {
        let caught =
            std::panic::catch_unwind(|| with_deadline(Instant::now(), || std::panic::resume_unwind(Box::new(7))));
        assert!(caught.is_err_and(|payload| payload.is::<i32>()));
        assert_eq!((checkpoint(), deadline()), (Ok(()), None));
    });
}

#[test]
fn a_timeout_that_the_clock_cannot_tell_is_none() {
    everywhere(|| assert_eq!(within(Duration::MAX, deadline), None));
}

#[test]
fn the_deadline_in_force_is_the_earliest() {
    everywhere(|| {
        let (early, late) = (Instant::now() + LONG, Instant::now() + 2 * LONG);
        assert_eq!(with_deadline(late, || with_deadline(early, deadline)), Some(early));
        assert_eq!(with_deadline(early, || with_deadline(late, deadline)), Some(early));
    });
}

#[test]
fn what_is_spawned_inherits_the_deadline_and_detached_ones_do_not() {
    everywhere(|| {
        let at = Instant::now() + LONG;
        with_deadline(at, || {
            let inherited = dhaga::spawn(deadline).join();
            let scoped = dhaga::scope(|s| s.spawn(deadline).join());
            let grandchild = dhaga::spawn(|| dhaga::spawn(deadline).join()).join();
            let detached = dhaga::Builder::new().detached().spawn(deadline).expect("there is room").join();
            assert_eq!(inherited.expect("it ends"), Some(at));
            assert_eq!(scoped.expect("it ends"), Some(at));
            assert_eq!(grandchild.expect("it ends").expect("it ends"), Some(at));
            assert_eq!(detached.expect("it ends"), None);
        });
    });
}

#[test]
fn an_inherited_deadline_tells_where_it_was_set() {
    everywhere(|| {
        let line = line!() + 1;
        let late = within(SHORT, || {
            let (_sender, receiver) = silence();
            let child = dhaga::spawn(move || receiver.recv());
            uncancellable(|| child.join())
        });
        assert_eq!(set_at_line(late.expect("it ends")), line);
    });
}

#[test]
fn nothing_from_outside_reaches_an_uncancellable_section() {
    everywhere(|| {
        let (sender, receiver) = silence();
        with_deadline(Instant::now(), || {
            assert!(checkpoint().is_err());
            uncancellable(|| {
                assert_eq!((checkpoint(), deadline(), is_cancelled()), (Ok(()), None, false));
                assert_eq!(sender.send(()), Ok(()));
                assert_eq!(receiver.recv(), Ok(()));
                let inside = line!() + 1;
                assert_eq!(set_at_line(within(SHORT, || receiver.recv())), inside);
                assert_eq!(dhaga::spawn(deadline).join().expect("it ends"), None);
            });
            assert!(checkpoint().is_err());
        });
    });
}

#[test]
fn a_cancel_wakes_a_wait_and_does_not_reach_an_uncancellable_one() {
    within_deadline(DEADLINE, || {
        let (sender, receiver) = channel::rendezvous::<u32>();
        let (tell, told) = mpsc::channel();
        let child = dhaga::spawn(move || {
            let masked = uncancellable(|| {
                tell.send(()).expect("the test listens");
                receiver.recv()
            });
            (masked, receiver.recv(), is_cancelled())
        });
        told.recv().expect("it runs");
        child.cancel();
        sender.send(7).expect("it still receives");
        let outcome = child.join().expect("it ends");
        assert_eq!(outcome, (Ok(7), Err(RecvError::Interrupted(Interrupt::Cancelled)), true));
    });
}

#[test]
fn a_cancel_reaches_through_scopes_and_deadlines_to_other_workers() {
    within_deadline(DEADLINE, || {
        let (ready, is_ready) = mpsc::channel();
        let tree = dhaga::spawn(move || {
            let gate = Semaphore::new(0);
            within(LONG, || {
                dhaga::scope(|outer| {
                    for _ in 0..3 {
                        outer.spawn(|| {
                            dhaga::scope(|inner| {
                                let waits = || within(LONG, || gate.acquire().map(drop));
                                let leaves = [inner.spawn(waits), inner.spawn(waits)];
                                ready.send(()).expect("the test listens");
                                for leaf in leaves {
                                    let ended = uncancellable(|| leaf.join());
                                    assert!(ended.expect("it ends").is_err());
                                }
                            });
                        });
                    }
                });
            });
            checkpoint()
        });
        for _ in 0..3 {
            is_ready.recv().expect("the scopes are open");
        }
        tree.cancel();
        assert_eq!(tree.join().expect("it ends"), Err(Interrupt::Cancelled));
    });
}

#[test]
fn a_cancelled_scope_ends_its_own_code_and_nothing_outside() {
    everywhere(|| {
        let (_sender, receiver) = silence();
        dhaga::scope(|s| {
            let child = s.spawn(|| receiver.recv());
            s.cancel();
            let interrupted = Err(RecvError::Interrupted(Interrupt::Cancelled));
            assert_eq!(receiver.recv(), interrupted);
            assert_eq!(uncancellable(|| child.join()).expect("it ends"), interrupted);
            assert_eq!(uncancellable(|| s.spawn(|| receiver.recv()).join()).expect("it ends"), interrupted);
        });
        assert_eq!((is_cancelled(), checkpoint()), (false, Ok(())));
    });
}

#[test]
fn a_scope_is_cancelled_from_a_child_while_its_own_code_waits() {
    everywhere(|| {
        let (_sender, receiver) = silence();
        let outcome = dhaga::scope(|s| {
            s.spawn(|| s.cancel());
            receiver.recv()
        });
        assert_eq!(outcome, Err(RecvError::Interrupted(Interrupt::Cancelled)));
    });
}

#[test]
fn a_scope_that_is_opened_in_a_cancelled_one_is_cancelled_unless_it_is_shielded() {
    everywhere(|| {
        dhaga::scope(|s| {
            s.cancel();
            assert!(dhaga::scope(|inner| uncancellable(|| inner.spawn(is_cancelled).join())).expect("it ends"));
            assert!(!uncancellable(|| dhaga::scope(|inner| inner.spawn(is_cancelled).join())).expect("it ends"));
        });
    });
}

#[test]
fn the_first_error_of_a_group_cancels_the_rest_and_is_returned() {
    everywhere(|| {
        let (_sender, receiver) = silence();
        let outcome: Result<(), String> = dhaga::try_scope(|s| {
            let waits: Vec<_> =
                (0..3).map(|_| s.spawn(|| receiver.recv().map_err(|error| error.to_string()))).collect();
            s.spawn(|| Err::<(), _>("the first".to_owned()));
            receiver.recv().map_err(|error| error.to_string())?;
            for wait in waits {
                wait.join()?;
            }
            Ok(())
        });
        assert_eq!(outcome, Err("the first".to_owned()));
        assert_eq!(checkpoint(), Ok(()));
    });
}

#[test]
fn the_error_that_a_handle_took_is_the_groups_as_well() {
    everywhere(|| {
        let gate = Semaphore::new(0);
        let outcome: Result<(), &str> = dhaga::try_scope(|s| {
            let late = s.spawn(|| gate.acquire().map(drop).map_err(|_| "the last"));
            let early = s.spawn(|| Err::<(), _>("the first"));
            early.join()?;
            late.join()
        });
        assert_eq!(outcome, Err("the first"));
    });
}

#[test]
fn an_error_of_the_groups_own_code_cancels_its_dhagas() {
    everywhere(|| {
        let gate = Semaphore::new(0);
        let outcome: Result<(), &str> = dhaga::try_scope(|s| {
            s.spawn(|| gate.acquire().map(drop).map_err(|_| "cancelled"));
            Err("mine")
        });
        assert_eq!(outcome, Err("mine"));
    });
}

#[test]
fn a_group_that_succeeds_gives_its_value() {
    everywhere(|| {
        let outcome: Result<i32, ()> = dhaga::try_scope(|s| {
            let handles: Vec<_> = (0..10).map(|number| s.spawn(move || Ok(number))).collect();
            handles.into_iter().map(|handle| handle.join()).sum()
        });
        assert_eq!(outcome, Ok(45));
    });
}

#[test]
fn a_panic_in_a_group_cancels_the_rest_and_goes_on() {
    everywhere(|| {
        let gate = Semaphore::new(0);
        let group = || {
            dhaga::try_scope(|s| {
                s.spawn(|| gate.acquire().map(drop).map_err(|_| "cancelled"));
                let panics = s.spawn(|| -> Result<(), &str> { std::panic::resume_unwind(Box::new("mine")) });
                panics.join()
            })
        };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(group));
        let payload = caught.expect_err("the panic goes on");
        assert_eq!(payload.downcast_ref(), Some(&"mine"));
    });
}

#[test]
fn a_cancel_from_outside_is_an_error_of_the_group() {
    within_deadline(DEADLINE, || {
        let (tell, told) = mpsc::channel();
        let group = dhaga::spawn(move || {
            let gate = Semaphore::new(0);
            dhaga::try_scope(|s| {
                let leaf = s.spawn(|| gate.acquire().map(drop).map_err(|error| error.to_string()));
                tell.send(()).expect("the test listens");
                leaf.join()
            })
        });
        told.recv().expect("it runs");
        group.cancel();
        assert!(group.join().expect("it ends").is_err());
    });
}

#[test]
fn an_early_sleep_passes_through_the_loop() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let sleeper = runtime.spawn(move || {
            while !seen.load(std::sync::atomic::Ordering::SeqCst) {
                dhaga::sleep(LONG);
            }
        });
        sleeper.cancel();
        // It sleeps in vain from now on, and lets this one run all the same.
        let other = runtime.spawn(move || over.store(true, std::sync::atomic::Ordering::SeqCst));
        other.join().expect("it gets its turn");
        sleeper.join().expect("it ends");
    });
}

#[test]
fn the_thousandth_early_sleep_in_a_row_is_logged_once_with_who_sleeps() {
    let ended = child::run("within::the_thousandth_early_sleep_in_a_row_is_logged_once_with_who_sleeps", || {
        child::log_to_stderr();
        let sleepy = dhaga::Builder::new().name("sleepy").spawn(|| {
            let sleep = |times| with_deadline(Instant::now(), || (0..times).for_each(|_| dhaga::sleep(LONG)));
            sleep(999);
            eprintln!("not yet");
            dhaga::sleep(Duration::ZERO);
            sleep(999);
            eprintln!("not yet either");
            sleep(5000);
        });
        sleepy.expect("there is room").join().expect("it ends");
    });
    let Some(output) = ended else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    let logged: Vec<_> = text.lines().filter(|line| line.starts_with("WARN")).collect();
    assert_eq!(logged.len(), 1, "{text}");
    assert!(logged[0].contains("\"sleepy\" #") && logged[0].contains("within.rs:"), "{text}");
    assert!(text.find("not yet either") < text.find("WARN"), "{text}");
}

#[test]
fn a_lock_is_taken_in_spite_of_the_deadline() {
    everywhere(|| {
        let lock = Mutex::new(0);
        with_deadline(Instant::now(), || *lock.lock().expect("nobody panicked") += 1);
        assert_eq!(*lock.lock().expect("nobody panicked"), 1);
    });
}

#[test]
fn a_join_that_was_stopped_gives_its_handle_back() {
    everywhere(|| {
        let (sender, receiver) = silence();
        let child = dhaga::spawn(move || receiver.recv());
        let handle = match within(SHORT, || child.join()) {
            Err(JoinError::Stopped(Interrupt::DeadlineExceeded { .. }, handle)) => handle,
            other => panic!("{other:?}"),
        };
        sender.send(()).expect("it still receives");
        assert_eq!(handle.join().expect("it ends"), Ok(()));
    });
}

/// As after a pause of the machine: the time is over, and the data lies in the sockets, when the worker looks at both. One
/// waits for its socket, one for a dhaga that does: as a caller of another program waits for the reader of its connection.
#[test]
fn what_came_in_time_is_found_by_a_worker_that_looks_late() {
    find_what_came_in_time(Duration::ZERO);
}

/// Others have the core before it has read all that came.
#[test]
fn what_came_in_time_is_found_by_a_worker_that_stands_still_once_more() {
    find_what_came_in_time(Duration::from_millis(30));
}

/// `still` is how long the worker's thread sleeps before it first looks at the sockets.
fn find_what_came_in_time(still: Duration) {
    const TIME: Duration = Duration::from_millis(500);
    within_deadline(DEADLINE, move || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime can be had");
        let [(mut own, far_own), (mut other, far_other)] =
            [0, 1].map(|_| UnixStream::pair().expect("sockets can be had"));
        let (waits, is_waiting) = channel::bounded(2);
        let (hand_over, handed_over) = channel::bounded(1);
        let mut byte = [0];
        let _ = runtime.spawn(move || {
            other.read_exact(&mut byte).expect("the other end writes");
            hand_over.send(byte).expect("the caller waits");
        });
        let wait_too = waits.clone();
        let caller = runtime.spawn(move || {
            // Who is late goes before others only if one of these has run since it last did.
            dhaga::yield_now();
            wait_too.send(()).expect("the other dhaga listens");
            handed_over.recv_timeout(TIME)
        });
        let reader = runtime.spawn(move || {
            own.set_read_timeout(Some(TIME)).expect("it is not zero");
            waits.send(()).expect("the other dhaga listens");
            own.read(&mut byte).map(|count| (count, byte))
        });
        let (hold, held) = channel::bounded(1);
        let _ = runtime.spawn(move || {
            held.recv().expect("the hog sends");
            std::thread::sleep(still);
        });
        let hog = runtime.spawn(move || {
            // They share the worker, so both have run until they waited for what comes now.
            is_waiting.iter().take(2).for_each(drop);
            let written = Instant::now();
            for mut far in [&far_own, &far_other] {
                far.write_all(&[7]).expect("the other end is open");
            }
            hold.send(()).expect("the other dhaga listens");
            while written.elapsed() < TIME + Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            (far_own, far_other)
        });
        drop(hog.join().expect("it does not panic"));
        assert_eq!(reader.join().expect("it does not panic").expect("it came in time"), (1, [7]));
        assert_eq!(caller.join().expect("it does not panic"), Ok([7]));
    });
}

/// Each look at the timers finds that the worker was away.
#[test]
fn a_sleep_ends_beside_dhagas_that_make_the_worker_late_each_time() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime can be had");
        let (is_over, stretches) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let hogs = [(); 3].map(|()| {
            let (is_over, stretches) = (is_over.clone(), stretches.clone());
            runtime.spawn(move || {
                while !is_over.load(Relaxed) {
                    let began = Instant::now();
                    while began.elapsed() < Duration::from_millis(25) {
                        std::hint::spin_loop();
                    }
                    stretches.fetch_add(1, Relaxed);
                    dhaga::yield_now();
                }
            })
        });
        let sleeper = runtime.spawn(move || {
            let sleeps = [(); 5].map(|()| {
                let before = stretches.load(Relaxed);
                dhaga::sleep(Duration::from_millis(1));
                stretches.load(Relaxed) - before
            });
            is_over.store(true, Relaxed);
            sleeps
        });
        let sleeps = sleeper.join().expect("it does not panic");
        hogs.into_iter().for_each(|hog| hog.join().expect("it does not panic"));
        assert!(sleeps.iter().all(|&stretches| stretches <= 6), "{sleeps:?} stretches of 25 ms each");
    });
}
