//! Code around calls, on either side: what it sees, what it may do, and what it cannot break.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhaga_rpc::{CallError, Client, HandlerError, Methods, RefusedReason, Server, layer};

use crate::common::{Gate, Peer, add, builder, connect, eventually, hide_panics_on_purpose, request, within_deadline};

type Seen = Arc<Mutex<Vec<String>>>;

fn note(seen: &Seen, text: impl Into<String>) {
    seen.lock().expect("nobody panics with it").push(text.into());
}

fn all(seen: &Seen) -> Vec<String> {
    seen.lock().expect("nobody panics with it").clone()
}

#[test]
fn a_servers_layers_see_each_call_from_the_outside_in() {
    within_deadline(|| {
        let seen = Seen::default();
        let (outer, inner) = (seen.clone(), seen.clone());
        let server = builder(&Gate::default())
            .metrics(true)
            .layer(move |call, next| {
                note(&outer, format!("> {} {}", call.method(), call.is_notification()));
                assert!(call.peer().starts_with("127.0.0.1:"), "{call:?}");
                let outcome = next.run();
                let shown =
                    outcome.as_ref().map_or_else(ToString::to_string, |answered| format!("{} B", answered.bytes()));
                note(&outer, format!("< {shown}"));
                outcome
            })
            .layer(move |_, next| {
                note(&inner, "inner");
                next.run()
            })
            .bind("127.0.0.1:0")
            .expect("a port is free");
        let client = connect(&server);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        client.call::<_, ()>("fail", ("on purpose",)).expect_err("it fails");
        client.notify("add", (1, 2)).expect("it is on its way");
        eventually("the notification is over", || all(&seen).len() == 9);
        let expected =
            ["> add false", "inner", "< 5 B", "> fail false", "inner", "< on purpose", "> add true", "inner", "< 0 B"];
        assert_eq!(all(&seen), expected);
    });
}

#[test]
fn a_client_has_layers_around_its_own_methods_too() {
    within_deadline(|| {
        let seen = Seen::default();
        let (called, handled) = (seen.clone(), seen.clone());
        let server = builder(&Gate::default()).bind("127.0.0.1:0").expect("a port is free");
        let client = Client::builder()
            .method("double", |n: i64| Ok(2 * n))
            .method("reset", || Ok(()))
            .layer(move |call, next| {
                note(&called, format!("call {}", call.method()));
                next.run()
            })
            .handler_layer(move |call, next| {
                note(&handled, format!("handle {}", call.method()));
                match call.method() {
                    "reset" => Err(HandlerError::denied("not from there")),
                    _ => next.run(),
                }
            });
        let client = client.connect(server.local_addr()).expect("the server listens");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        let peer = server.peers().remove(0);
        assert_eq!(peer.call::<_, i64>("double", (21,)).ok(), Some(42));
        let denied = peer.call::<_, ()>("reset", ()).expect_err("it is denied");
        assert!(denied.to_string().contains("not from there"), "{denied}");
        assert_eq!(all(&seen), ["call add", "handle double", "handle reset"]);
    });
}

#[test]
fn a_servers_layer_may_refuse_wait_change_and_repeat() {
    within_deadline(|| {
        let server = builder(&Gate::default())
            .metrics(true)
            .layer(|call, next| match call.method() {
                "blob" => Err(HandlerError::denied("no blobs")),
                "fail" => next.run().map_err(|error| HandlerError::value(&(7, error.to_string()))),
                "len" => next.run().and_then(|_| next.run()),
                "echo" => next.run().and_then(|_| Err(HandlerError::new("too late"))),
                _ => {
                    dhaga::sleep(Duration::from_millis(1));
                    next.run()
                }
            })
            .bind("127.0.0.1:0")
            .expect("a port is free");
        let client = connect(&server);
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        let denied = client.call::<_, ()>("blob", (1,)).expect_err("it is denied");
        assert!(matches!(&denied, CallError::Refused { reason: RefusedReason::Denied, .. }), "{denied}");
        assert!(denied.to_string().contains("no blobs") && !denied.is_retryable() && !denied.maybe_executed());
        let Err(CallError::Remote(error)) = client.call::<_, ()>("fail", ("x",)) else { panic!("it fails") };
        assert_eq!(error.decode::<(u8, String)>().expect("it is a pair"), (7, "x".to_owned()));
        for len in [3, 1000] {
            let bytes = serde_bytes::ByteBuf::from(vec![7; len]);
            assert_eq!(client.call::<_, usize>("len", (bytes,)).ok(), Some(len), "one answer for two runs");
        }
        let Err(CallError::Remote(error)) = client.call::<_, i64>("echo", (1,)) else { panic!("it fails") };
        assert_eq!(error.text().as_deref(), Some("too late"), "what was answered before is taken back");
        let metrics = server.metrics();
        assert_eq!(metrics.method("blob").map(|method| method.errors.clone()), Some(vec![("denied", 1)]));
    });
}

