//! Who gives a call up ends what is done for it, through every hop; the answer is owed all the same.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::channel::{self, RecvError};
use dhaga::{Interrupt, Runtime};
use dhaga_rpc::{CallError, Client, HandlerError, Limits, Server, ServerBuilder, Value};

use crate::common::*;

/// What the handlers of a test say.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Begun(usize),
    Cancelled(usize),
    Ended(usize),
}

/// Waits for what never comes, or at the next hop. Tells when the wait ends, and how.
fn waiting(hop: usize, next: Option<Client>, events: Sender<(Event, Instant)>) -> ServerBuilder {
    Server::builder().method("wait", move || {
        events.send((Event::Begun(hop), Instant::now()))?;
        let is_cancelled = match &next {
            Some(next) => matches!(next.call::<_, ()>("wait", ()), Err(CallError::Cancelled)),
            None => {
                let (_sender, receiver) = channel::bounded::<()>(1);
                receiver.recv() == Err(RecvError::Interrupted(Interrupt::Cancelled))
            }
        };
        let event = if is_cancelled { Event::Cancelled(hop) } else { Event::Ended(hop) };
        events.send((event, Instant::now()))?;
        Err::<(), _>(HandlerError::new("it was given up"))
    })
}

fn next_event(events: &Receiver<(Event, Instant)>) -> (Event, Instant) {
    events.recv_timeout(PATIENCE).expect("it happens")
}

/// Three servers, each of which waits for the next, and a client of the first.
fn chain(events: &Sender<(Event, Instant)>) -> ([Server; 3], Client) {
    let bind = |builder: ServerBuilder| {
        let server = builder.bind("127.0.0.1:0").expect("there is a port");
        let client = connect(&server);
        (server, client)
    };
    let (third, to_third) = bind(waiting(3, None, events.clone()));
    let (second, to_second) = bind(waiting(2, Some(to_third), events.clone()));
    let (first, client) = bind(waiting(1, Some(to_second), events.clone()));
    ([first, second, third], client)
}

/// From the moment when the caller gives up, all hops end by a cancel.
fn expect_cancelled(events: &Receiver<(Event, Instant)>, since: Instant) {
    let mut cancelled: Vec<_> = (0..3)
        .map(|_| match next_event(events) {
            (Event::Cancelled(hop), at) => (hop, at.saturating_duration_since(since)),
            other => panic!("{other:?}"),
        })
        .collect();
    cancelled.sort_unstable();
    assert_eq!(cancelled.iter().map(|(hop, _)| *hop).collect::<Vec<_>>(), [1, 2, 3]);
    // 10 ms on a machine with nothing else to do.
    assert!(cancelled.iter().all(|(_, after)| *after < Duration::from_secs(5)), "{cancelled:?}");
}

/// A request that waits for room would keep those cancels from being read that alone make room.
#[test]
fn cancels_reach_handlers_that_take_all_the_room_while_more_calls_want_it() {
    within_deadline(|| {
        let (events, all) = mpsc::channel();
        let limits = Limits { in_flight_per_connection_max: 2, ..Limits::default() };
        let server = waiting(1, None, events).limits(limits).bind("127.0.0.1:0").expect("there is a port");
        let address = server.local_addr();
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let client = runtime.spawn(move || Client::connect(address).expect("it listens"));
        let client = client.join().expect("nobody panics");
        let call = |timeout| {
            let client = client.clone();
            runtime.spawn(move || client.call_timeout::<_, ()>("wait", (), timeout))
        };
        let mut callers: Vec<_> = (0..2).map(|_| call(PATIENCE)).collect();
        (0..2).for_each(|_| assert_eq!(next_event(&all).0, Event::Begun(1)));
        let hasty = call(Duration::from_millis(5)).join().expect("nobody panics");
        assert!(matches!(hasty, Err(CallError::TooManyInFlight { limit: 2 })), "{hasty:?}");
        callers.extend((0..2).map(|_| call(PATIENCE)));
        for caller in callers {
            caller.cancel();
            assert!(matches!(caller.join(), Ok(Err(CallError::Cancelled))));
        }
        eventually("nothing is left", || server.stats().in_flight == 0);
    });
}

