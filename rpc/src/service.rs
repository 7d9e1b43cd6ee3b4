//! Method names to typed handlers: bytes in, bytes out.
//!
//! A handler is an ordinary function of up to eight arguments, each its own decoded value:
//!
//! ```
//! # use dhaga_rpc::Methods;
//! let methods = Methods::new()
//!     .method("add", |a: i64, b: i64| Ok(a + b))
//!     .method("greet", |name: Option<String>| Ok(format!("hello {}", name.unwrap_or_default())))
//!     .method("read", |path: String| Ok(std::fs::read_to_string(path)?));
//! ```
//!
//! Peers may be older or newer than we: a missing argument reads as nil, so an `Option` is `None`; surplus ones are ignored.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::description::{DescribedService, Description, ServiceDescription};
use crate::encode::{self, EncodeError};
use crate::error::{ErrorProfile, Refusal};
use crate::error_form;
use crate::extension;
use crate::id_hash::IdHash;
use crate::limits::Limits;
use crate::message::{self, Decoder, NIL};

/// Characters kept of what a decoder says about an argument: it may quote the peer's own megabytes.
const REASON_CHARS_MAX: usize = 200;

/// The methods of a server.
///
/// The map hashes with SipHash and its keys are ours, so a peer can neither flood it nor learn its order.
#[derive(Clone, Default)]
pub struct Methods {
    by_name: HashMap<Name, Entry, IdHash>,
    services: Vec<&'static ServiceDescription>,
}

/// A method's name, to be found as text or as bytes that nobody has looked at.
#[derive(Clone, PartialEq, Eq)]
struct Name(Box<str>);

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_bytes().hash(state);
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[derive(Clone)]
struct Entry {
    handler: Arc<Handler>,
    /// From 0, in the order in which the methods came.
    number: u32,
}

/// One method: decodes the arguments, runs the function, encodes its result.
pub struct Handler {
    name: Box<str>,
    run: Box<Run>,
    is_inline: bool,
}

type Run = dyn Fn(Call<'_, '_>) -> Result<(), HandlerError> + Send + Sync;

/// Where answers are put.
///
/// The buffer is lent only while an answer is encoded, after the function of the handler has returned, so that many handlers
/// may wait at a time while they share the buffer of their connection.
pub trait Outgoing {
    /// Calls `append` once with the buffer, or not at all when the connection is gone.
    fn lend(&mut self, append: &mut dyn FnMut(&mut Vec<u8>));
}

impl Outgoing for Vec<u8> {
    fn lend(&mut self, append: &mut dyn FnMut(&mut Vec<u8>)) {
        append(self);
    }
}

impl Methods {
    /// No methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the function `f` as `name`. It takes up to eight arguments and returns `Result<R, HandlerError>`; `?` turns any
    /// std error into a [`HandlerError`].
    ///
    /// # Panics
    ///
    /// When `name` is taken already, or begins with `$/`, which is reserved for the protocol.
    pub fn method<Args, F>(self, name: &str, f: F) -> Self
    where
        F: TypedHandler<Args>,
    {
        self.add(name, Box::new(move |call| f.run(call)), false)
    }

    /// As [`method`](Methods::method), for a function that promises never to wait: it runs in the dhaga that reads the
    /// connection, and no other one is made ready to go on with the requests behind it. That saves a spawn for each read
    /// that brings several requests, and nothing where requests come one at a time. At a server with layers it is as any
    /// other, since these may wait.
    ///
    /// If `f` waits nevertheless, requests behind it on the connection may wait with it. Builds with debug assertions are
    /// stricter: there a wait in `f` panics and names itself, as under [`no_suspend`](dhaga::no_suspend); the caller gets the
    /// answer that the handler panicked.
    ///
    /// # Panics
    ///
    /// As [`method`](Methods::method).
    pub fn method_inline<Args, F>(self, name: &str, f: F) -> Self
    where
        F: TypedHandler<Args>,
    {
        let run = move |call: Call<'_, '_>| {
            let _promise = cfg!(debug_assertions).then(dhaga::no_suspend);
            f.run(call)
        };
        self.add(name, Box::new(run), true)
    }

