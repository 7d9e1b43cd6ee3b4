//! Scopes and groups whose dhagas fail in odd ways.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dhaga::sync::channel;
use dhaga::{Builder, Runtime, SpawnError};

use crate::common::{DEADLINE, everywhere, within_deadline};

fn runtime_for_one() -> Runtime {
    Runtime::builder().workers(1).tasks_max(1).build().expect("a test can start a runtime")
}

#[test]
fn a_spawn_that_is_refused_and_handled_does_not_fail_its_scope() {
    within_deadline(DEADLINE, || {
        let runtime = runtime_for_one();
        let outcome = runtime.spawn(|| {
            dhaga::scope(|s| {
                let refused = Builder::new().spawn_scoped(s, || ());
                assert!(matches!(refused, Err(SpawnError::TooMany { .. })));
                7
            })
        });
        assert_eq!(outcome.join().expect("the error was handled"), 7);
    });
}

#[test]
fn a_spawn_that_is_refused_and_handled_does_not_fail_its_group() {
    within_deadline(DEADLINE, || {
        let runtime = runtime_for_one();
        let outcome = runtime.spawn(|| {
            dhaga::try_scope(|s| {
                let refused = s.spawn_with(Builder::new(), || Ok::<(), SpawnError>(()));
                assert!(matches!(refused, Err(SpawnError::TooMany { .. })));
                Ok::<_, SpawnError>(dhaga::is_cancelled())
            })
        });
        assert_eq!(outcome.join().expect("the error was handled"), Ok(false));
    });
}

#[test]
fn a_spawn_that_is_refused_is_the_error_of_its_group() {
    within_deadline(DEADLINE, || {
        let runtime = runtime_for_one();
        let outcome = runtime.spawn(|| {
            dhaga::try_scope(|s| {
                s.spawn_with(Builder::new(), || Ok(()))?;
                Ok(())
            })
        });
        assert_eq!(outcome.join().expect("it is no panic"), Err(SpawnError::TooMany { limit: 1 }));
    });
}

#[test]
fn a_panic_of_the_groups_own_code_cancels_the_rest() {
    everywhere(|| {
        let ended = AtomicBool::new(false);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            dhaga::try_scope(|s| {
                s.spawn(|| {
                    let (_sender, receiver) = channel::bounded::<()>(1);
                    let waited = receiver.recv_timeout(Duration::from_secs(20));
                    ended.store(dhaga::is_cancelled(), Ordering::SeqCst);
                    waited.map_err(|_| "waited")
                });
                if dhaga::checkpoint().is_ok() {
                    std::panic::resume_unwind(Box::new(7));
                }
                Ok::<(), &str>(())
            })
        }));
        assert!(outcome.is_err_and(|payload| payload.is::<i32>()));
        assert!(ended.into_inner(), "it was not cancelled");
    });
}

#[test]
fn an_error_that_one_dhaga_takes_from_another_and_passes_on_is_not_lost() {
    everywhere(|| {
        let outcome = dhaga::try_scope(|s| {
            let first = s.spawn(|| Err::<(), _>("first"));
            s.spawn(move || first.join());
            Ok(())
        });
        assert_eq!(outcome, Err("first"));
    });
}

#[test]
fn a_promise_not_to_wait_that_another_dhaga_drops_leaves_that_one_as_it_is() {
    within_deadline(DEADLINE, || {
        let (done, is_done) = std::sync::mpsc::channel();
        let maker = dhaga::spawn(|| {
            let promise = dhaga::no_suspend();
            let other = move || {
                drop(promise);
                dhaga::sleep(Duration::from_millis(1));
                done.send(7).expect("the test waits");
            };
            dhaga::spawn_local(other).detach();
        });
        maker.join().expect("it ends");
        assert_eq!(is_done.recv(), Ok(7));
    });
}

#[test]
fn frames_that_end_out_of_order_abort_in_words() {
    use corosensei::{Coroutine, Yielder};
    let words = crate::child::aborts(crate::child::name_of!(frames_that_end_out_of_order_abort_in_words), || {
        let hour = Duration::from_secs(3600);
        let mut other =
            Coroutine::new(move |yielder: &Yielder<(), ()>, ()| dhaga::within(hour, || yielder.suspend(())));
        let _ = other.resume(());
        dhaga::within(2 * hour, || other.resume(()).as_return());
        drop(other);
        println!("{:?}", dhaga::deadline());
    });
    if let Some(words) = words {
        assert!(words.contains("out of order"), "{words}");
    }
}

#[test]
fn a_frame_that_outlives_its_dhaga_aborts_in_words() {
    use corosensei::{Coroutine, Yielder};
    let words = crate::child::aborts(crate::child::name_of!(a_frame_that_outlives_its_dhaga_aborts_in_words), || {
        let first = dhaga::spawn(|| {
            let body = |yielder: &Yielder<(), ()>, ()| dhaga::uncancellable(|| yielder.suspend(()));
            let mut other = Coroutine::new(body);
            let _ = other.resume(());
            dhaga::spawn_local(move || {
                dhaga::sleep(Duration::from_millis(10));
                drop(other);
            })
            .detach();
        });
        first.join().expect("it does not end");
        std::thread::sleep(Duration::from_millis(100));
    });
    if let Some(words) = words {
        assert!(words.contains("out of order"), "{words}");
    }
}

#[test]
fn a_promise_not_to_wait_that_is_never_taken_back_ends_no_scope_early() {
    everywhere(|| {
        let borrowed = AtomicBool::new(false);
        // `everywhere` has a thread for this alone: the promise holds for ever.
        dhaga::scope(|s| {
            s.spawn(|| {
                dhaga::sleep(Duration::from_millis(20));
                borrowed.store(true, Ordering::SeqCst);
            });
            std::mem::forget(dhaga::no_suspend());
        });
        assert!(borrowed.load(Ordering::SeqCst), "the scope has ended before its dhaga");
    });
}
