//! What is done with each input of a fuzzer, and what must hold whatever the input is.
//!
//! The fuzzers in `rpc/fuzz` invent inputs for these; the tests of `replay` run the inputs that are kept in
//! `rpc/fuzz/corpus`. Inputs are scripts of single bytes, so that captured traffic can be put into one with a head of a few
//! bytes, and so that a small change of an input is a small change of what happens.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::{JoinHandle, Runtime};
use dhaga_rpc::encode::{
    EncodeError, encode_notification_raw, encode_request_raw, encode_response_err_raw, encode_response_ok_raw,
};
use dhaga_rpc::frame::{Cutter, FrameError, Progress};
use dhaga_rpc::message::{Message, decode};
use dhaga_rpc::{CallError, Client, Extensions, Limits, RemoteError, Server, Value};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::common::*;

/// What is left of an input.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    /// The next byte, or 0 at the end.
    fn number(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// Limits that an input of a few hundred bytes can meet.
fn tight() -> Limits {
    Limits { frame_bytes_in_max: 300, frame_bytes_out_max: 300, depth_max: 5, elements_max: 40, ..Limits::default() }
}

/// What became of a stream: the lengths of its frames, and how it ends.
#[derive(Debug, PartialEq)]
struct Cut {
    frames: Vec<usize>,
    end: Result<Option<usize>, FrameError>,
}

/// Input: one byte that chooses limits and a schedule, then a stream. However the stream is split, the same frames come out
/// of it, and what rmpv reads there; and no more is asked for or kept than a frame may have.
pub fn cutter(data: &[u8]) {
    let mut script = Script(data);
    let seed = script.number();
    let (limits, stream) = (if seed & 1 == 0 { Limits::default() } else { tight() }, script.0);
    let whole = cut(stream, &limits, |_| usize::MAX);
    check_against_rmpv(stream, &whole);
    let mut random = seed as u64 + 1;
    let schedules: [&mut dyn FnMut(usize) -> usize; 5] =
        [&mut |_| 1, &mut |_| 2, &mut |_| 3, &mut |_| 1 + next(&mut random) as usize % 3, &mut |start| {
            if start == 0 { seed + 1 } else { usize::MAX }
        }];
    for schedule in schedules {
        let split = cut(stream, &limits, schedule);
        assert_eq!(split.frames, whole.frames, "{stream:02x?}");
        // A pause adds up all claims, so it may see that a frame is too large before the byte that is wrong.
        assert!(split.end == whole.end || split.end.is_err() && whole.end.is_err(), "{split:?} {whole:?}");
    }
}

/// Shows the cutter as many bytes more each time as `step` says of how many it has seen.
fn cut(stream: &[u8], limits: &Limits, mut step: impl FnMut(usize) -> usize) -> Cut {
    let (mut cutter, mut frames) = (Cutter::new(limits), Vec::new());
    let (mut start, mut end, mut claimed) = (0, 0, 0);
    loop {
        match cutter.advance(&stream[start..end]) {
            Ok(Progress::Whole { len }) => {
                assert!(claimed <= start + len && len <= limits.frame_bytes_in_max && cutter.is_between_frames());
                frames.push(len);
                start += len;
                claimed = start;
            }
            Ok(Progress::NeedMore { at_least }) => {
                assert!(at_least > 0 && end + at_least >= claimed, "a claim never shrinks");
                assert!(end + at_least - start <= limits.frame_bytes_in_max, "more is kept than a frame may have");
                claimed = end + at_least;
                if end == stream.len() {
                    return Cut { frames, end: Ok((start < end).then_some(at_least)) };
                }
                end = end.saturating_add(step(end)).min(stream.len());
            }
            Err(error) => return Cut { frames, end: Err(error) },
        }
    }
}

fn check_against_rmpv(stream: &[u8], cut: &Cut) {
    let mut rest = stream;
    for len in &cut.frames {
        let before = rest.len();
        assert!(rmpv::decode::read_value(&mut rest).is_ok_and(|value| value.is_array()), "{stream:02x?}");
        assert_eq!(before - rest.len(), *len, "{stream:02x?}");
    }
    if let Ok(Some(_)) = cut.end {
        assert!(rmpv::decode::read_value(&mut rest).is_err(), "it was whole: {stream:02x?}");
    }
}

/// A type of many kinds of fields, larger in memory than on the wire.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    id: u64,
    name: Option<String>,
    data: ByteBuf,
    ratio: f64,
    tags: Vec<(i8, char)>,
    kind: Kind,
    inner: Option<Box<Record>>,
    fat: Vec<[u64; 4]>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
enum Kind {
    #[default]
    Unit,
    One(i32),
    Pair(u8, String),
    Named {
        flag: bool,
    },
}

/// Input: one byte that chooses limits, then frames. Nothing that is no message is read as one, and what is one is the same
/// after it was written and read again; whatever type somebody asks for, decoding it ends well or with an error.
pub fn message(data: &[u8]) {
    let mut script = Script(data);
    let limits = if script.number() & 1 == 0 { Limits::default() } else { tight() };
    // Whoever parses without a cutter gets an error at worst.
    let _ = Message::parse(script.0, &limits);
    let mut cutter = Cutter::new(&limits);
    while let Ok(Progress::Whole { len }) = cutter.advance(script.0) {
        let frame = script.bytes(len);
        match Message::parse(frame, &limits) {
            Ok(message) => check_message(&message, &limits),
            Err(error) => drop(error.to_string()),
        }
    }
}

fn check_message(message: &Message<'_>, limits: &Limits) {
    let mut again = Vec::new();
    write(message, limits, &mut again).unwrap_or_else(|error| panic!("{message:?} was read and not written: {error}"));
    assert_eq!(Message::parse(&again, limits).as_ref(), Ok(message));
    let mut cutter = Cutter::new(limits);
    assert_eq!(cutter.advance(&again), Ok(Progress::Whole { len: again.len() }));
    let (Message::Request { params: value, .. }
    | Message::Notification { params: value, .. }
    | Message::Response { outcome: Ok(value) | Err(value), .. }) = *message;
    check_value(value, limits);
    check_error(value);
}

fn write(message: &Message<'_>, limits: &Limits, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match *message {
        Message::Request { id, method, params } => encode_request_raw(out, limits, id, method, params),
        Message::Notification { method, params } => encode_notification_raw(out, limits, method, params),
        Message::Response { id, outcome: Ok(result) } => encode_response_ok_raw(out, limits, id, result),
        Message::Response { id, outcome: Err(error) } => encode_response_err_raw(out, limits, id, error),
    }
}

