//! Futures that were spawned: each a dhaga like others, with a stack only while it is polled.

use std::cell::Cell;
use std::future::{self, poll_fn};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use dhaga::sync::oneshot;
use dhaga::{Builder, DhagaId, Interrupt, JoinError, JoinHandle, Runtime, SpawnError, spawn_future, within};

use crate::common::{DEADLINE, everywhere, within_deadline};

const SHORT: Duration = Duration::from_millis(5);

/// A future that is pending `times` times, and says to whoever is asked for it when it wants to be polled.
fn pending(times: usize, mut ask: impl FnMut(Waker) + Send) -> impl Future<Output = usize> + Send {
    let mut polls = 0;
    poll_fn(move |context| {
        polls += 1;
        if polls > times {
            return Poll::Ready(polls);
        }
        ask(context.waker().clone());
        Poll::Pending
    })
}

/// Says in which dhaga it is dropped.
struct Drops(mpsc::Sender<DhagaId>);

impl Drop for Drops {
    fn drop(&mut self) {
        // Whoever wants to know may have failed.
        let _ = self.0.send(dhaga::current().id());
    }
}

/// Never ready. Says where it is polled first, and where it is dropped.
fn endless() -> (impl Future<Output = ()> + Send, mpsc::Receiver<DhagaId>, mpsc::Receiver<DhagaId>) {
    let ((polls, polled), (drops, dropped)) = (mpsc::channel(), mpsc::channel());
    let drops = Drops(drops);
    let waits = async move {
        let _drops = drops;
        polls.send(dhaga::current().id()).expect("the test listens");
        future::pending().await
    };
    (waits, polled, dropped)
}

/// A runtime of one worker, in which `spawn` starts a future.
fn on_one_worker<T: Send + 'static>(
    spawn: impl FnOnce() -> JoinHandle<T> + Send + 'static,
) -> (Runtime, JoinHandle<T>) {
    let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
    let handle = runtime.spawn(spawn).join().expect("it ends well");
    (runtime, handle)
}

/// Returns when the runtime's only worker has run whatever was ready.
fn run_others(runtime: &Runtime) {
    runtime.spawn(|| ()).join().expect("it ends well");
}

#[test]
fn its_output_is_the_result_of_the_join() {
    everywhere(|| {
        let ready = spawn_future(async { 7 });
        assert_eq!(ready.join().expect("it ends well"), Ok(7));
        let (sender, receiver) = oneshot::channel();
        let waits = spawn_future(async move { receiver.await.map(|half: u32| half * 2) });
        sender.send(21).expect("it waits");
        assert_eq!(waits.join().expect("it ends well"), Ok(Ok(42)));
    });
}

#[test]
fn it_is_polled_once_for_each_wake_and_always_by_the_same_dhaga() {
    within_deadline(DEADLINE, || {
        dhaga::local!(static POLLS: Cell<usize> = Cell::new(0));
        const PENDING: usize = 5;
        let (ask, asked) = mpsc::channel();
        let polls = pending(PENDING, move |waker: Waker| {
            POLLS.with(|polls| polls.set(polls.get() + 1));
            let place = (dhaga::current().id(), thread::current().id(), POLLS.with(Cell::get));
            ask.send((waker, place)).expect("the test listens");
        });
        let ended = Builder::new().name("polled").spawn_future(polls).expect("there is room");
        assert_eq!(ended.dhaga().name(), Some("polled"));
        let mut places = Vec::new();
        for (waker, place) in asked {
            places.push(place);
            waker.wake_by_ref();
            waker.wake();
        }
        assert_eq!(ended.join().expect("it ends well"), Ok(PENDING + 1));
        assert_eq!(places.iter().map(|place| place.2).collect::<Vec<_>>(), (1..=PENDING).collect::<Vec<_>>());
        assert!(places.iter().all(|place| (place.0, place.1) == (places[0].0, places[0].1)), "{places:?}");
    });
}

