//! Descriptors that are no sockets of ours.

use std::io::{self, ErrorKind, Read, Write, pipe};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhaga::Runtime;
use dhaga::net::Watched;
use dhaga::sync::channel;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, Mode, OFlags};

use crate::common::{DEADLINE, everywhere, within_deadline};

fn counter() -> Watched<OwnedFd> {
    Watched::new(eventfd(0, EventfdFlags::empty()).expect("an eventfd can be had")).expect("it has the mode")
}

/// What was added since the last time.
fn take(counter: &Watched<OwnedFd>) -> io::Result<u64> {
    let mut bytes = [0; 8];
    counter.read_with(|inner| Ok(rustix::io::read(inner, &mut bytes)?))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn add(counter: &Watched<OwnedFd>, count: u64) {
    counter.write_with(|inner| Ok(rustix::io::write(inner, &count.to_ne_bytes())?)).expect("it has room");
}

/// Runs a body in a dhaga of a runtime of its own with one worker; fails when it fails, and when it hangs.
fn in_dhaga(body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, move || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        runtime.spawn(body).join().expect("the body ends well");
    });
}

/// Returns when a dhaga of the only worker has tried, and so waits.
fn await_first(attempts: &AtomicUsize) {
    while attempts.load(Ordering::Relaxed) == 0 {
        dhaga::yield_now();
    }
}

#[test]
fn two_count_to_and_fro_over_foreign_descriptors() {
    const ROUNDS: u64 = 200;
    everywhere(|| {
        let (there, back) = (Arc::new(counter()), Arc::new(counter()));
        let (reads, writes) = (there.clone(), back.clone());
        let other = dhaga::spawn(move || (0..ROUNDS).for_each(|_| add(&writes, take(&reads).expect("it comes") + 1)));
        for round in 1..=ROUNDS {
            add(&there, round);
            assert_eq!(take(&back).expect("it comes"), round + 1);
        }
        other.join().expect("no panic");
    });
}

#[test]
fn readable_takes_nothing_and_wakes_all_who_wait() {
    in_dhaga(|| {
        let counter = Arc::new(counter());
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let counter = counter.clone();
                dhaga::spawn(move || counter.readable())
            })
            .collect();
        dhaga::yield_now();
        dhaga::yield_now();
        assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
        add(&counter, 5);
        waiting.into_iter().for_each(|waiter| waiter.join().expect("no panic").expect("it is readable"));
        counter.readable().expect("it still is");
        assert_eq!(take(&counter).expect("it is there"), 5);
        let error = dhaga::within(Duration::from_millis(1), || counter.readable()).expect_err("it is no longer");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        counter.writable().expect("it has room");
    });
}

