//! Both sides send more than the other has taken yet: one of them has to read on.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dhaga::Runtime;
use dhaga_rpc::{Client, HandlerError, Limits, Server, Transport};
use serde_bytes::ByteBuf;

use crate::common::*;

/// The answer to a large call of ours comes behind a request for which there is no room.
#[test]
fn an_answer_is_read_when_the_call_has_left_although_a_request_before_it_finds_no_room() {
    within_deadline(|| {
        let other = Arc::new(OnceLock::<Client>::new());
        let called = other.clone();
        let back = move || {
            let client = called.get().ok_or_else(|| HandlerError::new("there is nobody to call"))?;
            Ok(client.call_timeout::<_, u32>("take", (ByteBuf::from(vec![7; 7 << 20]),), PATIENCE)?)
        };
        let limits = Limits { in_flight_per_connection_max: 1, unsent_bytes_max: 64 << 10, ..Limits::default() };
        // Of one worker: what comes first is read first.
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives a thread");
        let server = builder(&Gate::default()).method("back", back).limits(limits);
        let server = server.bind_on(&runtime, "127.0.0.1:0").expect("there is a port");
        let mut peer = Peer::connect(server.local_addr());
        eventually("it is accepted", || server.peers().len() == 1);
        other.set(server.peers().remove(0)).expect("once");
        peer.send(&request(1, "back", vec![]));
        let begun = peer.receive_bytes(1);
        peer.send(&request(2, "add", vec![1.into(), 2.into()]));
        Bystander::at(&server).has_not_noticed();
        let call = rmpv::decode::read_value(&mut begun.chain(&mut peer.0)).expect("a whole call comes");
        let id = call.as_array().and_then(|call| call[1].as_u64()).expect("it has an id");
        peer.send(&answer(id as u32, 5));
        let mut answers = [peer.receive_answer(), peer.receive_answer()];
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers[0], (1, Ok(5.into())));
        assert_eq!(answers[1].0, 2, "it is answered or refused");
    });
}

/// There is always something to be sent, but it is not answers that keep the peer from being read.
#[test]
fn who_is_pushed_to_without_end_is_answered() {
    const ANSWERS: u32 = 200;
    within_deadline(|| {
        let large = || Ok(ByteBuf::from(vec![7; 64 << 10]));
        // Of one worker: what comes first is read first.
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives a thread");
        let server = builder(&Gate::default()).method("large", large).bind_on(&runtime, "127.0.0.1:0");
        let server = server.expect("there is a port");
        let mut peer = Peer::connect(server.local_addr());
        eventually("it is accepted", || server.peers().len() == 1);
        let pushed_to = server.peers().remove(0);
        let pushers = [(); 4].map(|()| {
            let to = pushed_to.clone();
            runtime.spawn(move || while to.notify("news", (ByteBuf::from(vec![7; 64 << 10]),)).is_ok() {})
        });
        let ask = |peer: &mut Peer, id| peer.send(&request(id, "large", vec![]));
        let mut asked = 0;
        while asked < 8 {
            asked += 1;
            ask(&mut peer, asked);
        }
        let mut answered = 0;
        while answered < ANSWERS {
            let message = peer.receive();
            // A notification has three parts.
            if message.as_array().is_some_and(|parts| parts.len() == 4) {
                (answered, asked) = (answered + 1, asked + 1);
                ask(&mut peer, asked);
            }
        }
        drop(peer);
        pushers.into_iter().for_each(|pusher| pusher.join().expect("it has noticed"));
    });
}

/// More than the limit each way.
#[test]
fn two_who_notify_each_other_at_once_both_read() {
    const COUNT: usize = 4000;
    within_deadline(|| {
        for _ in 0..10 {
            let noted = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
            let [at_server, at_client] = noted.clone().map(|noted| {
                move |_: ByteBuf| {
                    noted.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            });
            let (near, far) = Transport::pair().expect("there are descriptors");
            let server = Server::builder().method("note", at_server).serve(far).expect("it can be waited for");
            let client = Client::builder().method("note", at_client).over(near).expect("it can be waited for");
            let senders = [client.clone(), server.peers().remove(0)].map(|to| {
                let note = move || to.notify("note", (ByteBuf::from(vec![7; 1 << 10]),)).expect("it lives");
                dhaga::spawn(move || (0..COUNT).for_each(|_| note()))
            });
            senders.into_iter().for_each(|sender| sender.join().expect("all is sent"));
            eventually("all have come", || noted.iter().all(|noted| noted.load(Ordering::SeqCst) == COUNT));
        }
    });
}

/// Each message fills the outbox alone: whoever has waited longest for room is next, not who has just sent and is back first.
#[test]
fn beside_who_pushes_without_end_an_answer_and_other_pushers_get_their_turn() {
    const ROUNDS: u32 = 50;
    within_deadline(|| {
        // Of one worker: who is woken first runs first.
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives a thread");
        let limits = Limits { unsent_bytes_max: 1, ..Limits::default() };
        let server = builder(&Gate::default()).limits(limits).bind_on(&runtime, "127.0.0.1:0");
        let server = server.expect("there is a port");
        let mut peer = Peer::connect(server.local_addr());
        eventually("it is accepted", || server.peers().len() == 1);
        let pushed_to = server.peers().remove(0);
        let counts = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let pushers = counts.clone().map(|count| {
            let to = pushed_to.clone();
            runtime.spawn(move || {
                while to.notify("news", (ByteBuf::from(vec![7; 100]),)).is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        for id in 0..ROUNDS {
            peer.send(&request(id, "add", vec![1.into(), 2.into()]));
            let end = Instant::now() + PATIENCE;
            // A notification has three parts.
            while peer.receive().as_array().is_none_or(|parts| parts.len() == 3) {
                assert!(Instant::now() < end, "answer {id} does not come");
            }
        }
        let pushed_before = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        let has_pushed = |n: usize| counts[n].load(Ordering::SeqCst) > pushed_before[n];
        let end = Instant::now() + PATIENCE;
        while !(0..3).all(has_pushed) {
            peer.receive();
            assert!(Instant::now() < end, "one of {counts:?} does not go on");
        }
        drop(peer);
        pushers.into_iter().for_each(|pusher| pusher.join().expect("it has noticed"));
    });
}

/// Each side has far more in answers to send than it may have unsent, and finds requests before the answers that it waits for.
#[test]
fn two_who_ask_each_other_for_much_at_once_both_read() {
    const BYTES: usize = 4 << 20;
    within_deadline(|| {
        let (near, far) = Transport::pair().expect("there are descriptors");
        let limits = Limits { call_timeout: PATIENCE, ..Limits::default() };
        let server = builder(&Gate::default()).limits(limits.clone()).serve(far).expect("it can be waited for");
        let blob = |len: usize| Ok(ByteBuf::from(vec![7; len]));
        let client = Client::builder().method("blob", blob).limits(limits).over(near).expect("it can be waited for");
        let ask = |of: &Client| {
            let of = of.clone();
            dhaga::spawn(move || {
                for _ in 0..10 {
                    let answer: ByteBuf = of.call("blob", (BYTES,)).expect("there is room for it");
                    assert_eq!(answer.len(), BYTES);
                }
            })
        };
        let sides = [client, server.peers().remove(0)];
        let callers: Vec<_> = (0..16).map(|n| ask(&sides[n % 2])).collect();
        callers.into_iter().for_each(|caller| caller.join().expect("all its calls are answered"));
    });
}
