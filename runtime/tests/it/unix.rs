//! Sockets of this host: what std does, dhagas beside each other, and ends of all kinds.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dhaga::net::{UnixDatagram, UnixListener, UnixStream};
use dhaga::{JoinHandle, Runtime};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::common::{DEADLINE, everywhere, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
/// Makes the paths of sockets differ.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The same tests twice: with std's sockets, to see that they are right, and with ours, on plain threads and in dhagas.
macro_rules! as_in_std {
    ($(fn $name:ident() $body:block)*) => {
        as_in_std! { in std_itself, std::os::unix::net, |body: fn()| within_deadline(DEADLINE, body), $($name $body)* }
        as_in_std! { in ours, dhaga::net::unix, |body: fn()| everywhere(body), $($name $body)* }
    };
    (in $module:ident, $net:path, $run:expr, $($name:ident $body:block)*) => {
        mod $module {
            use super::*;
            use $net as net;
            use dhaga::net::unix::SocketAddrExt;
            use net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

            /// An abstract name that the kernel chooses.
            fn any_name() -> SocketAddr {
                SocketAddr::from_pathname("").expect("it is an address")
            }

            fn listener() -> (UnixListener, SocketAddr) {
                let listener = UnixListener::bind_addr(&any_name()).expect("a name is free");
                let address = listener.local_addr().expect("it is bound");
                (listener, address)
            }

            fn datagram() -> (UnixDatagram, SocketAddr) {
                let socket = UnixDatagram::bind_addr(&any_name()).expect("a name is free");
                let address = socket.local_addr().expect("it is bound");
                (socket, address)
            }

            $(#[test]
            fn $name() {
                $run(|| $body);
            })*
        }
    };
}

as_in_std! {
    fn a_listener_at_a_path_accepts() {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dhaga-{}-{number}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        assert_eq!(UnixStream::connect(&path).expect_err("it is not there").kind(), ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).expect("there is nothing");
        assert_eq!(UnixListener::bind(&path).expect_err("it is taken").kind(), ErrorKind::AddrInUse);
        let mut client = UnixStream::connect(&path).expect("it listens");
        let (mut server, from) = listener.accept().expect("a client has come");
        assert!(from.is_unnamed());
        assert_eq!(client.peer_addr().expect("it is connected").as_pathname(), Some(&*path));
        client.write_all(b"hello").expect("there is room");
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).expect("it ends");
        assert_eq!(text, "hello");
        drop(listener);
        assert_eq!(UnixStream::connect(&path).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).expect("it stays when the listener goes");
        let long = "x".repeat(200);
        assert_eq!(UnixStream::connect(&long).expect_err("it is too long").kind(), ErrorKind::InvalidInput);
    }

    fn an_abstract_name_is_found_while_its_listener_lives() {
        let (listener, address) = listener();
        let name = address.as_abstract_name().expect("the kernel has chosen one");
        let address = SocketAddr::from_abstract_name(name).expect("it is short");
        let accepted: Vec<_> = thread::scope(|s| {
            let clients = s.spawn(|| [(); 3].map(|()| UnixStream::connect_addr(&address)));
            let accepted = listener.incoming().take(3).collect();
            assert!(clients.join().expect("no panic").iter().all(Result::is_ok));
            accepted
        });
        assert!(accepted.iter().all(Result::is_ok));
        drop(listener);
        assert_eq!(UnixStream::connect_addr(&address).expect_err("it is gone").kind(), ErrorKind::ConnectionRefused);
    }

    fn all_arrives_through_a_full_buffer() {
        const BYTES: usize = 2 << 20;
        let (mut near, mut far) = UnixStream::pair().expect("sockets can be had");
        let writer = thread::spawn(move || near.write_all(&vec![7; BYTES]));
        let mut received = Vec::new();
        far.read_to_end(&mut received).expect("it ends");
        assert!(received.len() == BYTES && received.iter().all(|byte| *byte == 7));
        writer.join().expect("no panic").expect("all is sent");
    }

    fn a_peer_that_closes_is_an_end_and_a_broken_pipe() {
        let (mut near, far) = UnixStream::pair().expect("sockets can be had");
        drop(far);
        assert_eq!(near.read(&mut [0]).expect("it is an end"), 0);
        assert_eq!(near.write(&[0]).expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
    }

    fn a_peer_that_closes_with_bytes_unread_is_a_reset() {
        let (mut near, far) = UnixStream::pair().expect("sockets can be had");
        near.write_all(b"unread").expect("there is room");
        drop(far);
        assert_eq!(near.read(&mut [0]).expect_err("it was not read").kind(), ErrorKind::ConnectionReset);
        assert_eq!(near.read(&mut [0]).expect("the error was told"), 0);
    }

    fn a_half_that_is_shut_leaves_the_other_open() {
        let (mut near, mut far) = UnixStream::pair().expect("sockets can be had");
        near.write_all(b"request").expect("there is room");
        near.shutdown(Shutdown::Write).expect("it is connected");
        let mut request = String::new();
        far.read_to_string(&mut request).expect("it ends");
        far.write_all(b"answer").expect("this half is open");
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).expect("it ends");
        assert_eq!((&*request, &*answer), ("request", "answer"));
        assert_eq!(near.write(&[0]).expect_err("it is shut").kind(), ErrorKind::BrokenPipe);
    }

    fn timeouts_are_would_block() {
        let (mut near, _far) = UnixStream::pair().expect("sockets can be had");
        near.set_read_timeout(Some(SHORT)).expect("it may be set");
        near.set_write_timeout(Some(SHORT)).expect("it may be set");
        assert_eq!(near.read(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        let error = loop {
            if let Err(error) = near.write(&[0; 1 << 16]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let error = near.set_write_timeout(Some(Duration::ZERO)).expect_err("zero means nothing");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    fn datagrams_tell_their_senders() {
        let ((server, address), (client, from)) = (datagram(), datagram());
        assert_eq!(client.send_to_addr(b"hello", &address).expect("there is room"), 5);
        let mut buffer = [0; 3];
        let (len, sender) = server.recv_from(&mut buffer).expect("it comes");
        assert_eq!((len, &buffer, sender.as_abstract_name()), (3, b"hel", from.as_abstract_name()));
        let nobody = UnixDatagram::unbound().expect("a socket can be had");
        nobody.connect_addr(&address).expect("it is there");
        nobody.send(b"").expect("there is room");
        let (len, sender) = server.recv_from(&mut buffer).expect("it comes, though empty");
        assert!(len == 0 && sender.is_unnamed());
        drop(server);
        assert_eq!(nobody.send(b"x").expect_err("it is gone").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(client.send_to_addr(b"x", &address).expect_err("it is gone").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(client.send(b"x").expect_err("it has no peer").kind(), ErrorKind::NotConnected);
    }

    fn a_datagram_waits_for_room_at_its_receiver() {
        const COUNT: u32 = 2000;
        let (server, address) = datagram();
        let (connected, sender) = (UnixDatagram::unbound().expect("a socket"), UnixDatagram::unbound().expect("a socket"));
        connected.connect_addr(&address).expect("it is there");
        let senders = thread::spawn(move || {
            (0..COUNT).try_for_each(|number| connected.send(&number.to_ne_bytes()).map(drop))?;
            (0..COUNT).try_for_each(|number| sender.send_to_addr(&number.to_ne_bytes(), &address).map(drop))
        });
        for number in (0..COUNT).chain(0..COUNT) {
            let mut buffer = [0; 4];
            assert_eq!(server.recv(&mut buffer).expect("it comes"), 4);
            assert_eq!(u32::from_ne_bytes(buffer), number);
        }
        senders.join().expect("no panic").expect("all are sent");
    }

    fn a_receive_ends_where_the_socket_is_shut() {
        let (near, _far) = UnixDatagram::pair().expect("sockets can be had");
        near.shutdown(Shutdown::Read).expect("it is connected");
        assert_eq!(near.recv(&mut [0]).expect("it is an end"), 0);
        let (len, sender) = near.recv_from(&mut [0]).expect("it is an end");
        assert!(len == 0 && sender.is_unnamed());
    }

    fn a_non_blocking_socket_never_waits() {
        let (listener, _) = listener();
        listener.set_nonblocking(true).expect("it may be set");
        assert_eq!(listener.accept().expect_err("nobody comes").kind(), ErrorKind::WouldBlock);
        let (mut near, _far) = UnixStream::pair().expect("sockets can be had");
        near.set_nonblocking(true).expect("it may be set");
        assert_eq!(near.read(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        let (near, _far) = UnixDatagram::pair().expect("sockets can be had");
        near.set_nonblocking(true).expect("it may be set");
        assert_eq!(near.recv(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        near.shutdown(Shutdown::Read).expect("it is connected");
        assert_eq!(near.recv(&mut [0]).expect_err("as std's").kind(), ErrorKind::WouldBlock);
    }
}

/// Runs a body in a dhaga of a runtime with one worker; fails when it fails, and when it hangs.
fn in_dhaga(body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, move || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        runtime.spawn(body).join().expect("the body ends well");
    });
}

/// Starts ten dhagas that wait for the same.
fn ten<T: Send + 'static>(wait: impl Fn() -> T + Clone + Send + 'static) -> Vec<JoinHandle<T>> {
    let (begun, has_begun) = dhaga::sync::channel::unbounded();
    let waiting = (0..10).map(|_| {
        let (begun, wait) = (begun.clone(), wait.clone());
        dhaga::spawn(move || {
            begun.send(()).expect("somebody counts");
            wait()
        })
    });
    let waiting = waiting.collect();
    (0..10).for_each(|_| has_begun.recv().expect("each begins"));
    // The only worker runs each of them until it waits.
    dhaga::yield_now();
    waiting
}

fn ends<T: Send + 'static>(waiting: Vec<JoinHandle<T>>) -> impl Iterator<Item = T> {
    waiting.into_iter().map(|waiter| waiter.join().expect("no panic"))
}

#[test]
fn a_shutdown_by_another_dhaga_wakes_all_who_read() {
    in_dhaga(|| {
        let (near, _far) = UnixStream::pair().expect("sockets can be had");
        let near = Arc::new(near);
        let reading = near.clone();
        let readers = ten(move || (&*reading).read(&mut [0]));
        near.shutdown(Shutdown::Both).expect("it is connected");
        assert!(ends(readers).all(|read| read.is_ok_and(|count| count == 0)));
    });
}

#[test]
fn a_shutdown_by_another_dhaga_wakes_all_who_write() {
    for how in [Shutdown::Write, Shutdown::Both] {
        in_dhaga(move || {
            let (near, _far) = UnixStream::pair().expect("sockets can be had");
            let near = Arc::new(near);
            let writing = near.clone();
            let writers = ten(move || (&*writing).write_all(&[0; 1 << 20]));
            assert!(writers.iter().all(|writer| !writer.is_finished()), "nobody reads");
            near.shutdown(how).expect("it is connected");
            assert!(ends(writers).all(|written| written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)));
        });
    }
}

#[test]
fn a_peer_that_closes_wakes_all_who_write() {
    in_dhaga(|| {
        let (near, far) = UnixStream::pair().expect("sockets can be had");
        let near = Arc::new(near);
        let writers = ten(move || (&*near).write_all(&[0; 1 << 20]));
        drop(far);
        let is_broken = |kind| matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        assert!(ends(writers).all(|written| written.is_err_and(|error| is_broken(error.kind()))));
    });
}

#[test]
fn a_shutdown_by_another_dhaga_wakes_all_who_receive() {
    in_dhaga(|| {
        let (near, _far) = UnixDatagram::pair().expect("sockets can be had");
        let near = Arc::new(near);
        let receiving = near.clone();
        let receivers = ten(move || receiving.recv(&mut [0]));
        near.shutdown(Shutdown::Read).expect("it is connected");
        assert!(ends(receivers).all(|received| received.is_ok_and(|count| count == 0)));
    });
}

#[test]
fn bytes_behind_a_descriptor_are_read_without_a_further_event() {
    in_dhaga(|| {
        let (near, far) = UnixStream::pair().expect("sockets can be had");
        let (begun, has_begun) = dhaga::sync::oneshot::channel();
        let reader = dhaga::spawn(move || {
            begun.send(()).expect("the test waits");
            let mut buffer = [0; 64];
            let mut total = 0;
            while total < 2 {
                total += (&far).read(&mut buffer).expect("it comes");
            }
        });
        has_begun.recv().expect("it begins");
        dhaga::yield_now();
        // The first byte brings a descriptor along, at which a read ends; the second lies behind it before anybody reads.
        let null = std::fs::File::open("/dev/null").expect("it is there");
        let descriptors = [std::os::fd::AsFd::as_fd(&null)];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = [std::io::IoSlice::new(b"1")];
        sendmsg(&near, &bytes, &mut ancillary, SendFlags::empty()).expect("there is room");
        (&near).write_all(b"2").expect("there is room");
        reader.join().expect("no panic");
    });
}

#[test]
fn accepts_end_when_the_runtime_is_shut_down() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (began, has_begun) = mpsc::channel();
        let server = runtime.spawn(move || {
            let any_name = dhaga::net::unix::SocketAddr::from_pathname("").expect("it is an address");
            let listener = UnixListener::bind_addr(&any_name).expect("a name is free");
            began.send(()).expect("the test waits");
            (&listener).into_iter().count()
        });
        has_begun.recv_timeout(DEADLINE).expect("it begins");
        runtime.shutdown(DEADLINE).expect("all end");
        assert_eq!(server.join().expect("it was not unwound"), 0);
    });
}

#[test]
fn streams_go_to_std_and_back() {
    everywhere(|| {
        let (near, mut far) = UnixStream::pair().expect("sockets can be had");
        let mut stds = std::os::unix::net::UnixStream::try_from(near).expect("nobody else has it");
        far.write_all(b"x").expect("there is room");
        assert_eq!(stds.read(&mut [0]).expect("it comes"), 1);
        let ours = UnixStream::try_from(stds).expect("it is put into non-blocking mode");
        drop(UnixStream::from(std::os::fd::OwnedFd::from(ours)));
        assert_eq!(far.read(&mut [0]).expect("it is closed"), 0);
    });
}
