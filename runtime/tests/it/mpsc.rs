//! The channels with std's names: what std does, and what the end of a scope or of a runtime does to them.

use std::collections::HashSet;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError, channel, sync_channel};

use crate::common::{DEADLINE, cancelled_during, everywhere, shut_down_during, within_deadline};
use crate::panicking::while_panicking;

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
/// How many senders race, and how many messages each of them sends.
const SENDERS: usize = 4;
const EACH: usize = 10_000;

/// Counts itself when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Compiles for types that are not `Sync` only: for others, `A` is ambiguous.
trait NotSync<A> {
    fn check() {}
}
impl<T: ?Sized> NotSync<()> for T {}
impl<T: ?Sized + Sync> NotSync<u8> for T {}

fn is_send<T: Send>() {}
fn is_shared<T: Send + Sync>() {}
fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}

/// The same tests three times: with std's channels, to see that they are right; and with ours, on a plain thread and in a
/// dhaga, where the other side is on a thread, or in a dhaga.
macro_rules! as_in_std {
    ($(fn $name:ident() $body:block)*) => {
        as_in_std! {
            in std_itself, std::sync::mpsc, thread::spawn, |body: fn()| within_deadline(DEADLINE, body), $($name $body)*
        }
        as_in_std! { in ours_to_threads, dhaga::sync::mpsc, thread::spawn, |body: fn()| everywhere(body), $($name $body)* }
        as_in_std! { in ours_to_dhagas, dhaga::sync::mpsc, dhaga::spawn, |body: fn()| everywhere(body), $($name $body)* }
    };
    (in $module:ident, $mpsc:path, $spawn:path, $run:expr, $($name:ident $body:block)*) => {
        mod $module {
            use super::*;
            use $mpsc as mpsc;
            use $spawn as spawn;
            use mpsc::{channel, sync_channel};

            $(#[test]
            fn $name() {
                $run(|| $body);
            })*
        }
    };
}

