//! What goes last: the values of a context, the links of a scope. Their `Drop` is user code, and may do what any may.

use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhaga::sync::oneshot;
use dhaga::{ContextKey, Runtime};

use crate::child;
use crate::common::{DEADLINE, within_deadline};

/// Runs a closure as it is dropped.
struct AtDrop(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl AtDrop {
    fn new(f: impl FnOnce() + Send + 'static) -> Self {
        Self(Mutex::new(Some(Box::new(f))))
    }
}

impl Drop for AtDrop {
    fn drop(&mut self) {
        let f = self.0.lock().expect("nobody panicked").take();
        f.expect("it is dropped once")();
    }
}

/// What the pool has at most.
const POOL_THREADS_MAX: usize = 512;

static VALUE: ContextKey<AtDrop> = ContextKey::new();

/// Sends the name of what runs it, after `f`.
fn reports(f: impl FnOnce() + Send + 'static) -> (AtDrop, Receiver<bool>) {
    let (sender, receiver): (Sender<bool>, _) = channel();
    let value = AtDrop::new(move || {
        f();
        let _ = sender.send(dhaga::current().is_dhaga());
    });
    (value, receiver)
}

/// A value whose last owner is a dhaga that nobody joins.
fn left_to_a_detached_dhaga(value: AtDrop) {
    let (go, gone) = oneshot::channel();
    VALUE.with(value, || dhaga::spawn(move || gone.recv()).detach());
    go.send(()).expect("it waits");
}

#[test]
fn the_last_owner_of_a_value_is_a_dhaga_until_it_has_dropped_it() {
    within_deadline(DEADLINE, || {
        let (value, dropped_in_dhaga) = reports(|| dhaga::sleep(Duration::from_millis(1)));
        left_to_a_detached_dhaga(value);
        assert_eq!(dropped_in_dhaga.recv(), Ok(true));
    });
}

#[test]
fn a_value_that_panics_as_it_is_dropped_harms_nobody() {
    child::succeeds(child::name_of!(a_value_that_panics_as_it_is_dropped_harms_nobody), || {
        let (value, dropped) = reports(|| ());
        let value = AtDrop::new(move || {
            drop(value);
            std::panic::resume_unwind(Box::new(()));
        });
        left_to_a_detached_dhaga(value);
        assert!(dropped.recv().is_ok());
        assert_eq!(dhaga::spawn(|| 1).join().expect("the workers live"), 1);
    });
}

dhaga::local! {
    static LATE: RefCell<Option<AtDrop>> = RefCell::new(None);
}

#[test]
fn a_local_that_is_made_as_a_value_is_dropped_goes_in_its_dhaga() {
    child::succeeds(child::name_of!(a_local_that_is_made_as_a_value_is_dropped_goes_in_its_dhaga), || {
        let (late, dropped_in_dhaga) = reports(|| dhaga::sleep(Duration::from_millis(1)));
        left_to_a_detached_dhaga(AtDrop::new(move || LATE.set(Some(late))));
        assert_eq!(dropped_in_dhaga.recv(), Ok(true));
    });
}

#[test]
fn values_of_dhagas_that_ended_are_gone_with_their_scope() {
    within_deadline(DEADLINE, || {
        let shared = Arc::new(AtDrop::new(|| ()));
        let seen = shared.clone();
        let alive = dhaga::spawn(move || {
            VALUE.with_shared(seen.clone(), || dhaga::scope(|s| drop(s.spawn(|| ()))));
            Arc::strong_count(&seen)
        });
        // The caller's and the dhaga's own.
        assert_eq!(alive.join().expect("it ends"), 2);
    });
}

#[test]
fn a_value_may_open_a_scope_as_it_is_dropped() {
    within_deadline(Duration::from_secs(20), || {
        let opened = dhaga::spawn(|| {
            for _ in 0..100 {
                dhaga::scope(|s| {
                    for _ in 0..100 {
                        let value = AtDrop::new(|| dhaga::scope(|_| ()));
                        VALUE.with(value, || s.spawn(|| ()).join()).expect("it ends");
                    }
                });
            }
        });
        opened.join().expect("it ends");
    });
}

#[test]
fn a_value_may_wait_as_it_is_dropped_at_a_shutdown() {
    child::succeeds(child::name_of!(a_value_may_wait_as_it_is_dropped_at_a_shutdown), || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (value, dropped_in_dhaga) = reports(|| dhaga::sleep(Duration::from_millis(1)));
        let (started, has_started) = channel();
        let waiting = runtime.spawn(move || {
            dhaga::scope(|s| {
                VALUE.with(value, || s.spawn(|| ()).join()).expect("it ends");
                started.send(()).expect("the test waits");
                let (_sender, receiver) = dhaga::sync::channel::bounded::<()>(1);
                receiver.recv()
            })
        });
        has_started.recv().expect("it starts");
        runtime.spawn(|| ()).join().expect("it ends");
        runtime.shutdown(Duration::ZERO).expect("nothing is left");
        assert!(waiting.join().expect("it returns").is_err());
        assert_eq!(dropped_in_dhaga.recv(), Ok(true));
    });
}

#[test]
fn values_that_panic_as_they_are_dropped_take_no_thread_of_the_pool() {
    child::succeeds(child::name_of!(values_that_panic_as_they_are_dropped_take_no_thread_of_the_pool), || {
        for _ in 0..POOL_THREADS_MAX + 10 {
            let (starts, has_started) = channel();
            let (ends, is_over) = channel::<()>();
            let (value, dropped) = reports(|| ());
            let value = AtDrop::new(move || {
                drop(value);
                std::panic::resume_unwind(Box::new(()));
            });
            let late = VALUE.with(value, || {
                dhaga::scope(|s| {
                    let waits = s.spawn(|| {
                        dhaga::blocking(move || {
                            starts.send(()).expect("the test waits");
                            is_over.recv()
                        })
                        .map_err(drop)
                    });
                    has_started.recv().expect("it starts");
                    waits.cancel();
                    waits.join().expect("it ends")
                })
            });
            assert!(late.is_err(), "it was cancelled");
            drop(ends);
            assert!(dropped.recv().is_ok());
        }
        assert_eq!(dhaga::spawn(|| dhaga::blocking(|| 1).ok()).join().expect("it ends"), Some(1));
    });
}
