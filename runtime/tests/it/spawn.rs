//! Spawning, joining, cancelling, and on which thread what runs.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, panic_any};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::park::{self, Parked, WaitReason};
use dhaga::sync::{AcquireError, Semaphore, channel, oneshot};
use dhaga::turn::{self, AtEnd, OnReady};
use dhaga::{Builder, Cancelled, Interrupt, JoinError, JoinHandle, Runtime, SpawnError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a test can start a runtime")
}

/// Runs a body in a dhaga of a runtime of its own; fails when it fails, and when it hangs.
fn on_workers(workers: usize, body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, move || {
        let runtime = runtime(workers);
        runtime.spawn(body).join().expect("the body ends well");
    });
}

fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}

// Joining

#[test]
fn a_join_returns_what_the_dhaga_returned() {
    everywhere(|| {
        assert_eq!(dhaga::spawn(|| 6 * 7).join().expect("it ends well"), 42);
        let ended = dhaga::spawn(|| "text".to_owned());
        while !ended.is_finished() {
            dhaga::yield_now();
        }
        assert_eq!(ended.join().expect("it has ended"), "text");
    });
}

#[test]
fn a_panic_comes_back_with_message_and_payload() {
    fn check(body: fn(), message: &str) -> Box<dyn std::any::Any + Send> {
        match dhaga::spawn(body).join() {
            Err(JoinError::Panicked(panic)) => {
                assert_eq!(panic.message(), message);
                panic.into_payload()
            }
            other => panic!("expected a panic, not {other:?}"),
        }
    }
    everywhere(|| {
        check(|| panic!("plain text"), "plain text");
        check(|| panic!("number {}", 7), "number 7");
        let payload = check(|| panic_any(7_u64), "(a payload that is no text)");
        assert_eq!(payload.downcast_ref::<u64>(), Some(&7));
        let error = dhaga::spawn(|| panic!("why")).join().expect_err("it panics");
        assert_eq!(error.to_string(), "the dhaga panicked: why");
        assert_eq!(dhaga::spawn(|| 1).join().expect("its worker goes on"), 1);
    });
}

#[test]
fn a_join_with_a_timeout_gives_the_handle_back() {
    everywhere(|| {
        let (go, gone) = oneshot::channel();
        let handle = dhaga::spawn(move || gone.recv());
        assert!(!handle.is_finished());
        let Err(JoinError::Stopped(Interrupt::DeadlineExceeded { .. }, handle)) = handle.join_timeout(SHORT) else {
            panic!("it ended before it was told to");
        };
        go.send(5).expect("it waits");
        assert_eq!(handle.join_timeout(DEADLINE).expect("it ends"), Ok(5));
    });
}

#[test]
fn any_number_of_dhagas_wait_for_each_other_in_a_chain() {
    everywhere(|| {
        let mut last = dhaga::spawn(|| 0);
        for _ in 0..1000 {
            let before = last;
            last = dhaga::spawn(move || before.join().expect("the one before ends") + 1);
        }
        assert_eq!(last.join().expect("the chain ends"), 1000);
    });
}

/// Reports, when it is dropped, whether a dhaga drops it, and waits there, which a worker's own context refuses.
struct Dropped(mpsc::Sender<bool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        dhaga::yield_now();
        dhaga::sleep(Duration::from_micros(10));
        let _ = self.0.send(dhaga::current().is_dhaga());
    }
}

