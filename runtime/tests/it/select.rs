//! The first of several events: each kind of event, what comes together, and what ends a wait.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::select::Select;
use dhaga::sync::channel::{self, Receiver, RecvError, SendError, Sender, TryRecvError};
use dhaga::sync::{Interrupt, oneshot};
use dhaga::{JoinError, JoinHandle, Runtime, ScopedJoinHandle};

use crate::common::{DEADLINE, On, Part, everywhere, on_all_mixtures, together, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

/// How often something races with something else.
const RACES: usize = 20_000;

/// A timeout which passes sometimes before and sometimes after what it races with.
fn tight(round: usize) -> Duration {
    Duration::from_nanos((round * 7919 % 20_000) as u64)
}

/// Runs a body with somebody who waits, and lets the wait begin before `then`, as far as can be seen from outside.
fn later(then: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    dhaga::spawn(move || {
        dhaga::sleep(SHORT);
        then();
    })
}

fn ends_well<T>(handle: JoinHandle<T>) -> T {
    handle.join().expect("the dhaga ends well")
}

fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    (near, listener.accept().expect("somebody has connected").0)
}

// Each kind of event, at once and later.

#[test]
fn a_message_that_is_there_is_received() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded(1);
        let (_silent, nothing) = channel::bounded::<u8>(1);
        sender.send(7).expect("there is room");
        let value = dhaga::select! {
            recv(nothing) -> _ => unreachable!(),
            recv(receiver) -> message => message,
        };
        assert_eq!(value, Ok(7));
    });
}

#[test]
fn a_message_that_comes_later_is_received() {
    everywhere(|| {
        for (sender, receiver) in [channel::rendezvous(), channel::bounded(1), channel::unbounded()] {
            let (_silent, nothing) = channel::bounded::<u8>(1);
            let sent = later(move || assert_eq!(sender.send(7), Ok(())));
            let value = dhaga::select! {
                recv(receiver) -> message => message,
                recv(nothing) -> _ => unreachable!(),
            };
            assert_eq!(value, Ok(7));
            ends_well(sent);
        }
    });
}

#[test]
fn a_message_is_sent_at_once_or_when_there_is_room() {
    everywhere(|| {
        for (sender, receiver) in [channel::rendezvous(), channel::bounded(1)] {
            let (_silent, nothing) = channel::bounded::<u8>(1);
            let received = later(move || assert!(receiver.into_iter().eq([1, 2, 3])));
            for number in 1..=3 {
                let sent = dhaga::select! {
                    recv(nothing) -> _ => unreachable!(),
                    send(sender, number) -> sent => sent,
                };
                assert_eq!(sent, Ok(()));
            }
            drop(sender);
            ends_well(received);
        }
    });
}

#[test]
fn the_other_side_that_goes_is_an_event() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded::<u8>(1);
        let (full, stuck) = channel::rendezvous();
        let gone = later(move || drop(sender));
        let value = dhaga::select! {
            recv(receiver) -> message => message,
            send(full, 1) -> _ => unreachable!(),
        };
        assert_eq!(value, Err(RecvError::Disconnected));
        ends_well(gone);

        let (_silent, nothing) = channel::bounded::<u8>(1);
        let gone = later(move || drop(stuck));
        let value = dhaga::select! {
            recv(nothing) -> _ => unreachable!(),
            send(full, 1) -> sent => sent,
        };
        assert_eq!(value, Err(SendError::Disconnected(1)));
        ends_well(gone);
        let at_once = dhaga::select! {
            recv(receiver) -> message => message.is_err(),
            send(full, 1) -> sent => sent.is_err(),
        };
        assert!(at_once);
    });
}

#[test]
fn a_message_that_was_not_sent_stays_in_its_place() {
    everywhere(|| {
        let (full, receiver) = channel::rendezvous();
        let mut message = Some("one".to_owned());
        let round = |message: &mut Option<String>| {
            dhaga::select! {
                send_from(full, *message) -> sent => sent.is_ok(),
                after(SHORT) => false,
                interrupted(why) => panic!("{why:?}"),
            }
        };
        assert!(!round(&mut message));
        assert_eq!(message.as_deref(), Some("one"));
        let received = dhaga::spawn(move || receiver.recv());
        while !round(&mut message) {}
        assert_eq!((message.as_deref(), ends_well(received)), (None, Ok("one".to_owned())));
        assert!(!round(&mut message), "nothing is sent where nothing is");
    });
}

