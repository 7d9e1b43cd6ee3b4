//! One stream in the hands of several: a reader and a writer on workers of their own, a third who ends it while they wait,
//! and signals while they do.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream, UnixStream};
use dhaga::{JoinHandle, Runtime};

use crate::child;
use crate::common::{DEADLINE, within_deadline};

/// Bytes each way: more than the kernel keeps.
const BYTES: usize = 16 << 20;
const PIECE: usize = 1 << 16;

fn worker() -> Runtime {
    Runtime::builder().workers(1).build().expect("a test can start a runtime")
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    (near, listener.accept().expect("somebody has come").0)
}

fn unix_pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("sockets can be had")
}

/// Bytes that differ from piece to piece.
fn piece(number: usize) -> Vec<u8> {
    vec![number as u8; PIECE]
}

fn write_pieces(mut stream: impl Write) -> io::Result<()> {
    (0..BYTES / PIECE).try_for_each(|number| stream.write_all(&piece(number)))
}

fn read_pieces(mut stream: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    for number in 0..BYTES / PIECE {
        stream.read_exact(&mut buffer)?;
        assert!(buffer == piece(number), "piece {number} is another");
    }
    Ok(())
}

/// Starts a part on a runtime's only worker, or on a thread.
fn start<T: Send + 'static>(on: Option<&Runtime>, part: impl FnOnce() -> T + Send + 'static) -> Box<dyn FnOnce() -> T> {
    match on {
        Some(runtime) => {
            let dhaga = runtime.spawn(part);
            Box::new(|| dhaga.join().expect("no panic"))
        }
        None => {
            let thread = thread::spawn(part);
            Box::new(|| thread.join().expect("no panic"))
        }
    }
}

/// Runs a body with each of TCP and Unix streams.
macro_rules! over_both {
    ($(fn $name:ident($near:ident, $far:ident) $body:block)*) => {
        mod over_tcp {
            use super::*;
            $(#[test]
            fn $name() {
                within_deadline(DEADLINE, || {
                    let ($near, $far) = tcp_pair();
                    $body
                });
            })*
        }
        mod over_unix {
            use super::*;
            $(#[test]
            fn $name() {
                within_deadline(DEADLINE, || {
                    let ($near, $far) = unix_pair();
                    $body
                });
            })*
        }
    };
}

