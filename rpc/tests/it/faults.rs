//! What breaks: peers that go away, handlers that panic, a kernel that refuses. Each caller learns it, nobody waits for ever.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::{CallError, Client, HandlerError, Limits, Server};
use rmpv::Value;
use serde::{Serialize, Serializer};

use crate::common::*;

#[test]
fn a_peer_that_closes_in_the_middle_of_a_frame_leaves_nothing_behind() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::connect(server.local_addr());
        let mut bytes = request(1, "hold", vec![1.into()]);
        bytes.extend_from_slice(&request(2, "hold", vec![2.into()])[..5]);
        peer.send(&bytes);
        eventually("the first runs", || gate.inside() == 1);
        drop(peer);
        gate.open();
        eventually("all is gone", || server.stats().connections == 0 && server.stats().in_flight == 0);
    });
}

#[test]
fn requests_that_come_together_with_the_end_are_all_answered() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        for count in [1, 2, 100] {
            let mut peer = Peer::connect(server.local_addr());
            peer.send(&(0..count).flat_map(|id| request(id, "add", vec![id.into(), 1.into()])).collect::<Vec<_>>());
            peer.finish();
            let mut answers: Vec<_> = (0..count).map(|_| peer.receive_answer()).collect();
            answers.sort_by_key(|(id, _)| *id);
            assert_eq!(answers, (0..count).map(|id| (id, Ok((id + 1).into()))).collect::<Vec<_>>());
            peer.expect_end();
        }
    });
}

#[test]
fn after_a_half_close_the_answers_still_come() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[request(1, "hold", vec![1.into()]), request(2, "blob", vec![3_000_000.into()])].concat());
        peer.finish();
        let (id, blob) = peer.receive_answer();
        assert_eq!((id, blob.ok().and_then(|blob| blob.as_slice().map(<[u8]>::len))), (2, Some(3_000_000)));
        eventually("the other runs", || gate.inside() == 1);
        gate.open();
        assert_eq!(peer.receive_answer(), (1, Ok(1.into())));
        peer.expect_end();
        eventually("all is gone", || server.stats().connections == 0);
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

/// As a process that is killed while it waits, and has read all that it was sent.
#[test]
fn what_a_peer_that_can_cancel_has_asked_for_is_cancelled_by_its_half_close() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::extended(server.local_addr());
        peer.send(&request(7, "sleep", vec![100_000.into(), 1.into()]));
        eventually("it runs", || server.stats().in_flight == 1);
        peer.finish();
        eventually("all is gone", || (server.stats().connections, server.stats().in_flight) == (0, 0));
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

/// It finds nobody to answer to, which is no error of the connection.
#[test]
fn a_server_of_one_connection_ends_well_when_its_peer_goes_with_calls_in_flight() {
    within_deadline(|| {
        let (near, far) = std::os::unix::net::UnixStream::pair().expect("there are descriptors");
        let server = builder(&Gate::default()).method("break", || -> Result<(), HandlerError> {
            dhaga::sleep(Duration::from_secs(100));
            panic!("{}", ON_PURPOSE)
        });
        let near = dhaga::net::UnixStream::try_from(near).expect("it can be waited for");
        let server = server.serve(near.into()).expect("it can be waited for");
        let caps = Value::Array(vec!["cancel".into()]);
        let hello = Value::Map(vec![("v".into(), 1.into()), ("caps".into(), caps)]);
        let sleep = |id| request(id, "sleep", vec![100_000.into(), 1.into()]);
        let asked = [request(0, "$/hello", vec![hello]), sleep(1), request(2, "break", vec![]), sleep(3)].concat();
        (&far).write_all(&asked).expect("it is open");
        rmpv::decode::read_value(&mut &far).expect("our server knows it");
        eventually("all of them run", || server.stats().in_flight == 3);
        drop(far);
        server.wait().expect("its peer has done nothing wrong");
    });
}

