//! Each message to every receiver: on plain threads, in dhagas, and between the two.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::broadcast::{self, Receiver, RecvError, RecvTimeoutError, SendError, Sender, TryRecvError};
use dhaga::sync::{Interrupt, channel};

use crate::common::{DEADLINE, Part, cancelled_during, everywhere, on_all_mixtures, shut_down_during, within_deadline};
use crate::panicking::while_panicking;

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
/// How many of each side race, and how many messages each sender sends.
const PARTS: usize = 4;
const EACH: usize = 4_000;

fn send_all(sender: &Sender<usize>, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        sender.send(number).expect("somebody receives");
    }
}

fn try_all(receiver: &mut Receiver<usize>) -> Vec<usize> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

#[test]
fn each_message_reaches_every_receiver_in_order() {
    on_all_mixtures(|| {
        let (sender, receiver) = broadcast::channel(1000);
        let mut parts: Vec<Part> = (0..PARTS)
            .map(|_| {
                let mut receiver = receiver.clone();
                Box::new(move || {
                    (0..1000).for_each(|number| assert_eq!(receiver.recv(), Ok(number)));
                    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
                }) as Part
            })
            .collect();
        parts.push(Box::new(move || send_all(&sender, 0..1000)));
        parts
    });
}

#[test]
fn nobody_misses_a_message_but_by_lagging_and_all_is_accounted_for() {
    // Small capacities, so that receivers wait, and lag, and do so in the same moment as messages are sent.
    on_all_mixtures(|| [1, 2, 64].into_iter().flat_map(race).collect());
}

/// Senders that send as fast as they can, and receivers each of which gets or loses every message.
fn race(capacity: usize) -> Vec<Part> {
    let (sender, receiver) = broadcast::channel(capacity);
    let receivers = (0..PARTS).map(|_| {
        let mut receiver = receiver.clone();
        Box::new(move || {
            let (received, lost) = drain(&mut receiver);
            assert_eq!(received + lost, PARTS * EACH);
        }) as Part
    });
    let mut parts: Vec<_> = receivers.collect();
    parts.extend((0..PARTS).map(|own| {
        let sender = sender.clone();
        Box::new(move || {
            for index in 0..EACH {
                sender.send(own * EACH + index).expect("somebody receives");
                assert!(sender.len() <= capacity);
                if index % 8 == 0 {
                    dhaga::yield_now();
                }
            }
        }) as Part
    }));
    parts
}

/// How many messages were received until the last sender went, and how many were lost.
fn drain(receiver: &mut Receiver<usize>) -> (usize, usize) {
    let (mut received, mut lost) = (0, 0);
    let mut last = [None; PARTS];
    loop {
        match receiver.recv() {
            Ok(number) => {
                received += 1;
                assert!(last[number / EACH] < Some(number), "two messages of one sender changed places");
                last[number / EACH] = Some(number);
            }
            Err(RecvError::Lagged(count)) => lost += usize::try_from(count).expect("so many were sent"),
            Err(RecvError::Disconnected) => return (received, lost),
            Err(error) => panic!("nobody interrupts, but {error}"),
        }
    }
}

#[test]
fn no_wake_is_lost_when_everybody_answers_each_message() {
    // The next message is sent when all have received the one before: one wake that is lost is a hang.
    on_all_mixtures(|| {
        let (sender, receiver) = broadcast::channel(1);
        let (answers, answered) = channel::unbounded();
        let mut parts: Vec<Part> = (0..PARTS)
            .map(|_| {
                let (mut receiver, answers) = (receiver.clone(), answers.clone());
                Box::new(move || {
                    for number in 0..EACH {
                        assert_eq!(receiver.recv(), Ok(number));
                        answers.send(number).expect("the sender waits");
                    }
                }) as Part
            })
            .collect();
        parts.push(Box::new(move || {
            for number in 0..EACH {
                sender.send(number).expect("somebody receives");
                (0..PARTS).for_each(|_| assert_eq!(answered.recv(), Ok(number)));
            }
        }));
        parts
    });
}

#[test]
fn who_falls_behind_is_told_once_and_goes_on_with_the_oldest_that_is_left() {
    everywhere(|| {
        let (sender, mut slow) = broadcast::channel(3);
        let mut fast = sender.subscribe();
        send_all(&sender, 0..3);
        assert_eq!(try_all(&mut fast), [0, 1, 2]);
        send_all(&sender, 3..5);
        assert_eq!(try_all(&mut fast), [3, 4]);
        assert_eq!((slow.len(), sender.len()), (3, 3));
        assert_eq!(slow.recv(), Err(RecvError::Lagged(2)));
        assert_eq!(slow.recv(), Ok(2));
        send_all(&sender, 5..10);
        assert_eq!(slow.try_recv(), Err(TryRecvError::Lagged(4)));
        assert_eq!(try_all(&mut slow), [7, 8, 9]);
        send_all(&sender, 10..14);
        assert_eq!(slow.recv_timeout(DEADLINE), Err(RecvTimeoutError::Lagged(1)));
        drop(sender);
        assert_eq!(try_all(&mut slow), [11, 12, 13]);
        assert_eq!(slow.recv(), Err(RecvError::Disconnected));
        assert_eq!(slow.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(fast.recv(), Err(RecvError::Lagged(6)));
    });
}

#[test]
fn a_capacity_of_zero_counts_as_one() {
    let (sender, mut receiver) = broadcast::channel(0);
    assert_eq!(sender.capacity(), 1);
    send_all(&sender, 0..2);
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Lagged(1)));
    assert_eq!(try_all(&mut receiver), [1]);
}

