//! Listeners: their options, a loop on each worker, and what they do when descriptors run out.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::iter;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use dhaga::net::{Async, TcpListener, TcpStream, UnixListener, WorkerListeners, listen_on_each_worker};
use dhaga::{Interrupt, Runtime, turn, within};
use rustix::net::sockopt::ipv6_v6only;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::child::{self, descriptors};
use crate::common::{DEADLINE, everywhere, within_deadline};

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(20);

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a test can start a runtime")
}

#[test]
fn a_port_is_shared_by_those_who_say_so() {
    everywhere(|| {
        let shared = TcpListener::options().reuse_port(true);
        let one = shared.bind(ANY_PORT).expect("a port is free");
        let address = one.local_addr().expect("it is bound");
        let other = shared.bind(address).expect("it is shared");
        assert_eq!(other.local_addr().expect("it is bound"), address);
        assert_eq!(TcpListener::bind(address).expect_err("it is taken").kind(), ErrorKind::AddrInUse);
        let alone = TcpListener::options().bind(ANY_PORT).expect("a port is free");
        let taken = shared.bind(alone.local_addr().expect("it is bound"));
        assert_eq!(taken.expect_err("it is not shared").kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn a_backlog_has_room_for_as_many_as_it_says() {
    everywhere(|| {
        let listener = TcpListener::options().backlog(0).bind(ANY_PORT).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let waiting: Vec<_> = (0..5).map_while(|_| within(SHORT, || TcpStream::connect(address)).ok()).collect();
        // The kernel gives room for one more than asked for.
        assert!((1..=2).contains(&waiting.len()), "{waiting:?}");
        let wide = TcpListener::options().backlog(u32::MAX).bind(ANY_PORT).expect("the kernel cuts it down");
        let address = wide.local_addr().expect("it is bound");
        let waiting: Vec<_> = (0..100).map_while(|_| TcpStream::connect(address).ok()).collect();
        assert_eq!(waiting.len(), 100);
    });
}

#[test]
fn an_address_of_ipv6_hears_ipv4_or_not() {
    let Ok(both) = TcpListener::options().only_v6(false).bind((Ipv6Addr::UNSPECIFIED, 0)) else {
        return println!("this machine has no IPv6");
    };
    everywhere(|| {
        for only in [false, true] {
            let listener = TcpListener::options().only_v6(only).bind((Ipv6Addr::UNSPECIFIED, 0));
            assert_eq!(ipv6_v6only(listener.expect("a port is free")), Ok(only));
        }
        TcpListener::options().only_v6(true).bind(ANY_PORT).expect("it does not concern IPv4");
    });
    let port = both.local_addr().expect("it is bound").port();
    within_deadline(DEADLINE, move || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it is heard");
        drop(both);
    });
}

/// How many sockets of this machine listen on a port of IPv4, as the kernel says.
fn listening_on(address: SocketAddr) -> usize {
    const LISTEN: &str = "0A";
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    let port = format!(":{:04X}", address.port());
    let listens = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some(LISTEN)
    };
    table.lines().filter(listens).count()
}

/// Tells each client on which thread it is served, as the test is told.
fn telling(told: mpsc::Sender<ThreadId>) -> impl Fn(TcpStream) + Send + Sync + 'static {
    let told = Mutex::new(told);
    move |mut stream| {
        told.lock().expect("nobody panicked").send(thread::current().id()).expect("the test listens");
        stream.write_all(b"x").expect("there is room");
        // Until the client goes.
        let _ = stream.read(&mut [0]);
    }
}

fn threads_of(runtime: &Runtime) -> HashSet<ThreadId> {
    let (told, threads) = mpsc::channel();
    let ask = move || {
        for worker in 0..turn::workers().expect("this is a worker") {
            let told = told.clone();
            let tell = move || told.send(thread::current().id()).expect("the test listens");
            turn::spawn_at(worker, tell).expect("there is room");
        }
    };
    runtime.spawn(ask).join().expect("it ends well");
    threads.iter().collect()
}

fn listen_on(runtime: &Runtime, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> WorkerListeners {
    let listening = runtime.spawn(move || listen_on_each_worker(ANY_PORT, serve));
    listening.join().expect("it ends well").expect("a port is free")
}

#[test]
fn who_serves_was_spawned_where_somebody_listens() {
    everywhere(|| {
        let (told, sites) = dhaga::sync::channel::unbounded();
        let serve = move |_| told.send(dhaga::current().spawn_site()).expect("the test listens");
        let (here, server) = (line!(), listen_on_each_worker(ANY_PORT, serve));
        let server = server.expect("a port is free");
        let _client = TcpStream::connect(server.local_addr()).expect("it listens");
        let site = sites.recv().expect("it is served").expect("a dhaga serves it");
        assert_eq!((site.file(), site.line()), (file!(), here));
        server.stop().expect("nothing ends the wait");
    });
}

#[test]
fn each_worker_listens_and_serves_what_it_accepts() {
    const CLIENTS: usize = 120;
    within_deadline(DEADLINE, || {
        let runtime = runtime(3);
        let (told, served) = mpsc::channel();
        let server = listen_on(&runtime, telling(told));
        let address = server.local_addr();
        assert_eq!(listening_on(address), 3);
        let mut clients: Vec<_> =
            (0..CLIENTS).map(|_| std::net::TcpStream::connect(address).expect("it listens")).collect();
        clients.iter_mut().for_each(|client| client.read_exact(&mut [0]).expect("it is served"));
        let served: Vec<_> = served.iter().take(CLIENTS).collect();
        // The kernel chooses: that one of three gets none of so many is as likely as to guess a key.
        assert_eq!(served.into_iter().collect::<HashSet<_>>(), threads_of(&runtime));
    });
}

#[test]
fn a_worker_that_is_busy_keeps_its_own_connections_and_no_others() {
    const CLIENTS: usize = 60;
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let (told, served) = mpsc::channel();
        let server = listen_on(&runtime, telling(told));
        let (busy, is_over) = (mpsc::channel(), Arc::new(AtomicBool::new(false)));
        let over = is_over.clone();
        let hog = runtime.spawn(move || {
            busy.0.send(thread::current().id()).expect("the test listens");
            while !over.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
        });
        let busy = busy.1.recv().expect("it has started");
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| std::net::TcpStream::connect(server.local_addr()).expect("it listens")).collect();
        let free = served.recv().expect("the other worker serves");
        assert_ne!(free, busy);
        is_over.store(true, Ordering::SeqCst);
        hog.join().expect("it ends well");
        let rest: Vec<_> = served.iter().take(CLIENTS - 1).collect();
        assert!(rest.contains(&busy), "what its listener got, it serves itself");
        drop(clients);
    });
}