#[test]
fn the_end_of_a_dhaga_is_an_event() {
    everywhere(|| {
        let (_silent, nothing) = channel::bounded::<u8>(1);
        let (go, may_go) = oneshot::channel::<()>();
        let mut worker = Some(dhaga::spawn(move || may_go.recv().map(|()| 42)));
        let mut panics = None::<JoinHandle<()>>;
        let early = dhaga::select! {
            join(worker) -> _ => true,
            join(panics) -> _ => true,
            after(SHORT) => false,
            interrupted(why) => unreachable!("{why}"),
        };
        assert!(!early && worker.is_some());
        let gone = later(move || assert_eq!(go.send(()), Ok(())));
        let outcome = dhaga::select! {
            join(worker) -> outcome => outcome.expect("it ends well"),
            recv(nothing) -> _ => unreachable!(),
        };
        assert_eq!((outcome, worker.is_none()), (Ok(42), true));
        ends_well(gone);

        panics = Some(dhaga::spawn(|| panic!("this panic is part of the test")));
        let outcome = dhaga::select! {
            join(panics) -> outcome => outcome,
            recv(nothing) -> _ => unreachable!(),
        };
        assert!(matches!(outcome, Err(JoinError::Panicked(_))));
    });
}

#[test]
fn the_end_of_a_scoped_dhaga_is_an_event() {
    everywhere(|| {
        let (_silent, nothing) = channel::bounded::<u8>(1);
        let text = String::from("borrowed");
        let (go, may_go) = oneshot::channel::<()>();
        dhaga::scope(|s| {
            let mut worker = Some(s.spawn(|| may_go.recv().map(|()| text.as_str())));
            let mut panics = None::<ScopedJoinHandle<'_, ()>>;
            let early = dhaga::select! {
                join(worker) -> _ => true,
                join(panics) -> _ => true,
                after(SHORT) => false,
                interrupted(why) => unreachable!("{why}"),
            };
            assert!(!early && worker.is_some());
            s.spawn(move || assert_eq!(go.send(()), Ok(())));
            let outcome = dhaga::select! {
                join(worker) -> outcome => outcome.expect("it ends well"),
                recv(nothing) -> _ => unreachable!(),
            };
            assert_eq!((outcome, worker.is_none()), (Ok("borrowed"), true));

            panics = Some(s.spawn(|| panic!("this panic is part of the test")));
            let mut select = Select::new();
            select.join(&mut panics, |outcome| outcome);
            let outcome = select.wait().expect("nothing ends the wait");
            assert!(matches!(outcome, Err(JoinError::Panicked(_))));
        });
    });
}

/// An end that is there is delivered in a scope that is over, as by every event.
#[test]
fn the_end_of_a_scoped_dhaga_is_found_in_a_cancelled_scope() {
    everywhere(|| {
        dhaga::scope(|s| {
            let mut worker = Some(s.spawn(|| 7));
            while !worker.as_ref().is_some_and(ScopedJoinHandle::is_finished) {
                dhaga::yield_now();
            }
            s.cancel();
            let ended = dhaga::select! { join(worker) -> ended => ended.ok(), default => None };
            assert_eq!(ended, Some(7));
        });
    });
}

#[test]
fn the_message_of_a_oneshot_is_an_event() {
    everywhere(|| {
        let (_silent, nothing) = channel::bounded::<u8>(1);
        let (sender, mut receiver) = oneshot::channel();
        let early = dhaga::select! {
            oneshot(receiver) -> _ => true,
            after(SHORT) => false,
        };
        assert!(!early);
        let sent = later(move || assert_eq!(sender.send(5), Ok(())));
        let value = dhaga::select! {
            recv(nothing) -> _ => unreachable!(),
            oneshot(receiver) -> value => value,
        };
        assert_eq!(value, Ok(5));
        ends_well(sent);

        let (sender, mut receiver) = oneshot::channel::<u8>();
        let gone = later(move || drop(sender));
        let value = dhaga::select! {
            oneshot(receiver) -> value => value,
            recv(nothing) -> _ => unreachable!(),
        };
        assert_eq!(value, Err(RecvError::Disconnected));
        ends_well(gone);
    });
}

