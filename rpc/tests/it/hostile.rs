//! What a peer may send, and what must come of it. Each case beside a connection that must not notice.

use std::time::{Duration, Instant};

use dhaga_rpc::{CallError, Limits, Server, Value};

use crate::common::*;

/// What must come of some bytes.
enum Must {
    /// The connection is closed and counted.
    Close,
    /// A request with this id gets an error answer with this text in it, and the connection lives.
    Refuse(u32, &'static str),
    /// No answer; the connection lives.
    Ignore,
}
use Must::{Close, Ignore, Refuse};

fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = vec![0x94, 0, 1, 0xa4];
    bytes.extend_from_slice(b"echo");
    bytes.resize(bytes.len() + depth, 0x91);
    bytes.push(0xc0);
    bytes
}

/// A request whose one argument begins with `claim`.
fn with_argument(claim: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x94, 0, 1, 0xa4];
    bytes.extend_from_slice(b"echo");
    bytes.push(0x91);
    bytes.extend_from_slice(claim);
    bytes
}

const CLAIMS: [(&str, &[u8]); 5] = [
    ("str", &[0xdb, 0xff, 0xff, 0xff, 0xff, b'x']),
    ("bin", &[0xc6, 0xff, 0xff, 0xff, 0xff, 0]),
    ("array", &[0xdd, 0xff, 0xff, 0xff, 0xff, 0]),
    ("map", &[0xdf, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    ("ext", &[0xc9, 0xff, 0xff, 0xff, 0xff, 1, 0]),
];

fn message(parts: Vec<Value>) -> Vec<u8> {
    bytes_of(&Value::Array(parts))
}

/// What came, and what must happen.
fn cases() -> Vec<(String, Vec<u8>, Must)> {
    let nil = || Value::Nil;
    let none = || Value::Array(vec![]);
    let mut cases = vec![
        ("garbage".into(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Close),
        ("the byte that is no MessagePack".into(), vec![0xc1], Close),
        ("that byte in a frame".into(), vec![0x94, 0, 1, 0xc1], Close),
        ("a value that is no array".into(), vec![0xc0], Close),
        ("a map".into(), vec![0x80], Close),
        ("an empty array".into(), vec![0x90], Close),
        ("a depth of 100 000".into(), nested(100_000), Close),
        ("one level too deep".into(), nested(32), Close),
        ("another type".into(), message(vec![3.into(), 1.into(), "echo".into(), none()]), Close),
        ("a type that is a text".into(), message(vec!["0".into(), 1.into(), "echo".into(), none()]), Close),
        ("a negative id".into(), message(vec![0.into(), (-1).into(), "echo".into(), none()]), Close),
        ("an id of 64 bits".into(), message(vec![0.into(), (1_u64 << 32).into(), "echo".into(), none()]), Close),
        ("an id that is a text".into(), message(vec![0.into(), "1".into(), "echo".into(), none()]), Close),
        ("a notification of two elements".into(), message(vec![2.into(), "echo".into()]), Close),
        ("an answer of three elements".into(), message(vec![1.into(), 1.into(), nil()]), Close),
        (
            "a request of three elements".into(),
            message(vec![0.into(), 5.into(), "add".into()]),
            Refuse(5, "not a request"),
        ),
        (
            "a request of five elements".into(),
            message(vec![0.into(), 5.into(), "add".into(), none(), nil()]),
            Refuse(5, "not a request"),
        ),
        (
            "a method that is a number".into(),
            message(vec![0.into(), 6.into(), 1.into(), none()]),
            Refuse(6, "not a request"),
        ),
        (
            "params that are nil".into(),
            message(vec![0.into(), 7.into(), "add".into(), nil()]),
            Refuse(7, "not a request"),
        ),
        (
            "a method of 101 bytes".into(),
            message(vec![0.into(), 8.into(), "m".repeat(101).into(), none()]),
            Refuse(8, "not a request"),
        ),
        ("an unknown method".into(), request(9, "nothing", vec![]), Refuse(9, "no method \"nothing\"")),
        ("a reserved method".into(), request(10, "$/nothing", vec![]), Refuse(10, "no method")),
        ("a question for extensions without a map".into(), request(10, "$/hello", vec![]), Refuse(10, "takes one map")),
        ("a missing argument".into(), request(11, "add", vec![1.into()]), Refuse(11, "argument 1")),
        (
            "an argument of another type".into(),
            request(12, "add", vec!["x".into(), 1.into()]),
            Refuse(12, "argument 0"),
        ),
        ("a handler that fails".into(), request(13, "fail", vec!["no luck".into()]), Refuse(13, "no luck")),
        ("a handler that panics".into(), request(14, "panic", vec![]), Refuse(14, "panicked")),
        ("the largest id".into(), request(u32::MAX, "nothing", vec![]), Refuse(u32::MAX, "no method")),
        ("the id 0".into(), request(0, "nothing", vec![]), Refuse(0, "no method")),
        ("a notification for nobody".into(), message(vec![2.into(), "nothing".into(), none()]), Ignore),
        (
            "a notification that fails".into(),
            message(vec![2.into(), "fail".into(), Value::Array(vec!["x".into()])]),
            Ignore,
        ),
        ("a notification that panics".into(), message(vec![2.into(), "panic".into(), none()]), Ignore),
        ("a notification with wrong params".into(), message(vec![2.into(), "add".into(), none()]), Ignore),
        ("an answer to nothing".into(), answer(1, 1), Ignore),
    ];
    for (name, claim) in CLAIMS {
        cases.push((format!("a {name} of 4 GiB"), claim.to_vec(), Close));
        cases.push((format!("a {name} of 4 GiB as argument"), with_argument(claim), Close));
    }
    cases
}

fn check(server: &Server, name: &str, bytes: &[u8], must: &Must) {
    let faults = server.stats().closed_for_fault;
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.ask(1, "add", vec![1.into(), 1.into()]), Ok(2.into()), "before {name}");
    peer.send_to_whom_it_may_concern(bytes);
    match must {
        Close => {
            peer.expect_end();
            eventually(&format!("{name} is counted"), || server.stats().closed_for_fault == faults + 1);
            return;
        }
        Refuse(id, text) => {
            let (answered, outcome) = peer.receive_answer();
            let error = outcome.expect_err(name);
            assert!(answered == *id && error.contains(text), "{name}: {answered} {error}");
        }
        Ignore => {}
    }
    assert_eq!(peer.ask(99, "add", vec![1.into(), 1.into()]), Ok(2.into()), "after {name}");
    assert_eq!(server.stats().closed_for_fault, faults, "{name}");
}

#[test]
fn whatever_comes_has_the_documented_end_and_a_neighbour_does_not_notice() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        for (name, bytes, must) in cases() {
            let bystander = Bystander::at(&server);
            check(&server, &name, &bytes, &must);
            bystander.has_not_noticed();
        }
        eventually("all are gone", || server.stats().connections == 0 && server.stats().in_flight == 0);
    });
}