#[test]
fn a_stop_frees_the_port_and_leaves_the_connections() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let (told, served) = mpsc::channel();
        let server = listen_on(&runtime, telling(told));
        let address = server.local_addr();
        let mut client = std::net::TcpStream::connect(address).expect("it listens");
        served.recv().expect("it is served");
        server.stop().expect("nothing interrupts it");
        assert_eq!(listening_on(address), 0);
        client.read_exact(&mut [0]).expect("it is still served");
        drop(client);
        // Dropped, they stop a moment later.
        let server = listen_on(&runtime, |_| ());
        let address = server.local_addr();
        drop(server);
        while listening_on(address) > 0 {
            thread::yield_now();
        }
        // A plain thread has no runtime but the default one.
        let server = listen_on_each_worker(ANY_PORT, |_| ()).expect("a port is free");
        TcpStream::connect(server.local_addr()).expect("it listens");
        server.stop().expect("nothing interrupts it");
    });
}

#[test]
fn a_handler_that_panics_ends_its_own_connection_only() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let server = listen_on(&runtime, |mut stream| {
            let mut word = [0];
            stream.read_exact(&mut word).expect("the client sends");
            assert_ne!(&word, b"!", "on purpose");
            stream.write_all(&word).expect("there is room");
        });
        for word in [b"!", b"a", b"!", b"b"].into_iter().cycle().take(20) {
            let mut client = std::net::TcpStream::connect(server.local_addr()).expect("it listens");
            client.write_all(word).expect("there is room");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("it ends");
            assert_eq!(answer, if word == b"!" { &b""[..] } else { word });
        }
    });
}

