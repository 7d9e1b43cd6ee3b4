//! A wake and a timeout at the same instant: each wait ends once, with the right verdict, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::channel::{self, Receiver, RecvTimeoutError, SendTimeoutError, Sender};
use dhaga::sync::{Condvar, Mutex, Semaphore, oneshot};
use dhaga::{Audit, Interrupt, JoinError, JoinHandle, Runtime};

use crate::common::{DEADLINE, within_deadline};
use crate::seeded::{self, Dice};

/// Groups that race beside each other, each with things of its own, and how often each of its members does.
const GROUPS: usize = 40;
const TIMES: usize = if cfg!(feature = "sanitizer") { 500 } else { 2000 };
/// A tick of the timers or so: deadlines on this grid pass together.
const GRID: Duration = Duration::from_micros(131);

/// What one side does before it wakes, or when the other side's wait ends: mostly the same instant of the grid.
pub struct Pace {
    pub dice: Dice,
    start: Instant,
}

impl Pace {
    /// The next point of the grid, the one after that, or an instant that has passed.
    pub fn deadline(&mut self) -> Instant {
        let now = Instant::now();
        let ticks = (now - self.start).as_nanos() / GRID.as_nanos();
        let ahead = match self.dice.below(8) {
            0 => return now,
            1 => 2,
            _ => 1,
        };
        self.start + GRID * (ticks as u32 + ahead)
    }

    fn timeout(&mut self) -> (Instant, Duration) {
        let deadline = self.deadline();
        (deadline, deadline.saturating_duration_since(Instant::now()))
    }

    pub fn pause(&mut self) {
        match self.dice.below(4) {
            0 => (0..self.dice.below(4)).for_each(|_| dhaga::yield_now()),
            _ => dhaga::sleep_until(self.deadline()),
        }
    }
}

/// The members of one group, each of which runs in a dhaga or on a thread.
pub type Member = Box<dyn FnOnce(Pace) + Send>;

/// Runs groups beside each other on two workers, every eighth member on a plain thread, and expects that they all end and
/// leave nothing behind.
pub fn race(group: impl Fn() -> Vec<Member> + Send + 'static) {
    within_deadline(2 * DEADLINE, move || {
        seeded::rounds(1, |mut dice| {
            let runtime = Runtime::builder().workers(2).build().expect("a test can start a runtime");
            let (mut dhagas, mut threads) = (Vec::new(), Vec::new());
            let start = Instant::now();
            for member in (0..GROUPS).flat_map(|_| group()) {
                let pace = Pace { dice: dice.split(), start };
                match dice.below(8) {
                    0 => threads.push(thread::spawn(move || member(pace))),
                    _ => dhagas.push(runtime.spawn(move || member(pace))),
                }
            }
            dhagas.into_iter().for_each(|dhaga| dhaga.join().expect("it ends well"));
            threads.into_iter().for_each(|thread| thread.join().expect("it ends well"));
            settles(&runtime);
        });
    });
}

fn settles(runtime: &Runtime) {
    while runtime.audit(DEADLINE).expect("every worker answers") != Audit::default() {
        thread::yield_now();
    }
}

fn is_over(deadline: Instant) {
    assert!(deadline <= Instant::now(), "a timeout before its time");
}

fn send_all(sender: Sender<usize>, mut pace: Pace) {
    for mut value in 0..TIMES {
        pace.pause();
        loop {
            let (deadline, timeout) = pace.timeout();
            match sender.send_timeout(value, timeout) {
                Ok(()) => break,
                Err(SendTimeoutError::Timeout(back)) => {
                    is_over(deadline);
                    value = back;
                }
                Err(error) => panic!("the receiver waits for all: {error:?}"),
            }
        }
    }
}

fn receive_all(receiver: Receiver<usize>, mut pace: Pace) {
    for expected in 0..TIMES {
        loop {
            let deadline = pace.deadline();
            match receiver.recv_deadline(deadline) {
                Ok(value) => {
                    assert_eq!(value, expected, "each value once, in order");
                    break;
                }
                Err(RecvTimeoutError::Timeout) => is_over(deadline),
                Err(error) => panic!("the sender is there: {error:?}"),
            }
        }
    }
    while pace.dice.below(2) == 0 {
        assert_ne!(receiver.recv_deadline(pace.deadline()).ok(), Some(0), "nothing comes twice");
    }
}

fn check_channel(channel: fn() -> (Sender<usize>, Receiver<usize>)) {
    race(move || {
        let (sender, receiver) = channel();
        vec![Box::new(move |pace| send_all(sender, pace)), Box::new(move |pace| receive_all(receiver, pace))]
    });
}

#[test]
fn a_value_of_a_rendezvous_is_received_once_or_comes_back() {
    check_channel(channel::rendezvous);
}

#[test]
fn a_value_of_a_full_channel_is_received_once_or_comes_back() {
    check_channel(|| channel::bounded(1));
}

#[test]
fn a_permit_is_acquired_once_or_stays() {
    const PERMITS: usize = 2;
    race(|| {
        let (semaphore, inside) = (Arc::new(Semaphore::new(PERMITS)), Arc::new(AtomicUsize::new(0)));
        let left = Arc::new(AtomicUsize::new(4));
        let member = |_| -> Member {
            let (semaphore, inside, left) = (semaphore.clone(), inside.clone(), left.clone());
            Box::new(move |mut pace| {
                for _ in 0..TIMES / 2 {
                    let (deadline, timeout) = pace.timeout();
                    let Ok(permit) = semaphore.acquire_timeout(timeout) else {
                        is_over(deadline);
                        continue;
                    };
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < PERMITS);
                    pace.pause();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    assert_eq!(semaphore.available_permits(), PERMITS);
                }
            })
        };
        (0..4).map(member).collect()
    });
}