#[test]
fn a_layer_that_panics_costs_one_answer() {
    hide_panics_on_purpose();
    within_deadline(|| {
        let server = builder(&Gate::default())
            .metrics(true)
            .layer(|call, next| match call.method() {
                "echo" => panic!("{}", crate::common::ON_PURPOSE),
                _ => next.run(),
            })
            .bind("127.0.0.1:0")
            .expect("a port is free");
        let mut peer = Peer::connect(server.local_addr());
        assert!(peer.ask(1, "echo", vec![1.into()]).expect_err("it panics").contains("panicked"));
        assert_eq!(peer.ask(2, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        assert_eq!(server.metrics().method("echo").map(|method| method.in_flight), Some(0));
    });
}

#[test]
fn a_clients_layer_may_refuse_repeat_and_see() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = builder(&gate).metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let (seen, tries) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
        let (noted, tried) = (seen.clone(), tries.clone());
        let client = Client::builder()
            .layer(move |call, next| {
                let outcome = next.run();
                note(&noted, format!("{} of {} {}", call.method(), call.peer(), outcome.is_ok()));
                outcome
            })
            .layer(move |call, next| match call.method() {
                "blob" => Err(CallError::denied("no blobs")),
                "fail" => next.run().or_else(|_| {
                    tried.fetch_add(1, Ordering::Relaxed);
                    next.run()
                }),
                _ => next.run(),
            })
            .connect(server.local_addr())
            .expect("it listens");
        // On a plain thread, and in a dhaga.
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        let in_dhaga = client.clone();
        assert_eq!(dhaga::spawn(move || add(&in_dhaga, 1, 3).ok()).join().expect("no panic"), Some(4));
        let denied = client.call::<_, ()>("blob", (1,)).expect_err("it is denied");
        assert!(matches!(&denied, CallError::Refused { reason: RefusedReason::Denied, .. }), "{denied}");
        client.call::<_, ()>("fail", ("x",)).expect_err("twice");
        client.notify("add", (1, 2)).expect("it is on its way");
        assert_eq!(tries.load(Ordering::Relaxed), 1);
        eventually("the server has had both tries", || {
            server.metrics().method("fail").is_some_and(|method| method.calls == 2)
        });
        assert_eq!(server.metrics().method("blob").map(|method| method.calls), Some(0), "nothing was sent");
        let peer = server.local_addr();
        let expected = [("add", true), ("add", true), ("blob", false), ("fail", false), ("add", true)];
        assert_eq!(all(&seen), expected.map(|(method, is_ok)| format!("{method} of {peer} {is_ok}")));
    });
}

