//! Services of one trait: what their callers get, what travels, and what does not compile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dhaga::Runtime;
use dhaga::sync::mpsc;
use dhaga_rpc::{CallError, Methods, RefusedReason, Server, Value};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::common::{
    Gate, ON_PURPOSE, Peer, builder, cutting_relay, hide_panics_on_purpose, plain, request, within_deadline,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    size: u64,
    owner: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StoreError {
    NotFound,
    Quota { left: u64 },
    Many(Vec<StoreError>),
}

#[dhaga_rpc::service(name = "store")]
pub trait Store {
    /// What is known of a file.
    #[rpc(idempotent)]
    fn stat(&self, path: String) -> Result<Meta, StoreError>;
    fn put(&self, path: &str, data: Vec<u8>) -> Result<u64, StoreError>;
    fn append(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, StoreError>;
    #[rpc(name = "rename-all")]
    fn rename(&self, service: Vec<String>, to: Option<String>) -> Result<(), StoreError>;
    #[rpc(timeout = "20ms")]
    fn hang(&self) -> Result<(), String>;
    #[rpc(notify)]
    fn progress(&self, job: u64, done: u64);
    fn broken(&self) -> Result<(), StoreError>;
}

struct Shelf {
    seen: mpsc::Sender<(u64, u64)>,
}

impl Store for Shelf {
    fn stat(&self, path: String) -> Result<Meta, StoreError> {
        match path.as_str() {
            "none" => Err(StoreError::NotFound),
            "both" => Err(StoreError::Many(vec![StoreError::NotFound, StoreError::Quota { left: 3 }])),
            _ => Ok(Meta { size: path.len() as u64, owner: None }),
        }
    }

    fn put(&self, _path: &str, data: Vec<u8>) -> Result<u64, StoreError> {
        Ok(data.len() as u64)
    }

    fn append(&self, path: &str, data: &[u8]) -> Result<Vec<u8>, StoreError> {
        Ok([path.as_bytes(), data].concat())
    }

    fn rename(&self, service: Vec<String>, to: Option<String>) -> Result<(), StoreError> {
        to.map(|_| ()).ok_or(StoreError::Quota { left: service.len() as u64 })
    }

    fn hang(&self) -> Result<(), String> {
        dhaga::sleep(Duration::from_secs(3600));
        Err("late".to_owned())
    }

    fn progress(&self, job: u64, done: u64) {
        self.seen.send((job, done)).expect("the test waits for it");
    }

    fn broken(&self) -> Result<(), StoreError> {
        panic!("{ON_PURPOSE}");
    }
}

fn serve() -> (Server, StoreClient, mpsc::Receiver<(u64, u64)>) {
    let (seen, sees) = mpsc::channel();
    let server = Server::builder().service(StoreServer::new(Shelf { seen })).bind("127.0.0.1:0");
    let server = server.expect("a port is free");
    let client = StoreClient::connect(server.local_addr()).expect("the server is there");
    (server, client, sees)
}

#[test]
fn values_and_errors_come_back_as_they_were() {
    within_deadline(|| {
        let (_server, store, _sees) = serve();
        assert_eq!(store.stat("abc".to_owned()).expect("it is there"), Meta { size: 3, owner: None });
        assert!(matches!(store.stat("none".to_owned()), Err(CallError::App(StoreError::NotFound))));
        let both = StoreError::Many(vec![StoreError::NotFound, StoreError::Quota { left: 3 }]);
        assert!(matches!(store.stat("both".to_owned()), Err(CallError::App(error)) if error == both));
        assert_eq!(store.put("a", vec![7; 70_000]).expect("it fits"), 70_000);
        assert_eq!(store.append("a", b"\x00\xff").expect("it fits"), b"a\x00\xff");
    });
}

#[test]
fn bytes_travel_as_bytes_and_structs_with_names() {
    within_deadline(|| {
        let (_server, store, _sees) = serve();
        let client = store.client();
        let params = rmp_serde::to_vec(&("a", ByteBuf::from(vec![200; 3]))).expect("they encode");
        let answer = client.call_raw("store.append", &params).expect("it is answered");
        assert_eq!(answer, b"\xc4\x04a\xc8\xc8\xc8", "bin 8 of four bytes");
        let meta: Value = client.call("store.stat", ("abcd",)).expect("it is answered");
        assert_eq!(meta["size"].as_u64(), Some(4));
    });
}

#[test]
fn older_and_newer_callers_are_served() {
    within_deadline(|| {
        let (_server, store, _sees) = serve();
        let client = store.client();
        let error = client.call::<_, ()>("store.rename-all", (["x"],)).expect_err("nothing to rename to");
        assert!(matches!(error.typed(), CallError::App(StoreError::Quota { left: 1 })), "the missing one is `None`");
        client.call::<_, ()>("store.rename-all", (["x"], "y", "newer", 5)).expect("what is too much is ignored");
        let error = client.call::<_, u64>("store.put", ("only a path",)).expect_err("the data is missing");
        assert!(matches!(error, CallError::Refused { reason: RefusedReason::InvalidArguments, .. }), "{error:?}");
        assert!(error.to_string().contains("argument 1"), "{error}");
    });
}

#[test]
fn a_method_has_its_own_timeout() {
    within_deadline(|| {
        let (_server, store, _sees) = serve();
        assert!(matches!(store.hang(), Err(CallError::DeadlineExceeded)));
    });
}

#[test]
fn a_notification_arrives_and_is_not_waited_for() {
    within_deadline(|| {
        let (_server, store, sees) = serve();
        store.progress(7, 42).expect("it is on its way");
        assert_eq!(sees.recv(), Ok((7, 42)));
    });
}

#[test]
fn a_panic_is_no_error_of_the_service() {
    hide_panics_on_purpose();
    within_deadline(|| {
        let (_server, store, _sees) = serve();
        let Err(CallError::Remote(error)) = store.broken() else { panic!("the service has not answered") };
        assert!(error.to_string().contains("panicked"), "{error}");
        store.stat("still there".to_owned()).expect("the connection lives");
    });
}

#[test]
fn a_service_describes_itself() {
    let description = StoreClient::DESCRIPTION;
    assert_eq!(description.name, "store");
    let put = &description.methods[1];
    assert_eq!((put.name, put.outcome), ("store.put", Some(("u64", "StoreError"))));
    assert_eq!(put.arguments, [("path", "&str"), ("data", "Vec<u8>")]);
    assert!(description.methods[0].is_idempotent && !put.is_idempotent);
    assert_eq!(description.methods[5].outcome, None);
}

#[dhaga_rpc::service]
trait Counter {
    #[rpc(idempotent)]
    fn twice(&self) -> Result<u32, ()>;
    fn once(&self) -> Result<u32, ()>;
}

struct Runs(AtomicU32);

impl Counter for Runs {
    fn twice(&self) -> Result<u32, ()> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn once(&self) -> Result<u32, ()> {
        self.twice()
    }
}

/// On one worker, which has one connection.
#[test]
fn only_what_may_run_twice_is_called_again() {
    within_deadline(|| {
        let runs = Arc::new(Runs(AtomicU32::new(0)));
        let server = Server::builder().service(CounterServer::shared(runs.clone())).bind("127.0.0.1:0");
        let server = server.expect("a port is free");
        let to = server.local_addr();
        let runtime = Runtime::builder().workers(1).build().expect("a test can have a worker");
        let caller = runtime.spawn(move || {
            let counter = CounterClient::new(plain().connect(cutting_relay(to)).expect("it listens"));
            assert_eq!(counter.twice().expect("the second connection serves"), 0);
            let counter = CounterClient::new(plain().connect(cutting_relay(to)).expect("it listens"));
            assert!(matches!(counter.once(), Err(CallError::Disconnected { maybe_executed: true, .. })));
        });
        caller.join().expect("both are so");
        assert_eq!(runs.0.load(Ordering::Relaxed), 1, "a first connection hands nothing on");
    });
}

#[dhaga_rpc::service]
trait Forms {
    fn list(&self, path: String, #[rpc(default = 10)] limit: u32, #[rpc(default)] deep: bool) -> Result<String, ()>;
    fn texts(
        &self,
        #[rpc(default = "none")] text: &str,
        #[rpc(default = b"abc")] bytes: &[u8],
        #[rpc(default = vec![1, 2])] list: Vec<u8>,
        #[rpc(default = Some("some"))] option: Option<&str>,
        #[rpc(default)] owned: Option<Vec<u8>>,
    ) -> Result<String, ()>;
    fn optional(&self, text: Option<&str>, bytes: Option<&[u8]>, owned: Option<Vec<u8>>)
    -> Result<Option<Vec<u8>>, ()>;
    fn shared(&self, whole: bytes::Bytes, part: Option<bytes::Bytes>) -> Result<bytes::Bytes, ()>;
    fn part(&self, of: bytes::Bytes) -> Result<Option<bytes::Bytes>, ()>;
}

struct Formed;

impl Forms for Formed {
    fn list(&self, path: String, limit: u32, deep: bool) -> Result<String, ()> {
        Ok(format!("{path} {limit} {deep}"))
    }

    fn texts(
        &self,
        text: &str,
        bytes: &[u8],
        list: Vec<u8>,
        option: Option<&str>,
        owned: Option<Vec<u8>>,
    ) -> Result<String, ()> {
        Ok(format!("{text} {bytes:?} {list:?} {option:?} {owned:?}"))
    }

    fn optional(
        &self,
        text: Option<&str>,
        bytes: Option<&[u8]>,
        owned: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, ()> {
        let Some(text) = text else { return Ok(None) };
        Ok(Some([text.as_bytes(), bytes.unwrap_or(b"-"), &owned.unwrap_or_default()].concat()))
    }

    fn shared(&self, whole: bytes::Bytes, part: Option<bytes::Bytes>) -> Result<bytes::Bytes, ()> {
        Ok([whole, part.unwrap_or_default()].concat().into())
    }

    fn part(&self, of: bytes::Bytes) -> Result<Option<bytes::Bytes>, ()> {
        Ok((!of.is_empty()).then(|| of.slice(1..)))
    }
}

fn serve_forms() -> (Server, FormsClient) {
    let server = Server::builder().service(FormsServer::new(Formed)).bind("127.0.0.1:0").expect("a port is free");
    let client = FormsClient::connect(server.local_addr()).expect("the server listens");
    (server, client)
}

#[test]
fn arguments_that_are_nil_or_left_out_take_their_defaults() {
    within_deadline(|| {
        let (_server, forms) = serve_forms();
        let client = forms.client();
        let list = |params: Value| client.call::<_, String>("list", params).expect("it is answered");
        let path = || Value::from("p");
        assert_eq!(list(Value::Array(vec![path()])), "p 10 false");
        assert_eq!(list(Value::Array(vec![path(), Value::Nil, true.into()])), "p 10 true");
        assert_eq!(list(Value::Array(vec![path(), 3.into()])), "p 3 false");
        assert_eq!(forms.list("p".to_owned(), 4, true).expect("it is answered"), "p 4 true");
        let error = client.call::<_, String>("list", ("p", "many")).expect_err("a text is no number");
        assert!(error.to_string().contains("argument 1"), "{error}");
        let texts: String = client.call("texts", ()).expect("all have defaults");
        assert_eq!(texts, "none [97, 98, 99] [1, 2] Some(\"some\") None");
        let texts = forms.texts("t", b"", vec![], Some("o"), Some(vec![5])).expect("it is answered");
        assert_eq!(texts, "t [] [] Some(\"o\") Some([5])");
        let required: Vec<_> = FormsClient::DESCRIPTION.methods.iter().map(|method| method.required).collect();
        assert_eq!(required, [1, 0, 0, 1, 1]);
    });
}

#[test]
fn bytes_travel_as_bytes_in_options_and_as_bytes_of_the_crate() {
    within_deadline(|| {
        let (_server, forms) = serve_forms();
        let answer = forms.optional(Some("t"), Some(b"b"), Some(vec![b'o'; 3])).expect("it is answered");
        assert_eq!(answer.as_deref(), Some(&b"tbooo"[..]));
        assert_eq!(forms.optional(Some("t"), None, None).expect("it is answered").as_deref(), Some(&b"t-"[..]));
        assert_eq!(forms.optional(None, None, None).expect("it is answered"), None);
        let (whole, part) = (bytes::Bytes::from_static(b"\xff\xfe"), bytes::Bytes::from_static(b"\x80"));
        assert_eq!(forms.shared(whole.clone(), Some(part)).expect("it is answered"), b"\xff\xfe\x80"[..]);
        assert_eq!(forms.part(whole).expect("it is answered"), Some(b"\xfe"[..].to_vec().into()));
        assert_eq!(forms.part(bytes::Bytes::new()).expect("it is answered"), None);
        let raw = |method: &str, params: &[u8]| forms.client().call_raw(method, params).expect("it is answered");
        assert_eq!(raw("optional", b"\x93\xa1t\xc4\x01b\xc4\x01o"), b"\xc4\x03tbo", "bin 8 of three bytes");
        assert_eq!(raw("shared", b"\x92\xc4\x01\xff\xc4\x01\xfe"), b"\xc4\x02\xff\xfe");
        assert_eq!(raw("part", b"\x91\xc4\x02\xff\xfe"), b"\xc4\x01\xfe");
    });
}

/// What a client sends, seen by a peer that echoes its params.
#[test]
fn clients_send_bytes_as_bytes_in_options_too() {
    within_deadline(|| {
        let echo = Server::builder().method_raw("optional", |params, out| {
            rmpv::encode::write_value(out, &Value::Binary(params.to_vec()))?;
            Ok(())
        });
        let server = echo.bind("127.0.0.1:0").expect("a port is free");
        let forms = FormsClient::connect(server.local_addr()).expect("the server listens");
        let sent = forms.optional(Some("t"), Some(&[200]), Some(vec![201])).expect("it is answered");
        assert_eq!(sent.as_deref(), Some(&b"\x93\xa1t\xc4\x01\xc8\xc4\x01\xc9"[..]));
    });
}

#[dhaga_rpc::service(name = "quick")]
trait Quick {
    #[rpc(inline)]
    fn add(&self, a: u64, b: u64) -> Result<u64, String>;
    #[rpc(inline)]
    fn nap(&self) -> Result<(), u8>;
}

struct Quickly;

impl Quick for Quickly {
    fn add(&self, a: u64, b: u64) -> Result<u64, String> {
        Ok(a + b)
    }

    fn nap(&self) -> Result<(), u8> {
        dhaga::sleep(Duration::from_millis(1));
        Ok(())
    }
}

/// Many requests in one write: one that waits holds up neither the inline ones nor what is behind them.
#[test]
fn inline_methods_are_answered_among_others() {
    within_deadline(|| {
        let gate = Gate::default();
        let methods = Methods::new().method_inline("one", || Ok(1));
        let server = builder(&gate).service(QuickServer::new(Quickly)).methods(methods).bind("127.0.0.1:0");
        let mut peer = Peer::connect(server.as_ref().expect("a port is free").local_addr());
        let requests = [
            request(1, "quick.add", vec![1.into(), 2.into()]),
            request(2, "hold", vec![5.into()]),
            request(3, "quick.add", vec![3.into(), 4.into()]),
            request(4, "one", vec![]),
            request(5, "hold", vec![6.into()]),
        ];
        peer.send(&requests.concat());
        let mut answers: Vec<_> = (0..3).map(|_| peer.receive_answer()).collect();
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers, [(1, Ok(3.into())), (3, Ok(7.into())), (4, Ok(1.into()))]);
        gate.open();
        let mut answers = [peer.receive_answer(), peer.receive_answer()];
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers, [(2, Ok(5.into())), (5, Ok(6.into()))]);
    });
}

#[test]
fn an_inline_method_that_waits_is_told_so_where_assertions_are_on() {
    within_deadline(|| {
        let server = Server::builder().service(QuickServer::new(Quickly)).bind("127.0.0.1:0").expect("a port is free");
        let quick = QuickClient::connect(server.local_addr()).expect("the server listens");
        match (quick.nap(), cfg!(debug_assertions)) {
            (Ok(()), false) => {}
            (Err(CallError::Remote(error)), true) => assert!(error.to_string().contains("panicked"), "{error}"),
            (other, _) => panic!("{other:?}"),
        }
        assert_eq!(quick.add(20, 22).expect("the connection lives"), 42);
    });
}

/// What cannot be a service is refused where it is written, in words that say what to write instead.
#[test]
#[ignore = "builds the library once more, for programs of its own: cargo test -p dhaga-rpc --test it -- --ignored"]
fn what_cannot_be_a_service_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/service/names_of_all_kinds.rs");
    cases.compile_fail("tests/service/refused_*.rs");
}

/// A type whose name the glue might want for itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct T(u32);

#[dhaga_rpc::service]
pub trait Names {
    /// As a method that an `Arc` has.
    fn clone(&self, r#type: u32) -> Result<T, String>;
    #[cfg(not(test))]
    fn absent(&self) -> Result<Nowhere, String>;
    #[cfg(test)]
    #[deprecated]
    fn old(&self) -> Result<(), String>;
}

struct Named;

impl Names for Named {
    fn clone(&self, r#type: u32) -> Result<T, String> {
        Ok(T(r#type))
    }

    fn old(&self) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_method_may_have_any_name_and_may_be_left_out_by_a_condition() {
    within_deadline(|| {
        let server = Server::builder().service(NamesServer::new(Named)).bind("127.0.0.1:0").expect("a port is free");
        let client = NamesClient::connect(server.local_addr()).expect("the server listens");
        assert_eq!(NamesClient::clone(&client, 7).expect("it succeeds"), T(7));
        #[expect(deprecated, reason = "the client's method is as the trait says")]
        client.old().expect("it succeeds");
        let described: Vec<_> =
            NamesClient::DESCRIPTION.methods.iter().map(|method| (method.name, method.arguments)).collect();
        assert_eq!(described, [("clone", &[("type", "u32")][..]), ("old", &[])]);
    });
}