fn check_value(raw: &[u8], limits: &Limits) {
    if let Ok(value) = decode::<Value>(raw, limits) {
        let bytes = bytes_of(&value);
        let again = decode::<Value>(&bytes, limits).expect("it was decoded before");
        assert_eq!(bytes_of(&again), bytes);
    }
    decodes::<(u8, String, f32)>(raw, limits);
    decodes::<Vec<Option<[u64; 8]>>>(raw, limits);
    decodes::<BTreeMap<String, Value>>(raw, limits);
    decodes::<(ByteBuf, Option<char>)>(raw, limits);
    decodes::<Record>(raw, limits);
    decodes::<Vec<Record>>(raw, limits);
    decodes::<(Kind,)>(raw, limits);
    decodes::<Vec<()>>(raw, limits);
    decodes::<i128>(raw, limits);
}

/// What was decoded as a `T` can be sent, and is a `T` again.
fn decodes<T: DeserializeOwned + Serialize + Debug>(raw: &[u8], limits: &Limits) {
    let Ok(value) = decode::<T>(raw, limits) else { return };
    let mut bytes = Vec::new();
    if dhaga_rpc::encode::encode_response_ok(&mut bytes, limits, 1, &value).is_ok() {
        let Ok(Message::Response { outcome: Ok(result), .. }) = Message::parse(&bytes, limits) else {
            panic!("{bytes:02x?} is what we wrote");
        };
        let again = decode::<T>(result, limits).unwrap_or_else(|error| panic!("{value:?}: {error}"));
        assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }
}