#[test]
fn a_wake_during_the_poll_counts_and_one_after_the_end_is_harmless() {
    everywhere(|| {
        let (keep, kept) = mpsc::channel();
        let polls = pending(3, move |waker| {
            waker.wake_by_ref();
            keep.send(waker).expect("the test listens");
        });
        assert_eq!(spawn_future(polls).join().expect("it ends well"), Ok(4));
        kept.into_iter().for_each(Waker::wake);
        assert_eq!(spawn_future(pending(1, Waker::wake)).join().expect("it ends well"), Ok(2));
    });
}

#[test]
fn a_storm_of_wakes_from_other_threads_loses_none() {
    within_deadline(DEADLINE, || {
        const FUTURES: usize = 2_000;
        const PENDING: usize = 5;
        let (ask, asked) = mpsc::channel::<Waker>();
        let waking = thread::spawn(move || asked.into_iter().for_each(Waker::wake));
        let start = |_| {
            let ask = ask.clone();
            spawn_future(pending(PENDING, move |waker| ask.send(waker).expect("it listens")))
        };
        let running: Vec<_> = (0..FUTURES).map(start).collect();
        drop(ask);
        for handle in running {
            assert_eq!(handle.join().expect("it ends well"), Ok(PENDING + 1));
        }
        waking.join().expect("it ends well");
    });
}