#[test]
fn a_timer_passes() {
    everywhere(|| {
        let (_silent, nothing) = channel::bounded::<u8>(1);
        let started = Instant::now();
        dhaga::select! {
            recv(nothing) -> _ => unreachable!(),
            after(Duration::MAX) => unreachable!(),
            after(SHORT) => {}
        }
        assert!(started.elapsed() >= SHORT);
        dhaga::select! {
            recv(nothing) -> _ => unreachable!(),
            at(started + 2 * SHORT) => {}
        }
        assert!(started.elapsed() >= 2 * SHORT);
    });
}

#[test]
fn a_listener_becomes_readable() {
    everywhere(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = channel::bounded(1);
        let mut accepted = 0;
        for round in 0..3 {
            let is_early = dhaga::select! {
                readable(listener) => true,
                recv(stopped) -> _ => unreachable!(),
                after(SHORT) => false,
            };
            assert!(!is_early, "nobody has connected in round {round}");
            let connects = later(move || drop(TcpStream::connect(address).expect("it listens")));
            dhaga::select! {
                readable(listener) => {
                    listener.accept().expect("somebody has connected");
                    accepted += 1;
                }
                recv(stopped) -> _ => unreachable!(),
            }
            ends_well(connects);
        }
        assert_eq!(accepted, 3);
        let stops = later(move || stop.send(()).expect("it is waited for"));
        dhaga::select! {
            readable(listener) => unreachable!("nobody connects"),
            recv(stopped) -> _ => {}
        }
        ends_well(stops);
    });
}

#[test]
fn a_stream_becomes_readable_and_writable() {
    everywhere(|| {
        let (mut near, mut far) = socket_pair();
        let (_silent, nothing) = channel::bounded::<u8>(1);
        dhaga::select! {
            writable(near) => {}
            recv(nothing) -> _ => unreachable!(),
        }
        near.set_nonblocking(true).expect("it can be set");
        let full = vec![0; 1 << 20];
        let mut written = 0;
        while let Ok(count) = near.write(&full) {
            written += count;
        }
        let reads = later(move || {
            far.read_exact(&mut vec![0; written]).expect("all of it comes");
            far.write_all(b"!").expect("there is room");
        });
        let (mut is_writable, mut is_readable) = (false, false);
        while !(is_readable && is_writable) {
            dhaga::select! {
                readable(near), if !is_readable => is_readable = would_not_wait(near.read(&mut [0])),
                writable(near), if !is_writable => is_writable = would_not_wait(near.write(b"?")),
                recv(nothing) -> _ => unreachable!(),
            }
        }
        ends_well(reads);
        dhaga::select! {
            readable(&near) => assert!(would_not_wait(near.read(&mut [0])), "the peer has gone"),
            recv(nothing) -> _ => unreachable!(),
        }
    });
}

fn would_not_wait(result: io::Result<usize>) -> bool {
    !result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_select_that_leaves_a_listener_takes_no_event_from_others() {
    within_deadline(DEADLINE, || {
        const CLIENTS: usize = 50;
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free"));
        let address = listener.local_addr().expect("it is bound");
        let (ticker, ticks) = channel::bounded::<()>(1);
        let stop = Arc::new(AtomicUsize::new(0));
        let passers = (0..4).map(|_| {
            let (listener, ticks) = (listener.clone(), ticks.clone());
            dhaga::spawn(move || {
                loop {
                    dhaga::select! {
                        readable(listener) => {}
                        recv(ticks) -> tick => if tick.is_err() { return },
                    }
                }
            })
        });
        let passers: Vec<_> = passers.collect();
        let (listening, accepted) = (listener.clone(), stop.clone());
        let accepts = dhaga::spawn(move || {
            for _ in 0..CLIENTS {
                listening.accept().expect("somebody connects");
                accepted.fetch_add(1, Ordering::SeqCst);
            }
        });
        for client in 0..CLIENTS {
            let _stream = TcpStream::connect(address).expect("it listens");
            let _ = ticker.try_send(());
            while stop.load(Ordering::SeqCst) <= client {
                dhaga::yield_now();
            }
        }
        ends_well(accepts);
        drop(ticker);
        passers.into_iter().for_each(ends_well);
    });
}

#[test]
fn a_default_never_waits() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded(1);
        let mut handle = Some(dhaga::spawn(|| dhaga::sleep(SHORT)));
        let round = || {
            dhaga::select! {
                recv(receiver) -> message => message.ok(),
                after(DEADLINE) => unreachable!(),
                default => None,
            }
        };
        assert_eq!(round(), None);
        sender.send(3).expect("there is room");
        assert_eq!(round(), Some(3));
        while !dhaga::select! { join(handle) -> ended => ended.is_ok(), default => false } {
            dhaga::yield_now();
        }
        assert_eq!(dhaga::select! { default => 7 }, 7);
    });
}

