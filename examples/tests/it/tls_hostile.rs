//! Peers that stall or lie while the handshake lasts: an error with a type, and everybody else goes on.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::Barrier;
use dhaga::{Cancelled, Runtime, STACK_BYTES_DEFAULT};
use dhaga_examples::tls;
use rustls::{Error, InvalidMessage};

use crate::bounded::{DEADLINE, everywhere, within_deadline};
use crate::run::{Example, Running};
use crate::tls_world::{World, pair, shake};

/// How long a handshake may take, of which it is known that it lasts for ever.
const SHORT: Duration = Duration::from_millis(50);

#[test]
fn a_peer_that_says_nothing_is_waited_for_until_the_deadline() {
    everywhere(|| {
        let world = World::new();
        let (_silent, far) = pair();
        let error = dhaga::within(SHORT, || shake(&mut world.server(far))).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let (near, _silent) = pair();
        let error = dhaga::within(SHORT, || shake(&mut world.client(near))).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_peer_that_sends_byte_by_byte_gets_no_more_time() {
    everywhere(|| {
        let world = World::new();
        let (near, far) = pair();
        let mut near = TcpStream::try_from(near).expect("nobody else has it");
        // The head of a record of 4 KiB, which never becomes whole within the time.
        near.write_all(&[0x16, 3, 1, 0x10, 0]).expect("it is connected");
        let dribbles = thread::spawn(move || {
            let began = Instant::now();
            while began.elapsed() < DEADLINE && near.write_all(&[1]).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
            began.elapsed()
        });
        let error = dhaga::within(SHORT, || shake(&mut world.server(far))).expect_err("it is never whole");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let connected_for = dhaga::blocking(|| dribbles.join()).expect("it ends").expect("it ends well");
        assert!(connected_for < DEADLINE, "the connection was not closed");
    });
}

/// What the server says of a client that sends `bytes` and then nothing more.
fn server_told(world: &World, bytes: &[u8]) -> io::Error {
    let (near, far) = pair();
    (&near).write_all(bytes).expect("it is connected");
    near.shutdown(Shutdown::Write).expect("it is connected");
    shake(&mut world.server(far)).expect_err("this is no handshake")
}

/// What the client says of a server that answers `bytes` and then nothing more.
fn client_told(world: &World, bytes: &[u8]) -> io::Error {
    let (near, far) = pair();
    (&far).write_all(bytes).expect("it is connected");
    far.shutdown(Shutdown::Write).expect("it is connected");
    shake(&mut world.client(near)).expect_err("this is no handshake")
}

const HTTP: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const OVERSIZED_RECORD: &[u8] = &[0x16, 3, 3, 0xff, 0xff, 1, 0];
const EMPTY_RECORD: &[u8] = &[0x16, 3, 3, 0, 0];
/// A record of four bytes, in it the head of a message of 16 MiB.
const OVERSIZED_MESSAGE: &[u8] = &[0x16, 3, 3, 0, 4, 1, 0xff, 0xff, 0xff];
const HALF_A_RECORD: &[u8] = &[0x16, 3, 3, 0, 200, 1, 0, 0];
const DATA_BEFORE_ITS_TIME: &[u8] = &[0x17, 3, 3, 0, 1, 7];
const FATAL_ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];

#[test]
fn whoever_sends_no_handshake_is_named_an_offender() {
    within_deadline(|| {
        // One worker for all of them: what harms it harms the next.
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let world = Arc::new(World::new());
        let check = |bytes: &'static [u8], fits: fn(&Error) -> bool| {
            for told in [server_told, client_told] {
                let world = world.clone();
                let error = runtime.spawn(move || told(&world, bytes)).join().expect("no peer causes a panic");
                assert!(tls::cause(&error).is_some_and(fits), "{bytes:?}: {error:?}");
                assert_eq!(error.kind(), ErrorKind::InvalidData, "{bytes:?}");
            }
        };
        let is_malformed = |error: &Error| matches!(error, Error::InvalidMessage(_));
        check(HTTP, |error| matches!(error, Error::InvalidMessage(InvalidMessage::InvalidContentType)));
        check(&[0xff; 64], is_malformed);
        check(&[0; 64], is_malformed);
        check(OVERSIZED_RECORD, |error| matches!(error, Error::InvalidMessage(InvalidMessage::MessageTooLarge)));
        check(OVERSIZED_MESSAGE, is_malformed);
        check(EMPTY_RECORD, is_malformed);
        check(DATA_BEFORE_ITS_TIME, |error| matches!(error, Error::InappropriateMessage { .. }));
        check(FATAL_ALERT, |error| matches!(error, Error::AlertReceived(_)));

        let good = runtime.spawn(move || {
            let (mut client, mut server) = world.pair();
            let served = dhaga::spawn(move || shake(&mut server));
            shake(&mut client).and(served.join().expect("no peer causes a panic"))
        });
        good.join().expect("the worker lives").expect("all are honest now");
    });
}

#[test]
fn an_end_in_the_middle_of_a_handshake_is_an_end_that_nobody_expected() {
    everywhere(|| {
        let world = World::new();
        for bytes in [HALF_A_RECORD, &HALF_A_RECORD[..3], &[]] {
            assert_eq!(server_told(&world, bytes).kind(), ErrorKind::UnexpectedEof, "{bytes:?}");
            assert_eq!(client_told(&world, bytes).kind(), ErrorKind::UnexpectedEof, "{bytes:?}");
        }
    });
}

#[test]
fn a_cancel_and_a_shutdown_end_a_handshake() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let world = Arc::new(World::new());
        let stalled = || {
            let (silent, far) = pair();
            let world = world.clone();
            let handshake = runtime.spawn(move || shake(&mut world.server(far)));
            // The only worker runs another dhaga as soon as this one is parked.
            runtime.spawn(|| ()).join().expect("it ends well");
            (silent, handshake)
        };
        let (mut silent, handshake) = stalled();
        handshake.cancel();
        let error = handshake.join().expect("an error is no panic").expect_err("nobody answers");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Cancelled>()), "{error:?}");
        assert_eq!(silent.read(&mut [0]).expect("it is closed in order"), 0);

        let (mut silent, handshake) = stalled();
        runtime.shutdown(Duration::ZERO).expect("nobody holds it up");
        let error = handshake.join().expect("an error is no panic").expect_err("nobody answers");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Cancelled>()), "{error:?}");
        assert_eq!(silent.read(&mut [0]).expect("it is closed in order"), 0);
    });
}

