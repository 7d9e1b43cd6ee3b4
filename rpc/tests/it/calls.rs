//! Calls as callers see them: from dhagas and threads, with timeouts and cancels, nested, by the thousand.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::{Runtime, turn};
use dhaga_rpc::{CallError, Client, Limits, Server, Value};

use crate::common::*;

/// Runs `f` on each worker of a runtime, one after the other.
fn on_each_worker<T: Send + 'static>(runtime: &Runtime, f: impl Fn() -> T + Send + Sync + 'static) -> Vec<T> {
    let f = Arc::new(f);
    let count = runtime.workers();
    let placed = runtime.spawn(move || {
        let (results, all) = mpsc::channel();
        for worker in 0..count {
            let (f, results) = (f.clone(), results.clone());
            turn::spawn_at(worker, move || results.send(f()).expect("the test waits")).expect("there is room");
        }
        all
    });
    let all = placed.join().expect("nobody panics");
    (0..count).map(|_| all.recv_timeout(PATIENCE).expect("each worker runs it")).collect()
}

fn two_workers() -> Runtime {
    Runtime::builder().workers(2).build().expect("the kernel gives threads")
}

fn one_worker() -> Runtime {
    Runtime::builder().workers(1).build().expect("the kernel gives threads")
}

/// Every way to call, once.
fn call_in_every_way(client: &Client) {
    assert_eq!(add(client, 40, 2).ok(), Some(42));
    assert_eq!(client.call::<_, Value>("echo", ("text",)).ok(), Some("text".into()));
    assert_eq!(client.call_timeout::<_, i64>("add", [1, 2], PATIENCE).ok(), Some(3));
    assert_eq!(client.call_raw("add", &[0x92, 3, 4]).ok(), Some(vec![7]));
    assert_eq!(client.call::<_, ()>("fail", ("why",)).map_err(|error| error.to_string()), {
        Err("the remote handler answered with an error: why".to_owned())
    });
    assert!(client.notify("add", (1, 2)).is_ok());
    assert!(matches!(client.call::<_, i64>("nothing", ()), Err(CallError::Refused { .. })));
    assert!(matches!(client.call::<_, String>("add", (1, 2)), Err(CallError::Decode(_))));
    assert!(matches!(client.call::<_, i64>("add", 1), Err(CallError::ApiMisuse(_) | CallError::Encode(_))));
    assert!(client.call_raw("add", &[0xc1]).is_err());
    assert!(client.call::<_, i64>(&"m".repeat(101), ()).is_err());
}

#[test]
fn every_way_to_call_works_on_threads_and_on_all_workers() {
    within_deadline(|| {
        let runtime = two_workers();
        let server = serve(&Gate::default());
        let client = connect(&server);
        call_in_every_way(&client);
        let calling = client.clone();
        on_each_worker(&runtime, move || call_in_every_way(&calling));
        let calling = client.clone();
        thread::spawn(move || call_in_every_way(&calling)).join().expect("it works on a thread");
        eventually("none is in flight", || server.stats().in_flight == 0);
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

#[test]
fn a_client_has_a_connection_for_each_worker_that_calls() {
    within_deadline(|| {
        let runtime = two_workers();
        let server = serve(&Gate::default());
        let address = server.local_addr();
        let client =
            runtime.spawn(move || Client::connect(address)).join().expect("nobody panics").expect("it listens");
        assert_eq!(client.connections(), 1);
        for _ in 0..5 {
            let calling = client.clone();
            on_each_worker(&runtime, move || assert_eq!(add(&calling, 1, 2).ok(), Some(3)));
            assert_eq!((client.connections(), server.stats().connections), (2, 2));
        }
        drop(client);
        eventually("both are closed", || server.stats().connections == 0);
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

#[test]
fn the_last_of_many_clones_closes_the_connections() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = connect(&server);
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let client = client.clone();
                thread::spawn(move || (0..50).for_each(|m| assert_eq!(add(&client, n, m).ok(), Some(n + m))))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("its calls succeed"));
        assert!(server.stats().connections > 0);
        drop(client);
        eventually("all are closed", || server.stats().connections == 0);
    });
}

#[test]
fn a_notification_leaves_even_if_the_client_goes_at_once() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        for n in 1..=50 {
            let client = connect(&server);
            client.notify("hold", (n,)).expect("the server lives");
            drop(client);
        }
        eventually("all came", || gate.arrived() == 50);
        gate.open();
    });
}