#[test]
fn what_nobody_joins_is_dropped_in_a_dhaga() {
    /// Every way in which a dhaga may end and its handle go: before it starts, while it runs.
    fn check(end: fn(Dropped) -> Dropped) {
        let (sender, dropped) = mpsc::channel();
        let runtime = runtime(1);
        let (free, is_freed) = mpsc::channel();
        let hog = runtime.spawn(move || is_freed.recv_timeout(DEADLINE));
        let value = Dropped(sender.clone());
        runtime.spawn(move || end(value)).detach();
        free.send(()).expect("the hog waits");
        assert_eq!(dropped.recv_timeout(DEADLINE), Ok(true), "detached before it started");
        hog.join().expect("it ends").expect("it was freed");
        let (running, is_running) = mpsc::channel();
        let (go, gone) = oneshot::channel();
        let value = Dropped(sender);
        let handle = runtime.spawn(move || {
            running.send(()).expect("the test waits");
            gone.recv().expect("the test sends");
            end(value)
        });
        is_running.recv_timeout(DEADLINE).expect("it runs");
        drop(handle);
        go.send(()).expect("it waits");
        assert_eq!(dropped.recv_timeout(DEADLINE), Ok(true), "detached while it ran");
    }
    within_deadline(DEADLINE, || {
        check(|value| value);
        check(|value| panic_any(value));
    });
}

#[test]
fn a_panic_in_the_drop_of_a_detached_result_harms_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    on_workers(1, || {
        dhaga::spawn(|| Bomb).detach();
        for _ in 0..10 {
            dhaga::yield_now();
        }
        assert_eq!(dhaga::spawn(|| 1).join().expect("the worker goes on"), 1);
    });
}

// Cancelling

/// What a wait returns that is cancelled while it waits, and one that is cancelled before it begins.
fn cancelled<R: Send + 'static>(wait: impl Fn() -> R + Send + Sync + 'static) -> [R; 2] {
    let wait = Arc::new(wait);
    let runtime = runtime(1);
    let conductor = runtime.spawn(move || {
        let (entered, has_entered) = channel::unbounded();
        let waiting = wait.clone();
        let parked = dhaga::spawn(move || {
            entered.send(()).expect("the conductor waits");
            waiting()
        });
        // There is one worker: when this returns, the other has run until it parked.
        has_entered.recv().expect("it sends");
        parked.cancel();
        let early = dhaga::spawn(move || wait());
        early.cancel();
        [parked, early].map(|handle| handle.join().expect("a cancelled wait returns"))
    });
    conductor.join().expect("the conductor ends well")
}

fn check_cancelled_io<T>(wait: impl Fn() -> io::Result<T> + Send + Sync + 'static) {
    for error in cancelled(move || wait().err().expect("it was cancelled")) {
        assert_eq!(error.kind(), io::ErrorKind::Other);
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Cancelled>()), "{error:?}");
    }
}

#[test]
fn a_cancel_ends_every_wait_that_can_fail() {
    within_deadline(DEADLINE, || {
        let (_sender, receiver) = channel::bounded::<u8>(1);
        assert_eq!(cancelled(move || receiver.recv()), [Err(channel::RecvError::Interrupted(Interrupt::Cancelled)); 2]);

        let (sender, _receiver) = channel::rendezvous();
        assert_eq!(
            cancelled(move || sender.send(1)),
            [Err(channel::SendError::Interrupted(1, Interrupt::Cancelled)); 2]
        );

        let semaphore = Semaphore::new(0);
        assert_eq!(
            cancelled(move || semaphore.acquire().map(drop)),
            [Err(AcquireError::Interrupted(Interrupt::Cancelled)); 2]
        );

        let joins = cancelled(|| {
            let (go, gone) = oneshot::channel::<()>();
            let endless = dhaga::spawn(move || gone.recv());
            let stopped = matches!(endless.join(), Err(JoinError::Stopped(Interrupt::Cancelled, _)));
            drop(go);
            stopped
        });
        assert_eq!(joins, [true; 2]);
        assert_eq!(
            cancelled(|| matches!(
                dhaga::blocking(|| thread::sleep(SHORT)),
                Err(JoinError::Stopped(Interrupt::Cancelled, _) | JoinError::Withdrawn(Interrupt::Cancelled))
            )),
            [true; 2]
        );
        // These go on or return early, and say nothing.
        cancelled(|| dhaga::sleep(DEADLINE));
        cancelled(dhaga::yield_now);
    });
}