#[test]
fn an_arm_is_turned_off_by_its_condition() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded::<u8>(1);
        let absent = None::<Receiver<u8>>;
        let nobody = None::<Sender<u8>>;
        drop(sender);
        for is_on in [true, false] {
            let ran = dhaga::select! {
                biased;
                recv(receiver) -> message, if is_on => message.is_err(),
                recv(absent.as_ref().expect("it is not evaluated")) -> _, if absent.is_some() => unreachable!(),
                send(nobody.as_ref().expect("nor is this"), 1) -> _, if nobody.is_some() => unreachable!(),
                after(Duration::ZERO) => false,
                interrupted(why) => unreachable!("{why}"),
            };
            assert_eq!(ran, is_on);
        }
    });
}

#[test]
fn the_first_arm_comes_first_if_asked() {
    everywhere(|| {
        let (first, firsts) = channel::unbounded();
        let (second, seconds) = channel::unbounded();
        for number in 0..100 {
            assert_eq!((first.send(number), second.send(number)), (Ok(()), Ok(())));
        }
        for number in 0..100 {
            dhaga::select! {
                biased;
                recv(firsts) -> message => assert_eq!(message, Ok(number)),
                recv(seconds) -> _ => unreachable!("the first is ready"),
            }
        }
        assert_eq!(seconds.len(), 100);
    });
}

#[test]
fn arms_that_are_ready_together_take_turns() {
    everywhere(|| {
        const ROUNDS: usize = 10_000;
        let channels: [_; 4] = std::array::from_fn(|_| channel::unbounded());
        for (sender, _) in &channels {
            (0..ROUNDS).for_each(|number| sender.send(number).expect("there is room"));
        }
        let [(_, a), (_, b), (_, c), (full, d)] = &channels;
        let mut counts = [0; 5];
        for _ in 0..ROUNDS {
            let arm = dhaga::select! {
                recv(a) -> _ => 0,
                recv(b) -> _ => 1,
                recv(c) -> _ => 2,
                recv(d) -> _ => 3,
                send(full, 0) -> _ => 4,
            };
            counts[arm] += 1;
        }
        assert!(counts.iter().all(|&count| count > ROUNDS / 10), "one was kept out: {counts:?}");
    });
}

#[test]
fn arms_use_what_they_wait_for() {
    everywhere(|| {
        let (sender, receiver) = channel::bounded::<u8>(1);
        let (gone, nothing) = channel::rendezvous::<u8>();
        drop(gone);
        let ended = dhaga::select! {
            recv(nothing) -> _ => {
                drop(nothing);
                true
            }
            recv(receiver) -> _ => {
                drop(receiver);
                false
            }
        };
        assert!(ended);
        assert_eq!(sender.send(1).is_err(), sender.is_disconnected());
    });
}

// Who comes together.

#[test]
fn two_selects_meet_in_a_rendezvous() {
    on_all_mixtures(|| {
        let (there, from_there) = channel::rendezvous();
        let (back, from_back) = channel::rendezvous();
        let part = |out: Sender<usize>, input: Receiver<usize>| -> Part {
            Box::new(move || {
                let (mut sent, mut received) = (0, 0);
                while sent < RACES || received < RACES {
                    dhaga::select! {
                        send(out, sent) -> result, if sent < RACES => {
                            assert_eq!(result, Ok(()));
                            sent += 1;
                        }
                        recv(input) -> message, if received < RACES => {
                            assert_eq!(message, Ok(received));
                            received += 1;
                        }
                        interrupted(why) => unreachable!("{why}"),
                    }
                }
            })
        };
        vec![part(there, from_back), part(back, from_there)]
    });
}