/// The first of each group waits without a timeout: a wake that is swallowed by a timeout would leave it behind.
#[test]
fn a_lock_is_entered_once_or_not_at_all() {
    race(|| {
        let (mutex, inside) = (Arc::new(Mutex::new(0)), Arc::new(AtomicUsize::new(0)));
        let (entered, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(3)));
        let member = |index| -> Member {
            let (mutex, inside, entered, left) = (mutex.clone(), inside.clone(), entered.clone(), left.clone());
            Box::new(move |mut pace| {
                for _ in 0..TIMES / 2 {
                    let (deadline, timeout) = pace.timeout();
                    let guard = if index == 0 { mutex.lock().ok() } else { mutex.lock_timeout(timeout).ok() };
                    let Some(mut guard) = guard else {
                        is_over(deadline);
                        continue;
                    };
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                    *guard += 1;
                    pace.pause();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    entered.fetch_add(1, Ordering::SeqCst);
                }
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    let count = mutex.lock().expect("nobody panicked");
                    assert_eq!(*count, entered.load(Ordering::SeqCst));
                }
            })
        };
        (0..3).map(member).collect()
    });
}

/// Tokens that are announced one by one, and how many were taken.
#[derive(Default)]
struct Tokens {
    left: usize,
    taken: usize,
}

/// One waits without a timeout, and looks for a token before. One waits with a timeout, and looks for a token only if it
/// was notified: a notification that it swallowed with a timeout would be missing, and the first would wait for ever.
#[test]
fn a_notification_is_not_swallowed_by_a_timeout() {
    type Shared = Arc<(Mutex<Tokens>, Condvar)>;
    fn take(tokens: &mut Tokens, all: &Condvar) {
        if tokens.left > 0 {
            tokens.left -= 1;
            tokens.taken += 1;
        }
        if tokens.taken == TIMES {
            all.notify_all();
        }
    }
    fn patient(shared: Shared) {
        let (tokens, changed) = &*shared;
        let mut guard = tokens.lock().expect("nobody panicked");
        while guard.taken < TIMES {
            match guard.left {
                0 => guard = changed.wait(guard).expect("nobody panicked"),
                _ => take(&mut guard, changed),
            }
        }
    }
    fn hasty(shared: Shared, mut pace: Pace) {
        let (tokens, changed) = &*shared;
        let mut guard = tokens.lock().expect("nobody panicked");
        while guard.taken < TIMES {
            let (deadline, timeout) = pace.timeout();
            let result;
            (guard, result) = changed.wait_timeout(guard, timeout).expect("nobody panicked");
            match result.timed_out() {
                true => is_over(deadline),
                false => take(&mut guard, changed),
            }
        }
    }
    fn announce(shared: Shared, mut pace: Pace) {
        let (tokens, changed) = &*shared;
        for _ in 0..TIMES {
            pace.pause();
            tokens.lock().expect("nobody panicked").left += 1;
            changed.notify_one();
        }
    }
    race(|| {
        let shared = Shared::default();
        let (first, second, third) = (shared.clone(), shared.clone(), shared);
        vec![
            Box::new(move |_| patient(first)),
            Box::new(move |pace| hasty(second, pace)),
            Box::new(move |pace| announce(third, pace)),
        ]
    });
}

#[test]
fn a_result_is_joined_once() {
    fn join(mut handle: JoinHandle<usize>, pace: &mut Pace) -> usize {
        loop {
            let (deadline, timeout) = pace.timeout();
            match handle.join_timeout(timeout) {
                Ok(value) => return value,
                Err(JoinError::Stopped(Interrupt::DeadlineExceeded { .. }, back)) => {
                    is_over(deadline);
                    handle = back;
                }
                Err(error) => panic!("it returns: {error}"),
            }
        }
    }
    race(|| {
        vec![Box::new(|mut pace: Pace| {
            for value in 0..TIMES {
                let mut child = Pace { dice: pace.dice.split(), start: pace.start };
                let handle = dhaga::spawn(move || {
                    child.pause();
                    value
                });
                assert_eq!(join(handle, &mut pace), value);
            }
        })]
    });
}

#[test]
fn a_oneshot_is_received_once() {
    race(|| {
        let (places, to_fill) = channel::bounded::<oneshot::Sender<usize>>(1);
        let receives = move |mut pace: Pace| {
            for expected in 0..TIMES {
                let (sender, mut receiver) = oneshot::channel();
                places.send(sender).expect("the other side takes them all");
                let value = loop {
                    let (deadline, timeout) = pace.timeout();
                    match receiver.recv_timeout(timeout) {
                        Ok(value) => break value,
                        Err(RecvTimeoutError::Timeout) => is_over(deadline),
                        Err(error) => panic!("the sender sends: {error:?}"),
                    }
                };
                assert_eq!(value, expected);
                receiver.recv_timeout(Duration::ZERO).expect_err("it was received");
            }
        };
        let sends = move |mut pace: Pace| {
            for (value, place) in to_fill.iter().enumerate() {
                pace.pause();
                place.send(value).expect("the receiver waits until it has come");
            }
        };
        vec![Box::new(receives), Box::new(sends)]
    });
}
