//! A server that ends says so, and its clients go on elsewhere.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dhaga::Runtime;
use dhaga_rpc::{CallError, Client, RefusedReason, Server, Value};

use crate::common::*;

fn hello() -> Value {
    let caps = Value::Array(vec!["goaway".into(), "errors".into()]);
    Value::Map(vec![("v".into(), 1.into()), ("caps".into(), caps)])
}

fn goaway() -> Vec<u8> {
    notification("$/goaway", vec!["shutdown".into(), 1000.into()])
}

fn refusal(id: u32) -> Vec<u8> {
    let refused = [("code", Value::from(-32010)), ("name", "REFUSED".into()), ("message", "I end".into())];
    let refused = Value::Map(refused.map(|(key, value)| (key.into(), value)).to_vec());
    bytes_of(&Value::Array(vec![1.into(), id.into(), refused, Value::Nil]))
}

/// A server of another make that knows `$/goaway`: one thread that answers the question and then does as `talk` says, with
/// the number of the connection.
fn extended_server(talk: impl Fn(Peer, usize) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept() else { return };
            let mut peer = Peer::new(stream);
            let (id, method) = receive_request(&mut peer);
            assert_eq!(method, "$/hello");
            peer.send(&answer(id, hello()));
            talk(peer, number);
        }
    });
    address
}

/// Calls on the one worker of a runtime, which has one connection.
fn on_one_worker<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
    runtime.spawn(f).join().expect("nobody panics")
}

#[test]
fn who_knows_extensions_is_told_that_the_server_ends_and_others_see_the_end_only() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let (mut told, mut plain) = (Peer::extended(server.local_addr()), Peer::connect(server.local_addr()));
        // Who is not accepted yet when the server ends is cut off.
        assert_eq!(plain.ask(6, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        told.send(&request(7, "hold", vec![5.into()]));
        eventually("it is held", || gate.arrived() == 1);
        // Whom nobody has accepted by then is not of the server.
        eventually("both are accepted", || server.stats().connections == 2);
        let ending = thread::spawn(move || server.shutdown(PATIENCE));
        let message = told.receive();
        let parts = message.as_array().expect("a message is an array");
        assert_eq!((&parts[0], parts[1].as_str(), &parts[2][0]), (&2.into(), Some("$/goaway"), &"shutdown".into()));
        assert_eq!(parts[2][1].as_u64(), Some(PATIENCE.as_millis() as u64));
        told.send(&request(8, "add", vec![1.into(), 2.into()]));
        let refused = told.receive();
        let refused = refused[2].as_map().expect("it is a map");
        assert!(refused.contains(&("name".into(), "REFUSED".into())), "{refused:?}");
        assert!(plain.ask(9, "add", vec![1.into(), 2.into()]).is_err_and(|error| error.contains("shutting down")));
        gate.open();
        assert_eq!(told.receive_answer(), (7, Ok(5.into())));
        assert!(ending.join().expect("nobody panics"));
        told.expect_end();
        plain.expect_end();
    });
}

#[test]
fn a_client_goes_on_at_the_next_server_while_its_old_calls_finish() {
    within_deadline(|| {
        let gate = Gate::default();
        let old = serve(&gate);
        let address = old.local_addr();
        let client = Client::connect(address).expect("it listens");
        let caller = client.clone();
        let held = dhaga::spawn(move || caller.call::<_, i64>("hold", (5,)));
        eventually("it is held", || gate.arrived() == 1);
        let ending = thread::spawn(move || old.shutdown(PATIENCE));
        let next = || Server::builder().method("add", |_: i64, _: i64| Ok(-1)).bind(address).ok();
        let mut new = next();
        eventually("the port is free", || {
            new = new.take().or_else(next);
            new.is_some()
        });
        // The port is free a moment before the old server refuses: until then each worker's old connection is served.
        eventually("the next server has all calls", || (0..20).all(|_| add(&client, 1, 2).ok() == Some(-1)));
        gate.open();
        assert_eq!(held.join().expect("nobody panics").ok(), Some(5), "it was finished where it was begun");
        assert!(ending.join().expect("nobody panics"));
    });
}