#[test]
fn a_call_out_of_time_ends_in_time_and_its_late_answer_reaches_nobody() {
    within_deadline(|| {
        let address = foreign_server(1, |mut peer| {
            let (first, _) = receive_request(&mut peer);
            for n in 0..100 {
                let (id, _) = receive_request(&mut peer);
                assert_ne!(id, first);
                if n == 50 {
                    peer.send(&answer(first, -1));
                }
                peer.send(&answer(id, n));
            }
            peer.expect_end_some_time();
        });
        let calls = move || {
            let client = plain().connect(address).expect("it listens");
            let since = Instant::now();
            let late = client.call_timeout::<_, i64>("add", (1, 2), Duration::from_millis(50));
            let elapsed = since.elapsed();
            assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
            assert!((50..5000).contains(&elapsed.as_millis()), "{elapsed:?}");
            (0..100).for_each(|n| assert_eq!(add(&client, 1, 2).ok(), Some(n)));
        };
        dhaga::spawn(calls).join().expect("each call has its own answer");
    });
}

/// One dhaga, whose calls wait one after the other: what the timeout of one has left behind is nothing to the next.
#[test]
fn each_call_of_a_dhaga_has_its_own_timeout_whatever_those_before_had() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let (client, short) = (connect(&server), Duration::from_millis(50));
        let calls = move || {
            let answered = |timeout, millis: u64| {
                let slept = client.call_timeout::<_, u64>("sleep", (millis, millis), timeout);
                assert_eq!(slept.ok(), Some(millis), "within {timeout:?}");
            };
            let late = |timeout: Duration| {
                let since = Instant::now();
                let late = client.call_timeout::<_, ()>("hold", ((),), timeout);
                assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
                assert!((timeout..timeout + PATIENCE / 2).contains(&since.elapsed()), "{:?}", since.elapsed());
            };
            answered(PATIENCE, 0);
            late(short);
            answered(short * 20, 0);
            // That timer rings meanwhile.
            answered(PATIENCE, 1500);
            answered(short * 20, 0);
            late(short * 30);
            answered(PATIENCE, 1);
            late(short);
            dhaga::within(short * 20, || answered(PATIENCE, 0));
            answered(PATIENCE, 1500);
        };
        let runtime = one_worker();
        runtime.spawn(calls).join().expect("each call ends as it should");
        gate.open();
    });
}

#[test]
fn late_answers_to_calls_that_we_gave_up_are_no_flood() {
    const CALLS: usize = 1000;
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let runtime = one_worker();
        let address = server.local_addr();
        let client =
            runtime.spawn(move || Client::connect(address)).join().expect("nobody panics").expect("it listens");
        let hold = |timeout| {
            let client = client.clone();
            runtime.spawn(move || client.call_timeout::<_, usize>("hold", (5,), timeout))
        };
        let patient = hold(PATIENCE);
        let hasty: Vec<_> = (0..CALLS).map(|_| hold(Duration::from_millis(200))).collect();
        for caller in hasty {
            let result = caller.join().expect("nobody panics");
            assert!(matches!(result, Err(CallError::DeadlineExceeded)), "{result:?}");
        }
        gate.open();
        let result = patient.join().expect("nobody panics");
        assert!(matches!(result, Ok(5)), "{result:?}");
        assert_eq!((client.connections(), server.stats().accepted), (1, 1));
    });
}

