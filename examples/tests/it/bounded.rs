//! Tests in this process that must not hang.

use std::panic;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// More than any of them takes on a machine that is busy with others.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a body on a thread of its own, and fails when it hangs.
pub fn within_deadline(body: impl FnOnce() + Send + 'static) {
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

/// Runs a body on a plain thread, then in a dhaga.
pub fn everywhere(body: impl Fn() + Send + Sync + 'static) {
    let body = Arc::new(body);
    let in_dhaga = body.clone();
    within_deadline(move || body());
    within_deadline(move || dhaga::spawn(move || in_dhaga()).join().expect("the body fails in no dhaga"));
}