#[test]
fn what_follows_a_breach_of_the_protocol_is_not_run() {
    within_deadline(|| {
        let gate = Gate::default();
        gate.open();
        let server = serve(&gate);
        let none = || Value::Array(vec![]);
        let breaches =
            [vec![0xc1], message(vec![3.into(), none()]), request(1, "sleep", vec![50.into(), 1.into()]).repeat(2)];
        for breach in breaches {
            let mut peer = Peer::connect(server.local_addr());
            peer.send(&[breach, message(vec![2.into(), "hold".into(), Value::Array(vec![1.into()])])].concat());
            peer.expect_end_some_time();
            eventually("it is gone", || server.stats().connections == 0 && server.stats().in_flight == 0);
            assert_eq!(gate.arrived(), 0);
        }
    });
}

#[test]
fn a_surplus_of_arguments_is_ignored() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.ask(1, "add", vec![1.into(), 2.into(), "more".into(), Value::Nil]), Ok(3.into()));
    });
}

#[test]
fn hostile_claims_cost_no_memory() {
    in_child(name_of!(hostile_claims_cost_no_memory), 1024, || {
        let server = serve(&Gate::default());
        let round = || cases().iter().for_each(|(name, bytes, must)| check(&server, name, bytes, must));
        round();
        let before = resident_bytes();
        (0..20).for_each(|_| round());
        let after = resident_bytes();
        assert!(after < before + (16 << 20), "from {before} to {after} bytes");
    });
}

#[test]
fn every_cut_of_a_message_before_the_end_of_input_ends_the_connection_quietly() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let bytes = request(1, "echo", vec![Value::Map(vec![("key".into(), Value::Binary(vec![1; 40]))])]);
        for cut in 0..bytes.len() {
            let mut peer = Peer::connect(server.local_addr());
            peer.send(&bytes[..cut]);
            peer.finish();
            peer.expect_end();
        }
        eventually("all are gone", || server.stats().connections == 0);
        assert_eq!(server.stats().in_flight, 0);
    });
}