#[test]
fn a_call_that_was_refused_is_made_once_more_elsewhere() {
    within_deadline(|| {
        let (seen, all) = mpsc::channel();
        let address = extended_server(move |mut peer, number| {
            let (id, method) = receive_request(&mut peer);
            seen.send((number, method)).expect("the test waits");
            peer.send(&if number == 0 { refusal(id) } else { answer(id, 3) });
            if number == 0 {
                peer.expect_end();
            }
        });
        on_one_worker(move || assert_eq!(add(&Client::connect(address).expect("it listens"), 1, 2).ok(), Some(3)));
        let calls: Vec<_> = all.try_iter().collect();
        assert_eq!(calls, [(0, "add".to_owned()), (1, "add".to_owned())]);
    });
}

#[test]
fn a_call_that_is_refused_everywhere_is_an_error_that_may_be_tried_again() {
    within_deadline(|| {
        let (seen, all) = mpsc::channel();
        let address = extended_server(move |mut peer, number| {
            let (id, _) = receive_request(&mut peer);
            seen.send(number).expect("the test waits");
            peer.send(&refusal(id));
        });
        let error = on_one_worker(move || add(&Client::connect(address).expect("it listens"), 1, 2));
        let error = error.expect_err("it is refused");
        assert!(matches!(&error, CallError::Refused { reason: RefusedReason::ShuttingDown, .. }), "{error}");
        assert!(error.is_retryable() && !error.maybe_executed());
        assert_eq!(all.try_iter().collect::<Vec<_>>(), [0, 1]);
    });
}

#[test]
fn a_connection_that_is_left_is_closed_behind_its_last_answer() {
    within_deadline(|| {
        let address = extended_server(|mut peer, number| {
            let (id, method) = receive_request(&mut peer);
            if number > 0 {
                return peer.send(&answer(id, number));
            }
            assert_eq!(method, "echo");
            peer.send(&goaway().repeat(100));
            // The answer is owed all the same.
            peer.send(&answer(id, 5));
            peer.expect_end();
        });
        on_one_worker(move || {
            let client = Client::connect(address).expect("it listens");
            assert_eq!(client.call::<_, i64>("echo", (5,)).ok(), Some(5));
            assert_eq!(add(&client, 1, 2).ok(), Some(1));
        });
    });
}

#[test]
fn a_connection_that_is_left_is_closed_behind_the_last_answer_of_ours() {
    within_deadline(|| {
        let (ended, has_ended) = mpsc::channel();
        let address = extended_server(move |mut peer, _| {
            peer.send(&[request(1, "hold", vec![5.into()]), goaway()].concat());
            assert_eq!(peer.receive_answer(), (1, Ok(5.into())));
            peer.expect_end();
            ended.send(()).expect("the test waits");
        });
        on_one_worker(move || {
            let gate = Gate::default();
            let inner = gate.clone();
            let hold = move |n: i64| {
                inner.wait();
                Ok(n)
            };
            let client = Client::builder().method("hold", hold).connect(address).expect("it listens");
            eventually_in_dhaga(|| gate.arrived() == 1 && client.connections() == 0);
            gate.open();
            let has_ended = dhaga::blocking(move || has_ended.recv_timeout(PATIENCE)).expect("nobody panics");
            has_ended.expect("it is not left open");
            drop(client);
        });
    });
}

fn eventually_in_dhaga(mut is_so: impl FnMut() -> bool) {
    dhaga::within(PATIENCE, || {
        while !is_so() {
            dhaga::sleep(Duration::from_millis(1));
            dhaga::checkpoint().expect("it becomes so in time");
        }
    });
}

#[test]
fn a_goaway_without_agreement_or_to_a_server_harms_nobody() {
    within_deadline(|| {
        let address = foreign_server(1, |mut peer| {
            (0..2).for_each(|n| {
                let (id, _) = receive_request(&mut peer);
                peer.send(&[goaway(), answer(id, n)].concat());
            });
            peer.expect_end_some_time();
        });
        on_one_worker(move || {
            let client = plain().timeout(Duration::from_secs(20)).connect(address).expect("it listens");
            assert_eq!((add(&client, 1, 2).ok(), add(&client, 1, 2).ok()), (Some(0), Some(1)));
        });
        let server = serve(&Gate::default());
        let mut peer = Peer::extended(server.local_addr());
        peer.send(&goaway());
        assert_eq!(peer.ask(7, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        let left = server.peers().remove(0).call::<_, i64>("add", (1, 2));
        assert!(matches!(left, Err(CallError::Disconnected { maybe_executed: false, .. })), "{left:?}");
    });
}
