//! What these tests share: a limit for each, and counters of what they leave behind.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{panic, thread};

use dhaga::Runtime;
use dhaga::net::{TcpListener, TcpStream};

/// More than any test takes on a machine that is busy with others.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a body on a plain thread of its own, and fails when it hangs.
pub fn on_thread(body: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let body = thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    if is_done.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
        panic!("the body is still running after {DEADLINE:?}");
    }
    body.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
}

/// Runs a body in a dhaga of a runtime of its own, of which nothing may be left.
pub fn in_dhaga(workers: usize, body: impl FnOnce() + Send + 'static) {
    on_thread(move || {
        let runtime = Runtime::builder().workers(workers).build().expect("a test can start a runtime");
        runtime.spawn(body).join().expect("the body ends well");
        let begun = Instant::now();
        // What it detached ends by itself, soon.
        while let Some(audit) = runtime.audit(DEADLINE)
            && (audit.tasks, audit.timers, audit.sources, audit.unstarted) != (0, 0, 0, 0)
        {
            assert!(begun.elapsed() < DEADLINE, "left behind: {audit:?}");
            thread::sleep(Duration::from_millis(1));
        }
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

/// As [`in_dhaga`], with one worker and with two.
pub fn in_dhagas(body: impl Fn() + Clone + Send + 'static) {
    in_dhaga(1, body.clone());
    in_dhaga(2, body);
}

/// Two ends of a connection.
pub fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a test can listen");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (far, _) = listener.accept().expect("somebody has connected");
    (near, far)
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}
