//! A wake, a timeout, a deadline and a cancel at about the same instant: each wait ends once, with a verdict that is true,
//! and what it was given is with it or still there.

use std::time::Instant;

use dhaga::sync::channel::{self, Receiver, RecvTimeoutError, SendTimeoutError, Sender};
use dhaga::sync::{AcquireTimeoutError, LockTimeoutError, Mutex, Semaphore, oneshot};
use dhaga::{Interrupt, JoinError, JoinHandle, uncancellable, with_deadline};

use crate::races::{Pace, race};

/// Waits of each of the 80 drivers. With the optimiser on, more than a million in all.
const ROUNDS: usize = if cfg!(any(feature = "sanitizer", debug_assertions)) { 1000 } else { 13_000 };

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Given,
    TimedOut,
    Interrupted(Interrupt),
}

/// Something that one waits for and another gives.
trait Kind: Sync {
    fn wait(&self, deadline: Instant) -> Verdict;
    fn give(&self);
    /// Takes back what was given and not received; false if there is nothing.
    fn take_back(&self) -> bool;
}

fn left(deadline: Instant) -> std::time::Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl Kind for (Sender<u32>, Receiver<u32>) {
    fn wait(&self, deadline: Instant) -> Verdict {
        match self.1.recv_deadline(deadline) {
            Ok(7) => Verdict::Given,
            Ok(other) => panic!("{other} was never sent"),
            Err(RecvTimeoutError::Timeout) => Verdict::TimedOut,
            Err(RecvTimeoutError::Interrupted(why)) => Verdict::Interrupted(why),
            Err(RecvTimeoutError::Disconnected) => panic!("the sender is there"),
        }
    }

    fn give(&self) {
        self.0.try_send(7).expect("there is room");
    }

    fn take_back(&self) -> bool {
        self.1.try_recv().is_ok()
    }
}

/// A channel that is full before each wait.
struct Full(Sender<u32>, Receiver<u32>);

impl Full {
    fn new() -> Self {
        let (sender, receiver) = channel::bounded(1);
        sender.send(1).expect("there is room");
        Self(sender, receiver)
    }
}

impl Kind for Full {
    fn wait(&self, deadline: Instant) -> Verdict {
        match self.0.send_timeout(2, left(deadline)) {
            Ok(()) => {
                // As it was before.
                assert!(self.1.len() <= 1);
                Verdict::Given
            }
            Err(SendTimeoutError::Timeout(2)) => Verdict::TimedOut,
            Err(SendTimeoutError::Interrupted(2, why)) => Verdict::Interrupted(why),
            Err(error) => panic!("the receiver is there: {error:?}"),
        }
    }

    fn give(&self) {
        self.1.try_recv().expect("it was full");
    }

    fn take_back(&self) -> bool {
        self.0.try_send(3).is_ok()
    }
}

impl Kind for Semaphore {
    fn wait(&self, deadline: Instant) -> Verdict {
        match self.acquire_timeout(left(deadline)) {
            Ok(permit) => {
                permit.forget();
                Verdict::Given
            }
            Err(AcquireTimeoutError::Timeout) => Verdict::TimedOut,
            Err(AcquireTimeoutError::Interrupted(why)) => Verdict::Interrupted(why),
            Err(AcquireTimeoutError::Closed) => panic!("nobody closes it"),
        }
    }

    fn give(&self) {
        self.add_permits(1);
    }

    fn take_back(&self) -> bool {
        self.try_acquire().map(|permit| permit.forget()).is_ok()
    }
}

/// Made anew for each wait, since each is good for one.
struct Oneshot(std::sync::Mutex<Option<oneshot::Sender<u32>>>, std::sync::Mutex<Option<oneshot::Receiver<u32>>>);

impl Oneshot {
    fn new() -> Self {
        let (sender, receiver) = oneshot::channel();
        Self(Some(sender).into(), Some(receiver).into())
    }
}

impl Kind for Oneshot {
    fn wait(&self, deadline: Instant) -> Verdict {
        let mut receiver = self.1.lock().expect("nobody panicked").take().expect("it waits once");
        let outcome = receiver.recv_timeout(left(deadline));
        *self.1.lock().expect("nobody panicked") = Some(receiver);
        match outcome {
            Ok(7) => Verdict::Given,
            Ok(other) => panic!("{other} was never sent"),
            Err(RecvTimeoutError::Timeout) => Verdict::TimedOut,
            Err(RecvTimeoutError::Interrupted(why)) => Verdict::Interrupted(why),
            Err(RecvTimeoutError::Disconnected) => panic!("the sender is there"),
        }
    }

    fn give(&self) {
        let sender = self.0.lock().expect("nobody panicked").take().expect("it gives once");
        sender.send(7).expect("the receiver is there");
    }

    fn take_back(&self) -> bool {
        self.1.lock().expect("nobody panicked").as_mut().is_some_and(|receiver| receiver.try_recv().is_ok())
    }
}

/// A lock that somebody holds, who gives it up when told to.
struct Held {
    lock: Mutex<u32>,
    release: Semaphore,
    is_held: Semaphore,
    is_released: Semaphore,
}

impl Held {
    fn new() -> Self {
        Self {
            lock: Mutex::new(0),
            release: Semaphore::new(0),
            is_held: Semaphore::new(0),
            is_released: Semaphore::new(0),
        }
    }

