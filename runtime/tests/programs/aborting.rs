//! A user's program that is built with `panic = "abort"`. The test `it::aborting` builds and runs it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dhaga::sync::{Mutex, channel};
use dhaga::{JoinHandle, Runtime};

const GRACE: Duration = Duration::from_millis(200);
const HOUR: Duration = Duration::from_secs(3600);

fn main() {
    let part = std::env::args().nth(1).expect("the test names a part");
    match part.as_str() {
        "works" => works(),
        "panics" => panics(),
        "parked" => parked(),
        "unstarted" => unstarted(),
        other => panic!("no part {other}"),
    }
    println!("well");
}

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a test can start a runtime")
}

fn works() {
    let runtime = runtime(2);
    let (sender, receiver) = channel::bounded(1);
    let sends = runtime.spawn(move || (0..100).for_each(|value| sender.send(value).expect("it is received")));
    let sums = runtime.spawn(move || receiver.iter().sum::<u32>());
    sends.join().expect("it ends well");
    assert_eq!(sums.join().expect("it ends well"), 4950);
    let scoped = runtime.spawn(|| {
        let values = [1, 2, 3];
        dhaga::scope(|s| s.spawn(|| values.iter().sum::<i32>()).join().expect("it ends well"))
    });
    assert_eq!(scoped.join().expect("it ends well"), 6);
    runtime.shutdown(HOUR).expect("nothing is left");
}

fn panics() {
    let runtime = runtime(1);
    let _ = runtime.spawn(|| panic!("the last words of a dhaga")).join();
}

/// Nothing unwinds, so what waits for a lock, or sleeps again and again, is still there at the end.
fn parked() {
    let runtime = runtime(2);
    let (started, has_started) = mpsc::channel();
    let (lock, rounds) = (Arc::new(Mutex::new(())), Arc::new(AtomicUsize::new(0)));
    let held = lock.lock().expect("nobody panicked");
    let handles: Vec<JoinHandle<()>> = (0..10)
        .map(|n| {
            let (started, lock, rounds) = (started.clone(), lock.clone(), rounds.clone());
            runtime.spawn(move || {
                started.send(()).expect("main waits");
                while n < 5 {
                    dhaga::sleep(HOUR);
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
                drop(lock.lock().expect("nobody panicked"));
            })
        })
        .collect();
    handles.iter().for_each(|_| has_started.recv().expect("it starts"));
    let error = runtime.shutdown(GRACE).expect_err("ten are parked");
    assert_eq!(error.dhagas, 10);
    assert!((1..=2).contains(&error.workers), "{error:?}");
    assert_eq!(error.stuck.len(), 10, "{error}");
    assert!(handles.iter().all(|handle| !handle.is_finished()));
    // At most a round each 10 ms for six seconds, and the first one.
    let rounds = rounds.load(Ordering::SeqCst);
    assert!((5..5 * 1000).contains(&rounds), "{rounds} rounds of sleep without a pause");
    drop(held);
}

/// Waits as it is dropped.
struct Waits(mpsc::Sender<()>);

impl Drop for Waits {
    fn drop(&mut self) {
        dhaga::sleep(Duration::from_millis(1));
        let _ = self.0.send(());
    }
}

/// What never ran is dropped, and may wait for that.
fn unstarted() {
    let runtime = runtime(1);
    let is_over = Arc::new(AtomicBool::new(false));
    let (started, has_started) = mpsc::channel();
    let seen = is_over.clone();
    let hog = runtime.spawn(move || {
        started.send(()).expect("main waits");
        while !seen.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    });
    has_started.recv().expect("it starts");
    let (sender, dropped) = mpsc::channel();
    let waits = Waits(sender);
    let never_ran = runtime.spawn(move || drop(waits));
    let error = runtime.shutdown(Duration::ZERO).expect_err("the hog runs");
    assert_eq!((error.workers, error.dhagas, error.silent_workers), (1, 2, vec![0]));
    is_over.store(true, Ordering::SeqCst);
    hog.join().expect("it ends well");
    dropped.recv_timeout(HOUR).expect("it is dropped to its end");
    assert!(matches!(never_ran.join(), Err(dhaga::JoinError::NeverRan)));
}
