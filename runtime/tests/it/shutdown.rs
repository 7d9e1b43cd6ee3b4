//! The end of a runtime: its dhagas unwind, what they borrow outlives them, and nothing is left over.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::channel::{RecvError, SendError};
use dhaga::sync::{AcquireError, Mutex, Semaphore, channel, oneshot};
use dhaga::{Builder, Cancelled, Interrupt, JoinError, Runtime, ShuttingDown, SpawnError, WaitReason};

use crate::child;
use crate::common::{DEADLINE, within_deadline};

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a test can start a runtime")
}

fn loopback() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// Counts itself when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A runtime with one worker, kept busy until `release` is called.
struct Hogged {
    runtime: Runtime,
    hog: dhaga::JoinHandle<i32>,
    is_over: Arc<AtomicBool>,
}

fn hogged() -> Hogged {
    let runtime = runtime(1);
    let is_over = Arc::new(AtomicBool::new(false));
    let (started, has_started) = mpsc::channel();
    let seen = is_over.clone();
    let hog = runtime.spawn(move || {
        started.send(()).expect("the test waits");
        while !seen.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        7
    });
    has_started.recv_timeout(DEADLINE).expect("it starts");
    Hogged { runtime, hog, is_over }
}

/// Drops a runtime under one dhaga, once that has begun to wait.
fn end_of<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError<T>> {
    let runtime = runtime(1);
    let drops = Arc::new(AtomicUsize::new(0));
    let (started, has_started) = mpsc::channel();
    let guard = Counted(drops.clone());
    let handle = runtime.spawn(move || {
        let _guard = guard;
        started.send(()).expect("the test waits");
        wait()
    });
    has_started.recv_timeout(DEADLINE).expect("it starts");
    drop(runtime);
    assert_eq!(drops.load(Ordering::SeqCst), 1, "its values are dropped");
    handle.join()
}

fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Cancelled>())
}

fn is_told(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.get_ref().is_some_and(|inner| inner.is::<ShuttingDown>())
}

#[test]
fn waits_that_can_fail_are_cancelled() {
    fn check(wait: impl FnOnce() -> bool + Send + 'static) {
        assert!(matches!(end_of(wait), Ok(true)), "it goes on with an error");
    }
    within_deadline(DEADLINE, || {
        let (_sender, receiver) = channel::bounded::<()>(1);
        check(move || receiver.recv() == Err(RecvError::Interrupted(Interrupt::Cancelled)));
        let (sender, _receiver) = channel::rendezvous();
        check(move || sender.send(1) == Err(SendError::Interrupted(1, Interrupt::Cancelled)));
        let semaphore = Arc::new(Semaphore::new(0));
        check(move || semaphore.acquire_owned().err() == Some(AcquireError::Interrupted(Interrupt::Cancelled)));
        let (_go, gone) = oneshot::channel::<()>();
        let endless = dhaga::spawn(move || gone.recv());
        check(move || matches!(endless.join(), Err(JoinError::Stopped(Interrupt::Cancelled, _))));
        let (listener, address) = loopback();
        check(move || listener.accept().is_err_and(|error| is_told(&error)));
        let (listener, _) = loopback();
        let mut stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        check(move || stream.read(&mut [0]).is_err_and(|error| is_cancelled(&error)));
        assert!(TcpStream::connect(address).is_err(), "the listener went with its dhaga");
        let (go, gone) = mpsc::channel::<()>();
        check(move || {
            let ended = dhaga::blocking(move || gone.recv());
            matches!(
                ended,
                Err(JoinError::Stopped(Interrupt::Cancelled, _) | JoinError::Withdrawn(Interrupt::Cancelled))
            )
        });
        drop(go);
    });
}

#[test]
fn waits_that_cannot_fail_are_unwound() {
    fn check<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) {
        assert!(matches!(end_of(wait), Err(JoinError::Unwound)));
    }
    within_deadline(DEADLINE, || {
        check(|| dhaga::sleep(DEADLINE));
        check(|| {
            loop {
                dhaga::yield_now();
            }
        });
        let mutex = Arc::new(Mutex::new(1));
        let held = mutex.clone();
        let held = held.lock().expect("nobody panicked");
        check(move || mutex.lock().map(|guard| *guard).unwrap_or(0));
        drop(held);
        check(|| dhaga::scope(|s| s.spawn(|| dhaga::sleep(DEADLINE)).is_finished()));
    });
}

