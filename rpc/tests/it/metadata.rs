//! What goes with a call beside its arguments: pairs of the caller's, a trace.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dhaga::Runtime;
use dhaga_rpc::limits::{METADATA_BYTES_MAX, METADATA_PAIRS_MAX};
use dhaga_rpc::{CallError, Client, HandlerError, Limits, Metadata, MetadataError, Server, TraceContext, Value};
use dhaga_rpc::{CurrentCall, with_metadata, with_trace};
use serde::{Serialize, Serializer};

use crate::common::*;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

type Seen = (Vec<(String, String)>, Option<String>);

fn call() -> Result<CurrentCall, HandlerError> {
    dhaga_rpc::current().ok_or_else(|| HandlerError::new("nobody calls"))
}

fn seen() -> Result<Seen, HandlerError> {
    let call = call()?;
    let pairs = call.metadata().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok((pairs, call.trace().map(|trace| trace.to_string())))
}

/// A server that says what came with a call, and one that asks it.
fn two_hops() -> (Server, Server, Client) {
    let last = Server::builder().method("seen", seen).bind("127.0.0.1:0").expect("there is a port");
    let to_last = connect(&last);
    let ask = move || Ok(to_last.call::<_, Seen>("seen", ())?);
    let first = Server::builder().method("seen", seen).method("ask", ask).bind("127.0.0.1:0");
    let first = first.expect("there is a port");
    let client = connect(&first);
    (last, first, client)
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn pairs_go_with_the_calls_inside_and_inner_ones_win() {
    within_deadline(|| {
        let (_last, _first, client) = two_hops();
        let seen = || client.call::<_, Seen>("seen", ()).expect("it answers").0;
        assert_eq!(seen(), pairs(&[]));
        let inside = with_metadata([("tenant", "blue"), ("user", "asha")], || {
            let inner = with_metadata([("user", "dev")], seen).expect("it is little");
            (
                seen(),
                inner,
                dhaga::spawn({
                    let client = client.clone();
                    move || client.call::<_, Seen>("seen", ())
                })
                .join(),
            )
        });
        let (outer, inner, spawned) = inside.expect("it is little");
        assert_eq!(outer, pairs(&[("tenant", "blue"), ("user", "asha")]));
        assert_eq!(inner, pairs(&[("tenant", "blue"), ("user", "dev")]));
        assert_eq!(spawned.expect("it ends").expect("it answers").0, outer, "what is spawned inside says the same");
        assert_eq!(seen(), pairs(&[]));
        let passed_on = with_metadata([("tenant", "blue")], || client.call::<_, Seen>("ask", ()));
        assert_eq!(passed_on.expect("it is little").expect("it answers").0, pairs(&[]), "it is for one hop");
    });
}

#[test]
fn too_much_metadata_is_an_error_of_the_caller() {
    let many = (0..=METADATA_PAIRS_MAX).map(|n| (n.to_string(), ""));
    assert_eq!(with_metadata(many, || ()), Err(MetadataError::TooMany { limit: METADATA_PAIRS_MAX }));
    let large = [("key", "x".repeat(METADATA_BYTES_MAX))];
    let error = with_metadata(large, || ()).expect_err("it is too large");
    assert_eq!(error, MetadataError::TooLarge { limit: METADATA_BYTES_MAX });
    let nested = with_metadata([("a", "x".repeat(METADATA_BYTES_MAX - 2))], || with_metadata([("b", "")], || ()));
    assert_eq!(nested, Ok(Ok(())));
    let nested = with_metadata([("a", "x".repeat(METADATA_BYTES_MAX - 2))], || with_metadata([("b", "x")], || ()));
    assert_eq!(nested, Ok(Err(error)), "what is around counts");
    assert!(matches!(CallError::<String>::from(error), CallError::Encode(_)));
    let most = with_metadata([("key", "x".repeat(METADATA_BYTES_MAX - 3))], || {
        let (_last, _first, client) = two_hops();
        client.call::<_, Seen>("seen", ()).map(|(pairs, _)| pairs.len())
    });
    assert_eq!(most.expect("it is as much as may be").ok(), Some(1));
}

#[test]
fn a_trace_goes_through_every_hop_under_new_spans() {
    within_deadline(|| {
        let (_last, _first, client) = two_hops();
        let trace: TraceContext = TRACE.parse().expect("it is one");
        let ask = |method: &str| client.call::<_, Seen>(method, ()).expect("it answers").1;
        assert_eq!(with_trace(trace, || ask("seen")).as_deref(), Some(TRACE));
        let further: TraceContext = with_trace(trace, || ask("ask")).expect("it has one").parse().expect("it is one");
        assert_eq!((further.trace_id(), further.flags()), (trace.trace_id(), trace.flags()));
        assert_ne!(further.span_id(), trace.span_id());
        assert_eq!((ask("seen"), ask("ask")), (None, None));
    });
}

/// Requests of one read may run in one place, which nobody must notice.
#[test]
fn a_call_that_is_kept_tells_of_itself_whatever_runs_behind_it() {
    within_deadline(|| {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let method = |kept: &Arc<Mutex<Vec<_>>>| {
            let kept = kept.clone();
            move |keeps: bool| {
                let call = call()?;
                let name = call.method().to_owned();
                if keeps {
                    kept.lock().expect("nobody panics").push(call);
                }
                Ok(name)
            }
        };
        let server = Server::builder().method("a", method(&kept)).method("b", method(&kept));
        let server = server.bind("127.0.0.1:0").expect("a port can be had");
        let mut peer = Peer::connect(server.local_addr());
        let calls = [("a", true), ("b", false), ("a", false), ("b", true), ("a", true), ("b", false)];
        let burst = (1..).zip(calls).flat_map(|(id, (name, keeps))| request(id, name, vec![keeps.into()]));
        peer.send(&burst.collect::<Vec<_>>());
        for (id, (name, _)) in (1..).zip(calls) {
            assert_eq!(peer.receive_answer(), (id, Ok(name.into())));
        }
        let kept = kept.lock().expect("nobody panics");
        assert_eq!(kept.iter().map(CurrentCall::method).collect::<Vec<_>>(), ["a", "b", "a"]);
    });
}

#[test]
fn what_came_with_a_call_is_not_found_by_those_that_run_behind_it() {
    within_deadline(|| {
        let nap = || {
            dhaga::sleep(Duration::from_millis(60));
            seen()
        };
        let server = Server::builder().method("seen", seen).method("nap", nap).bind("127.0.0.1:0");
        let server = server.expect("there is a port");
        let mut peer = Peer::extended(server.local_addr());
        let blue = || metadata([("tenant".to_owned(), "blue".to_owned())]);
        let seen = |id| request(id, "seen", vec![]);
        let with_all = meta(1, vec![blue(), ("tp", TRACE.into()), ("d", 20_000.into())]);
        let hasty = meta(3, vec![("d", 20.into())]);
        peer.send(&[with_all, seen(1), seen(2), hasty, request(3, "nap", vec![]), seen(4)].concat());
        let mut answers: Vec<_> = (0..4).map(|_| peer.receive_answer()).collect();
        answers.sort_by_key(|(id, _)| *id);
        let nothing = Ok(Value::Array(vec![Value::Array(vec![]), Value::Nil]));
        assert_eq!(answers[0].1.as_ref().map(|seen| seen[1].as_str()), Ok(Some(TRACE)));
        assert_eq!((&answers[1].1, &answers[3].1), (&nothing, &nothing));
        assert!(answers[2].1.is_err(), "{answers:?}");
    });
}

#[test]
fn a_call_that_is_kept_twice_is_in_nobodys_way_when_there_is_no_room_for_its_answer() {
    within_deadline(|| {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeps = kept.clone();
        let keep = move || {
            let call = call()?;
            keeps.lock().expect("nobody panics").extend([call.clone(), call]);
            Ok(())
        };
        let nap = || {
            dhaga::sleep(Duration::from_millis(20));
            Ok(())
        };
        let limits = Limits { unsent_bytes_max: 1000, ..Limits::default() };
        let server = builder(&Gate::default()).method("keep", keep).method("nap", nap).limits(limits);
        let server = server.bind("127.0.0.1:0").expect("there is a port");
        let mut peer = Peer::connect(server.local_addr());
        let mut burst = [request(1, "blob", vec![(256 << 10).into()]), request(2, "keep", vec![])].concat();
        burst.extend((3..9).flat_map(|id| request(id, "nap", vec![])));
        peer.send(&burst);
        for _ in 1..9 {
            let (id, outcome) = peer.receive_answer();
            assert!(outcome.is_ok(), "{id}: {outcome:?}");
        }
        let kept = kept.lock().expect("nobody panics");
        assert_eq!(kept.iter().map(CurrentCall::method).collect::<Vec<_>>(), ["keep", "keep"]);
    });
}

#[test]
fn the_current_call_is_known_in_its_handler_and_in_what_that_spawns_only() {
    within_deadline(|| {
        let server = Server::builder().method("who", || {
            let call = call()?;
            let spawned = dhaga::spawn(|| dhaga_rpc::current().map(|call| call.method().to_owned())).join();
            let spawned = spawned.map_err(|error| HandlerError::new(error.to_string()))?;
            let name: String = call.peer().call("name", ())?;
            Ok((call.method().to_owned(), spawned, call.peer_addr().is_some(), call.is_cancelled(), name))
        });
        let server = server.bind("127.0.0.1:0").expect("there is a port");
        let client = Client::builder().method("name", || Ok("asha")).connect(server.local_addr()).expect("it listens");
        let who: (String, Option<String>, bool, bool, String) = client.call("who", ()).expect("it answers");
        assert_eq!(who, ("who".to_owned(), Some("who".to_owned()), true, false, "asha".to_owned()));
        assert!(dhaga_rpc::current().is_none());
    });
}

#[test]
fn a_call_that_is_kept_tells_of_its_method_and_that_its_peer_has_gone() {
    within_deadline(|| {
        let (keep, kept) = mpsc::channel();
        let server =
            Server::builder().method("keep", move || keep.send(call()?).map_err(|_| HandlerError::new("gone")));
        let server = server.bind("127.0.0.1:0").expect("there is a port");
        let client = connect(&server);
        assert!(client.call::<_, ()>("keep", ()).is_ok());
        let call = kept.recv_timeout(PATIENCE).expect("it was kept");
        drop((client, server));
        eventually("the connection is closed", || call.peer_addr().is_none());
        assert_eq!(call.method(), "keep");
        let gone = call.peer().call::<_, ()>("name", ());
        assert!(matches!(gone, Err(CallError::Disconnected { maybe_executed: false, .. })), "{gone:?}");
    });
}

fn meta(id: u32, entries: Vec<(&str, Value)>) -> Vec<u8> {
    let map = Value::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect());
    notification("$/meta", vec![id.into(), map])
}