    fn hold(&self) {
        let guard = self.lock.lock().expect("nobody panicked");
        self.is_held.add_permits(1);
        uncancellable(|| self.release.acquire()).expect("nobody closes it").forget();
        drop(guard);
        self.is_released.add_permits(1);
    }
}

impl Kind for Held {
    fn wait(&self, deadline: Instant) -> Verdict {
        match self.lock.lock_timeout(left(deadline)) {
            Ok(guard) => {
                // It stays locked, so that it cannot be taken back.
                std::mem::forget(guard);
                Verdict::Given
            }
            Err(LockTimeoutError::Timeout) => Verdict::TimedOut,
            Err(LockTimeoutError::Interrupted(why)) => Verdict::Interrupted(why),
            Err(LockTimeoutError::Poisoned(_)) => panic!("nobody panicked"),
        }
    }

    fn give(&self) {
        self.release.add_permits(1);
        uncancellable(|| self.is_released.acquire()).expect("nobody closes it").forget();
    }

    fn take_back(&self) -> bool {
        self.lock.try_lock().is_ok()
    }
}

/// A dhaga that ends when told to.
struct Ending(std::sync::Mutex<Option<oneshot::Sender<()>>>, std::sync::Mutex<Option<JoinHandle<u32>>>);

impl Ending {
    fn new() -> Self {
        let (sender, receiver) = oneshot::channel();
        let ends = dhaga::Builder::new().detached().spawn(move || receiver.recv().map_or(0, |()| 7));
        Self(Some(sender).into(), Some(ends.expect("there is room")).into())
    }
}

impl Kind for Ending {
    fn wait(&self, deadline: Instant) -> Verdict {
        let handle = self.1.lock().expect("nobody panicked").take().expect("it waits once");
        let own = line!() + 1;
        match handle.join_timeout(left(deadline)) {
            Ok(7) => Verdict::Given,
            Err(JoinError::Stopped(why, handle)) => {
                *self.1.lock().expect("nobody panicked") = Some(handle);
                match why {
                    Interrupt::DeadlineExceeded { set_at } if set_at.line() == own => Verdict::TimedOut,
                    why => Verdict::Interrupted(why),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn give(&self) {
        let sender = self.0.lock().expect("nobody panicked").take().expect("it gives once");
        sender.send(()).expect("the receiver is there");
    }

    fn take_back(&self) -> bool {
        // If it was not given, it ends now, with something else.
        drop(self.0.lock().expect("nobody panicked").take());
        let handle = self.1.lock().expect("nobody panicked").take();
        handle.is_some_and(|handle| handle.join().is_ok_and(|value| value == 7))
    }
}

/// One wait, what happens to it, and whether its verdict is true.
fn round(kind: &dyn Kind, pace: &mut Pace) {
    let (own, around) = (pace.deadline(), pace.deadline());
    let (verdict, is_cancelled, is_given) = dhaga::scope(|s| {
        let waiter = s.spawn(|| with_deadline(around, || kind.wait(own)));
        if pace.dice.below(2) == 0 {
            pace.pause();
        }
        let (is_cancelled, is_given) = match pace.dice.below(5) {
            0 => (true, false),
            1 | 2 => (false, true),
            3 => (true, true),
            _ => (false, false),
        };
        if is_given {
            kind.give();
        }
        match (is_cancelled, pace.dice.below(2)) {
            (true, 0) => waiter.cancel(),
            (true, _) => s.cancel(),
            (false, _) => {}
        }
        (uncancellable(|| waiter.join()).expect("it ends"), is_cancelled, is_given)
    });
    match verdict {
        Verdict::Given => assert!(is_given),
        Verdict::TimedOut => assert!(own <= Instant::now(), "a timeout before its time"),
        Verdict::Interrupted(Interrupt::Cancelled) => assert!(is_cancelled, "nobody cancelled it"),
        Verdict::Interrupted(Interrupt::DeadlineExceeded { .. }) => {
            assert!(around <= Instant::now(), "out of time before its time: {verdict:?}");
        }
        Verdict::Interrupted(why) => panic!("{why:?}"),
    }
    let is_left = is_given && verdict != Verdict::Given;
    assert_eq!(kind.take_back(), is_left, "it was {verdict:?}, and given: {is_given}");
}

fn drive(mut pace: Pace) {
    let (channel, full, semaphore) = (channel::bounded::<u32>(1), Full::new(), Semaphore::new(0));
    for _ in 0..ROUNDS {
        match pace.dice.below(8) {
            0 | 1 => round(&channel, &mut pace),
            2 | 3 => round(&full, &mut pace),
            4 => round(&semaphore, &mut pace),
            5 => round(&Oneshot::new(), &mut pace),
            6 => round(&Ending::new(), &mut pace),
            _ => {
                let held = Held::new();
                dhaga::scope(|s| {
                    s.spawn(|| held.hold());
                    held.is_held.acquire().expect("it is taken").forget();
                    round(&held, &mut pace);
                    held.release.add_permits(1);
                });
            }
        }
    }
}

#[test]
fn a_wait_ends_once_with_a_true_verdict() {
    race(|| vec![Box::new(drive), Box::new(drive)]);
}