/// One layer of the client's gives each call a token, and one of the server's asks for it.
#[test]
fn layers_see_what_goes_with_a_call() {
    within_deadline(|| {
        let server = builder(&Gate::default())
            .layer(|call, next| {
                // What is ambient for the handler is so for the layer.
                let current = dhaga_rpc::current().expect("a call is served");
                assert_eq!((current.method(), current.metadata()), (call.method(), call.metadata()));
                match call.metadata().get("token") {
                    Some("right") => next.run(),
                    Some(_) => Err(HandlerError::denied("another token")),
                    None => Err(HandlerError::denied("no token")),
                }
            })
            .bind("127.0.0.1:0")
            .expect("a port is free");
        let seen = Seen::default();
        let noted = seen.clone();
        let client = Client::builder()
            .layer(|call, next| match call.method() {
                "add" => dhaga_rpc::with_metadata([("token", "right")], || next.run()).expect("it is short"),
                _ => next.run(),
            })
            .layer(move |call, next| {
                note(&noted, call.metadata().get("tenant").unwrap_or("nobody"));
                next.run()
            })
            .connect(server.local_addr())
            .expect("it listens");
        let add_for =
            |tenant| dhaga_rpc::with_metadata([("tenant", tenant)], || add(&client, 1, 2)).expect("it is short");
        assert_eq!(add_for("blue").ok(), Some(3));
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        let caller = client.clone();
        assert_eq!(dhaga::spawn(move || add(&caller, 1, 2).ok()).join().expect("no panic"), Some(3));
        let denied = client.call::<_, i64>("echo", (1,)).expect_err("it has no token");
        assert!(matches!(&denied, CallError::Refused { reason: RefusedReason::Denied, .. }), "{denied}");
        let wrong = dhaga_rpc::with_metadata([("token", "wrong")], || client.call::<_, i64>("echo", (1,)));
        assert!(wrong.expect("it is short").expect_err("it is denied").to_string().contains("another token"));
        assert_eq!(all(&seen), ["blue", "nobody", "nobody", "nobody", "nobody"]);
    });
}

/// Keeps the events of calls, with their fields.
struct Kept;

static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Kept {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "dhaga_rpc::call"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let field = |name: &str| record.key_values().get(name.into()).map(|value| value.to_string());
            let fields = ["method", "outcome"].map(|name| field(name).unwrap_or_default());
            let has_rest = field("peer").is_some() && field("duration_us").is_some();
            let mut events = EVENTS.lock().expect("nobody panics with it");
            events.push(format!("{} {}: {} {has_rest}", record.level(), fields[0], fields[1]));
        }
    }

    fn flush(&self) {}
}

#[test]
fn calls_are_logged_with_fields() {
    within_deadline(|| {
        log::set_logger(&Kept).expect("no other test has one");
        log::set_max_level(log::LevelFilter::Debug);
        let server = builder(&Gate::default()).layer(layer::log_calls).bind("127.0.0.1:0").expect("a port is free");
        let client = Client::builder().layer(layer::log_calls).connect(server.local_addr()).expect("it listens");
        add(&client, 1, 2).expect("it is answered");
        client.call::<_, ()>("fail", ("on purpose",)).expect_err("it fails");
        eventually("all are logged", || EVENTS.lock().expect("nobody panics with it").len() == 4);
        let mut events = EVENTS.lock().expect("nobody panics with it").clone();
        events.sort();
        let expected = [
            "DEBUG add: ok true",
            "DEBUG add: ok true",
            "DEBUG fail: on purpose true",
            "DEBUG fail: the remote handler answered with an error: on purpose true",
        ];
        assert_eq!(events, expected);
    });
}

/// The promise never to wait is the method's own. A layer around it has made none.
#[test]
fn a_layer_that_waits_before_an_inline_method_holds_up_nobody_behind_it() {
    within_deadline(|| {
        for first in ["quick", "$/health"] {
            let gate = Gate::default();
            let (wait, open) = (gate.clone(), gate);
            let methods = Methods::new().method_inline("quick", || Ok(1)).method("open", move || {
                open.open();
                Ok(2)
            });
            let server = Server::builder().methods(methods).layer(move |call, next| {
                if call.method() != "open" {
                    wait.wait();
                }
                next.run()
            });
            let server = server.bind("127.0.0.1:0").expect("a port is free");
            let mut peer = Peer::connect(server.local_addr());
            peer.send(&[request(1, first, vec![]), request(2, "open", vec![])].concat());
            let answered = [peer.receive_answer().0, peer.receive_answer().0];
            assert!(answered.contains(&1) && answered.contains(&2), "{answered:?}");
        }
    });
}