#[test]
fn many_selects_meet_in_one_rendezvous() {
    on_all_mixtures(|| {
        let (sender, receiver) = channel::rendezvous::<()>();
        let [sent, received, ended] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let part = |_| -> Part {
            let (sender, receiver) = (sender.clone(), receiver.clone());
            let (sent, received, ended) = (sent.clone(), received.clone(), ended.clone());
            Box::new(move || {
                while sent.load(Ordering::SeqCst) < RACES {
                    dhaga::select! {
                        send(sender, ()) -> result => {
                            assert_eq!(result, Ok(()));
                            sent.fetch_add(1, Ordering::SeqCst);
                        }
                        recv(receiver) -> message => {
                            assert_eq!(message, Ok(()));
                            received.fetch_add(1, Ordering::SeqCst);
                        }
                        after(SHORT) => {}
                    }
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == 4 {
                    assert_eq!(sent.load(Ordering::SeqCst), received.load(Ordering::SeqCst));
                }
            })
        };
        (0..4).map(part).collect()
    });
}

#[test]
fn a_select_does_not_meet_itself() {
    everywhere(|| {
        let (sender, receiver) = channel::rendezvous();
        let round = || {
            dhaga::select! {
                send(sender, 1) -> _ => "sent",
                recv(receiver) -> _ => "received",
                after(SHORT) => "nobody",
            }
        };
        assert_eq!(round(), "nobody");
        let other = receiver.clone();
        let received = dhaga::spawn(move || other.recv());
        while round() != "sent" {}
        assert_eq!(ends_well(received), Ok(1));
        let other = sender.clone();
        let sent = dhaga::spawn(move || other.send(2));
        while round() != "received" {}
        assert_eq!(ends_well(sent), Ok(()));
    });
}

const STORM_PARTS: usize = 8;
const STORM_CHANNELS: usize = 4;
const STORM_EACH: usize = 10_000;

/// Everybody sends and receives by select, over all channels at once, and reports what it has received.
fn storm(make: fn() -> (Sender<usize>, Receiver<usize>), report: &mpsc::Sender<Vec<usize>>) -> Vec<Part> {
    let channels: [_; STORM_CHANNELS] = std::array::from_fn(|_| make());
    let all_senders = channels.each_ref().map(|(sender, _)| sender.clone());
    let all_receivers = channels.map(|(_, receiver)| receiver);
    let senders = (0..STORM_PARTS).map(|part| -> Part {
        let senders = all_senders.clone();
        Box::new(move || (0..STORM_EACH).for_each(|index| send_to_any(&senders, part * STORM_EACH + index)))
    });
    let receivers = (0..STORM_PARTS).map(|_| -> Part {
        let (receivers, report) = (all_receivers.clone(), report.clone());
        Box::new(move || report.send(receive_from_all(&receivers)).expect("the test waits"))
    });
    senders.chain(receivers).collect()
}

fn send_to_any([a, b, c, d]: &[Sender<usize>; STORM_CHANNELS], number: usize) {
    let sent = dhaga::select! {
        send(a, number) -> sent => sent,
        send(b, number) -> sent => sent,
        send(c, number) -> sent => sent,
        send(d, number) -> sent => sent,
    };
    assert_eq!(sent, Ok(()));
}

fn receive_from_all([a, b, c, d]: &[Receiver<usize>; STORM_CHANNELS]) -> Vec<usize> {
    let mut received = Vec::new();
    let mut is_open = [true; STORM_CHANNELS];
    while is_open.contains(&true) {
        let (from, message) = dhaga::select! {
            recv(a) -> message, if is_open[0] => (0, message),
            recv(b) -> message, if is_open[1] => (1, message),
            recv(c) -> message, if is_open[2] => (2, message),
            recv(d) -> message, if is_open[3] => (3, message),
            interrupted(why) => unreachable!("{why}"),
        };
        match message {
            Ok(number) => received.push(number),
            Err(error) => {
                assert_eq!(error, RecvError::Disconnected);
                is_open[from] = false;
            }
        }
    }
    received
}

fn check_storm(make: fn() -> (Sender<usize>, Receiver<usize>)) {
    for on in [On::Threads, On::Dhagas, On::Both] {
        within_deadline(DEADLINE, move || {
            let (report, reports) = mpsc::channel();
            together(on, storm(make, &report));
            drop(report);
            let all: Vec<usize> = reports.into_iter().flatten().collect();
            let distinct: HashSet<_> = all.iter().collect();
            assert_eq!(all.len(), distinct.len(), "a message was received twice on {on:?}");
            assert_eq!(all.len(), STORM_PARTS * STORM_EACH, "messages were lost on {on:?}");
        });
    }
}

#[test]
fn a_storm_over_rendezvous_loses_and_doubles_nothing() {
    check_storm(channel::rendezvous);
}

#[test]
fn a_storm_over_bounded_channels_loses_and_doubles_nothing() {
    check_storm(|| channel::bounded(2));
}

/// The sum of the numbers that two senders send.
const SUM: usize = RACES * (2 * RACES - 1);

#[test]
fn plain_operations_meet_selects() {
    on_all_mixtures(|| {
        let (sender, receiver) = channel::rendezvous();
        let plain = sender.clone();
        let mut parts: Vec<Part> = vec![
            Box::new(move || (0..RACES).for_each(|number| assert_eq!(plain.send(number), Ok(())))),
            Box::new(move || {
                let (_silent, nothing) = channel::bounded::<()>(1);
                for number in RACES..2 * RACES {
                    dhaga::select! {
                        send(sender, number) -> sent => assert_eq!(sent, Ok(())),
                        recv(nothing) -> _ => unreachable!(),
                    }
                }
            }),
        ];
        let (sum, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        parts.extend((0..3).map(|part| -> Part {
            let (receiver, sum, ended) = (receiver.clone(), sum.clone(), ended.clone());
            Box::new(move || {
                let (_silent, nothing) = channel::bounded::<()>(1);
                let receive = || match part {
                    0 => receiver.recv(),
                    _ => dhaga::select! {
                        recv(receiver) -> message => message,
                        recv(nothing) -> _ => unreachable!(),
                    },
                };
                while let Ok(number) = receive() {
                    sum.fetch_add(number, Ordering::SeqCst);
                }
                if ended.fetch_add(1, Ordering::SeqCst) + 1 == 3 {
                    assert_eq!(sum.load(Ordering::SeqCst), SUM);
                }
            })
        }));
        parts
    });
}

#[test]
fn timers_that_race_with_messages_lose_none() {
    on_all_mixtures(|| {
        let (sender, receiver) = channel::rendezvous();
        vec![
            Box::new(move || {
                for number in 0..RACES {
                    let mut message = Some(number);
                    for round in number.. {
                        dhaga::select! {
                            send_from(sender, message) -> sent => {
                                assert_eq!(sent, Ok(()));
                                break;
                            }
                            after(tight(round)) => assert_eq!(message, Some(number)),
                            interrupted(why) => panic!("{why:?}"),
                        }
                    }
                }
            }),
            Box::new(move || {
                let mut expected = 0;
                for round in 0.. {
                    dhaga::select! {
                        recv(receiver) -> message => match message {
                            Ok(number) => {
                                assert_eq!(number, expected);
                                expected += 1;
                            }
                            Err(_) => break,
                        },
                        after(tight(round)) => {}
                    }
                }
                assert_eq!(expected, RACES);
            }),
        ]
    });
}

#[test]
fn ends_and_oneshots_that_race_with_messages_are_not_lost() {
    on_all_mixtures(|| {
        let part = || -> Part {
            Box::new(|| {
                let (sender, receiver) = channel::unbounded();
                for round in 0..RACES / 10 {
                    let (once, mut answer) = oneshot::channel();
                    let mine = sender.clone();
                    let mut handle = Some(dhaga::spawn(move || {
                        mine.send(round).expect("it is waited for");
                        once.send(round).expect("it is waited for");
                        round
                    }));
                    let mut left = [true; 3];
                    while left.contains(&true) {
                        dhaga::select! {
                            recv(receiver) -> message, if left[0] => left[0] = message != Ok(round),
                            oneshot(answer) -> message, if left[1] => left[1] = message != Ok(round),
                            join(handle) -> ended => left[2] = ended.ok() != Some(round),
                            interrupted(why) => unreachable!("{why}"),
                        }
                    }
                    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
                }
            })
        };
        vec![part(), part()]
    });
}

// What ends a wait.

#[test]
fn a_cancel_ends_a_select() {
    within_deadline(DEADLINE, || {
        let (_silent, nothing) = channel::bounded::<u8>(1);
        let (full, _stuck) = channel::rendezvous::<u8>();
        let (other, no) = (nothing.clone(), full.clone());
        let interrupted = dhaga::spawn(move || {
            dhaga::select! {
                recv(other) -> _ => None,
                send(no, 1) -> _ => None,
                interrupted(why) => Some(why),
            }
        });
        let other = nothing.clone();
        let first = dhaga::spawn(move || {
            dhaga::select! {
                after(DEADLINE) => Ok(0),
                recv(other) -> message => message,
                recv(other) -> _ => unreachable!("it is the second"),
            }
        });
        let other = nothing.clone();
        let stuck = full.clone();
        let sends = dhaga::spawn(move || {
            dhaga::select! {
                send(stuck, 5) -> sent => sent,
                recv(other) -> _ => unreachable!("it is the second"),
            }
        });
        let keeps = dhaga::spawn(move || {
            let (mut message, mut none) = (Some(6), None);
            let received = dhaga::select! {
                send_from(full, none) -> _ => unreachable!("it has nothing to give back"),
                send_from(full, message) -> _ => unreachable!("it keeps its message"),
                recv(nothing) -> message => message,
            };
            (received, message)
        });
        dhaga::sleep(SHORT);
        interrupted.cancel();
        first.cancel();
        sends.cancel();
        keeps.cancel();
        assert_eq!(ends_well(interrupted), Some(Interrupt::Cancelled));
        assert_eq!(ends_well(first), Err(RecvError::Interrupted(Interrupt::Cancelled)));
        assert_eq!(ends_well(sends), Err(SendError::Interrupted(5, Interrupt::Cancelled)));
        assert_eq!(ends_well(keeps), (Err(RecvError::Interrupted(Interrupt::Cancelled)), Some(6)));
    });
}

#[test]
fn a_cancelled_scope_receives_nothing_but_asks_all_the_same() {
    within_deadline(DEADLINE, || {
        let (sender, receiver) = channel::unbounded();
        sender.send(1).expect("there is room");
        let (go, may_go) = mpsc::channel();
        let cancelled = dhaga::spawn(move || {
            dhaga::blocking(move || may_go.recv_timeout(DEADLINE)).ok();
            let waited = dhaga::select! {
                recv(receiver) -> message => message,
            };
            let asked = dhaga::select! {
                recv(receiver) -> message => message.ok(),
                default => None,
            };
            (waited, asked)
        });
        cancelled.cancel();
        go.send(()).expect("it is waited for");
        let (waited, asked) = ends_well(cancelled);
        assert_eq!(waited, Err(RecvError::Interrupted(Interrupt::Cancelled)));
        assert_eq!(asked, Some(1), "what does not wait never looks");
    });
}

#[test]
fn what_is_ready_happens_in_a_panic_and_nothing_else_is_waited_for() {
    struct Farewell(Sender<u8>, Receiver<u8>);

    impl Drop for Farewell {
        fn drop(&mut self) {
            assert!(thread::panicking());
            let Self(sender, nothing) = self;
            let sent = dhaga::select! {
                recv(nothing) -> _ => unreachable!(),
                send(sender, 1) -> sent => sent,
            };
            assert_eq!(sent, Ok(()));
            let received = dhaga::select! {
                recv(nothing) -> message => message,
                after(DEADLINE) => unreachable!(),
            };
            assert_eq!(received, Err(RecvError::Interrupted(Interrupt::Panicking)));
        }
    }

    everywhere(|| {
        let (sender, receiver) = channel::unbounded();
        let (_silent, nothing) = channel::bounded(1);
        let farewell = Farewell(sender, nothing);
        let panicked = dhaga::spawn(move || {
            let _farewell = farewell;
            panic!("this panic is part of the test");
        });
        assert!(panicked.join().is_err());
        assert_eq!(receiver.try_recv(), Ok(1));
    });
}

#[test]
fn a_select_unwinds_at_shutdown() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (sender, receiver) = channel::bounded::<String>(1);
        let (full, stuck) = channel::rendezvous::<String>();
        let (_once, mut answer) = oneshot::channel::<u8>();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let mut endless = Some(dhaga::spawn(|| dhaga::sleep(2 * SHORT)));
        let (started, has_started) = mpsc::channel();
        let (other, no) = (receiver.clone(), full.clone());
        let unwound = runtime.spawn(move || {
            started.send(()).expect("the test waits");
            // A cancel would end it before.
            dhaga::uncancellable(|| {
                loop {
                    dhaga::select! {
                        recv(other) -> _ => unreachable!(),
                        send(no, "never".to_owned()) -> _ => unreachable!(),
                        oneshot(answer) -> _ => unreachable!(),
                        readable(listener) => unreachable!(),
                        join(endless) -> _ => {}
                        after(DEADLINE) => unreachable!(),
                    }
                }
            })
        });
        has_started.recv_timeout(DEADLINE).expect("it starts");
        dhaga::sleep(SHORT);
        runtime.shutdown(Duration::ZERO).expect("it unwinds");
        assert!(matches!(unwound.join(), Err(JoinError::Unwound)));
        assert_eq!(sender.try_send("here".to_owned()), Ok(()));
        assert_eq!(receiver.try_recv(), Ok("here".to_owned()));
        assert_eq!(stuck.try_recv(), Err(TryRecvError::Empty));
    });
}