#[test]
fn a_shutdown_ends_the_loops() {
    within_deadline(DEADLINE, || {
        let runtime = runtime(2);
        let server = listen_on(&runtime, |_| ());
        let address = server.local_addr();
        runtime.shutdown(DEADLINE).expect("nothing holds it up");
        assert_eq!(listening_on(address), 0);
        server.stop().expect("they have ended");
    });
}

/// Takes all descriptors that are left but as many as given.
fn fill(left: usize) -> Vec<File> {
    let mut fillers: Vec<_> = iter::from_fn(|| File::open("/dev/null").ok()).collect();
    fillers.truncate(fillers.len() - left);
    fillers
}

fn limit_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(100);
    setrlimit(Resource::Nofile, limit).expect("it may be lowered");
}

/// Pauses that come before the given error of a row, with the default pause of 5 ms, doubled each time.
fn pauses_before(error: u32) -> Duration {
    Duration::from_millis(5) * (2_u32.pow(error.saturating_sub(1)) - 1)
}

/// Calls `accept` without descriptors until it has failed so often, which takes its time, and then with some.
fn lives_on<S: Write>(mut accept: impl FnMut() -> io::Result<S>, connect: impl FnOnce() -> Box<dyn Read>) {
    const ERRORS: u32 = 6;
    let fillers = fill(1);
    let mut client = connect();
    let began = Instant::now();
    for error in 1..=ERRORS {
        let failed = accept().err().expect("no descriptor is left");
        assert_eq!(failed.raw_os_error(), Some(libc::EMFILE), "{failed}");
        assert!(began.elapsed() >= pauses_before(error), "error {error} after {:?}", began.elapsed());
    }
    drop(fillers);
    accept().expect("the connection has waited").write_all(b"x").expect("there is room");
    client.read_exact(&mut [0]).expect("it is served");
}

