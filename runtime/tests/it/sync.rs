//! Locks and channels: what holds on plain threads, in dhagas, and between the two.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::channel::{
    self, Receiver, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Sender, TryRecvError, TrySendError,
};
use dhaga::sync::{
    AcquireError, AcquireTimeoutError, Condvar, Interrupt, LockTimeoutError, Mutex, MutexGuard, Semaphore,
    TryAcquireError, TryLockError, oneshot,
};

use crate::common::{DEADLINE, Part, everywhere, on_all_mixtures, within_deadline};

/// How many parts a stress test has, and how often each does its work.
const PARTS: usize = 4;
const TIMES: usize = 100_000;

/// How often a timeout races with what it waits for.
const RACES: usize = 20_000;

/// A timeout which passes sometimes before and sometimes after what it races with.
fn tight(round: usize) -> Duration {
    Duration::from_nanos((round * 7919 % 20_000) as u64)
}

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panicked while holding the lock")
}

fn parts(count: usize, part: impl Fn(usize) -> Part) -> Vec<Part> {
    (0..count).map(part).collect()
}

/// Spins until others have made it true; the test's deadline ends it otherwise.
fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        dhaga::yield_now();
        thread::yield_now();
    }
}

/// Joins a dhaga that is not expected to fail.
macro_rules! join {
    ($handle:expr) => {
        $handle.join().expect("the dhaga ends well")
    };
}

// Mutex

