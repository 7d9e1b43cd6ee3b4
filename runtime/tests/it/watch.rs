//! The latest value and its changes: on plain threads, in dhagas, and between the two.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dhaga::sync::watch::{self, RecvError, RecvTimeoutError, SendError, Sender};
use dhaga::sync::{Interrupt, channel};

use crate::common::{DEADLINE, Part, cancelled_during, everywhere, on_all_mixtures, shut_down_during, within_deadline};
use crate::panicking::while_panicking;

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
/// How many of each side race, and how often.
const PARTS: usize = 4;
const TIMES: usize = 4_000;

#[test]
fn a_change_is_seen_once_by_each_receiver() {
    everywhere(|| {
        let (sender, mut first) = watch::channel(0);
        assert_eq!(first.has_changed(), Ok(false));
        assert_eq!(sender.send(1), Ok(()));
        let mut second = first.clone();
        let mut late = sender.subscribe();
        assert_eq!((first.has_changed(), late.has_changed()), (Ok(true), Ok(false)));
        assert_eq!(first.changed(), Ok(()));
        assert_eq!((first.has_changed(), second.has_changed()), (Ok(false), Ok(true)));
        assert_eq!(first.changed_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        assert_eq!(second.changed(), Ok(()));
        assert_eq!(late.changed_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        // An equal value is a change, too; two at once are one.
        assert_eq!((sender.send(1), sender.send(1)), (Ok(()), Ok(())));
        assert_eq!((late.changed(), late.has_changed()), (Ok(()), Ok(false)));
    });
}

#[test]
fn to_look_is_to_see_only_if_it_says_so() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel("old");
        sender.send_replace("new");
        assert!(receiver.borrow().has_changed());
        assert_eq!(*receiver.borrow(), "new");
        assert_eq!(receiver.has_changed(), Ok(true));
        assert!(receiver.borrow_and_update().has_changed());
        assert!(!receiver.borrow_and_update().has_changed());
        assert_eq!(receiver.has_changed(), Ok(false));
        assert_eq!(*sender.borrow(), "new");
    });
}

#[test]
fn what_somebody_looks_at_stays_as_it_is() {
    everywhere(|| {
        let (sender, receiver) = watch::channel(vec![1]);
        let before = receiver.borrow();
        sender.send_modify(|numbers| numbers.push(2));
        // No lock is held across a wait.
        dhaga::yield_now();
        let between = receiver.borrow();
        let replaced = sender.send_replace(vec![]);
        assert_eq!((&before[..], &between[..], receiver.borrow().len()), (&[1][..], &[1, 2][..], 0));
        assert!(Arc::ptr_eq(&between.clone().into_arc(), &replaced.into_arc()));
        assert_eq!(format!("{between:?}"), "[1, 2]");
    });
}

#[test]
fn the_latest_value_reaches_all_who_wait_and_versions_only_grow() {
    on_all_mixtures(|| {
        let (sender, receiver) = watch::channel(0);
        let mut parts: Vec<Part> = (0..PARTS)
            .map(|_| {
                let mut receiver = receiver.clone();
                Box::new(move || {
                    let mut last = 0;
                    while last < TIMES {
                        assert_eq!(receiver.changed(), Ok(()));
                        let value = *receiver.borrow_and_update();
                        assert!(value >= last);
                        last = value;
                    }
                }) as Part
            })
            .collect();
        parts.push(Box::new(move || {
            for number in 1..=TIMES {
                assert_eq!(sender.send(number), Ok(()));
            }
        }));
        parts
    });
}

#[test]
fn no_wake_is_lost_when_everybody_answers_each_change() {
    // The next change is made when all have seen the one before: one wake that is lost is a hang.
    on_all_mixtures(|| {
        let (sender, receiver) = watch::channel(0);
        let (answers, answered) = channel::unbounded();
        let mut parts: Vec<Part> = (0..PARTS)
            .map(|part| {
                let (mut receiver, answers) = (receiver.clone(), answers.clone());
                Box::new(move || {
                    for number in 1..=TIMES {
                        let value = match part % 2 {
                            0 => receiver.changed().map(|()| *receiver.borrow()),
                            _ => receiver.wait_for(|&value| value == number).map(|value| *value),
                        };
                        assert_eq!(value, Ok(number));
                        answers.send(number).expect("the sender waits");
                    }
                }) as Part
            })
            .collect();
        parts.push(Box::new(move || {
            for number in 1..=TIMES {
                sender.send_modify(|value| *value += 1);
                (0..PARTS).for_each(|_| assert_eq!(answered.recv(), Ok(number)));
            }
        }));
        parts
    });
}