/// However a peer words its error, it can be shown: on a few lines, without control characters.
fn check_error(raw: &[u8]) {
    let error = RemoteError::from_raw(raw);
    let shown = error.to_string();
    assert!(shown.chars().count() < 16_000 && !shown.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    let (_, _, _) = (error.text(), error.code(), error.decode::<Record>());
    let _ = format!("{:?}", CallError::Remote(error).typed::<Kind>());
}

/// Looks at a gauge very often: most are right at once or after a few microseconds, and a fuzzer has no milliseconds.
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let (mut looks, end) = (0, Instant::now() + PATIENCE);
    while !is_so() {
        assert!(Instant::now() < end, "still not so after {PATIENCE:?}: {what}");
        looks += 1;
        match looks {
            0..200 => thread::yield_now(),
            _ => thread::sleep(Duration::from_micros(50)),
        }
    }
}

/// Bytes that a script may send in all: less than two sockets hold, so that neither side waits for the other to read.
const SENT_MAX: usize = 100 << 10;

/// A server whose limits are so low that a script meets them.
pub struct Served {
    server: Server,
    gate: Arc<Mutex<Gate>>,
    _runtime: Runtime,
}

impl Default for Served {
    fn default() -> Self {
        hide_panics_on_purpose();
        let gate = Arc::new(Mutex::new(Gate::default()));
        let held = gate.clone();
        let limits = Limits {
            frame_bytes_in_max: 4 << 10,
            in_flight_per_connection_max: 4,
            queued_bytes_max: 2 << 10,
            unsent_bytes_max: 4 << 10,
            ..Limits::default()
        };
        let runtime = Runtime::builder().workers(2).build().expect("the kernel gives threads");
        let server = builder(&Gate::default())
            .method("held", move |value: Value| {
                let gate = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
                gate.wait();
                Ok(value)
            })
            .limits(limits)
            .bind_on(&runtime, "127.0.0.1:0")
            .expect("the kernel has a port");
        Self { server, gate, _runtime: runtime }
    }
}

/// What must be answered to a request.
#[derive(Debug)]
enum Due {
    Value(Value),
    /// Bytes of a blob.
    Bytes(usize),
    Error(&'static str),
    /// One answer, whatever it says.
    Some,
}

/// A peer of the server that does as a script says.
struct Caller<'a> {
    served: &'a Served,
    gate: Gate,
    peer: Peer,
    /// What the next write sends.
    unsent: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    due: HashMap<u32, Due>,
    next_id: u32,
    /// Nothing was sent that would be wrong, so that all that was asked is answered.
    is_right: bool,
    /// It may have said that it knows how to cancel: then its end takes back what it asked for.
    may_cancel: bool,
    is_over: bool,
}

/// Input: a script of what a peer does. A peer that does nothing wrong gets the right answer to each of its requests, once;
/// one that does gets answers that are messages, and the server is rid of it and of all that it began.
pub fn server(served: &Served, data: &[u8]) {
    let gate = Gate::default();
    *served.gate.lock().unwrap_or_else(PoisonError::into_inner) = gate.clone();
    let faults = served.server.stats().closed_for_fault;
    let mut caller = Caller {
        served,
        gate,
        peer: Peer::connect(served.server.local_addr()),
        unsent: Vec::new(),
        sent: 0,
        received: Vec::new(),
        due: HashMap::new(),
        next_id: 0,
        is_right: true,
        may_cancel: false,
        is_over: false,
    };
    let mut script = Script(data);
    while let Some(action) = script.byte() {
        caller.act(action, &mut script);
    }
    let is_right = caller.is_right;
    caller.finish();
    soon("nothing is left", || {
        let stats = served.server.stats();
        (stats.connections, stats.in_flight) == (0, 0)
    });
    assert!(!is_right || served.server.stats().closed_for_fault == faults, "it did nothing wrong");
}