#[test]
fn a_mutex_lets_one_in_at_a_time() {
    on_all_mixtures(|| {
        let total = Arc::new(Mutex::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        parts(PARTS, |_| {
            let (total, ended) = (total.clone(), ended.clone());
            Box::new(move || {
                for _ in 0..TIMES {
                    *locked(&total) += 1;
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == PARTS {
                    assert_eq!(*locked(&total), PARTS * TIMES);
                }
            })
        })
    });
}

#[test]
fn a_mutex_is_held_across_waits() {
    on_all_mixtures(|| {
        let total = Arc::new(Mutex::new(0));
        parts(PARTS, |_| {
            let total = total.clone();
            Box::new(move || {
                for _ in 0..1000 {
                    let mut guard = locked(&total);
                    let before = *guard;
                    dhaga::yield_now();
                    *guard = before + 1;
                    drop(guard);
                }
                until(|| *locked(&total) == PARTS * 1000);
            })
        })
    });
}

#[test]
fn a_held_mutex_gives_no_second_guard() {
    everywhere(|| {
        let mutex = Arc::new(Mutex::new(1));
        let guard = locked(&mutex);
        assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
        let other = mutex.clone();
        let result = dhaga::spawn(move || {
            let started = Instant::now();
            let timed_out = matches!(other.lock_timeout(SHORT), Err(LockTimeoutError::Timeout));
            timed_out && started.elapsed() >= SHORT
        });
        assert!(join!(result));
        drop(guard);
        assert_eq!(*mutex.lock_timeout(SHORT).expect("it is free"), 1);
        assert_eq!(*mutex.try_lock().expect("it is free"), 1);
    });
}

#[test]
fn a_waiter_is_not_starved_by_those_who_come_running() {
    on_all_mixtures(|| {
        let mutex = Arc::new(Mutex::new(()));
        let satisfied = Arc::new(AtomicUsize::new(0));
        parts(PARTS, |_| {
            let (mutex, satisfied) = (mutex.clone(), satisfied.clone());
            Box::new(move || {
                for _ in 0..100 {
                    drop(locked(&mutex));
                }
                satisfied.fetch_add(1, Ordering::SeqCst);
                while satisfied.load(Ordering::SeqCst) < PARTS {
                    let guard = locked(&mutex);
                    dhaga::yield_now();
                    drop(guard);
                }
            })
        })
    });
}

#[test]
fn timeouts_that_race_with_unlocking_lose_no_lock() {
    on_all_mixtures(|| {
        let total = Arc::new(Mutex::new(0));
        let entered = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        parts(PARTS, |_| {
            let (total, entered, ended) = (total.clone(), entered.clone(), ended.clone());
            Box::new(move || {
                for round in 0..RACES {
                    let Ok(mut total) = total.lock_timeout(tight(round)) else {
                        continue;
                    };
                    *total += 1;
                    entered.fetch_add(1, Ordering::SeqCst);
                    if round % 64 == 0 {
                        dhaga::yield_now();
                    }
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == PARTS {
                    assert_eq!(*locked(&total), entered.load(Ordering::SeqCst));
                }
            })
        })
    });
}

#[test]
fn a_panic_poisons_the_mutex_it_holds() {
    everywhere(|| {
        let mutex = Arc::new(Mutex::new(7));
        let other = mutex.clone();
        let panicked = dhaga::spawn(move || {
            let _guard = other.lock();
            panic!("this panic is part of the test");
        });
        assert!(panicked.join().is_err());
        assert!(mutex.is_poisoned());
        assert_eq!(*mutex.lock().expect_err("it is poisoned").into_inner(), 7);
        assert!(matches!(mutex.try_lock(), Err(TryLockError::Poisoned(_))));
        assert!(matches!(mutex.lock_timeout(SHORT), Err(LockTimeoutError::Poisoned(_))));
        mutex.clear_poison();
        assert_eq!(*locked(&mutex), 7);
    });
}

#[test]
fn a_guard_taken_while_unwinding_does_not_poison() {
    struct LocksWhenDropped(Arc<Mutex<u32>>);

    impl Drop for LocksWhenDropped {
        fn drop(&mut self) {
            *locked(&self.0) += 1;
        }
    }

    everywhere(|| {
        let mutex = Arc::new(Mutex::new(0));
        let locks = LocksWhenDropped(mutex.clone());
        let panicked = dhaga::spawn(move || {
            let _locks = locks;
            panic!("this panic is part of the test");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*locked(&mutex), 1);
    });
}

#[test]
fn a_mutex_has_what_stds_has() {
    static COUNT: Mutex<u32> = Mutex::new(1);
    let unsized_value: Arc<Mutex<dyn Debug + Send>> = Arc::new(Mutex::new(3));
    everywhere(move || {
        *locked(&COUNT) += 1;
        assert_eq!(format!("{:?}", unsized_value.lock()), "Ok(3)");
        let mut mutex = Mutex::from(5);
        *mutex.get_mut().expect("nobody panicked") += 1;
        assert_eq!(format!("{mutex:?}"), "Mutex { data: 6, poisoned: false, .. }");
        let guard = locked(&mutex);
        assert_eq!(format!("{mutex:?}"), "Mutex { data: <locked>, poisoned: false, .. }");
        assert_eq!(format!("{guard}"), "6");
        drop(guard);
        assert_eq!(mutex.into_inner().expect("nobody panicked"), 6);
        assert_eq!(*locked(&Mutex::<u8>::default()), 0);
    });
}

// Condvar

#[test]
fn a_notification_ends_a_wait() {
    everywhere(|| {
        let shared = Arc::new((Mutex::new(0), Condvar::new()));
        let there = shared.clone();
        let notifier = dhaga::spawn(move || {
            for turn in 0..1000 {
                let guard = locked(&there.0);
                let guard = there.1.wait_while(guard, |count| *count != 2 * turn);
                *guard.expect("nobody panicked") += 1;
                there.1.notify_all();
            }
        });
        for turn in 0..1000 {
            let mut guard = locked(&shared.0);
            while *guard != 2 * turn + 1 {
                guard = shared.1.wait(guard).expect("nobody panicked");
            }
            *guard += 1;
            drop(guard);
            shared.1.notify_all();
        }
        join!(notifier);
        assert_eq!(*locked(&shared.0), 2000);
    });
}

#[test]
fn notify_one_wakes_one_and_notify_all_the_rest() {
    everywhere(|| {
        let shared = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let wait = |shared: Arc<(Mutex<(usize, usize)>, Condvar)>| {
            let mut guard = locked(&shared.0);
            guard.0 += 1;
            let mut guard = shared.1.wait(guard).expect("nobody panicked");
            guard.1 += 1;
        };
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let shared = shared.clone();
                dhaga::spawn(move || wait(shared))
            })
            .collect();
        until(|| locked(&shared.0).0 == 3);
        shared.1.notify_one();
        until(|| locked(&shared.0).1 == 1);
        assert_eq!(locked(&shared.0).1, 1);
        shared.1.notify_all();
        for waiter in waiters {
            join!(waiter);
        }
        assert_eq!(locked(&shared.0).1, 3);
    });
}

#[test]
fn a_wait_with_a_timeout_ends_without_a_notification() {
    everywhere(|| {
        let (mutex, condvar) = (Mutex::new(false), Condvar::new());
        condvar.notify_one();
        condvar.notify_all();
        let started = Instant::now();
        let waited = condvar.wait_timeout(locked(&mutex), SHORT);
        let (guard, result) = waited.expect("nobody panicked");
        assert!(result.timed_out() && result.interrupt().is_none());
        assert!(started.elapsed() >= SHORT);
        let waited = condvar.wait_timeout_while(guard, SHORT, |is_set| !*is_set);
        let (guard, result) = waited.expect("nobody panicked");
        assert!(result.timed_out());
        let waited = condvar.wait_timeout_while(guard, SHORT, |is_set| *is_set);
        assert!(!waited.expect("nobody panicked").1.timed_out());
    });
}

#[derive(Default)]
struct Tokens {
    left: usize,
    taken: usize,
}

#[test]
fn notifications_that_race_with_timeouts_are_not_lost() {
    on_all_mixtures(|| {
        let shared = Arc::new((Mutex::new(Tokens::default()), Condvar::new()));
        let mut all = parts(2, |part| {
            let shared = shared.clone();
            Box::new(move || {
                let (tokens, changed) = &*shared;
                let mut guard = locked(tokens);
                for round in part.. {
                    let none = |tokens: &mut Tokens| tokens.left == 0 && tokens.taken < RACES;
                    let waited = changed.wait_timeout_while(guard, tight(round), none);
                    guard = waited.expect("nobody panicked").0;
                    if guard.taken == RACES {
                        return;
                    }
                    if guard.left > 0 {
                        guard.left -= 1;
                        guard.taken += 1;
                    }
                }
            })
        });
        // Nothing but a notification ends the waits of this one.
        let there = shared.clone();
        all.push(Box::new(move || {
            let (tokens, changed) = &*there;
            let mut guard = locked(tokens);
            while guard.taken < RACES {
                let none = |tokens: &mut Tokens| tokens.left == 0 && tokens.taken < RACES;
                guard = changed.wait_while(guard, none).expect("nobody panicked");
                if guard.left > 0 {
                    guard.left -= 1;
                    guard.taken += 1;
                }
            }
        }));
        all.push(Box::new(move || {
            let (tokens, changed) = &*shared;
            for _ in 0..RACES {
                locked(tokens).left += 1;
                changed.notify_one();
            }
            until(|| locked(tokens).taken == RACES);
            changed.notify_all();
        }));
        all
    });
}

// Semaphore

#[test]
fn a_semaphore_lets_in_so_many_and_no_more() {
    on_all_mixtures(|| {
        let semaphore = Arc::new(Semaphore::new(2));
        let inside = Arc::new(AtomicUsize::new(0));
        parts(PARTS, |part| {
            let (semaphore, inside) = (semaphore.clone(), inside.clone());
            Box::new(move || {
                for round in 0..TIMES {
                    let count = 1 + usize::from(part == 0 && round % 8 == 0);
                    let permit = semaphore.acquire_many(count).expect("it is open");
                    assert!(inside.fetch_add(count, Ordering::SeqCst) + count <= 2);
                    if round % 256 == 0 {
                        dhaga::yield_now();
                    }
                    inside.fetch_sub(count, Ordering::SeqCst);
                    drop(permit);
                }
            })
        })
    });
}

#[test]
fn permits_come_and_go() {
    everywhere(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let permit = semaphore.acquire().expect("one is free");
        assert_eq!(semaphore.try_acquire().err(), Some(TryAcquireError::NoPermits));
        assert_eq!(semaphore.acquire_timeout(SHORT).err(), Some(AcquireTimeoutError::Timeout));
        drop(permit);
        semaphore.try_acquire().expect("one is free").forget();
        assert_eq!(semaphore.available_permits(), 0);
        semaphore.add_permits(2);
        let owned = semaphore.acquire_owned().expect("two are free");
        let dropper = dhaga::spawn(move || drop(owned));
        drop(semaphore.acquire_many(2).expect("two will be free"));
        join!(dropper);
        drop(semaphore.try_acquire_owned().expect("two are free"));
        assert_eq!(semaphore.available_permits(), 2);
    });
}

#[test]
fn who_wants_many_is_not_overtaken_by_who_wants_few() {
    everywhere(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let there = semaphore.clone();
        let many = dhaga::spawn(move || there.acquire_many(2).map(drop));
        until(|| semaphore.try_acquire().is_err());
        assert_eq!(semaphore.available_permits(), 1);
        let there = semaphore.clone();
        let few = dhaga::spawn(move || there.acquire().map(drop));
        semaphore.add_permits(1);
        assert_eq!((join!(many), join!(few)), (Ok(()), Ok(())));
        assert_eq!(semaphore.available_permits(), 2);
    });
}

