//! How two sides agree on extensions, and what a plain peer gets to see of it: one request.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::{CallError, Client, ClientBuilder, Extensions, Value};

use crate::common::*;

/// Calls on the one worker of a runtime, which has one connection.
fn on_one_worker<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
    runtime.spawn(f).join().expect("nobody panics")
}

fn require() -> ClientBuilder {
    Client::builder().extensions(Extensions::Require)
}

/// `{v: 1, caps: […]}`.
fn hello(caps: &[&str]) -> Value {
    let caps = caps.iter().map(|cap| Value::from(*cap)).collect();
    Value::Map(vec![("v".into(), 1.into()), ("caps".into(), Value::Array(caps))])
}

fn error_answer(id: u32, error: &str) -> Vec<u8> {
    bytes_of(&Value::Array(vec![1.into(), id.into(), error.into(), Value::Nil]))
}

/// Answers each request with its place among the calls of its connection, until the end; anything else fails.
fn answer_calls(peer: &mut Peer) -> i64 {
    let mut calls = 0;
    while let Ok(message) = rmpv::decode::read_value(&mut peer.0) {
        let parts = message.as_array().expect("a message is an array");
        let id = parts[1].as_u64().expect("a request has an id") as u32;
        assert!(parts[0] == 0.into() && !parts[2].as_str().expect("a name").starts_with("$/"), "{message}");
        calls += 1;
        peer.send(&answer(id, calls));
    }
    calls
}

/// A plain server that treats the first request of its first connection by `refuse`, and says what each connection saw.
fn plain_server(refuse: fn(&mut Peer, u32) -> bool) -> (SocketAddr, mpsc::Receiver<(Option<String>, i64)>) {
    let (seen, all) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut is_first = true;
        while let Ok((stream, _)) = listener.accept() {
            let mut peer = Peer::new(stream);
            let mut asked = None;
            if std::mem::take(&mut is_first) {
                let (id, method) = receive_request(&mut peer);
                asked = Some(method);
                if !refuse(&mut peer, id) {
                    let _ = seen.send((asked, 0));
                    continue;
                }
            }
            let calls = answer_calls(&mut peer);
            let _ = seen.send((asked, calls));
        }
    });
    (address, all)
}

#[test]
fn a_question_goes_to_whoever_was_dialled_and_our_server_answers_it() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let address = server.local_addr();
        assert_eq!(on_one_worker(move || add(&require().connect(address).expect("it knows",), 1, 2).ok()), Some(3));
        let mut peer = Peer::connect(address);
        for id in [7, 7, 8] {
            let said = peer.ask(id, "$/hello", vec![hello(&["meta", "unheard of"])]).expect("it knows");
            let said: Vec<_> = said.as_map().expect("it is a map").iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(said, [Some("v"), Some("caps"), Some("limits")]);
        }
        assert_eq!(peer.ask(9, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        for strange in [vec![], vec![Value::Nil], vec![hello(&[]), hello(&[])], vec![7.into()]] {
            assert!(peer.ask(10, "$/hello", strange).is_err());
        }
        assert!(peer.ask(11, "$/unheard", vec![]).is_err());
        peer.send(&bytes_of(&Value::Array(vec![2.into(), "$/unheard".into(), Value::Array(vec![])])));
        assert_eq!(peer.ask(12, "add", vec![1.into(), 2.into()]), Ok(3.into()));
    });
}

#[test]
fn a_plain_peer_that_refuses_gets_one_question_and_then_the_calls() {
    within_deadline(|| {
        let (address, seen) = plain_server(|peer, id| {
            peer.send(&error_answer(id, "no such method"));
            true
        });
        on_one_worker(move || {
            let client = Client::connect(address).expect("it listens");
            assert_eq!((add(&client, 1, 2).ok(), add(&client, 1, 2).ok()), (Some(1), Some(2)));
        });
        assert_eq!(seen.recv_timeout(PATIENCE), Ok((Some("$/hello".to_owned()), 2)));
    });
}

#[test]
fn an_answer_that_is_no_hello_makes_a_plain_peer() {
    within_deadline(|| {
        let (address, seen) = plain_server(|peer, id| {
            peer.send(&answer(id, "hello yourself"));
            true
        });
        on_one_worker(move || assert_eq!(add(&Client::connect(address).expect("it listens"), 1, 2).ok(), Some(1)));
        assert_eq!(seen.recv_timeout(PATIENCE), Ok((Some("$/hello".to_owned()), 1)));
    });
}

