//! What follows the code, and what belongs to one dhaga: context values, locals, names, numbers.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dhaga::{AccessError, ContextKey};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

static REQUEST: ContextKey<String> = ContextKey::new();
static DEPTH: ContextKey<u32> = ContextKey::new();

fn request() -> Option<String> {
    REQUEST.get().map(|value| (*value).clone())
}

#[test]
fn a_value_is_found_below_and_not_beside() {
    everywhere(|| {
        assert_eq!(request(), None);
        REQUEST.with("a".to_owned(), || {
            DEPTH.with(1, || {
                assert_eq!((request().as_deref(), DEPTH.get().as_deref()), (Some("a"), Some(&1)));
                REQUEST.with("b".to_owned(), || assert_eq!(request().as_deref(), Some("b")));
                assert_eq!(request().as_deref(), Some("a"));
            });
            assert_eq!(DEPTH.get(), None);
        });
        assert_eq!(request(), None);
    });
}

#[test]
fn a_value_is_inherited_by_what_is_spawned_and_lives_as_long() {
    everywhere(|| {
        let value = Arc::new("a".to_owned());
        let (go, gone) = dhaga::sync::oneshot::channel();
        let child = REQUEST.with_shared(value.clone(), || {
            dhaga::spawn(move || {
                gone.recv().expect("the test sends");
                (request(), dhaga::spawn(request).join().expect("it ends"))
            })
        });
        let detached = REQUEST.with("b".to_owned(), || dhaga::Builder::new().detached().spawn(request));
        assert_eq!(detached.expect("there is room").join().expect("it ends"), None);
        assert!(Arc::strong_count(&value) > 1, "the child has it");
        go.send(()).expect("it waits");
        let a = || Some("a".to_owned());
        assert_eq!(child.join().expect("it ends"), (a(), a()));
    });
}

#[test]
fn a_value_is_left_by_a_panic_too() {
    everywhere(|| {
        let caught = std::panic::catch_unwind(|| DEPTH.with(1, || std::panic::resume_unwind(Box::new(()))));
        assert!(caught.is_err());
        assert_eq!(DEPTH.get(), None);
    });
}

dhaga::local! {
    static COUNT: Cell<u32> = Cell::new(10);
    static LIST: RefCell<Vec<u32>> = RefCell::new(Vec::new());
}

#[test]
fn each_dhaga_has_its_own_and_keeps_it_across_waits() {
    everywhere(|| {
        let before = COUNT.get();
        let counts: Vec<_> = (0..20)
            .map(|number| {
                dhaga::spawn(move || {
                    COUNT.set(COUNT.get() + number);
                    dhaga::yield_now();
                    LIST.with_borrow_mut(|list| list.push(number));
                    dhaga::yield_now();
                    (COUNT.get(), LIST.take())
                })
            })
            .collect();
        for (number, count) in (0..).zip(counts) {
            assert_eq!(count.join().expect("it ends"), (10 + number, vec![number]));
        }
        assert_eq!(COUNT.get(), before);
    });
}

/// Counts its drops, and looks at another local meanwhile.
struct Dropped(Arc<AtomicUsize>, Arc<std::sync::Mutex<Vec<Result<u32, AccessError>>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let seen = [EARLY.try_with(Cell::get), LATE.try_with(Cell::get)];
        self.1.lock().expect("nobody panicked").extend(seen);
        assert!(DROPPED.try_with(|_| ()).is_err(), "it is being dropped");
    }
}

dhaga::local! {
    static EARLY: Cell<u32> = Cell::new(1);
    static DROPPED: RefCell<Option<Dropped>> = RefCell::new(None);
    static LATE: Cell<u32> = Cell::new(2);
}

#[test]
fn locals_are_dropped_before_anybody_learns_of_the_end_the_last_made_first() {
    within_deadline(DEADLINE, || {
        for panics in [false, true] {
            let (drops, seen) = (Arc::new(AtomicUsize::new(0)), Arc::default());
            let dropped = Dropped(drops.clone(), Arc::clone(&seen));
            let child = dhaga::spawn(move || {
                EARLY.set(3);
                DROPPED.set(Some(dropped));
                LATE.set(4);
                if panics {
                    std::panic::resume_unwind(Box::new(()));
                }
            });
            assert_eq!(child.join().is_err(), panics);
            assert_eq!(drops.load(Ordering::SeqCst), 1);
            assert_eq!(*seen.lock().expect("nobody panicked"), [Ok(3), Err(AccessError)]);
        }
    });
}