/// The answers to what it has asked for as well run into a peer that is closed, one after the other.
#[test]
fn what_a_peer_has_notified_before_its_end_is_run() {
    const NOTIFICATIONS: usize = 300;
    within_deadline(|| {
        let noted = Arc::new(AtomicUsize::new(0));
        let counted = noted.clone();
        let gate = Gate::default();
        let server = builder(&gate).method("note", move || {
            // Work that does not wait, for more than one turn of the worker in all.
            let until = Instant::now() + Duration::from_micros(300);
            while Instant::now() < until {}
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives a thread");
        let server = server.bind_on(&runtime, "127.0.0.1:0").expect("the kernel has a port");
        for (round, connect) in [Peer::connect, Peer::extended].into_iter().enumerate() {
            let mut peer = connect(server.local_addr());
            let asked: Vec<_> = (1..=9).flat_map(|id| request(id, "hold", vec![1.into()])).collect();
            peer.send(&[asked, notification("note", vec![]).repeat(NOTIFICATIONS)].concat());
            drop(peer);
            for _ in 0..9 {
                gate.admit(1);
                thread::sleep(Duration::from_millis(1));
            }
            eventually("all is gone", || (server.stats().connections, server.stats().in_flight) == (0, 0));
            assert_eq!(noted.load(Ordering::SeqCst), (round + 1) * NOTIFICATIONS);
        }
    });
}

/// The server's answers meet a peer that is closed, before it has read what that peer has sent last.
#[test]
fn what_a_peer_has_sent_last_is_read_although_it_takes_no_more_answers() {
    const NOTIFICATIONS: usize = 100;
    within_deadline(|| {
        let noted = Arc::new(AtomicUsize::new(0));
        let counted = noted.clone();
        let (enter, entered) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let released = Mutex::new(released);
        let server = Server::builder()
            .method("note", move || {
                // Many turns of the worker in all.
                let until = Instant::now() + Duration::from_micros(300);
                while Instant::now() < until {}
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
            .method("stop the worker", move || {
                enter.send(()).expect("the test listens");
                released.lock().expect("nobody panics with it").recv().expect("the test goes on");
                // What was answered before leaves meanwhile.
                dhaga::yield_now();
                Ok(())
            });
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives a thread");
        let server = server.bind_on(&runtime, "127.0.0.1:0").expect("the kernel has a port");
        let connects: [fn(SocketAddr) -> Peer; 2] = [Peer::connect, Peer::extended];
        for (round, connect) in connects.into_iter().cycle().take(12).enumerate() {
            let mut peer = connect(server.local_addr());
            let stops = 1 + round / 2 % 3;
            let stop = |id| request(id, "stop the worker", vec![]);
            peer.send(&(1..=stops).flat_map(|id| stop(id as u32)).collect::<Vec<_>>());
            for number in 1..=stops {
                entered.recv().expect("the server runs");
                if number == stops {
                    peer.send(&notification("note", vec![]).repeat(NOTIFICATIONS));
                    drop(peer);
                    break;
                }
                release.send(()).expect("the server runs");
            }
            release.send(()).expect("the server runs");
            eventually("all is gone", || (server.stats().connections, server.stats().in_flight) == (0, 0));
            assert_eq!(noted.load(Ordering::SeqCst), (round + 1) * NOTIFICATIONS, "{stops} stops, round {round}");
        }
    });
}

#[test]
fn a_handler_that_panics_costs_one_error_answer() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = connect(&server);
        for _ in 0..3 {
            let error = client.call::<_, ()>("panic", ()).expect_err("it panics");
            assert!(
                matches!(&error, CallError::Remote(remote) if remote.to_string() == "the handler panicked"),
                "{error:?}"
            );
            assert_eq!(add(&client, 1, 2).ok(), Some(3));
        }
        assert_eq!(server.stats().in_flight, 0);
    });
}

/// A result whose encoding does as it is told.
struct Odd(Box<dyn Fn() + Send + Sync>);

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(f) = self;
        (f)();
        serializer.serialize_i64(1)
    }
}

fn odd_server(gate: &Gate) -> Server {
    let held = gate.clone();
    builder(gate)
        .method("encode and panic", || Ok(Odd(Box::new(|| panic!("{}", ON_PURPOSE)))))
        .method("encode and wait", move || {
            let gate = held.clone();
            Ok(Odd(Box::new(move || gate.wait())))
        })
        .bind("127.0.0.1:0")
        .expect("the kernel has a port")
}