#[test]
fn a_message_granted_to_a_select_as_its_runtime_ends_is_not_lost() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (sender, receiver) = channel::rendezvous();
        let (_silent, nothing) = channel::bounded::<u8>(1);
        let mine = receiver.clone();
        let unwound = runtime.spawn(move || {
            dhaga::uncancellable(|| {
                dhaga::select! {
                    recv(mine) -> message => message,
                    recv(nothing) -> _ => unreachable!(),
                }
            })
        });
        // The hog keeps the worker, with the select parked on it, until the message was sent.
        let (hogs, is_hogged) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let hog = runtime.spawn(move || {
            hogs.send(()).expect("the test waits");
            may_go.recv_timeout(DEADLINE).expect("the test goes on");
        });
        is_hogged.recv_timeout(DEADLINE).expect("it runs after the select");
        runtime.shutdown(Duration::ZERO).expect_err("the hog runs");
        assert_eq!(sender.try_send(7), Ok(()), "the select waits for it");
        go.send(()).expect("the hog waits");
        hog.join().expect("a hog that returns has returned");
        // The cancel before the unwinding may have woken it, and then it takes what it was given.
        match unwound.join() {
            Ok(received) => assert_eq!((received, receiver.try_recv()), (Ok(7), Err(TryRecvError::Empty))),
            Err(JoinError::Unwound) => assert_eq!(receiver.try_recv(), Ok(7)),
            Err(error) => panic!("{error}"),
        }
    });
}