/// Handshakes at once, each with two ends.
const AT_ONCE: usize = 100;

#[test]
fn a_hundred_handshakes_at_once_need_no_larger_stacks() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let world = Arc::new(World::new());
        let all_are_there = Arc::new(Barrier::new(2 * AT_ONCE));
        let mut ends = Vec::new();
        for _ in 0..AT_ONCE {
            let (near, far) = pair();
            let (here, there) = (world.clone(), world.clone());
            let (one, other) = (all_are_there.clone(), all_are_there.clone());
            ends.push(runtime.spawn(move || {
                one.wait();
                shake(&mut here.client(near))
            }));
            ends.push(runtime.spawn(move || {
                other.wait();
                shake(&mut there.server(far))
            }));
        }
        for end in ends {
            end.join().expect("no stack overflows").expect("both are honest");
        }
        let deepest = runtime.stack_high_water().first().expect("each second of the first is measured").used_bytes;
        println!("the deepest handshake used {deepest} bytes");
        // Twice that, as the documentation of `stack_high_water` asks for, must fit.
        assert!(2 * deepest <= STACK_BYTES_DEFAULT, "{deepest} bytes");
    });
}

/// Longer than any honest handshake on a busy machine, shorter than the test.
const SERVERS_PATIENCE: &str = "2000";

#[test]
fn a_server_that_was_lied_to_serves_on_and_keeps_nothing() {
    let mut server = Example::start("tls_echo", &["--serve", "--handshake-ms", SERVERS_PATIENCE]);
    let address = server.address();
    // The first connection brings what stays: the descriptors of the workers.
    refused(&address, HTTP);
    server.line("no handshake: received corrupt message", DEADLINE);
    let before = server.descriptors();
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(&address).expect("it listens")).collect();
    for bytes in [HTTP, OVERSIZED_RECORD, OVERSIZED_MESSAGE, EMPTY_RECORD, HALF_A_RECORD, &[0xff; 64]] {
        refused(&address, bytes);
    }
    for mut stream in silent {
        stream.set_read_timeout(Some(DEADLINE)).expect("it is not zero");
        assert_eq!(stream.read(&mut [0]).expect("it is closed in order"), 0);
    }
    falls_to(before, &server);
    refused(&address, HTTP);
}

/// Sends what no TLS server takes, and waits until the connection is closed.
fn refused(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("it is not zero");
    stream.write_all(bytes).expect("it is connected");
    stream.shutdown(Shutdown::Write).expect("it is connected");
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        // Bytes that it did not read before it closed.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn falls_to(before: usize, server: &Running) {
    let began = Instant::now();
    while server.descriptors() > before {
        assert!(began.elapsed() < DEADLINE, "{} descriptors, and {before} were there before", server.descriptors());
        thread::yield_now();
    }
}

#[test]
fn clients_and_a_server_in_one_process() {
    for mutual in [&[][..], &["--mutual"]] {
        let (status, stdout, stderr) = Example::output("tls_echo", mutual, DEADLINE);
        assert!(status.success(), "{status}: {stderr}");
        for number in 1..=4 {
            assert!(stdout.contains(&format!("hello from client {number}, TLSv1_3\n")), "{stdout}");
        }
    }
}