#[test]
fn who_subscribes_gets_what_is_sent_from_then_on_and_a_clone_what_its_model_gets() {
    everywhere(|| {
        let (sender, mut first) = broadcast::channel(8);
        send_all(&sender, 0..2);
        let mut second = sender.subscribe();
        assert_eq!(first.recv(), Ok(0));
        let mut third = first.clone();
        let mut fourth = first.resubscribe();
        send_all(&sender, 2..4);
        assert_eq!(sender.receiver_count(), 4);
        assert_eq!(
            [&mut first, &mut second, &mut third, &mut fourth].map(try_all),
            [vec![1, 2, 3], vec![2, 3], vec![1, 2, 3], vec![2, 3]]
        );
        // A clone of one that has lagged has lagged as far.
        send_all(&sender, 4..14);
        assert_eq!(first.clone().try_recv(), Err(TryRecvError::Lagged(2)));
        assert_eq!(first.recv(), Err(RecvError::Lagged(2)));
    });
}

#[test]
fn what_nobody_receives_comes_back_until_somebody_subscribes() {
    everywhere(|| {
        let (sender, receiver) = broadcast::channel(2);
        drop(receiver);
        assert_eq!(sender.send(1), Err(SendError(1)));
        let mut late = sender.subscribe();
        assert_eq!(sender.send(2), Ok(1));
        assert_eq!(late.recv(), Ok(2));
        drop(late);
        assert_eq!((sender.receiver_count(), sender.send(3)), (0, Err(SendError(3))));
    });
}

#[test]
fn ten_thousand_receivers_are_woken_by_one_message() {
    const MANY: usize = 10_000;
    within_deadline(DEADLINE, || {
        let (sender, receiver) = broadcast::channel(1);
        let received = Arc::new(AtomicUsize::new(0));
        let dhagas: Vec<_> = (0..MANY)
            .map(|_| {
                let (mut receiver, received) = (receiver.clone(), received.clone());
                dhaga::spawn(move || {
                    assert_eq!(receiver.recv(), Ok("all"));
                    received.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
                })
            })
            .collect();
        drop(receiver);
        assert_eq!(sender.send("all"), Ok(MANY));
        while received.load(Ordering::SeqCst) < MANY {
            thread::yield_now();
        }
        assert!(sender.is_empty());
        drop(sender);
        dhagas.into_iter().for_each(|dhaga| dhaga.join().expect("it ends well"));
    });
}

#[test]
fn receivers_that_come_and_go_disturb_nobody_who_waits() {
    on_all_mixtures(|| {
        let (sender, receiver) = broadcast::channel(4);
        let (answers, answered) = channel::rendezvous();
        let mut waiter = receiver.clone();
        let waits = move || {
            for number in 0..EACH {
                assert_eq!(waiter.recv(), Ok(number));
                answers.send(number).expect("the sender waits");
            }
        };
        let mut parts: Vec<Part> = vec![Box::new(waits)];
        parts.extend((0..PARTS).map(|part| {
            let (subscriber, mut receiver) = (sender.clone(), receiver.clone());
            Box::new(move || {
                for round in 0..EACH {
                    receiver = if (part + round) % 2 == 0 { subscriber.subscribe() } else { receiver.clone() };
                    let result = receiver.recv_timeout(Duration::from_nanos((round * 7919 % 10_000) as u64));
                    assert_ne!(result, Err(RecvTimeoutError::Disconnected));
                }
            }) as Part
        }));
        parts.push(Box::new(move || {
            for number in 0..EACH {
                sender.send(number).expect("somebody receives");
                assert_eq!(answered.recv(), Ok(number));
            }
            drop(receiver);
        }));
        parts
    });
}

#[test]
fn a_timeout_passes_and_not_too_early() {
    everywhere(|| {
        let (sender, mut receiver) = broadcast::channel(1);
        let start = Instant::now();
        assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(receiver.recv_deadline(start), Err(RecvTimeoutError::Timeout));
        let later = dhaga::spawn(move || sender.send(1));
        assert_eq!(receiver.recv_timeout(DEADLINE), Ok(1));
        assert_eq!(later.join().expect("it ends well"), Ok(1));
        assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
    });
}

