//! More than there is room for: pipelines, peers that do not read, large frames. Each limit holds, and what waits goes on.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::limits::FRAME_BYTES_MAX;
use dhaga_rpc::{CallError, HandlerError, Limits, Server, Value};
use serde_bytes::{ByteBuf, Bytes};

use crate::common::*;

fn pipeline(count: u32, method: &str) -> Vec<u8> {
    (0..count).flat_map(|id| request(id, method, vec![id.into()])).collect()
}

/// Takes that many answers, and checks that each request got its own.
fn expect_each_echoed_once(peer: &mut Peer, count: u32) {
    let mut answers: Vec<_> = (0..count).map(|_| peer.receive_answer()).collect();
    answers.sort_by_key(|(id, _)| *id);
    assert_eq!(answers, (0..count).map(|id| (id, Ok(id.into()))).collect::<Vec<_>>());
}

#[test]
fn a_pipeline_beyond_the_limit_waits_unread_and_is_all_answered() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve_within(Limits { in_flight_per_connection_max: 8, ..Limits::default() }, &gate);
        let bystander = Bystander::at(&server);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&pipeline(1000, "hold"));
        eventually("as many run as may", || gate.inside() == 8);
        bystander.has_not_noticed();
        gate.admit(100);
        eventually("others took their places", || gate.arrived() == 108);
        gate.open();
        expect_each_echoed_once(&mut peer, 1000);
        assert_eq!(gate.most_inside(), 8);
        eventually("none is left", || server.stats().in_flight == 0);
    });
}

#[test]
fn a_pipeline_that_ends_with_the_connection_is_all_answered() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve_within(Limits { in_flight_per_connection_max: 3, ..Limits::default() }, &gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&pipeline(50, "hold"));
        peer.finish();
        eventually("as many run as may", || gate.inside() == 3);
        gate.open();
        expect_each_echoed_once(&mut peer, 50);
        peer.expect_end();
    });
}

#[test]
fn a_full_server_refuses_with_an_error_answer_and_recovers() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve_within(Limits { in_flight_per_server_max: 4, ..Limits::default() }, &gate);
        let mut holder = Peer::connect(server.local_addr());
        holder.send(&pipeline(4, "hold"));
        eventually("the server is full", || gate.inside() == 4);
        let client = connect(&server);
        let refused = add(&client, 1, 2);
        let is_refusal = |error: &CallError| matches!(error, CallError::Refused { answer, .. } if answer.to_string().contains("already runs 4 calls"));
        assert!(refused.as_ref().is_err_and(is_refusal), "{refused:?}");
        assert_eq!(server.stats().in_flight, 4);
        gate.open();
        expect_each_echoed_once(&mut holder, 4);
        eventually("it is empty", || server.stats().in_flight == 0);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

#[test]
fn one_burst_brings_no_more_than_the_server_takes() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve_within(Limits { in_flight_per_server_max: 10, ..Limits::default() }, &gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&pipeline(100, "hold"));
        for _ in 0..90 {
            assert!(peer.receive_answer().1.is_err());
        }
        eventually("all came who may", || gate.inside() >= 10);
        thread::sleep(Duration::from_millis(50));
        assert_eq!((server.stats().in_flight, gate.most_inside()), (10, 10));
        gate.open();
    });
}

#[test]
fn few_who_take_all_they_can_leave_room_for_others_and_wait() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve_within(Limits { in_flight_per_server_max: 120, ..Limits::default() }, &gate);
        let mut greedy = [(); 3].map(|()| Peer::connect(server.local_addr()));
        greedy.iter_mut().for_each(|peer| peer.send(&pipeline(200, "hold")));
        // Half of it for who comes first, half of the rest for the next, or for each the same, and 16 at any rate.
        eventually("all have what is theirs", || gate.inside() >= 3 * 16);
        let others = [(); 8].map(|()| connect(&server));
        others.iter().for_each(|other| assert_eq!(add(other, 1, 2).ok(), Some(3)));
        assert!(gate.most_inside() <= 120 - 8, "{:?}", server.stats());
        gate.open();
        greedy.iter_mut().for_each(|peer| expect_each_echoed_once(peer, 200));
        assert!(gate.most_inside() <= 120);
        eventually("none is left", || server.stats().in_flight == 0);
    });
}