#[test]
fn a_scope_ends_after_the_locals_of_its_dhagas() {
    within_deadline(DEADLINE, || {
        let drops = Arc::new(AtomicUsize::new(0));
        dhaga::scope(|s| {
            for _ in 0..10 {
                s.spawn(|| DROPPED.set(Some(Dropped(drops.clone(), Arc::default()))));
            }
        });
        assert_eq!(drops.load(Ordering::SeqCst), 10);
    });
}

/// Panics as it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new(()));
    }
}

dhaga::local! {
    static SURVIVOR: RefCell<Option<Dropped>> = RefCell::new(None);
    static BOMB: RefCell<Option<Bomb>> = RefCell::new(None);
}

#[test]
fn a_local_that_panics_as_it_is_dropped_takes_nothing_else_along() {
    within_deadline(DEADLINE, || {
        let drops = Arc::new(AtomicUsize::new(0));
        let dropped = Dropped(drops.clone(), Arc::default());
        let child = dhaga::spawn(move || {
            SURVIVOR.set(Some(dropped));
            BOMB.set(Some(Bomb));
            7
        });
        assert_eq!(child.join().expect("it ends"), 7);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn numbers_are_never_given_twice() {
    within_deadline(DEADLINE, || {
        let ids: HashSet<_> = (0..1000)
            .map(|_| {
                let child = dhaga::spawn(|| dhaga::current().id());
                let outside = child.dhaga().id();
                assert_eq!(child.join().expect("it ends"), outside);
                outside
            })
            .chain([dhaga::current().id()])
            .collect();
        assert_eq!(ids.len(), 1001);
        assert_eq!(dhaga::current().id(), dhaga::current().id());
    });
}

#[test]
fn no_suspend_forbids_waits_and_names_them() {
    within_deadline(DEADLINE, || {
        let check = |wait: fn(), name: &str| {
            let outcome = dhaga::spawn(move || {
                let _promise = dhaga::no_suspend();
                wait();
            })
            .join();
            let text = outcome.expect_err("the wait is refused").to_string();
            assert!(text.contains(name), "{text}");
        };
        check(|| dhaga::sleep(DEADLINE), "Sleep");
        check(dhaga::yield_now, "Yield");
        check(|| drop(dhaga::spawn(|| ()).join()), "Join");
        check(|| dhaga::scope(|_| ()), "Scope");
        check(|| assert!(dhaga::sync::channel::rendezvous::<()>().1.recv().is_ok()), "Recv");
    });
}

#[test]
fn no_suspend_allows_what_need_not_wait_and_ends_with_its_guard() {
    everywhere(|| {
        let lock = dhaga::sync::Mutex::new(0);
        let outer = dhaga::no_suspend();
        let inner = dhaga::no_suspend();
        // Enough to be told to give way, were it not forbidden.
        for _ in 0..1000 {
            *lock.lock().expect("nobody panicked") += 1;
            dhaga::checkpoint().expect("nothing is wrong");
        }
        drop(inner);
        drop(outer);
        dhaga::yield_now();
        dhaga::sleep(std::time::Duration::from_micros(1));
    });
}

#[test]
fn a_wait_on_a_plain_thread_is_refused_as_well() {
    within_deadline(DEADLINE, || {
        let waits = std::thread::spawn(|| {
            let _promise = dhaga::no_suspend();
            dhaga::sleep(DEADLINE);
        });
        let payload = waits.join().expect_err("the wait is refused");
        assert!(payload.downcast_ref::<String>().is_some_and(|text| text.contains("Sleep")));
    });
}

#[test]
fn a_panic_message_names_the_dhaga() {
    let ended = child::run("context::a_panic_message_names_the_dhaga", || {
        let named = dhaga::Builder::new().name("indexer").spawn(|| panic!("broken index")).expect("there is room");
        assert!(named.join().is_err());
    });
    let Some(output) = ended else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    let (name, message) = (text.find("in dhaga \"indexer\" spawned at"), text.find("broken index"));
    assert!(name.is_some() && name < message, "{text}");
}