impl Caller<'_> {
    fn act(&mut self, action: u8, script: &mut Script<'_>) {
        match action % 20 {
            0 => self.flush(),
            1 => self.ask("echo", script.number().into()),
            2 => self.ask("held", script.number().into()),
            3 => self.ask_for_trouble(script.number()),
            4 => self.ask_for_bytes(script.number() << 6),
            5 => self.gate.admit(script.number() % 4),
            6 => self.notify(script.number()),
            7 => self.take_what_is_there(),
            8 => self.ask("echo", Value::Binary(vec![7; script.number() << 4])),
            9 => self.ask_in_long_forms(script.number()),
            10 => self.unsent.extend(answer(script.number() as u32, 1)),
            11 => {
                let count = script.number();
                self.do_wrong(|unsent| unsent.extend_from_slice(script.bytes(count)));
            }
            12 => {
                let count = script.number();
                self.do_wrong(|unsent| unsent.truncate(unsent.len().saturating_sub(count)));
            }
            13 => {
                let (at, bit) = (script.number(), script.number() % 8);
                self.do_wrong(|unsent| {
                    let at = at % unsent.len().max(1);
                    unsent.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
                });
            }
            14 => self.ask_twice(script.number() as u32),
            15 => {
                let nested = vec![0x91; script.number()];
                self.do_wrong(|unsent| unsent.extend(nested));
            }
            16 => {
                self.may_cancel = true;
                self.ask_for("$/hello", vec![hello(script.number())], Due::Some);
            }
            17 => self.cancel(script.number() as u32),
            18 => {
                let bytes = reserved(script);
                self.do_wrong(|unsent| unsent.extend(bytes));
            }
            _ => match script.number() {
                0..128 => self.ask_for("$/nothing", vec![], Due::Error("no method")),
                millis => self.ask_within(millis - 128),
            },
        }
    }

    /// A request with a deadline, which may have passed when the peer looks at it.
    fn ask_within(&mut self, millis: usize) {
        let id = self.next_id;
        let meta = Value::Map(vec![("d".into(), millis.into()), ("odd".into(), Value::Nil)]);
        let before = self.unsent.len();
        self.put(&notification("$/meta", vec![id.into(), meta]));
        self.ask_for("held", vec![1.into()], Due::Some);
        if self.next_id == id {
            // There was no room for both.
            self.unsent.truncate(before);
        }
    }

    /// Takes a request back, which may be answered already.
    fn cancel(&mut self, id: u32) {
        let id = id % self.next_id.max(1);
        self.put(&notification("$/cancelRequest", vec![0.into(), id.into()]));
        self.due.entry(id).and_modify(|due| *due = Due::Some);
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.sent + self.unsent.len() + bytes.len() <= SENT_MAX {
            self.unsent.extend_from_slice(bytes);
        }
    }

    fn ask_for(&mut self, method: &str, params: Vec<Value>, due: Due) {
        let id = self.next_id;
        let bytes = request(id, method, params);
        if self.sent + self.unsent.len() + bytes.len() <= SENT_MAX {
            self.put(&bytes);
            self.due.insert(id, due);
            self.next_id += 1;
        }
    }

    fn ask(&mut self, method: &str, value: Value) {
        self.ask_for(method, vec![value.clone()], Due::Value(value));
    }

    fn ask_for_bytes(&mut self, count: usize) {
        self.ask_for("blob", vec![count.into()], Due::Bytes(count));
    }

    fn ask_for_trouble(&mut self, which: usize) {
        match which % 6 {
            0 => self.ask_for("panic", vec![], Due::Error("panicked")),
            1 => self.ask_for("fail", vec!["no luck".into()], Due::Error("no luck")),
            2 => self.ask_for("nothing", vec![], Due::Error("no method")),
            3 => self.ask_for("add", vec![1.into()], Due::Error("argument 1")),
            4 => self.ask_for("add", vec!["x".into(), 1.into()], Due::Error("argument 0")),
            _ => self.ask_for("sleep", vec![0.into(), 1.into()], Due::Value(1.into())),
        }
    }

    /// Every number of the message in a longer form than it needs.
    fn ask_in_long_forms(&mut self, value: usize) {
        let id = self.next_id;
        let mut bytes = vec![0xdd, 0, 0, 0, 4, 0xd3, 0, 0, 0, 0, 0, 0, 0, 0, 0xcf, 0, 0, 0, 0];
        bytes.extend(id.to_be_bytes());
        bytes.extend([0xc6, 0, 0, 0, 4]);
        bytes.extend(b"echo");
        bytes.extend([0xdc, 0, 1, 0xcd, 0, value as u8]);
        self.put(&bytes);
        if self.unsent.ends_with(&bytes) {
            self.due.insert(id, Due::Value(value.into()));
            self.next_id += 1;
        }
    }

    fn notify(&mut self, which: usize) {
        let (method, params) = match which % 4 {
            0 => ("echo", vec![1.into()]),
            1 => ("nothing", vec![]),
            2 => ("panic", vec![]),
            _ => ("held", vec![1.into()]),
        };
        self.put(&notification(method, params));
    }

    /// Two with the same id: wrong only if the first is still in flight when the second comes.
    fn ask_twice(&mut self, id: u32) {
        self.is_right = false;
        let both = [request(id, "echo", vec![1.into()]), request(id, "held", vec![2.into()])].concat();
        self.put(&both);
    }

    fn do_wrong(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        self.is_right = false;
        change(&mut self.unsent);
    }

    fn flush(&mut self) {
        if self.is_over {
            return self.unsent.clear();
        }
        self.sent += self.unsent.len();
        let sent = self.peer.0.write_all(&self.unsent);
        self.unsent.clear();
        if let Err(error) = sent {
            assert!(!self.is_right, "a peer that did nothing wrong was closed: {error}");
            self.is_over = true;
        }
    }

    fn take_what_is_there(&mut self) {
        self.peer.0.set_nonblocking(true).expect("it is a socket");
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.peer.0.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        self.peer.0.set_nonblocking(false).expect("it is a socket");
    }

    /// Says that it is done, and takes what still comes.
    fn finish(mut self) {
        self.flush();
        self.gate.open();
        if self.is_right && self.may_cancel {
            self.take_what_is_due();
        }
        self.peer.finish_if_open();
        if let Err(error) = self.peer.0.read_to_end(&mut self.received) {
            let is_timeout = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!is_timeout && !self.is_right, "the server did not end it: {error}, {:?}", self.served.server);
            return;
        }
        self.settle_received();
        // Who breaks the protocol is closed at once, in the middle of an answer if need be.
        let is_whole = self.received.is_empty() && self.due.is_empty();
        assert!(!self.is_right || is_whole, "unanswered: {:?}, and a part: {:x?}", self.due, self.received);
    }

    fn take_what_is_due(&mut self) {
        let mut buffer = [0; 4096];
        self.settle_received();
        while !self.due.is_empty() {
            let count = self.peer.0.read(&mut buffer);
            let count = count.unwrap_or_else(|error| panic!("{error}, unanswered: {:?}", self.due));
            assert!(count > 0, "the server ended it, unanswered: {:?}", self.due);
            self.received.extend_from_slice(&buffer[..count]);
            self.settle_received();
        }
    }

    /// Settles all that has come but for a message that has not ended.
    fn settle_received(&mut self) {
        let received = std::mem::take(&mut self.received);
        let (mut rest, mut ahead) = (&received[..], &received[..]);
        while !rest.is_empty() {
            match rmpv::decode::read_value(&mut ahead) {
                Ok(message) => self.settle(&message),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => panic!("the server sends what is no message: {error}"),
            }
            rest = ahead;
        }
        self.received = rest.to_vec();
    }

    fn settle(&mut self, message: &Value) {
        let parts = message.as_array().expect("an answer is an array");
        let is_answer = parts.len() == 4 && parts[0] == 1.into() && (parts[2].is_nil() || parts[3].is_nil());
        assert!(is_answer, "{message} is no answer");
        let id = parts[1].as_u64().and_then(|id| u32::try_from(id).ok()).expect("an id is a number");
        if !self.is_right {
            return;
        }
        match self.due.remove(&id).unwrap_or_else(|| panic!("nobody asked, or it came twice: {message}")) {
            Due::Value(value) => assert!(parts[2].is_nil() && parts[3] == value, "{message} instead of {value}"),
            Due::Bytes(count) => assert_eq!(parts[3].as_slice().map(<[u8]>::len), Some(count)),
            Due::Some => {}
            Due::Error(text) => assert!(parts[2].as_str().is_some_and(|error| error.contains(text)), "{message}"),
        }
    }
}