/// Each would go on for ever, and is unwound although it looks at no error.
#[test]
fn what_ignores_errors_is_unwound() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let (_sender, receiver) = channel::bounded::<()>(1);
        let (listener, _) = loopback();
        let (_go, gone) = oneshot::channel::<()>();
        let mut endless = dhaga::spawn(move || gone.recv());
        let ignorant: Vec<Box<dyn FnMut() + Send>> = vec![
            Box::new(move || assert!(receiver.recv().is_err())),
            Box::new(move || drop(listener.accept())),
            Box::new(|| drop(dhaga::blocking(|| ()))),
            Box::new(|| dhaga::checkpoint().unwrap_or_default()),
            Box::new(move || match std::mem::replace(&mut endless, dhaga::spawn(|| Ok(()))).join() {
                Err(JoinError::Stopped(_, handle)) => endless = handle,
                other => panic!("nobody ends it: {other:?}"),
            }),
        ];
        let handles: Vec<_> = ignorant
            .into_iter()
            .map(|mut ignores| {
                runtime.spawn(move || {
                    loop {
                        ignores();
                    }
                })
            })
            .collect();
        runtime.shutdown(Duration::ZERO).expect("all are unwound");
        for handle in handles {
            assert!(matches!(handle.join(), Err(JoinError::Unwound | JoinError::NeverRan)));
        }
    });
}

#[test]
fn what_has_not_started_never_runs_and_is_dropped() {
    within_deadline(DEADLINE, || {
        let Hogged { runtime, hog, is_over } = hogged();
        let drops = Arc::new(AtomicUsize::new(0));
        let handles: Vec<_> = (0..100)
            .map(|_| {
                let guard = Counted(drops.clone());
                runtime.spawn(move || drop(guard))
            })
            .collect();
        runtime.shutdown(Duration::ZERO).expect_err("the hog runs");
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(hog.join().expect("a hog that returns has returned"), 7);
        for handle in handles {
            assert!(matches!(handle.join(), Err(JoinError::NeverRan)));
        }
        assert_eq!(drops.load(Ordering::SeqCst), 100);
    });
}

#[test]
fn what_never_ran_is_dropped_in_a_dhaga_and_its_waits_are_thrown() {
    /// Waits longer than the test, wherever it is dropped.
    struct Waits(mpsc::Sender<bool>);
    impl Drop for Waits {
        fn drop(&mut self) {
            let _ = self.0.send(dhaga::current().is_dhaga());
            dhaga::sleep(2 * DEADLINE);
        }
    }
    within_deadline(DEADLINE, || {
        let Hogged { runtime, hog, is_over } = hogged();
        let (sender, dropped) = mpsc::channel();
        let waits = Waits(sender);
        let handle = runtime.spawn(move || drop(waits));
        runtime.shutdown(Duration::ZERO).expect_err("the hog runs");
        is_over.store(true, Ordering::SeqCst);
        hog.join().expect("it returns");
        assert!(matches!(handle.join(), Err(JoinError::NeverRan)));
        assert_eq!(dropped.recv_timeout(DEADLINE), Ok(true));
    });
}

#[test]
fn local_closures_that_never_ran_are_dropped_too() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let drops = Arc::new(AtomicUsize::new(0));
        let has_run = Arc::new(AtomicBool::new(false));
        let (spawned, has_spawned) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let (guard, runs) = (Counted(drops.clone()), has_run.clone());
        let hog = runtime.spawn(move || {
            drop(dhaga::spawn_local(move || {
                runs.store(true, Ordering::SeqCst);
                drop(guard);
            }));
            spawned.send(()).expect("the test waits");
            gone.recv_timeout(DEADLINE).expect("the test sends");
            // Longer than a batch, so that the order to stop is read before anything else starts.
            thread::sleep(Duration::from_millis(1));
        });
        has_spawned.recv_timeout(DEADLINE).expect("it starts");
        runtime.shutdown(Duration::ZERO).expect_err("the hog runs");
        go.send(()).expect("the hog waits");
        hog.join().expect("it ends");
        while drops.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(!has_run.load(Ordering::SeqCst));
    });
}

