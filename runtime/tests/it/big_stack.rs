//! Code on a stack of its own.

use std::cell::Cell;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhaga::sync::{Semaphore, channel};
use dhaga::{Builder, Interrupt, JoinError, Runtime, with_big_stack, with_stack_size};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

/// Recurses as deep as `levels` says, 1 KiB a level at least, and calls `at_end` there.
fn recurse(levels: u64, at_end: &mut dyn FnMut()) -> u64 {
    let frame = std::hint::black_box([levels; 128]);
    if levels == 0 {
        at_end();
        return 0;
    }
    recurse(levels - 1, at_end) + frame[7] - (levels - 1)
}

/// Runs a body in a dhaga with the smallest stack, on a runtime of one worker, and then looks that nothing was kept.
fn in_a_small_dhaga(body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let small = Builder::new().name("small").stack_size(128 << 10);
        small.spawn_on(&runtime, body).expect("room").join().expect("the body ends well");
        assert_eq!(runtime.audit(DEADLINE).map(|held| held.stacks), Some(0), "each stack goes back");
    });
}

#[test]
fn it_is_deeper_than_the_stack_around_it() {
    everywhere(|| {
        assert_eq!(with_big_stack(|| recurse(1500, &mut || ())), 1500);
        assert_eq!(with_stack_size(64 << 20, || recurse(10_000, &mut || ())).expect("there is room"), 10_000);
    });
    in_a_small_dhaga(|| assert_eq!(with_big_stack(|| recurse(1500, &mut || ())), 1500));
}

#[test]
fn what_waits_in_there_lets_others_run_and_is_the_same_dhaga() {
    dhaga::local! {
        static COUNT: Cell<u32> = const { Cell::new(0) };
    }
    in_a_small_dhaga(|| {
        const DHAGAS: usize = 50;
        let (meeting, sum) = (Semaphore::new(0), AtomicUsize::new(0));
        dhaga::scope(|s| {
            for n in 0..DHAGAS {
                let (meeting, sum) = (&meeting, &sum);
                let body = move || {
                    let (me, mut borrowed) = (dhaga::current().id(), 0);
                    COUNT.with(|count| count.set(count.get() + 1));
                    let seen = dhaga::within(DEADLINE, || {
                        with_big_stack(|| {
                            recurse(1000, &mut || {
                                // All meet down here, and are woken in any order, several times.
                                meeting.add_permits(1);
                                drop(meeting.acquire_many(DHAGAS).expect("in time"));
                                for _ in 0..3 {
                                    dhaga::sleep(Duration::from_micros((n as u64 * 37) % 500));
                                    borrowed += 1;
                                }
                            });
                            COUNT.with(|count| count.set(count.get() + 1));
                            (dhaga::current().id(), dhaga::current().name().map(str::to_owned), dhaga::deadline())
                        })
                    });
                    assert_eq!((seen.0, borrowed), (me, 3));
                    assert_eq!(seen.1, Some(format!("deep {n}")));
                    assert!(seen.2.is_some() && dhaga::deadline().is_none());
                    sum.fetch_add(COUNT.with(Cell::get) as usize, Ordering::SeqCst);
                };
                let small = Builder::new().name(format!("deep {n}")).stack_size(128 << 10);
                small.spawn_scoped(s, body).expect("room");
            }
        });
        assert_eq!(sum.into_inner(), 2 * DHAGAS);
    });
}

#[test]
fn deadlines_and_cancels_reach_what_waits_in_there() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded::<()>(1);
        let late = dhaga::within(Duration::from_millis(5), || with_big_stack(|| receiver.recv()));
        assert!(matches!(late, Err(channel::RecvError::Interrupted(Interrupt::DeadlineExceeded { .. }))), "{late:?}");
        let cancelled = dhaga::spawn(move || with_big_stack(|| receiver.recv()));
        dhaga::yield_now();
        cancelled.cancel();
        let cancelled = cancelled.join().expect("it ends well");
        assert!(matches!(cancelled, Err(channel::RecvError::Interrupted(Interrupt::Cancelled))), "{cancelled:?}");
        drop(sender);
    });
}