/// A server where what one connection asks for waits for a request of its own.
fn serve_own(limits: Limits, of_others: &Gate, own: &Gate) -> Server {
    let (held, opened) = (own.clone(), own.clone());
    let builder = builder(of_others)
        .method("hold own", move || {
            held.wait();
            Ok(())
        })
        .method("open own", move || {
            opened.open();
            Ok(())
        });
    builder.limits(limits).bind("127.0.0.1:0").expect("a port can be had")
}

/// Its handlers wait for what it sends behind them, and others make the room for that.
#[test]
fn who_waits_for_the_servers_room_goes_on_when_others_have_ended() {
    within_deadline(|| {
        let (of_others, own) = (Gate::default(), Gate::default());
        let server = serve_own(Limits { in_flight_per_server_max: 64, ..Limits::default() }, &of_others, &own);
        let mut others = [(); 3].map(|()| Peer::connect(server.local_addr()));
        others.iter_mut().for_each(|peer| peer.send(&pipeline(16, "hold")));
        eventually("the others have their part", || of_others.inside() == 48);
        let mut last = Peer::connect(server.local_addr());
        (0..16).for_each(|id| last.send(&request(id, "hold own", vec![])));
        eventually("it has what is left", || own.inside() == 16);
        last.send(&request(16, "open own", vec![]));
        thread::sleep(Duration::from_millis(50));
        assert_eq!(own.inside(), 16, "there was no room for it");
        of_others.open();
        let mut answered: Vec<_> = (0..=16).map(|_| last.receive_answer().0).collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..=16).collect::<Vec<_>>());
    });
}

/// First the connection's own limit holds it up. When it no longer does, others have the room.
#[test]
fn who_waits_for_the_servers_room_behind_its_own_limit_goes_on_when_others_have_ended() {
    within_deadline(|| {
        let (of_others, own) = (Gate::default(), Gate::default());
        let limits = Limits { in_flight_per_server_max: 64, in_flight_per_connection_max: 20, ..Limits::default() };
        let server = serve_own(limits, &of_others, &own);
        let mut last = Peer::connect(server.local_addr());
        (0..20).for_each(|id| last.send(&request(id, "hold own", vec![])));
        eventually("it has what one may have", || own.inside() == 20);
        last.send(&request(20, "open own", vec![]));
        let mut others = [(); 3].map(|()| Peer::connect(server.local_addr()));
        others.iter_mut().for_each(|peer| peer.send(&pipeline(14, "hold")));
        eventually("the others have the rest", || of_others.inside() == 3 * 14);
        own.admit(1);
        let mut answered = vec![last.receive_answer().0];
        assert_eq!(own.inside(), 19, "there was no room for what opens the gate");
        of_others.open();
        answered.extend((0..20).map(|_| last.receive_answer().0));
        answered.sort_unstable();
        assert_eq!(answered, (0..=20).collect::<Vec<_>>());
    });
}

/// Pipelines of many who come and go, some without their answers.
#[test]
fn however_small_the_limits_are_each_request_is_answered_and_nothing_is_left() {
    const SHORT: [(usize, usize); 7] = [(1, 1), (1, 100), (2, 1), (16, 100), (17, 17), (33, 5), (64, 1024)];
    within_deadline(|| {
        for (in_flight_per_server_max, in_flight_per_connection_max) in SHORT {
            let gate = Gate::default();
            gate.open();
            let limits = Limits { in_flight_per_server_max, in_flight_per_connection_max, ..Limits::default() };
            let server = serve_within(limits, &gate);
            thread::scope(|scope| {
                for seed in 1..=8 {
                    let server = &server;
                    scope.spawn(move || (0..12).for_each(|round| come_and_go(server, seed * 1000 + round)));
                }
            });
            eventually("none is left", || (server.stats().in_flight, server.stats().connections) == (0, 0));
            assert!(gate.most_inside() <= in_flight_per_server_max, "{} inside", gate.most_inside());
            assert_eq!(add(&connect(&server), 1, 2).ok(), Some(3));
        }
    });
}

