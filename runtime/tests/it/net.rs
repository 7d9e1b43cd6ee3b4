//! TCP: what std does, dhagas beside each other, and what happens when descriptors run out.

use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::channel;
use dhaga::turn::{self, OnReady};
use dhaga::{JoinHandle, Runtime};
use rustix::net::sockopt::set_tcp_cork;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Bytes that tell where they belong.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// The same tests twice: with std's sockets, to see that they are right, and with ours, on plain threads and in dhagas.
macro_rules! as_in_std {
    ($(fn $name:ident() $body:block)*) => {
        as_in_std! { in std_itself, std::net, |body: fn()| within_deadline(DEADLINE, body), $($name $body)* }
        as_in_std! { in ours, dhaga::net, |body: fn()| everywhere(body), $($name $body)* }
    };
    (in $module:ident, $net:path, $run:expr, $($name:ident $body:block)*) => {
        mod $module {
            use super::*;
            use $net as net;
            use net::{TcpListener, TcpStream};

            fn pair() -> (TcpStream, TcpStream) {
                let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
                let client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
                let (server, address) = listener.accept().expect("a client has come");
                assert_eq!(address, client.local_addr().expect("it is connected"));
                (client, server)
            }

            $(#[test]
            fn $name() {
                $run(|| $body);
            })*
        }
    };
}