#[test]
fn a_panic_passes_through_with_its_payload() {
    fn thrown() -> Result<(), i32> {
        let thrown = catch_unwind(|| {
            with_big_stack(|| {
                recurse(100, &mut || dhaga::sleep(Duration::from_micros(10)));
                resume_unwind(Box::new(7))
            })
        });
        thrown.map_err(|payload| *payload.downcast().expect("it is the same"))
    }
    everywhere(|| assert_eq!(thrown(), Err(7)));
    in_a_small_dhaga(|| {
        for _ in 0..100 {
            assert_eq!(thrown(), Err(7));
        }
        let joined = dhaga::spawn(|| with_big_stack(|| panic!("on {}", "purpose"))).join();
        assert!(matches!(joined, Err(JoinError::Panicked(panic)) if panic.message() == "on purpose"));
    });
}

#[test]
fn one_within_another_and_while_the_stack_unwinds() {
    struct Deep<'a>(&'a mut u64);
    impl Drop for Deep<'_> {
        fn drop(&mut self) {
            *self.0 = with_big_stack(|| recurse(1200, &mut || ()));
        }
    }
    fn body() {
        let sum = with_big_stack(|| {
            let mut inner = 0;
            let outer = recurse(1200, &mut || inner = with_big_stack(|| recurse(1500, &mut dhaga::yield_now)));
            inner + outer
        });
        assert_eq!(sum, 2700);
        let mut depth = 0;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _deep = Deep(&mut depth);
            resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(depth, 1200);
    }
    everywhere(body);
    in_a_small_dhaga(body);
}

#[test]
fn a_shutdown_unwinds_both_stacks() {
    struct Count(Arc<AtomicUsize>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let dropped = Arc::new(AtomicUsize::new(0));
        let (outside, inside) = (Count(dropped.clone()), Count(dropped.clone()));
        let waiter = runtime.spawn(move || {
            let _outside = outside;
            dhaga::uncancellable(|| {
                with_big_stack(move || {
                    let _inside = inside;
                    recurse(100, &mut || dhaga::sleep(Duration::from_secs(3600)));
                });
            });
        });
        runtime.spawn(|| ()).join().expect("the other is parked by now");
        runtime.shutdown(Duration::ZERO).expect("it unwinds");
        assert!(matches!(waiter.join(), Err(JoinError::Unwound)));
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_stack_that_cannot_be_is_an_error() {
    everywhere(|| {
        for bytes in [0, 1000, (1 << 30) + 1, usize::MAX] {
            let error = with_stack_size(bytes, || ()).expect_err("no stack has that size");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    });
}

/// The sanitizer may keep locals elsewhere, so that their addresses tell nothing.
#[cfg(not(feature = "sanitizer"))]
#[test]
fn stacks_are_used_again() {
    in_a_small_dhaga(|| {
        let address = || with_big_stack(|| std::ptr::from_ref(&std::hint::black_box(7_u8)).addr() >> 23);
        let first = address();
        assert!((0..100).all(|_| address() == first), "the last one given back is the next one taken");
    });
}

#[test]
fn an_overflow_names_the_dhaga_and_the_place() {
    let text = child::aborts(child::name_of!(an_overflow_names_the_dhaga_and_the_place), || {
        let deep = || with_big_stack(|| recurse(std::hint::black_box(u64::MAX), &mut || ()));
        Builder::new().name("the deep one").spawn(deep).expect("there is room").join().expect("it aborts first");
    });
    let Some(text) = text else { return };
    assert!(
        text.contains("dhaga 'the deep one' (on a stack of its own at ") && text.contains("big_stack.rs:"),
        "{text}"
    );
    assert!(text.contains("has overflowed its stack of 8192 KiB; give it more with dhaga::with_stack_size"), "{text}");
}

#[test]
fn an_overflow_on_a_plain_thread_names_the_thread() {
    let text = child::aborts(child::name_of!(an_overflow_on_a_plain_thread_names_the_thread), || {
        let deep = || with_stack_size(1 << 20, || recurse(std::hint::black_box(u64::MAX), &mut || ()));
        let thread = std::thread::Builder::new().name("plain".to_owned()).spawn(deep).expect("a thread");
        thread.join().expect("it aborts first").expect("there is room");
    });
    let Some(text) = text else { return };
    assert!(text.contains("thread 'plain' (on a stack of its own at "), "{text}");
    assert!(text.contains("has overflowed its stack of 1024 KiB"), "{text}");
}
