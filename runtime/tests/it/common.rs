//! What the tests of every topic share: where a body runs, and how long it may take.

use std::panic;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use dhaga::{JoinError, JoinHandle, Runtime};

/// More than any test takes on a machine that is busy with others.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a body on a thread of its own, and fails when it hangs.
pub fn within_deadline(limit: Duration, body: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let body = thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    if is_done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        panic!("the body is still running after {limit:?}");
    }
    body.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
}

/// Runs a body on a plain thread, then in a dhaga. Neither may hang.
pub fn everywhere(body: impl Fn() + Send + Sync + 'static) {
    let body = Arc::new(body);
    let in_dhaga = body.clone();
    within_deadline(DEADLINE, move || body());
    within_deadline(DEADLINE, move || {
        let ended = dhaga::spawn(move || in_dhaga()).join();
        assert!(ended.is_ok(), "the body failed in a dhaga");
    });
}

/// A part of a test that runs beside others.
pub type Part = Box<dyn FnOnce() + Send>;

/// Where the parts of a test run.
#[derive(Clone, Copy, Debug)]
pub enum On {
    Threads,
    Dhagas,
    /// One part on a thread, the next in a dhaga, and so on.
    Both,
}

/// Runs the parts of a test beside each other: on threads, then in dhagas, then on both.
pub fn on_all_mixtures(parts: impl Fn() -> Vec<Part> + Send + Sync + 'static) {
    let parts = Arc::new(parts);
    for on in [On::Threads, On::Dhagas, On::Both] {
        let parts = parts.clone();
        within_deadline(DEADLINE, move || together(on, parts()));
    }
}

/// Runs parts beside each other, and fails if one of them does.
pub fn together(on: On, parts: Vec<Part>) {
    let start = |(index, part): (usize, Part)| match on {
        On::Threads => on_thread(part),
        On::Dhagas => in_dhaga(part),
        On::Both if index % 2 == 0 => on_thread(part),
        On::Both => in_dhaga(part),
    };
    let running: Vec<_> = parts.into_iter().enumerate().map(start).collect();
    let ended: Vec<_> = running.into_iter().map(|join| join()).collect();
    assert!(ended.iter().all(|&well| well), "a part failed on {on:?}: {ended:?}");
}

/// Waits for a part, and says whether it ended well.
type Join = Box<dyn FnOnce() -> bool>;

fn on_thread(part: Part) -> Join {
    let thread = thread::spawn(part);
    Box::new(move || thread.join().is_ok())
}

fn in_dhaga(part: Part) -> Join {
    let dhaga = dhaga::spawn(part);
    Box::new(move || dhaga.join().is_ok())
}

/// Cancels a dhaga while it waits in `wait`, and returns what that makes of it.
pub fn cancelled_during<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (runtime, waiter) = parked_in(wait);
    waiter.cancel();
    let ended = waiter.join().expect("it ends well");
    runtime.shutdown(DEADLINE).expect("nothing is left");
    ended
}

/// Shuts a runtime down while a dhaga of it waits in `wait`, which is torn down.
pub fn shut_down_during<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) {
    // A cancel would end it before.
    let (runtime, waiter) = parked_in(|| dhaga::uncancellable(wait));
    runtime.shutdown(Duration::ZERO).expect("it unwinds");
    assert!(matches!(waiter.join(), Err(JoinError::Unwound)));
}

/// A runtime whose only dhaga waits in `wait`.
fn parked_in<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> (Runtime, JoinHandle<T>) {
    let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
    let (starts, has_started) = mpsc::channel();
    let waiter = runtime.spawn(move || {
        starts.send(()).expect("the test waits");
        wait()
    });
    has_started.recv_timeout(DEADLINE).expect("it starts");
    // The only worker runs another dhaga as soon as this one is parked.
    runtime.spawn(|| ()).join().expect("it ends well");
    (runtime, waiter)
}