fn notification(method: &str, params: Vec<Value>) -> Vec<u8> {
    bytes_of(&Value::Array(vec![2.into(), method.into(), Value::Array(params)]))
}

const RESERVED: [&str; 10] =
    ["$/cancelRequest", "$/meta", "$/goaway", "$/item", "$/end", "$/credit", "$/ping", "$/describe", "$/health", "$/"];

/// What a peer may say of itself: with some of all capabilities that there may ever be, or nonsense.
fn hello(choice: usize) -> Value {
    let caps = ["meta", "cancel", "goaway", "stream", "credit", "ping", "item"];
    let caps = caps.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1).map(|(_, name)| (*name).into());
    match choice {
        0 => Value::Nil,
        1 => Value::Map(vec![("v".into(), 0.into())]),
        _ => Value::Map(vec![("v".into(), 1.into()), ("caps".into(), Value::Array(caps.collect()))]),
    }
}

/// A message of the protocol itself, with params that may be of any kind.
fn reserved(script: &mut Script<'_>) -> Vec<u8> {
    let method = RESERVED[script.number() % RESERVED.len()];
    let params = (0..script.number() % 4).map(|_| match script.number() {
        255 => Value::Nil,
        254 => "text".into(),
        253 => hello(script.number()),
        252 => Value::Binary(vec![7; script.number()]),
        251 => Value::Array(vec![script.number().into(); 3]),
        250 => u64::MAX.into(),
        249 => (-1).into(),
        number => number.into(),
    });
    notification(method, params.collect())
}