#[test]
fn pending_futures_have_no_stacks() {
    within_deadline(DEADLINE, || {
        const FUTURES: usize = 100;
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let start = || (0..FUTURES).map(|_| spawn_future(future::pending::<()>())).collect::<Vec<_>>();
        let handles = runtime.spawn(start).join().expect("it ends well");
        run_others(&runtime);
        let audit = runtime.audit(DEADLINE).expect("the worker answers");
        assert_eq!((audit.tasks, audit.stacks), (FUTURES, 0));
        handles.iter().for_each(JoinHandle::cancel);
        for handle in handles {
            assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
        }
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn a_cancel_drops_the_future_in_its_dhaga() {
    within_deadline(DEADLINE, || {
        let (waits, polled, dropped) = endless();
        let handle = spawn_future(waits);
        let polled = polled.recv().expect("it is polled");
        handle.cancel();
        assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
        assert_eq!(dropped.recv(), Ok(polled));
    });
}

#[test]
fn one_that_is_cancelled_before_it_starts_is_not_polled() {
    within_deadline(DEADLINE, || {
        let (waits, polled, dropped) = endless();
        let (runtime, handle) = on_one_worker(move || {
            let handle = spawn_future(waits);
            handle.cancel();
            handle
        });
        assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
        assert!(dropped.recv().is_ok() && polled.try_recv().is_err());
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn one_that_its_own_poll_cancels_is_dropped() {
    within_deadline(DEADLINE, || {
        let (handles, handle) = mpsc::channel::<JoinHandle<_>>();
        let (ends, ended) = mpsc::channel();
        let spawned = spawn_future(poll_fn(move |_| {
            let handle = handle.recv().expect("the test sends it");
            handle.cancel();
            ends.send(handle).expect("the test listens");
            Poll::<()>::Pending
        }));
        handles.send(spawned).expect("it is polled");
        let handle = ended.recv().expect("it was polled");
        assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
    });
}

#[test]
fn it_ends_with_the_deadline_of_whoever_spawned_it_unless_it_is_detached() {
    within_deadline(DEADLINE, || {
        let (waits, polled, dropped) = endless();
        let handle = within(SHORT, || spawn_future(waits));
        let ended = handle.join().expect("it ends well");
        assert!(matches!(ended, Err(Interrupt::DeadlineExceeded { .. })), "{ended:?}");
        let dropped = dropped.recv().expect("it is dropped");
        // On a slow machine it is too late for the first poll.
        assert!(polled.try_recv().is_ok_and(|polled| polled == dropped) || polled.try_recv().is_err());

        let (waits, polled, dropped) = endless();
        let handle = within(SHORT, || Builder::new().detached().spawn_future(waits)).expect("there is room");
        polled.recv().expect("it is polled");
        dhaga::sleep(2 * SHORT);
        assert!(dropped.try_recv().is_err());
        handle.cancel();
        assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
    });
}

#[test]
fn a_future_that_wakes_itself_starves_nobody_and_ends_with_a_cancel() {
    within_deadline(DEADLINE, || {
        let restless = poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        let (runtime, handle) = on_one_worker(move || spawn_future(restless));
        for _ in 0..100 {
            run_others(&runtime);
            runtime.spawn(|| dhaga::sleep(Duration::from_micros(10))).join().expect("it ends well");
        }
        handle.cancel();
        assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
    });
}

#[test]
fn a_shutdown_drops_a_pending_future_in_its_dhaga() {
    within_deadline(DEADLINE, || {
        for grace in [Duration::ZERO, SHORT] {
            let (waits, polled, dropped) = endless();
            let (runtime, handle) = on_one_worker(move || spawn_future(waits));
            let polled = polled.recv().expect("it is polled");
            runtime.shutdown(grace).expect("it ends");
            let ended = handle.join();
            assert!(matches!(ended, Ok(Err(Interrupt::Cancelled)) | Err(JoinError::Unwound)), "{ended:?}");
            assert_eq!(dropped.recv(), Ok(polled));
        }
    });
}

#[test]
fn a_shutdown_unwinds_a_poll_that_waits() {
    within_deadline(DEADLINE, || {
        let (drops, dropped) = mpsc::channel();
        let (starts, started) = mpsc::channel();
        let drops = Drops(drops);
        let (runtime, handle) = on_one_worker(move || {
            spawn_future(async move {
                let _drops = drops;
                starts.send(dhaga::current().id()).expect("the test listens");
                dhaga::uncancellable(|| dhaga::block_on(future::pending::<()>()));
            })
        });
        let polled = started.recv().expect("it is polled");
        runtime.shutdown(Duration::ZERO).expect("it unwinds");
        assert!(matches!(handle.join(), Err(JoinError::Unwound)));
        assert_eq!(dropped.recv(), Ok(polled));
    });
}

#[test]
fn a_poll_may_wait_and_be_woken_meanwhile() {
    within_deadline(DEADLINE, || {
        let (start, started) = dhaga::sync::mpsc::channel::<Waker>();
        let (sender, receiver) = dhaga::sync::mpsc::channel();
        let mut polls = 0;
        let waits = spawn_future(poll_fn(move |context| {
            polls += 1;
            start.send(context.waker().clone()).expect("the test listens");
            let value: u32 = receiver.recv().expect("the test sends");
            if polls < 2 { Poll::Pending } else { Poll::Ready((polls, value)) }
        }));
        started.recv().expect("it is polled").wake();
        sender.send(1).expect("it waits");
        // The wake of the first poll makes the second.
        started.recv().expect("it is polled again");
        sender.send(2).expect("it waits");
        assert_eq!(waits.join().expect("it ends well"), Ok((2, 2)));
    });
}

#[test]
fn a_cancel_counts_that_a_wait_inside_the_poll_has_taken() {
    within_deadline(DEADLINE, || {
        let (drops, dropped) = mpsc::channel();
        let drops = Drops(drops);
        let (starts, started) = mpsc::channel();
        let (sender, receiver) = dhaga::sync::mpsc::channel::<()>();
        let (runtime, handle) = on_one_worker(move || {
            spawn_future(async move {
                let _drops = drops;
                starts.send(dhaga::current().id()).expect("the test listens");
                dhaga::uncancellable(|| receiver.recv()).expect("the test sends");
                future::pending::<()>().await
            })
        });
        let polled = started.recv().expect("it is polled");
        handle.cancel();
        // It is woken, and waits again.
        run_others(&runtime);
        run_others(&runtime);
        sender.send(()).expect("it waits");
        assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
        assert_eq!(dropped.recv(), Ok(polled));
    });
}

#[test]
fn one_that_promised_not_to_wait_panics_when_it_is_pending() {
    within_deadline(DEADLINE, || {
        let in_dhaga = || {
            let promises = async {
                let _promise = dhaga::no_suspend();
                future::pending::<()>().await
            };
            let local = Builder::new().spawn_local_future(promises).expect("there is room");
            let forgets = spawn_future(async {
                std::mem::forget(dhaga::no_suspend());
                future::pending::<()>().await
            });
            [local, forgets].map(JoinHandle::join)
        };
        for ended in dhaga::spawn(in_dhaga).join().expect("it ends well") {
            let Err(JoinError::Panicked(panic)) = ended else { panic!("{ended:?}") };
            assert!(panic.message().contains("(Future)"), "{}", panic.message());
        }
    });
}

/// Panics when it is dropped.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        resume_unwind(Box::new("dropped on purpose"));
    }
}

#[test]
fn a_panic_of_its_drop_goes_to_the_join() {
    within_deadline(DEADLINE, || {
        let guard = PanicsOnDrop;
        let waits = spawn_future(async move {
            let _guard = guard;
            future::pending::<()>().await
        });
        waits.cancel();
        let guard = PanicsOnDrop;
        // Of what it captured, dropped with the future and not at the end of its last poll.
        let ready = spawn_future(poll_fn(move |_| {
            let _ = &guard;
            Poll::Ready(())
        }));
        for ended in [waits, ready].map(JoinHandle::join) {
            let Err(JoinError::Panicked(panic)) = ended else { panic!("{ended:?}") };
            assert_eq!(panic.message(), "dropped on purpose");
        }
        assert_eq!(spawn_future(pending(1, Waker::wake)).join().expect("the worker is well"), Ok(2));
    });
}

#[test]
fn thousands_of_large_ones_keep_what_is_in_them() {
    within_deadline(DEADLINE, || {
        const FUTURES: usize = 3_000;
        let (ask, asked) = mpsc::channel::<Waker>();
        let start = |number: usize| {
            let ask = ask.clone();
            let large = async move {
                let kept = std::hint::black_box([number; 1280]);
                pending(2, move |waker| ask.send(waker).expect("it listens")).await;
                assert_eq!(dhaga::current().name(), Some("large"));
                kept.iter().sum::<usize>()
            };
            Builder::new().name("large").spawn_future(large).expect("there is room")
        };
        let running: Vec<_> = (0..FUTURES).map(start).collect();
        drop(ask);
        let waking = thread::spawn(move || asked.into_iter().for_each(Waker::wake));
        for (number, handle) in running.into_iter().enumerate() {
            assert_eq!(handle.join().expect("it ends well"), Ok(1280 * number));
        }
        waking.join().expect("it ends well");
    });
}

#[test]
fn a_panic_of_a_poll_goes_to_the_join_and_drops_the_future() {
    within_deadline(DEADLINE, || {
        let (drops, dropped) = mpsc::channel();
        let drops = Drops(drops);
        let fails = spawn_future(async move {
            let _drops = drops;
            pending(1, Waker::wake).await;
            resume_unwind(Box::new("on purpose"))
        });
        let id = fails.dhaga().id();
        let ended: Result<Result<(), _>, _> = fails.join();
        let Err(JoinError::Panicked(panic)) = ended else { panic!("{ended:?}") };
        assert_eq!(panic.message(), "on purpose");
        assert_eq!(dropped.recv(), Ok(id));
        assert_eq!(spawn_future(pending(1, Waker::wake)).join().expect("the worker is well"), Ok(2));
    });
}

#[test]
fn pending_futures_count_against_the_limit_of_dhagas() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).tasks_max(10).build().expect("a test can start a runtime");
        let fill = || {
            let spawn = || Builder::new().spawn_future(future::pending::<()>());
            let (mut handles, mut next) = (Vec::new(), spawn());
            while let Ok(handle) = next {
                handles.push(handle);
                next = spawn();
            }
            assert!(matches!(next, Err(SpawnError::TooMany { limit: 10 })), "{next:?}");
            handles
        };
        let handles = runtime.spawn(fill).join().expect("it ends well");
        assert_eq!(handles.len(), 9);
        handles.iter().for_each(JoinHandle::cancel);
        for handle in handles {
            assert_eq!(handle.join().expect("it ends well"), Err(Interrupt::Cancelled));
        }
        assert_eq!(runtime.spawn(fill).join().expect("there is room again").len(), 9);
    });
}

