//! Work for somebody outside, cancelled by handle: `turn::Region`.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::channel::{self, RecvError};
use dhaga::turn::{Region, is_bare};
use dhaga::{Interrupt, JoinError, Runtime, checkpoint, deadline, scope, spawn};

use crate::common::{DEADLINE, within_deadline};

/// Waits for what never comes.
fn wait_for_nothing() -> Result<(), RecvError> {
    let (_sender, receiver) = channel::bounded::<()>(1);
    receiver.recv()
}

fn is_cancelled<T>(result: &Result<T, RecvError>) -> bool {
    matches!(result, Err(RecvError::Interrupted(Interrupt::Cancelled)))
}

fn name() -> Option<String> {
    Region::<&str>::current().map(|region| region.to_string())
}

#[test]
fn a_cancel_by_handle_ends_the_waits_inside_and_touches_nothing_outside() {
    within_deadline(DEADLINE, || {
        let region = Region::new("work");
        let (begun, has_begun) = mpsc::channel();
        let inside = region.clone();
        let work = spawn(move || {
            let result = inside.run(None, || {
                begun.send(()).expect("the test waits");
                wait_for_nothing()
            });
            (is_cancelled(&result), checkpoint().is_ok(), name())
        });
        has_begun.recv().expect("it begins");
        assert!(!region.is_cancelled());
        region.cancel();
        assert_eq!(work.join().expect("nobody panics"), (true, true, None));
        assert!(region.is_cancelled());
    });
}

#[test]
fn a_region_that_was_cancelled_before_it_began_fails_at_its_first_wait_also_on_a_thread() {
    within_deadline(DEADLINE, || {
        let region = Region::new("work");
        region.cancel();
        assert!(is_cancelled(&region.run(None, wait_for_nothing)));
        let region = Region::new("work");
        region.cancel();
        assert!(is_cancelled(&spawn(move || region.run(None, wait_for_nothing)).join().expect("nobody panics")));
    });
}

#[test]
fn scopes_inside_are_cancelled_with_it_and_plain_spawns_are_not() {
    within_deadline(DEADLINE, || {
        let region = Region::new("work");
        let (begun, has_begun) = mpsc::channel();
        let inside = region.clone();
        let work = spawn(move || {
            inside.run(None, || {
                let plain = spawn(|| (name(), checkpoint().is_ok()));
                let results: Vec<_> = scope(|s| {
                    let child = || {
                        begun.send(()).expect("the test waits");
                        (wait_for_nothing(), name())
                    };
                    let children: Vec<_> = (0..3).map(|_| s.spawn(child)).collect();
                    children.into_iter().map(|child| dhaga::uncancellable(|| child.join().expect("it ends"))).collect()
                });
                (results, dhaga::uncancellable(|| plain.join().expect("it ends")))
            })
        });
        (0..3).for_each(|_| has_begun.recv().expect("all begin"));
        region.cancel();
        let (scoped, plain) = work.join().expect("nobody panics");
        assert!(scoped.iter().all(|(result, name)| is_cancelled(result) && name.as_deref() == Some("work")));
        assert_eq!(plain, (Some("work".to_owned()), true));
    });
}

#[test]
fn the_deadline_of_a_region_is_that_of_its_waits_and_an_earlier_one_around_it_counts() {
    within_deadline(DEADLINE, || {
        let soon = Instant::now() + Duration::from_millis(5);
        let late = Region::new(1).run(Some(soon), wait_for_nothing);
        assert!(matches!(late, Err(RecvError::Interrupted(Interrupt::DeadlineExceeded { .. }))), "{late:?}");
        let far = soon + Duration::from_secs(60);
        assert_eq!(Region::new(1).run(Some(far), deadline), Some(far));
        assert_eq!(dhaga::with_deadline(soon, || Region::new(1).run(Some(far), deadline)), Some(soon));
        assert_eq!(deadline(), None);
    });
}

