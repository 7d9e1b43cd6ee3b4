//! Loads in a library's own words: its client, and a task for each call in flight.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::dial::wrong_answer;
use crate::rpc_echo::PAYLOAD;
use crate::window::{Found, latency_histogram};

/// The clients of one library, on a runtime with one worker.
pub trait Calls {
    /// Opens so many connections more, and makes one call on each.
    ///
    /// # Errors
    ///
    /// The library's; `InvalidData` for a wrong answer.
    fn open(&mut self, connections: usize) -> io::Result<()>;

    /// Keeps `in_flight` calls in flight on each connection for so long: as many tasks call, wait, and call again.
    ///
    /// # Errors
    ///
    /// As [`open`](Calls::open).
    fn run(&mut self, in_flight: usize, length: Duration) -> io::Result<Found>;
}

/// What all tasks of a run have in common.
#[derive(Clone)]
pub struct Calling {
    began_at: Instant,
    end_at: Instant,
    latencies: Arc<Mutex<Histogram<u64>>>,
}

impl Calling {
    /// From now on, for so long.
    pub fn new(length: Duration) -> Calling {
        let began_at = Instant::now();
        Calling { began_at, end_at: began_at + length, latencies: Arc::new(Mutex::new(latency_histogram())) }
    }

    /// One task's clock, which is read once for each call: the end of one is the beginning of the next.
    pub fn caller(&self) -> Caller<'_> {
        Caller { calling: self, asked_at: Instant::now() }
    }

    /// What all tasks have found, once they have ended.
    pub fn found(&self) -> Found {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        Found::of(&latencies, self.began_at.elapsed())
    }
}

/// See [`Calling::caller`].
pub struct Caller<'a> {
    calling: &'a Calling,
    asked_at: Instant,
}

impl Caller<'_> {
    /// Whether there is time for one more call.
    pub fn goes_on(&self) -> bool {
        self.asked_at < self.calling.end_at
    }

    /// Enters the answer of the call that was made last.
    ///
    /// # Errors
    ///
    /// `InvalidData` for another length than was sent, which is what the bare load looks at too.
    pub fn note(&mut self, answer: &[u8]) -> io::Result<()> {
        check(answer)?;
        let now = Instant::now();
        let nanos = (now - self.asked_at).as_nanos() as u64;
        // All tasks run on one thread: nobody waits here.
        self.calling.latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(nanos);
        self.asked_at = now;
        Ok(())
    }
}

/// Whether it is as long as what was sent.
///
/// # Errors
///
/// `InvalidData` when it is not.
pub fn check(answer: &[u8]) -> io::Result<()> {
    if answer.len() == PAYLOAD.len() {
        Ok(())
    } else {
        Err(wrong_answer("an answer's payload has another length than was sent"))
    }
}