/// What clients live on.
pub struct Calls {
    runtime: Runtime,
}

impl Default for Calls {
    fn default() -> Self {
        hide_panics_on_purpose();
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        Self { runtime }
    }
}

/// Calls that a script may have unanswered at a time: with more, the client's table would be full and they would wait.
const UNANSWERED_MAX: usize = 12;
/// Answers that nobody waits for, within what is tolerated.
const UNKNOWN_MAX: u32 = 20;

/// One call of the client that is tested.
struct Made {
    handle: JoinHandle<Result<Value, CallError>>,
    id: u32,
    /// The first answer that was sent to it.
    answered: Option<Result<usize, usize>>,
    is_cancelled: bool,
}

/// A server that does as a script says.
struct Answerer<'a> {
    runtime: &'a Runtime,
    client: Client,
    peer: Peer,
    unsent: Vec<u8>,
    made: Vec<Made>,
    unknown: u32,
    /// What is said to a client that asks for extensions.
    hello: Value,
    is_right: bool,
    is_over: bool,
}

/// Input: a script of what a server does with a client's calls. Each call ends once: with the first answer to its id, with
/// its cancel, or with the connection; and none of the client's room is lost by it.
pub fn client(calls: &Calls, data: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel has a port");
    let address = listener.local_addr().expect("it is bound");
    let limits = Limits {
        calls_per_connection_max: UNANSWERED_MAX,
        unknown_answers_per_second_max: UNKNOWN_MAX,
        frame_bytes_in_max: 4 << 10,
        ..Limits::default()
    };
    let mut script = Script(data);
    let first = script.number();
    let extensions = if first & 4 == 0 { Extensions::Plain } else { Extensions::Auto };
    let builder = Client::builder().limits(limits).timeout(PATIENCE).extensions(extensions);
    let client = calls.runtime.spawn(move || builder.connect(address)).join().expect("nobody panics");
    let (stream, _) = listener.accept().expect("the client has connected");
    // Who is told to call elsewhere finds nobody.
    drop(listener);
    let mut answerer = Answerer {
        runtime: &calls.runtime,
        client: client.expect("somebody listens"),
        peer: Peer::new(stream),
        unsent: Vec::new(),
        made: Vec::new(),
        unknown: 0,
        hello: hello(first >> 3),
        is_right: true,
        is_over: false,
    };
    (0..first % 4).for_each(|_| answerer.have_called());
    while let Some(action) = script.byte() {
        answerer.act(action, &mut script);
    }
    answerer.finish();
    soon("no dhaga is left", || calls.runtime.tasks() == 0);
}

