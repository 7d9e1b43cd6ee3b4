//! UDP: what std does, many in one receive, and a peer that is not there.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga::net::UdpSocket;
use dhaga::sync::channel;

use crate::common::{DEADLINE, everywhere, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// The same tests twice: with std's sockets, to see that they are right, and with ours, on plain threads and in dhagas.
macro_rules! as_in_std {
    ($(fn $name:ident() $body:block)*) => {
        as_in_std! { in std_itself, std::net::UdpSocket, |body: fn()| within_deadline(DEADLINE, body), $($name $body)* }
        as_in_std! { in ours, dhaga::net::UdpSocket, |body: fn()| everywhere(body), $($name $body)* }
    };
    (in $module:ident, $socket:path, $run:expr, $($name:ident $body:block)*) => {
        mod $module {
            use super::*;
            use $socket;

            fn socket() -> UdpSocket {
                UdpSocket::bind(ANY_PORT).expect("a port is free")
            }

            /// Each is connected with the other.
            fn pair() -> (UdpSocket, UdpSocket) {
                let (one, other) = (socket(), socket());
                one.connect(other.local_addr().expect("it is bound")).expect("it is there");
                other.connect(one.local_addr().expect("it is bound")).expect("it is there");
                (one, other)
            }

            $(#[test]
            fn $name() {
                $run(|| $body);
            })*
        }
    };
}

as_in_std! {
    fn a_datagram_arrives_whole_and_tells_its_sender() {
        let (server, client) = (socket(), socket());
        let address = server.local_addr().expect("it is bound");
        assert_eq!(client.send_to(b"hello", address).expect("there is room"), 5);
        assert_eq!(client.send_to(b"", address).expect("there is room"), 0);
        let from = client.local_addr().expect("it is bound");
        let mut buffer = [0; 16];
        assert_eq!(server.recv_from(&mut buffer).expect("it comes"), (5, from));
        assert_eq!(&buffer[..5], b"hello");
        assert_eq!(server.recv_from(&mut buffer).expect("it comes, though empty"), (0, from));
    }

    fn a_receive_waits_for_the_datagram() {
        let (server, client) = pair();
        let (begun, has_begun) = mpsc::channel();
        let receiver = thread::spawn(move || {
            begun.send(()).expect("the test waits");
            server.recv(&mut [0; 16])
        });
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        client.send(b"abc").expect("there is room");
        assert_eq!(receiver.join().expect("no panic").expect("it comes"), 3);
    }

    fn what_the_buffer_has_no_room_for_is_lost() {
        let (server, client) = pair();
        client.send(b"abcdef").expect("there is room");
        client.send(b"gh").expect("there is room");
        let mut buffer = [0; 3];
        assert_eq!(server.recv(&mut buffer).expect("it comes"), 3);
        assert_eq!(&buffer, b"abc");
        assert_eq!(server.recv(&mut buffer).expect("it comes"), 2);
        assert_eq!(&buffer[..2], b"gh");
    }

    fn a_peek_takes_nothing() {
        let (server, client) = pair();
        client.send(b"abc").expect("there is room");
        let mut buffer = [0; 2];
        for _ in 0..3 {
            assert_eq!((server.peek(&mut buffer).expect("it is there"), &buffer), (2, b"ab"));
            let from = client.local_addr().expect("it is bound");
            assert_eq!(server.peek_from(&mut buffer).expect("it is there"), (2, from));
        }
        assert_eq!(server.recv(&mut [0; 8]).expect("it is still there"), 3);
    }

    fn a_connected_socket_hears_its_peer_alone() {
        let (server, client) = pair();
        let stranger = socket();
        stranger.send_to(b"stranger", server.local_addr().expect("it is bound")).expect("it is sent, and dropped");
        client.send(b"x").expect("there is room");
        assert_eq!(server.recv(&mut [0; 16]).expect("it comes"), 1);
        assert_eq!(server.peer_addr().expect("it is connected"), client.local_addr().expect("it is bound"));
        assert_eq!(stranger.peer_addr().expect_err("it is not").kind(), ErrorKind::NotConnected);
    }

    fn a_peer_that_is_not_there_refuses_once_and_may_come_back() {
        let (server, client) = pair();
        let address = server.local_addr().expect("it is bound");
        drop(server);
        client.send(b"x").expect("it is sent");
        assert_eq!(client.recv(&mut [0]).expect_err("nobody was there").kind(), ErrorKind::ConnectionRefused);
        client.set_read_timeout(Some(SHORT)).expect("it may be set");
        assert_eq!(client.recv(&mut [0]).expect_err("the error was told").kind(), ErrorKind::WouldBlock);
        client.set_read_timeout(None).expect("it may be set");
        // The port may have gone to another test.
        let Ok(server) = UdpSocket::bind(address) else { return };
        server.send_to(b"y", client.local_addr().expect("it is bound")).expect("there is room");
        assert_eq!(client.recv(&mut [0]).expect("it comes"), 1);
    }

    fn a_read_timeout_is_would_block() {
        let (server, client) = pair();
        server.set_read_timeout(Some(SHORT)).expect("it may be set");
        let started = Instant::now();
        assert_eq!(server.recv_from(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        assert!(started.elapsed() >= SHORT);
        client.send(b"x").expect("there is room");
        server.set_read_timeout(Some(DEADLINE)).expect("it may be set");
        assert_eq!(server.recv(&mut [0; 8]).expect("it has come"), 1);
        assert_eq!(server.read_timeout().expect("it is known"), Some(DEADLINE));
        server.set_write_timeout(Some(DEADLINE)).expect("it may be set");
        assert_eq!(server.write_timeout().expect("it is known"), Some(DEADLINE));
        let error = server.set_read_timeout(Some(Duration::ZERO)).expect_err("zero means nothing");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    fn a_non_blocking_socket_never_waits() {
        let (server, client) = pair();
        let clone = server.try_clone().expect("it is shared");
        clone.set_nonblocking(true).expect("it may be set");
        assert_eq!(server.recv(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        client.send(b"x").expect("there is room");
        while server.recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            thread::yield_now();
            dhaga::yield_now();
        }
    }

    fn options_are_set_and_told() {
        let socket = socket();
        socket.set_broadcast(true).expect("UDP has it");
        assert!(socket.broadcast().expect("UDP has it"));
        socket.set_ttl(9).expect("IP has it");
        assert_eq!(socket.ttl().expect("IP has it"), 9);
        socket.set_multicast_ttl_v4(3).expect("IP has it");
        assert_eq!(socket.multicast_ttl_v4().expect("IP has it"), 3);
        socket.set_multicast_loop_v4(false).expect("IP has it");
        assert!(!socket.multicast_loop_v4().expect("IP has it"));
        let group = Ipv4Addr::new(224, 0, 0, 251);
        assert!(socket.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST).is_err(), "it has not joined");
        assert!(socket.take_error().expect("there is an answer").is_none());
    }

    fn an_address_in_use_and_no_address_are_errors() {
        let socket = socket();
        let error = UdpSocket::bind(socket.local_addr().expect("it is bound")).expect_err("it is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let nowhere: &[std::net::SocketAddr] = &[];
        assert_eq!(socket.send_to(b"x", nowhere).expect_err("no address").kind(), ErrorKind::InvalidInput);
        assert_eq!(UdpSocket::bind(nowhere).expect_err("no address").kind(), ErrorKind::InvalidInput);
    }
}

/// Runs a body in a dhaga of a runtime of its own; fails when it fails, and when it hangs.
fn on_workers(workers: usize, body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, move || {
        let runtime = Runtime::builder().workers(workers).build().expect("a test can start a runtime");
        runtime.spawn(body).join().expect("the body ends well");
    });
}

#[test]
fn each_datagram_goes_to_one_of_many_who_wait() {
    const RECEIVERS: usize = 50;
    on_workers(2, || {
        let socket = Arc::new(UdpSocket::bind(ANY_PORT).expect("a port is free"));
        let address = socket.local_addr().expect("it is bound");
        let (tell, told) = channel::unbounded();
        let receivers: Vec<_> = (0..RECEIVERS)
            .map(|_| {
                let (socket, tell) = (socket.clone(), tell.clone());
                dhaga::spawn(move || {
                    let mut buffer = [0; 8];
                    let (len, _) = socket.recv_from(&mut buffer).expect("one for each");
                    tell.send((len, buffer[0])).expect("the test listens");
                })
            })
            .collect();
        for _ in 0..RECEIVERS {
            dhaga::yield_now();
        }
        // At once, so that one event may stand for several.
        let client = std::net::UdpSocket::bind(ANY_PORT).expect("a port is free");
        for number in 0..RECEIVERS {
            client.send_to(&[number as u8], address).expect("there is room");
        }
        let mut numbers: Vec<_> = (0..RECEIVERS).map(|_| told.recv().expect("each tells")).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().enumerate().all(|(at, got)| *got == (1, at as u8)), "{numbers:?}");
        receivers.into_iter().for_each(|receiver| receiver.join().expect("no panic"));
    });
}

#[test]
fn a_refusal_wakes_one_who_waits_and_the_rest_go_on_waiting() {
    on_workers(1, || {
        let gone = std::net::UdpSocket::bind(ANY_PORT).expect("a port is free");
        let socket = Arc::new(UdpSocket::bind(ANY_PORT).expect("a port is free"));
        socket.connect(gone.local_addr().expect("it is bound")).expect("it is there");
        drop(gone);
        let receive = || {
            let socket = socket.clone();
            dhaga::spawn(move || socket.recv(&mut [0]))
        };
        let (first, second) = (receive(), receive());
        dhaga::yield_now();
        dhaga::yield_now();
        socket.send(b"x").expect("it is sent");
        let error = first.join().expect("no panic").expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(!second.is_finished());
        second.cancel();
        second.join().expect("no panic").expect_err("it was cancelled");
    });
}

#[test]
fn a_socket_goes_to_std_and_back_with_its_timeouts() {
    everywhere(|| {
        let socket = UdpSocket::bind(ANY_PORT).expect("a port is free");
        socket.set_read_timeout(Some(SHORT)).expect("it may be set");
        let stds = std::net::UdpSocket::try_from(socket).expect("nobody else has it");
        assert!(stds.read_timeout().expect("it is known").is_some_and(|timeout| timeout >= SHORT));
        // In blocking mode it takes as long as the timeout says.
        let started = Instant::now();
        stds.recv(&mut [0]).expect_err("nothing comes");
        assert!(started.elapsed() >= SHORT);
        let ours = UdpSocket::try_from(stds).expect("it is put into non-blocking mode");
        assert!(ours.read_timeout().expect("it is known").is_some_and(|timeout| timeout >= SHORT));
        let address = ours.local_addr().expect("it is bound");
        let clone = ours.try_clone().expect("it is shared");
        let duplicate = UdpSocket::from(std::os::fd::OwnedFd::from(ours));
        assert_eq!(duplicate.local_addr().expect("it is bound"), address);
        drop(duplicate);
        clone.send_to(b"x", address).expect("the clone is open");
        assert_eq!(clone.recv(&mut [0]).expect("it comes"), 1);
    });
}
