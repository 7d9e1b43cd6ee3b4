//! Either side of a connection calls and serves.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use dhaga_rpc::{CallError, Client, ClientBuilder, HandlerError, Limits, Server, ServerBuilder};

use crate::common::*;

/// The other side, as soon as it is known.
type Other = Arc<OnceLock<Client>>;

fn call_other(other: &Other, method: &str, depth: u32) -> Result<u32, HandlerError> {
    let other = other.get().ok_or_else(|| HandlerError::new("there is nobody to call"))?;
    Ok(other.call(method, (depth,))?)
}

/// Each of the two calls the other until the depth is reached.
fn ping_pong(limits: Limits) -> (Server, Client) {
    let (of_server, of_client) = (Other::default(), Other::default());
    let other = of_server.clone();
    let server = Server::builder().limits(limits.clone()).method("ping", move |depth: u32| match depth {
        0 => Ok(0),
        depth => Ok(call_other(&other, "pong", depth - 1)? + 1),
    });
    let server = server.bind("127.0.0.1:0").expect("there is a port");
    let other = of_client.clone();
    let client = Client::builder().limits(limits).method("pong", move |depth: u32| match depth {
        0 => Ok(0),
        depth => Ok(call_other(&other, "ping", depth - 1)? + 1),
    });
    let client = client.connect(server.local_addr()).expect("it listens");
    eventually("it is accepted", || server.peers().len() == 1);
    of_server.set(server.peers().remove(0)).expect("once");
    // It is never closed, since its own methods own it.
    of_client.set(client.clone()).expect("once");
    (server, client)
}

#[test]
fn calls_nest_a_hundred_levels_deep_in_both_directions() {
    within_deadline(|| {
        let (server, client) = ping_pong(Limits::default());
        for depth in [0, 1, 2, 100] {
            assert_eq!(client.call::<_, u32>("ping", (depth,)).ok(), Some(depth));
            assert_eq!(server.peers()[0].call::<_, u32>("pong", (depth,)).ok(), Some(depth));
        }
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || assert_eq!(client.call::<_, u32>("ping", (20,)).ok(), Some(20)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("its call succeeds"));
        assert_eq!((client.connections(), server.stats().connections), (1, 1));
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

/// A server whose `back` calls the method of that name at the peer that the test has set.
fn calling_back(gate: &Gate) -> (ServerBuilder, Other) {
    let other = Other::default();
    let called = other.clone();
    let back = move |depth: u32| call_other(&called, "held", depth);
    (builder(gate).method("back", back), other)
}

fn held(gate: &Gate) -> ClientBuilder {
    let gate = gate.clone();
    Client::builder().method("held", move |depth: u32| {
        gate.wait();
        Ok(depth)
    })
}

#[test]
fn answers_are_read_although_there_is_no_room_for_the_request_before_them() {
    within_deadline(|| {
        let gate = Gate::default();
        let (builder, other) = calling_back(&Gate::default());
        let limits = Limits { in_flight_per_connection_max: 2, ..Limits::default() };
        let server = builder.limits(limits).metrics(true).bind("127.0.0.1:0").expect("there is a port");
        let client = held(&gate).connect(server.local_addr()).expect("it listens");
        eventually("it is accepted", || server.peers().len() == 1);
        other.set(server.peers().remove(0)).expect("once");
        let (answers, all) = mpsc::channel();
        for n in 0..2_u32 {
            let (client, answers) = (client.clone(), answers.clone());
            thread::spawn(move || answers.send(client.call::<_, u32>("back", (n,))));
        }
        eventually("both have called back", || gate.arrived() == 2);
        // Its request is read before the answers, and there is no room for it.
        let refused = add(&client, 1, 2);
        assert!(
            matches!(&refused, Err(CallError::Refused { answer, .. }) if answer.to_string().contains("2 calls")),
            "{refused:?}"
        );
        let counted = server.metrics().method("add").map(|method| method.errors.clone());
        assert_eq!(counted, Some(vec![("overloaded", 1)]));
        gate.open();
        let mut got: Vec<_> = (0..2).map(|_| all.recv_timeout(PATIENCE).expect("it comes").ok()).collect();
        got.sort_unstable();
        assert_eq!(got, [Some(0), Some(1)]);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

#[test]
fn a_handler_that_waits_for_its_caller_does_not_hold_up_the_next_request() {
    within_deadline(|| {
        let gate = Gate::default();
        let (builder, other) = calling_back(&Gate::default());
        let server = builder.bind("127.0.0.1:0").expect("there is a port");
        let client = held(&gate).connect(server.local_addr()).expect("it listens");
        eventually("it is accepted", || server.peers().len() == 1);
        other.set(server.peers().remove(0)).expect("once");
        let caller = client.clone();
        let first = thread::spawn(move || caller.call::<_, u32>("back", (7,)));
        eventually("it has called back", || gate.arrived() == 1);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        gate.open();
        assert_eq!(first.join().expect("nobody panics").ok(), Some(7));
    });
}

#[test]
fn a_peer_that_has_gone_is_not_called() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = Client::builder().method("held", |n: u32| Ok(n)).connect(server.local_addr()).expect("it listens");
        eventually("it is accepted", || server.peers().len() == 1);
        let peer = server.peers().remove(0);
        assert_eq!((peer.call::<_, u32>("held", (1,)).ok(), peer.connections()), (Some(1), 1));
        drop(client);
        eventually("it is closed", || server.stats().connections == 0);
        for _ in 0..2 {
            let gone = peer.call::<_, u32>("held", (1,));
            assert!(matches!(gone, Err(CallError::Disconnected { maybe_executed: false, .. })), "{gone:?}");
        }
        assert_eq!(peer.connections(), 0);
        assert!(peer.notify("held", (1,)).is_err());
        assert!(server.peers().is_empty());
    });
}

#[test]
fn what_the_peer_asked_before_it_finished_is_answered_and_nothing_more_asked_of_it() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&request(1, "hold", vec![7.into()]));
        eventually("it is held", || gate.arrived() == 1);
        let client = server.peers().remove(0);
        let caller = client.clone();
        let waiting = thread::spawn(move || caller.call::<_, u32>("nothing", ()));
        assert_eq!(receive_request(&mut peer).1, "nothing");
        peer.finish();
        let cut = waiting.join().expect("nobody panics");
        assert!(matches!(cut, Err(CallError::Disconnected { maybe_executed: true, .. })), "{cut:?}");
        let late = client.call::<_, u32>("nothing", ());
        assert!(matches!(late, Err(CallError::Disconnected { maybe_executed: false, .. })), "{late:?}");
        gate.open();
        assert_eq!(peer.receive_answer(), (1, Ok(7.into())));
        peer.expect_end();
    });
}