    /// Adds the function `f` as `name`, which gets the encoded array of arguments and appends one encoded value as its
    /// result: for values of any type, and for relays.
    ///
    /// # Panics
    ///
    /// As [`method`](Methods::method).
    pub fn method_raw<F>(self, name: &str, f: F) -> Self
    where
        F: Fn(&[u8], &mut Vec<u8>) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        let run = move |call: Call<'_, '_>| {
            let mut result = Vec::new();
            f(call.params, &mut result)?;
            call.answer(|out, limits, id| encode::encode_response_ok_raw(out, limits, id, &result))
        };
        self.add(name, Box::new(run), false)
    }

    /// Adds all methods of `other`.
    ///
    /// # Panics
    ///
    /// When both have a method of the same name.
    pub fn merge(mut self, other: Self) -> Self {
        for (name, Entry { handler, .. }) in other.by_name {
            self.insert(&name.0, handler);
        }
        self.services.extend(other.services);
        self
    }

    /// The handler of a method, if there is one.
    #[inline]
    pub fn lookup(&self, name: &str) -> Option<&Arc<Handler>> {
        self.by_name.get(name.as_bytes()).map(|entry| &entry.handler)
    }

    /// As [`lookup`](Methods::lookup), with a number: those of all methods are counted from 0 without a gap.
    #[inline]
    pub(crate) fn lookup_numbered(&self, name: &[u8]) -> Option<(&Arc<Handler>, u32)> {
        self.by_name.get(name).map(|entry| (&entry.handler, entry.number))
    }

    /// The handlers, by number.
    pub(crate) fn handlers_numbered(&self) -> Box<[Arc<Handler>]> {
        let mut entries: Vec<_> = self.by_name.values().collect();
        entries.sort_unstable_by_key(|entry| entry.number);
        entries.into_iter().map(|entry| entry.handler.clone()).collect()
    }

    /// The names, by number.
    pub(crate) fn names_numbered(&self) -> Vec<&str> {
        let mut names = vec![""; self.by_name.len()];
        self.by_name.iter().for_each(|(name, entry)| names[entry.number as usize] = &name.0);
        names
    }

    /// Notes what a trait says of methods that are there.
    pub(crate) fn described(mut self, service: &'static ServiceDescription) -> Self {
        self.services.push(service);
        self
    }

    /// What is to be known of the methods, except for those of the protocol.
    pub(crate) fn describe(&self) -> Description {
        let mut methods: Vec<_> =
            self.names().filter(|name| !name.starts_with(extension::PREFIX)).map(str::to_owned).collect();
        methods.sort_unstable();
        Description { services: self.services.iter().copied().map(DescribedService::from).collect(), methods }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The names, in no special order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(|name| &*name.0)
    }

    fn add(mut self, name: &str, run: Box<Run>, is_inline: bool) -> Self {
        assert!(!name.starts_with(extension::PREFIX), "the method {name:?} has a name reserved for the protocol");
        self.insert(name, Arc::new(Handler { name: name.into(), run, is_inline }));
        self
    }

    /// Adds a method of the protocol.
    pub(crate) fn protocol<Args, F>(mut self, name: &str, f: F) -> Self
    where
        F: TypedHandler<Args>,
    {
        debug_assert!(name.starts_with(extension::PREFIX));
        let run = Box::new(move |call: Call<'_, '_>| f.run(call));
        self.insert(name, Arc::new(Handler { name: name.into(), run, is_inline: true }));
        self
    }

    fn insert(&mut self, name: &str, handler: Arc<Handler>) {
        let number = u32::try_from(self.by_name.len()).expect("a program has fewer methods");
        let before = self.by_name.insert(Name(name.into()), Entry { handler, number });
        assert!(before.is_none(), "the method {name:?} is registered twice");
    }
}

impl Handler {
    /// Under which it was registered.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its function promises never to wait.
    #[inline]
    pub fn is_inline(&self) -> bool {
        self.is_inline
    }

    /// Runs the call and appends the whole answer frame, an error answer if the handler failed. Suspends where the function
    /// of the handler does. A panic passes through, and nothing is appended.
    pub fn respond(&self, limits: &Limits, errors: ErrorProfile, id: u32, params: &[u8], out: &mut dyn Outgoing) {
        if let Err(error) = self.answer(limits, id, params, out) {
            out.lend(&mut |out| error.respond(limits, errors, id, out));
        }
    }