#[test]
fn a_fifo_outlives_its_writers_and_nobody_tries_in_vain() {
    let path = std::env::temp_dir().join(format!("dhaga-fifo-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("a FIFO can be made");
    in_dhaga(move || {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(&path, flags, Mode::empty()).expect("it is there");
        let reader = Watched::with_mode_as_is(std::fs::File::from(reader));
        let write = || std::fs::OpenOptions::new().write(true).open(&path).expect("it has a reader");
        let mut first = write();
        dhaga::scope(|s| {
            let read = s.spawn(|| reader.read_with(|mut file| file.read(&mut [0; 8])));
            dhaga::yield_now();
            first.write_all(b"x").expect("there is room");
            assert_eq!(read.join().expect("no panic").expect("it comes"), 1);
        });
        let attempts = AtomicUsize::new(0);
        dhaga::scope(|s| {
            let read = s.spawn(|| {
                reader.read_with(|mut file| {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    file.read(&mut [0])
                })
            });
            await_first(&attempts);
            drop(first);
            assert_eq!(read.join().expect("no panic").expect("nobody writes"), 0);
        });
        let mut second = write();
        attempts.store(0, Ordering::Relaxed);
        dhaga::scope(|s| {
            let read = s.spawn(|| {
                reader.read_with(|mut file| {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    file.read(&mut [0; 8])
                })
            });
            (0..1000).for_each(|_| dhaga::yield_now());
            assert!(attempts.load(Ordering::Relaxed) < 10, "it waits, and does not try again and again");
            second.write_all(b"y").expect("there is room");
            assert_eq!(read.join().expect("no panic").expect("it comes"), 1);
        });
        std::fs::remove_file(&path).expect("it is there");
    });
}

#[test]
fn after_an_error_of_a_datagram_nobody_tries_in_vain() {
    in_dhaga(|| {
        let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        socket.connect(gone.local_addr().expect("it is bound")).expect("it is there");
        drop(gone);
        let socket = Watched::new(socket).expect("sockets have the mode");
        let attempts = AtomicUsize::new(0);
        let receive = || {
            socket.read_with(|socket| {
                attempts.fetch_add(1, Ordering::Relaxed);
                socket.recv(&mut [0])
            })
        };
        dhaga::scope(|s| {
            let first = s.spawn(receive);
            await_first(&attempts);
            socket.get_ref().send(b"x").expect("it is sent");
            let error = first.join().expect("no panic").expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            let second = s.spawn(receive);
            (0..1000).for_each(|_| dhaga::yield_now());
            assert!(attempts.load(Ordering::Relaxed) < 10, "it waits, and does not try again and again");
            second.cancel();
            second.join().expect("no panic").expect_err("it was cancelled");
        });
    });
}

#[test]
fn what_was_watched_comes_back_and_can_be_watched_anew() {
    in_dhaga(|| {
        let (reader, mut writer) = pipe().expect("a pipe can be had");
        let mut watched = Watched::new(reader).expect("pipes have the mode");
        for _ in 0..3 {
            dhaga::within(Duration::from_millis(1), || watched.readable()).expect_err("nothing comes");
            // The place in the interest list is free again, or this would be `AlreadyExists`.
            watched = Watched::with_mode_as_is(watched.into_inner());
        }
        writer.write_all(b"x").expect("there is room");
        watched.readable().expect("it has come");
    });
}

#[test]
fn what_cannot_be_watched_says_so() {
    in_dhaga(|| {
        let (reader, _writer) = pipe().expect("a pipe can be had");
        let first = Watched::new(reader.as_fd()).expect("pipes have the mode");
        dhaga::within(Duration::from_millis(1), || first.readable()).expect_err("nothing comes");
        let second = Watched::new(reader.as_fd()).expect("pipes have the mode");
        assert_eq!(second.readable().expect_err("it is watched").kind(), ErrorKind::AlreadyExists);
        let file = std::fs::File::open("/proc/self/exe").expect("it is there");
        Watched::with_mode_as_is(file).readable().expect("a regular file always is");
    });
}

#[test]
fn it_is_an_event_of_select() {
    everywhere(|| {
        let counter = Arc::new(counter());
        let (never, comes) = channel::unbounded::<()>();
        let adds = counter.clone();
        let other = dhaga::spawn(move || add(&adds, 1));
        let took = dhaga::select! {
            recv(comes) -> _ => None,
            readable(counter) => Some(take(&counter).expect("it is there")),
        };
        assert_eq!(took, Some(1));
        other.join().expect("no panic");
        drop(never);
    });
}

/// Who comes while the registration fails takes the descriptor for registered, and waits for an event of it.
#[test]
fn a_watch_that_is_refused_leaves_nobody_waiting() {
    const ROUNDS: usize = 100_000;
    /// Both begin each round at the same time, as nearly as it goes.
    fn wait_in_vain(rounds: &[Watched<Arc<std::fs::File>>], begun: &AtomicUsize) {
        for (round, watched) in rounds.iter().enumerate() {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 2 * (round + 1) {
                std::thread::yield_now();
            }
            let refused = watched.read_with(|_| Err::<(), _>(ErrorKind::WouldBlock.into()));
            assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));
        }
    }
    within_deadline(DEADLINE, || {
        let file = Arc::new(std::fs::File::open("/proc/self/exe").expect("it is there"));
        let rounds: Vec<_> = (0..ROUNDS).map(|_| Watched::with_mode_as_is(file.clone())).collect();
        let shared = Arc::new((rounds, AtomicUsize::new(0)));
        let both = [0, 1].map(|_| {
            let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
            let shared = shared.clone();
            let one = runtime.spawn(move || wait_in_vain(&shared.0, &shared.1));
            (runtime, one)
        });
        for (runtime, one) in both {
            one.join().expect("it ends well");
            runtime.shutdown(DEADLINE).expect("nothing is left");
        }
    });
}