/// As above, where the server's limit is below what a connection may have: one alone has half of it.
#[test]
fn cancels_reach_handlers_that_take_all_of_a_small_server_that_one_may_have() {
    within_deadline(|| {
        let (events, all) = mpsc::channel();
        let limits = Limits { in_flight_per_server_max: 40, ..Limits::default() };
        let server = waiting(1, None, events).limits(limits).bind("127.0.0.1:0").expect("there is a port");
        let address = server.local_addr();
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let client = runtime.spawn(move || Client::connect(address).expect("it listens"));
        let client = client.join().expect("nobody panics");
        let call = || {
            let client = client.clone();
            // The handlers do not end by it while the test waits.
            runtime.spawn(move || client.call_timeout::<_, ()>("wait", (), DEADLINE))
        };
        let callers: Vec<_> = (0..30).map(|_| call()).collect();
        (0..20).for_each(|_| assert_eq!(next_event(&all).0, Event::Begun(1)));
        // So that the rest is on its way, if it leaves at all.
        thread::sleep(Duration::from_millis(50));
        callers.iter().for_each(dhaga::JoinHandle::cancel);
        for caller in callers {
            assert!(matches!(caller.join(), Ok(Err(CallError::Cancelled))));
        }
        eventually("nothing is left", || server.stats().in_flight == 0);
    });
}

#[test]
fn a_caller_that_is_cancelled_ends_the_wait_at_every_hop() {
    within_deadline(|| {
        let (events, all) = mpsc::channel();
        let (servers, client) = chain(&events);
        let caller = dhaga::spawn(move || client.call::<_, ()>("wait", ()));
        (1..=3).for_each(|hop| assert_eq!(next_event(&all).0, Event::Begun(hop)));
        let since = Instant::now();
        caller.cancel();
        expect_cancelled(&all, since);
        assert!(matches!(caller.join(), Ok(Err(CallError::Cancelled))));
        eventually("nothing is left", || servers.iter().all(|server| server.stats().in_flight == 0));
        assert!(servers.iter().all(|server| server.stats().closed_for_fault == 0));
    });
}

#[test]
fn a_caller_that_times_out_by_default_ends_the_wait_at_every_hop() {
    within_deadline(|| {
        let (events, all) = mpsc::channel();
        let (servers, _client) = chain(&events);
        let hasty = Client::builder().timeout(Duration::from_millis(300));
        let hasty = hasty.connect(servers[0].local_addr()).expect("it listens");
        assert!(matches!(hasty.call::<_, ()>("wait", ()), Err(CallError::DeadlineExceeded)));
        let since = Instant::now();
        (1..=3).for_each(|hop| assert_eq!(next_event(&all).0, Event::Begun(hop)));
        expect_cancelled(&all, since);
    });
}

#[test]
fn a_caller_that_unwinds_ends_the_wait_too_and_so_does_one_that_vanishes() {
    within_deadline(|| {
        hide_panics_on_purpose();
        let (events, all) = mpsc::channel();
        let server = waiting(1, None, events).bind("127.0.0.1:0").expect("there is a port");
        let address = server.local_addr();
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let call = move || Client::connect(address).map(|client| client.call::<_, ()>("wait", ()));
        runtime.spawn(call).detach();
        assert_eq!(next_event(&all).0, Event::Begun(1));
        // Its dhagas are unwound, and its connections closed.
        drop(runtime);
        assert_eq!(next_event(&all).0, Event::Cancelled(1));
    });
}

#[test]
fn what_a_handler_has_spawned_in_a_scope_is_cancelled_with_it() {
    within_deadline(|| {
        let (told, all) = mpsc::channel();
        let server = Server::builder().method("fan", move || {
            let told = told.clone();
            dhaga::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        told.send("begun").expect("the test waits");
                        let (_sender, receiver) = channel::bounded::<()>(1);
                        let end = receiver.recv() == Err(RecvError::Interrupted(Interrupt::Cancelled));
                        told.send(if end { "cancelled" } else { "ended" }).expect("the test waits");
                    });
                }
            });
            Ok(())
        });
        let server = server.bind("127.0.0.1:0").expect("there is a port");
        let client = connect(&server);
        let caller = dhaga::spawn(move || client.call::<_, ()>("fan", ()));
        (0..3).for_each(|_| assert_eq!(all.recv_timeout(PATIENCE), Ok("begun")));
        caller.cancel();
        (0..3).for_each(|_| assert_eq!(all.recv_timeout(PATIENCE), Ok("cancelled")));
    });
}