#[test]
fn a_result_that_panics_while_it_is_encoded_costs_one_error_answer() {
    within_deadline(|| {
        let server = odd_server(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        for _ in 0..10 {
            let batch = (0..30).flat_map(|id| match id % 3 {
                0 => request(id, "encode and panic", vec![]),
                _ => request(id, "add", vec![id.into(), 1.into()]),
            });
            peer.send(&batch.collect::<Vec<_>>());
            for _ in 0..30 {
                match peer.receive_answer() {
                    (id, Ok(sum)) => assert!(id % 3 != 0 && sum == (id + 1).into(), "{id} {sum}"),
                    (id, Err(error)) => assert!(id % 3 == 0 && error == "the handler panicked", "{id} {error}"),
                }
            }
        }
        eventually("none is left", || server.stats().in_flight == 0);
    });
}

#[test]
fn a_result_that_waits_while_it_is_encoded_loses_no_other_answer() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = odd_server(&gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&request(1, "encode and wait", vec![]));
        eventually("it waits", || gate.inside() == 1);
        for id in 2..20 {
            assert_eq!(peer.ask(id, "add", vec![id.into(), 1.into()]), Ok((id + 1).into()));
        }
        let both = [request(20, "add", vec![1.into(), 2.into()]), request(21, "encode and wait", vec![])];
        peer.send(&both.concat());
        gate.open();
        let mut answers: Vec<_> = (0..3).map(|_| peer.receive_answer()).collect();
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers, [(1, Ok(1.into())), (20, Ok(3.into())), (21, Ok(1.into()))]);
    });
}

#[test]
fn arguments_that_panic_or_wait_while_they_are_encoded_harm_no_other_call() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = odd_server(&gate);
        let client = connect(&server);
        let callers: Vec<_> = (0..60)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || match n % 3 {
                    0 => client.call("echo", (Odd(Box::new(|| panic!("{}", ON_PURPOSE))),)),
                    1 => client.call("echo", (Odd(Box::new(dhaga::yield_now)),)),
                    _ => add(&client, 0, 1),
                })
            })
            .collect();
        for (n, caller) in callers.into_iter().enumerate() {
            match caller.join() {
                Ok(result) => assert!(n % 3 != 0 && matches!(result, Ok(1)), "{n}: {result:?}"),
                Err(error) => assert!(n % 3 == 0 && matches!(error, dhaga::JoinError::Panicked(_)), "{n}: {error}"),
            }
        }
    });
}

#[test]
fn a_request_leaves_although_who_encodes_behind_it_waits_and_panics() {
    within_deadline(|| {
        hide_panics_on_purpose();
        let server = odd_server(&Gate::default());
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let sum = runtime.spawn(move || {
            let client = connect(&server);
            assert_eq!(add(&client, 0, 1).ok(), Some(1));
            let (first, second) = (client.clone(), client.clone());
            let asked = dhaga::spawn(move || add(&first, 1, 2));
            // The turn in which the first was put into the buffer ends meanwhile.
            let waits_and_panics = || {
                dhaga::sleep(Duration::from_millis(10));
                panic!("{}", ON_PURPOSE)
            };
            let panics = dhaga::spawn(move || second.call::<_, i64>("echo", (Odd(Box::new(waits_and_panics)),)));
            assert!(panics.join().is_err());
            asked.join().expect("it does not panic").ok()
        });
        assert_eq!(sum.join().expect("nobody panics"), Some(3));
    });
}

#[test]
fn a_server_that_dies_leaves_no_caller_waiting() {
    const CALLERS: usize = 200;
    within_deadline(|| {
        // A connection a worker: none is let go before all calls are there.
        let (arrived, arrivals) = mpsc::channel();
        let kept = Arc::new(AtomicBool::new(true));
        let is_kept = kept.clone();
        let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel has a port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (arrived, is_kept) = (arrived.clone(), is_kept.clone());
                let mut peer = Peer::new(stream.expect("there are descriptors"));
                thread::spawn(move || {
                    while rmpv::decode::read_value(&mut peer.0).is_ok() && is_kept.load(Ordering::SeqCst) {
                        let _ = arrived.send(peer.0.try_clone().expect("there are descriptors"));
                    }
                });
            }
        });
        let client = Client::builder().timeout(DEADLINE).connect(address).expect("it listens");
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || add(&client, n as i64, 1))
            })
            .collect();
        let streams: Vec<_> = (0..CALLERS).map(|_| arrivals.recv().expect("the server lives")).collect();
        kept.store(false, Ordering::SeqCst);
        streams.iter().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Both)));
        for caller in callers {
            let result = caller.join().expect("nobody panics");
            assert!(matches!(result, Err(CallError::Disconnected { maybe_executed: true, .. })), "{result:?}");
        }
    });
}

#[test]
fn a_port_where_nobody_listens_is_a_connect_error() {
    within_deadline(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel has a port");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let from_thread = Client::connect(address).map(drop);
        let from_dhaga = dhaga::spawn(move || Client::connect(address).map(drop)).join().expect("nobody panics");
        for result in [from_thread, from_dhaga] {
            let is_refused = |error: &CallError| matches!(error, CallError::Connect(io) if io.kind() == io::ErrorKind::ConnectionRefused);
            assert!(result.as_ref().is_err_and(is_refused), "{result:?}");
        }
    });
}

