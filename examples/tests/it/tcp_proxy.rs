//! The proxy, between real clients and real servers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::run::{Example, Running};

/// More than anything here takes in a debug build on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(ANY_PORT).expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

fn proxy(to: &str, more: &[&str]) -> (Running, String) {
    let mut proxy = Example::start("tcp_proxy", &[&["--addr", "127.0.0.1:0", "--to", to], more].concat());
    let address = proxy.address();
    (proxy, address)
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("it is not zero");
    stream.set_write_timeout(Some(TIMEOUT)).expect("it is not zero");
    stream
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("the proxy comes");
    stream.set_read_timeout(Some(TIMEOUT)).expect("it is not zero");
    stream
}

fn read(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it ends");
    text
}

#[test]
fn the_end_of_each_half_is_passed_on() {
    let (listener, to) = listener();
    let (mut proxy, address) = proxy(&to, &[]);
    let mut client = connect(&address);
    let mut server = accept(&listener);
    client.write_all(b"request").expect("it is read");
    client.shutdown(Shutdown::Write).expect("it is connected");
    assert_eq!(read(&server), "request");
    // The request has ended, and the way back is open.
    server.write_all(b"the answer").expect("it is read");
    drop(server);
    assert_eq!(read(&client), "the answer");
    let report = proxy.line("127.0.0.1:", TIMEOUT);
    assert!(report.starts_with(&client.local_addr().expect("it is bound").to_string()), "{report}");
    assert!(report.contains(": 7 bytes there, 10 back, ended well; in total 1 connections, 7 bytes"), "{report}");
    // And the other way round.
    let mut client = connect(&address);
    let mut server = accept(&listener);
    server.write_all(b"bye").expect("it is read");
    server.shutdown(Shutdown::Write).expect("it is connected");
    assert_eq!(read(&client), "bye");
    client.write_all(b"still here").expect("it is read");
    drop(client);
    assert_eq!(read(&server), "still here");
    let report = proxy.line("127.0.0.1:", TIMEOUT);
    assert!(report.ends_with("in total 2 connections, 17 bytes there, 13 back"), "{report}");
}

#[test]
fn much_goes_both_ways_at_once_for_many() {
    const BYTES: usize = 2 << 20;
    let (listener, to) = listener();
    let (mut proxy, address) = proxy(&to, &[]);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("the proxy comes");
            thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
        }
    });
    let talk = |number: u8| {
        let client = connect(&address);
        let mut writing = client.try_clone().expect("a descriptor is left");
        let writer = thread::spawn(move || {
            writing.write_all(&vec![number; BYTES]).expect("it is read");
            writing.shutdown(Shutdown::Write).expect("it is connected");
        });
        let mut all = Vec::new();
        (&client).read_to_end(&mut all).expect("it ends");
        assert!(all.len() == BYTES && all.iter().all(|&byte| byte == number));
        writer.join().expect("no panic");
    };
    thread::scope(|scope| (0..8).for_each(|number| _ = scope.spawn(move || talk(number))));
    let totals = (0..8).map(|_| proxy.line("127.0.0.1:", TIMEOUT)).last().expect("eight have ended");
    let sum = 8 * BYTES;
    assert!(totals.ends_with(&format!("in total 8 connections, {sum} bytes there, {sum} back")), "{totals}");
}

#[test]
fn a_reset_ends_both_sides() {
    let (listener, to) = listener();
    let (mut proxy, address) = proxy(&to, &[]);
    let mut client = connect(&address);
    let mut server = accept(&listener);
    client.write_all(b"unread").expect("it is read");
    server.read_exact(&mut [0]).expect("it comes");
    // Closed with bytes unread: that is a reset.
    drop(server);
    let end = client.read(&mut [0]);
    assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    let report = proxy.line("127.0.0.1:", TIMEOUT);
    assert!(report.contains("ended Connection reset"), "{report}");
}

#[test]
fn who_is_not_there_is_named_and_the_client_is_let_go() {
    let (listener, to) = listener();
    drop(listener);
    let (mut proxy, address) = proxy(&to, &["--connect-ms", "10000"]);
    assert_eq!(read(&connect(&address)), "");
    let report = proxy.line("127.0.0.1:", TIMEOUT);
    assert!(report.contains(&format!("ended without a connection to {to}: Connection refused")), "{report}");
}

#[test]
fn who_does_not_answer_is_given_up() {
    // A listener whose queue is full answers nobody.
    let full = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
    let full = full.expect("a socket can be had");
    rustix::net::bind(&full, &SocketAddr::from(ANY_PORT)).expect("a port is free");
    rustix::net::listen(&full, 0).expect("it is bound");
    let to: SocketAddr = rustix::net::getsockname(&full).expect("it is bound").try_into().expect("it is one");
    let _first = TcpStream::connect(to).expect("there is room for one");
    let (mut proxy, address) = proxy(&to.to_string(), &["--connect-ms", "50"]);
    assert_eq!(read(&connect(&address)), "");
    let report = proxy.line("127.0.0.1:", TIMEOUT);
    assert!(report.contains("ended without a connection to"), "{report}");
}

#[test]
fn what_comes_beyond_the_limit_waits() {
    let (listener, to) = listener();
    let (_proxy, address) = proxy(&to, &["--connections", "1"]);
    let first = connect(&address);
    let first_server = accept(&listener);
    let mut second = connect(&address);
    second.write_all(b"later").expect("the kernel keeps it");
    listener.set_nonblocking(true).expect("it may be set");
    assert_eq!(listener.accept().expect_err("it waits").kind(), ErrorKind::WouldBlock);
    listener.set_nonblocking(false).expect("it may be set");
    drop((first, first_server));
    let server = accept(&listener);
    drop(second);
    assert_eq!(read(&server), "later");
}