#[test]
fn a_local_future_need_not_be_send_and_one_without_a_handle_runs_on() {
    within_deadline(DEADLINE, || {
        let in_dhaga = || {
            let shared = Rc::new(Cell::new(0));
            let (sender, receiver) = oneshot::channel::<u32>();
            let counts = shared.clone();
            let local = async move { counts.set(receiver.await.expect("it is sent")) };
            let handle = Builder::new().detached().spawn_local_future(local).expect("there is room");
            sender.send(5).expect("it waits");
            handle.join().expect("it ends well").expect("nobody stops it");
            shared.get()
        };
        assert_eq!(dhaga::spawn(in_dhaga).join().expect("it ends well"), 5);
        let nowhere = Builder::new().spawn_local_future(async {});
        assert!(matches!(nowhere, Err(SpawnError::NoWorker)), "{nowhere:?}");
        let (done, is_done) = mpsc::channel();
        let sends = async move { done.send(pending(1, Waker::wake).await).expect("the test listens") };
        spawn_future(sends).detach();
        assert_eq!(is_done.recv(), Ok(2));
    });
}

#[test]
fn each_poll_has_as_much_stack_as_was_asked_for() {
    fn recurse(levels: usize) -> usize {
        let frame = std::hint::black_box([levels; 128]);
        if levels == 0 { 0 } else { recurse(frame[1] - 1) + 1 }
    }
    within_deadline(DEADLINE, || {
        let deep = async {
            pending(1, Waker::wake).await;
            // 600 KiB at least.
            recurse(600)
        };
        let handle = Builder::new().stack_size(4 << 20).spawn_future(deep).expect("there is room");
        assert_eq!(handle.join().expect("it ends well"), Ok(600));
    });
}