#[test]
fn a_cancelled_wait_for_a_socket_is_an_error_of_kind_other() {
    within_deadline(DEADLINE, || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        check_cancelled_io(move || listener.accept());

        let silent = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let stream = TcpStream::connect(silent.local_addr().expect("it is bound")).expect("it listens");
        let read = stream.try_clone().expect("it is shared");
        check_cancelled_io(move || (&read).read(&mut [0; 8]));
        check_cancelled_io(move || io::copy(&mut io::repeat(0), &mut &stream));
    });
}

#[test]
fn a_cancelled_dhaga_is_refused_even_what_is_there() {
    on_workers(1, || {
        let (sender, receiver) = channel::unbounded();
        sender.send(1).expect("the receiver is here");
        let handle = dhaga::spawn(move || (receiver.recv(), receiver.try_recv()));
        handle.cancel();
        let interrupted = channel::RecvError::Interrupted(Interrupt::Cancelled);
        assert_eq!(handle.join().expect("it ends"), (Err(interrupted), Ok(1)));
    });
}

#[test]
fn a_cancel_reaches_the_dhagas_of_a_scope_but_not_plain_ones() {
    on_workers(2, || {
        let (go, gone) = oneshot::channel();
        let handle = dhaga::spawn(move || {
            let plain = dhaga::spawn(move || gone.recv());
            let semaphore = Semaphore::new(0);
            let scoped = dhaga::scope(|s| {
                let child = s.spawn(|| semaphore.acquire().map(drop));
                while !child.is_finished() {
                    dhaga::yield_now();
                }
                semaphore.acquire().map(drop)
            });
            (scoped, plain)
        });
        handle.cancel();
        let (scoped, plain) = handle.join().expect("it ends");
        assert_eq!(scoped, Err(AcquireError::Interrupted(Interrupt::Cancelled)));
        go.send(3).expect("it still waits");
        assert_eq!(plain.join().expect("it ends"), Ok(3));
    });
}

#[test]
fn a_loop_of_sleeps_in_a_cancelled_dhaga_starves_nobody() {
    on_workers(1, || {
        let is_done = Arc::new(AtomicBool::new(false));
        let seen = is_done.clone();
        let loops = dhaga::spawn(move || {
            while !seen.load(Ordering::SeqCst) {
                dhaga::sleep(DEADLINE);
            }
        });
        loops.cancel();
        dhaga::sleep(SHORT);
        is_done.store(true, Ordering::SeqCst);
        loops.join().expect("it ends");
    });
}

// How a dhaga is spawned

#[test]
fn a_local_dhaga_needs_no_send() {
    on_workers(2, || {
        let shared = Rc::new(Cell::new(1));
        let thread = thread::current().id();
        let copy = shared.clone();
        let handle = dhaga::spawn_local(move || {
            dhaga::yield_now();
            copy.set(copy.get() + 1);
            (copy, thread::current().id())
        });
        let (copy, there) = handle.join().expect("it ends");
        assert_eq!((copy.get(), there), (2, thread));
        assert!(Rc::ptr_eq(&copy, &shared));
    });
}

#[test]
fn a_local_dhaga_on_a_plain_thread_is_an_error_in_words() {
    let error = Builder::new().spawn_local(|| ()).expect_err("a plain thread has no worker");
    assert_eq!(error, SpawnError::NoWorker);
    let panic = catch_unwind(|| dhaga::spawn_local(|| ())).expect_err("the short form panics");
    let text = panic.downcast_ref::<String>().expect("a panic in words");
    assert!(text.contains("plain thread"), "{text}");
}

