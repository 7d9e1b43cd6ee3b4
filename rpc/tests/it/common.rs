//! What the tests of every topic share: deadlines, gates, a server to talk to, and peers that speak bytes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic;
use std::process::{Command, Output, abort};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::{Condvar, Mutex};
use dhaga_rpc::{CallError, Client, ClientBuilder, Extensions, HandlerError, Limits, Server, ServerBuilder, Value};
use serde_bytes::ByteBuf;

/// More than any test takes on a machine that is busy with others.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long a peer of ours waits for what must come. Shorter than `DEADLINE`, so that the failure says where.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a body on a thread of its own, and fails when it hangs.
pub fn within_deadline(body: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let body = thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    if is_done.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
        panic!("the body is still running after {DEADLINE:?}");
    }
    body.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
}

/// Looks at a gauge until it shows what it must.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "still not so after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Lets the panics that tests cause on purpose pass without a word.
pub const ON_PURPOSE: &str = "on purpose";

pub fn hide_panics_on_purpose() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            if text != Some(ON_PURPOSE) {
                usual(info);
            }
        }));
    });
}

/// Holds those who wait until somebody lets them pass, and counts who came.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    passes: Mutex<usize>,
    has_changed: Condvar,
    arrived: AtomicUsize,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
}

impl Gate {
    pub fn wait(&self) {
        let gate = &*self.0;
        gate.arrived.fetch_add(1, Ordering::SeqCst);
        let _inside = Inside::enter(gate);
        let mut passes = gate.passes.lock().expect("nobody panics with it");
        while *passes == 0 {
            passes = gate.has_changed.wait(passes).expect("nobody panics with it");
        }
        *passes = passes.saturating_sub(1);
    }

    /// Lets `count` more of those who wait, or will, pass.
    pub fn admit(&self, count: usize) {
        let mut passes = self.0.passes.lock().expect("nobody panics with it");
        *passes = passes.saturating_add(count);
        self.0.has_changed.notify_all();
    }

    pub fn open(&self) {
        self.admit(1 << 40);
    }

    /// How many ever came.
    pub fn arrived(&self) -> usize {
        self.0.arrived.load(Ordering::SeqCst)
    }

    /// How many are held now.
    pub fn inside(&self) -> usize {
        self.0.inside.load(Ordering::SeqCst)
    }

    /// The most that were ever held at once.
    pub fn most_inside(&self) -> usize {
        self.0.most_inside.load(Ordering::SeqCst)
    }
}

struct Inside<'a>(&'a GateState);

impl<'a> Inside<'a> {
    fn enter(gate: &'a GateState) -> Self {
        let now = gate.inside.fetch_add(1, Ordering::SeqCst) + 1;
        gate.most_inside.fetch_max(now, Ordering::SeqCst);
        Self(gate)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The methods that the tests call. `hold` waits at the gate.
pub fn builder(gate: &Gate) -> ServerBuilder {
    hide_panics_on_purpose();
    let gate = gate.clone();
    Server::builder()
        .method("add", |a: i64, b: i64| Ok(a + b))
        .method("echo", |value: Value| Ok(value))
        .method("len", |bytes: ByteBuf| Ok(bytes.len()))
        .method("blob", |len: usize| Ok(ByteBuf::from(vec![7; len])))
        .method("fail", |text: String| Err::<(), _>(HandlerError::new(text)))
        .method("sleep", |millis: u64, value: Value| {
            dhaga::sleep(Duration::from_millis(millis));
            Ok(value)
        })
        .method("panic", || -> Result<(), HandlerError> { panic!("{}", ON_PURPOSE) })
        .method("hold", move |value: Value| {
            gate.wait();
            Ok(value)
        })
}

pub fn serve_within(limits: Limits, gate: &Gate) -> Server {
    builder(gate).limits(limits).bind("127.0.0.1:0").expect("the kernel has a port")
}

pub fn serve(gate: &Gate) -> Server {
    serve_within(Limits::default(), gate)
}

pub fn connect(server: &Server) -> Client {
    Client::connect(server.local_addr()).expect("the server listens")
}

/// A client that sends plain MessagePack-RPC only: for servers of another make that expect the calls and nothing else.
pub fn plain() -> ClientBuilder {
    Client::builder().extensions(Extensions::Plain)
}

pub fn add(client: &Client, a: i64, b: i64) -> Result<i64, CallError> {
    client.call("add", (a, b))
}

/// The bytes of a request.
pub fn request(id: u32, method: &str, params: Vec<Value>) -> Vec<u8> {
    bytes_of(&Value::Array(vec![0.into(), id.into(), method.into(), Value::Array(params)]))
}

pub fn notification(method: &str, params: Vec<Value>) -> Vec<u8> {
    bytes_of(&Value::Array(vec![2.into(), method.into(), Value::Array(params)]))
}

pub fn answer(id: u32, result: impl Into<Value>) -> Vec<u8> {
    bytes_of(&Value::Array(vec![1.into(), id.into(), Value::Nil, result.into()]))
}

pub fn bytes_of(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).expect("a vector takes everything");
    bytes
}

/// A client or server of another make: a plain socket that speaks bytes.
pub struct Peer(pub TcpStream);

impl Peer {
    pub fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("somebody listens"))
    }

    /// Says that it knows the extensions that we know.
    pub fn extended(address: SocketAddr) -> Self {
        let mut peer = Self::connect(address);
        let caps = ["meta", "cancel", "goaway", "errors"].map(Value::from).to_vec();
        let hello = Value::Map(vec![("v".into(), 1.into()), ("caps".into(), Value::Array(caps))]);
        peer.ask(0, "$/hello", vec![hello]).expect("our server knows it");
        peer
    }

    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("it is not zero");
        stream.set_nodelay(true).expect("it is TCP");
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the other side takes what it is sent");
    }

    /// Sends what the other side may be too disgusted to take.
    pub fn send_to_whom_it_may_concern(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub fn finish(&mut self) {
        self.0.shutdown(Shutdown::Write).expect("the connection is open");
    }

    pub fn finish_if_open(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    pub fn receive(&mut self) -> Value {
        rmpv::decode::read_value(&mut self.0).expect("a whole message comes in time")
    }

    /// As many bytes as asked for.
    pub fn receive_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).expect("so many bytes come in time");
        bytes
    }

    /// The id of the next answer and what it says.
    pub fn receive_answer(&mut self) -> (u32, Result<Value, String>) {
        let message = self.receive();
        let parts = message.as_array().unwrap_or_else(|| panic!("{message} is no message"));
        assert!(parts.len() == 4 && parts[0] == 1.into(), "{message} is no answer");
        let id = parts[1].as_u64().and_then(|id| u32::try_from(id).ok()).expect("an id is a number");
        let outcome = match &parts[2] {
            Value::Nil => Ok(parts[3].clone()),
            error => Err(error.as_str().map_or_else(|| error.to_string(), str::to_owned)),
        };
        (id, outcome)
    }

    pub fn ask(&mut self, id: u32, method: &str, params: Vec<Value>) -> Result<Value, String> {
        self.send(&request(id, method, params));
        let (answered, outcome) = self.receive_answer();
        assert_eq!(answered, id);
        outcome
    }

    /// As [`ask`](Self::ask); nothing if the connection ends first.
    pub fn try_ask(&mut self, id: u32, method: &str, params: Vec<Value>) -> Option<Value> {
        self.send_to_whom_it_may_concern(&request(id, method, params));
        rmpv::decode::read_value(&mut self.0).ok()?.as_array()?.last().cloned()
    }

    /// Expects that the other side ends the connection, in good order or by a reset, and says nothing more.
    pub fn expect_end(&mut self) {
        let mut rest = [0; 64];
        match self.0.read(&mut rest) {
            Ok(0) => {}
            Ok(count) => panic!("there came {:x?} instead of the end", &rest[..count]),
            Err(error) if is_broken(&error) => {}
            Err(error) => panic!("the connection was not ended: {error}"),
        }
    }

    /// Expects that the peer closes, whatever it says before.
    pub fn expect_end_some_time(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_broken(&error) => return,
                Err(error) => panic!("the connection was not ended: {error}"),
            }
        }
    }
}