#[test]
fn a_future_that_never_started_is_dropped_by_a_dhaga() {
    within_deadline(DEADLINE, || {
        let (waits, polled, dropped) = endless();
        let is_free = Arc::new(AtomicBool::new(false));
        let hog = is_free.clone();
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (handles, handle) = mpsc::channel();
        let spawns = runtime.spawn(move || {
            handles.send(spawn_future(waits)).expect("the test listens");
            while !hog.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        });
        let handle = handle.recv().expect("it is spawned");
        let shutting_down = thread::spawn(move || runtime.shutdown(Duration::ZERO));
        // It starts, cancelled, or is discarded: in either case nobody polls it once the shutdown has begun.
        is_free.store(true, Ordering::SeqCst);
        shutting_down.join().expect("it ends well").expect("all end");
        drop((spawns, handle));
        dropped.recv().expect("it was dropped");
        drop(polled);
    });
}

/// Waits within the poll for a message that comes long before its time is over: so the timer of the wait is left.
fn wait_in_poll(time: Duration) {
    let (sender, receiver) = dhaga::sync::mpsc::channel();
    dhaga::spawn(move || sender.send(())).detach();
    // Its scope may end first.
    let _ = receiver.recv_timeout(time);
}

#[test]
fn the_timer_of_a_wait_within_a_poll_neither_polls_it_nor_hides_its_deadline() {
    within_deadline(DEADLINE, || {
        // It rings before the deadline of the future, or would after it.
        for time in [4 * SHORT, 100 * DEADLINE] {
            let (runtime, ended) = on_one_worker(move || {
                let mut polls = 0;
                let (counts, counted) = mpsc::channel();
                let waits = poll_fn(move |_| {
                    wait_in_poll(time);
                    polls += 1;
                    counts.send(polls).expect("the test listens");
                    Poll::<()>::Pending
                });
                let ended = within(20 * SHORT, || spawn_future(waits)).join().expect("it ends well");
                dhaga::spawn(move || (ended, counted.into_iter().last()))
            });
            let (ended, polls) = ended.join().expect("it ends well");
            assert!(matches!(ended, Err(Interrupt::DeadlineExceeded { .. })), "{ended:?}");
            assert!(polls.is_none_or(|polls| polls == 1), "{polls:?} polls");
            runtime.shutdown(DEADLINE).expect("nothing is left");
        }
    });
}

