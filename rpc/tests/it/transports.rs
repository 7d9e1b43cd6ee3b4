//! The same over every transport: TCP, a Unix socket, a pair in memory, pipes, and a child's standard input and output.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write, pipe};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga::process::Command;
use dhaga::sync::OnceLock;
use dhaga_rpc::{
    CHILD_GRACE, CallError, ChildEnded, Client, Extensions, HandlerError, Limits, ServerBuilder, Transport, Value,
};
use rustix::stdio::{dup2_stdin, dup2_stdout};
use serde_bytes::ByteBuf;

use crate::common::*;

/// The methods of a server that may live in another process.
fn methods() -> ServerBuilder {
    let (noted, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (note, begin) = (noted.clone(), begun.clone());
    builder(&Gate::default())
        .method("note", move |count: usize| {
            note.fetch_add(count, Ordering::SeqCst);
            Ok(())
        })
        .method("noted", move || Ok(noted.load(Ordering::SeqCst)))
        .method("never", move || {
            begin.fetch_add(1, Ordering::SeqCst);
            dhaga::sleep(2 * DEADLINE);
            Ok(())
        })
        .method("begun", move || Ok(begun.load(Ordering::SeqCst)))
        .method("exit", |code: i32| -> Result<(), HandlerError> { std::process::exit(code) })
        .method("pid", || Ok(std::process::id()))
        .method("print", |text: String| {
            println!("{text}");
            Ok(())
        })
}

/// A client and whatever it needs to be served.
struct Session {
    client: Client,
    server: Box<dyn Any + Send>,
}

/// A folder of its own for a socket, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("dhaga-rpc-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("there is a place for temporary files");
        Self(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("rpc.socket")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Open = fn(Limits) -> Session;

fn tcp(limits: Limits) -> Session {
    let server = methods().limits(limits.clone()).bind("127.0.0.1:0").expect("there is a port");
    let client = Client::builder().limits(limits).connect(server.local_addr()).expect("it listens");
    Session { client, server: Box::new(server) }
}

fn unix(limits: Limits) -> Session {
    let folder = Folder::new();
    let server = methods().limits(limits.clone()).bind_unix(folder.socket()).expect("nothing is there");
    let client = Client::builder().limits(limits).connect_unix(folder.socket()).expect("it listens");
    Session { client, server: Box::new((server, folder)) }
}

fn over(limits: Limits, (near, far): (Transport, Transport)) -> Session {
    let server = methods().limits(limits.clone()).serve(far).expect("it can be waited for");
    let client = Client::builder().limits(limits).over(near).expect("it can be waited for");
    Session { client, server: Box::new(server) }
}

fn memory(limits: Limits) -> Session {
    over(limits, Transport::pair().expect("there are descriptors"))
}

fn pipes(limits: Limits) -> Session {
    let (input, their_output) = pipe().expect("there are descriptors");
    let (their_input, output) = pipe().expect("there are descriptors");
    let near = Transport::pipes(input, output).expect("it has the mode");
    over(limits, (near, Transport::pipes(their_input, their_output).expect("it has the mode")))
}

fn child(limits: Limits) -> Session {
    let client = Client::builder().limits(limits).spawn(&mut embedded()).expect("the test binary runs again");
    Session { client, server: Box::new(()) }
}

// A child of our own

/// Set in the child.
const EMBEDDED: &str = "DHAGA_TEST_EMBEDDED";

/// This binary as a program that serves on its standard input and output. What the test harness prints there goes to
/// standard error, and the streams wait at the numbers 3 and 4 until our code runs.
fn embedded() -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 3<&0 4>&1 0</dev/null 1>&2; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("the test binary exists"))
        .args([name_of!(serve_on_standard_streams), "--exact", "--nocapture", "--test-threads=1"])
        .env(EMBEDDED, "1");
    command
}

fn stream(number: u32) -> File {
    let path = format!("/proc/self/fd/{number}");
    OpenOptions::new().read(number == 3).write(number != 3).open(path).expect("the shell has put it there")
}

/// A handler that runs on would keep the child, and with it the output of the tests, beyond their end.
fn end_with_the_parent() {
    let parent = rustix::process::getppid();
    thread::spawn(move || {
        while rustix::process::getppid() == parent {
            thread::sleep(Duration::from_millis(100));
        }
        std::process::exit(1);
    });
}