fn cancel(side: u8, id: u32) -> Vec<u8> {
    notification("$/cancelRequest", vec![side.into(), id.into()])
}

#[test]
fn a_cancelled_request_is_answered_and_one_that_has_not_begun_is_not_run() {
    within_deadline(|| {
        let (ran, runs) = mpsc::channel();
        let gate = Gate::default();
        let builder = builder(&gate).method("run", move || Ok(ran.send(())?));
        let server = builder.bind("127.0.0.1:0").expect("there is a port");
        let mut peer = Peer::extended(server.local_addr());
        // In one write, so that the cancel comes before the handler.
        peer.send(&[request(7, "run", vec![]), cancel(0, 7), request(8, "add", vec![1.into(), 2.into()])].concat());
        let (id, refused) = peer.receive_answer();
        assert!(id == 7 && refused.as_ref().is_err_and(|error| error.contains("cancelled")), "{refused:?}");
        assert_eq!(peer.receive_answer(), (8, Ok(3.into())));
        assert!(runs.try_recv().is_err(), "it ran");
        // A handler that goes on in spite of it answers as ever, and its id may be used again then.
        peer.send(&request(7, "hold", vec![5.into()]));
        eventually("it is held", || gate.arrived() == 1);
        peer.send(&cancel(0, 7));
        gate.open();
        assert_eq!(peer.receive_answer(), (7, Ok(5.into())));
        assert_eq!(peer.ask(7, "add", vec![1.into(), 2.into()]), Ok(3.into()));
    });
}

#[test]
fn a_cancel_of_nothing_harms_nobody() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::extended(server.local_addr());
        assert_eq!(peer.ask(7, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        peer.send(&request(8, "hold", vec![5.into()]));
        eventually("it is held", || gate.arrived() == 1);
        for strange in [
            cancel(0, 7),
            cancel(0, 9),
            cancel(1, 8),
            cancel(7, 8),
            notification("$/cancelRequest", vec![]),
            notification("$/cancelRequest", vec![8.into()]),
            notification("$/cancelRequest", vec![Value::Nil, "8".into()]),
        ] {
            peer.send(&strange);
        }
        assert_eq!(peer.ask(7, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        gate.open();
        assert_eq!(peer.receive_answer(), (8, Ok(5.into())));
    });
}

#[test]
fn a_plain_peer_cancels_nothing_and_is_sent_no_cancel() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[request(7, "add", vec![1.into(), 2.into()]), cancel(0, 7)].concat());
        assert_eq!(peer.receive_answer(), (7, Ok(3.into())));
        let address = foreign_server(1, |mut peer| {
            receive_request(&mut peer);
            assert_eq!(receive_request(&mut peer).1, "add", "nothing comes between the calls");
            peer.expect_end();
        });
        let client = plain().timeout(Duration::from_millis(50)).connect(address).expect("it listens");
        let calls = move || (0..2).for_each(|_| assert!(add(&client, 1, 2).is_err()));
        dhaga::spawn(calls).join().expect("both are out of time");
    });
}

#[test]
fn a_flood_of_calls_that_are_given_up_at_once_runs_no_more_handlers_than_the_limit() {
    within_deadline(|| {
        let gate = Gate::default();
        let limits = Limits { in_flight_per_connection_max: 4, ..Limits::default() };
        let server = serve_within(limits, &gate);
        let mut peer = Peer::extended(server.local_addr());
        // The gate holds on in spite of a cancel, so the ids stay in flight and the flood is not read.
        let mut sender = Peer::new(peer.0.try_clone().expect("a descriptor"));
        (1..=4).for_each(|id| sender.send(&request(id, "hold", vec![id.into()])));
        eventually("four have begun", || gate.inside() == 4);
        let flood = thread::spawn(move || {
            (1..=4).for_each(|id| sender.send(&cancel(0, id)));
            for id in 5..=1000 {
                sender.send(&[request(id, "hold", vec![id.into()]), cancel(0, id)].concat());
            }
        });
        assert!(gate.most_inside() <= 4 && server.stats().in_flight <= 4);
        gate.open();
        let mut answered: Vec<_> = (0..1000).map(|_| peer.receive_answer().0).collect();
        flood.join().expect("all is sent");
        answered.sort_unstable();
        assert_eq!(answered, (1..=1000).collect::<Vec<_>>());
        assert!(gate.most_inside() <= 4);
    });
}