fn metadata(pairs: impl IntoIterator<Item = (String, String)>) -> (&'static str, Value) {
    ("md", Value::Map(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect()))
}

#[test]
fn what_stands_before_no_request_of_its_id_closes_the_connection() {
    within_deadline(|| {
        let add = |id| request(id, "add", vec![1.into(), 2.into()]);
        for breach in [
            [meta(7, vec![]), meta(7, vec![])].concat(),
            [meta(7, vec![]), add(8)].concat(),
            [meta(7, vec![]), meta(8, vec![]), add(8)].concat(),
            notification("$/meta", vec![]),
            notification("$/meta", vec!["7".into(), Value::Map(vec![])]),
        ] {
            let server = serve(&Gate::default());
            let mut peer = Peer::extended(server.local_addr());
            peer.send(&[meta(1, vec![]), add(1)].concat());
            assert_eq!(peer.receive_answer(), (1, Ok(3.into())));
            peer.send(&breach);
            peer.expect_end();
            assert_eq!(server.stats().closed_for_fault, 1);
        }
    });
}

#[test]
fn a_refused_meta_costs_its_request_and_nothing_more() {
    within_deadline(|| {
        let server = Server::builder().metrics(true).method("seen", seen).bind("127.0.0.1:0").expect("there is a port");
        let mut peer = Peer::extended(server.local_addr());
        let seen = |id| request(id, "seen", vec![]);
        let many = metadata((0..=METADATA_PAIRS_MAX).map(|n| (n.to_string(), String::new())));
        let large = metadata([("key".to_owned(), "x".repeat(1 << 20))]);
        for (id, strange) in [(1, many), (2, large), (3, ("d", "soon".into())), (4, ("md", 7.into()))] {
            peer.send(&[meta(id, vec![strange]), seen(id)].concat());
            let (answered, refused) = peer.receive_answer();
            assert!(answered == id && refused.is_err(), "{refused:?}");
        }
        let counted = server.metrics().method("seen").map(|method| method.errors.clone());
        assert_eq!(counted, Some(vec![("invalid_request", 4)]));
        // Cut in the middle, with a notification and an answer to nothing in between.
        let mut bytes = meta(5, vec![("tp", TRACE.into()), ("unheard", 1.into())]);
        bytes.extend([notification("nobody", vec![]), answer(77, 1), seen(5)].concat());
        for byte in bytes {
            peer.send(&[byte]);
        }
        let (id, outcome) = peer.receive_answer();
        assert_eq!((id, outcome.expect("it is in order")[1].as_str()), (5, Some(TRACE)));
    });
}