#[test]
fn the_last_sender_wakes_all_receivers() {
    on_all_mixtures(|| {
        let (sender, receiver) = broadcast::channel::<u8>(1);
        let second = sender.clone();
        let mut parts: Vec<Part> = vec![Box::new(move || drop(sender)), Box::new(move || drop(second))];
        parts.extend((0..PARTS).map(|_| {
            let mut receiver = receiver.clone();
            Box::new(move || assert_eq!(receiver.recv(), Err(RecvError::Disconnected))) as Part
        }));
        parts
    });
}

#[test]
fn a_cancel_ends_the_wait_and_refuses_what_is_ready() {
    within_deadline(DEADLINE, || {
        let (sender, mut receiver) = broadcast::channel(4);
        let mut other = receiver.clone();
        let theirs = sender.clone();
        let mut receiver = cancelled_during(move || {
            assert_eq!(receiver.recv(), Err(RecvError::Interrupted(Interrupt::Cancelled)));
            // Sending is no wait.
            assert_eq!(theirs.send(1), Ok(2));
            assert_eq!(receiver.recv(), Err(RecvError::Interrupted(Interrupt::Cancelled)));
            let refused = receiver.recv_timeout(DEADLINE);
            assert_eq!(refused, Err(RecvTimeoutError::Interrupted(Interrupt::Cancelled)));
            receiver
        });
        assert_eq!(sender.send(2), Ok(2));
        assert_eq!([receiver.recv(), receiver.recv(), other.recv(), other.recv()], [Ok(1), Ok(2), Ok(1), Ok(2)]);
    });
}

#[test]
fn a_panicking_thread_receives_what_needs_no_wait() {
    everywhere(|| {
        let (sender, mut receiver) = broadcast::channel(2);
        let refused = while_panicking(|| receiver.recv());
        assert_eq!(refused, Err(RecvError::Interrupted(Interrupt::Panicking)));
        assert_eq!(while_panicking(|| sender.send(1)), Ok(1));
        assert_eq!(while_panicking(|| receiver.recv()), Ok(1));
    });
}

#[test]
fn a_shutdown_takes_receivers_that_wait_and_leaves_the_others_working() {
    everywhere(|| {
        let (sender, mut receiver) = broadcast::channel(2);
        let mut torn_down = receiver.clone();
        let waiting = dhaga::spawn(move || (receiver.recv(), receiver.recv(), receiver.recv()));
        shut_down_during(move || torn_down.recv());
        assert_eq!(sender.receiver_count(), 1);
        assert_eq!((sender.send(1), sender.send(2)), (Ok(1), Ok(1)));
        drop(sender);
        let received = waiting.join().expect("it ends well");
        assert_eq!(received, (Ok(1), Ok(2), Err(RecvError::Disconnected)));
    });
}

/// Counts its clones and drops, and uses its channel in both.
struct Nosy {
    sender: Sender<Nosy>,
    clones: Arc<AtomicUsize>,
    drops: Arc<AtomicUsize>,
}

impl Clone for Nosy {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, Ordering::SeqCst);
        assert!(self.sender.len() <= 2);
        let Nosy { sender, clones, drops } = self;
        Nosy { sender: sender.clone(), clones: clones.clone(), drops: drops.clone() }
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        assert!(self.sender.len() <= 2);
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn messages_may_use_their_channel_as_they_are_cloned_and_dropped_and_none_is_kept_without_need() {
    everywhere(|| {
        let (sender, mut first) = broadcast::channel(2);
        let mut second = sender.subscribe();
        let (clones, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = || (clones.load(Ordering::SeqCst), drops.load(Ordering::SeqCst));
        let send = || {
            let nosy = Nosy { sender: sender.clone(), clones: clones.clone(), drops: drops.clone() };
            assert!(sender.send(nosy).is_ok());
        };
        send();
        assert!(first.recv().is_ok());
        assert_eq!(counts(), (1, 1), "the first gets a clone");
        assert!(second.recv().is_ok());
        assert_eq!(counts(), (1, 2), "the last gets the message");
        (0..3).for_each(|_| send());
        assert_eq!(counts(), (1, 3), "the oldest gives way");
        drop(first);
        assert_eq!(sender.len(), 2);
        drop(second);
        assert_eq!((sender.len(), counts()), (0, (1, 5)));
    });
}

#[test]
fn errors_say_what_happened() {
    fn check(error: impl std::error::Error, expected: &str) {
        assert_eq!(error.to_string(), expected);
    }
    check(RecvError::Lagged(3), "the receiver fell behind and lost 3 messages");
    check(TryRecvError::Lagged(1), "the receiver fell behind and lost 1 messages");
    check(TryRecvError::Empty, "the channel is empty");
    check(RecvTimeoutError::Timeout, "nothing was sent within the timeout");
    check(RecvError::Disconnected, "all senders are gone and nothing is left to receive");
    let interrupted = RecvError::Interrupted(Interrupt::Cancelled);
    check(interrupted, "receiving was interrupted");
    assert!(std::error::Error::source(&interrupted).is_some());
}