fn come_and_go(server: &Server, mut seed: u64) {
    let mut peer = Peer::connect(server.local_addr());
    let count = 1 + next(&mut seed) as u32 % 80;
    for id in 0..count {
        let millis = next(&mut seed) % 2;
        peer.send_to_whom_it_may_concern(&match next(&mut seed) % 3 {
            0 => request(id, "hold", vec![id.into()]),
            1 => request(id, "sleep", vec![millis.into(), id.into()]),
            _ => [notification("hold", vec![id.into()]), request(id, "echo", vec![id.into()])].concat(),
        });
    }
    let stays = !next(&mut seed).is_multiple_of(3);
    if stays {
        let mut ids: Vec<_> = (0..count).map(|_| peer.receive_answer().0).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn a_frame_above_the_queue_limit_is_taken_alone() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve_within(Limits { queued_bytes_max: 4096, ..Limits::default() }, &gate);
        let mut peer = Peer::connect(server.local_addr());
        let large = "x".repeat(64 << 10);
        for id in 0..5 {
            peer.send(&request(id, "hold", vec![large.as_str().into()]));
        }
        for id in 0..5 {
            eventually("one more came", || gate.arrived() == id as usize + 1);
            assert_eq!((server.stats().in_flight, gate.inside()), (1, 1));
            gate.admit(1);
            assert_eq!(peer.receive_answer(), (id, Ok(large.as_str().into())));
        }
        assert_eq!(gate.most_inside(), 1);
    });
}

/// A request for `len` of that many bytes in all, with its payload as bin.
fn request_of(frame_bytes: usize) -> Vec<u8> {
    let payload = frame_bytes - 13;
    let mut bytes = vec![0x94, 0, 1, 0xa3, b'l', b'e', b'n', 0x91, 0xc6];
    bytes.extend_from_slice(&u32::try_from(payload).expect("it is below 4 GiB").to_be_bytes());
    bytes.resize(frame_bytes, 7);
    bytes
}

#[test]
fn a_frame_at_the_limit_is_taken_and_one_byte_more_closes() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&request_of(FRAME_BYTES_MAX));
        assert_eq!(peer.receive_answer(), (1, Ok((FRAME_BYTES_MAX - 13).into())));
        peer.send_to_whom_it_may_concern(&request_of(FRAME_BYTES_MAX + 1));
        peer.expect_end();
        eventually("it is counted", || server.stats().closed_for_fault == 1);
    });
}

#[test]
fn an_answer_at_the_limit_leaves_and_one_byte_more_is_an_error_answer() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        let fits = FRAME_BYTES_MAX - 9;
        let blob = peer.ask(1, "blob", vec![fits.into()]).expect("it fits");
        assert_eq!(blob.as_slice().map(<[u8]>::len), Some(fits));
        let error = peer.ask(2, "blob", vec![(fits + 1).into()]).expect_err("it is too large");
        assert!(error.contains("cannot be sent"), "{error}");
        assert_eq!(peer.ask(3, "add", vec![1.into(), 2.into()]), Ok(3.into()));
    });
}

#[test]
fn a_call_that_is_too_large_is_an_error_and_the_connection_lives() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = connect(&server);
        let body = move || {
            let fits = vec![7; FRAME_BYTES_MAX - 64];
            assert_eq!(client.call::<_, usize>("len", (Bytes::new(&fits),)).ok(), Some(fits.len()));
            let large = vec![7; FRAME_BYTES_MAX];
            let result = client.call::<_, usize>("len", (Bytes::new(&large),));
            assert!(matches!(result, Err(CallError::TooLarge { limit: FRAME_BYTES_MAX })), "{result:?}");
            let connections = client.connections();
            assert_eq!(add(&client, 1, 2).ok(), Some(3));
            assert!(client.connections() >= connections);
        };
        body.clone()();
        dhaga::spawn(body).join().expect("it holds in a dhaga too");
    });
}

#[test]
fn many_large_frames_in_both_directions_arrive() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = connect(&server);
        let callers: Vec<_> = (1..=16_usize)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || {
                    let sent = ByteBuf::from(vec![n as u8; n * 150_000]);
                    let back: ByteBuf =
                        client.call_timeout("echo", (&sent,), DEADLINE).expect("it is within the limits");
                    assert!(back == sent, "{n}");
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().expect("each gets its own"));
    });
}