#[test]
fn a_server_notifies_each_client_once() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let (told, all) = mpsc::channel();
        let clients: Vec<_> = (0..10_u32)
            .map(|n| {
                let told = told.clone();
                let told = move |news: String| Ok(told.send((n, news))?);
                let client = Client::builder().method("news", told).connect(server.local_addr()).expect("it listens");
                assert_eq!(add(&client, 1, 2).ok(), Some(3));
                client
            })
            .collect();
        server.peers().iter().for_each(|peer| peer.notify("news", ("hot",)).expect("it is connected"));
        let mut heard: Vec<_> = (0..10).map(|_| all.recv_timeout(PATIENCE).expect("all are told")).collect();
        heard.sort_unstable();
        assert_eq!(heard, (0..10).map(|n| (n, "hot".to_owned())).collect::<Vec<_>>());
        assert!(clients.iter().all(|client| client.connections() == 1));
        assert!(all.try_recv().is_err(), "nobody is told twice");
    });
}

#[test]
fn both_sides_may_send_more_than_fits_at_the_same_time() {
    within_deadline(|| {
        let limits = Limits { unsent_bytes_max: 64 << 10, call_timeout: PATIENCE, ..Limits::default() };
        let echo = |blob: serde_bytes::ByteBuf| Ok(blob);
        let server = Server::builder().limits(limits.clone()).method("back", echo).bind("127.0.0.1:0");
        let server = server.expect("there is a port");
        let client = Client::builder().limits(limits).method("back", echo);
        let client = client.connect(server.local_addr()).expect("it listens");
        eventually("it is accepted", || server.peers().len() == 1);
        let sides = [client.clone(), server.peers().remove(0)];
        let callers: Vec<_> = (0..32)
            .map(|n| {
                let side = sides[n % 2].clone();
                thread::spawn(move || {
                    let blob = serde_bytes::ByteBuf::from(vec![n as u8; 48 << 10]);
                    for _ in 0..30 {
                        let back: serde_bytes::ByteBuf = side.call("back", (&blob,)).expect("nobody is stuck");
                        assert_eq!(back, blob);
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().expect("its calls succeed"));
    });
}