#[test]
fn a_dhaga_knows_its_name_and_where_it_was_spawned() {
    everywhere(|| {
        let me = || dhaga::current();
        let named = Builder::new().name("indexer").spawn(me).expect("there is room");
        assert_eq!(named.dhaga().name(), Some("indexer"));
        let (named, line) = (named.join().expect("it ends"), line!() - 2);
        let site = named.spawn_site().expect("it is a dhaga");
        assert_eq!((named.name(), site.file(), site.line()), (Some("indexer"), file!(), line));
        let unnamed = dhaga::spawn(me).join().expect("it ends");
        assert!(unnamed.is_dhaga() && unnamed.name().is_none());
        assert_eq!(unnamed.spawn_site().map(Location::line), Some(line!() - 2));
    });
    let thread = thread::Builder::new().name("plain".into()).spawn(dhaga::current).expect("a thread");
    let plain = thread.join().expect("it ends");
    assert_eq!((plain.name(), plain.is_dhaga(), plain.spawn_site()), (Some("plain"), false, None));
}

#[test]
fn a_stack_may_be_as_large_as_asked_for() {
    fn depth(levels: usize) -> usize {
        let frame = std::hint::black_box([1_u8; 1024]);
        if levels == 0 { 0 } else { depth(levels - 1) + usize::from(frame[levels % 1024]) }
    }
    everywhere(|| {
        let deep = Builder::new().stack_size(16 << 20).spawn(|| depth(4000)).expect("there is room");
        assert_eq!(deep.join().expect("it fits"), 4000);
        for bytes in [1, 4096, usize::MAX] {
            let error = Builder::new().stack_size(bytes).spawn(|| ()).expect_err("no stack is like that");
            assert_eq!(error, SpawnError::StackSize { bytes });
        }
    });
    let error = Runtime::builder().stack_size(1).build().expect_err("no stack is like that");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn the_limit_of_dhagas_is_an_error_and_room_comes_back() {
    fn check(workers: usize, limit: usize, in_dhaga: bool) {
        let runtime = Runtime::builder().workers(workers).tasks_max(limit).build().expect("a runtime");
        let body = move |spawn: &dyn Fn(oneshot::Receiver<()>) -> Result<JoinHandle<()>, SpawnError>, room: usize| {
            for _ in 0..5 {
                let (mut senders, mut handles) = (Vec::new(), Vec::new());
                loop {
                    let (sender, receiver) = oneshot::channel::<()>();
                    match spawn(receiver) {
                        Ok(handle) => handles.push(handle),
                        Err(error) => assert_eq!(error, SpawnError::TooMany { limit }),
                    }
                    senders.push(sender);
                    // Up to an eighth may be held back; and room is free only a moment after its dhaga was joined.
                    if handles.len() < senders.len() && handles.len() >= (room * 7).div_ceil(8) {
                        break;
                    }
                    assert!(handles.len() <= room, "{} of {room}", handles.len());
                    dhaga::yield_now();
                }
                drop(senders);
                handles.into_iter().for_each(|handle| handle.join().expect("it ends"));
            }
        };
        let waits = |receiver: oneshot::Receiver<()>| move || receiver.recv().unwrap_or_default();
        if in_dhaga {
            let inside = move || body(&|receiver| Builder::new().spawn(waits(receiver)), limit - 1);
            runtime.spawn(inside).join().expect("the body ends well");
        } else {
            body(&|receiver| Builder::new().spawn_on(&runtime, waits(receiver)), limit);
        }
    }
    within_deadline(DEADLINE, || {
        for workers in [1, 2] {
            for limit in [1, 2, 10, 64, 1000] {
                check(workers, limit, false);
                if limit > 1 {
                    check(workers, limit, true);
                }
            }
        }
    });
}

/// Has something dropped on a worker's own context, where a dhaga must do it.
struct DropsAtEnd(Arc<AtomicUsize>);

impl AtEnd for DropsAtEnd {
    fn at_end(self: Arc<Self>) {
        turn::drop_in_dhaga(Counted(self.0.clone()));
    }
}

/// Adds one when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_is_dropped_in_dhagas_of_their_own_leaves_the_limit_as_it_is() {
    const LIMIT: usize = 16;
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).tasks_max(LIMIT).build().expect("a runtime");
        let drop_many = || {
            let dropped = Arc::new(AtomicUsize::new(0));
            for _ in 0..10 * LIMIT {
                turn::at_end(Arc::new(DropsAtEnd(dropped.clone())));
            }
            while dropped.load(Ordering::SeqCst) < 10 * LIMIT {
                dhaga::yield_now();
            }
        };
        runtime.spawn(drop_many).join().expect("nothing of it is refused");
        let (release, released) = channel::bounded::<()>(1);
        let wait = || {
            Builder::new().spawn_on(&runtime, {
                let released = released.clone();
                move || released.recv().unwrap_or_default()
            })
        };
        let waiting: Vec<_> = (0..10 * LIMIT).map_while(|_| wait().ok()).collect();
        assert!((1..=LIMIT).contains(&waiting.len()), "{} of {LIMIT}", waiting.len());
        drop(release);
        waiting.into_iter().for_each(|handle| handle.join().expect("it ends"));
    });
}