/// No test: what the children of the others run.
#[test]
fn serve_on_standard_streams() {
    let Some(path) = std::env::var_os(EMBEDDED) else { return };
    end_with_the_parent();
    if path == "1" {
        dup2_stdin(stream(3)).expect("it is open");
        dup2_stdout(stream(4)).expect("it is open");
    } else {
        let socket = UnixStream::connect(&path).expect("the test listens");
        dup2_stdin(&socket).expect("it is open");
        dup2_stdout(&socket).expect("it is open");
    }
    let parent = Arc::new(OnceLock::<Client>::new());
    let asked = parent.clone();
    let server = methods()
        .method("garbage", || Ok(stream(4).write_all(&[0xc1; 64])?))
        .method("ask_back", move |n: i64| Ok(asked.wait().call::<_, i64>("double", (n,))?));
    let transport = Transport::stdio().expect("these are pipes");
    assert!(Transport::stdio().is_err(), "it can be had once");
    let server = server.serve(transport).expect("it can be waited for");
    parent.set(server.peers().remove(0)).expect("once");
    let ended = server.wait();
    if path != "1" {
        // Its streams are closed, and it lives.
        thread::sleep(2 * DEADLINE);
    }
    std::process::exit(if ended.is_ok() { 0 } else { 17 });
}

// What holds over each of them

