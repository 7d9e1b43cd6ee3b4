//! What a `Drop` may do while its thread unwinds from a panic: everything but switch.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::channel::{self, RecvError, RecvTimeoutError, SendError};
use dhaga::sync::{AcquireError, Interrupt, Mutex, Semaphore};
use dhaga::{JoinError, Panicking, turn};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

/// What `f` returns when a `Drop` calls it in the midst of a panic. The caller is fine afterwards.
pub fn while_panicking<R>(f: impl FnOnce() -> R) -> R {
    let mut result = None;
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _guard = OnDrop(Some(|| {
            assert!(thread::panicking());
            result = Some(f());
        }));
        panic!("on purpose");
    }));
    let payload = panic.expect_err("it panics");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"));
    dhaga::yield_now();
    assert_eq!(dhaga::spawn(|| 1).join().expect("others go on"), 1);
    result.expect("the guard was dropped")
}

/// A daemon outlives whoever read its messages. To panic over that within a panic would be an abort.
#[test]
fn a_panic_of_which_nobody_can_read_ends_its_dhaga_only() {
    let Some(mut command) =
        child::command(child::name_of!(a_panic_of_which_nobody_can_read_ends_its_dhaga_only), || {
            let ended = dhaga::spawn(|| panic!("on purpose")).join();
            assert!(matches!(ended, Err(JoinError::Panicked(_))));
        })
    else {
        return;
    };
    let (reader, unread) = io::pipe().expect("a test can make a pipe");
    drop(reader);
    let output = command.stderr(unread).output().expect("the test binary can be run again");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn waits_for_channels_are_refused_and_what_needs_no_wait_is_done() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded(1);
        assert_eq!(while_panicking(|| receiver.recv()), Err(RecvError::Interrupted(Interrupt::Panicking)));
        assert_eq!(
            while_panicking(|| receiver.recv_timeout(DEADLINE)),
            Err(RecvTimeoutError::Interrupted(Interrupt::Panicking))
        );
        assert_eq!(while_panicking(|| sender.send(1)), Ok(()));
        assert_eq!(while_panicking(|| sender.send(2)), Err(SendError::Interrupted(2, Interrupt::Panicking)));
        assert_eq!(while_panicking(|| receiver.recv()), Ok(1));
        let semaphore = Semaphore::new(1);
        assert!(while_panicking(|| semaphore.acquire().is_ok()));
        let held = semaphore.acquire().expect("a permit is free");
        assert_eq!(
            while_panicking(|| semaphore.acquire().map(drop)),
            Err(AcquireError::Interrupted(Interrupt::Panicking))
        );
        drop(held);
    });
}

#[test]
fn a_join_is_refused_and_gives_the_handle_back() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded(1);
        let handle = dhaga::spawn(move || receiver.recv());
        let Err(JoinError::Stopped(Interrupt::Panicking, handle)) = while_panicking(move || handle.join()) else {
            panic!("a join is a wait");
        };
        sender.send(3).expect("it waits");
        assert_eq!(handle.join().expect("it ends"), Ok(3));
        let refused = while_panicking(|| dhaga::blocking(|| 1));
        assert!(matches!(refused, Err(JoinError::Withdrawn(Interrupt::Panicking))), "{refused:?}");
    });
}

#[test]
fn sleep_and_yield_return_at_once() {
    everywhere(|| {
        let started = Instant::now();
        while_panicking(|| dhaga::sleep(DEADLINE));
        while_panicking(dhaga::yield_now);
        assert!(started.elapsed() < DEADLINE);
    });
}

#[test]
fn a_wait_for_a_socket_is_refused_and_what_needs_no_wait_is_done() {
    fn check(result: io::Result<usize>) {
        let error = result.expect_err("it would wait");
        assert_eq!(error.kind(), io::ErrorKind::Other);
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Panicking>()), "{error:?}");
    }
    everywhere(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        check(while_panicking(|| listener.accept().map(|_| 0)));
        let mut client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (mut server, _) = listener.accept().expect("a client has come");
        check(while_panicking(|| server.read(&mut [0; 8])));
        assert_eq!(while_panicking(|| client.write(b"bye")).expect("there is room"), 3);
        let mut bytes = [0; 3];
        assert_eq!(server.peek(&mut bytes).expect("it was sent"), 3);
        assert_eq!(while_panicking(|| server.read(&mut bytes)).expect("it is there"), 3);
        assert_eq!(&bytes, b"bye");
        let address = listener.local_addr().expect("it is bound");
        let connected = while_panicking(|| TcpStream::connect(address).map(|_| 0));
        if connected.is_err() {
            check(connected);
        }
    });
}