/// Leaves this process so many bytes of address space more than it uses.
fn limit_address_space(room: u64) {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .expect("the kernel tells the size");
    let limit = Rlimit { current: Some(pages * 4096 + room), maximum: getrlimit(Resource::As).maximum };
    setrlimit(Resource::As, limit).expect("a limit may be lowered");
}

#[test]
fn a_runtime_that_gets_no_threads_is_an_error() {
    child::succeeds_with_large_threads(child::name_of!(a_runtime_that_gets_no_threads_is_an_error), || {
        // Room for some threads, and then, when there is none for one more, still enough for everything else.
        limit_address_space(child::THREAD_BYTES * 7 / 2);
        Runtime::builder().workers(64).build().expect_err("64 threads take more than that");
    });
}

#[test]
fn a_scope_does_not_hide_that_a_dhaga_never_ran() {
    child::succeeds(child::name_of!(a_scope_does_not_hide_that_a_dhaga_never_ran), || {
        let runtime = runtime(1);
        let body = || {
            limit_address_space(64 << 20);
            let gate = Semaphore::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                dhaga::scope(|s| {
                    let handles: Vec<_> = (0..2000).map(|_| s.spawn(|| gate.acquire().map(drop))).collect();
                    // None of those before it ends, so there is no memory for the last.
                    let last = handles.last().expect("there are many");
                    while !last.is_finished() {
                        dhaga::yield_now();
                    }
                    gate.close();
                    assert!(matches!(
                        handles.into_iter().next_back().map(|last| last.join()),
                        Some(Err(JoinError::NeverRan))
                    ));
                });
            }));
            let panic = result.expect_err("memory for 2000 stacks is not there");
            let text = panic.downcast_ref::<&str>().expect("it panics in words");
            assert!(text.contains("never ran"), "{text}");
        };
        runtime.spawn(body).join().expect("the body ends well");
    });
}

// Where it runs

thread_local! {
    static MARK: Cell<Option<ThreadId>> = const { Cell::new(None) };
}

#[test]
fn thread_locals_stay_valid_across_waits() {
    const DHAGAS: usize = 30_000;
    fn check(home: ThreadId) {
        assert_eq!(thread::current().id(), home);
        assert_eq!(MARK.get(), Some(home));
    }
    on_workers(2, || {
        let gate = Arc::new(Semaphore::new(0));
        let handles: Vec<_> = (0..DHAGAS)
            .map(|index| {
                let gate = gate.clone();
                dhaga::spawn(move || {
                    let home = thread::current().id();
                    MARK.set(Some(home));
                    let waits: [&dyn Fn(); 3] =
                        [&dhaga::yield_now, &|| drop(gate.acquire().expect("it is never closed")), &|| {
                            dhaga::sleep(Duration::from_micros(index as u64 % 2000))
                        }];
                    for turn in 0..waits.len() {
                        waits[(turn + index) % waits.len()]();
                        check(home);
                    }
                    home
                })
            })
            .collect();
        gate.add_permits(2);
        let mut homes = HashMap::new();
        for handle in handles {
            *homes.entry(handle.join().expect("it ends well")).or_insert(0) += 1;
        }
        assert_eq!(homes.len(), 2, "both workers took part: {homes:?}");
    });
}