#[test]
fn a_message_may_come_byte_by_byte() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        for byte in request(3, "add", vec![40.into(), 2.into()]) {
            peer.send(&[byte]);
        }
        assert_eq!(peer.receive_answer(), (3, Ok(42.into())));
    });
}

#[test]
fn an_id_that_is_in_flight_already_closes_the_connection() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let bystander = Bystander::at(&server);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&request(7, "hold", vec![1.into()]));
        eventually("the first runs", || gate.inside() == 1);
        peer.send(&request(7, "hold", vec![2.into()]));
        peer.expect_end();
        assert_eq!(server.stats().closed_for_fault, 1);
        assert_eq!((gate.arrived(), server.stats().in_flight), (1, 1));
        gate.open();
        eventually("the handler is gone", || server.stats().in_flight == 0 && server.stats().connections == 1);
        bystander.has_not_noticed();
    });
}

#[test]
fn an_id_may_be_used_again_as_soon_as_its_answer_is_seen() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        for n in 0..1000 {
            assert_eq!(peer.ask(7, "add", vec![n.into(), 1.into()]), Ok((n + 1).into()));
        }
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

/// What the caller must get for what its server sends.
fn check_client(name: &str, bytes: Vec<u8>, is_right: fn(&Result<i64, CallError>) -> bool) {
    let address = foreign_server(1, move |mut peer| {
        receive_request(&mut peer);
        peer.send_to_whom_it_may_concern(&bytes);
        peer.finish();
        peer.expect_end_some_time();
    });
    let result = dhaga::spawn(move || plain().connect(address).and_then(|client| add(&client, 1, 2)));
    let result = result.join().expect("nobody panics");
    assert!(is_right(&result), "{name}: {result:?}");
}

#[test]
fn whatever_a_server_sends_the_caller_gets_a_typed_error() {
    fn is_malformed(result: &Result<i64, CallError>) -> bool {
        matches!(result, Err(CallError::Malformed(_)))
    }
    fn is_disconnected(result: &Result<i64, CallError>) -> bool {
        matches!(result, Err(CallError::Disconnected { maybe_executed: true, .. }))
    }
    fn is_answer(result: &Result<i64, CallError>) -> bool {
        matches!(result, Ok(3))
    }
    within_deadline(|| {
        let right = answer(1, 3);
        let after = |first: Vec<u8>| [first, answer(1, 3)].concat();
        check_client("the answer", right.clone(), is_answer);
        check_client("nothing", vec![], is_disconnected);
        check_client("half an answer", right[..2].to_vec(), is_disconnected);
        check_client("garbage", b"HTTP/1.1 400\r\n".to_vec(), is_malformed);
        check_client("0xc1", vec![0xc1], is_malformed);
        check_client("a depth of 100 000", vec![0x91; 100_000], is_malformed);
        check_client("a negative id", message(vec![1.into(), (-1).into(), Value::Nil, 3.into()]), is_malformed);
        check_client("three elements", message(vec![1.into(), 1.into(), 3.into()]), is_malformed);
        check_client("a result of another type", answer(1, "3"), |result| matches!(result, Err(CallError::Decode(_))));
        let error = message(vec![1.into(), 1.into(), "no".into(), 3.into()]);
        check_client(
            "an error and a result",
            error,
            |result| matches!(result, Err(CallError::Remote(error)) if error.to_string() == "no"),
        );
        check_client("some unknown ids", after((50..90).flat_map(|id| answer(id, 0)).collect()), is_answer);
        check_client("the id 0", after(answer(0, 0)), is_answer);
        check_client("an id one table further", after(answer(17, 0)), is_answer);
        check_client("a notification", after(message(vec![2.into(), "x".into(), Value::Array(vec![])])), is_answer);
        check_client("the answer twice", [right.clone(), right].concat(), is_answer);
        let flood: Vec<u8> = (50..1000).flat_map(|id| answer(id, 0)).collect();
        check_client("a flood of unknown ids", after(flood), is_malformed);
        for (name, claim) in CLAIMS {
            let header = [&[0x94, 1, 1, 0xc0][..], claim].concat();
            check_client(&format!("a {name} of 4 GiB"), header, is_malformed);
        }
    });
}

#[test]
fn a_client_answers_requests_of_its_server_with_a_refusal() {
    within_deadline(|| {
        let address = foreign_server(1, |mut peer| {
            let (id, _) = receive_request(&mut peer);
            assert!(peer.ask(5, "who", vec![]).is_err_and(|error| error.contains("no method")));
            peer.send(&answer(id, 3));
            peer.expect_end_some_time();
        });
        let calling = dhaga::spawn(move || plain().connect(address).and_then(|client| add(&client, 1, 2)));
        assert_eq!(calling.join().expect("nobody panics").ok(), Some(3));
    });
}