#[test]
fn the_innermost_region_counts_and_goes_with_its_code() {
    within_deadline(DEADLINE, || {
        let outer = Region::new("outer");
        assert!(is_bare() && !dhaga::within(DEADLINE, is_bare));
        outer.run(None, || {
            assert!(!is_bare());
            assert_eq!(name().as_deref(), Some("outer"));
            Region::new("inner").run(None, || assert_eq!(name().as_deref(), Some("inner")));
            Region::new(7_u8).run(None, || assert_eq!(name(), None, "it is of another type"));
            assert_eq!(dhaga::within(DEADLINE, name).as_deref(), Some("outer"));
            assert_eq!(dhaga::Builder::new().detached().spawn(name).expect("room").join().expect("it ends"), None);
        });
        let torn = Region::new("torn");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            torn.run(None, || std::panic::resume_unwind(Box::new(())))
        }));
        assert!(panicked.is_err() && name().is_none());
        assert_eq!(Arc::strong_count(&outer), 1, "nobody keeps it");
    });
}

#[test]
fn a_region_that_nobody_else_holds_can_be_made_as_new() {
    within_deadline(DEADLINE, || {
        let mut region = Region::new("first");
        region.run(None, || assert_eq!(name().as_deref(), Some("first")));
        region.cancel();
        let held = region.clone();
        assert!(region.renew().is_none() && held.is_cancelled());
        drop(held);
        *region.renew().expect("nobody else holds it") = "second";
        assert!(!region.is_cancelled());
        region.run(None, || assert_eq!((name().as_deref(), checkpoint()), (Some("second"), Ok(()))));
    });
}

#[test]
fn a_region_for_the_caller_is_entered_again_and_again_and_counted_only_for_who_shares_it() {
    within_deadline(DEADLINE, || {
        let region = Region::for_caller("work");
        for _ in 0..3 {
            region.run(None, || {
                assert_eq!(Arc::strong_count(&region), 1);
                let found = Region::<&str>::current();
                assert_eq!((found.as_deref().map(|found| **found), Arc::strong_count(&region)), (Some("work"), 2));
                assert_eq!(dhaga::within(DEADLINE, || Arc::strong_count(&region)), 3, "a frame inside holds it");
            });
            assert_eq!(Arc::strong_count(&region), 1);
        }
    });
}

#[test]
fn what_was_spawned_in_a_region_holds_it_when_nobody_else_does() {
    within_deadline(DEADLINE, || {
        let (go, has_gone) = mpsc::channel();
        let region = Region::for_caller("work");
        let spawned = region.run(None, || {
            spawn(move || {
                has_gone.recv().expect("the test says so");
                name()
            })
        });
        drop(region);
        go.send(()).expect("it waits");
        assert_eq!(spawned.join().expect("nobody panics").as_deref(), Some("work"));
    });
}

#[test]
fn cancels_wake_who_has_made_the_region_for_himself() {
    within_deadline(DEADLINE, || {
        for _ in 0..300 {
            let (found, find) = mpsc::channel();
            let work = spawn(move || {
                let mut region = Region::new("work");
                *region.renew().expect("nobody else holds it") = "other work";
                found.send(region.clone()).expect("the test waits");
                region.run(None, wait_for_nothing)
            });
            find.recv().expect("it begins").cancel();
            assert!(is_cancelled(&work.join().expect("nobody panics")));
        }
    });
}

#[test]
fn cancels_from_other_threads_at_any_moment_lose_no_wake() {
    within_deadline(DEADLINE, || {
        for _ in 0..300 {
            let region = Region::new("work");
            let inside = region.clone();
            let work = spawn(move || inside.run(None, wait_for_nothing));
            let canceller = thread::spawn(move || region.cancel());
            assert!(is_cancelled(&work.join().expect("nobody panics")));
            canceller.join().expect("nobody panics");
        }
    });
}