/// The threads on which something has run, for those who wait until it is more than one.
#[derive(Default)]
struct Threads(Mutex<HashSet<ThreadId>>);

impl Threads {
    fn note(&self) -> usize {
        let mut threads = self.0.lock().expect("nobody panics with it");
        threads.insert(thread::current().id());
        threads.len()
    }
}

#[test]
fn idle_workers_steal_what_has_not_started() {
    on_workers(2, || {
        let threads = Arc::new(Threads::default());
        // Each computes until another runs on the other worker. Without a thief the first would never end.
        let handles: Vec<_> = (0..64)
            .map(|_| {
                let threads = threads.clone();
                dhaga::spawn(move || while threads.note() < 2 {})
            })
            .collect();
        // Longer than a batch: at its end the others are shared.
        spin(Duration::from_millis(1));
        dhaga::yield_now();
        handles.into_iter().for_each(|handle| handle.join().expect("it ends"));
    });
}

#[test]
fn a_burst_of_spawns_runs_on_all_workers() {
    const DHAGAS: usize = 10_000;
    on_workers(2, || {
        let (threads, ended) = (Arc::new(Threads::default()), Arc::new(AtomicUsize::new(0)));
        let (done, all_done) = oneshot::channel();
        let done = Arc::new(Mutex::new(Some(done)));
        for _ in 0..DHAGAS {
            let (threads, ended, done) = (threads.clone(), ended.clone(), done.clone());
            dhaga::spawn(move || {
                while threads.note() < 2 {
                    dhaga::yield_now();
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == DHAGAS {
                    let done = done.lock().expect("nobody panics with it").take().expect("there is one last");
                    done.send(()).expect("the test waits");
                }
            })
            .detach();
        }
        all_done.recv().expect("the last one sends");
    });
}

#[test]
fn dhagas_that_stay_are_spread_over_the_workers() {
    const DHAGAS: usize = 1000;
    on_workers(2, || {
        let gate = Arc::new(Semaphore::new(0));
        let (started, has_started) = channel::unbounded();
        for _ in 0..DHAGAS {
            let (gate, started) = (gate.clone(), started.clone());
            dhaga::spawn(move || {
                started.send(thread::current().id()).expect("the test waits");
                drop(gate.acquire());
            })
            .detach();
        }
        let mut homes = HashMap::new();
        for _ in 0..DHAGAS {
            *homes.entry(has_started.recv().expect("each sends")).or_insert(0) += 1;
        }
        gate.close();
        assert!(homes.len() == 2 && homes.values().all(|&count| count >= DHAGAS * 3 / 10), "{homes:?}");
    });
}

// Fairness

#[test]
fn a_storm_of_yields_starves_nobody() {
    on_workers(1, || {
        let is_over = Arc::new(AtomicBool::new(false));
        let storm: Vec<_> = (0..100)
            .map(|_| {
                let is_over = is_over.clone();
                dhaga::spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        dhaga::yield_now()
                    }
                })
            })
            .collect();
        let sleeps = dhaga::spawn(|| (0..20).for_each(|_| dhaga::sleep(Duration::from_millis(1))));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let echo = dhaga::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok::<_, io::Error>(())
        });
        let client = dhaga::spawn(move || {
            let mut stream = TcpStream::connect(address)?;
            for round in 0..100 {
                stream.write_all(&[round])?;
                stream.read_exact(&mut [0])?;
            }
            Ok::<_, io::Error>(())
        });
        let (sender, receiver) = channel::unbounded();
        let outside = thread::spawn(move || (0..100).for_each(|n| sender.send(n).expect("it listens")));
        assert_eq!(receiver.iter().count(), 100);
        for _ in 0..100 {
            dhaga::spawn(|| ()).join().expect("it starts");
        }
        sleeps.join().expect("timers go on");
        client.join().expect("sockets go on").expect("loopback works");
        echo.join().expect("sockets go on").expect("loopback works");
        outside.join().expect("it ends");
        is_over.store(true, Ordering::Relaxed);
        storm.into_iter().for_each(|handle| handle.join().expect("it ends"));
    });
}