#[test]
fn a_server_that_asks_and_never_listens_does_not_fill_the_clients_memory() {
    in_child(name_of!(a_server_that_asks_and_never_listens_does_not_fill_the_clients_memory), 1024, || {
        let address = foreign_server(1, |mut peer| {
            let (id, _) = receive_request(&mut peer);
            let batch = request(1, &"x".repeat(90), vec![]).repeat(1000);
            (0..1000).for_each(|_| peer.send_to_whom_it_may_concern(&batch));
            peer.send_to_whom_it_may_concern(&answer(id, 3));
            peer.expect_end_some_time();
        });
        let before = resident_bytes();
        let connecting = plain().timeout(PATIENCE);
        let calling = dhaga::spawn(move || connecting.connect(address).and_then(|client| add(&client, 1, 2)));
        let result = calling.join().expect("nobody panics");
        let after = resident_bytes();
        assert!(after < before + (32 << 20), "from {before} to {after} bytes, {result:?}");
    });
}

fn timed(limits: Limits) -> (Server, Gate) {
    let gate = Gate::default();
    (serve_within(limits, &gate), gate)
}

const WITHIN: Duration = Duration::from_millis(600);
/// What a busy machine and the interval of the looks may add.
const SLACK: Duration = Duration::from_secs(5);

fn expect_end_in_time(peer: &mut Peer, since: Instant) {
    peer.expect_end();
    let elapsed = since.elapsed();
    assert!(elapsed >= WITHIN && elapsed < WITHIN + SLACK, "closed after {elapsed:?}");
}

#[test]
fn a_peer_that_sends_nothing_is_closed_in_time() {
    within_deadline(|| {
        let (server, _gate) = timed(Limits { first_frame_within: WITHIN, ..Limits::default() });
        let since = Instant::now();
        let mut peer = Peer::connect(server.local_addr());
        expect_end_in_time(&mut peer, since);
        assert_eq!(server.stats().closed_for_fault, 1);
    });
}

#[test]
fn a_first_frame_that_stalls_is_closed_in_time() {
    within_deadline(|| {
        let (server, _gate) = timed(Limits { frame_must_grow_within: WITHIN, ..Limits::default() });
        let mut peer = Peer::connect(server.local_addr());
        let since = Instant::now();
        peer.send(&request(1, "add", vec![])[..3]);
        expect_end_in_time(&mut peer, since);
    });
}