/// Whether `f` runs to its end on a worker other than the caller's.
fn on_another_worker(f: impl Fn() + Send + Sync + 'static) {
    let (f, home) = (Arc::new(f), thread::current().id());
    for worker in 0..turn::workers().expect("the caller is a dhaga") {
        let f = f.clone();
        turn::spawn_at(worker, move || {
            if thread::current().id() != home {
                f()
            }
        })
        .expect("there is room");
    }
}

/// A lock that `hold` holds somewhere else until shortly after the caller has begun to wait for it.
fn check_lock_held_elsewhere(hold: impl FnOnce(Arc<Mutex<i32>>, mpsc::Sender<()>, channel::Receiver<()>)) {
    let mutex = Arc::new(Mutex::new(0));
    let (held, is_held) = mpsc::channel();
    let (begin, has_begun) = channel::bounded(1);
    hold(mutex.clone(), held, has_begun);
    is_held.recv_timeout(DEADLINE).expect("the lock is taken");
    let value = while_panicking(|| {
        begin.send(()).expect("the holder waits");
        *mutex.lock().expect("nobody panicked with it")
    });
    assert_eq!(value, 1);
}

fn hold(mutex: &Mutex<i32>, held: &mpsc::Sender<()>, has_begun: &channel::Receiver<()>) {
    let mut guard = mutex.lock().expect("nobody panicked with it");
    held.send(()).expect("the test waits");
    has_begun.recv().expect("the test sends");
    // Long enough that the other really blocks; the test holds either way.
    dhaga::sleep(Duration::from_millis(20));
    *guard += 1;
}

#[test]
fn a_lock_held_by_another_worker_is_waited_for() {
    within_deadline(DEADLINE, || {
        let runtime = dhaga::Runtime::builder().workers(2).build().expect("a runtime");
        let body = || {
            check_lock_held_elsewhere(|mutex, held, has_begun| {
                on_another_worker(move || hold(&mutex, &held, &has_begun));
            });
        };
        runtime.spawn(body).join().expect("the body ends well");
    });
}

#[test]
fn a_lock_held_by_a_plain_thread_is_waited_for() {
    everywhere(|| {
        check_lock_held_elsewhere(|mutex, held, has_begun| {
            thread::spawn(move || hold(&mutex, &held, &has_begun));
        });
    });
}

#[test]
fn a_lock_held_on_the_same_worker_aborts_and_names_both() {
    let text = child::aborts(child::name_of!(a_lock_held_on_the_same_worker_aborts_and_names_both), || {
        let runtime = dhaga::Runtime::builder().workers(1).build().expect("a runtime");
        let mutex = Arc::new(Mutex::new(0));
        let (held, is_held) = channel::bounded(1);
        let for_ever = mutex.clone();
        let holder = move || {
            let _guard = for_ever.lock();
            held.send(()).expect("the other waits");
            dhaga::sleep(DEADLINE);
        };
        let holder = dhaga::Builder::new().name("the holder").spawn_on(&runtime, holder).expect("there is room");
        let unwinder = move || {
            is_held.recv().expect("the holder sends");
            while_panicking(|| drop(mutex.lock()));
        };
        let unwinder = dhaga::Builder::new().name("the unwinder").spawn_on(&runtime, unwinder).expect("there is room");
        unwinder.join().expect("it aborts first");
        drop(holder);
    });
    let Some(text) = text else { return };
    assert!(text.contains("\"the holder\"") && text.contains("\"the unwinder\""), "{text}");
    assert!(text.contains("waits for a mutex") && text.contains("same OS thread"), "{text}");
}

#[test]
fn a_scope_runs_inline() {
    everywhere(|| {
        let words = ["a".to_owned(), "b".to_owned()];
        let home = thread::current().id();
        let order = std::sync::Mutex::new(Vec::new());
        let joined = while_panicking(|| {
            dhaga::scope(|s| {
                let first = s.spawn(|| order.lock().expect("unpoisoned").push((&words[0], thread::current().id())));
                order.lock().expect("unpoisoned").push((&words[1], home));
                assert!(first.is_finished());
                let second = s.spawn(|| words.len());
                second.join().expect("it ran")
            })
        });
        assert_eq!(joined, 2);
        assert_eq!(*order.lock().expect("unpoisoned"), [(&words[0], home), (&words[1], home)]);
    });
}

#[test]
fn a_panic_inside_an_inline_scope_stays_inside() {
    everywhere(|| {
        let result = while_panicking(|| {
            catch_unwind(AssertUnwindSafe(|| {
                dhaga::scope(|s| {
                    let inner = s.spawn(|| panic!("inner"));
                    matches!(inner.join(), Err(JoinError::Panicked(panic)) if panic.message() == "inner")
                })
            }))
        });
        assert!(result.expect("the panic was joined"));
    });
}
