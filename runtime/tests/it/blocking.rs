//! Code that blocks, on threads of its own.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::channel;
use dhaga::{Interrupt, JoinError, Runtime};

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
        let (go, gone) = channel::bounded(1);
        let handle = dhaga::spawn(move || {
            let (running, runs) = channel::bounded(1);
            let me = dhaga::spawn(move || runs.recv());
            let result = dhaga::blocking(move || {
                running.send(()).expect("somebody waits");
                gone.recv()
            });
            drop(me);
            match result {
                Err(JoinError::Stopped(Interrupt::Cancelled, rest)) => rest,
                other => panic!("expected a cancel, not {other:?}"),
            }
        });
        dhaga::yield_now();
        handle.cancel();
        let rest = handle.join().expect("it ends");
        match go.send(5) {
            Ok(()) => assert!(matches!(rest.join(), Ok(Ok(5)))),
            // The cancel came before the call: it never ran, and its receiver is gone.
            Err(_) => assert!(matches!(rest.join(), Err(JoinError::NeverRan))),
        }
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