#[test]
fn a_crowd_that_waits_within_polls_and_between_them_leaves_no_timer() {
    within_deadline(DEADLINE, || {
        const FUTURES: u64 = 300;
        let runtime = Runtime::builder().workers(2).build().expect("a test can start a runtime");
        let waits = |number: u64| async move {
            for round in 0..5 {
                let time = Duration::from_micros((number * 37 + round * 91) % 700 + 1);
                match (number + round) % 3 {
                    0 => wait_in_poll(time + DEADLINE),
                    1 => dhaga::sleep(time),
                    _ => drop(within(time, || dhaga::sync::mpsc::channel::<()>().1.recv())),
                }
                dhaga::future::sleep(time).await;
            }
        };
        let spawn = move || {
            let of = |number| match number % 4 {
                0 => within(Duration::from_millis(number % 7), || spawn_future(waits(number))),
                _ => spawn_future(waits(number)),
            };
            (0..FUTURES).map(of).collect::<Vec<_>>()
        };
        let handles = runtime.spawn(spawn).join().expect("it ends well");
        handles.iter().skip(1).step_by(5).for_each(JoinHandle::cancel);
        for handle in handles {
            let ended = handle.join().expect("it ends well");
            assert!(
                matches!(ended, Ok(()) | Err(Interrupt::Cancelled | Interrupt::DeadlineExceeded { .. })),
                "{ended:?}"
            );
        }
        // Whoever sent has ended, too.
        let is_at_rest =
            || runtime.audit(DEADLINE).is_some_and(|audit| (audit.tasks, audit.stacks, audit.timers) == (0, 0, 0));
        while !is_at_rest() {
            thread::yield_now();
        }
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn a_shutdown_unwinds_futures_with_timers_left_and_polls_that_wait_with_one() {
    within_deadline(DEADLINE, || {
        for grace in [Duration::ZERO, SHORT] {
            let (starts, started) = mpsc::channel();
            let (runtime, handles) = on_one_worker(move || {
                let idle = |starts: mpsc::Sender<()>| async move {
                    wait_in_poll(DEADLINE);
                    starts.send(()).expect("the test listens");
                    future::pending::<()>().await
                };
                let waits = |starts: mpsc::Sender<()>| async move {
                    wait_in_poll(SHORT * 2);
                    starts.send(()).expect("the test listens");
                    let forever = dhaga::sync::mpsc::channel::<()>();
                    let _ = dhaga::uncancellable(|| forever.1.recv_timeout(DEADLINE * 2));
                    panic!("the channel is open, and the time is long");
                };
                let spawn = |_| [spawn_future(idle(starts.clone())), spawn_future(waits(starts.clone()))];
                let handles: Vec<_> = (0..20).flat_map(spawn).collect();
                dhaga::spawn(move || handles)
            });
            let handles = handles.join().expect("it ends well");
            started.iter().take(handles.len()).for_each(drop);
            runtime.shutdown(grace).expect("all end");
            for handle in handles {
                let ended = handle.join();
                assert!(matches!(ended, Ok(Err(Interrupt::Cancelled)) | Err(JoinError::Unwound)), "{ended:?}");
            }
        }
    });
}