#[test]
fn who_gives_up_lets_those_behind_it_pass() {
    everywhere(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let gave_up = Arc::new(AtomicBool::new(false));
        let (there, ended) = (semaphore.clone(), gave_up.clone());
        let many = dhaga::spawn(move || {
            let permits = there.acquire_many_timeout(2, 4 * SHORT).map(drop);
            ended.store(true, Ordering::SeqCst);
            permits
        });
        until(|| semaphore.try_acquire().is_err() || gave_up.load(Ordering::SeqCst));
        assert_eq!(semaphore.acquire().map(drop), Ok(()));
        assert_eq!(join!(many), Err(AcquireTimeoutError::Timeout));
    });
}

#[test]
fn closing_a_semaphore_ends_the_waits() {
    everywhere(|| {
        let semaphore = Arc::new(Semaphore::new(0));
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let semaphore = semaphore.clone();
                dhaga::spawn(move || semaphore.acquire().map(drop))
            })
            .collect();
        semaphore.close();
        for waiter in waiters {
            assert_eq!(join!(waiter), Err(AcquireError::Closed));
        }
        semaphore.add_permits(1);
        assert!(semaphore.is_closed());
        assert_eq!(semaphore.try_acquire().err(), Some(TryAcquireError::Closed));
    });
}

#[test]
fn timeouts_that_race_with_permits_lose_none() {
    on_all_mixtures(|| {
        let semaphore = Arc::new(Semaphore::new(2));
        let ended = Arc::new(AtomicUsize::new(0));
        parts(PARTS, |part| {
            let (semaphore, ended) = (semaphore.clone(), ended.clone());
            Box::new(move || {
                for round in 0..RACES {
                    let permit = semaphore.acquire_timeout(tight(round + part));
                    if round % 16 == 0 {
                        dhaga::yield_now();
                    }
                    drop(permit);
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == PARTS {
                    assert_eq!(semaphore.available_permits(), 2);
                }
            })
        })
    });
}

// Channels

/// One of each kind: rendezvous, nearly one, buffered, without limit.
fn each_channel<T>() -> [(Sender<T>, Receiver<T>); 4] {
    [channel::rendezvous(), channel::bounded(1), channel::bounded(16), channel::unbounded()]
}

#[test]
fn messages_of_one_sender_arrive_in_order() {
    everywhere(|| {
        for (sender, receiver) in each_channel() {
            let numbers = dhaga::spawn(move || (0..1000).try_for_each(|number| sender.send(number)));
            assert!(receiver.iter().eq(0..1000));
            assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
            assert_eq!(join!(numbers), Ok(()));
        }
    });
}

/// Sends distinct numbers from all senders to all receivers, each side in its own way.
fn exchange(
    (sender, receiver): (Sender<usize>, Receiver<usize>),
    each: usize,
    send: fn(&Sender<usize>, usize),
    recv: fn(&Receiver<usize>, usize) -> Option<usize>,
) -> Vec<Part> {
    let received = Arc::new(Mutex::new(Vec::new()));
    let ended = Arc::new(AtomicUsize::new(0));
    let mut all = parts(PARTS, |part| {
        let sender = sender.clone();
        Box::new(move || (0..each).for_each(|index| send(&sender, part * each + index)))
    });
    all.extend(parts(PARTS, |_| {
        let (receiver, received, ended) = (receiver.clone(), received.clone(), ended.clone());
        Box::new(move || {
            let mine: Vec<_> = (0..).map_while(|round| recv(&receiver, round)).collect();
            assert_in_order_of_each_sender(&mine, each);
            locked(&received).extend(mine);
            if ended.fetch_add(1, Ordering::SeqCst) + 1 == PARTS {
                assert_each_once(&locked(&received), PARTS * each);
            }
        })
    }));
    all
}

fn assert_in_order_of_each_sender(numbers: &[usize], each: usize) {
    let mut last = [None; PARTS];
    for &number in numbers {
        assert!(last[number / each] < Some(number), "two messages of one sender changed places");
        last[number / each] = Some(number);
    }
}

fn assert_each_once(numbers: &[usize], count: usize) {
    let distinct: HashSet<_> = numbers.iter().collect();
    assert_eq!(numbers.len(), distinct.len(), "a message was received twice");
    assert_eq!(numbers.len(), count, "messages were lost");
}

fn stress(make: fn() -> (Sender<usize>, Receiver<usize>), each: usize) {
    on_all_mixtures(move || {
        let send = |sender: &Sender<usize>, number| sender.send(number).expect("receivers wait");
        exchange(make(), each, send, |receiver, _| receiver.recv().ok())
    });
}

#[test]
fn a_rendezvous_loses_and_doubles_nothing() {
    stress(channel::rendezvous, TIMES / 10);
}

#[test]
fn a_channel_for_one_loses_and_doubles_nothing() {
    stress(|| channel::bounded(1), TIMES / 10);
}

#[test]
fn a_bounded_channel_loses_and_doubles_nothing() {
    stress(|| channel::bounded(64), TIMES);
}

#[test]
fn an_unbounded_channel_loses_and_doubles_nothing() {
    stress(channel::unbounded, TIMES);
}

/// Sends with a tight timeout until it succeeds, with the message that came back.
fn send_tightly(sender: &Sender<usize>, number: usize) {
    let mut message = number;
    for round in number.. {
        match sender.send_timeout(message, tight(round)) {
            Ok(()) => return,
            Err(SendTimeoutError::Timeout(back)) => message = back,
            Err(error) => panic!("receivers wait, but {error}"),
        }
    }
}

fn recv_tightly(receiver: &Receiver<usize>, round: usize) -> Option<usize> {
    for round in round.. {
        match receiver.recv_timeout(tight(round)) {
            Ok(number) => return Some(number),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(error) => panic!("nobody interrupts, but {error}"),
        }
    }
    None
}

fn race(make: fn() -> (Sender<usize>, Receiver<usize>)) {
    on_all_mixtures(move || exchange(make(), RACES, send_tightly, recv_tightly));
}

#[test]
fn timeouts_that_race_with_a_rendezvous_lose_and_double_nothing() {
    race(channel::rendezvous);
}

#[test]
fn timeouts_that_race_with_a_channel_for_one_lose_and_double_nothing() {
    race(|| channel::bounded(1));
}

#[test]
fn timeouts_that_race_with_an_unbounded_channel_lose_and_double_nothing() {
    race(channel::unbounded);
}

#[test]
fn a_full_channel_refuses_and_gives_back() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded(2);
        assert_eq!((sender.try_send(1), sender.send(2)), (Ok(()), Ok(())));
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(sender.send_timeout(3, SHORT), Err(SendTimeoutError::Timeout(3)));
        assert_eq!((sender.len(), sender.capacity(), sender.is_empty()), (2, Some(2), false));
        assert!(receiver.try_iter().eq([1, 2]));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        assert_eq!(channel::unbounded::<u8>().0.capacity(), None);
    });
}