#[test]
fn whoever_catches_the_unwinding_is_thrown_again() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let (started, has_started) = mpsc::channel();
        let handle = runtime.spawn(move || {
            started.send(()).expect("the test waits");
            let waits: [fn(); 4] = [
                || dhaga::sleep(DEADLINE),
                dhaga::yield_now,
                || channel::bounded::<()>(1).1.recv().unwrap_or_default(),
                || Semaphore::new(0).acquire().map(drop).unwrap_or_default(),
            ];
            // Where no cancel reaches, so that it is unwound.
            dhaga::uncancellable(|| waits.map(|wait| catch_unwind(wait).is_err()))
        });
        has_started.recv_timeout(DEADLINE).expect("it starts");
        runtime.shutdown(Duration::ZERO).expect("it ends by itself");
        assert_eq!(handle.join().expect("it caught them all"), [true; 4]);
    });
}

#[test]
fn children_on_all_workers_are_gone_before_what_they_borrow() {
    const CHILDREN: usize = 100;
    type Log = Arc<StdMutex<Vec<&'static str>>>;
    struct Borrowed(Log, u64);
    impl Drop for Borrowed {
        fn drop(&mut self) {
            self.1 = 0;
            self.0.lock().expect("unpoisoned").push("borrowed");
        }
    }
    struct Child<'a>(&'a Borrowed);
    impl Drop for Child<'_> {
        fn drop(&mut self) {
            assert_eq!(self.0.1, 42, "what it borrows is still there");
            self.0.0.lock().expect("unpoisoned").push("child");
        }
    }
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let log: Log = Arc::default();
        let (homes, homes_seen) = mpsc::channel();
        let for_parent = log.clone();
        let parent = runtime.spawn(move || {
            let borrowed = Borrowed(for_parent, 42);
            dhaga::scope(|s| {
                for _ in 0..CHILDREN {
                    let (child, homes) = (Child(&borrowed), homes.clone());
                    s.spawn(move || {
                        let _child = child;
                        homes.send(thread::current().id()).expect("the test waits");
                        dhaga::sleep(DEADLINE);
                    });
                }
            });
        });
        let homes: std::collections::HashSet<_> =
            (0..CHILDREN).map(|_| homes_seen.recv_timeout(DEADLINE).expect("each child starts")).collect();
        assert_eq!(homes.len(), 2, "children live on both workers");
        runtime.shutdown(Duration::ZERO).expect("all unwind");
        assert!(matches!(parent.join(), Err(JoinError::Unwound)));
        let log = log.lock().expect("unpoisoned");
        assert_eq!(log.len(), CHILDREN + 1);
        assert_eq!(log.iter().position(|entry| *entry == "borrowed"), Some(CHILDREN));
    });
}

#[test]
fn unwinding_poisons_no_lock() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let mutex = Arc::new(Mutex::new(1));
        let (held, is_held) = mpsc::channel();
        let shared = mutex.clone();
        let handle = runtime.spawn(move || {
            let _guard = shared.lock().expect("nobody panicked");
            held.send(()).expect("the test waits");
            dhaga::sleep(DEADLINE);
        });
        is_held.recv_timeout(DEADLINE).expect("it is taken");
        drop(runtime);
        assert!(matches!(handle.join(), Err(JoinError::Unwound)));
        assert_eq!(*mutex.lock().expect("it is not poisoned"), 1);
    });
}

#[test]
fn to_drop_a_runtime_in_its_own_dhaga_panics_in_words() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let (sender, receiver) = oneshot::channel::<Runtime>();
        let handle = runtime.spawn(move || {
            let runtime = receiver.recv().expect("the test sends it");
            catch_unwind(AssertUnwindSafe(|| drop(runtime))).expect_err("it would wait for itself")
        });
        sender.send(runtime).expect("it waits");
        let panic = handle.join().expect("it caught the panic");
        let text = panic.downcast_ref::<&str>().expect("it panics in words");
        assert!(text.contains("inside one of its own dhagas"), "{text}");
    });
}