as_in_std! {
    fn a_read_to_the_end_returns_all_that_was_sent() {
        let (mut client, mut server) = pair();
        let writer = thread::spawn(move || client.write_all(&pattern(1_000_000)));
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("it ends");
        assert!(received == pattern(1_000_000));
        writer.join().expect("no panic").expect("all is sent");
    }

    fn data_and_end_in_one_segment_are_both_seen() {
        for (round, buffer) in [3, 5, 8, 64].into_iter().cycle().take(40).enumerate() {
            let (mut client, mut server) = pair();
            let reader = thread::spawn(move || {
                let (mut received, mut buffer) = (Vec::new(), vec![0; buffer]);
                loop {
                    match server.read(&mut buffer).expect("no error") {
                        0 => return received,
                        count => received.extend_from_slice(&buffer[..count]),
                    }
                }
            });
            if round % 2 == 0 {
                thread::yield_now();
            }
            set_tcp_cork(&client, true).expect("TCP has corks");
            client.write_all(b"hello").expect("there is room");
            client.shutdown(Shutdown::Write).expect("it is connected");
            assert_eq!(reader.join().expect("no panic"), b"hello");
        }
    }

    fn a_peer_that_closes_in_the_middle_is_an_unexpected_end() {
        let (mut client, mut server) = pair();
        client.write_all(b"hal").expect("there is room");
        drop(client);
        let error = server.read_exact(&mut [0; 4]).expect_err("the rest never comes");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        let error = loop {
            if let Err(error) = server.write(&[0; 1000]) {
                break error;
            }
        };
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }

    fn a_read_timeout_is_would_block() {
        let (mut client, mut server) = pair();
        server.set_read_timeout(Some(SHORT)).expect("it may be set");
        let started = Instant::now();
        let error = server.read(&mut [0]).expect_err("nothing comes");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(started.elapsed() >= SHORT);
        client.write_all(b"x").expect("there is room");
        server.set_read_timeout(Some(DEADLINE)).expect("it may be set");
        assert_eq!(server.read(&mut [0; 8]).expect("it has come"), 1);
        assert_eq!(server.read_timeout().expect("it is known"), Some(DEADLINE));
        let error = server.set_read_timeout(Some(Duration::ZERO)).expect_err("zero means nothing");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    fn a_write_timeout_is_would_block() {
        let (mut client, _server) = pair();
        client.set_write_timeout(Some(SHORT)).expect("it may be set");
        let error = loop {
            if let Err(error) = client.write(&[0; 1 << 16]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    fn a_port_where_nobody_listens_refuses() {
        let bound = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let bound = bound.expect("a socket");
        rustix::net::bind(&bound, &SocketAddr::from(ANY_PORT)).expect("a port is free");
        let address: SocketAddr = rustix::net::getsockname(&bound).expect("it is bound").try_into().expect("it is IP");
        let error = TcpStream::connect(address).expect_err("it does not listen");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let error = TcpStream::connect_timeout(&address, DEADLINE).expect_err("it does not listen");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(TcpListener::bind(address).expect_err("it is taken").kind(), ErrorKind::AddrInUse);
    }

    fn an_address_in_use_is_an_error() {
        let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
        let error = TcpListener::bind(listener.local_addr().expect("it is bound")).expect_err("it is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    fn connect_timeout_connects_and_refuses_zero() {
        let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        TcpStream::connect_timeout(&address, DEADLINE).expect("it listens");
        let error = TcpStream::connect_timeout(&address, Duration::ZERO).expect_err("zero means nothing");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let nowhere: &[SocketAddr] = &[];
        assert_eq!(TcpStream::connect(nowhere).expect_err("no address").kind(), ErrorKind::InvalidInput);
        let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        TcpStream::connect(unspecified).expect("it means this host");
    }

    fn a_non_blocking_socket_never_waits() {
        let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
        listener.set_nonblocking(true).expect("it may be set");
        assert_eq!(listener.accept().expect_err("nobody comes").kind(), ErrorKind::WouldBlock);
        listener.set_nonblocking(false).expect("it may be set");
        let mut client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (mut server, _) = listener.accept().expect("a client has come");
        server.set_nonblocking(true).expect("it may be set");
        assert_eq!(server.read(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        client.write_all(b"x").expect("there is room");
        while server.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            thread::yield_now();
            dhaga::yield_now();
        }
        server.set_nonblocking(false).expect("it may be set");
        server.set_read_timeout(Some(SHORT)).expect("it may be set");
        server.read(&mut [0]).expect_err("it waits, in vain");
    }

    fn a_peek_takes_nothing() {
        let (mut client, mut server) = pair();
        client.write_all(b"abc").expect("there is room");
        let mut buffer = [0; 2];
        for _ in 0..3 {
            assert_eq!((server.peek(&mut buffer).expect("it is there"), &buffer), (2, b"ab"));
        }
        let mut all = [0; 3];
        server.read_exact(&mut all).expect("it is still there");
        assert_eq!(&all, b"abc");
    }

    fn clones_share_the_connection_and_the_last_one_closes_it() {
        let (mut client, mut server) = pair();
        let clone = client.try_clone().expect("it is shared");
        client.write_all(b"one ").expect("there is room");
        drop(client);
        (&clone).write_all(b"two").expect("it is open");
        drop(clone);
        let mut text = String::new();
        server.read_to_string(&mut text).expect("it ends");
        assert_eq!(text, "one two");
    }

    fn a_shutdown_wakes_who_reads() {
        let (client, server) = pair();
        let mut reading = server.try_clone().expect("it is shared");
        let (begun, has_begun) = mpsc::channel();
        let reader = thread::spawn(move || {
            begun.send(()).expect("the test waits");
            reading.read(&mut [0])
        });
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        server.shutdown(Shutdown::Both).expect("it is connected");
        assert_eq!(reader.join().expect("no panic").expect("it is an end, not an error"), 0);
        drop(client);
    }

    fn options_are_set_and_told() {
        let (client, server) = pair();
        assert_eq!(client.peer_addr().expect("it is connected"), server.local_addr().expect("it is connected"));
        client.set_nodelay(true).expect("TCP has it");
        assert!(client.nodelay().expect("TCP has it") && !server.nodelay().expect("TCP has it"));
        client.set_ttl(42).expect("IP has it");
        assert_eq!(client.ttl().expect("IP has it"), 42);
        assert!(client.take_error().expect("it is told").is_none());
    }

    fn several_buffers_go_in_one_call() {
        let (mut client, mut server) = pair();
        assert_eq!(client.write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"cde")]).expect("there is room"), 5);
        drop(client);
        let (mut first, mut second) = ([0; 3], [0; 4]);
        let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        assert_eq!(server.read_vectored(&mut buffers).expect("it is there"), 5);
        assert_eq!((&first, &second[..2]), (b"abc", &b"de"[..]));
    }

    fn lines_are_read_through_a_buffer() {
        let (mut client, server) = pair();
        let writer = thread::spawn(move || (0..1000).try_for_each(|number| writeln!(client, "line {number}")));
        let lines: io::Result<Vec<_>> = BufReader::new(server).lines().collect();
        let expected: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
        assert_eq!(lines.expect("it ends"), expected);
        writer.join().expect("no panic").expect("all is sent");
    }

    fn a_huge_write_waits_for_a_slow_reader() {
        const BYTES: usize = 6 << 20;
        let (mut client, mut server) = pair();
        let reader = thread::spawn(move || {
            let (mut received, mut buffer) = (Vec::with_capacity(BYTES), [0; 5000]);
            loop {
                match server.read(&mut buffer).expect("no error") {
                    0 => return received,
                    count => received.extend_from_slice(&buffer[..count]),
                }
                thread::yield_now();
            }
        });
        client.write_all(&pattern(BYTES)).expect("all is sent");
        drop(client);
        assert!(reader.join().expect("no panic") == pattern(BYTES));
    }
}

// Dhagas beside each other

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a test can start a runtime")
}

/// Runs a body in a dhaga of a runtime of its own; fails when it fails, and when it hangs.
fn on_workers(workers: usize, body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, move || {
        runtime(workers).spawn(body).join().expect("the body ends well");
    });
}

fn loopback() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = loopback();
    let client = TcpStream::connect(address).expect("it listens");
    (client, listener.accept().expect("a client has come").0)
}

