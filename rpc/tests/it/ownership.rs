//! Who owns what: handlers that outlive their server, limits that make no sense, and frames that many peers leave unfinished.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use dhaga::Runtime;
use dhaga::sync::channel;
use dhaga_rpc::{CallError, Client, Limits, Server};

use crate::common::{Gate, PATIENCE, Peer, eventually, request, serve_within, within_deadline};

/// What a handler has captured, and what waits when it is dropped.
struct WaitsInDrop;

impl Drop for WaitsInDrop {
    fn drop(&mut self) {
        dhaga::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_handler_whose_last_owner_is_an_answer_is_dropped_in_a_dhaga() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).build().expect("threads can be had");
        let (quit, asked_to_quit) = channel::bounded::<()>(1);
        let (address, bound) = channel::bounded(1);
        let server = runtime.spawn(move || {
            let captured = Arc::new(WaitsInDrop);
            let handler = move || {
                let _captured = &captured;
                let _ = quit.send(());
                Ok(())
            };
            let server = Server::builder().method("quit", handler).bind("127.0.0.1:0").expect("a port can be had");
            address.send(server.local_addr()).expect("the test waits for it");
            asked_to_quit.recv().expect("the handler asks");
            drop(server);
        });
        let mut peer = Peer::connect(bound.recv().expect("the server starts"));
        peer.send(&request(1, "quit", vec![]));
        server.join().expect("the server's dhaga ends");
        let alive = runtime.spawn(|| 42).join_timeout(PATIENCE);
        assert_eq!(alive.expect("the worker lives"), 42);
        runtime.shutdown(PATIENCE).expect("nothing is left");
    });
}

fn payload() -> Vec<u8> {
    vec![7; 4000]
}

#[test]
fn limits_of_zero_are_refused() {
    let zero = || Limits { in_flight_per_connection_max: 0, ..Limits::default() };
    let bound = Server::builder().limits(zero()).bind("127.0.0.1:0");
    assert_eq!(bound.expect_err("nothing could run").kind(), ErrorKind::InvalidInput);
    let connected = Client::builder().limits(zero()).connect("127.0.0.1:1");
    assert!(matches!(connected, Err(CallError::ApiMisuse(_))));
}

#[test]
fn unfinished_frames_of_all_peers_are_bounded_together() {
    within_deadline(|| {
        let limits = Limits { unfinished_bytes_per_server_max: 1000, ..Limits::default() };
        let server = serve_within(limits, &Gate::default());
        let mut neighbour = Peer::connect(server.local_addr());
        let begun = &request(1, "echo", vec![payload().into()])[..600];
        let mut first = Peer::connect(server.local_addr());
        first.send(begun);
        eventually("the first frame has begun", || server.stats().connections == 2);
        let mut second = Peer::connect(server.local_addr());
        second.send(begun);
        eventually("one of them was closed", || server.stats().closed_for_fault == 1);
        assert_eq!(neighbour.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        drop((first, second));
        eventually("both have gone", || server.stats().connections == 1);
        let mut third = Peer::connect(server.local_addr());
        third.send(begun);
        third.send(&request(1, "echo", vec![payload().into()])[600..]);
        assert_eq!(third.receive_answer(), (1, Ok(payload().into())));
    });
}
