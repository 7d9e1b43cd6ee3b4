//! How servers and runtimes end: drained, dropped, or pulled away under calls.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dhaga::{JoinError, Runtime};
use dhaga_rpc::{CallError, Client};

use crate::common::*;

fn runtime() -> Runtime {
    Runtime::builder().workers(2).build().expect("the kernel gives threads")
}

fn is_disconnected<T>(result: &Result<T, CallError>) -> bool {
    matches!(result, Err(CallError::Disconnected { maybe_executed: true, .. }))
}

#[test]
fn a_shutdown_lets_calls_finish_and_refuses_new_ones() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let address = server.local_addr();
        let mut peer = Peer::connect(address);
        peer.send(&request(1, "hold", vec![1.into()]));
        eventually("the call runs", || gate.inside() == 1);
        let ending = thread::spawn(move || server.shutdown(PATIENCE));
        let mut id = 2;
        eventually("new calls are refused", || {
            id += 1;
            peer.ask(id, "add", vec![1.into(), 2.into()]).is_err_and(|error| error.contains("shutting down"))
        });
        eventually("nobody listens", || TcpStream::connect(address).is_err());
        assert!(!ending.is_finished());
        gate.open();
        assert_eq!(peer.receive_answer(), (1, Ok(1.into())));
        assert!(ending.join().expect("nobody panics"), "every call finished");
        peer.expect_end();
    });
}

#[test]
fn a_shutdown_lets_large_answers_leave() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::connect(server.local_addr());
        const LEN: usize = 8_000_000;
        let requests = [("hold", 1), ("blob", LEN), ("blob", LEN)].map(|(method, value)| (method, vec![value.into()]));
        let bytes =
            requests.into_iter().enumerate().flat_map(|(n, (method, params))| request(n as u32, method, params));
        peer.send(&bytes.collect::<Vec<_>>());
        eventually("they were taken, in one read", || gate.inside() == 1);
        let ending = thread::spawn(move || server.shutdown(PATIENCE));
        gate.open();
        for _ in 0..3 {
            let (id, answer) = peer.receive_answer();
            let answer = answer.expect("it was taken before the shutdown");
            assert_eq!(answer.as_slice().map_or(1, <[u8]>::len), if id == 0 { 1 } else { LEN });
        }
        assert!(ending.join().expect("nobody panics"));
        peer.expect_end();
    });
}

#[test]
fn a_shutdown_says_that_a_call_did_not_finish() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let client = Client::builder().timeout(DEADLINE).connect(server.local_addr()).expect("it listens");
        let caller = dhaga::spawn(move || client.call::<_, i64>("hold", (1,)));
        eventually("the call runs", || gate.inside() == 1);
        let grace = Duration::from_millis(100);
        let since = Instant::now();
        assert!(!server.shutdown(grace));
        assert!(since.elapsed() >= grace);
        let result = caller.join().expect("nobody panics");
        assert!(is_disconnected(&result), "{result:?}");
        gate.open();
        eventually("the handler ends", || gate.inside() == 0);
    });
}

#[test]
fn a_shutdown_of_an_idle_server_is_quick_in_a_dhaga_too() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let address = server.local_addr();
        let client = connect(&server);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        assert!(dhaga::spawn(move || server.shutdown(PATIENCE)).join().expect("nobody panics"));
        assert!(TcpStream::connect(address).is_err(), "nobody listens");
    });
}

#[test]
fn a_dropped_server_closes_at_once() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let address = server.local_addr();
        let client = Client::builder().timeout(DEADLINE).connect(address).expect("it listens");
        let callers: Vec<_> = (0..20)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || client.call::<_, i64>("hold", (n,)))
            })
            .collect();
        let mut idle = Peer::connect(address);
        assert_eq!(idle.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        eventually("all run", || gate.inside() == 20);
        drop(server);
        idle.expect_end();
        for caller in callers {
            let result = caller.join().expect("nobody panics");
            assert!(is_disconnected(&result), "{result:?}");
        }
        eventually("nobody listens", || TcpStream::connect(address).is_err());
        gate.open();
        eventually("the handlers end", || gate.inside() == 0);
    });
}

#[test]
fn a_server_may_live_on_another_runtime() {
    within_deadline(|| {
        let (serving, calling) = (runtime(), runtime());
        let server = builder(&Gate::default()).bind_on(&serving, "127.0.0.1:0").expect("there is a port");
        let address = server.local_addr();
        let client =
            calling.spawn(move || Client::connect(address)).join().expect("nobody panics").expect("it listens");
        for n in 0..100 {
            let client = client.clone();
            assert_eq!(calling.spawn(move || add(&client, n, 1)).join().expect("nobody panics").ok(), Some(n + 1));
        }
        assert_eq!(add(&client, 1, 2).ok(), Some(3), "and the default runtime calls as well");
        eventually("only the accept loop is left", || serving.tasks() <= 1 && calling.tasks() == 0);
        assert!(server.shutdown(PATIENCE));
    });
}

#[test]
fn the_end_of_a_clients_runtime_leaves_no_caller_waiting() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let calling = runtime();
        let address = server.local_addr();
        let connecting = calling.spawn(move || Client::builder().timeout(DEADLINE).connect(address));
        let client = connecting.join().expect("nobody panics").expect("it listens");
        let callers: Vec<_> = (0..50)
            .map(|n| {
                let client = client.clone();
                calling.spawn(move || client.call::<_, i64>("hold", (n,)))
            })
            .collect();
        eventually("all run", || gate.inside() == 50);
        drop(calling);
        for caller in callers {
            let result = caller.join();
            assert!(matches!(result, Ok(Err(CallError::Cancelled)) | Err(JoinError::Unwound)), "{result:?}");
        }
        gate.open();
        eventually("its connections are closed", || server.stats().connections == 0 && server.stats().in_flight == 0);
        assert_eq!(client.connections(), 0);
    });
}