#[test]
fn a_cancelled_caller_ends_at_once_and_the_connection_lives() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let client = connect(&server);
        let callers: Vec<_> = (0..50)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || client.call_timeout::<_, i64>("hold", (n,), DEADLINE))
            })
            .collect();
        eventually("all are in flight", || gate.inside() == 50);
        callers.iter().step_by(2).for_each(dhaga::JoinHandle::cancel);
        let (cancelled, others): (Vec<_>, Vec<_>) = callers.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
        for (_, caller) in cancelled {
            let result = caller.join().expect("nobody panics");
            assert!(matches!(result, Err(CallError::Cancelled)), "{result:?}");
        }
        gate.open();
        for (n, caller) in others {
            assert_eq!(caller.join().expect("nobody panics").ok(), Some(n as i64));
        }
        eventually("none is in flight", || server.stats().in_flight == 0);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

#[test]
fn a_call_in_a_cancelled_dhaga_is_not_even_sent() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let client = connect(&server);
        let caller = dhaga::spawn(move || {
            let first = client.call_timeout::<_, i64>("hold", (1,), DEADLINE);
            (first, client.call::<_, i64>("hold", (2,)), client.notify("hold", (3,)))
        });
        eventually("the first is in flight", || gate.inside() == 1);
        caller.cancel();
        let (first, second, third) = caller.join().expect("nobody panics");
        assert!(matches!(first, Err(CallError::Cancelled)), "{first:?}");
        assert!(matches!(second, Err(CallError::Cancelled)), "{second:?}");
        assert!(matches!(third, Err(CallError::Cancelled)), "{third:?}");
        assert_eq!(gate.arrived(), 1);
        gate.open();
    });
}

/// Calls in its destructor.
struct CallsAtTheEnd(Client, mpsc::Sender<Result<i64, CallError>>);

impl Drop for CallsAtTheEnd {
    fn drop(&mut self) {
        let Self(client, result) = self;
        result.send(add(client, 1, 2)).expect("the test waits");
    }
}

#[test]
fn a_call_by_somebody_who_unwinds_is_an_error() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = connect(&server);
        let (sender, results) = mpsc::channel();
        let body = move || {
            let _calls = CallsAtTheEnd(client, sender);
            panic!("{}", ON_PURPOSE);
        };
        assert!(dhaga::spawn(body.clone()).join().is_err());
        assert!(thread::spawn(body).join().is_err());
        for result in results.iter().take(2) {
            assert!(matches!(result, Err(CallError::Panicking)), "{result:?}");
        }
    });
}

#[test]
fn a_client_connects_again_after_its_server_came_back() {
    within_deadline(|| {
        let gate = Gate::default();
        let mut server = serve(&gate);
        let address = server.local_addr();
        let client = connect(&server);
        for n in 0..5 {
            assert_eq!(add(&client, n, 1).ok(), Some(n + 1));
            assert!(server.shutdown(PATIENCE));
            eventually("the client knows", || client.connections() == 0);
            let result = add(&client, 1, 2);
            assert!(matches!(result, Err(CallError::Connect(_))), "{result:?}");
            server = builder(&gate).bind(address).expect("the port is free after a shutdown");
        }
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

#[test]
fn ten_thousand_calls_are_in_flight_at_once() {
    const CALLS: usize = 10_000;
    within_deadline(|| {
        let gate = Gate::default();
        let limits = Limits { in_flight_per_connection_max: CALLS, queued_bytes_max: 64 << 20, ..Limits::default() };
        let server = serve_within(limits, &gate);
        let client = Client::builder().timeout(DEADLINE).connect(server.local_addr()).expect("it listens");
        let callers: Vec<_> = (0..CALLS)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || client.call::<_, usize>("hold", (n,)))
            })
            .collect();
        eventually("all are in flight", || gate.inside() == CALLS);
        assert_eq!(server.stats().in_flight, CALLS);
        gate.open();
        for (n, caller) in callers.into_iter().enumerate() {
            assert_eq!(caller.join().expect("nobody panics").ok(), Some(n));
        }
        eventually("none is in flight", || server.stats().in_flight == 0);
    });
}