impl Answerer<'_> {
    fn act(&mut self, action: u8, script: &mut Script<'_>) {
        match action % 20 {
            0 => self.flush(),
            1 | 2 => self.have_called(),
            3 => self.reply(script.number(), Ok(script.number())),
            4 => self.reply(script.number(), Err(script.number())),
            5 => self.answer_nobody(script.number()),
            6 => self.cancel(script.number()),
            7 => self.unsent.extend(request(script.number() as u32, "who", vec![])),
            8 => self.unsent.extend(notification("notice", vec![])),
            9 => self.reply_in_long_forms(script.number(), script.number()),
            11 => {
                let count = script.number();
                self.do_wrong(|unsent| unsent.extend_from_slice(script.bytes(count)));
            }
            12 => {
                let count = script.number();
                self.do_wrong(|unsent| unsent.truncate(unsent.len().saturating_sub(count)));
            }
            13 => {
                let (at, bit) = (script.number(), script.number() % 8);
                self.do_wrong(|unsent| {
                    let at = at % unsent.len().max(1);
                    unsent.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
                });
            }
            14 => {
                let nested = vec![0x91; script.number()];
                self.do_wrong(|unsent| unsent.extend(nested));
            }
            16 => self.unsent.extend(request(script.number() as u32, "$/hello", vec![hello(script.number())])),
            17 => {
                let bytes = reserved(script);
                self.do_wrong(|unsent| unsent.extend(bytes));
            }
            _ => {
                // All that was asked is answered: in reverse, as Neovim does.
                (0..self.made.len()).rev().for_each(|which| self.reply(which, Ok(which)));
                self.flush();
            }
        }
    }

    fn unanswered(&self) -> usize {
        self.made.iter().filter(|made| made.answered.is_none() && !made.is_cancelled).count()
    }

    /// Has the client call, and reads what it sends.
    fn have_called(&mut self) {
        // What was answered or cancelled frees its place only when the client has noticed.
        self.flush();
        if !self.is_right || self.is_over || self.unanswered() == UNANSWERED_MAX || self.made.len() == 200 {
            return;
        }
        let (client, value) = (self.client.clone(), self.made.len());
        let handle = self.runtime.spawn(move || client.call::<_, Value>("echo", (value,)));
        let id = self.next_request(value);
        assert!(id > 0 && self.made.iter().all(|made| made.id != id), "the id {id} is used again");
        self.made.push(Made { handle, id, answered: None, is_cancelled: false });
    }

    /// The id of the call with this value. Refusals of our own requests may come before it.
    fn next_request(&mut self, value: usize) -> u32 {
        loop {
            let message = self.peer.receive();
            let parts = message.as_array().expect("a message is an array");
            let id = parts[1].as_u64().and_then(|id| u32::try_from(id).ok());
            match (parts[0].as_u64(), id) {
                (Some(0), Some(id)) if parts[2] == "$/hello".into() => self.peer.send(&answer(id, self.hello.clone())),
                (Some(0), Some(id)) => {
                    assert_eq!(parts[3], Value::Array(vec![value.into()]));
                    return id;
                }
                (Some(1), Some(_)) => assert!(!parts[2].is_nil() || parts[3].is_map(), "{message}: nobody serves here"),
                _ => assert!(parts[0] == 2.into() && parts[1].as_str().is_some_and(|name| name.starts_with("$/"))),
            }
        }
    }

    fn reply(&mut self, which: usize, outcome: Result<usize, usize>) {
        let Some(id) = self.choose(which, outcome) else { return };
        let (error, result) = match outcome {
            Ok(value) => (Value::Nil, value.into()),
            Err(code) => (Value::Array(vec![code.into(), "text".into()]), Value::Nil),
        };
        self.unsent.extend(bytes_of(&Value::Array(vec![1.into(), id.into(), error, result])));
    }

    fn reply_in_long_forms(&mut self, which: usize, value: usize) {
        let Some(id) = self.choose(which, Ok(value)) else { return };
        self.unsent.extend([0xdc, 0, 4, 0xd1, 0, 1, 0xd3, 0, 0, 0, 0]);
        self.unsent.extend(id.to_be_bytes());
        self.unsent.extend([0xc0, 0xce, 0, 0, 0, value as u8]);
    }

    /// The id of a call that is to be answered. A second answer is one too many, and so may be one to a cancelled call.
    fn choose(&mut self, which: usize, outcome: Result<usize, usize>) -> Option<u32> {
        let count = self.made.len();
        let made = self.made.get_mut(which % count.max(1))?;
        let id = made.id;
        let is_first = made.answered.is_none();
        if is_first {
            made.answered = Some(outcome);
        }
        if !is_first || made.is_cancelled {
            self.count_unknown();
        }
        Some(id)
    }

    fn answer_nobody(&mut self, id: usize) {
        let id = (id as u32) << 24 | 0x00ff_ffff;
        self.unsent.extend(answer(id, 1));
        self.count_unknown();
    }

    fn count_unknown(&mut self) {
        self.unknown += 1;
        self.is_right &= self.unknown < UNKNOWN_MAX;
    }

    fn cancel(&mut self, which: usize) {
        let count = self.made.len();
        if let Some(made) = self.made.get_mut(which % count.max(1)) {
            made.handle.cancel();
            made.is_cancelled = true;
        }
    }

    fn do_wrong(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        self.is_right = false;
        change(&mut self.unsent);
    }

    fn flush(&mut self) {
        self.is_over |= self.peer.0.write_all(&self.unsent).is_err();
        assert!(!self.is_over || !self.is_right, "a peer that did nothing wrong was closed");
        self.unsent.clear();
    }

    /// Ends the connection: all calls end.
    fn finish(mut self) {
        self.flush();
        let _ = self.peer.0.shutdown(Shutdown::Write);
        self.peer.expect_end_some_time();
        for made in self.made {
            let outcome = made.handle.join().expect("nobody panics");
            let is_sound = match (&outcome, &made.answered) {
                (Err(CallError::Cancelled), _) => made.is_cancelled,
                (Ok(value), Some(Ok(sent))) => *value == (*sent).into() || !self.is_right,
                (Err(CallError::Remote(error)), Some(Err(code))) => {
                    error.code() == Some(*code as i64) || !self.is_right
                }
                (Err(CallError::Disconnected { maybe_executed: true, .. }), None) => true,
                _ => !self.is_right,
            };
            assert!(is_sound, "{outcome:?} after {:?}", made.answered);
        }
        soon("the connection is given up", || self.client.connections() == 0);
    }
}