#[test]
fn a_plain_peers_meta_is_ignored_and_it_gets_none() {
    within_deadline(|| {
        let server = Server::builder().method("seen", seen).bind("127.0.0.1:0").expect("there is a port");
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[meta(9, vec![("tp", TRACE.into())]), meta(7, vec![]), request(7, "seen", vec![])].concat());
        assert_eq!(peer.receive_answer().1.expect("it is answered")[1], Value::Nil);
        let address = foreign_server(1, |mut peer| {
            let (id, method) = receive_request(&mut peer);
            assert_eq!(method, "add");
            peer.send(&answer(id, 3));
            peer.expect_end_some_time();
        });
        let trace = TraceContext::new(true);
        let call =
            move || plain().connect(address).and_then(|client| client.call_timeout::<_, i64>("add", (1, 2), PATIENCE));
        let sum = with_metadata([("tenant", "blue")], || with_trace(trace, || dhaga::spawn(call).join()));
        assert_eq!(sum.expect("it is little").expect("it ends").ok(), Some(3));
        assert!(Metadata::new().is_empty());
    });
}

#[test]
fn what_stands_right_behind_the_answer_to_the_question_is_understood() {
    within_deadline(|| {
        let (seen, all) = mpsc::channel();
        let address = foreign_server(1, move |mut peer| {
            let (id, method) = receive_request(&mut peer);
            assert_eq!(method, "$/hello");
            let caps = Value::Array(["meta", "cancel"].map(Value::from).to_vec());
            let hello = Value::Map(vec![("v".into(), 1.into()), ("caps".into(), caps)]);
            let blue = metadata([("tenant".to_owned(), "blue".to_owned())]);
            // In one write, and so in one read.
            let cancel = notification("$/cancelRequest", vec![0.into(), 8.into()]);
            let tenant = |id| request(id, "tenant", vec![]);
            peer.send(&[answer(id, hello), meta(7, vec![blue]), tenant(7), tenant(8), cancel].concat());
            let answers = [peer.receive_answer(), peer.receive_answer()];
            seen.send(answers).expect("the test waits");
            peer.expect_end_some_time();
        });
        let tenant = || Ok(call()?.metadata().get("tenant").map(str::to_owned));
        let client = Client::builder().method("tenant", tenant).connect(address).expect("it listens");
        let mut answers = all.recv_timeout(PATIENCE).expect("both are answered");
        answers.sort_by_key(|(id, _)| *id);
        let [(7, Ok(tenant)), (8, Err(cancelled))] = answers else { panic!("{answers:?}") };
        assert_eq!(tenant.as_str(), Some("blue"));
        assert!(cancelled.contains("cancelled"), "{cancelled}");
        drop(client);
    });
}

