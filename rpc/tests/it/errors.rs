//! Errors in each profile: what is on the wire, and what a caller makes of it.

use std::time::Duration;

use dhaga_rpc::{CallError, Client, ErrorProfile, HandlerError, Limits, RefusedReason, Server, Value};

use crate::common::{Gate, ON_PURPOSE, Peer, builder, connect, eventually, plain, request, within_deadline};

/// A service whose own errors are texts, as the library's are where nothing was agreed on.
#[dhaga_rpc::service(name = "own")]
trait Own {
    fn fail(&self, text: &str) -> Result<u32, String>;
    fn panic(&self) -> Result<u32, String>;
    fn large(&self) -> Result<Vec<u8>, String>;
}

struct Texts;

impl Own for Texts {
    fn fail(&self, text: &str) -> Result<u32, String> {
        Err(text.to_owned())
    }

    fn panic(&self) -> Result<u32, String> {
        panic!("{ON_PURPOSE}");
    }

    fn large(&self) -> Result<Vec<u8>, String> {
        Ok(vec![0; 4096])
    }
}

fn serve(profile: ErrorProfile, gate: &Gate) -> (Server, OwnClient) {
    let limits = Limits { in_flight_per_server_max: 2, frame_bytes_out_max: 2048, ..Limits::default() };
    let server = builder(gate).service(OwnServer::new(Texts)).limits(limits).error_profile(profile).bind("127.0.0.1:0");
    let server = server.expect("a port is free");
    let client = OwnClient::new(connect(&server));
    (server, client)
}