    /// As [`respond`](Handler::respond); if the handler fails, nothing is appended, and the caller answers.
    ///
    /// # Errors
    ///
    /// What the answer shall say.
    pub(crate) fn answer(
        &self,
        limits: &Limits,
        id: u32,
        params: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), HandlerError> {
        (self.run)(Call { params, limits, reply: Some(Reply { id, out }) })
    }

    /// Runs the call of a notification, and drops its result.
    ///
    /// # Errors
    ///
    /// What would have been the error answer, for the log.
    pub fn notify(&self, limits: &Limits, params: &[u8]) -> Result<(), HandlerError> {
        (self.run)(Call { params, limits, reply: None })
    }
}

/// Appends the answer of a request that met no handler or whose handler gave no answer.
pub fn respond_refusal(limits: &Limits, errors: ErrorProfile, id: u32, refusal: Refusal, out: &mut Vec<u8>) {
    HandlerError::refusal(refusal).respond(limits, errors, id, out);
}

/// One run of a handler.
#[doc(hidden)]
pub struct Call<'a, 'o> {
    params: &'a [u8],
    limits: &'a Limits,
    reply: Option<Reply<'a, 'o>>,
}

/// Whom to answer; nobody for a notification.
struct Reply<'a, 'o> {
    id: u32,
    out: &'a mut (dyn Outgoing + 'o),
}

impl<'a> Call<'a, '_> {
    fn arguments(&self) -> Result<Arguments<'a>, HandlerError> {
        Arguments::new(self.params, self.limits)
    }

    fn answer(
        self,
        encode: impl Fn(&mut Vec<u8>, &Limits, u32) -> Result<(), EncodeError>,
    ) -> Result<(), HandlerError> {
        let Some(Reply { id, out }) = self.reply else {
            return Ok(());
        };
        let mut outcome = Ok(());
        out.lend(&mut |out| outcome = encode(out, self.limits, id));
        outcome.map_err(|error| HandlerError::refusal(Refusal::BadResult { reason: error.to_string() }))
    }
}

/// Decodes params one after the other.
struct Arguments<'a> {
    decoder: Decoder<'a>,
    limits: &'a Limits,
    index: usize,
    left: u32,
}

impl<'a> Arguments<'a> {
    fn new(params: &'a [u8], limits: &'a Limits) -> Result<Self, HandlerError> {
        let no_array = || HandlerError::refusal(Refusal::BadRequest { reason: "params must be an array".to_owned() });
        let (left, header_bytes) = message::array_header(params).ok_or_else(no_array)?;
        Ok(Self { decoder: message::decoder(&params[header_bytes..], limits), limits, index: 0, left })
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T, HandlerError> {
        let index = self.index;
        self.index += 1;
        let reason = if self.left == 0 {
            match message::decode(&[NIL], self.limits) {
                Ok(value) => return Ok(value),
                Err(_) => "it is missing".to_owned(),
            }
        } else {
            self.left -= 1;
            match T::deserialize(&mut self.decoder) {
                Ok(value) => return Ok(value),
                Err(error) => error.to_string().chars().take(REASON_CHARS_MAX).collect(),
            }
        };
        Err(HandlerError::refusal(Refusal::BadArgument { index, reason }))
    }
}

/// A function that can be a handler: `Fn(A, B, …) -> Result<R, HandlerError>` of up to eight arguments that can be
/// deserialised and a result that can be serialised. `Args` only keeps the implementations apart.
pub trait TypedHandler<Args>: Send + Sync + 'static {
    #[doc(hidden)]
    fn run(&self, call: Call<'_, '_>) -> Result<(), HandlerError>;
}

macro_rules! typed_handler {
    ($($argument:ident)*) => {
        impl<F, R, $($argument),*> TypedHandler<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Result<R, HandlerError> + Send + Sync + 'static,
            R: Serialize,
            $($argument: DeserializeOwned,)*
        {
            #[allow(non_snake_case, unused_mut, unused_variables)]
            fn run(&self, call: Call<'_, '_>) -> Result<(), HandlerError> {
                let mut arguments = call.arguments()?;
                $(let $argument = arguments.next::<$argument>()?;)*
                let result = self($($argument),*)?;
                call.answer(|out, limits, id| encode::encode_response_ok(out, limits, id, &result))
            }
        }
    };
}

