//! The end of a runtime: its dhagas unwind, what they borrow outlives them, and nothing is left over.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::{Mutex, Semaphore, channel, oneshot};
use dhaga::{JoinError, Runtime, ShutdownError};

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

#[test]
fn parked_dhagas_unwind_out_of_every_wait() {
    fn check<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) {
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
        runtime.shutdown(DEADLINE).expect("it unwinds");
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        assert!(matches!(handle.join(), Err(JoinError::Unwound)));
    }
    within_deadline(DEADLINE, || {
        check(|| dhaga::sleep(DEADLINE));
        check(|| {
            loop {
                dhaga::yield_now();
            }
        });
        let (_sender, receiver) = channel::bounded::<()>(1);
        check(move || receiver.recv());
        let (sender, _receiver) = channel::rendezvous();
        check(move || sender.send(1));
        let semaphore = Arc::new(Semaphore::new(0));
        check(move || semaphore.acquire_owned().map(drop));
        let mutex = Arc::new(Mutex::new(1));
        let held = mutex.clone();
        let held = held.lock().expect("nobody panicked");
        check(move || mutex.lock().map(|guard| *guard).unwrap_or(0));
        drop(held);
        let (_go, gone) = oneshot::channel::<()>();
        let endless = dhaga::spawn(move || gone.recv());
        check(move || endless.join().is_ok());
        let (listener, address) = loopback();
        check(move || listener.accept());
        let (listener, _) = loopback();
        let mut stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        check(move || stream.read(&mut [0]));
        assert!(TcpStream::connect(address).is_err(), "the listener went with its dhaga");
        check(|| dhaga::blocking(|| thread::sleep(Duration::from_millis(5))).map(|()| dhaga::sleep(DEADLINE)).is_ok());
        check(|| dhaga::scope(|s| s.spawn(|| dhaga::sleep(DEADLINE)).is_finished()));
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
            waits.map(|wait| catch_unwind(wait).is_err())
        });
        has_started.recv_timeout(DEADLINE).expect("it starts");
        runtime.shutdown(DEADLINE).expect("it ends by itself");
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
        runtime.shutdown(DEADLINE).expect("all unwind");
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
        let ended = outer.spawn(move || inner.shutdown(DEADLINE));
        ended.join().expect("it ends").expect("all unwind");
        assert!(matches!(parked.join(), Err(JoinError::Unwound | JoinError::NeverRan)));
    });
}

#[test]
fn a_hog_makes_the_shutdown_fail_within_the_grace() {
    within_deadline(DEADLINE, || {
        let Hogged { runtime, hog, is_over } = hogged();
        let started = Instant::now();
        let error = runtime.shutdown(Duration::from_millis(20)).expect_err("the hog runs");
        assert_eq!(error, ShutdownError { workers: 1, dhagas: 1 });
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
                (&*server).read(&mut [0]).expect("a byte comes")
            }
        };
        let home = first.spawn(reads(server.clone()));
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        let moves = second.spawn(reads(server));
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        drop(first);
        assert!(matches!(home.join(), Err(JoinError::Unwound)));
        (&client).write_all(b"z").expect("there is room");
        assert_eq!(moves.join().expect("it ends"), 1);
    });
}