#[test]
fn a_name_without_an_address_is_a_connect_error() {
    within_deadline(|| {
        let result = Client::connect(&[][..]).map(drop);
        assert!(matches!(result, Err(CallError::Connect(_))), "{result:?}");
    });
}

#[test]
fn an_address_in_use_is_what_the_kernel_calls_it() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let second = Server::builder().bind(server.local_addr());
        assert_eq!(second.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
    });
}

#[test]
fn a_server_out_of_descriptors_recovers() {
    in_child(name_of!(a_server_out_of_descriptors_recovers), 64, || {
        let server = serve(&Gate::default());
        let bystander = Bystander::at(&server);
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        // An odd number of descriptors for the two ends of each connection: one at least stays in the backlog.
        hoard.truncate(hoard.len() - 5);
        let mut peers = Vec::new();
        while let Ok(stream) = TcpStream::connect(server.local_addr()) {
            peers.push(Peer::new(stream));
        }
        assert!((3..=5).contains(&peers.len()));
        peers.iter_mut().for_each(|peer| peer.send(&request(1, "add", vec![1.into(), 2.into()])));
        bystander.has_not_noticed();
        drop(hoard);
        peers.iter_mut().for_each(|peer| assert_eq!(peer.receive_answer(), (1, Ok(3.into()))));
    });
}

#[test]
fn a_client_out_of_descriptors_gets_a_connect_error_and_recovers() {
    in_child(name_of!(a_client_out_of_descriptors_gets_a_connect_error_and_recovers), 64, || {
        let server = serve(&Gate::default());
        let mut hoard = Vec::new();
        // Other threads of the process may free a descriptor meanwhile: then it is hoarded too.
        let refused = loop {
            while let Ok(file) = std::fs::File::open("/dev/null") {
                hoard.push(file);
            }
            if let Err(refused) = Client::connect(server.local_addr()) {
                break refused;
            }
        };
        drop(hoard);
        assert!(matches!(refused, CallError::Connect(_)), "{refused:?}");
        assert_eq!(add(&connect(&server), 1, 2).ok(), Some(3));
    });
}

#[test]
fn of_several_addresses_one_that_answers_is_enough() {
    within_deadline(|| {
        let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind("localhost:0").expect("a port");
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let in_all_ways = [
            Client::connect(("localhost", server.local_addr().port())),
            Client::connect(&[nobody, nobody, server.local_addr()][..]),
        ];
        for client in in_all_ways {
            assert_eq!(add(&client.expect("one answers"), 1, 2).ok(), Some(3));
        }
        match Client::connect(&[nobody, nobody][..]) {
            Err(CallError::Connect(error)) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<dhaga::net::ConnectError>());
                assert_eq!(inner.expect("each is named").attempts().len(), 2);
            }
            other => panic!("nobody listens, and yet {other:?}"),
        }
    });
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    within_deadline(|| {
        let server = serve_within(Limits { connections_max: 2, ..Limits::default() }, &Gate::default());
        let mut first = Peer::connect(server.local_addr());
        let mut second = Peer::connect(server.local_addr());
        let mut third = Peer::connect(server.local_addr());
        for peer in [&mut first, &mut second] {
            assert_eq!(peer.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        }
        third.send(&request(1, "add", vec![1.into(), 2.into()]));
        assert_eq!(server.stats().connections, 2);
        drop(first);
        assert_eq!(third.receive_answer(), (1, Ok(3.into())));
        assert!(server.stats().connections <= 2);
    });
}

#[test]
fn a_connection_that_is_reset_is_no_breach_of_the_protocol() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let mut peer = Peer::connect(server.local_addr());
        // Closed with bytes that nobody read, a socket is reset.
        peer.send(&request(1, "add", vec![1.into(), 2.into()]));
        eventually("the answer is there", || matches!(peer.0.peek(&mut [0]), Ok(1)));
        drop(peer);
        eventually("it is gone", || server.stats().connections == 0);
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

#[test]
fn a_peer_that_takes_the_connection_and_never_answers_costs_the_timeout() {
    within_deadline(|| {
        let address = foreign_server(1, |mut peer| peer.expect_end_some_time());
        let client = Client::builder().timeout(Duration::from_millis(100)).connect(address).expect("it listens");
        let result = add(&client, 1, 2);
        assert!(matches!(result, Err(CallError::DeadlineExceeded)), "{result:?}");
    });
}