const SOFT_MAX: usize = 64 << 10;
const ANSWER_BYTES: usize = 64 << 10;
const ANSWERS: u32 = 2000;

/// A server whose method `blob` counts how often it ran, and a peer that asks for far more than its socket holds.
fn congested() -> (Server, Arc<AtomicUsize>, Peer) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let methods = move |id: u32| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok::<_, HandlerError>((id, ByteBuf::from(vec![7; ANSWER_BYTES])))
    };
    let limits = Limits { unsent_bytes_max: SOFT_MAX, in_flight_per_connection_max: 16, ..Limits::default() };
    let server =
        builder(&Gate::default()).method("bulk", methods).limits(limits).bind("127.0.0.1:0").expect("there is a port");
    let mut peer = Peer::connect(server.local_addr());
    peer.send(&pipeline(ANSWERS, "bulk"));
    // No event tells that nothing happens any more.
    let mut before = 0;
    eventually("the server holds still", || {
        thread::sleep(Duration::from_millis(200));
        let now = runs.load(Ordering::SeqCst);
        std::mem::replace(&mut before, now) == now && now > 0
    });
    (server, runs, peer)
}

/// What two sockets on loopback may hold, at most.
const KERNEL_BYTES_MAX: usize = 24 << 20;

#[test]
fn a_peer_that_does_not_read_is_not_read_either_and_leaves_nothing_behind() {
    within_deadline(|| {
        let (server, runs, peer) = congested();
        let ran = runs.load(Ordering::SeqCst);
        assert!(ran * ANSWER_BYTES < KERNEL_BYTES_MAX, "{ran} handlers ran");
        assert!(server.stats().in_flight <= 16);
        Bystander::at(&server).has_not_noticed();
        drop(peer);
        eventually("all is released", || server.stats().in_flight == 0 && server.stats().connections == 0);
    });
}

#[test]
fn a_peer_that_reads_late_gets_all_its_answers() {
    within_deadline(|| {
        let (server, runs, mut peer) = congested();
        let mut seen = vec![false; ANSWERS as usize];
        for _ in 0..ANSWERS {
            let (id, answer) = peer.receive_answer();
            let answer = answer.expect("the handler succeeds");
            let parts = answer.as_array().expect("it is a pair");
            assert!(parts[0] == id.into() && parts[1].as_slice().map(<[u8]>::len) == Some(ANSWER_BYTES));
            assert!(!std::mem::replace(&mut seen[id as usize], true), "{id} came twice");
        }
        assert_eq!(runs.load(Ordering::SeqCst), ANSWERS as usize);
        eventually("none is left", || server.stats().in_flight == 0);
        assert_eq!(peer.ask(9, "add", vec![1.into(), 2.into()]), Ok(3.into()));
    });
}

#[test]
fn a_peer_that_does_not_read_costs_bounded_memory() {
    in_child(name_of!(a_peer_that_does_not_read_costs_bounded_memory), 1024, || {
        let before = resident_bytes();
        let (_server, _runs, _peer) = congested();
        let after = resident_bytes();
        assert!(after < before + (16 << 20), "from {before} to {after} bytes");
    });
}

/// No handler runs for them, and no limit of requests in flight holds them up.
#[test]
fn who_asks_for_extensions_without_end_and_reads_nothing_is_not_read_either() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        peer.0.set_write_timeout(Some(Duration::from_secs(1))).expect("it is not zero");
        let hello = Value::Map(vec![("v".into(), 1.into())]);
        let hellos = request(1, "$/hello", vec![hello]).repeat(4000);
        let mut sent = 0;
        while let Ok(count) = peer.0.write(&hellos) {
            sent += count;
            assert!(sent < KERNEL_BYTES_MAX, "all is read");
        }
        Bystander::at(&server).has_not_noticed();
    });
}

/// Of each, more than all together could keep in the kernel.
const HELD: usize = 40;
const HELD_BYTES: usize = 1 << 20;