as_in_std! {
    fn the_types_are_as_free_as_stds() {
        is_shared::<mpsc::Sender<u8>>();
        is_shared::<mpsc::SyncSender<u8>>();
        is_send::<mpsc::Receiver<u8>>();
        is_send::<mpsc::IntoIter<u8>>();
        <mpsc::Receiver<u8> as NotSync<_>>::check();
        is_unwind_safe::<mpsc::Sender<&mut u8>>();
        is_unwind_safe::<mpsc::SyncSender<&mut u8>>();
        is_unwind_safe::<mpsc::Receiver<&mut u8>>();
        assert_eq!(format!("{:?}", channel::<u8>()), "(Sender { .. }, Receiver { .. })");
        assert_eq!(format!("{:?}", sync_channel::<u8>(1)), "(SyncSender { .. }, Receiver { .. })");
    }

    fn messages_of_one_sender_arrive_in_order() {
        let (sender, receiver) = channel();
        let all = spawn(move || (0..1000).try_for_each(|number| sender.send(number)));
        assert!(receiver.iter().eq(0..1000));
        assert_eq!(all.join().expect("it ends well"), Ok(()));
        for bound in [0, 1, 16] {
            let (sender, receiver) = sync_channel(bound);
            let all = spawn(move || (0..1000).try_for_each(|number| sender.send(number)));
            assert!(receiver.into_iter().eq(0..1000));
            assert_eq!(all.join().expect("it ends well"), Ok(()));
        }
    }

    fn many_senders_lose_and_double_nothing() {
        for bound in [0, 1, 64] {
            let (sender, receiver) = sync_channel(bound);
            let senders: Vec<_> = (0..SENDERS)
                .map(|own| {
                    let sender = sender.clone();
                    spawn(move || (0..EACH).try_for_each(|index| sender.send(own * EACH + index)))
                })
                .collect();
            drop(sender);
            let mut next: Vec<_> = (0..SENDERS).map(|own| own * EACH).collect();
            for number in &receiver {
                assert_eq!(number, next[number / EACH], "each message once, and in order");
                next[number / EACH] += 1;
            }
            assert!(next.iter().enumerate().all(|(own, &next)| next == (own + 1) * EACH), "{next:?}");
            for sender in senders {
                assert_eq!(sender.join().expect("it ends well"), Ok(()));
            }
        }
    }

    fn what_was_sent_is_received_after_the_last_sender_is_gone() {
        let (sender, receiver) = channel();
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        sender.clone().send(1).expect("the receiver is there");
        sender.send(2).expect("the receiver is there");
        drop(sender);
        assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(1), Ok(2)));
        assert_eq!(receiver.recv(), Err(RecvError));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
    }

    fn the_last_sender_wakes_the_receiver() {
        let (sender, receiver) = channel::<u8>();
        let last = spawn(move || drop(sender));
        assert_eq!(receiver.recv(), Err(RecvError));
        last.join().expect("it ends well");
    }

    fn what_is_sent_after_the_receiver_is_gone_comes_back() {
        let (sender, receiver) = channel();
        drop(receiver);
        assert_eq!(sender.send(1), Err(SendError(1)));
        for bound in [0, 1] {
            let (sender, receiver) = sync_channel(bound);
            drop(receiver);
            assert_eq!(sender.send(1), Err(SendError(1)));
            assert_eq!(sender.try_send(2), Err(TrySendError::Disconnected(2)));
        }
    }

    fn the_receiver_gives_senders_that_wait_their_messages_back() {
        for bound in [0, 1] {
            let (sender, receiver) = sync_channel(bound);
            while sender.try_send(0).is_ok() {}
            let waiting: Vec<_> = (1..=SENDERS)
                .map(|own| {
                    let sender = sender.clone();
                    spawn(move || sender.send(own))
                })
                .collect();
            drop(receiver);
            for (own, sender) in (1..).zip(waiting) {
                assert_eq!(sender.join().expect("it ends well"), Err(SendError(own)));
            }
        }
    }

    fn messages_that_are_left_are_dropped_with_the_receiver() {
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = channel();
        for _ in 0..3 {
            assert!(sender.send(Counted(drops.clone())).is_ok());
        }
        drop(receiver);
        assert_eq!(drops.load(Ordering::SeqCst), 3);
    }

    fn a_full_channel_refuses_and_gives_back() {
        let (sender, receiver) = sync_channel(2);
        assert_eq!((sender.try_send(1), sender.try_send(2)), (Ok(()), Ok(())));
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(receiver.try_recv(), Ok(1));
        assert_eq!(sender.try_send(3), Ok(()));
        let fourth = spawn(move || sender.send(4));
        assert!(receiver.iter().eq([2, 3, 4]));
        assert_eq!(fourth.join().expect("it ends well"), Ok(()));
    }

    fn with_a_bound_of_zero_a_send_ends_when_it_was_received() {
        let (sender, receiver) = sync_channel(0);
        assert_eq!(sender.try_send(1), Err(TrySendError::Full(1)));
        let (ended, has_ended) = channel();
        let first = spawn(move || {
            let sent = sender.send(1);
            ended.send(()).expect("the test waits");
            sent
        });
        assert_eq!(has_ended.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        assert_eq!(receiver.recv(), Ok(1));
        assert_eq!(has_ended.recv(), Ok(()));
        assert_eq!(first.join().expect("it ends well"), Ok(()));
    }

    fn a_timeout_passes_and_not_too_early() {
        let (sender, receiver) = channel();
        let start = Instant::now();
        assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        let later = spawn(move || sender.send(1));
        assert_eq!(receiver.recv_timeout(DEADLINE), Ok(1));
        assert_eq!(receiver.recv_timeout(Duration::MAX), Err(RecvTimeoutError::Disconnected));
        assert_eq!(later.join().expect("it ends well"), Ok(()));
    }

    fn timeouts_that_race_with_messages_lose_and_double_nothing() {
        let (sender, receiver) = sync_channel(1);
        let all = spawn(move || (0..EACH).try_for_each(|number| sender.send(number)));
        let mut received = HashSet::new();
        for round in 0.. {
            match receiver.recv_timeout(Duration::from_nanos(round * 7919 % 20_000)) {
                Ok(number) => assert!(received.insert(number), "{number} came twice"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        assert_eq!(received.len(), EACH);
        assert_eq!(all.join().expect("it ends well"), Ok(()));
    }

    fn iterators_take_what_is_there_or_all_to_come() {
        let (sender, receiver) = channel();
        (0..4).try_for_each(|number| sender.send(number)).expect("the receiver is there");
        assert!(receiver.try_iter().take(2).eq(0..2));
        assert!(receiver.try_iter().eq(2..4));
        assert_eq!(receiver.try_iter().next(), None);
        let rest = spawn(move || (4..8).try_for_each(|number| sender.send(number)));
        assert!((4..6).zip(&receiver).all(|(expected, number)| number == expected));
        assert!(receiver.into_iter().eq(6..8));
        // The receiver went with its iterator, but only after the last message.
        assert_eq!(rest.join().expect("it ends well"), Ok(()));
    }
}

#[test]
fn a_cancel_ends_a_wait_as_if_the_other_side_were_gone() {
    within_deadline(DEADLINE, || {
        let (sender, receiver) = sync_channel(0);
        let receiver = cancelled_during(move || {
            assert_eq!(receiver.recv(), Err(RecvError));
            receiver
        });
        let receiver = cancelled_during(move || {
            assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
            receiver
        });
        let theirs = sender.clone();
        assert_eq!(cancelled_during(move || theirs.send(1)), Err(SendError(1)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        // Both sides go on for all others.
        let other = dhaga::spawn(move || sender.send(2));
        assert_eq!(receiver.recv(), Ok(2));
        assert_eq!(other.join().expect("it ends well"), Ok(()));
    });
}

#[test]
fn a_cancelled_dhaga_gets_nothing_though_something_is_ready() {
    within_deadline(DEADLINE, || {
        let (sender, receiver) = sync_channel(2);
        let (theirs, nothing) = channel();
        let receiver = cancelled_during(move || {
            assert_eq!(receiver.recv(), Err(RecvError));
            assert_eq!(sender.try_send(1), Ok(()));
            assert_eq!(receiver.recv(), Err(RecvError));
            assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
            assert_eq!(receiver.iter().next(), None);
            assert_eq!(sender.send(2), Err(SendError(2)));
            assert_eq!(theirs.send(3), Err(SendError(3)));
            receiver
        });
        assert!(receiver.iter().eq([1]));
        assert_eq!(nothing.recv(), Err(RecvError));
    });
}

#[test]
fn a_panicking_thread_sends_and_receives_what_needs_no_wait() {
    everywhere(|| {
        let (sender, receiver) = sync_channel(1);
        assert_eq!(while_panicking(|| receiver.recv()), Err(RecvError));
        assert_eq!(while_panicking(|| receiver.recv_timeout(DEADLINE)), Err(RecvTimeoutError::Disconnected));
        assert_eq!(while_panicking(|| sender.send(1)), Ok(()));
        assert_eq!(while_panicking(|| sender.send(2)), Err(SendError(2)));
        assert_eq!(while_panicking(|| receiver.recv()), Ok(1));
    });
}

#[test]
fn a_shutdown_takes_what_waits_and_leaves_the_others_working() {
    everywhere(|| {
        let (sender, receiver) = sync_channel(1);
        sender.send(1).expect("there is room");
        let theirs = sender.clone();
        shut_down_during(move || theirs.send(-1));
        let behind = dhaga::spawn(move || (2..5).try_for_each(|number| sender.send(number)));
        assert!(receiver.iter().eq(1..5));
        assert_eq!(behind.join().expect("it ends well"), Ok(()));
        let (sender, receiver) = channel::<i32>();
        shut_down_during(move || receiver.recv());
        assert_eq!(sender.send(1), Err(SendError(1)));
    });
}