#[test]
fn a_batch_of_heavy_dhagas_ends_by_time_not_by_number() {
    const HEAVY: usize = 64;
    on_workers(1, || {
        let ran = Arc::new(AtomicUsize::new(0));
        let seen = ran.clone();
        let sleeper = dhaga::spawn(move || {
            dhaga::sleep(Duration::from_millis(1));
            seen.load(Ordering::SeqCst)
        });
        dhaga::yield_now();
        // Many quick ones first: the worker has learned to look at the clock rarely.
        for _ in 0..200 {
            dhaga::yield_now();
        }
        for _ in 0..HEAVY {
            let ran = ran.clone();
            dhaga::spawn(move || {
                spin(Duration::from_millis(1));
                ran.fetch_add(1, Ordering::SeqCst);
            })
            .detach();
        }
        let ran_before = sleeper.join().expect("it ends");
        assert!(ran_before <= 36, "{ran_before} heavy dhagas ran before a timer that was over after the first");
    });
}

#[test]
fn an_answer_goes_before_those_who_were_ready_before() {
    on_workers(1, || {
        let (ask, asked) = channel::bounded::<usize>(1);
        let (answer, answered) = channel::bounded(1);
        let echo = dhaga::spawn(move || asked.iter().try_for_each(|value| answer.send(value)));
        let (is_over, yields) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let storm = yield_storm(&is_over, &yields, 100);
        while yields.load(Ordering::Relaxed) < 1000 {
            dhaga::yield_now();
        }
        let before = yields.load(Ordering::Relaxed);
        ask.send(1).expect("the echo lives");
        answered.recv().expect("and answers");
        let others = yields.load(Ordering::Relaxed) - before;
        assert!(others < 100, "{others} turns of others went before two hand-offs");
        is_over.store(true, Ordering::Relaxed);
        storm.into_iter().for_each(|handle| handle.join().expect("it ends"));
        drop(ask);
        echo.join().expect("it ends").expect("we heard each answer");
    });
}

#[test]
fn two_who_wake_each_other_keep_nobody_out() {
    on_workers(1, || {
        let (ask, asked) = channel::bounded::<usize>(1);
        let (answer, answered) = channel::bounded(1);
        let echo = dhaga::spawn(move || asked.iter().try_for_each(|value| answer.send(value)));
        let is_over = Arc::new(AtomicBool::new(false));
        let is_asked_off = is_over.clone();
        let asker = dhaga::spawn(move || {
            while !is_asked_off.load(Ordering::Relaxed) {
                ask.send(1).expect("the echo lives");
                answered.recv().expect("and answers");
            }
        });
        for _ in 0..1000 {
            dhaga::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
        asker.join().expect("it ends");
        echo.join().expect("it ends").expect("the asker heard each answer");
    });
}

#[test]
fn those_who_compute_and_sleep_keep_nobody_out() {
    on_workers(1, || {
        let is_over = Arc::new(AtomicBool::new(false));
        // Each is late by the time when the others have run.
        let late: Vec<_> = (0..3)
            .map(|_| {
                let is_over = is_over.clone();
                dhaga::spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        spin(Duration::from_millis(1));
                        dhaga::sleep(Duration::from_micros(100));
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            dhaga::yield_now();
            dhaga::spawn(|| ()).join().expect("it starts");
        }
        is_over.store(true, Ordering::Relaxed);
        late.into_iter().for_each(|handle| handle.join().expect("it ends"));
    });
}

/// Dhagas that yield until it is over, and count their turns.
fn yield_storm(is_over: &Arc<AtomicBool>, yields: &Arc<AtomicUsize>, count: usize) -> Vec<JoinHandle<()>> {
    let storm = (0..count).map(|_| {
        let (is_over, yields) = (is_over.clone(), yields.clone());
        dhaga::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                yields.fetch_add(1, Ordering::Relaxed);
                dhaga::yield_now();
            }
        })
    });
    storm.collect()
}