/// A server whose handlers have all returned, one after the other, and a peer that has read none of their answers.
fn answers_that_wait() -> (Server, Peer) {
    let gates: Vec<_> = (0..HELD).map(|_| Gate::default()).collect();
    let (held, ended) = (gates.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = ended.clone();
    let method = move |n: usize| {
        held[n].wait();
        counted.fetch_add(1, Ordering::SeqCst);
        Ok::<_, HandlerError>(ByteBuf::from(vec![n as u8; HELD_BYTES]))
    };
    let limits = Limits { unsent_bytes_max: SOFT_MAX, ..Limits::default() };
    // Of one worker: a handler begins or goes on when the one before it is done with its answer.
    let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
    let builder = builder(&Gate::default()).method("held", method).limits(limits);
    let server = builder.bind_on(&runtime, "127.0.0.1:0").expect("there is a port");
    // It lives as long as the process: the server is what ends.
    std::mem::forget(runtime);
    let mut peer = Peer::extended(server.local_addr());
    peer.send(&pipeline(HELD as u32, "held"));
    // None begins once the answers of others wait.
    eventually("all have begun", || gates.iter().all(|gate| gate.inside() == 1));
    for (n, gate) in gates.iter().enumerate() {
        gate.open();
        eventually("the next one returns", || ended.load(Ordering::SeqCst) == n + 1);
    }
    eventually("some had room", || server.stats().in_flight < HELD);
    assert!(server.stats().in_flight > HELD / 4, "{:?}: the kernel took them all", server.stats());
    (server, peer)
}

#[test]
fn answers_that_wait_come_in_order_and_none_is_lost_although_one_is_cancelled() {
    within_deadline(|| {
        let (server, mut peer) = answers_that_wait();
        let in_flight = server.stats().in_flight;
        let last = HELD as u32 - 1;
        peer.send(&notification("$/cancelRequest", vec![0.into(), last.into()]));
        // Its id is taken as long as its answer waits, and whoever uses it again is closed: so nobody does.
        Bystander::at(&server).has_not_noticed();
        assert_eq!(server.stats().in_flight, in_flight);
        for n in 0..=last {
            let (id, answer) = peer.receive_answer();
            let answer = answer.expect("each handler has returned a value");
            assert_eq!(id, n, "one has overtaken another");
            assert!(answer.as_slice().is_some_and(|bytes| bytes.len() == HELD_BYTES && bytes[0] == n as u8), "{n}");
        }
        eventually("none is left", || server.stats().in_flight == 0);
        assert_eq!(peer.ask(last, "add", vec![1.into(), 2.into()]), Ok(3.into()));
    });
}

#[test]
fn who_goes_while_answers_wait_leaves_none_of_them_in_memory() {
    in_child(name_of!(who_goes_while_answers_wait_leaves_none_of_them_in_memory), 1024, || {
        let (server, peer) = answers_that_wait();
        let before = resident_bytes();
        drop(peer);
        eventually("all is released", || (server.stats().in_flight, server.stats().connections) == (0, 0));
        eventually("their memory is free", || resident_bytes() + HELD / 8 * HELD_BYTES < before);
    });
}

#[test]
fn an_id_whose_answer_waits_is_in_flight() {
    within_deadline(|| {
        let (server, mut peer) = answers_that_wait();
        peer.send(&request(HELD as u32 - 1, "add", vec![1.into(), 2.into()]));
        eventually("it is closed", || server.stats().closed_for_fault == 1 && server.stats().connections == 0);
        eventually("all is released", || server.stats().in_flight == 0);
    });
}

#[test]
fn a_server_that_ends_waits_for_answers_that_wait_no_longer_than_its_grace() {
    within_deadline(|| {
        let (server, mut peer) = answers_that_wait();
        let begun = Instant::now();
        server.shutdown(Duration::from_millis(100));
        assert!(begun.elapsed() < PATIENCE / 2, "it took {:?}", begun.elapsed());
        peer.expect_end_some_time();
    });
}

/// A few bytes of requests must not buy a thousand large answers that wait for room.
#[test]
fn a_pipeline_of_large_answers_that_nobody_reads_costs_bounded_memory() {
    in_child(name_of!(a_pipeline_of_large_answers_that_nobody_reads_costs_bounded_memory), 1024, || {
        let server = serve(&Gate::default());
        let before = resident_bytes();
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&(0..1000).flat_map(|id| request(id, "blob", vec![(4 << 20).into()])).collect::<Vec<_>>());
        let mut last = usize::MAX;
        eventually("the server holds still", || {
            thread::sleep(Duration::from_millis(500));
            let now = server.stats().in_flight;
            std::mem::replace(&mut last, now) == now
        });
        let after = resident_bytes();
        assert!(after < before + (64 << 20), "from {before} to {after} bytes");
        drop(peer);
        eventually("all is released", || server.stats().in_flight == 0 && server.stats().connections == 0);
    });
}