fn is_broken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
    )
}

/// Another connection, in the middle of a request: it must not notice what happens to its neighbours.
pub struct Bystander {
    peer: Peer,
    rest: Vec<u8>,
}

impl Bystander {
    pub fn at(server: &Server) -> Self {
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        let mut bytes = request(2, "add", vec![20.into(), 22.into()]);
        let rest = bytes.split_off(bytes.len() / 2);
        peer.send(&bytes);
        Self { peer, rest }
    }

    pub fn has_not_noticed(mut self) {
        self.peer.send(&self.rest);
        assert_eq!(self.peer.receive_answer(), (2, Ok(42.into())));
    }
}

/// A server of another make: one thread that does as `talk` says with each connection, one after the other.
pub fn foreign_server(connections: usize, mut talk: impl FnMut(Peer) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel has a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for _ in 0..connections {
            match listener.accept() {
                Ok((stream, _)) => talk(Peer::new(stream)),
                Err(_) => return,
            }
        }
    });
    address
}

/// Id and method of the next request that a foreign server gets.
pub fn receive_request(peer: &mut Peer) -> (u32, String) {
    let message = peer.receive();
    let parts = message.as_array().expect("a request is an array");
    assert!(parts.len() == 4 && parts[0] == 0.into(), "{message} is no request");
    let id = parts[1].as_u64().and_then(|id| u32::try_from(id).ok()).expect("an id is a number");
    (id, parts[2].as_str().expect("a method is a text").to_owned())
}

/// Bytes of memory that the process has in use.
pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: usize = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("its second field");
    pages * 4096
}

/// The next of a sequence that looks random.
pub fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Set in a child, to the name of its test.
const CHILD: &str = "DHAGA_TEST_CHILD";

/// Runs `body` in a process of its own, with as many descriptors as given, and expects it to succeed there.
pub fn in_child(test: &str, descriptors: usize, body: impl FnOnce()) {
    in_limited_child(test, &format!("ulimit -n {descriptors}"), body);
}

/// As [`in_child`], with what a shell may be told of limits.
pub fn in_limited_child(test: &str, limits: &str, body: impl FnOnce()) {
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        thread::spawn(|| {
            thread::sleep(DEADLINE);
            eprintln!("the child is still running after {DEADLINE:?}");
            abort();
        });
        return body();
    }
    let binary = std::env::current_exe().expect("the test binary exists");
    let command = format!("{limits} && exec \"$0\" \"$@\"");
    let output: Output = Command::new("sh")
        .args(["-c", &command])
        .arg(binary)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .expect("the test binary can be run again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// The name of a test, for its child.
macro_rules! name_of {
    ($test:ident) => {
        concat!(module_path!(), "::", stringify!($test)).split_once("::").expect("a path begins with the crate").1
    };
}
pub(crate) use name_of;

/// A peer that reads a request on its first connection and closes it unanswered; what comes on later ones goes on to `to`.
pub fn cutting_relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        let (mut first, _) = listener.accept().expect("the client connects");
        let count = first.read(&mut [0; 1024]).expect("the client calls");
        assert!(count > 0);
        drop(first);
        while let Ok((client, _)) = listener.accept() {
            let server = TcpStream::connect(to).expect("the server is there");
            pass_on(&client, &server);
            pass_on(&server, &client);
        }
    });
    address
}

fn pass_on(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