#[test]
fn a_runtime_is_shut_down_from_a_dhaga_of_another() {
    within_deadline(DEADLINE, || {
        let (outer, inner) = (runtime(1), runtime(2));
        let parked = inner.spawn(|| dhaga::sleep(DEADLINE));
        let ended = outer.spawn(move || inner.shutdown(Duration::ZERO));
        ended.join().expect("it ends").expect("all unwind");
        assert!(matches!(parked.join(), Err(JoinError::Unwound | JoinError::NeverRan)));
    });
}

#[test]
fn work_may_finish_within_the_grace() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let (go, gone) = channel::bounded::<()>(1);
        let work = runtime.spawn(move || {
            // Its own dhagas may be spawned still.
            let last = dhaga::spawn(|| 1);
            gone.recv().expect("it is not cancelled");
            assert!(dhaga::is_shutting_down());
            let pieces: Vec<_> = (0..100).map(|n| dhaga::spawn(move || n)).collect();
            let sum: i32 = pieces.into_iter().map(|piece| piece.join().expect("it runs")).sum();
            // With no handle to it.
            dhaga::spawn(|| dhaga::sleep(Duration::from_millis(20))).detach();
            sum + last.join().expect("it runs")
        });
        thread::scope(|threads| {
            threads.spawn(|| {
                while !runtime.is_shutting_down() {
                    thread::yield_now();
                }
                go.send(()).expect("it waits");
            });
            let began = Instant::now();
            runtime.shutdown(DEADLINE).expect("all ends by itself");
            assert!(began.elapsed() < DEADLINE / 2, "it waits no longer than for the work");
        });
        assert_eq!(work.join().expect("it finishes"), 4951);
        assert_eq!(runtime.tasks(), 0);
    });
}

#[test]
fn nothing_comes_in_from_outside_any_more() {
    within_deadline(DEADLINE, || {
        let (closing, other) = (Arc::new(runtime(1)), runtime(1));
        let (go, gone) = oneshot::channel::<()>();
        let work = closing.spawn(move || gone.recv());
        let ending = closing.clone();
        let ending = thread::spawn(move || ending.shutdown(DEADLINE));
        while !closing.is_shutting_down() {
            thread::yield_now();
        }
        let from_thread = Builder::new().spawn_on(&closing, || ());
        assert_eq!(from_thread.map(drop), Err(SpawnError::ShuttingDown));
        let target = closing.clone();
        let from_other = other.spawn(move || Builder::new().spawn_on(&target, || ()).map(drop));
        assert_eq!(from_other.join().expect("it ends"), Err(SpawnError::ShuttingDown));
        assert!(!other.is_shutting_down());
        go.send(()).expect("it waits");
        ending.join().expect("it ends").expect("all ends by itself");
        assert!(work.join().expect("it ends").is_ok());
        assert_eq!(Builder::new().spawn_on(&closing, || ()).map(drop), Err(SpawnError::ShuttingDown));
        closing.shutdown(DEADLINE).expect("there is nothing to do");
    });
}

#[test]
fn accepts_end_and_connections_go_on() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let (listener, address) = loopback();
        let mut client = std::net::TcpStream::connect(address).expect("it listens");
        let (accepted, is_accepted) = mpsc::channel();
        let serves = runtime.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client has come");
            let answers = dhaga::spawn(move || {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a byte comes");
                stream.write_all(&byte).expect("there is room");
            });
            accepted.send(()).expect("the test waits");
            // One is in its queue, and that is not accepted either.
            assert!(is_told(&listener.accept().expect_err("it ends")));
            assert!(is_told(&listener.accept().expect_err("it ends again")));
            assert!(listener.incoming().next().is_none());
            answers
        });
        let (other, _) = loopback();
        let loops = runtime.spawn(move || other.incoming().count());
        is_accepted.recv_timeout(DEADLINE).expect("it comes");
        thread::scope(|threads| {
            let ending = threads.spawn(|| runtime.shutdown(DEADLINE));
            let answers = serves.join().expect("it ends");
            assert_eq!(loops.join().expect("it ends"), 0);
            assert!(!ending.is_finished(), "the connection is still served");
            client.write_all(b"x").expect("there is room");
            client.read_exact(&mut [0]).expect("it is answered");
            answers.join().expect("it ends");
            ending.join().expect("it ends").expect("all ends by itself");
        });
    });
}

