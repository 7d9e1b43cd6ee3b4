//! Dhagas that never stop yielding keep nobody out: not timers, not sockets, not what has not started.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::{JoinHandle, Runtime};

use crate::common::{DEADLINE, within_deadline};

const YIELDERS: usize = 200;
/// Far more than a worker takes for a round of all yielders, on a machine that is busy with others.
const LATE_MAX: Duration = Duration::from_secs(5);

/// Dhagas that yield until it is over.
struct Storm {
    runtime: Runtime,
    is_over: Arc<AtomicBool>,
    yielders: Vec<JoinHandle<usize>>,
}

impl Storm {
    fn begin(workers: usize) -> Self {
        let runtime = Runtime::builder().workers(workers).build().expect("a test can start a runtime");
        let (is_over, running) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let yielder = |_| {
            let (is_over, running) = (is_over.clone(), running.clone());
            runtime.spawn(move || {
                running.fetch_add(1, Ordering::SeqCst);
                let mut count = 0;
                while !is_over.load(Ordering::SeqCst) {
                    dhaga::yield_now();
                    count += 1;
                }
                count
            })
        };
        let yielders = (0..YIELDERS).map(yielder).collect();
        while running.load(Ordering::SeqCst) < YIELDERS {
            std::thread::yield_now();
        }
        Self { runtime, is_over, yielders }
    }

    fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        for yielder in self.yielders {
            assert!(yielder.join().expect("it ends well") > 0, "every yielder goes on");
        }
        self.runtime.shutdown(DEADLINE).expect("nothing is left");
    }
}

/// Timers one after the other, many beside each other: none is late.
fn sleepers(runtime: &Runtime) {
    let sleeper = |index: u64| {
        runtime.spawn(move || {
            for times in 0..20 {
                let deadline = Instant::now() + Duration::from_micros(100 * (index + times) % 3000);
                dhaga::sleep_until(deadline);
                let late = Instant::now().checked_duration_since(deadline).expect("no timer is early");
                assert!(late < LATE_MAX, "{late:?} late");
            }
        })
    };
    let sleepers: Vec<_> = (0..20).map(sleeper).collect();
    sleepers.into_iter().for_each(|sleeper| sleeper.join().expect("it ends well"));
}

/// A conversation over loopback, each word of which waits for the one before.
fn echo(runtime: &Runtime) {
    const WORDS: usize = 100;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let server = runtime.spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client comes");
        let mut word = [0; 8];
        for _ in 0..WORDS {
            stream.read_exact(&mut word).expect("a word comes");
            stream.write_all(&word).expect("there is room");
        }
    });
    let client = runtime.spawn(move || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        for index in 0..WORDS {
            let mut word = [0; 8];
            stream.write_all(&index.to_le_bytes()).expect("there is room");
            let asked = Instant::now();
            stream.read_exact(&mut word).expect("it comes back");
            assert_eq!(word, index.to_le_bytes());
            assert!(asked.elapsed() < LATE_MAX, "{:?} for a word", asked.elapsed());
        }
    });
    server.join().expect("it ends well");
    client.join().expect("it ends well");
}

/// What plain threads start, starts.
fn starts(runtime: &Runtime) {
    for index in 0..100 {
        let asked = Instant::now();
        assert_eq!(runtime.spawn(move || index).join().expect("it ends well"), index);
        assert!(asked.elapsed() < LATE_MAX, "{:?} for a start", asked.elapsed());
    }
}

#[test]
fn timers_sockets_and_starts_go_on_in_a_storm_of_yields() {
    within_deadline(2 * DEADLINE, || {
        for workers in [1, 2] {
            let storm = Storm::begin(workers);
            for others in [sleepers, echo, starts] {
                others(&storm.runtime);
            }
            storm.end();
        }
    });
}