over_both! {
    fn a_reader_and_a_writer_have_workers_of_their_own(near, far) {
        let (here, there) = (worker(), worker());
        let (near, far) = (Arc::new(near), Arc::new(far));
        let parts = [
            start(Some(&here), { let near = near.clone(); move || write_pieces(&*near) }),
            start(Some(&there), { let near = near.clone(); move || read_pieces(&*near) }),
            start(Some(&there), { let far = far.clone(); move || write_pieces(&*far) }),
            start(None, move || read_pieces(&*far)),
        ];
        parts.into_iter().for_each(|part| part().expect("all is carried"));
    }

    fn clones_go_to_workers_of_their_own(near, far) {
        let (here, there) = (worker(), worker());
        let (near_reading, far_reading) = (near.try_clone().expect("it is shared"), far.try_clone().expect("it is shared"));
        let parts = [
            start(None, move || write_pieces(near)),
            start(Some(&here), move || read_pieces(near_reading)),
            start(Some(&here), move || write_pieces(far)),
            start(Some(&there), move || read_pieces(far_reading)),
        ];
        parts.into_iter().for_each(|part| part().expect("all is carried"));
    }

    fn a_shutdown_elsewhere_wakes_who_reads(near, _far) {
        let (here, there) = (worker(), worker());
        let near = Arc::new(near);
        let reading = near.clone();
        let reader = parked(&here, move || (&*reading).read(&mut [0]));
        let ended = start(Some(&there), move || near.shutdown(Shutdown::Read));
        ended().expect("it is connected");
        assert_eq!(reader.join().expect("no panic").expect("it is an end"), 0);
    }

    fn a_shutdown_elsewhere_wakes_who_writes(near, _far) {
        let (here, there) = (worker(), worker());
        let near = Arc::new(near);
        let writing = near.clone();
        let writer = parked(&here, move || write_pieces(&*writing));
        let ended = start(Some(&there), move || near.shutdown(Shutdown::Write));
        ended().expect("it is connected");
        assert_eq!(writer.join().expect("no panic").expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
    }

    fn a_shutdown_by_a_thread_wakes_both(near, _far) {
        let (here, there) = (worker(), worker());
        let near = Arc::new(near);
        let (reading, writing) = (near.clone(), near.clone());
        let reader = parked(&here, move || (&*reading).read(&mut [0]));
        let writer = parked(&there, move || write_pieces(&*writing));
        near.shutdown(Shutdown::Both).expect("it is connected");
        assert_eq!(reader.join().expect("no panic").expect("it is an end"), 0);
        assert_eq!(writer.join().expect("no panic").expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
    }

    fn a_clone_that_goes_ends_no_wait(near, far) {
        let here = worker();
        let mut reading = near.try_clone().expect("it is shared");
        let reader = parked(&here, move || reading.read(&mut [0; 8]));
        drop(near);
        // An end would have woken it before.
        here.spawn(|| ()).join().expect("no panic");
        assert!(!reader.is_finished());
        (&far).write_all(b"abc").expect("there is room");
        assert_eq!(reader.join().expect("no panic").expect("it comes"), 3);
    }

    fn a_reset_wakes_who_reads_and_who_writes(near, far) {
        let (here, there) = (worker(), worker());
        let near = Arc::new(near);
        let (reading, writing) = (near.clone(), near);
        let reader = parked(&here, move || (&*reading).read(&mut [0]));
        let writer = parked(&there, move || write_pieces(&*writing));
        (&far).read_exact(&mut [0]).expect("much was written");
        // Closed with bytes unread.
        drop(far);
        let ends = [reader.join().expect("no panic").map(drop), writer.join().expect("no panic")];
        // One of them is told of the reset, and the other finds what it left: an end, or a broken pipe.
        let resets = ends.iter().flat_map(|end| end.as_ref().err()).filter(|error| error.kind() == ErrorKind::ConnectionReset);
        assert_eq!(resets.count(), 1, "{ends:?}");
        assert!(ends[1].is_err(), "{ends:?}");
    }

    fn a_partial_write_tells_how_much_and_nothing_is_lost(near, far) {
        let here = worker();
        let (mut near, mut far) = (near, far);
        let sender = here.spawn(move || {
            near.set_write_timeout(Some(Duration::from_millis(5))).expect("it may be set");
            let (bytes, mut sent, mut was_partial) = (vec![7; PIECE * 16], 0, false);
            let slices = [IoSlice::new(&bytes), IoSlice::new(&bytes)];
            loop {
                match near.write_vectored(&slices) {
                    Ok(count) => {
                        was_partial |= count < 2 * bytes.len();
                        sent += count;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return (sent, was_partial),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let (sent, was_partial) = sender.join().expect("no panic");
        let mut received = Vec::new();
        far.read_to_end(&mut received).expect("it ends");
        assert!(was_partial && received.len() == sent && received.iter().all(|&byte| byte == 7));
    }
}

/// Starts a part on a runtime's only worker, and returns when it waits.
fn parked<T: Send + 'static>(on: &Runtime, part: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (begins, has_begun) = mpsc::channel();
    let part = on.spawn(move || {
        begins.send(()).expect("the test waits");
        part()
    });
    has_begun.recv_timeout(DEADLINE).expect("it begins");
    // The worker runs another as soon as this one waits. Who writes gives way now and then before: once more for the budget.
    (0..100).for_each(|_| on.spawn(|| ()).join().expect("no panic"));
    part
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Sends signals to a thread, from before it runs its body until that has ended.
fn under_signals<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let before = SIGNALS.load(Ordering::Relaxed);
    let (is_over, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (ending, hit) = (is_over.clone(), over.clone());
    let thread = thread::spawn(move || {
        while SIGNALS.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
        let value = body();
        ending.store(true, Ordering::SeqCst);
        // It stays until nobody hits it any more: its id must be its own as long.
        while !hit.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        value
    });
    while !is_over.load(Ordering::SeqCst) {
        // SAFETY: the thread has not ended, since it waits for `over`.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
        thread::sleep(Duration::from_micros(100));
    }
    over.store(true, Ordering::SeqCst);
    thread.join().expect("no panic")
}

#[test]
fn signals_neither_fail_nor_prolong_the_wait_of_a_thread() {
    child::succeeds("halves::signals_neither_fail_nor_prolong_the_wait_of_a_thread", || {
        let handler = count as extern "C" fn(libc::c_int);
        // SAFETY: the handler only adds to an atomic, and the process is this test's own.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };

        const SHORT: Duration = Duration::from_millis(100);
        // To see that they hit.
        let (mut stds, _peer) = std::os::unix::net::UnixStream::pair().expect("sockets can be had");
        stds.set_read_timeout(Some(DEADLINE)).expect("it may be set");
        let read = under_signals(move || stds.read(&mut [0]));
        assert_eq!(read.expect_err("nothing comes").kind(), ErrorKind::Interrupted);

        let (mut near, far) = unix_pair();
        near.set_read_timeout(Some(SHORT)).expect("it may be set");
        let (read, took, near) = under_signals(move || {
            let begun = Instant::now();
            (near.read(&mut [0]), begun.elapsed(), near)
        });
        assert_eq!(read.expect_err("nothing comes").kind(), ErrorKind::WouldBlock);
        assert!(took >= SHORT && took < DEADLINE / 2, "{took:?}");

        near.set_read_timeout(None).expect("it may be set");
        let reading = thread::spawn(move || under_signals(move || read_pieces(near)));
        under_signals(move || write_pieces(far)).expect("all is taken");
        reading.join().expect("no panic").expect("all has come");

        let (begins, has_begun) = mpsc::channel();
        let accepting = thread::spawn(move || {
            under_signals(move || {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
                begins.send(listener.local_addr().expect("it is bound")).expect("the test waits");
                (0..20).try_for_each(|_| listener.accept().map(drop))
            })
        });
        let address = has_begun.recv_timeout(DEADLINE).expect("it begins");
        under_signals(move || (0..20).try_for_each(|_| TcpStream::connect(address).map(drop))).expect("it listens");
        accepting.join().expect("no panic").expect("all have come");
    });
}