/// Lets this process open as many descriptors as it may.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit it may be raised");
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Its socket is watched, so no attempt is made that is known to fail: neither to give way nor the cancel may be lost with it.
#[test]
fn who_asks_without_waiting_gives_way_and_is_cancelled() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime of one worker");
        let (is_asking, asks_now) = channel::bounded::<()>(1);
        let asker = runtime.spawn(move || {
            let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
            let _client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
            let (mut server, _) = listener.accept().expect("a client has come");
            server.set_read_timeout(Some(SHORT)).expect("it may be set");
            server.read(&mut [0]).expect_err("nothing comes");
            server.set_nonblocking(true).expect("it may be set");
            is_asking.send(()).expect("somebody waits for it");
            loop {
                let error = server.read(&mut [0]).expect_err("nothing comes");
                if error.kind() != ErrorKind::WouldBlock {
                    return error;
                }
            }
        });
        let canceller = runtime.spawn(move || {
            asks_now.recv().expect("it asks");
            asker.cancel();
            asker.join().expect("it ends by itself")
        });
        let error = canceller.join().expect("it is let in between");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<dhaga::Cancelled>()), "{error:?}");
    });
}

#[test]
fn a_thousand_connections_echo_at_once() {
    const CLIENTS: usize = 1000;
    const ROUNDS: usize = 10;
    allow_descriptors();
    on_workers(2, || {
        let (listener, address) = loopback();
        let server = dhaga::spawn(move || {
            let served: Vec<_> = listener
                .incoming()
                .take(CLIENTS)
                .map(|stream| dhaga::spawn(move || echo(stream.expect("descriptors suffice"))))
                .collect();
            served.into_iter().for_each(|handle| handle.join().expect("no panic").expect("no error"));
        });
        let (connected, all_connected) = channel::unbounded();
        let gate = Arc::new(dhaga::sync::Semaphore::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (connected, gate) = (connected.clone(), gate.clone());
                dhaga::spawn(move || {
                    let mut stream = TcpStream::connect(address)?;
                    connected.send(()).expect("the test counts");
                    drop(gate.acquire());
                    for round in 0..ROUNDS {
                        let sent = format!("{client}:{round}");
                        stream.write_all(sent.as_bytes())?;
                        let mut back = vec![0; sent.len()];
                        stream.read_exact(&mut back)?;
                        assert_eq!(back, sent.as_bytes());
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        (0..CLIENTS).for_each(|_| all_connected.recv().expect("each connects"));
        gate.close();
        clients.into_iter().for_each(|handle| handle.join().expect("no panic").expect("no error"));
        server.join().expect("no panic");
    });
}

#[test]
fn each_of_many_in_accept_gets_a_connection() {
    const ACCEPTORS: usize = 64;
    on_workers(2, || {
        let (listener, address) = loopback();
        let listener = Arc::new(listener);
        let acceptors: Vec<_> = (0..ACCEPTORS)
            .map(|_| {
                let listener = listener.clone();
                dhaga::spawn(move || listener.accept().map(|(stream, _)| stream))
            })
            .collect();
        for _ in 0..ACCEPTORS {
            dhaga::yield_now();
        }
        // At once, so that one event may stand for several.
        let clients: Vec<_> = (0..ACCEPTORS).map(|_| std::net::TcpStream::connect(address)).collect();
        assert!(clients.iter().all(Result::is_ok));
        for acceptor in acceptors {
            acceptor.join().expect("no panic").expect("a connection for each");
        }
    });
}

#[test]
fn one_that_leaves_the_queue_takes_no_connection_along() {
    const ROUNDS: usize = 200;
    on_workers(2, || {
        let (listener, address) = loopback();
        let listener = Arc::new(listener);
        let accepts = || {
            let listener = listener.clone();
            dhaga::spawn(move || listener.accept().map(|_| ()))
        };
        for _ in 0..ROUNDS {
            let (first, second) = (accepts(), accepts());
            dhaga::yield_now();
            let client = std::net::TcpStream::connect(address).expect("it listens");
            first.cancel();
            // The first got it, or was cancelled and left it for the second.
            if first.join().expect("no panic").is_ok() {
                second.cancel();
                second.join().expect("no panic").expect_err("there was one connection");
            } else {
                second.join().expect("no panic").expect("the connection is left");
            }
            drop(client);
        }
    });
}

/// Starts a dhaga on one worker, by its number.
fn spawn_at<T: Send + 'static>(worker: usize, f: impl FnOnce() -> T + Send + 'static) -> channel::Receiver<T> {
    let (sender, receiver) = channel::bounded(1);
    turn::spawn_at(worker, move || sender.send(f()).unwrap_or_else(|_| panic!("the test waits")))
        .expect("there is room");
    receiver
}

#[test]
fn one_worker_reads_while_another_writes_the_same_stream() {
    const BYTES: usize = 4 << 20;
    on_workers(2, || {
        let (near, far) = pair();
        let far = Arc::new(far);
        let sides = [(0, 1, Arc::new(near)), (1, 0, far)];
        let work = sides.map(|(read_at, write_at, stream)| {
            let reading = stream.clone();
            let reader = spawn_at(read_at, move || {
                let mut received = vec![0; BYTES];
                (&*reading).read_exact(&mut received).expect("all comes");
                received == pattern(BYTES)
            });
            let writer = spawn_at(write_at, move || (&*stream).write_all(&pattern(BYTES)));
            (reader, writer)
        });
        for (reader, writer) in work {
            writer.recv().expect("no panic").expect("all is sent");
            assert!(reader.recv().expect("no panic"), "the bytes came in order");
        }
    });
}

#[test]
fn a_dhaga_and_a_plain_thread_share_a_stream() {
    const ROUNDS: usize = 1000;
    on_workers(1, || {
        let (near, far) = pair();
        let echoing = thread::spawn(move || echo(far));
        let near = Arc::new(near);
        let writing = near.clone();
        let writer = thread::spawn(move || {
            (0..ROUNDS).try_for_each(|_| (&*writing).write_all(&[7; 16]))?;
            writing.shutdown(Shutdown::Write)
        });
        let mut received = Vec::new();
        (&*near).read_to_end(&mut received).expect("it ends");
        assert_eq!(received.len(), ROUNDS * 16);
        writer.join().expect("no panic").expect("all is sent");
        echoing.join().expect("no panic").expect("no error");
    });
}

#[test]
fn readers_on_all_sides_of_one_stream_get_each_byte_once() {
    const BYTES: usize = 20_000;
    on_workers(2, || {
        let (mut near, far) = pair();
        let far = Arc::new(far);
        let total = Arc::new(AtomicUsize::new(0));
        let reads = |far: Arc<TcpStream>, total: Arc<AtomicUsize>| {
            move || -> io::Result<()> {
                loop {
                    match (&*far).read(&mut [0; 7])? {
                        0 => return Ok(()),
                        count => total.fetch_add(count, Ordering::SeqCst),
                    };
                }
            }
        };
        let dhagas: Vec<JoinHandle<_>> = (0..6).map(|_| dhaga::spawn(reads(far.clone(), total.clone()))).collect();
        let threads: Vec<_> = (0..2).map(|_| thread::spawn(reads(far.clone(), total.clone()))).collect();
        for _ in 0..BYTES / 10 {
            near.write_all(&[1; 10]).expect("they read");
        }
        drop(near);
        dhagas.into_iter().for_each(|handle| handle.join().expect("no panic").expect("an end for each"));
        threads.into_iter().for_each(|handle| handle.join().expect("no panic").expect("an end for each"));
        assert_eq!(total.load(Ordering::SeqCst), BYTES);
    });
}

#[test]
fn a_shutdown_by_another_dhaga_wakes_all_who_read() {
    on_workers(2, || {
        let (_near, far) = pair();
        let far = Arc::new(far);
        let readers: Vec<_> = (0..10)
            .map(|_| {
                let far = far.clone();
                dhaga::spawn(move || (&*far).read(&mut [0]))
            })
            .collect();
        for _ in 0..10 {
            dhaga::yield_now();
        }
        far.shutdown(Shutdown::Both).expect("it is connected");
        for reader in readers {
            assert_eq!(reader.join().expect("no panic").expect("an end"), 0);
        }
    });
}

#[test]
fn a_socket_closed_on_another_worker_leaves_no_stale_events() {
    const ROUNDS: usize = 300;
    on_workers(2, || {
        for round in 0..ROUNDS {
            let (near, far) = pair();
            let home = round % 2;
            // Waits once on one worker, so that it is registered there, and is closed on the other.
            let used = spawn_at(home, move || {
                near.set_read_timeout(Some(Duration::from_micros(1))).expect("it may be set");
                (&near).read(&mut [0]).expect_err("nothing comes");
                near
            });
            let near = used.recv().expect("no panic");
            let closed = spawn_at(1 - home, move || drop(near));
            assert_eq!((&far).read(&mut [0]).expect("it is closed"), 0);
            closed.recv().expect("no panic");
        }
    });
}

// Callbacks

/// Closes its own connection when it is called.
struct ClosesItself {
    stream: Mutex<Option<TcpStream>>,
    called: mpsc::Sender<()>,
}

impl OnReady for ClosesItself {
    fn on_ready(self: Arc<Self>) {
        if let Some(stream) = self.stream.lock().expect("unpoisoned").take() {
            turn::stop_on_ready(&stream);
            drop(stream);
        }
        let _ = self.called.send(());
    }
}

#[test]
fn a_callback_may_close_its_own_connection() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(1);
        let (called, was_called) = mpsc::channel();
        let (listener, address) = loopback();
        let watcher = runtime.spawn(move || {
            let (stream, _) = listener.accept().expect("a client comes");
            let watched = stream.try_clone().expect("it is shared");
            let callback = Arc::new(ClosesItself { stream: Mutex::new(Some(stream)), called });
            turn::on_ready(&watched, callback).expect("this is a worker");
        });
        let mut client = std::net::TcpStream::connect(address).expect("it listens");
        watcher.join().expect("no panic");
        client.write_all(b"x").expect("there is room");
        was_called.recv_timeout(DEADLINE).expect("it is called");
        assert!(client.read(&mut [0]).is_ok_and(|count| count == 0) || client.take_error().is_ok());
        assert_eq!(runtime.spawn(|| 1).join().expect("the worker goes on"), 1);
    });
}