typed_handler!();
typed_handler!(A);
typed_handler!(A B);
typed_handler!(A B C);
typed_handler!(A B C D);
typed_handler!(A B C D E);
typed_handler!(A B C D E G);
typed_handler!(A B C D E G H);
typed_handler!(A B C D E G H I);

/// The error that a handler answers with: a text, or a value of the application.
///
/// Any std error becomes its text, with its causes, by `?`. It is no std error itself, since a type cannot be converted
/// both from every error and from itself.
pub struct HandlerError {
    answer: Answer,
}

enum Answer {
    Text(String),
    Value(Vec<u8>),
    /// The library's own.
    Refusal(Refusal),
}

impl HandlerError {
    /// An error with a text: `Err(HandlerError::new("disk full"))`.
    pub fn new(text: impl fmt::Display) -> Self {
        Self { answer: Answer::Text(text.to_string()) }
    }

    /// An error with a value of the application, which the caller can decode again: `HandlerError::value(&(7, "quota"))`.
    /// A value that cannot be serialised becomes a text that says so.
    pub fn value<V: Serialize + ?Sized>(value: &V) -> Self {
        match rmp_serde::to_vec_named(value) {
            Ok(raw) => Self { answer: Answer::Value(raw) },
            Err(error) => Self::new(format_args!("the handler failed, and its error cannot be serialised: {error}")),
        }
    }

    /// A refusal of one who may not call this: see [`CallError::Refused`](crate::CallError::Refused). `reason` is told to the caller.
    pub fn denied(reason: impl fmt::Display) -> Self {
        Self::refusal(Refusal::Denied { reason: reason.to_string() })
    }

    /// Of what kind it is: a number in [`ERROR_KINDS`].
    pub(crate) fn kind(&self) -> u8 {
        match &self.answer {
            Answer::Text(_) | Answer::Value(_) => 0,
            Answer::Refusal(refusal) => kind_of(refusal),
        }
    }

    /// What the library says in the handler's place.
    pub(crate) fn refusal(refusal: Refusal) -> Self {
        Self { answer: Answer::Refusal(refusal) }
    }

    /// Appends the error answer. When the error itself cannot be sent, another says why.
    pub(crate) fn respond(&self, limits: &Limits, errors: ErrorProfile, id: u32, out: &mut Vec<u8>) {
        let sent = match &self.answer {
            Answer::Text(text) => error_form::respond_text(out, limits, errors, id, text),
            Answer::Value(raw) => error_form::respond_value(out, limits, errors, id, raw),
            Answer::Refusal(refusal) => error_form::respond_refusal(out, limits, errors, id, refusal),
        };
        if let Err(error) = sent {
            let refusal = Refusal::BadResult { reason: error.to_string() };
            if let Err(error) = error_form::respond_refusal(out, limits, errors, id, &refusal) {
                log::error!("request {id} stays without an answer: not even its error fits into a frame: {error}");
            }
        }
    }
}

/// Names of the kinds of errors that a server counts.
pub(crate) const ERROR_KINDS: &[&str] = &[
    "application",
    "unknown_method",
    "invalid_request",
    "invalid_arguments",
    "panicked",
    "overloaded",
    "unsendable",
    "shutting_down",
    "denied",
    "cancelled",
    "too_late",
];