/// The numbers of workers that have ended are given to new ones.
#[test]
fn a_client_outlives_the_runtime_that_opened_its_connections() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client =
            Client::builder().timeout(Duration::from_secs(5)).connect(server.local_addr()).expect("it listens");
        for n in 0..5 {
            let calling = runtime();
            let callers: Vec<_> = (0..20)
                .map(|m| {
                    let client = client.clone();
                    calling.spawn(move || add(&client, n, m))
                })
                .collect();
            for (m, caller) in callers.into_iter().enumerate() {
                let result = caller.join().expect("nobody panics");
                assert!(result.as_ref().is_ok_and(|sum| *sum == n + m as i64), "{result:?}");
            }
        }
    });
}

#[test]
fn the_end_of_a_servers_runtime_leaves_no_caller_waiting() {
    within_deadline(|| {
        let gate = Gate::default();
        let serving = runtime();
        let server = builder(&gate).bind_on(&serving, "127.0.0.1:0").expect("there is a port");
        let address = server.local_addr();
        let client = Client::builder().timeout(DEADLINE).connect(address).expect("it listens");
        let callers: Vec<_> = (0..50)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || client.call::<_, i64>("hold", (n,)))
            })
            .collect();
        let mut idle = Peer::connect(address);
        assert_eq!(idle.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        eventually("all run", || gate.inside() == 50);
        drop(serving);
        for caller in callers {
            let result = caller.join().expect("nobody panics");
            assert!(matches!(result, Err(CallError::Disconnected { .. } | CallError::Remote(_))), "{result:?}");
        }
        idle.expect_end_some_time();
        eventually("nobody listens", || TcpStream::connect(address).is_err());
        drop(server);
    });
}

#[test]
fn the_end_of_a_server_in_the_middle_of_a_storm_leaves_no_caller_waiting() {
    within_deadline(|| {
        for drained in [true, false, true, false] {
            let server = serve(&Gate::default());
            let client = Client::builder().timeout(DEADLINE).connect(server.local_addr()).expect("it listens");
            let (answered, answers) = mpsc::channel();
            let answered = Arc::new(answered);
            let callers: Vec<_> = (0..50)
                .map(|n| {
                    let (client, answered) = (client.clone(), answered.clone());
                    dhaga::spawn(move || {
                        loop {
                            match add(&client, n, 1) {
                                Ok(sum) => assert_eq!(sum, n + 1),
                                Err(error) => return error,
                            }
                            let _ = answered.send(());
                        }
                    })
                })
                .collect();
            (0..1000).for_each(|_| answers.recv_timeout(PATIENCE).expect("calls succeed"));
            if drained {
                assert!(server.shutdown(PATIENCE));
            } else {
                drop(server);
            }
            for caller in callers {
                let error = caller.join().expect("no answer is wrong");
                let is_right = matches!(
                    &error,
                    CallError::Refused { .. } | CallError::Disconnected { .. } | CallError::Connect(_)
                );
                assert!(is_right, "{error:?}");
            }
        }
    });
}

#[test]
fn the_shutdown_of_a_servers_runtime_lets_calls_finish_and_refuses_new_ones() {
    within_deadline(|| {
        let gate = Gate::default();
        let serving = runtime();
        let server = builder(&gate).bind_on(&serving, "127.0.0.1:0").expect("there is a port");
        let address = server.local_addr();
        let mut peer = Peer::connect(address);
        // Neither one that is idle nor one that owes us its first bytes holds anything up.
        let mut idle = Peer::connect(address);
        assert_eq!(idle.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        let _owing = Peer::connect(address);
        eventually("all are accepted", || server.stats().connections == 3);
        peer.send(&request(1, "hold", vec![1.into()]));
        eventually("the call runs", || gate.inside() == 1);
        let since = Instant::now();
        let ending = thread::spawn(move || serving.shutdown(PATIENCE));
        let mut id = 2;
        eventually("new calls are refused", || {
            id += 1;
            peer.ask(id, "add", vec![1.into(), 2.into()]).is_err_and(|error| error.contains("shutting down"))
        });
        eventually("nobody listens", || TcpStream::connect(address).is_err());
        assert!(!ending.is_finished());
        gate.open();
        assert_eq!(peer.receive_answer(), (1, Ok(1.into())));
        ending.join().expect("nobody panics").expect("all ends by itself");
        assert!(since.elapsed() < PATIENCE / 2, "it waits for the call alone");
        peer.expect_end();
        idle.expect_end();
    });
}

#[test]
fn what_a_cancelled_call_says_in_the_end_leaves_although_its_peer_is_a_stranger() {
    within_deadline(|| {
        let serving = runtime();
        let gate = Gate::default();
        let arrived = gate.clone();
        gate.open();
        let wait = move || {
            arrived.wait();
            Ok(dhaga::sync::Semaphore::new(0).acquire().is_err())
        };
        let server = builder(&gate).method("wait", wait).bind_on(&serving, "127.0.0.1:0").expect("there is a port");
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&request(1, "wait", vec![]));
        eventually("it waits", || gate.arrived() == 1);
        thread::sleep(Duration::from_millis(20));
        serving.shutdown(Duration::ZERO).expect("all ends");
        assert_eq!(peer.receive_answer(), (1, Ok(true.into())));
    });
}
