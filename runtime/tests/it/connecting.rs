//! How connections come about: to the first of several addresses that answers, and what becomes of it when that goes wrong.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{iter, thread};

use dhaga::net::{CONNECT_ATTEMPT_DELAY, ConnectError, TcpListener, TcpStream};
use dhaga::{Interrupt, Runtime, within};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::child::{self, descriptors};
use crate::common::{DEADLINE, cancelled_during, everywhere, within_deadline};

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn bound() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&socket, &SocketAddr::from(ANY_PORT)).expect("a port is free");
    let address = rustix::net::getsockname(&socket).expect("it is bound");
    (socket, address.try_into().expect("it is an address of IPv4"))
}

/// An address that refuses connections, for as long as the socket lives.
struct Refusing {
    _socket: OwnedFd,
    address: SocketAddr,
}

fn refusing() -> Refusing {
    let (socket, address) = bound();
    Refusing { _socket: socket, address }
}

/// An address that does not answer: its backlog is full, and the kernel drops what more comes.
struct Silent {
    _listener: OwnedFd,
    address: SocketAddr,
    _in_the_way: Vec<OwnedFd>,
}

fn silent() -> Silent {
    let (listener, address) = bound();
    rustix::net::listen(&listener, 0).expect("it can listen");
    let in_the_way = (0..2).map(|_| {
        let client = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None);
        let client = client.expect("a socket");
        // It is under way, or done.
        let _ = rustix::net::connect(&client, &address);
        client
    });
    Silent { _in_the_way: in_the_way.collect(), _listener: listener, address }
}

fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

fn error_of(addresses: &[SocketAddr]) -> io::Error {
    TcpStream::connect(addresses).expect_err("nobody answers")
}

fn attempts_of(error: &io::Error) -> &[(SocketAddr, io::Error)] {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ConnectError>());
    inner.expect("several addresses were tried").attempts()
}

fn is_deadline(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    error.kind() == ErrorKind::TimedOut && matches!(inner, Some(Interrupt::DeadlineExceeded { .. }))
}