struct Panics;

impl Serialize for Panics {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("{}", ON_PURPOSE)
    }
}

#[test]
fn arguments_that_panic_take_what_goes_with_them_along() {
    within_deadline(|| {
        let server = serve(&Gate::default());
        let (address, runtime) =
            (server.local_addr(), Runtime::builder().workers(1).build().expect("there are threads"));
        let sum = runtime.spawn(move || {
            let client = Client::connect(address).expect("it listens");
            assert_eq!(add(&client, 1, 2).ok(), Some(3));
            let caller = client.clone();
            let panics = move || with_metadata([("tenant", "blue")], || caller.call::<_, ()>("echo", (Panics,)));
            assert!(dhaga::spawn(panics).join().is_err());
            add(&client, 20, 22)
        });
        assert_eq!(sum.join().expect("nobody else panics").ok(), Some(42));
        assert_eq!((server.stats().accepted, server.stats().closed_for_fault), (1, 0));
    });
}

#[test]
fn what_goes_with_a_request_is_charged_to_it() {
    within_deadline(|| {
        let gate = Gate::default();
        let limits = Limits { queued_bytes_max: 40 << 10, ..Limits::default() };
        let server = serve_within(limits, &gate);
        let mut peer = Peer::extended(server.local_addr());
        let large = || metadata([("key".to_owned(), "x".repeat(4000))]);
        let all: Vec<u8> =
            (0..100).flat_map(|id| [meta(id, vec![large()]), request(id, "hold", vec![id.into()])].concat()).collect();
        peer.send(&all);
        eventually("as many are held as there is room for", || gate.inside() > 5);
        thread::sleep(Duration::from_millis(100));
        assert!(gate.inside() < 10, "{} are held", gate.inside());
        gate.open();
        let mut ids: Vec<_> = (0..100).map(|_| peer.receive_answer().0).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..100));
    });
}