// Parking

#[test]
fn a_wake_that_comes_first_is_saved_and_two_are_one() {
    everywhere(|| {
        let me = park::unparker();
        me.unpark();
        me.unpark();
        assert_eq!(park::park_until(WaitReason::Park, None), Parked::Woken);
        let deadline = Instant::now() + SHORT;
        while park::park_until(WaitReason::Park, Some(deadline)) == Parked::Woken {}
        assert!(Instant::now() >= deadline);
    });
}

#[test]
fn a_wake_comes_from_any_thread_and_late_ones_do_nothing() {
    everywhere(|| {
        let (sender, receiver) = mpsc::channel();
        let is_set = Arc::new(AtomicBool::new(false));
        let seen = is_set.clone();
        let sleeper = dhaga::spawn(move || {
            sender.send(park::unparker()).expect("the test waits");
            while !seen.load(Ordering::SeqCst) {
                park::park(WaitReason::Park);
            }
        });
        let unparker = loop {
            match receiver.try_recv() {
                Ok(unparker) => break unparker,
                Err(_) => dhaga::yield_now(),
            }
        };
        is_set.store(true, Ordering::SeqCst);
        unparker.unpark();
        sleeper.join().expect("it was woken");
        unparker.unpark();
        assert_eq!(dhaga::spawn(|| 1).join().expect("its slot is used again"), 1);
    });
}

// The worker's own context

/// What a callback was refused with.
fn refusal(wait: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(wait)).expect_err("a worker's own context cannot wait");
    panic.downcast_ref::<String>().expect("it panics in words").clone()
}

struct Waits {
    stream: Option<TcpStream>,
    refusals: mpsc::Sender<String>,
}

impl Waits {
    fn report(&self) {
        let (_sender, receiver) = channel::bounded::<()>(1);
        let _ = self.refusals.send(refusal(|| receiver.recv().unwrap_or_default()));
        let _ = self.refusals.send(refusal(|| dhaga::sleep(SHORT)));
        let _ = self.refusals.send(refusal(|| drop(dhaga::spawn(|| ()).join())));
    }
}

impl AtEnd for Waits {
    fn at_end(self: Arc<Self>) {
        self.report();
    }
}

impl OnReady for Waits {
    fn on_ready(self: Arc<Self>) {
        turn::stop_on_ready(self.stream.as_ref().expect("it watches one"));
        self.report();
    }
}

#[test]
fn a_wait_on_a_workers_own_context_panics_in_words() {
    fn check(refused: &mpsc::Receiver<String>) {
        for reason in ["Recv", "Sleep", "Join"] {
            let text = refused.recv_timeout(DEADLINE).expect("the callback was called");
            assert!(text.contains("a worker's own context") && text.contains(reason), "{text}");
        }
    }
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let (refusals, refused) = mpsc::channel();
        let at_end = Arc::new(Waits { stream: None, refusals: refusals.clone() });
        runtime.spawn(|| turn::at_end(at_end)).join().expect("it ends");
        check(&refused);

        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let watcher = runtime.spawn(move || {
            let stream = TcpStream::connect(address).expect("it listens");
            let watched = stream.try_clone().expect("it is shared");
            let callback = Arc::new(Waits { stream: Some(stream), refusals });
            turn::on_ready(&watched, callback).expect("this is a worker");
        });
        watcher.join().expect("it ends");
        listener.accept().expect("it connects").0.write_all(b"x").expect("it takes a byte");
        check(&refused);
        assert_eq!(runtime.spawn(|| 1).join().expect("the worker goes on"), 1);
    });
}