// Any number of events.

#[test]
fn any_number_of_events_can_be_waited_for() {
    everywhere(|| {
        const CHANNELS: usize = 100;
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..CHANNELS).map(|_| channel::rendezvous()).unzip();
        let sends = dhaga::spawn(move || {
            for (index, sender) in senders.iter().enumerate().rev() {
                assert_eq!(sender.send(index), Ok(()));
            }
            senders
        });
        let mut select = Select::new();
        for (index, receiver) in receivers.iter().enumerate() {
            select.recv(receiver, move |message| message.map(|message| (index, message)));
        }
        for index in (0..CHANNELS).rev() {
            assert_eq!(select.wait(), Ok(Ok((index, index))));
        }
        let senders = ends_well(sends);
        assert_eq!(select.try_wait(), None);
        drop(senders);
        assert_eq!(select.wait(), Ok(Err(RecvError::Disconnected)));
    });
}

#[test]
fn each_kind_of_event_can_be_added() {
    everywhere(|| {
        let (sender, receiver) = channel::rendezvous();
        let (once, mut answer) = oneshot::channel();
        let (mut near, far) = socket_pair();
        let ended = dhaga::spawn(|| 1);
        // It comes before the timer, which may be due before the select begins.
        while !ended.is_finished() {
            dhaga::yield_now();
        }
        let mut handle = Some(ended);
        let mut message = Some(2);
        let mut select = Select::biased();
        select.oneshot(&mut answer, |answer| format!("oneshot {answer:?}"));
        select.join(&mut handle, |ended| format!("join {:?}", ended.ok()));
        select.send(&sender, &mut message, |sent| format!("send {sent:?}"));
        select.readable(&far, || "readable".to_owned());
        select.after(SHORT, || "after".to_owned());
        select.at(Instant::now() + DEADLINE, || "at".to_owned());
        assert_eq!(select.wait().as_deref(), Ok("join Some(1)"));
        assert_eq!(select.wait().as_deref(), Ok("after"));
        let received = dhaga::spawn(move || receiver.recv());
        while select.wait().as_deref() != Ok("send Ok(())") {}
        assert_eq!(ends_well(received), Ok(2));
        near.write_all(b"!").expect("there is room");
        while select.wait().as_deref() != Ok("readable") {}
        once.send(3).expect("it is waited for");
        assert_eq!(select.wait().as_deref(), Ok("oneshot Ok(3)"));
        drop(select);
        let mut select = Select::new();
        select.writable(&near, || "writable");
        assert_eq!(select.wait(), Ok("writable"));
    });
}