macro_rules! over_each {
    ($($(#[$attribute:meta])* fn $case:ident($open:ident: Open) $body:block)*) => {
        mod cases {
            use super::*;
            $($(#[$attribute])* pub fn $case($open: Open) $body)*
        }
        over_each! { in tcp, $($case)* }
        over_each! { in unix, $($case)* }
        over_each! { in memory, $($case)* }
        over_each! { in pipes, $($case)* }
        over_each! { in child, $($case)* }
    };
    (in $transport:ident, $($case:ident)*) => {
        mod $transport {
            use super::*;
            $(#[test]
            fn $case() {
                within_deadline(|| cases::$case(super::$transport));
            })*
        }
    };
}

fn patient() -> Limits {
    Limits { call_timeout: PATIENCE, ..Limits::default() }
}

over_each! {
    fn calls_are_answered_and_errors_too(open: Open) {
        let Session { client, server: _server } = open(patient());
        assert_eq!(add(&client, 20, 22).ok(), Some(42));
        let answer = client.call::<_, Value>("echo", ("word",)).expect("it is answered");
        assert_eq!(answer, "word".into());
        for (method, argument, words) in [("fail", "no luck", "no luck"), ("none", "", "no method \"none\"")] {
            let refused = client.call::<_, Value>(method, (argument,)).expect_err("it is refused");
            assert!(refused.to_string().contains(words), "{refused}");
        }
        let panicked = client.call::<_, Value>("panic", ()).expect_err("it is refused");
        assert!(panicked.to_string().contains("panicked"), "{panicked}");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    }

    fn notifications_arrive(open: Open) {
        let Session { client, server: _server } = open(patient());
        (0..100).for_each(|_| client.notify("note", (2,)).expect("there is room"));
        eventually("all were taken", || client.call::<_, usize>("noted", ()).expect("it is answered") == 200);
    }

    fn a_thousand_calls_are_pipelined(open: Open) {
        let Session { client, server: _server } = open(patient());
        let calls = dhaga::spawn(move || {
            let calls: Vec<_> = (0..1000)
                .map(|n: i64| {
                    let client = client.clone();
                    dhaga::spawn(move || assert_eq!(add(&client, n, 1).expect("it is answered"), n + 1))
                })
                .collect();
            calls.into_iter().for_each(|call| call.join().expect("it is right"));
        });
        calls.join().expect("all are right");
    }

    fn four_workers_and_plain_threads_call_at_once(open: Open) {
        let Session { client, server: _server } = open(patient());
        let runtime = Runtime::builder().workers(4).build().expect("the kernel gives threads");
        let body = |client: &Client, n: i64| {
            (0..50).for_each(|m| assert_eq!(add(client, n, m).expect("it is answered"), n + m));
        };
        let on_workers: Vec<_> = (0..64)
            .map(|n| {
                let client = client.clone();
                runtime.spawn(move || body(&client, n))
            })
            .collect();
        let on_threads: Vec<_> = (0..4)
            .map(|n| {
                let client = client.clone();
                thread::spawn(move || body(&client, 100 * n))
            })
            .collect();
        on_workers.into_iter().for_each(|handle| handle.join().expect("its answers are right"));
        on_threads.into_iter().for_each(|handle| handle.join().expect("its answers are right"));
        drop(client);
        runtime.shutdown(DEADLINE).expect("nothing is left");
    }

    fn frames_of_a_megabyte_pass_both_ways_at_once(open: Open) {
        let Session { client, server: _server } = open(patient());
        let callers: Vec<_> = (0..6)
            .map(|n| {
                let client = client.clone();
                thread::spawn(move || match n % 2 {
                    0 => assert_eq!(client.call::<_, usize>("len", (ByteBuf::from(vec![1; 1 << 20]),)).ok(), Some(1 << 20)),
                    _ => {
                        let blob: ByteBuf = client.call("blob", (1_usize << 20,)).expect("it is answered");
                        assert!(blob.len() == 1 << 20 && blob.iter().all(|byte| *byte == 7));
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().expect("its answer is right"));
    }

    fn a_call_that_is_late_ends_and_the_next_is_answered(open: Open) {
        let Session { client, server: _server } = open(patient());
        let late = client.call_timeout::<_, Value>("never", (), Duration::from_millis(20));
        assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    }

    fn calls_in_flight_end_when_the_other_side_goes(open: Open) {
        let Session { client, server } = open(patient());
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || client.call::<_, Value>("never", ()))
            })
            .collect();
        eventually("they run", || client.call::<_, usize>("begun", ()).expect("it is answered") == 8);
        match server.is::<()>() {
            true => drop(client.call::<_, Value>("exit", (3,))),
            false => drop(server),
        }
        for caller in callers {
            let ended = caller.join().expect("nobody panics");
            assert!(matches!(ended, Err(CallError::Disconnected { maybe_executed: true, .. })), "{ended:?}");
        }
    }
}

// What the other end sees: bytes

/// The other end of a transport, of another make.
struct Raw {
    input: Box<dyn Read + Send>,
    output: Box<dyn Write + Send>,
    /// Ends what it sends.
    finish: Box<dyn FnOnce() + Send>,
}

impl Raw {
    fn finish(self) -> Box<dyn Read + Send> {
        drop(self.output);
        (self.finish)();
        self.input
    }
}

fn raw_tcp() -> (Transport, Raw) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let near = std::net::TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (far, _) = listener.accept().expect("a client comes");
    far.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let clone = || far.try_clone().expect("there are descriptors");
    let (input, output) = (Box::new(clone()), Box::new(clone()));
    let finish = Box::new(move || far.shutdown(Shutdown::Write).expect("it is open"));
    (dhaga::net::TcpStream::try_from(near).expect("it has the mode").into(), Raw { input, output, finish })
}

fn raw_unix() -> (Transport, Raw) {
    let (near, far) = UnixStream::pair().expect("there are descriptors");
    far.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let clone = || far.try_clone().expect("there are descriptors");
    let (input, output) = (Box::new(clone()), Box::new(clone()));
    let finish = Box::new(move || far.shutdown(Shutdown::Write).expect("it is open"));
    (dhaga::net::UnixStream::try_from(near).expect("it has the mode").into(), Raw { input, output, finish })
}

fn raw_pipes() -> (Transport, Raw) {
    let (their_input, our_output) = pipe().expect("there are descriptors");
    let (our_input, their_output) = pipe().expect("there are descriptors");
    let near = Transport::pipes(our_input, our_output).expect("it has the mode");
    (near, Raw { input: Box::new(their_input), output: Box::new(their_output), finish: Box::new(|| ()) })
}

/// Runs a body over each kind of transport whose other end speaks bytes.
fn over_each_raw(body: impl Fn(Transport, Raw) + Send + 'static) {
    within_deadline(move || {
        for open in [raw_tcp, raw_unix, raw_pipes] {
            let (near, far) = open();
            body(near, far);
        }
    });
}

fn read_to_end(mut input: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    match input.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        // With unread bytes at its end a socket is reset.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("there is no end: {error}"),
    }
}

#[test]
fn what_was_asked_before_the_peer_has_finished_is_answered() {
    over_each_raw(|near, mut far| {
        let server = methods().serve(near).expect("it can be waited for");
        let mut expected = Vec::new();
        for id in 1..=100 {
            far.output.write_all(&request(id, "add", vec![id.into(), 1.into()])).expect("it is taken");
            expected.extend(answer(id, id + 1));
        }
        far.output.write_all(&request(101, "sleep", vec![50.into(), "late".into()])).expect("it is taken");
        expected.extend(answer(101, "late"));
        assert_eq!(read_to_end(far.finish()).len(), expected.len());
        server.wait().expect("it has ended in good order");
    });
}

#[test]
fn a_peer_that_reads_late_gets_all() {
    over_each_raw(|near, far| {
        let limits = Limits { unsent_bytes_max: 64 << 10, call_timeout: PATIENCE, ..Limits::default() };
        let client = plain().limits(limits).over(near).expect("it can be waited for");
        let (count, blob) = (100, ByteBuf::from(vec![7; 50_000]));
        let mut input = far.input;
        let reader = thread::spawn(move || {
            // Something must have been left unsent by then.
            let mut first = [0; 1];
            input.read_exact(&mut first).expect("it comes");
            1 + read_to_end(input).len()
        });
        (0..count).for_each(|_| client.notify("note", (&blob,)).expect("there is room some time"));
        drop(client);
        assert_eq!(reader.join().expect("nobody panics"), count * (1 + 1 + 5 + 1 + 3 + 50_000));
    });
}

#[test]
fn a_peer_that_never_reads_makes_callers_wait_and_then_tells_them() {
    over_each_raw(|near, far| {
        let limits =
            Limits { unsent_bytes_max: 64 << 10, call_timeout: Duration::from_millis(100), ..Limits::default() };
        let client = plain().limits(limits).over(near).expect("it can be waited for");
        let blob = ByteBuf::from(vec![7; 1 << 20]);
        let refused =
            (0..64).find_map(|_| client.notify("note", (&blob,)).err()).expect("the kernel takes not so much");
        assert!(matches!(refused, CallError::Overloaded { .. }), "{refused}");
        let began = Instant::now();
        // A writer waits for room: the end must reach it.
        drop(far);
        eventually("it is closed", || client.connections() == 0);
        assert!(began.elapsed() < PATIENCE);
        let refused = client.call::<_, Value>("add", (1, 2)).expect_err("nobody is there");
        assert!(matches!(refused, CallError::Disconnected { maybe_executed: false, .. }), "{refused:?}");
    });
}

#[test]
fn a_server_that_goes_wakes_a_writer_who_waits_for_room() {
    over_each_raw(|near, mut far| {
        let server = methods().serve(near).expect("it can be waited for");
        // More than the kernel keeps of a connection that nobody reads.
        (0..8).for_each(|id| far.output.write_all(&request(id, "blob", vec![(4 << 20).into()])).expect("it is taken"));
        far.input.read_exact(&mut [0; 1]).expect("it comes");
        drop(server);
        // It ends long before the writer's own patience, which is longer than ours.
        assert!(read_to_end(far.input).len() < 8 * (4 << 20));
    });
}

#[test]
fn dropping_the_client_ends_the_connection() {
    over_each_raw(|near, far| {
        let client = plain().over(near).expect("it can be waited for");
        client.notify("note", (1,)).expect("there is room");
        let clone = client.clone();
        drop(client);
        clone.notify("note", (2,)).expect("there is room");
        drop(clone);
        let sent = read_to_end(far.input);
        assert!(sent.ends_with(&[2]) && sent.len() == 2 * (1 + 1 + 5 + 2), "{sent:x?}");
    });
}

#[test]
fn garbage_ends_the_connection_with_a_reason() {
    over_each_raw(|near, mut far| {
        let client = plain().over(near).expect("it can be waited for");
        let caller = client.clone();
        let caller = thread::spawn(move || caller.call::<_, Value>("add", (1, 2)));
        far.input.read_exact(&mut [0; 1]).expect("it calls");
        far.output.write_all(&[0xc1; 10]).expect("it is taken");
        let ended = caller.join().expect("nobody panics").expect_err("it has no answer");
        assert!(matches!(ended, CallError::Malformed(_)), "{ended:?}");
        let late = client.call::<_, Value>("add", (1, 2)).expect_err("it is over");
        assert!(matches!(late, CallError::Malformed(_)), "{late:?}");
        let _ = read_to_end(far.input);
    });
}

#[test]
fn a_server_over_one_connection_says_how_it_has_ended() {
    over_each_raw(|near, mut far| {
        let server = methods().serve(near).expect("it can be waited for");
        far.output.write_all(&[0xc1; 10]).expect("it is taken");
        let ended = server.wait().expect_err("that was no good order");
        assert_eq!(ended.kind(), io::ErrorKind::InvalidData);
        let _ = read_to_end(far.input);
    });
    within_deadline(|| {
        let (near, _far) = Transport::pair().expect("there are descriptors");
        let server = methods().serve(near).expect("it can be waited for");
        let late = dhaga::within(Duration::from_millis(10), || server.wait()).expect_err("nobody has ended it");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn what_cannot_be_waited_for_is_refused_in_words() {
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").expect("it is there");
    let transport = || Transport::pipes(null(), null()).expect("it has the mode");
    let refused = methods().serve(transport()).expect_err("nothing tells of its bytes");
    assert!(refused.to_string().contains("neither a pipe nor a socket"), "{refused}");
    let refused = Client::over(transport()).expect_err("nothing tells of its bytes");
    assert!(matches!(&refused, CallError::Connect(cause) if cause.to_string().contains("neither a pipe")), "{refused}");
}

// Unix sockets

#[test]
fn a_path_that_is_taken_is_refused_in_words_and_can_be_had_when_it_is_removed() {
    within_deadline(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let first = methods().bind_unix(&path).expect("nothing is there");
        assert_eq!(first.local_addr().as_pathname(), Some(&*path));
        let refused = methods().bind_unix(&path).expect_err("it is taken");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(refused.to_string().contains(path.to_str().expect("it is a word")), "{refused}");
        assert!(first.shutdown(PATIENCE), "nothing is in flight");
        assert!(path.exists(), "as std, it leaves its socket");
        let refused = Client::connect_unix(&path).expect_err("nobody listens");
        assert_eq!(kind_of(&refused), Some(io::ErrorKind::ConnectionRefused));
        std::fs::remove_file(&path).expect("it is there");
        let refused = Client::connect_unix(&path).expect_err("nothing is there");
        assert_eq!(kind_of(&refused), Some(io::ErrorKind::NotFound));
        let again = methods().bind_unix(&path).expect("nothing is there any more");
        let client = Client::connect_unix(&path).expect("it listens");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        drop(again);
    });
}

fn kind_of(error: &CallError) -> Option<io::ErrorKind> {
    match error {
        CallError::Connect(cause) => Some(cause.kind()),
        _ => None,
    }
}

#[test]
fn a_client_dials_a_path_anew_when_its_server_is_back() {
    within_deadline(|| {
        let folder = Folder::new();
        let first = methods().bind_unix(folder.socket()).expect("nothing is there");
        let client = Client::connect_unix(folder.socket()).expect("it listens");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
        drop(first);
        std::fs::remove_file(folder.socket()).expect("it is there");
        let _second = methods().bind_unix(folder.socket()).expect("nothing is there any more");
        eventually("it is served by the second", || add(&client, 1, 2).is_ok_and(|sum| sum == 3));
    });
}

/// What is sent meets the closed socket before its end is read: the same dhaga calls on, and nothing was polled meanwhile.
#[test]
fn who_calls_when_the_peer_is_known_to_take_nothing_more_is_served_by_the_next_one() {
    within_deadline(|| {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.socket()).expect("nothing is there");
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives a thread");
        let caller = runtime.spawn(move || {
            let client = plain().connect_unix(folder.socket()).expect("it listens");
            let (gone, _) = listener.accept().expect("the client is there already");
            drop(gone);
            let next = thread::spawn(move || {
                let (mut next, _) = listener.accept().expect("the client comes again");
                let call = rmpv::decode::read_value(&mut next).expect("a whole message comes");
                let id = call.as_array().and_then(|call| call[1].as_u64()).expect("it is a call");
                next.write_all(&answer(id as u32, 3)).expect("the client is there");
            });
            // More than a first packet of the turn.
            (0..2).for_each(|_| client.notify("note", (ByteBuf::from(vec![7; 1000]),)).expect("it is on its way"));
            assert_eq!(add(&client, 1, 2).ok(), Some(3));
            next.join().expect("it was called once");
        });
        caller.join().expect("it is so");
    });
}

#[test]
fn a_server_over_a_listener_of_the_users() {
    within_deadline(|| {
        use dhaga::net::unix::{SocketAddr, SocketAddrExt};
        let name = format!("dhaga-rpc-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("it is a name");
        let listener = dhaga::net::UnixListener::bind_addr(&address).expect("it is free");
        let server = methods().listen(listener).expect("it listens");
        assert_eq!(server.local_addr().as_abstract_name(), Some(name.as_bytes()));
        let stream = dhaga::net::UnixStream::connect_addr(&address).expect("it listens");
        let client = Client::over(stream.into()).expect("it can be waited for");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

// Children

/// The status in the source of an error.
fn status_of<T: std::fmt::Debug>(ended: Result<T, CallError>) -> Option<Option<i32>> {
    match ended {
        Err(CallError::Disconnected { source: Some(source), .. }) => {
            source.downcast_ref::<ChildEnded>().map(|child| child.status().and_then(|status| status.code()))
        }
        other => panic!("this is no end of a child: {other:?}"),
    }
}

#[test]
fn the_end_of_a_child_ends_all_calls_and_names_its_status() {
    within_deadline(|| {
        let Session { client, .. } = child(patient());
        let caller = client.clone();
        let other = thread::spawn(move || caller.call::<_, Value>("never", ()));
        eventually("it runs", || client.call::<_, usize>("begun", ()).expect("it is answered") == 1);
        assert_eq!(status_of(client.call::<_, Value>("exit", (42,))), Some(Some(42)));
        let ended = other.join().expect("nobody panics");
        let words = ended.as_ref().map_err(|error| match error {
            CallError::Disconnected { source: Some(source), .. } => source.to_string(),
            other => other.to_string(),
        });
        assert!(words.as_ref().is_err_and(|words| words.contains("(sh) has ended: exit status: 42")), "{words:?}");
        assert_eq!(status_of(ended), Some(Some(42)));
        let late = client.call::<_, Value>("add", (1, 2));
        assert!(matches!(late, Err(CallError::Disconnected { maybe_executed: false, .. })), "{late:?}");
        assert_eq!(status_of(late), Some(Some(42)));
        assert_eq!(status_of(client.notify("note", (1,))), Some(Some(42)));
    });
}

#[test]
fn a_child_that_ends_at_once_is_no_plain_peer() {
    within_deadline(|| {
        for script in ["exit 5", "sleep 0.05; exit 5", "exec <&-; sleep 0.05; exit 5"] {
            let builder = Client::builder().limits(patient()).extensions(Extensions::Require);
            let client = builder.spawn(&mut shell(script)).expect("there is a shell");
            assert_eq!(status_of(client.call::<_, Value>("add", (1, 2))), Some(Some(5)), "{script}");
        }
    });
}

#[test]
fn a_child_that_is_killed_ends_all_calls() {
    within_deadline(|| {
        let Session { client, .. } = child(patient());
        let id: u32 = client_id(&client);
        let caller = client.clone();
        let other = thread::spawn(move || caller.call::<_, Value>("never", ()));
        eventually("it runs", || client.call::<_, usize>("begun", ()).expect("it is answered") == 1);
        kill(id);
        match other.join().expect("nobody panics") {
            Err(CallError::Disconnected { source: Some(source), .. }) => {
                assert!(source.to_string().contains("signal: 9"), "{source}");
            }
            other => panic!("this is no end of a child: {other:?}"),
        }
    });
}

/// The process that the test runs its methods in, as it says itself.
fn client_id(client: &Client) -> u32 {
    client.call("pid", ()).expect("it is answered")
}

fn kill(id: u32) {
    let pid = rustix::process::Pid::from_raw(id.cast_signed()).expect("it is no zero");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn a_child_that_closes_its_output_and_lives_ends_all_calls() {
    within_deadline(|| {
        let client = plain().limits(patient()).spawn(&mut shell("exec >&-; cat >/dev/null")).expect("there is a shell");
        assert_eq!(status_of(client.call::<_, Value>("add", (1, 2))), Some(None));
    });
}

#[test]
fn a_child_that_closes_its_input_and_ends_names_its_status() {
    within_deadline(|| {
        let client =
            plain().limits(patient()).spawn(&mut shell("exec <&-; sleep 0.1; exit 5")).expect("there is a shell");
        // Writes fail by then, and no signal ends us.
        let ended = (0..1000).find_map(|_| {
            thread::sleep(Duration::from_millis(1));
            client.notify("note", (1,)).err()
        });
        assert_eq!(status_of(Err::<(), _>(ended.expect("it ends"))), Some(Some(5)));
    });
}

#[test]
fn what_a_child_has_answered_before_its_end_is_delivered() {
    within_deadline(|| {
        let answer = answer(1, "last words").iter().map(|byte| format!("\\{byte:03o}")).collect::<String>();
        let script = format!("head -c 8 >/dev/null; printf '{answer}'; exit 3");
        let client = plain().limits(patient()).spawn(&mut shell(&script)).expect("there is a shell");
        assert_eq!(client.call::<_, String>("words", ()).expect("it was answered"), "last words");
        assert_eq!(status_of(client.call::<_, Value>("more", ())), Some(Some(3)));
    });
}

#[test]
fn a_child_whose_own_child_holds_its_output_ends_all_calls() {
    within_deadline(|| {
        let client = plain().limits(patient()).spawn(&mut shell("sleep 20 & exit 6")).expect("there is a shell");
        assert_eq!(status_of(client.call::<_, Value>("add", (1, 2))), Some(Some(6)));
    });
}

/// Hundredths of a second of CPU time that this process has used.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let after_name = stat.rsplit_once(')').expect("the name stands in brackets").1;
    let field = |index| after_name.split_whitespace().nth(index).and_then(|field: &str| field.parse().ok());
    [11, 12].into_iter().map(|index| field(index).unwrap_or(0_u64)).sum()
}

#[test]
fn to_wait_for_the_output_of_a_child_that_has_ended_takes_no_cpu() {
    in_child(name_of!(to_wait_for_the_output_of_a_child_that_has_ended_takes_no_cpu), 1024, || {
        // It is minded by the time it ends.
        let script = "sleep 20 2>/dev/null & sleep 0.3; exit 6";
        let client = plain().limits(patient()).spawn(&mut shell(script)).expect("there is a shell");
        let before = cpu_ticks();
        assert_eq!(status_of(client.call::<_, Value>("add", (1, 2))), Some(Some(6)));
        let used = cpu_ticks() - before;
        assert!(used < 40, "{used} hundredths of a second");
    });
}

#[test]
fn a_child_that_writes_garbage_is_cut_off() {
    within_deadline(|| {
        let Session { client, .. } = child(patient());
        let ended = client.call::<_, Value>("garbage", ()).expect_err("it has no answer that can be read");
        assert!(matches!(ended, CallError::Malformed(_)), "{ended:?}");
        let client = plain().limits(patient()).spawn(&mut shell("yes")).expect("there is a shell");
        let ended = client.call::<_, Value>("add", (1, 2)).expect_err("it has no answer");
        assert!(matches!(ended, CallError::Malformed(_)), "{ended:?}");
    });
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let refused = Client::spawn(&mut Command::new("/no/such/program")).expect_err("there is none");
    assert_eq!(kind_of(&refused), Some(io::ErrorKind::NotFound));
}

#[test]
fn what_a_handler_prints_does_not_break_the_protocol() {
    within_deadline(|| {
        let Session { client, .. } = child(patient());
        client.call::<_, ()>("print", ("this goes to standard error",)).expect("it is answered");
        assert_eq!(add(&client, 1, 2).ok(), Some(3));
    });
}

/// Whether the process is there, be it as a zombie.
fn is_known(id: u32) -> bool {
    Path::new("/proc").join(id.to_string()).exists()
}

#[test]
fn a_child_ends_with_its_client_and_is_no_zombie() {
    within_deadline(|| {
        let Session { client, .. } = child(patient());
        let id = client_id(&client);
        let clone = client.clone();
        drop(client);
        assert_eq!(add(&clone, 1, 2).ok(), Some(3));
        drop(clone);
        let began = Instant::now();
        eventually("it has gone", || !is_known(id));
        assert!(began.elapsed() < CHILD_GRACE, "it ended by itself");
    });
}

/// A child that neither reads nor writes nor ends, and its process id.
fn deaf_child() -> (Client, u32) {
    let folder = Folder::new();
    let path = folder.0.join("id");
    let script = format!("echo $$ >'{0}.new'; mv '{0}.new' '{0}'; exec sleep 1000", path.display());
    let client = plain().spawn(&mut shell(&script)).expect("there is a shell");
    eventually("it runs", || path.exists());
    let id = std::fs::read_to_string(&path).expect("it is there");
    (client, id.trim().parse().expect("it is a number"))
}

#[test]
fn a_child_that_does_not_end_with_its_client_is_killed() {
    within_deadline(|| {
        let (client, id) = deaf_child();
        drop(client);
        assert!(is_known(id), "it has its grace");
        eventually("it is killed", || !is_known(id));
    });
}

#[test]
fn a_child_is_killed_with_its_runtime() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let (client, id) = runtime.spawn(deaf_child).join().expect("it ends well");
        drop(runtime);
        eventually("it is killed", || !is_known(id));
        let refused = client.call::<_, Value>("add", (1, 2));
        assert!(matches!(refused, Err(CallError::Disconnected { .. })), "{refused:?}");
    });
}

#[test]
fn standard_streams_may_be_sockets_and_are_closed_when_the_server_ends() {
    within_deadline(|| {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.socket()).expect("nothing is there");
        let mut child = embedded().env(EMBEDDED, folder.socket()).kill_on_drop(true).spawn().expect("it runs again");
        let (mut far, _) = listener.accept().expect("the child connects");
        far.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
        far.write_all(&request(1, "add", vec![20.into(), 22.into()])).expect("it is taken");
        far.write_all(&request(2, "print", vec!["this goes to standard error".into()])).expect("it is taken");
        far.shutdown(Shutdown::Write).expect("it is open");
        let expected = answer(1, 42).len() + answer(2, Value::Nil).len();
        assert_eq!(read_to_end(far).len(), expected);
        assert!(matches!(child.try_wait(), Ok(None)), "it lives");
    });
}

#[test]
fn a_child_may_call_back() {
    within_deadline(|| {
        let client = Client::builder().limits(patient()).method("double", |n: i64| Ok(2 * n));
        let client = client.spawn(&mut embedded()).expect("the test binary runs again");
        assert_eq!(client.call::<_, i64>("ask_back", (21,)).expect("it is answered"), 42);
    });
}

// Descriptors

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux has it").count()
}

#[test]
fn no_descriptor_is_left_behind() {
    in_child(name_of!(no_descriptor_is_left_behind), 1024, || {
        let all: [Open; 5] = [tcp, unix, memory, pipes, child];
        let use_all = || {
            for open in all {
                let Session { client, server } = open(patient());
                assert_eq!(add(&client, 1, 2).ok(), Some(3));
                drop((client, server));
            }
        };
        use_all();
        let wait = |count: usize| eventually("all are closed", || descriptors() <= count);
        // What the runtime keeps for itself it has by now, but for a child that is about to end.
        thread::sleep(Duration::from_millis(100));
        let before = descriptors();
        (0..10).for_each(|_| use_all());
        wait(before);
    });
}

// Neovim

#[test]
#[ignore = "needs Neovim"]
fn neovim_is_called_as_a_child() {
    within_deadline(|| {
        let mut command = Command::new("nvim");
        command.args(["--clean", "--embed", "--headless"]);
        let nvim = Client::builder().limits(patient()).spawn(&mut command).expect("Neovim is installed");
        assert_eq!(nvim.call::<_, i64>("nvim_eval", ("6 * 7",)).expect("it is answered"), 42);
        let lines = vec!["one".to_owned(), "two".to_owned()];
        nvim.call::<_, Value>("nvim_buf_set_lines", (0, 0, -1, true, &lines)).expect("it has a buffer");
        let back: Vec<String> = nvim.call("nvim_buf_get_lines", (0, 0, -1, true)).expect("it has a buffer");
        assert_eq!(back, lines);
        let refused = nvim.call::<_, Value>("nvim_eval", ("no such thing",)).expect_err("it is no expression");
        assert!(matches!(refused, CallError::Remote(_)), "{refused:?}");
        let ended = nvim.call::<_, Value>("nvim_command", ("cquit 7",));
        assert_eq!(status_of(ended), Some(Some(7)));
    });
}

#[test]
#[ignore = "needs Neovim"]
fn neovim_ends_with_its_client() {
    within_deadline(|| {
        let mut command = Command::new("nvim");
        command.args(["--clean", "--embed", "--headless"]);
        let nvim = Client::builder().limits(patient()).spawn(&mut command).expect("Neovim is installed");
        let id: u32 = nvim.call("nvim_call_function", ("getpid", Vec::<Value>::new())).expect("it is answered");
        let began = Instant::now();
        drop(nvim);
        eventually("it has gone", || !is_known(id));
        assert!(began.elapsed() < CHILD_GRACE, "it ended by itself");
    });
}