#[test]
fn timeouts_that_race_with_answers_end_each_call_once() {
    const CALLERS: u64 = 100;
    const CALLS: u64 = 40;
    within_deadline(|| {
        // Room for all that are given up while the server gets no processor: else calls are late for want of room.
        let room = (CALLERS * CALLS) as usize;
        let server = serve_within(Limits { in_flight_per_connection_max: room, ..Limits::default() }, &Gate::default());
        let client = connect(&server);
        let callers: Vec<_> = (1..=CALLERS)
            .map(|caller| {
                let client = client.clone();
                dhaga::spawn(move || {
                    let (mut seed, mut answered) = (caller * 0x9e37_79b9, 0);
                    for n in 0..CALLS {
                        let (millis, timeout) = (next(&mut seed) % 10, Duration::from_micros(next(&mut seed) % 20_000));
                        let value = caller << 32 | n;
                        match client.call_timeout::<_, u64>("sleep", (millis, value), timeout) {
                            Ok(back) => {
                                assert_eq!(back, value);
                                answered += 1;
                            }
                            Err(CallError::DeadlineExceeded) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    answered
                })
            })
            .collect();
        let answered: u64 = callers.into_iter().map(|caller| caller.join().expect("each call ends well")).sum();
        assert!(answered <= CALLERS * CALLS);
        eventually("none is in flight", || server.stats().in_flight == 0);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        // A worker's first call may be out of time while it dials, and ends that connection.
        assert_eq!(server.stats().closed_for_fault, 0, "nobody broke the protocol");
    });
}

#[test]
fn cancels_that_race_with_answers_end_each_call_once() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let client = connect(&server);
        let mut seed = 1;
        for round in 0..20 {
            let callers: Vec<_> = (0..50_u64)
                .map(|n| {
                    let client = client.clone();
                    dhaga::spawn(move || client.call::<_, u64>("sleep", (n % 3, n)))
                })
                .collect();
            thread::sleep(Duration::from_micros(next(&mut seed) % 3000));
            callers.iter().for_each(dhaga::JoinHandle::cancel);
            for (n, caller) in callers.into_iter().enumerate() {
                match caller.join().expect("nobody panics") {
                    Ok(back) => assert_eq!(back, n as u64),
                    Err(CallError::Cancelled) => {}
                    Err(error) => panic!("round {round}: {error:?}"),
                }
            }
        }
        eventually("none is in flight", || server.stats().in_flight == 0);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

#[test]
fn a_handler_may_call_another_server() {
    within_deadline(|| {
        let back = serve(&Gate::default());
        let client = connect(&back);
        let relay = move |a: i64, b: i64| Ok(client.call::<_, i64>("add", (a, b))?);
        let front = Server::builder().method("relay", relay).bind("127.0.0.1:0").expect("there is a port");
        let client = connect(&front);
        let callers: Vec<_> = (0..500)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || client.call::<_, i64>("relay", (n, 1)))
            })
            .collect();
        for (n, caller) in callers.into_iter().enumerate() {
            assert_eq!(caller.join().expect("nobody panics").ok(), Some(n as i64 + 1));
        }
    });
}

#[test]
fn a_handler_may_call_its_own_server() {
    within_deadline(|| {
        static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
        static CLIENT: OnceLock<Client> = OnceLock::new();
        let sum_to = |n: i64| {
            let client = CLIENT.get().expect("it was set before the first call");
            Ok(if n == 0 { 0 } else { n + client.call::<_, i64>("sum to", (n - 1,))? })
        };
        let server = Server::builder().method("sum to", sum_to).bind("127.0.0.1:0").expect("there is a port");
        let client = connect(&server);
        assert!(ADDRESS.set(server.local_addr()).is_ok() && CLIENT.set(client.clone()).is_ok());
        assert_eq!(client.call::<_, i64>("sum to", (100,)).ok(), Some(5050));
    });
}