#[test]
fn ten_thousand_receivers_are_woken_by_one_change() {
    within_deadline(DEADLINE, || {
        let (sender, receiver) = watch::channel(false);
        let dhagas: Vec<_> = (0..10_000)
            .map(|_| {
                let mut receiver = receiver.clone();
                dhaga::spawn(move || receiver.wait_for(|&go| go).map(|go| *go))
            })
            .collect();
        assert_eq!(sender.send(true), Ok(()));
        for dhaga in dhagas {
            assert_eq!(dhaga.join().expect("it ends well"), Ok(true));
        }
        assert_eq!(sender.receiver_count(), 1);
    });
}

#[test]
fn modifications_beside_each_other_are_all_made() {
    on_all_mixtures(|| {
        let (sender, mut receiver) = watch::channel((0, 0));
        let mut parts: Vec<Part> = (0..PARTS)
            .map(|_| {
                let sender = sender.clone();
                Box::new(move || {
                    for round in 0..TIMES {
                        let add = |pair: &mut (usize, usize)| {
                            pair.0 += 1;
                            if round % 64 == 0 {
                                dhaga::yield_now();
                            }
                            pair.1 += 1;
                        };
                        match round % 2 {
                            0 => sender.send_modify(add),
                            _ => assert!(sender.send_if_modified(|pair| {
                                add(pair);
                                true
                            })),
                        }
                    }
                }) as Part
            })
            .collect();
        drop(sender);
        parts.push(Box::new(move || {
            let mut last = 0;
            while receiver.changed().is_ok() {
                let (first, second) = *receiver.borrow_and_update();
                assert_eq!(first, second, "half a change was seen");
                assert!(first >= last);
                last = first;
            }
            assert_eq!(last, PARTS * TIMES);
        }));
        parts
    });
}

#[test]
fn what_is_sent_while_another_modifies_stays() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        let modified = sender.send_if_modified(|value| {
            // Looking and sending wait for nobody, not even here.
            assert_eq!((*value, *sender.borrow(), *receiver.borrow()), (1, 1, 1));
            assert_eq!(sender.send(10), Ok(()));
            *value += 1;
            true
        });
        assert!(modified);
        assert_eq!((receiver.changed(), *receiver.borrow()), (Ok(()), 10));
        assert_eq!(receiver.has_changed(), Ok(false));
        sender.send_modify(|value| *value += 1);
        assert_eq!(*sender.send_replace(0), 11);
    });
}

#[test]
fn one_who_waits_in_a_modification_holds_up_only_those_who_modify() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        let (go, gone) = channel::bounded::<()>(1);
        let (starts, has_started) = channel::bounded(1);
        let theirs = sender.clone();
        let slow = dhaga::spawn(move || {
            theirs.send_modify(|value| {
                starts.send(()).expect("the test waits");
                gone.recv().expect("the test sends");
                *value += 1;
            });
        });
        assert_eq!(has_started.recv(), Ok(()));
        assert_eq!((*receiver.borrow(), sender.send(5)), (1, Ok(())));
        assert_eq!((receiver.changed(), *receiver.borrow()), (Ok(()), 5));
        let theirs = sender.clone();
        let second = dhaga::spawn(move || theirs.send_modify(|value| *value *= 2));
        go.send(()).expect("it waits");
        slow.join().expect("it ends well");
        second.join().expect("it ends well");
        assert_eq!(*sender.borrow(), 10);
    });
}

#[test]
fn what_is_not_modified_after_all_wakes_nobody_and_changes_nothing() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        assert!(!sender.send_if_modified(|value| {
            *value = 2;
            false
        }));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            sender.send_modify(|value| {
                *value = 3;
                panic!("this panic is part of the test");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!((*receiver.borrow(), receiver.has_changed()), (1, Ok(false)));
        assert_eq!(receiver.changed_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        sender.send_modify(|value| *value += 10);
        assert_eq!((receiver.changed(), *receiver.borrow()), (Ok(()), 11));
    });
}

#[test]
fn wait_for_asks_about_the_present_value_first() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        assert_eq!(receiver.wait_for(|&value| value == 1).map(|value| *value), Ok(1));
        let timeout = receiver.wait_for_timeout(|&value| value == 2, SHORT);
        assert_eq!(timeout.map(drop), Err(RecvTimeoutError::Timeout));
        sender.send_replace(2);
        assert!(receiver.wait_for_timeout(|&value| value == 2, DEADLINE).is_ok_and(|value| value.has_changed()));
        assert_eq!(receiver.has_changed(), Ok(false));
        let last = dhaga::spawn(move || sender.send(3));
        assert_eq!(receiver.wait_for(|&value| value == 4).map(drop), Err(RecvError::Disconnected));
        assert_eq!(receiver.wait_for(|&value| value == 3).map(|value| *value), Ok(3));
        assert_eq!(last.join().expect("it ends well"), Ok(()));
    });
}