// Descriptors

#[test]
fn accept_without_descriptors_is_an_error_and_works_again_later() {
    child::succeeds(child::name_of!(accept_without_descriptors_is_an_error_and_works_again_later), || {
        let runtime = runtime(2);
        let (listener, address) = loopback();
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = Some(100);
        setrlimit(Resource::Nofile, limit).expect("it may be lowered");
        let body = move || {
            for _ in 0..3 {
                let mut fillers: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
                fillers.pop();
                let mut client = TcpStream::connect(address).expect("one descriptor is free");
                for _ in 0..3 {
                    let error = listener.accept().expect_err("none is left");
                    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                }
                drop(fillers);
                let (mut server, from) = listener.accept().expect("descriptors are free again");
                assert_eq!(from, client.local_addr().expect("it is connected"));
                client.write_all(b"x").expect("there is room");
                server.read_exact(&mut [0]).expect("it comes");
            }
        };
        runtime.spawn(body).join().expect("the body ends well");
    });
}

#[test]
fn a_peer_that_never_stops_sending_starves_nobody() {
    within_deadline(DEADLINE, || {
        let listener = std::net::TcpListener::bind(ANY_PORT).expect("a port can be had");
        let address = listener.local_addr().expect("it is bound");
        let sender = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            while stream.write_all(&[0; 1 << 20]).is_ok() {}
        });
        let runtime = Runtime::builder().workers(1).build().expect("threads can be had");
        let reader = runtime.spawn(move || {
            let mut stream = TcpStream::connect(address).expect("it listens");
            let mut buffer = [0; 1024];
            // Never waits: the sender is faster.
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        let other = runtime.spawn(|| (0..20).for_each(|_| dhaga::sleep(Duration::from_millis(1))));
        other.join().expect("the other dhaga gets its turns");
        reader.cancel();
        reader.join().expect("the reader ends with an error of its read");
        sender.join().expect("and the sender with it");
    });
}