#[test]
fn a_later_frame_that_stalls_is_closed_in_time_and_an_idle_neighbour_is_not() {
    within_deadline(|| {
        let (server, _gate) =
            timed(Limits { frame_must_grow_within: WITHIN, first_frame_within: WITHIN, ..Limits::default() });
        let mut idle = Peer::connect(server.local_addr());
        let mut peer = Peer::connect(server.local_addr());
        for peer in [&mut idle, &mut peer] {
            assert_eq!(peer.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        }
        // Long enough for whoever watches first frames to have lost interest.
        std::thread::sleep(WITHIN * 2);
        let since = Instant::now();
        peer.send(&request(1, "add", vec![])[..3]);
        expect_end_in_time(&mut peer, since);
        assert_eq!(idle.ask(2, "add", vec![1.into(), 2.into()]), Ok(3.into()));
    });
}

#[test]
fn a_slow_frame_that_moves_is_not_closed() {
    within_deadline(|| {
        let (server, _gate) =
            timed(Limits { frame_must_grow_within: WITHIN * 2, first_frame_within: WITHIN * 2, ..Limits::default() });
        let mut peer = Peer::connect(server.local_addr());
        for id in 1..=2 {
            for byte in request(id, "echo", vec!["a text of some length".into()]) {
                std::thread::sleep(WITHIN / 10);
                peer.send(&[byte]);
            }
            assert_eq!(peer.receive_answer(), (id, Ok("a text of some length".into())));
        }
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

#[test]
fn a_frame_that_waits_for_room_of_ours_is_not_overdue() {
    within_deadline(|| {
        let (server, gate) = timed(Limits {
            frame_must_grow_within: WITHIN,
            first_frame_within: WITHIN,
            in_flight_per_connection_max: 1,
            ..Limits::default()
        });
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[request(1, "hold", vec![1.into()]), request(2, "hold", vec![2.into()])].concat());
        eventually("the first runs", || gate.inside() == 1);
        std::thread::sleep(WITHIN * 3);
        gate.open();
        assert_eq!(peer.receive_answer(), (1, Ok(1.into())));
        assert_eq!(peer.receive_answer(), (2, Ok(2.into())));
    });
}

/// Whole frames that were read wait for room, and then for the reader's turn, which is late on a busy worker.
#[test]
fn frames_that_wait_for_a_busy_worker_are_not_overdue() {
    within_deadline(|| {
        let limits = Limits {
            frame_must_grow_within: WITHIN,
            first_frame_within: WITHIN,
            in_flight_per_connection_max: 1,
            ..Limits::default()
        };
        let computes = || {
            let until = Instant::now() + Duration::from_millis(5);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(())
        };
        let runtime = dhaga::Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let builder = Server::builder().method("compute", computes).limits(limits);
        let server = builder.bind_on(&runtime, "127.0.0.1:0").expect("the kernel has a port");
        let pipeline: Vec<u8> = (0..20).flat_map(|id| request(id, "compute", vec![])).collect();
        let mut peers: Vec<_> = (0..20).map(|_| Peer::connect(server.local_addr())).collect();
        peers.iter_mut().for_each(|peer| peer.send(&pipeline));
        for peer in &mut peers {
            (0..20).for_each(|id| assert_eq!(peer.receive_answer(), (id, Ok(Value::Nil))));
        }
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

/// Flips, cuts and repeats bytes of a stream of requests.
fn damaged(seed: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in 0..next(seed) as u32 % 20 {
        bytes.extend(match next(seed) % 6 {
            0 => request(id, "add", vec![id.into(), 1.into()]),
            1 => request(id, "echo", vec![Value::Map(vec![("k".into(), Value::Binary(vec![7; 100]))])]),
            2 => request(id, "sleep", vec![(next(seed) % 3).into(), 1.into()]),
            3 => request(id, "panic", vec![]),
            4 => request(id, "blob", vec![(next(seed) % 100_000).into()]),
            _ => message(vec![2.into(), "fail".into(), Value::Array(vec!["x".into()])]),
        });
    }
    for _ in 0..next(seed) % 4 {
        if !bytes.is_empty() {
            let at = next(seed) as usize % bytes.len();
            match next(seed) % 3 {
                0 => bytes[at] ^= 1 << (next(seed) % 8),
                1 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
    }
    bytes
}

#[test]
fn damaged_streams_leave_nothing_behind() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let bystander = Bystander::at(&server);
        let mut seed = 0x5eed;
        let mut open = Vec::new();
        for _ in 0..600 {
            let mut peer = Peer::connect(server.local_addr());
            let bytes = damaged(&mut seed);
            let at = next(&mut seed) as usize % (bytes.len() + 1);
            peer.send_to_whom_it_may_concern(&bytes[..at]);
            peer.send_to_whom_it_may_concern(&bytes[at..]);
            match next(&mut seed) % 3 {
                0 => drop(peer),
                1 => {
                    peer.finish_if_open();
                    peer.expect_end_some_time();
                }
                _ => open.push(peer),
            }
        }
        bystander.has_not_noticed();
        drop(open);
        eventually("all is gone", || server.stats().connections == 0 && server.stats().in_flight == 0);
    });
}

#[test]
fn damaged_answers_leave_no_caller_waiting() {
    within_deadline(|| {
        for seed in 1..100_u64 {
            let mut seed = seed << 20;
            let address = foreign_server(1, move |mut peer| {
                let mut bytes: Vec<u8> = (1..=5).flat_map(|id| answer(id, id)).collect();
                let at = next(&mut seed) as usize % bytes.len();
                bytes[at] ^= 1 << (next(&mut seed) % 8);
                (0..5).for_each(|_| drop(receive_request(&mut peer)));
                peer.send_to_whom_it_may_concern(&bytes);
                peer.finish();
                peer.expect_end_some_time();
            });
            let calling = dhaga::spawn(move || {
                let client = plain().connect(address).expect("it listens");
                let callers: Vec<_> = (0..5)
                    .map(|_| {
                        let client = client.clone();
                        dhaga::spawn_local(move || client.call_timeout::<_, Value>("add", (1, 2), DEADLINE))
                    })
                    .collect();
                callers.into_iter().map(|caller| caller.join().expect("nobody panics")).collect::<Vec<_>>()
            });
            for result in calling.join().expect("nobody panics") {
                let is_right = matches!(
                    result,
                    Ok(_) | Err(CallError::Remote(_) | CallError::Malformed(_) | CallError::Disconnected { .. })
                );
                assert!(is_right, "{result:?}");
            }
        }
    });
}