#[test]
fn changes_that_keep_coming_keep_nobody_past_its_time() {
    within_deadline(DEADLINE, || {
        let (sender, mut receiver) = watch::channel(0);
        let began = Instant::now();
        // Each time it asks there is another value already, so it never comes to wait.
        let is_wanted = |_: &u32| {
            sender.send_replace(1);
            began.elapsed() > DEADLINE / 2
        };
        let waited = receiver.wait_for_timeout(is_wanted, Duration::from_millis(20));
        assert_eq!(waited.map(|value| *value), Err(RecvTimeoutError::Timeout));
    });
}

#[test]
fn the_last_value_is_seen_after_the_last_sender_is_gone() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        let second = sender.clone();
        drop(sender);
        second.send_replace(2);
        let last = dhaga::spawn(move || drop(second));
        assert_eq!((receiver.changed(), *receiver.borrow()), (Ok(()), 2));
        assert_eq!(receiver.changed(), Err(RecvError::Disconnected));
        assert_eq!(receiver.changed_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
        assert_eq!(receiver.has_changed(), Err(RecvError::Disconnected));
        assert_eq!(*receiver.borrow_and_update(), 2);
        last.join().expect("it ends well");
    });
}

#[test]
fn a_sender_waits_for_the_last_receiver_to_go() {
    on_all_mixtures(|| {
        let (sender, receiver) = watch::channel(1);
        let still_there = Arc::new(AtomicUsize::new(PARTS));
        let mut parts: Vec<Part> = (0..PARTS)
            .map(|_| {
                let (receiver, still_there) = (receiver.clone(), still_there.clone());
                Box::new(move || {
                    still_there.fetch_sub(1, Ordering::SeqCst);
                    drop(receiver);
                }) as Part
            })
            .collect();
        drop(receiver);
        parts.extend((0..2).map(|_| {
            let (sender, still_there) = (sender.clone(), still_there.clone());
            Box::new(move || {
                assert_eq!(sender.closed(), Ok(()));
                assert_eq!(still_there.load(Ordering::SeqCst), 0);
                assert_eq!(sender.closed_timeout(Duration::ZERO), Ok(true));
            }) as Part
        }));
        parts
    });
}

#[test]
fn what_is_sent_to_nobody_comes_back_and_what_replaces_stays() {
    everywhere(|| {
        let sender = Sender::new(1);
        assert!(sender.is_disconnected());
        assert_eq!(sender.send(2), Err(SendError(2)));
        assert_eq!(*sender.borrow(), 1);
        assert_eq!(*sender.send_replace(3), 1);
        let receiver = sender.subscribe();
        assert_eq!((*receiver.borrow(), receiver.has_changed()), (3, Ok(false)));
        let start = Instant::now();
        assert_eq!(sender.closed_timeout(SHORT), Ok(false));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(sender.send(4), Ok(()));
    });
}

#[test]
fn a_cancel_ends_the_wait_and_refuses_what_is_ready() {
    const CANCELLED: Interrupt = Interrupt::Cancelled;
    within_deadline(DEADLINE, || {
        let (sender, mut receiver) = watch::channel(1);
        let theirs = sender.clone();
        assert_eq!(cancelled_during(move || theirs.closed()), Err(CANCELLED));
        let theirs = sender.clone();
        let mut receiver = cancelled_during(move || {
            assert_eq!(receiver.changed(), Err(RecvError::Interrupted(CANCELLED)));
            // To send, to modify and to look is no wait that fails.
            assert_eq!(theirs.send(2), Ok(()));
            theirs.send_modify(|value| *value += 1);
            assert_eq!((*receiver.borrow(), receiver.has_changed()), (3, Ok(true)));
            assert_eq!(receiver.changed(), Err(RecvError::Interrupted(CANCELLED)));
            assert_eq!(receiver.changed_timeout(DEADLINE), Err(RecvTimeoutError::Interrupted(CANCELLED)));
            assert_eq!(receiver.wait_for(|_| true).map(drop), Err(RecvError::Interrupted(CANCELLED)));
            receiver
        });
        assert_eq!((receiver.changed(), *receiver.borrow()), (Ok(()), 3));
        drop(receiver);
        assert_eq!(sender.closed(), Ok(()));
    });
}