#[test]
fn a_region_is_unused_until_it_is_cancelled_or_held_or_a_scope_was_opened_in_it() {
    within_deadline(DEADLINE, || {
        let check = |what: &str, use_it: fn(&Arc<Region<u8>>), is_unused| {
            let region = Region::new(7);
            assert!(region.is_unused(1));
            // Held here; who runs in it is not counted.
            region.run(None, || {
                use_it(&region);
                assert_eq!(region.is_unused(1), is_unused, "{what}");
            });
        };
        check("nothing", |_| (), true);
        check("held for a moment", |region| drop(region.clone()), true);
        check("held", |region| std::mem::forget(region.clone()), false);
        check("found and kept", |_| std::mem::forget(Region::<u8>::current()), false);
        check("cancelled", Region::cancel, false);
        check("scope", |_| scope(|s| drop(s.spawn(|| ()).join())), false);
        check("spawned", |_| drop(spawn(|| ()).join()), false);
    });
}

/// Says what it finds around it when it goes.
struct Looks(mpsc::Sender<Option<String>>);

impl Drop for Looks {
    fn drop(&mut self) {
        let _ = self.0.send(name());
    }
}

#[test]
fn a_region_is_there_for_what_is_dropped_when_its_code_is_torn_down_and_held_by_nobody_after_it() {
    within_deadline(DEADLINE * 2, || {
        let runtime = Runtime::builder().workers(2).build().expect("a test can start a runtime");
        let ((begun, has_begun), (found, find)) = (mpsc::channel(), mpsc::channel());
        let region = Region::new("work");
        let inside = region.clone();
        let work = runtime.spawn(move || {
            inside.run(None, || {
                let _looks = Looks(found);
                let _child = spawn(move || {
                    begun.send(()).expect("the test waits");
                    dhaga::uncancellable(wait_for_nothing)
                });
                dhaga::uncancellable(wait_for_nothing)
            })
        });
        has_begun.recv().expect("it begins");
        runtime.shutdown(Duration::ZERO).expect("it unwinds");
        assert!(matches!(work.join(), Err(JoinError::Unwound)));
        assert_eq!(find.recv().expect("it was dropped").as_deref(), Some("work"));
        assert_eq!(Arc::strong_count(&region), 1);
    });
}

/// Enters its region when it goes, and says what it finds there.
struct Enters(Arc<Region<&'static str>>, mpsc::Sender<Option<String>>);

impl Drop for Enters {
    fn drop(&mut self) {
        let _ = self.1.send(self.0.run(None, name));
    }
}

#[test]
fn a_region_for_the_caller_may_be_entered_while_he_panics() {
    within_deadline(DEADLINE, || {
        let (found, find) = mpsc::channel();
        let work = spawn(move || {
            let _enters = Enters(Region::for_caller("work"), found);
            std::panic::resume_unwind(Box::new("on purpose"))
        });
        let ended: Result<(), _> = work.join();
        assert!(matches!(ended, Err(JoinError::Panicked(_))));
        assert_eq!(find.recv().expect("it was dropped").as_deref(), Some("work"));
    });
}

#[test]
fn a_region_lives_as_long_as_code_in_it_that_its_runtime_has_left_behind() {
    within_deadline(DEADLINE * 2, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let ((begun, has_begun), (go, gone), (found, find)) = (mpsc::channel(), mpsc::channel::<()>(), mpsc::channel());
        let hog = runtime.spawn(move || {
            Region::for_caller("work").run(None, || {
                begun.send(()).expect("the test waits");
                // Of the thread, on purpose: nothing unwinds it.
                gone.recv().expect("the test lives");
                found.send((name(), dhaga::within(DEADLINE, name))).expect("the test waits");
            });
        });
        has_begun.recv().expect("it begins");
        runtime.shutdown(Duration::ZERO).expect_err("it computes");
        go.send(()).expect("it waits");
        let work = || Some("work".to_owned());
        assert_eq!(find.recv().expect("it goes on"), (work(), work()));
        drop(hog);
    });
}