#[test]
fn a_full_channel_makes_senders_wait_in_order() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded(1);
        let other = sender.clone();
        let blocked = dhaga::spawn(move || [1, 2, 3].map(|number| other.send(number)));
        until(|| sender.len() == 1);
        assert_eq!(receiver.recv(), Ok(1));
        assert_eq!(receiver.recv(), Ok(2));
        assert_eq!(receiver.recv(), Ok(3));
        assert_eq!(join!(blocked), [Ok(()); 3]);
    });
}

#[test]
fn a_rendezvous_accepts_only_what_is_taken() {
    everywhere(|| {
        let (sender, receiver) = channel::rendezvous();
        assert_eq!(sender.try_send(1), Err(TrySendError::Full(1)));
        assert_eq!(sender.send_timeout(2, SHORT), Err(SendTimeoutError::Timeout(2)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        let taker = dhaga::spawn(move || (receiver.recv(), receiver));
        until(|| sender.try_send(3).is_ok());
        let (taken, receiver) = join!(taker);
        assert_eq!(taken, Ok(3));
        let giver = dhaga::spawn(move || sender.send(4));
        until(|| receiver.try_recv() == Ok(4));
        assert_eq!(join!(giver), Ok(()));
    });
}

#[test]
fn what_was_sent_is_received_after_the_last_sender_is_gone() {
    everywhere(|| {
        let (sender, receiver) = channel::unbounded();
        let second = sender.clone();
        assert_eq!((sender.send(1), second.send(2)), (Ok(()), Ok(())));
        drop((sender, second));
        assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(1), Ok(2)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::Disconnected));
        assert_eq!(receiver.into_iter().next(), None);
    });
}

