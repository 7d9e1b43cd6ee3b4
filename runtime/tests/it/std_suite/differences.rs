//! Where ours differ from std's for a reason. `docs/porting.md` lists them.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::sockopt::tcp_quickack;

use crate::common::{DEADLINE, everywhere, within_deadline};

type Std = std::os::unix::net::UnixStream;
type Ours = dhaga::net::UnixStream;

/// Shorter than a tick of any kernel's clock, and no multiple of one.
const ODD: Duration = Duration::from_nanos(3_141_593);

#[test]
fn a_timeout_is_kept_as_it_was_set_and_stds_is_rounded_to_ticks() {
    let (stds, _peer) = Std::pair().expect("sockets can be had");
    stds.set_read_timeout(Some(ODD)).expect("it may be set");
    assert!(stds.read_timeout().expect("it is known").is_some_and(|timeout| timeout > ODD));
    everywhere(|| {
        let (ours, _peer) = Ours::pair().expect("sockets can be had");
        ours.set_read_timeout(Some(ODD)).expect("it may be set");
        assert_eq!(ours.read_timeout().expect("it is known"), Some(ODD));
    });
}

#[test]
fn quick_acknowledgements_need_no_trait() {
    everywhere(|| {
        let listener = dhaga::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let stream = dhaga::net::TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        for quickack in [false, true] {
            stream.set_quickack(quickack).expect("TCP has it");
            assert_eq!(stream.quickack().expect("TCP has it"), quickack);
            assert_eq!(tcp_quickack(&stream).expect("TCP has it"), quickack);
        }
    });
}

#[test]
fn clones_share_a_descriptor_of_which_stds_have_one_each() {
    let (stds, _peer) = Std::pair().expect("sockets can be had");
    assert_ne!(stds.try_clone().expect("a descriptor is left").as_raw_fd(), stds.as_raw_fd());
    everywhere(|| {
        let (ours, _peer) = Ours::pair().expect("sockets can be had");
        let clone = ours.try_clone().expect("it cannot fail");
        assert_eq!(clone.as_raw_fd(), ours.as_raw_fd());
        // Who needs one of its own takes it from the kernel; closing it does nothing to the stream.
        let own = clone.as_fd().try_clone_to_owned().expect("a descriptor is left");
        assert_ne!(own.as_raw_fd(), ours.as_raw_fd());
    });
}

#[test]
fn a_descriptor_is_in_non_blocking_mode_whatever_was_set() {
    let is_nonblocking = |socket: &dyn AsFd| {
        fcntl_getfl(socket.as_fd()).expect("an open descriptor has flags").contains(OFlags::NONBLOCK)
    };
    let (stds, _peer) = Std::pair().expect("sockets can be had");
    assert!(!is_nonblocking(&stds));
    everywhere(move || {
        let (ours, _peer) = Ours::pair().expect("sockets can be had");
        assert!(is_nonblocking(&ours));
        ours.set_nonblocking(true).expect("it may be set");
        ours.set_nonblocking(false).expect("it may be set");
        assert!(is_nonblocking(&ours));
        assert!(!is_nonblocking(&OwnedFd::from(ours)), "it is handed over as it was set");
    });
}

#[test]
fn a_descriptor_that_is_taken_over_waits_whatever_its_mode_was() {
    let (stds, _peer) = Std::pair().expect("sockets can be had");
    stds.set_nonblocking(true).expect("it may be set");
    let mut stds = Std::from(OwnedFd::from(stds));
    assert_eq!(stds.read(&mut [0]).expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
    everywhere(|| {
        let (stds, mut peer) = Std::pair().expect("sockets can be had");
        stds.set_nonblocking(true).expect("it may be set");
        let mut ours = Ours::from(OwnedFd::from(stds));
        let reader = dhaga::spawn(move || ours.read(&mut [0]));
        peer.write_all(b"x").expect("there is room");
        assert_eq!(reader.join().expect("no panic").expect("it waits"), 1);
    });
}

#[test]
fn more_wait_to_be_accepted_than_at_stds() {
    /// More than the 129 that the kernel keeps for a listener of std's.
    const CLIENTS: usize = 160;
    const SHORT: Duration = Duration::from_millis(200);
    within_deadline(DEADLINE, || {
        let stds = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = stds.local_addr().expect("it is bound");
        let connect = |_| std::net::TcpStream::connect_timeout(&address, SHORT).ok();
        let kept: Vec<_> = (0..CLIENTS).map_while(connect).collect();
        assert!(kept.len() < CLIENTS);
        drop(kept);
        let ours = dhaga::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = ours.local_addr().expect("it is bound");
        let connect = |_| std::net::TcpStream::connect_timeout(&address, DEADLINE).expect("it is kept");
        assert_eq!((0..CLIENTS).map(connect).collect::<Vec<_>>().len(), CLIENTS);
    });
}

#[test]
fn a_writer_on_a_thread_is_woken_where_both_ways_are_shut_and_stds_where_one_is() {
    fn fill(mut stream: impl Write) -> ErrorKind {
        loop {
            if let Err(error) = stream.write(&[0; 1 << 16]) {
                return error.kind();
            }
        }
    }
    within_deadline(DEADLINE, || {
        let (stds, _peer) = Std::pair().expect("sockets can be had");
        let writing = stds.try_clone().expect("a descriptor is left");
        let writer = thread::spawn(move || fill(writing));
        stds.shutdown(Shutdown::Write).expect("it is connected");
        assert_eq!(writer.join().expect("no panic"), ErrorKind::BrokenPipe);
        let (ours, _peer) = Ours::pair().expect("sockets can be had");
        let writing = ours.try_clone().expect("it cannot fail");
        let writer = thread::spawn(move || fill(writing));
        ours.shutdown(Shutdown::Both).expect("it is connected");
        assert_eq!(writer.join().expect("no panic"), ErrorKind::BrokenPipe);
    });
}