#[test]
fn a_peer_that_never_answers_the_question_is_asked_once_and_its_late_answer_harms_nobody() {
    within_deadline(|| {
        let (address, seen) = plain_server(|peer, id| {
            let (first, method) = receive_request(peer);
            assert_eq!(method, "add");
            peer.send(&[answer(id, hello(&["meta", "cancel"])), answer(first, -1)].concat());
            true
        });
        on_one_worker(move || {
            let client = Client::connect(address).expect("it listens");
            let since = Instant::now();
            // Out of time before the question is: the next caller has what is left of the wait.
            let late = client.call_timeout::<_, i64>("add", (1, 2), Duration::from_millis(50));
            assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
            assert_eq!(add(&client, 1, 2).ok(), Some(-1));
            assert!(since.elapsed() >= Duration::from_millis(900), "the answer was not waited for");
            assert_eq!(add(&client, 1, 2).ok(), Some(1));
        });
        assert_eq!(seen.recv_timeout(PATIENCE), Ok((Some("$/hello".to_owned()), 1)));
    });
}

#[test]
fn a_peer_that_closes_on_the_question_is_dialled_once_more_and_not_asked_again() {
    within_deadline(|| {
        let (address, seen) = plain_server(|_, _| false);
        on_one_worker(move || {
            let client = Client::connect(address).expect("it listens");
            assert_eq!((add(&client, 1, 2).ok(), add(&client, 1, 2).ok()), (Some(1), Some(2)));
        });
        assert_eq!(seen.recv_timeout(PATIENCE), Ok((Some("$/hello".to_owned()), 0)));
        assert_eq!(seen.recv_timeout(PATIENCE), Ok((None, 2)));
    });
}

#[test]
fn required_extensions_of_a_plain_peer_are_an_error_that_names_it() {
    within_deadline(|| {
        for refuse in [
            (|peer, id| {
                peer.send(&error_answer(id, "no such method"));
                true
            }) as fn(&mut Peer, u32) -> bool,
            |_, _| false,
        ] {
            let (address, seen) = plain_server(refuse);
            let error = on_one_worker(move || require().connect(address).expect_err("it knows no extensions"));
            assert!(matches!(&error, CallError::PlainPeer { .. }), "{error}");
            assert!(!error.is_retryable() && !error.maybe_executed());
            assert_eq!(seen.recv_timeout(PATIENCE), Ok((Some("$/hello".to_owned()), 0)));
        }
    });
}

/// What docs/protocol.md shows.
#[test]
fn the_bytes_on_the_wire_are_those_of_the_page() {
    use std::io::Read;
    const TRACE: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    fn expect(peer: &mut Peer, parts: &[&[u8]]) {
        for part in parts {
            let mut got = vec![0; part.len()];
            peer.0.read_exact(&mut got).expect("it comes");
            assert_eq!(&got, part, "{}", String::from_utf8_lossy(&got));
        }
    }
    within_deadline(|| {
        let (done, is_done) = dhaga::sync::channel::bounded(1);
        let address = foreign_server(1, move |mut peer| {
            let names =
                [&b"\xa4caps\x94\xa4meta\xa6cancel\xa6goaway\xa6errors"[..], b"\xa6limits\x82\xabframe_bytes"].concat();
            let limits = b"\xce\x00\x80\x00\x00\xa9in_flight\xcd\x04\x00";
            expect(&mut peer, &[b"\x94\x00\x01\xa7$/hello\x91\x83\xa1v\x01", &names, limits]);
            peer.send(&answer(1, hello(&["meta", "cancel", "goaway"])));
            expect(&mut peer, &[b"\x93\x02\xa6$/meta\x92\x02\x83\xa1d\xcb"]);
            let mut left = [0; 8];
            peer.0.read_exact(&mut left).expect("it comes");
            assert!((1.0..=1500.0).contains(&f64::from_be_bytes(left)), "{left:x?}");
            expect(&mut peer, &[b"\xa2tp\xd9\x37", TRACE, b"\xa2md\x81\xa6tenant\xa4blue"]);
            expect(&mut peer, &[b"\x94\x00\x02\xa3add\x92\x01\x02", b"\x93\x02\xaf$/cancelRequest\x92\x00\x02"]);
            done.send(()).expect("the test waits");
            peer.expect_end_some_time();
        });
        on_one_worker(move || {
            let client = require().connect(address).expect("it knows");
            let trace = std::str::from_utf8(TRACE).expect("it is").parse().expect("it is one");
            let call = || client.call_timeout::<_, i64>("add", (1, 2), Duration::from_millis(1500));
            let late = dhaga_rpc::with_trace(trace, || dhaga_rpc::with_metadata([("tenant", "blue")], call));
            assert!(matches!(late, Ok(Err(CallError::DeadlineExceeded))), "{late:?}");
            dhaga::within(PATIENCE, || is_done.recv()).expect("all came");
        });
    });
}

#[test]
fn a_plain_client_does_not_ask() {
    within_deadline(|| {
        let (address, seen) = plain_server(|peer, id| {
            peer.send(&answer(id, 0));
            true
        });
        on_one_worker(move || assert_eq!(add(&plain().connect(address).expect("it listens"), 1, 2).ok(), Some(0)));
        assert_eq!(seen.recv_timeout(PATIENCE), Ok((Some("add".to_owned()), 0)));
    });
}