#[test]
fn the_background_holds_nothing_up() {
    within_deadline(DEADLINE, || {
        for workers in [1, 2, 4] {
            let runtime = runtime(workers);
            let (begun, has_begun) = mpsc::channel();
            let background: Vec<_> = (0..10)
                .map(|_| {
                    let begun = begun.clone();
                    let keeper = move || {
                        dhaga::spawn_local(|| ()).join().expect("it runs");
                        Builder::new().detached().spawn(|| dhaga::sleep(DEADLINE)).expect("there is room").detach();
                        begun.send(()).expect("the test waits");
                        dhaga::sleep(DEADLINE);
                    };
                    Builder::new().detached().spawn_on(&runtime, keeper).expect("there is room")
                })
                .collect();
            (0..10).for_each(|_| has_begun.recv_timeout(DEADLINE).expect("it begins"));
            let work = runtime.spawn(|| dhaga::sleep(Duration::from_millis(10)));
            let began = Instant::now();
            runtime.shutdown(DEADLINE).expect("what is left is cancelled");
            assert!(began.elapsed() < DEADLINE / 2);
            work.join().expect("it may finish");
            for keeper in background {
                assert!(matches!(keeper.join(), Err(JoinError::Unwound)));
            }
        }
    });
}

#[test]
fn what_starts_after_the_cancel_starts_cancelled() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let (_sender, receiver) = channel::bounded::<()>(1);
        let parent = runtime.spawn(move || {
            receiver.recv().expect_err("it is cancelled");
            let plain = dhaga::spawn(dhaga::checkpoint);
            let sleeps = dhaga::spawn(|| dhaga::sleep(DEADLINE));
            dhaga::uncancellable(|| (plain.join().expect("it runs"), matches!(sleeps.join(), Err(JoinError::Unwound))))
        });
        runtime.shutdown(Duration::from_millis(10)).expect("all ends by itself");
        assert_eq!(parent.join().expect("it ends"), (Err(Interrupt::Cancelled), true));
    });
}

#[test]
fn an_uncancellable_section_finishes() {
    within_deadline(DEADLINE, || {
        let (_sender, receiver) = channel::bounded::<()>(1);
        let ended = end_of(move || {
            receiver.recv().expect_err("it is cancelled");
            dhaga::uncancellable(|| {
                let began = Instant::now();
                dhaga::yield_now();
                dhaga::sleep(Duration::from_millis(20));
                began.elapsed()
            })
        });
        assert!(ended.expect("it ends by itself") >= Duration::from_millis(20));
    });
}

