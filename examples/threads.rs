//! The baseline: the same RPC with an OS thread for each request and for each caller, on the sockets of `std`.
//!
//! The bytes on the wire, the cutting of frames, the ids and the handlers are those of `dhaga_rpc`, so that what differs is
//! only who waits. It is the best that threads can do in plain code: small stacks, one write a message, no polling.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dhaga_rpc::error::{Refusal, RemoteError};
use dhaga_rpc::frame::{Cutter, Progress};
use dhaga_rpc::in_flight::InFlight;
use dhaga_rpc::message::{self, Message};
use dhaga_rpc::service::respond_refusal;
use dhaga_rpc::{CallError, ErrorProfile, Limits, Methods, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a thread's stack: std's 2 MiB would only cost address space, but small ones are friendlier to page tables.
pub const STACK_BYTES: usize = 64 << 10;

/// Bytes that a connection reads at a time, as many as Dhaga does.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// How long to wait for a thread when the machine gives none.
const PAUSE: Duration = Duration::from_millis(1);

/// A server counts the threads of the process each time it has started so many.
const COUNT_EVERY: usize = 16;

/// How many threads a process may have here: the least of the kernel's limits, less a tenth for everybody else.
pub fn threads_max() -> usize {
    const FILES: [(&str, usize); 5] = [
        // A thread takes four mappings: its stack, the stack for signals that std adds, a guard below each. When they run
        // out in the middle of a start, std aborts the process.
        ("/proc/sys/vm/max_map_count", 4),
        ("/proc/sys/kernel/pid_max", 1),
        ("/proc/sys/kernel/threads-max", 1),
        ("/sys/fs/cgroup/pids.max", 1),
        ("/sys/fs/cgroup/pids/pids.max", 1),
    ];
    let room = |(file, each): (&str, usize)| -> Option<usize> {
        let text = fs::read_to_string(file).ok()?;
        Some(text.trim().parse::<usize>().ok()? / each)
    };
    let least = FILES.into_iter().filter_map(room).min();
    least.unwrap_or(usize::MAX) / 10 * 9
}

/// How many threads this process has, those included that are about to end.
fn threads_now() -> usize {
    // A folder has a link for each folder in it, here one a thread, and two of its own.
    fs::metadata("/proc/self/task").map_or(0, |task| (task.nlink() as usize).saturating_sub(2))
}

/// Serves `methods` to whoever connects, with a thread for each connection and one for each request. While the process has
/// `threads_max` threads, reading stops.
///
/// # Errors
///
/// When the machine gives no thread to begin with. Later on it waits for one.
pub fn serve(listener: TcpListener, methods: Methods, limits: Limits, threads_max: usize) -> io::Result<()> {
    let server = Arc::new(Server { methods, limits, threads_max });
    let accept = move || {
        for socket in listener.incoming() {
            // On an error the client has gone, or the descriptors are used up until another one goes.
            match socket {
                Ok(socket) => start({
                    let server = server.clone();
                    move || server.serve_connection(socket)
                }),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    };
    thread::Builder::new().spawn(accept)?;
    Ok(())
}

struct Server {
    methods: Methods,
    limits: Limits,
    threads_max: usize,
}

impl Server {
    fn serve_connection(self: &Arc<Self>, socket: TcpStream) {
        // Its end is the client's affair, who sees it from its own side.
        let _ = self.read_requests(socket);
    }

    fn read_requests(self: &Arc<Self>, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let writer = Arc::new(Mutex::new(socket.try_clone()?));
        let mut started = 0_usize;
        read_frames(&socket, &self.limits, |frame| {
            if started.is_multiple_of(COUNT_EVERY) {
                self.wait_for_room();
            }
            started += 1;
            let (server, writer, frame) = (self.clone(), writer.clone(), frame.to_vec());
            start(move || server.answer(&frame, &writer));
        })
    }

    fn answer(&self, frame: &[u8], writer: &Mutex<TcpStream>) {
        let mut out = Vec::new();
        match Message::parse(frame, &self.limits) {
            Ok(Message::Request { id, method, params }) => {
                self.respond(id, method, params, &mut out);
                // The client has gone: it sees that from its own side.
                let _ = lock(writer).write_all(&out);
            }
            Ok(Message::Notification { method, params }) => {
                if let Some(handler) = self.methods.lookup(method) {
                    // Nobody asked how it went.
                    let _ = handler.notify(&self.limits, params);
                }
            }
            // The clients that are measured send nothing else.
            _ => {}
        }
    }

    fn respond(&self, id: u32, method: &str, params: &[u8], out: &mut Vec<u8>) {
        let Some(handler) = self.methods.lookup(method) else {
            let method = method.to_owned();
            return respond_refusal(&self.limits, ErrorProfile::Text, id, Refusal::UnknownMethod { method }, out);
        };
        let run = || handler.respond(&self.limits, ErrorProfile::Text, id, params, &mut *out);
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            respond_refusal(&self.limits, ErrorProfile::Text, id, Refusal::HandlerPanicked, out);
        }
    }

    fn wait_for_room(&self) {
        while threads_now() >= self.threads_max {
            thread::sleep(PAUSE);
        }
    }
}

/// A connection that any number of threads share. Each waits for its own answer; one more reads them.
pub struct Client {
    connection: Arc<Connection>,
}

struct Connection {
    limits: Limits,
    socket: TcpStream,
    writer: Mutex<()>,
    /// None once the connection has ended.
    in_flight: Mutex<Option<InFlight<Arc<Answer>>>>,
}

/// Where one caller waits.
#[derive(Default)]
struct Answer {
    outcome: Mutex<Option<Result<Vec<u8>, CallError>>>,
    came: Condvar,
}

impl Client {
    /// Connects, and starts the thread that reads.
    ///
    /// # Errors
    ///
    /// The network's, and the kernel's when it gives no thread.
    pub fn connect(addr: SocketAddr, limits: Limits) -> io::Result<Self> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        let in_flight = InFlight::new(limits.calls_per_connection_max);
        let connection =
            Arc::new(Connection { limits, socket, writer: Mutex::new(()), in_flight: Mutex::new(Some(in_flight)) });
        let reader = connection.clone();
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || reader.read_answers())?;
        Ok(Self { connection })
    }

    /// Calls `method` and blocks the thread until the answer is there, for `Limits::call_timeout` at most.
    ///
    /// # Errors
    ///
    /// As those of [`dhaga_rpc::Client::call`].
    pub fn call<P, R>(&self, method: &str, params: P) -> Result<R, CallError>
    where
        P: Serialize,
        R: DeserializeOwned,
    {
        let raw = self.connection.call(method, &params)?;
        Ok(message::decode(&raw, &self.connection.limits)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the reader. It fails only if the connection has ended already.
        let _ = self.connection.socket.shutdown(Shutdown::Both);
    }
}

impl Connection {
    fn call<P: Serialize>(&self, method: &str, params: &P) -> Result<Vec<u8>, CallError> {
        let answer = Arc::new(Answer::default());
        let id = self.insert(answer.clone())?;
        let mut frame = Vec::new();
        let sent = encode::encode_request(&mut frame, &self.limits, id, method, params)
            .map_err(CallError::from)
            .and_then(|()| self.send(&frame));
        sent.and_then(|()| answer.wait(self.limits.call_timeout)).inspect_err(|_| self.forget(id))
    }

    fn insert(&self, answer: Arc<Answer>) -> Result<u32, CallError> {
        let mut in_flight = lock(&self.in_flight);
        let in_flight = in_flight.as_mut().ok_or(CallError::Disconnected { maybe_executed: false, source: None })?;
        let inserted = in_flight.insert(answer);
        inserted.map_err(|full| CallError::TooManyInFlight { limit: full.limit })
    }

    fn send(&self, frame: &[u8]) -> Result<(), CallError> {
        let _turn = lock(&self.writer);
        let written = (&self.socket).write_all(frame);
        written.map_err(|error| CallError::Disconnected { maybe_executed: true, source: Some(Arc::new(error)) })
    }

    fn forget(&self, id: u32) {
        if let Some(in_flight) = &mut *lock(&self.in_flight) {
            in_flight.cancel(id);
        }
    }

    fn read_answers(&self) {
        let ended = read_frames(&self.socket, &self.limits, |frame| self.complete(frame));
        let waiting = lock(&self.in_flight).take();
        let source = ended.err().map(|error| Arc::new(error) as _);
        for (_, answer) in waiting.into_iter().flat_map(|mut table| table.fail_all()) {
            answer.put(Err(CallError::Disconnected { maybe_executed: true, source: source.clone() }));
        }
    }

    fn complete(&self, frame: &[u8]) {
        if let Ok(Message::Response { id, outcome }) = Message::parse(frame, &self.limits) {
            let answer = lock(&self.in_flight).as_mut().and_then(|table| table.complete(id));
            if let Some(answer) = answer {
                answer.put(match outcome {
                    Ok(result) => Ok(result.to_vec()),
                    Err(error) => Err(CallError::Remote(RemoteError::from_raw(error))),
                });
            }
        }
    }
}

impl Answer {
    fn put(&self, outcome: Result<Vec<u8>, CallError>) {
        *lock(&self.outcome) = Some(outcome);
        self.came.notify_one();
    }

    fn wait(&self, timeout: Duration) -> Result<Vec<u8>, CallError> {
        let deadline = Instant::now() + timeout;
        let mut outcome = lock(&self.outcome);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match outcome.take() {
                Some(outcome) => return outcome,
                None if left.is_zero() => return Err(CallError::DeadlineExceeded),
                None => {
                    let waited = self.came.wait_timeout(outcome, left);
                    outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// Gives each whole frame to `on_frame` until the peer ends the connection.
fn read_frames(mut socket: &TcpStream, limits: &Limits, mut on_frame: impl FnMut(&[u8])) -> io::Result<()> {
    let mut cutter = Cutter::new(limits);
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut unfinished = Vec::new();
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(()),
            count => unfinished.extend_from_slice(&buffer[..count]),
        }
        let mut start = 0;
        while let Progress::Whole { len } = cutter.advance(&unfinished[start..]).map_err(io::Error::other)? {
            on_frame(&unfinished[start..start + len]);
            start += len;
        }
        unfinished.drain(..start);
    }
}

/// Starts a thread, as soon as the machine gives one.
fn start(work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    loop {
        let again = work.clone();
        let run = move || {
            let work = lock(&again).take();
            work.expect("one thread starts")();
        };
        let thread = thread::Builder::new().stack_size(STACK_BYTES);
        match thread.spawn(run) {
            Ok(_) => return,
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use dhaga_rpc::HandlerError;

    use super::*;

    fn client() -> Client {
        let methods = Methods::new()
            .method("add", |a: i64, b: i64| Ok(a + b))
            .method("fail", |text: String| Err::<(), _>(HandlerError::new(text)))
            .method("panic", || -> Result<(), HandlerError> { panic!("as the test wants") });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        serve(listener, methods, Limits::default(), threads_max()).expect("there are threads");
        Client::connect(addr, Limits::default()).expect("it listens")
    }

    #[test]
    fn each_thread_gets_its_own_answer() {
        let client = client();
        let add = |a: i64, b: i64| client.call::<_, i64>("add", (a, b)).expect("add answers");
        thread::scope(|s| {
            for number in 0..50 {
                s.spawn(move || (0..20).for_each(|step| assert_eq!(add(number, step), number + step)));
            }
        });
    }

    #[test]
    fn failures_are_errors_and_the_connection_lives_on() {
        let client = client();
        let check = |method: &str, expected: &str| {
            let error = client.call::<_, ()>(method, ("no such file",)).expect_err(method).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("fail", "no such file");
        check("panic", "the handler panicked");
        check("nobody", "no method \"nobody\"");
        assert_eq!(client.call::<_, i64>("add", (20, 22)).expect("add answers"), 42);
    }

    #[test]
    fn the_end_of_a_connection_is_the_end_of_its_calls() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let client = Client::connect(addr, Limits::default()).expect("it listens");
        let call = || client.call::<_, ()>("wait", ()).expect_err("nobody answers");
        thread::scope(|s| {
            let caller = s.spawn(call);
            let (mut socket, _) = listener.accept().expect("the client has connected");
            socket.read_exact(&mut [0; 9]).expect("the call is there");
            drop(socket);
            let error = caller.join().expect("it does not panic");
            assert!(matches!(error, CallError::Disconnected { maybe_executed: true, .. }), "{error}");
        });
        assert!(matches!(call(), CallError::Disconnected { .. }));
    }
}