fn limited(calls: usize) -> (Server, Gate, Runtime, Client) {
    let gate = Gate::default();
    let server = serve(&gate);
    let runtime = one_worker();
    let limits = Limits { calls_per_connection_max: calls, ..Limits::default() };
    let address = server.local_addr();
    let connecting = runtime.spawn(move || Client::builder().limits(limits).connect(address));
    let client = connecting.join().expect("nobody panics").expect("it listens");
    (server, gate, runtime, client)
}

#[test]
fn a_call_too_many_waits_for_room_and_gives_up_in_time() {
    within_deadline(|| {
        let (_server, gate, runtime, client) = limited(4);
        let hold = |timeout| {
            let client = client.clone();
            runtime.spawn(move || client.call_timeout::<_, i64>("hold", (1,), timeout))
        };
        let first: Vec<_> = (0..4).map(|_| hold(PATIENCE)).collect();
        eventually("four are in flight", || gate.inside() == 4);
        let hasty = hold(Duration::from_millis(50)).join().expect("nobody panics");
        assert!(matches!(hasty, Err(CallError::TooManyInFlight { limit: 4 })), "{hasty:?}");
        let more: Vec<_> = (0..20).map(|_| hold(PATIENCE)).collect();
        gate.open();
        for caller in first.into_iter().chain(more) {
            assert_eq!(caller.join().expect("nobody panics").ok(), Some(1));
        }
        assert_eq!(gate.most_inside(), 4);
    });
}

/// One who gave up the wait for room must not take the wake of the next with it.
#[test]
fn room_that_one_caller_did_not_wait_for_goes_to_the_next() {
    within_deadline(|| {
        let (_server, gate, runtime, client) = limited(1);
        let hold = |timeout| {
            let client = client.clone();
            runtime.spawn(move || client.call_timeout::<_, i64>("hold", (1,), timeout))
        };
        let first = hold(PATIENCE);
        eventually("one is in flight", || gate.inside() == 1);
        let hasty: Vec<_> = (0..10).map(|_| hold(Duration::from_millis(50))).collect();
        let cancelled: Vec<_> = (0..10).map(|_| hold(PATIENCE)).collect();
        let patient: Vec<_> = (0..3).map(|_| hold(PATIENCE)).collect();
        for caller in hasty {
            let result = caller.join().expect("nobody panics");
            assert!(matches!(result, Err(CallError::TooManyInFlight { limit: 1 })), "{result:?}");
        }
        cancelled.iter().for_each(dhaga::JoinHandle::cancel);
        for caller in cancelled {
            let result = caller.join().expect("nobody panics");
            assert!(matches!(result, Err(CallError::Cancelled)), "{result:?}");
        }
        for running in 2..=4 {
            gate.admit(1);
            eventually("the next one has the room", || gate.arrived() == running);
        }
        gate.open();
        for caller in std::iter::once(first).chain(patient) {
            assert_eq!(caller.join().expect("nobody panics").ok(), Some(1));
        }
    });
}

#[test]
fn cancels_that_race_with_room_lose_no_wake() {
    within_deadline(|| {
        let (server, _gate, runtime, client) = limited(1);
        let mut seed = 7;
        for round in 0..300 {
            let callers: Vec<_> = (0..6_u64)
                .map(|n| {
                    let client = client.clone();
                    runtime.spawn(move || client.call_timeout::<_, u64>("sleep", (0, n), PATIENCE))
                })
                .collect();
            // Not by giving way: on a busy machine that takes milliseconds each time.
            (0..next(&mut seed) % 8000).for_each(|_| std::hint::spin_loop());
            callers.iter().skip(1).step_by(2).for_each(dhaga::JoinHandle::cancel);
            for (n, caller) in callers.into_iter().enumerate() {
                match caller.join().expect("nobody panics") {
                    Ok(back) => assert_eq!(back, n as u64),
                    Err(CallError::Cancelled) if n % 2 == 1 => {}
                    Err(error) => panic!("round {round}, caller {n}: {error:?}"),
                }
            }
        }
        eventually("none is in flight", || server.stats().in_flight == 0);
    });
}