#[test]
fn of_several_the_first_that_answers_is_taken_and_the_next_is_left_alone() {
    everywhere(|| {
        let ((_one, first), (two, second)) = (listening(), listening());
        let stream = TcpStream::connect(&[first, second][..]).expect("both listen");
        assert_eq!(stream.peer_addr().expect("it is connected"), first);
        two.set_nonblocking(true).expect("it may be set");
        assert_eq!(two.accept().expect_err("nobody has come").kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn the_next_is_tried_at_once_when_one_refuses() {
    const REFUSING: usize = 40;
    everywhere(|| {
        let refusing: Vec<_> = (0..REFUSING).map(|_| refusing()).collect();
        let (_listener, address) = listening();
        let addresses: Vec<_> = refusing.iter().map(|refusing| refusing.address).chain([address]).collect();
        let began = Instant::now();
        let stream = TcpStream::connect(&addresses[..]).expect("the last one listens");
        assert_eq!(stream.peer_addr().expect("it is connected"), address);
        assert!(began.elapsed() < CONNECT_ATTEMPT_DELAY * (REFUSING / 2) as u32, "{:?}", began.elapsed());
    });
}

#[test]
fn the_next_is_tried_beside_one_that_is_silent() {
    everywhere(|| {
        let (silent, (_listener, address)) = (silent(), listening());
        let began = Instant::now();
        let stream = TcpStream::connect(&[silent.address, address][..]).expect("the second listens");
        assert_eq!(stream.peer_addr().expect("it is connected"), address);
        assert!(began.elapsed() >= CONNECT_ATTEMPT_DELAY);
    });
}

#[test]
fn when_all_fail_the_error_names_each() {
    everywhere(|| {
        let (one, two) = (refusing(), refusing());
        let error = error_of(&[one.address, two.address]);
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let tried: Vec<_> = attempts_of(&error).iter().map(|(address, error)| (*address, error.kind())).collect();
        let refused = ErrorKind::ConnectionRefused;
        assert_eq!(tried, [(one.address, refused), (two.address, refused)]);
        for address in [one.address, two.address] {
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
    });
}

#[test]
fn an_address_without_a_way_fails_as_in_std_and_tells_less_than_one_that_refuses() {
    everywhere(|| {
        let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
        let stds = std::net::TcpStream::connect(nowhere).expect_err("TCP has no broadcast");
        assert_eq!(error_of(&[nowhere]).raw_os_error(), stds.raw_os_error());
        let refusing = refusing();
        let error = error_of(&[nowhere, refusing.address]);
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(attempts_of(&error)[0].1.raw_os_error(), stds.raw_os_error());
        assert_eq!(error_of(&[nowhere, nowhere]).kind(), stds.kind());
    });
}

/// As many as a name server likes to send. No attempt takes time, all of them together do.
#[test]
fn a_deadline_ends_attempts_that_fail_at_once_and_others_run_between_them() {
    // TCP has no broadcast, which the kernel says before it sends anything.
    let nowhere = vec![SocketAddr::from((Ipv4Addr::BROADCAST, 9)); 50_000];
    let addresses = nowhere.clone();
    everywhere(move || {
        let error = within(Duration::from_millis(5), || error_of(&addresses));
        assert!(is_deadline(&error), "{:?}", error.kind());
    });
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let turns = runtime.spawn(move || {
            let has_ended = AtomicBool::new(false);
            dhaga::scope(|s| {
                let yields = || iter::repeat_with(dhaga::yield_now).take_while(|()| !has_ended.load(Relaxed)).count();
                let other = s.spawn(yields);
                assert!(!is_deadline(&error_of(&nowhere)));
                has_ended.store(true, Relaxed);
                other.join().expect("it ends well")
            })
        });
        assert!(turns.join().expect("it ends well") > 10);
    });
}

#[test]
fn a_listener_that_is_closed_by_another_dhaga_ends_who_connects_and_who_has_connected() {
    within_deadline(DEADLINE, || {
        let (listener, address) = listening();
        let mut waiting = TcpStream::connect(address).expect("the backlog has room");
        let reader = dhaga::spawn(move || waiting.read(&mut [0]));
        dhaga::spawn(move || drop(listener)).join().expect("it ends well");
        let read = reader.join().expect("it ends well");
        assert!(read.as_ref().map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |count| *count == 0));

        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let silent = silent();
        let address = silent.address;
        let connecting = runtime.spawn(move || TcpStream::connect(address).map(drop));
        // The only worker runs another dhaga as soon as that one is parked.
        runtime.spawn(move || drop(silent)).join().expect("it ends well");
        // It asks again a second later.
        let error = connecting.join().expect("it ends well").expect_err("nobody listens any more");
        assert!(matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{error}");
    });
}

/// Connects in vain, and to somebody, in all ways that leave attempts behind.
fn leave_attempts_behind() {
    let (one, two, (listener, address)) = (silent(), silent(), listening());
    let both_try = CONNECT_ATTEMPT_DELAY + CONNECT_ATTEMPT_DELAY / 2;
    let error = within(both_try, || error_of(&[one.address, two.address]));
    assert!(is_deadline(&error), "{error}");
    let stream = TcpStream::connect(&[one.address, address, two.address][..]).expect("the second listens");
    drop((stream, listener));
    assert_eq!(error_of(&[address, address]).kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn attempts_that_lose_or_are_given_up_are_closed() {
    child::succeeds(child::name_of!(attempts_that_lose_or_are_given_up_are_closed), || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        // What a runtime and a thread keep for themselves, they have from now on.
        leave_attempts_behind();
        runtime.spawn(leave_attempts_behind).join().expect("it ends well");
        let before = descriptors();
        leave_attempts_behind();
        runtime.spawn(leave_attempts_behind).join().expect("it ends well");
        assert_eq!(descriptors(), before);
        let (one, two) = (silent(), silent());
        let addresses = [one.address, two.address];
        let error = cancelled_during(move || error_of(&addresses));
        assert!(error.get_ref().is_some_and(|inner| inner.is::<dhaga::Cancelled>()), "{error}");
        drop((one, two));
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn without_descriptors_a_connect_is_an_error_and_works_again_later() {
    child::succeeds(child::name_of!(without_descriptors_a_connect_is_an_error_and_works_again_later), || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = Some(64);
        setrlimit(Resource::Nofile, limit).expect("it may be lowered");
        let body = || {
            let (_listener, address) = listening();
            let before = descriptors();
            let fillers: Vec<_> = iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
            for addresses in [&[address][..], &[address, address]] {
                let error = error_of(addresses);
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
            }
            drop(fillers);
            assert_eq!(descriptors(), before);
            TcpStream::connect(&[address, address][..]).expect("descriptors are free again");
        };
        thread::spawn(body).join().expect("it ends well");
        runtime.spawn(body).join().expect("it ends well");
    });
}

#[test]
fn a_timeout_is_for_one_address_and_not_zero() {
    everywhere(|| {
        let silent = silent();
        let error = TcpStream::connect_timeout(&silent.address, Duration::from_millis(5)).expect_err("it is silent");
        assert_eq!((error.kind(), is_deadline(&error)), (ErrorKind::TimedOut, false), "{error}");
        let error = TcpStream::connect_timeout(&silent.address, Duration::ZERO).expect_err("zero means nothing");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}