#[test]
fn a_server_that_does_not_read_makes_callers_wait_and_then_fail() {
    within_deadline(|| {
        let (let_go, is_let_go) = std::sync::mpsc::channel::<()>();
        let address = foreign_server(1, move |peer| {
            let _ = is_let_go.recv();
            drop(peer);
        });
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let limits = Limits { unsent_bytes_max: SOFT_MAX, ..Limits::default() };
        let client = plain().limits(limits).timeout(Duration::from_millis(500));
        let client = runtime.spawn(move || client.connect(address)).join().expect("nobody panics").expect("it listens");
        let callers: Vec<_> = (0..400)
            .map(|_| {
                let client = client.clone();
                runtime.spawn(move || client.call::<_, usize>("len", (Bytes::new(&[7; ANSWER_BYTES]),)))
            })
            .collect();
        let mut overloaded = 0;
        for caller in callers {
            match caller.join().expect("nobody panics") {
                Err(CallError::Overloaded { .. }) => overloaded += 1,
                Err(CallError::DeadlineExceeded) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(overloaded > 0, "24 MiB fit into the socket");
        drop(let_go);
    });
}

#[test]
fn many_notifications_are_all_handled() {
    within_deadline(|| {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let notice = move |n: usize| {
            counted.fetch_add(n, Ordering::SeqCst);
            Ok(())
        };
        let server = builder(&Gate::default()).method("notice", notice).bind("127.0.0.1:0").expect("there is a port");
        let client = connect(&server);
        let senders: Vec<_> = (0..10)
            .map(|_| {
                let client = client.clone();
                dhaga::spawn(move || (0..1000).for_each(|_| client.notify("notice", (1,)).expect("the server lives")))
            })
            .collect();
        senders.into_iter().for_each(|sender| sender.join().expect("all were sent"));
        eventually("all came", || count.load(Ordering::SeqCst) == 10_000);
        assert_eq!(server.stats().ignored, 0);
    });
}

#[test]
fn a_connection_that_never_stops_does_not_starve_its_neighbours() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let server = builder(&Gate::default()).bind_on(&runtime, "127.0.0.1:0").expect("there is a port");
        let mut sending = Peer::connect(server.local_addr());
        let is_over = Arc::new(AtomicBool::new(false));
        let stops = is_over.clone();
        let sender = thread::spawn(move || {
            let batch = pipeline(500, "echo");
            while !stops.load(Ordering::SeqCst) {
                sending.send(&batch);
                (0..500).for_each(|_| assert!(sending.receive_answer().1.is_ok()));
            }
            sending.finish();
        });
        for id in 0..200 {
            let mut neighbour = Peer::connect(server.local_addr());
            let since = Instant::now();
            assert_eq!(neighbour.ask(id, "add", vec![1.into(), 2.into()]), Ok(3.into()));
            assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        }
        is_over.store(true, Ordering::SeqCst);
        sender.join().expect("all was answered");
    });
}

#[test]
fn a_runtime_with_few_dhagas_answers_late_or_closes_and_recovers() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).tasks_max(40).build().expect("the kernel gives threads");
        let gate = Gate::default();
        let server = builder(&gate).bind_on(&runtime, "127.0.0.1:0").expect("there is a port");
        let mut peers: Vec<_> = (0..4).map(|_| Peer::connect(server.local_addr())).collect();
        peers.iter_mut().for_each(|peer| peer.send_to_whom_it_may_concern(&pipeline(50, "hold")));
        eventually("most dhagas are taken", || gate.inside() >= 30);
        gate.open();
        for peer in &mut peers {
            peer.finish_if_open();
            peer.expect_end_some_time();
        }
        eventually("none is in flight", || server.stats().in_flight == 0);
        eventually("it serves again", || {
            Peer::connect(server.local_addr()).try_ask(1, "add", vec![1.into(), 2.into()]) == Some(3.into())
        });
    });
}