#[test]
fn a_loop_of_sleeps_ends_without_another_round() {
    within_deadline(DEADLINE, || {
        let ticks = Arc::new(AtomicUsize::new(0));
        let counted = ticks.clone();
        let ended = end_of(move || {
            loop {
                dhaga::sleep(DEADLINE);
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let _: Result<(), _> = ended;
        assert_eq!(ticks.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_scope_whose_dhagas_were_unwound_does_not_go_on() {
    within_deadline(DEADLINE, || {
        let went_on = Arc::new(AtomicBool::new(false));
        let noted = went_on.clone();
        let ended = end_of(move || {
            dhaga::scope(|s| {
                s.spawn(|| dhaga::sleep(DEADLINE));
            });
            noted.store(true, Ordering::SeqCst);
        });
        assert!(matches!(ended, Err(JoinError::Unwound)));
        assert!(!went_on.load(Ordering::SeqCst), "what it waited for was never done");
    });
}

/// A `Drop` that locks what another dhaga of the worker holds would end the process while its dhaga unwinds. So who holds
/// it is cancelled first, and gives it back.
#[test]
fn a_lock_held_across_a_wait_that_can_fail_is_released_before_anything_unwinds() {
    struct Locks(Arc<Mutex<u32>>);
    impl Drop for Locks {
        fn drop(&mut self) {
            *self.0.lock().expect("it is not poisoned") += 1;
        }
    }
    child::succeeds(
        child::name_of!(a_lock_held_across_a_wait_that_can_fail_is_released_before_anything_unwinds),
        || {
            let waits: [fn(); 3] = [
                || dhaga::sleep(DEADLINE),
                || loop {
                    dhaga::yield_now()
                },
                || oneshot::channel::<()>().1.recv().unwrap_or_default(),
            ];
            for (wait, holder_is_first) in waits.into_iter().flat_map(|wait| [(wait, true), (wait, false)]) {
                let runtime = runtime(1);
                let mutex = Arc::new(Mutex::new(0));
                let (begun, has_begun) = mpsc::channel();
                let (locks, begins) = (Locks(mutex.clone()), begun.clone());
                let dropper = move || {
                    let _locks = locks;
                    begins.send(()).expect("the test waits");
                    wait();
                };
                let (_sender, receiver) = channel::bounded::<()>(1);
                let held = mutex.clone();
                let holder = move || {
                    let _guard = held.lock().expect("it is not poisoned");
                    begun.send(()).expect("the test waits");
                    let _ = receiver.recv();
                };
                let begin = |f: Box<dyn FnOnce() + Send>| {
                    runtime.spawn(f).detach();
                    has_begun.recv_timeout(DEADLINE).expect("it begins");
                };
                if holder_is_first {
                    begin(Box::new(holder));
                    begin(Box::new(dropper));
                } else {
                    begin(Box::new(dropper));
                    begin(Box::new(holder));
                }
                drop(runtime);
                assert_eq!(*mutex.lock().expect("it is not poisoned"), 1);
            }
        },
    );
}

#[test]
fn the_report_names_who_is_stuck_and_where_a_hog_is() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let is_over = Arc::new(AtomicBool::new(false));
        let (hogs, has_hog) = mpsc::channel();
        let over = is_over.clone();
        let line = line!() + 1;
        let parent = Builder::new().name("parent").spawn_on(&runtime, move || {
            let (home, is_hogged) = (thread::current().id(), AtomicBool::new(false));
            dhaga::scope(|s| {
                // The first that starts on the other worker keeps it.
                while !is_hogged.load(Ordering::SeqCst) {
                    s.spawn(|| {
                        // Those at home wait, so that more are sent away.
                        while thread::current().id() == home && !is_hogged.load(Ordering::SeqCst) {
                            dhaga::sleep(Duration::from_millis(1));
                        }
                        if thread::current().id() != home && !is_hogged.swap(true, Ordering::SeqCst) {
                            hogs.send(thread::current().name().map(str::to_owned)).expect("the test waits");
                            while !over.load(Ordering::SeqCst) {
                                thread::yield_now();
                            }
                        }
                    });
                    dhaga::sleep(Duration::from_millis(1));
                }
            });
        });
        let hog = has_hog.recv_timeout(DEADLINE).expect("it begins").expect("a worker's thread has a name");
        let error = runtime.shutdown(Duration::ZERO).expect_err("the hog runs");
        let [stuck] = &error.stuck[..] else { panic!("one is known: {error}") };
        assert_eq!((stuck.name.as_deref(), stuck.wait), (Some("parent"), Some(WaitReason::Scope)));
        assert_eq!((stuck.spawn_site.file(), stuck.spawn_site.line()), (file!(), line));
        let hogged = 1 - stuck.worker;
        assert_eq!((error.workers, error.dhagas, &error.silent_workers), (2, 2, &vec![hogged]));
        assert!(hog.ends_with(&format!("-{hogged}")), "{hog} is worker {hogged}");
        let text = error.to_string();
        assert!(text.contains("\"parent\" (spawned at") && text.contains("waits (Scope)"), "{text}");
        is_over.store(true, Ordering::SeqCst);
        assert!(matches!(parent.expect("there was room").join(), Err(JoinError::Unwound)));
        runtime.shutdown(DEADLINE).expect("the second time all is gone");
    });
}

#[test]
fn of_many_that_are_stuck_some_are_named_and_all_are_counted() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let is_over = Arc::new(AtomicBool::new(false));
        const COUNT: usize = 100;
        let handles: Vec<_> = (0..COUNT)
            .map(|_| {
                let is_over = is_over.clone();
                // A scope waits for its dhagas also when it is to unwind, so this one gives way.
                runtime.spawn(move || {
                    while !is_over.load(Ordering::SeqCst) {
                        let _ = catch_unwind(|| {
                            dhaga::scope(|s| {
                                s.spawn(|| ());
                            })
                        });
                    }
                })
            })
            .collect();
        let error = runtime.shutdown(Duration::ZERO).expect_err("they catch it");
        assert_eq!(error.stuck.len(), dhaga::STUCK_REPORTED_MAX);
        // And perhaps what they have just spawned.
        assert!((COUNT..=2 * COUNT).contains(&error.dhagas), "{}", error.dhagas);
        is_over.store(true, Ordering::SeqCst);
        handles.into_iter().for_each(|handle| drop(handle.join()));
    });
}

#[test]
fn a_hog_makes_the_shutdown_fail_within_the_grace() {
    within_deadline(DEADLINE, || {
        let Hogged { runtime, hog, is_over } = hogged();
        let started = Instant::now();
        let error = runtime.shutdown(Duration::from_millis(20)).expect_err("the hog runs");
        assert_eq!((error.workers, error.dhagas, &error.silent_workers), (1, 1, &vec![0]));
        assert!(started.elapsed() < DEADLINE / 2);
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(hog.join().expect("it was left alone"), 7);
    });
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("the kernel tells").count()
}

/// Waits until a count is back at its old value; the test's deadline ends it otherwise.
fn falls_to(folder: &str, before: usize) {
    while count(folder) > before {
        thread::yield_now();
    }
}

#[test]
fn many_runtimes_leave_no_descriptors_threads_or_mappings() {
    child::succeeds(child::name_of!(many_runtimes_leave_no_descriptors_threads_or_mappings), || {
        let maps = || std::fs::read_to_string("/proc/self/maps").expect("the kernel tells").lines().count();
        let once = || {
            let runtime = runtime(2);
            let (listener, address) = loopback();
            let server = runtime.spawn(move || listener.accept().map(|_| ()));
            let client = runtime.spawn(move || TcpStream::connect(address).map(|_| ()));
            runtime.spawn(|| dhaga::sleep(DEADLINE)).detach();
            server.join().expect("it ends").expect("loopback works");
            client.join().expect("it ends").expect("loopback works");
        };
        for _ in 0..10 {
            once();
        }
        let (descriptors, threads, mappings) = (count("/proc/self/fd"), count("/proc/self/task"), maps());
        for _ in 0..200 {
            once();
        }
        falls_to("/proc/self/fd", descriptors);
        falls_to("/proc/self/task", threads);
        assert!(maps() < mappings + 40, "{} mappings were {mappings} before", maps());
    });
}

#[test]
fn a_runtime_that_gets_no_descriptors_is_an_error_and_leaves_none() {
    child::succeeds(child::name_of!(a_runtime_that_gets_no_descriptors_is_an_error_and_leaves_none), || {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let before = count("/proc/self/fd");
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = Some(before as u64 + 20);
        setrlimit(Resource::Nofile, limit).expect("a limit may be lowered");
        for _ in 0..20 {
            let error = Runtime::builder().workers(64).build().expect_err("64 workers need more descriptors");
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            falls_to("/proc/self/fd", before);
        }
        assert_eq!(runtime(2).spawn(|| 1).join().expect("these have enough"), 1);
    });
}

#[test]
fn a_socket_outlives_the_runtime_that_it_was_registered_with() {
    within_deadline(DEADLINE, || {
        let (listener, address) = loopback();
        let first = runtime(1);
        let opened = first.spawn(move || {
            let (server, client) = dhaga::scope(|s| {
                let client = s.spawn(move || TcpStream::connect(address).expect("it listens"));
                let (server, _) = listener.accept().expect("a client comes");
                (server, client.join().expect("it connects"))
            });
            // Both wait once, so that both are registered with this worker.
            dhaga::scope(|s| {
                for (mut reader, mut writer) in [(&client, &server), (&server, &client)] {
                    s.spawn(move || reader.read_exact(&mut [0]).expect("a byte comes"));
                    s.spawn(move || writer.write_all(b"x").expect("there is room"));
                }
            });
            (listener, server, client)
        });
        let (listener, server, client) = opened.join().expect("it ends");
        drop(first);
        let second = runtime(2);
        let ping = second.spawn(move || {
            dhaga::scope(|s| {
                let echo = s.spawn(|| {
                    let mut byte = [0];
                    (&server).read_exact(&mut byte).expect("a byte comes");
                    (&server).write_all(&byte).expect("there is room");
                });
                dhaga::yield_now();
                (&client).write_all(b"y").expect("there is room");
                let mut byte = [0];
                (&client).read_exact(&mut byte).expect("it comes back");
                echo.join().expect("it ends");
                let connects = s.spawn(|| TcpStream::connect(address).map(drop));
                listener.accept().expect("it still listens");
                connects.join().expect("it ends").expect("it listens");
                byte
            })
        });
        assert_eq!(ping.join().expect("it ends"), *b"y");
    });
}

#[test]
fn a_wait_moves_on_when_the_runtime_of_its_socket_ends() {
    within_deadline(DEADLINE, || {
        let (listener, address) = loopback();
        let (first, second) = (runtime(1), runtime(1));
        let client = std::net::TcpStream::connect(address).expect("it listens");
        let (server, _) = listener.accept().expect("a client has come");
        let server = Arc::new(server);
        let (begun, has_begun) = mpsc::channel();
        let reads = |server: Arc<TcpStream>| {
            let begun = begun.clone();
            move || {
                begun.send(()).expect("the test waits");
                (&*server).read(&mut [0])
            }
        };
        let home = first.spawn(reads(server.clone()));
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        let moves = second.spawn(reads(server));
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        drop(first);
        assert!(home.join().expect("it ends").is_err_and(|error| is_cancelled(&error)));
        (&client).write_all(b"z").expect("there is room");
        assert_eq!(moves.join().expect("it ends").expect("a byte comes"), 1);
    });
}

/// Computes, so that nobody else runs on this worker.
fn hog(until: Instant) {
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// The timer of an earlier wait rings in the accept: it is ready then, but has nothing to look at.
#[test]
fn an_accept_ends_with_the_shutdown_even_if_the_timer_of_an_earlier_wait_has_just_rung() {
    const SOON: Duration = Duration::from_millis(100);
    within_deadline(DEADLINE, || {
        let runtime = Arc::new(Runtime::builder().workers(1).build().expect("a test can start a runtime"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (begins, begun) = mpsc::channel();
        let accepts = runtime.spawn(move || {
            let rings = Instant::now() + SOON;
            dhaga::within(SOON, || {
                dhaga::spawn(move || TcpStream::connect(address).map(drop)).detach();
                listener.accept().map(drop)
            })
            .expect("somebody connects");
            // Both wait for the time at which the timer of that accept rings, this one a little less.
            let stops = dhaga::spawn(move || {
                dhaga::sleep(rings - Duration::from_millis(1) - Instant::now());
                begins.send(()).expect("the test listens");
                while !dhaga::is_shutting_down() {
                    std::hint::spin_loop();
                }
                hog(Instant::now() + Duration::from_millis(50));
            });
            let hogs = dhaga::spawn(move || {
                dhaga::sleep(rings - Duration::from_millis(20) - Instant::now());
                // The worker learns to look at the clock after each of them.
                for _ in 0..40 {
                    hog(Instant::now() + Duration::from_micros(200));
                    dhaga::yield_now();
                }
                hog(rings + Duration::from_millis(1));
            });
            let ended = dhaga::within(DEADLINE, || listener.accept()).expect_err("nobody else connects");
            drop((stops, hogs));
            ended
        });
        begun.recv().expect("it begins");
        // It ends by itself, long before it would be cancelled.
        let (began, grace) = (Instant::now(), DEADLINE / 4);
        runtime.shutdown(grace).expect("nothing is left");
        assert!(began.elapsed() < grace, "it was cancelled");
        let ended = accepts.join().expect("it ends well");
        assert!(is_told(&ended), "{ended:?}");
    });
}