#[test]
fn a_panicking_thread_sees_what_needs_no_wait() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        let refused = while_panicking(|| receiver.changed());
        assert_eq!(refused, Err(RecvError::Interrupted(Interrupt::Panicking)));
        assert_eq!(while_panicking(|| sender.closed()), Err(Interrupt::Panicking));
        assert_eq!(while_panicking(|| sender.send(2)), Ok(()));
        while_panicking(|| sender.send_modify(|value| *value += 1));
        assert_eq!(while_panicking(|| receiver.changed()), Ok(()));
        assert_eq!(*receiver.borrow(), 3);
    });
}

#[test]
fn a_shutdown_takes_what_waits_and_leaves_the_others_working() {
    everywhere(|| {
        let (sender, mut receiver) = watch::channel(1);
        let (mut changed, mut wanted, theirs) = (receiver.clone(), receiver.clone(), sender.clone());
        let waiting = dhaga::spawn(move || receiver.wait_for(|&value| value == 2).map(|value| *value));
        shut_down_during(move || changed.changed());
        shut_down_during(move || wanted.wait_for(|&value| value == 2).map(drop));
        shut_down_during(move || theirs.closed());
        assert_eq!(sender.receiver_count(), 1);
        // Torn down in the midst of a modification: it was not made, and the next can be.
        let theirs = sender.clone();
        shut_down_during(move || {
            theirs.send_modify(|value| {
                *value = 7;
                dhaga::sleep(DEADLINE);
            });
        });
        assert_eq!(*sender.borrow(), 1);
        sender.send_modify(|value| *value += 1);
        assert_eq!(waiting.join().expect("it ends well"), Ok(2));
        assert_eq!(sender.closed(), Ok(()));
    });
}

#[test]
fn receivers_that_come_and_go_disturb_nobody_who_waits() {
    on_all_mixtures(|| {
        let (sender, receiver) = watch::channel(0);
        let (answers, answered) = channel::rendezvous();
        let mut waiter = receiver.clone();
        let mut parts: Vec<Part> = vec![Box::new(move || {
            for number in 1..=TIMES {
                assert_eq!(waiter.changed(), Ok(()));
                assert_eq!(*waiter.borrow(), number);
                answers.send(()).expect("the sender waits");
            }
        })];
        parts.extend((0..PARTS).map(|part| {
            let (subscriber, mut receiver) = (sender.clone(), receiver.clone());
            Box::new(move || {
                for round in 0..TIMES {
                    receiver = if (part + round) % 2 == 0 { subscriber.subscribe() } else { receiver.clone() };
                    let result = receiver.changed_timeout(Duration::from_nanos((round * 7919 % 10_000) as u64));
                    assert!(matches!(result, Ok(()) | Err(RecvTimeoutError::Timeout)), "{result:?}");
                }
            }) as Part
        }));
        parts.push(Box::new(move || {
            for number in 1..=TIMES {
                assert_eq!(sender.send(number), Ok(()));
                assert_eq!(answered.recv(), Ok(()));
            }
        }));
        parts
    });
}

/// Looks at its channel, and changes it, as it is dropped. A clone does not.
struct Nosy(Option<Sender<Option<Nosy>>>);

impl Clone for Nosy {
    fn clone(&self) -> Self {
        Nosy(None)
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            assert!(sender.borrow().is_none());
            drop(sender.send_replace(None));
            assert_eq!(sender.receiver_count(), 1);
        }
    }
}

#[test]
fn a_value_may_use_its_channel_as_it_is_dropped() {
    everywhere(|| {
        let (sender, receiver) = watch::channel(None);
        let nosy = || Some(Nosy(Some(sender.clone())));
        assert!(sender.send(nosy()).is_ok());
        assert!(sender.send(None).is_ok());
        drop(sender.send_replace(nosy()));
        drop(sender.send_replace(None));
        assert!(sender.send(nosy()).is_ok());
        sender.send_modify(|value| *value = None);
        sender.send_if_modified(|value| {
            *value = nosy();
            false
        });
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            sender.send_modify(|value| {
                *value = nosy();
                panic!("this panic is part of the test");
            });
        }));
        assert!(panicked.is_err());
        // One that is overtaken goes, and not the one that has overtaken it.
        sender.send_modify(|value| {
            *value = nosy();
            assert!(sender.send(None).is_ok());
        });
        assert!(receiver.borrow().is_none());
    });
}