#[test]
fn loops_of_accepts_live_on_without_descriptors_and_do_not_spin() {
    child::succeeds(child::name_of!(loops_of_accepts_live_on_without_descriptors_and_do_not_spin), || {
        let runtime = runtime(1);
        limit_descriptors();
        let body = || {
            let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            let connect = || Box::new(std::net::TcpStream::connect(address).expect("one is left")) as Box<dyn Read>;
            lives_on(|| listener.accept().map(|(stream, _)| stream), connect);
            let mut incoming = listener.incoming();
            lives_on(|| incoming.next().expect("it goes on"), connect);
            let folder = std::env::temp_dir().join(format!("dhaga-shortage-{}", std::process::id()));
            let _ = fs::remove_file(&folder);
            let listener = UnixListener::bind(&folder).expect("a name is free");
            let connect = || Box::new(std::os::unix::net::UnixStream::connect(&folder).expect("one is left")) as _;
            lives_on(|| listener.accept().map(|(stream, _)| stream), connect);
            fs::remove_file(&folder).expect("it was made above");
        };
        let everywhere = || {
            thread::spawn(body).join().expect("it ends well");
            runtime.spawn(body).join().expect("it ends well");
        };
        // What a runtime keeps for itself, it has from now on.
        everywhere();
        let before = descriptors();
        everywhere();
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn futures_that_accept_live_on_without_descriptors_and_do_not_spin() {
    child::succeeds(child::name_of!(futures_that_accept_live_on_without_descriptors_and_do_not_spin), || {
        let runtime = runtime(1);
        limit_descriptors();
        // On a plain thread a dhaga of the default runtime registers the socket, which takes descriptors for its start.
        dhaga::spawn(|| ()).join().expect("it ends well");
        let body = || {
            let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            let mut listener = Async::new(listener);
            let client = std::net::TcpStream::connect(address).expect("somebody listens");
            dhaga::block_on(listener.accept()).expect("a client comes");
            drop(client);
            let connect = || Box::new(std::net::TcpStream::connect(address).expect("one is left")) as Box<dyn Read>;
            lives_on(|| dhaga::block_on(listener.accept()).map(|(stream, _)| stream), connect);
            // It counts anew, and a pause ends with the scope.
            let (fillers, client) = (fill(1), connect());
            assert!(dhaga::block_on(listener.accept()).is_err());
            let shortages = async {
                loop {
                    match listener.accept().await {
                        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {}
                        other => return other.map(drop),
                    }
                }
            };
            // Whoever looks first when the time is over says so: the wait, or the accept that is polled just then.
            match within(SHORT, || dhaga::try_block_on(shortages)) {
                Err(Interrupt::DeadlineExceeded { .. }) => {}
                Ok(ended) => assert_eq!(ended.expect_err("no descriptor is left").kind(), ErrorKind::TimedOut),
                Err(interrupt) => panic!("{interrupt}"),
            }
            drop((fillers, client));
        };
        thread::spawn(body).join().expect("it ends well");
        runtime.spawn(body).join().expect("it ends well");
    });
}

#[test]
fn a_pause_of_an_accept_ends_with_the_deadline_and_the_shutdown() {
    child::succeeds(child::name_of!(a_pause_of_an_accept_ends_with_the_deadline_and_the_shutdown), || {
        let runtime = runtime(1);
        limit_descriptors();
        let (tell, told) = mpsc::channel();
        let accepting = runtime.spawn(move || {
            let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
            let fillers = fill(1);
            let client = std::net::TcpStream::connect(listener.local_addr().expect("it is bound"));
            let client = client.expect("one is left");
            let shortage = |error: &io::Error| error.raw_os_error() == Some(libc::EMFILE);
            let mut others = iter::from_fn(|| listener.accept().err()).filter(|error| !shortage(error));
            let late = within(SHORT, || others.next()).expect("it always fails");
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            tell.send(()).expect("the test listens");
            let end = others.next().expect("it always fails");
            drop((fillers, client));
            end.get_ref().is_some_and(|inner| inner.is::<dhaga::ShuttingDown>())
        });
        told.recv().expect("it goes on");
        runtime.shutdown(DEADLINE).expect("it ends");
        assert!(accepting.join().expect("it ends well"));
    });
}

#[test]
fn the_loop_of_each_worker_lives_on_without_descriptors() {
    child::succeeds(child::name_of!(the_loop_of_each_worker_lives_on_without_descriptors), || {
        let runtime = runtime(2);
        limit_descriptors();
        let (told, served) = mpsc::channel();
        let server = listen_on(&runtime, telling(told));
        // A connection that ends would free a descriptor.
        let mut kept = Vec::new();
        for _ in 0..3 {
            let sockets: Vec<_> = (0..4).map(|_| socket(AddressFamily::INET, SocketType::STREAM, None)).collect();
            let fillers = fill(0);
            let connect = |socket: Result<OwnedFd, _>| {
                let socket = socket.expect("there were descriptors");
                rustix::net::connect(&socket, &server.local_addr()).expect("the backlog has room");
                std::net::TcpStream::from(socket)
            };
            let mut clients: Vec<_> = sockets.into_iter().map(connect).collect();
            assert!(served.recv_timeout(SHORT).is_err(), "no descriptor is left");
            drop(fillers);
            clients.iter_mut().for_each(|client| client.read_exact(&mut [0]).expect("it is served"));
            assert_eq!(served.iter().take(4).count(), 4);
            kept.append(&mut clients);
        }
    });
}