#[test]
fn the_last_sender_wakes_all_receivers() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded::<u8>(1);
        let receivers: Vec<_> = (0..3)
            .map(|_| {
                let receiver = receiver.clone();
                dhaga::spawn(move || receiver.recv())
            })
            .collect();
        drop(sender);
        for receiver in receivers {
            assert_eq!(join!(receiver), Err(RecvError::Disconnected));
        }
    });
}

#[test]
fn the_last_receiver_gives_senders_their_messages_back() {
    everywhere(|| {
        for (sender, receiver) in [channel::rendezvous(), channel::bounded(1)] {
            let senders: Vec<_> = (0..3)
                .map(|number| {
                    let sender = sender.clone();
                    dhaga::spawn(move || {
                        let _ = sender.try_send(9);
                        sender.send(number)
                    })
                })
                .collect();
            drop(receiver);
            for (number, sender) in senders.into_iter().enumerate() {
                assert_eq!(join!(sender), Err(SendError::Disconnected(number)));
            }
            assert!(sender.is_disconnected());
            assert_eq!(sender.try_send(1), Err(TrySendError::Disconnected(1)));
            assert_eq!(sender.send_timeout(1, SHORT), Err(SendTimeoutError::Disconnected(1)));
        }
    });
}

#[test]
fn each_of_several_receivers_gets_its_turn() {
    everywhere(|| {
        let (sender, receiver) = channel::unbounded();
        let counts: Vec<_> = (0..3).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let receivers: Vec<_> = counts
            .iter()
            .map(|count| {
                let (receiver, count) = (receiver.clone(), count.clone());
                dhaga::spawn(move || {
                    for () in receiver {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        until(|| {
            sender.send(()).expect("receivers wait");
            counts.iter().all(|count| count.load(Ordering::SeqCst) > 10)
        });
        drop(sender);
        for receiver in receivers {
            join!(receiver);
        }
    });
}

#[test]
fn a_message_may_use_its_channel_as_it_is_dropped() {
    struct Echo(Sender<Echo>);

    impl Drop for Echo {
        fn drop(&mut self) {
            assert!(self.0.is_disconnected());
            assert!(self.0.is_empty());
        }
    }

    everywhere(|| {
        let (sender, receiver) = channel::unbounded();
        for _ in 0..3 {
            assert!(sender.send(Echo(sender.clone())).is_ok());
        }
        drop(receiver);
    });
}

#[test]
fn what_a_panic_leaves_is_sent_but_nothing_is_waited_for() {
    struct Farewell(Sender<u8>, Receiver<u8>, Arc<Semaphore>);

    impl Drop for Farewell {
        fn drop(&mut self) {
            assert!(thread::panicking());
            assert_eq!(self.0.send(1), Ok(()));
            assert_eq!(self.1.recv(), Err(RecvError::Interrupted(Interrupt::Panicking)));
            let acquired = self.2.acquire();
            assert_eq!(acquired.err(), Some(AcquireError::Interrupted(Interrupt::Panicking)));
        }
    }

    everywhere(|| {
        let (sender, receiver) = channel::unbounded();
        let (_silent, nothing) = channel::bounded(1);
        let farewell = Farewell(sender, nothing, Arc::new(Semaphore::new(0)));
        let panicked = dhaga::spawn(move || {
            let _farewell = farewell;
            panic!("this panic is part of the test");
        });
        assert!(panicked.join().is_err());
        assert_eq!(receiver.try_recv(), Ok(1));
    });
}

#[test]
fn errors_say_what_happened() {
    fn check(error: impl std::error::Error, expected: &str) {
        assert_eq!(error.to_string(), expected);
    }

    struct NotDebug;

    check(SendError::Disconnected(NotDebug), "all receivers are gone");
    check(TrySendError::Full(NotDebug), "the channel has no room");
    check(SendTimeoutError::Timeout(NotDebug), "the channel had no room within the timeout");
    check(RecvError::Disconnected, "all senders are gone and nothing is left to receive");
    check(TryRecvError::Empty, "the channel is empty");
    check(RecvTimeoutError::Timeout, "nothing was sent within the timeout");
    check(AcquireError::Closed, "the semaphore was closed");
    check(TryAcquireError::NoPermits, "no permit is free");
    let interrupted = RecvError::Interrupted(Interrupt::Cancelled);
    assert!(std::error::Error::source(&interrupted).is_some());
    assert!(!interrupted.is_disconnected() && TryRecvError::Disconnected.is_disconnected());
    assert_eq!(SendError::Interrupted(5, Interrupt::Cancelled).into_inner(), 5);
}

// Oneshot

#[test]
fn one_message_is_received_once() {
    everywhere(|| {
        let (sender, receiver) = oneshot::channel();
        let waiting = dhaga::spawn(move || receiver.recv());
        assert_eq!(sender.send(5), Ok(()));
        assert_eq!(join!(waiting), Ok(5));

        let (sender, mut receiver) = oneshot::channel();
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        assert_eq!(sender.send(6), Ok(()));
        assert_eq!(receiver.recv_timeout(SHORT), Ok(6));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    });
}

#[test]
fn either_side_of_a_oneshot_notices_that_the_other_is_gone() {
    everywhere(|| {
        let (sender, receiver) = oneshot::channel::<u8>();
        let waiting = dhaga::spawn(move || receiver.recv());
        drop(sender);
        assert_eq!(join!(waiting), Err(RecvError::Disconnected));

        let (sender, receiver) = oneshot::channel();
        assert!(!sender.is_disconnected());
        drop(receiver);
        assert!(sender.is_disconnected());
        assert_eq!(sender.send(7), Err(7));
    });
}

#[test]
fn a_timeout_that_races_with_the_one_message_loses_nothing() {
    on_all_mixtures(|| {
        let (sender, receiver) = channel::bounded(64);
        vec![
            Box::new(move || {
                for round in 0..RACES {
                    let (once, received) = oneshot::channel();
                    sender.send(received).expect("the receiver waits");
                    assert_eq!(once.send(round), Ok(()));
                }
            }),
            Box::new(move || {
                for (round, mut received) in receiver.iter().enumerate() {
                    let got = received.recv_timeout(tight(round));
                    let got = got.or_else(|_| received.recv());
                    assert_eq!(got.ok(), Some(round));
                }
            }),
        ]
    });
}

#[test]
fn a_lock_can_be_taken_while_a_threads_locals_are_destroyed() {
    static LOCK: Mutex<bool> = Mutex::new(false);
    struct LocksInDrop;
    impl Drop for LocksInDrop {
        fn drop(&mut self) {
            *locked(&LOCK) = true;
        }
    }
    thread_local!(static LOCAL: LocksInDrop = const { LocksInDrop });
    let user = thread::spawn(|| {
        // Destroyed last, because it was first: by then nothing that locks need is left.
        LOCAL.with(|_| ());
        *locked(&LOCK) = false;
    });
    user.join().expect("the thread ends in order");
    assert!(*locked(&LOCK));
}

#[test]
fn a_thread_waits_also_while_its_locals_are_destroyed() {
    struct WaitsInDrop;
    impl Drop for WaitsInDrop {
        fn drop(&mut self) {
            let (sender, receiver) = oneshot::channel();
            let answer = dhaga::spawn(move || {
                dhaga::sleep(Duration::from_millis(20));
                sender.send(7)
            });
            assert_eq!(receiver.recv(), Ok(7));
            assert_eq!(answer.join().expect("it ends"), Ok(()));
            let (_silent, mut receiver) = oneshot::channel::<()>();
            assert_eq!(receiver.recv_timeout(Duration::from_millis(20)), Err(RecvTimeoutError::Timeout));
        }
    }
    thread_local!(static LOCAL: WaitsInDrop = const { WaitsInDrop });
    within_deadline(DEADLINE, || {
        let thread = thread::spawn(|| {
            // Ours comes later, so it is destroyed before.
            LOCAL.with(|_| ());
            dhaga::spawn(dhaga::yield_now).join().expect("it ends");
        });
        thread.join().expect("the thread ends well");
    });
}