/// The number of a refusal's kind.
pub(crate) fn kind_of(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::UnknownMethod { .. } => 1,
        Refusal::BadRequest { .. } => 2,
        Refusal::BadArgument { .. } => 3,
        Refusal::HandlerPanicked => 4,
        Refusal::TooManyInFlight { .. } => 5,
        Refusal::BadResult { .. } => 6,
        Refusal::ShuttingDown => 7,
        Refusal::Denied { .. } => 8,
        Refusal::Cancelled => 9,
        Refusal::TooLate => 10,
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self { answer: Answer::Text(text) }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Answer::Text(text) => f.write_str(text),
            Answer::Refusal(refusal) => refusal.fmt(f),
            Answer::Value(raw) => crate::error::RemoteError::from_raw(raw.as_slice()).fmt(f),
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerError({self})")
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

#[cfg(test)]
mod tests {
    use rmpv::Value;
    use serde::Deserialize;

    use super::*;
    use crate::encode::encode_request;
    use crate::error::RemoteError;
    use crate::message::{Message, decode};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Meta {
        size: u64,
        name: Option<String>,
    }

    fn divide(a: i64, b: i64) -> Result<i64, HandlerError> {
        a.checked_div(b).ok_or_else(|| HandlerError::value(&(22, "division by zero")))
    }

    fn methods() -> Methods {
        Methods::new()
            .method("add", |a: i64, b: i64| Ok(a + b))
            .method("divide", divide)
            .method("nothing", || Ok(()))
            .method("echo", |value: Value| Ok(value))
            .method("greet", |name: String, title: Option<String>| Ok(format!("{}{name}", title.unwrap_or_default())))
            .method("meta", |meta: Meta| Ok(Meta { size: meta.size + 1, ..meta }))
            .method("number", |text: String| Ok(text.parse::<u32>()?))
            .method("large", |bytes: usize| Ok("x".repeat(bytes)))
            .method("fail_large", |bytes: usize| Err::<(), _>(HandlerError::new("x".repeat(bytes))))
            .method("fail_nil", || Err::<(), _>(HandlerError::value(&())))
            .method("eight", |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| Ok([a, b, c, d, e, f, g, h]))
            .method_raw("echo_raw", |params, out| {
                out.extend(params);
                Ok(())
            })
            .method_raw("broken", |_, out| {
                out.push(0x92);
                Ok(())
            })
    }

    fn limits() -> Limits {
        Limits { frame_bytes_out_max: 1000, ..Limits::default() }
    }

    /// Sends the call through encoders and parser both ways.
    fn call<P: Serialize>(method: &str, params: &P) -> Result<Value, String> {
        let mut request = Vec::new();
        encode_request(&mut request, &limits(), 9, method, params).expect("the params fit");
        let Ok(Message::Request { id: 9, method, params }) = Message::parse(&request, &limits()) else {
            panic!("not a request: {request:02x?}");
        };
        let mut out = b"before".to_vec();
        match methods().lookup(method) {
            Some(handler) => handler.respond(&limits(), ErrorProfile::Text, 9, params, &mut out),
            None => {
                let refusal = Refusal::UnknownMethod { method: method.to_owned() };
                respond_refusal(&limits(), ErrorProfile::Text, 9, refusal, &mut out);
            }
        }
        match Message::parse(out.strip_prefix(b"before").expect("the buffer is only appended to"), &limits()) {
            Ok(Message::Response { id: 9, outcome: Ok(result) }) => Ok(decode(result, &limits()).expect("one value")),
            Ok(Message::Response { id: 9, outcome: Err(error) }) => Err(RemoteError::from_raw(error).to_string()),
            other => panic!("not a response: {other:?}"),
        }
    }

    fn check<P: Serialize>(method: &str, params: P, expected: impl Into<Value>) {
        assert_eq!(call(method, &params), Ok(expected.into()), "{method}");
    }

    fn check_error<P: Serialize>(method: &str, params: P, expected: &str) {
        assert_eq!(call(method, &params), Err(expected.to_owned()), "{method}");
    }

    #[test]
    fn typed_functions_are_called_by_name() {
        check("add", (1, 2), 3);
        check("add", (-5_i8, u32::MAX), 4_294_967_290_u32);
        check("nothing", (), Value::Nil);
        check("eight", (1, 2, 3, 4, 5, 6, 7, 8), Value::Array((1..9).map(Value::from).collect()));
        check_error("divide", (1, 0), "division by zero (code 22)");
        check_error("number", ("x",), "invalid digit found in string");
    }

    #[test]
    fn missing_arguments_are_nil_and_surplus_ones_ignored() {
        check("greet", ("A", "Dr "), "Dr A");
        check("greet", ("A", ()), "A");
        check("greet", ("A",), "A");
        check("greet", ("A", "Dr ", 3, [4]), "Dr A");
        check("nothing", (1, "x"), Value::Nil);
    }

    #[test]
    fn wrong_arguments_are_named() {
        check_error("add", (1,), "argument 1 does not fit the method: it is missing");
        check_error("greet", (), "argument 0 does not fit the method: it is missing");
        check_error("add", (1, "x"), "argument 1 does not fit the method: wrong msgpack marker FixStr(1)");
        check_error("add", ((), 1), "argument 0 does not fit the method: invalid type: unit value, expected i64");
    }

    #[test]
    fn a_refusal_does_not_quote_the_peer_at_length() {
        #[derive(Deserialize)]
        enum Color {
            Red,
        }
        let paint = Methods::new().method("paint", |color: Color| Ok(matches!(color, Color::Red)));
        let params = rmp_serde::to_vec(&("x".repeat(1 << 20),)).expect("a text encodes");
        let handler = paint.lookup("paint").expect("it is registered");
        let error = handler.notify(&limits(), &params).expect_err("it is no color").to_string();
        assert!(error.contains("unknown variant") && error.len() < 300, "{} bytes", error.len());
    }

    #[test]
    fn structs_travel_by_name_and_read_in_any_order() {
        let meta = |size: u64| Value::Map(vec![("size".into(), size.into()), ("name".into(), Value::Nil)]);
        check("meta", (Meta { size: 1, name: None },), meta(2));
        let newer = Value::Map(vec![("added".into(), Value::Array(vec![])), ("size".into(), 1.into())]);
        check("meta", (newer,), meta(2));
    }

    #[test]
    fn unknown_methods_are_refused_by_name() {
        check_error("sub", (1, 2), "this server has no method \"sub\"");
    }

    #[test]
    fn answers_that_cannot_be_sent_become_errors() {
        let too_large = "the handler's answer cannot be sent: the message is larger than the 1000 bytes of a frame \
                         (Limits::frame_bytes_out_max)";
        check("large", (10,), "xxxxxxxxxx");
        check_error("large", (2000,), too_large);
        check_error("fail_large", (2000,), too_large);
        check_error("fail_nil", (), "the handler failed and did not say why");
        let broken = "the handler's answer cannot be sent: what was written is not one whole MessagePack value";
        check_error("broken", (), broken);
    }

    #[test]
    fn any_value_comes_back_as_it_went() {
        let values = [
            Value::Nil,
            true.into(),
            u64::MAX.into(),
            i64::MIN.into(),
            Value::F32(1.5),
            Value::F64(-0.0),
            "text é".into(),
            Value::Binary(vec![0, 0xff]),
            Value::Ext(0, vec![7]),
            Value::Ext(-1, vec![1, 2, 3, 4]),
            Value::Ext(5, vec![1, 2, 3]),
            Value::Ext(5, vec![]),
            Value::Array(vec![Value::Nil, Value::Ext(1, vec![0xcd, 1, 0])]),
            Value::Map(vec![(Value::Nil, 1.into()), (Value::Array(vec![]), Value::Map(vec![])), (1.into(), 2.into())]),
        ];
        for value in values {
            check("echo", (&value,), value.clone());
            check("echo_raw", (&value,), Value::Array(vec![value.clone()]));
        }
    }

    #[test]
    fn a_text_that_is_not_utf8_never_becomes_a_string() {
        let limits = limits();
        let raw = [0x91, 0xa1, 0xff];
        let mut out = Vec::new();
        let number = methods().lookup("number").expect("it is registered").clone();
        number.respond(&limits, ErrorProfile::Text, 1, &raw, &mut out);
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("argument 0 does not fit the method"), "{text}");
        let value: Value = decode(&raw[1..], &limits).expect("the library reads it as bin");
        assert_eq!(value, Value::Binary(vec![0xff]));
    }

    #[test]
    fn notifications_answer_nobody_and_report_errors() {
        let methods = methods();
        let notify = |method: &str, params: &[u8]| {
            methods
                .lookup(method)
                .expect("it is registered")
                .notify(&limits(), params)
                .map_err(|error| error.to_string())
        };
        assert_eq!(notify("add", &[0x92, 1, 2]), Ok(()));
        assert!(notify("add", &[0x90]).is_err_and(|error| error.contains("argument 0")));
        assert!(notify("add", &[0x05]).is_err_and(|error| error.contains("params must be an array")));
        assert!(notify("add", &[0x92, 1]).is_err_and(|error| error.contains("argument 1")));
    }

    #[test]
    #[should_panic(expected = "registered twice")]
    fn a_name_is_given_once() {
        let _ = methods().method("add", || Ok(()));
    }

    #[test]
    #[should_panic(expected = "reserved for the protocol")]
    fn protocol_names_are_reserved() {
        let _ = methods().method("$/hello", || Ok(()));
    }
}