fn reason<T: std::fmt::Debug>(result: Result<T, CallError>) -> RefusedReason {
    let error = result.expect_err("the call is refused");
    assert!(!error.maybe_executed(), "{error}");
    match error {
        CallError::Refused { reason, answer, .. } => {
            assert!(answer.is_from_library(), "{answer}");
            reason
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_the_library_refuses_is_no_error_of_a_service_with_texts() {
    within_deadline(|| {
        let (_server, own) = serve(ErrorProfile::Map, &Gate::default());
        let client = own.client();
        assert!(matches!(own.fail("mine"), Err(CallError::App(text)) if text == "mine"));
        assert_eq!(reason(client.call::<_, ()>("own.none", ())), RefusedReason::UnknownMethod);
        assert_eq!(reason(client.call::<_, ()>("own.fail", (1,))), RefusedReason::InvalidArguments);
        assert_eq!(reason(client.call::<_, ()>("own.fail", ())), RefusedReason::InvalidArguments);
        let typed = client.call::<_, ()>("own.none", ()).expect_err("there is none").typed::<String>();
        assert!(matches!(typed, CallError::Refused { reason: RefusedReason::UnknownMethod, .. }), "{typed}");
        for (result, code) in [(own.panic(), -32001), (own.large().map(|bytes| bytes.len() as u32), -32002)] {
            let Err(CallError::Remote(error)) = result else { panic!("the service has not answered") };
            assert!(error.is_from_library() && error.code() == Some(code), "{error}");
        }
        let error = client.call::<_, ()>("fail", ("of a function",)).expect_err("it fails");
        assert!(matches!(error.typed(), CallError::App::<String>(text) if text == "of a function"));
    });
}

#[test]
fn a_server_without_room_says_so_and_when_to_come_again() {
    within_deadline(|| {
        let gate = Gate::default();
        let (server, own) = serve(ErrorProfile::Map, &gate);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[request(1, "hold", vec![1.into()]), request(2, "hold", vec![2.into()])].concat());
        eventually("two handlers wait", || gate.inside() == 2);
        let error = own.fail("x").expect_err("there is no room");
        assert!(error.is_retryable() && !error.maybe_executed(), "{error}");
        let CallError::Refused { reason: RefusedReason::Overloaded, retry_after: Some(after), .. } = error else {
            panic!("{error}");
        };
        assert!(after >= Duration::from_millis(1) && after <= Duration::from_secs(1), "{after:?}");
        gate.open();
        eventually("there is room again", || matches!(own.fail("x"), Err(CallError::App(_))));
    });
}

#[test]
fn a_server_that_ends_refuses_what_may_be_called_elsewhere() {
    within_deadline(|| {
        let gate = Gate::default();
        let (server, _) = serve(ErrorProfile::Map, &gate);
        // Another one is told that the server ends, and asks it no more.
        let own = OwnClient::new(plain().connect(server.local_addr()).expect("it listens"));
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&request(1, "hold", vec![1.into()]));
        eventually("a handler waits", || gate.inside() == 1);
        let draining = std::thread::spawn(move || server.shutdown(Duration::from_secs(30)));
        let refused = || match own.fail("x") {
            Err(error @ CallError::Refused { reason: RefusedReason::ShuttingDown, retry_after: Some(_), .. }) => {
                error.is_retryable()
            }
            _ => false,
        };
        eventually("calls are refused", refused);
        gate.open();
        assert!(draining.join().expect("nobody panics"), "the call in flight finished");
    });
}

/// The error of a request, as a foreign peer sees it.
fn seen(profile: ErrorProfile, method: &str, params: Vec<Value>) -> Value {
    let (server, _own) = serve(profile, &Gate::default());
    let mut peer = Peer::connect(server.local_addr());
    peer.send(&request(1, method, params));
    let answer = peer.receive();
    answer[2].clone()
}

#[test]
fn each_profile_is_what_its_peers_read() {
    within_deadline(|| {
        let unknown = "this server has no method \"none\"";
        let pair = |code: u8, text: &str| Value::Array(vec![code.into(), text.into()]);
        assert_eq!(seen(ErrorProfile::Text, "none", vec![]), unknown.into());
        assert_eq!(seen(ErrorProfile::CodeText, "none", vec![]), pair(1, unknown));
        assert_eq!(seen(ErrorProfile::CodeText, "panic", vec![]), pair(0, "the handler panicked"));
        assert_eq!(seen(ErrorProfile::CodeText, "fail", vec!["full".into()]), pair(0, "full"));
        assert_eq!(seen(ErrorProfile::CodeText, "own.fail", vec!["full".into()]), "full".into());
        let map = seen(ErrorProfile::Map, "none", vec![]);
        assert_eq!((&map["code"], &map["name"]), (&(-32601).into(), &"UNKNOWN_METHOD".into()));
        assert_eq!((&map["message"], &map["data"]), (&unknown.into(), &Value::Nil));
        let map = seen(ErrorProfile::Map, "own.fail", vec!["full".into()]);
        assert_eq!((&map["code"], &map["data"]), (&(-32000).into(), &"full".into()));
        let map = seen(ErrorProfile::Map, "own.fail", vec![]);
        assert_eq!((&map["code"], &map["data"]["argument"]), (&(-32602).into(), &0.into()));
    });
}

/// A relay hands on what its backend said, and that is not what the relay's own library says.
#[test]
fn an_error_that_only_looks_like_the_librarys_is_the_handlers() {
    within_deadline(|| {
        let refused = seen(ErrorProfile::Map, "none", vec![]);
        for profile in [ErrorProfile::Text, ErrorProfile::CodeText, ErrorProfile::Map] {
            let said = refused.clone();
            let relay = Server::builder().method("relay", move || Err::<(), _>(HandlerError::value(&said)));
            let relay = relay.error_profile(profile).bind("127.0.0.1:0").expect("a port is free");
            let client = Client::connect(relay.local_addr()).expect("it listens");
            match client.call::<_, ()>("relay", ()) {
                Err(CallError::Remote(error)) => {
                    assert_eq!(error.decode::<Value>().expect("it is a value"), refused);
                    assert!(!error.is_from_library());
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

/// A map of a method's own that looks like a refusal, with more in it than the server itself would take.
#[test]
fn a_large_error_that_looks_like_a_refusal_is_none() {
    within_deadline(|| {
        let own = Value::Map(vec![
            ("data".into(), Value::Binary(vec![7; 4096])),
            ("code".into(), (-32011).into()),
            ("message".into(), "mine".into()),
            ("name".into(), "OVERLOADED".into()),
        ]);
        for profile in [ErrorProfile::Text, ErrorProfile::CodeText, ErrorProfile::Map] {
            let value = own.clone();
            let limits = Limits { frame_bytes_in_max: 1024, ..Limits::default() };
            let server = Server::builder()
                .method("own", move || Err::<(), _>(HandlerError::value(&value)))
                .limits(limits)
                .error_profile(profile)
                .bind("127.0.0.1:0")
                .expect("a port is free");
            let client = plain().connect(server.local_addr()).expect("it listens");
            let error = client.call::<_, ()>("own", ()).expect_err("it fails").typed::<Value>();
            assert!(matches!(&error, CallError::App(value) if *value == own), "{profile:?}: {error:?}");
        }
    });
}

/// What comes to a caller behind two servers, of which each has its profile and the first passes on what it gets.
#[test]
fn errors_pass_through_a_relay_as_they_are() {
    const PROFILES: [ErrorProfile; 3] = [ErrorProfile::Text, ErrorProfile::CodeText, ErrorProfile::Map];
    within_deadline(|| {
        let entry = |code: i64| {
            let map = vec![("code".into(), code.into()), ("name".into(), "X".into()), ("message".into(), "m".into())];
            Value::Map(map)
        };
        let nested = |data: Value| {
            let Value::Map(mut map) = entry(-32000) else { unreachable!() };
            map.push(("data".into(), data));
            Value::Map(map)
        };
        let values = [
            Value::from("text"),
            Value::from(""),
            Value::Boolean(false),
            Value::from(0),
            Value::Array(vec![]),
            Value::Array(vec![1.into(), "looks like Neovim's".into()]),
            entry(-32010),
            entry(-32000),
            entry(-32099),
            entry(7),
            nested(Value::Nil),
            nested(entry(-32601)),
            nested(nested(entry(-32014))),
            Value::Map(vec![]),
            Value::Ext(5, vec![1, 2]),
        ];
        let echo = |profile| {
            let server = Server::builder()
                .method("own", |value: Value| Err::<(), _>(HandlerError::value(&value)))
                .error_profile(profile);
            server.bind("127.0.0.1:0").expect("a port is free")
        };
        for (inner, outer) in PROFILES.iter().flat_map(|inner| PROFILES.iter().map(move |outer| (*inner, *outer))) {
            let far = echo(inner);
            let behind = plain().connect(far.local_addr()).expect("it listens");
            let relay = Server::builder()
                .method("own", move |value: Value| {
                    match behind.call::<_, ()>("own", (value,)).expect_err("it fails").typed::<Value>() {
                        CallError::App(value) => Err::<(), _>(HandlerError::value(&value)),
                        other => Err(HandlerError::new(format!("another error: {other:?}"))),
                    }
                })
                .error_profile(outer)
                .bind("127.0.0.1:0")
                .expect("a port is free");
            let client = plain().connect(relay.local_addr()).expect("it listens");
            for value in &values {
                let error = client.call::<_, ()>("own", (value,)).expect_err("it fails").typed::<Value>();
                assert!(
                    matches!(&error, CallError::App(same) if same == value),
                    "{inner:?} {outer:?} {value}: {error:?}"
                );
            }
        }
    });
}
