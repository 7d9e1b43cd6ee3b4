//! Asks the peer of a new connection for extensions, while the calls wait.
//!
//! A dhaga of its own asks, so that who gives up waiting leaves the question to the next caller. What is remembered of plain
//! peers is an address each, as text; a client has those only that its name stands for.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dhaga::sync::{AcquireTimeoutError, Semaphore};
use dhaga::{park, turn};

use crate::connection::Connection;
use crate::error::{CallError, Cause};
use crate::limits::HELLO_WITHIN;
use crate::peer::Peer;

/// How long a peer that has closed on the question is not asked again. It may have been one that was just ending.
const CLOSE_REMEMBERED: Duration = Duration::from_secs(60);

/// The addresses that have turned out to be plain, and until when they count as such; `None`: for good.
#[derive(Clone, Default)]
pub(crate) struct PlainPeers(Arc<Mutex<HashMap<String, Option<Instant>>>>);

impl PlainPeers {
    pub(crate) fn contains(&self, name: &str) -> bool {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(name).is_some_and(|until| until.is_none_or(|until| park::now() < until))
    }

    fn insert(&self, name: String, until: Option<Instant>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, until);
    }
}

/// A question that was sent.
pub(crate) struct Probe {
    verdict: OnceLock<Verdict>,
    /// Has no permits; is closed with the verdict.
    over: Semaphore,
}

/// What a peer turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Extended,
    /// Also one that has closed the connection.
    Plain,
}

impl Probe {
    pub(crate) fn is_over(&self) -> bool {
        self.verdict.get().is_some()
    }

    /// Waits for the verdict. Suspends.
    ///
    /// # Errors
    ///
    /// The deadline passed first, or what [`park::check`] says.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Verdict, CallError> {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(park::now()));
        match self.over.acquire_timeout(left) {
            Err(AcquireTimeoutError::Timeout) => return Err(CallError::DeadlineExceeded),
            Err(AcquireTimeoutError::Interrupted(interrupt)) => return Err(interrupt.into()),
            _ => {}
        }
        Ok(*self.verdict.get().expect("it is there before the semaphore is closed"))
    }

    fn end(&self, verdict: Verdict) {
        self.verdict.get_or_init(|| verdict);
        self.over.close();
    }
}

/// The question, in the dhaga that asks. Dropped without a verdict it gives one: nobody may wait for ever.
struct Asking {
    probe: Arc<Probe>,
    connection: Arc<Connection<Peer>>,
    /// Asked for while it is connected. `None`: it is gone already.
    name: Option<String>,
    /// `None`: a plain peer is of no use, and its connection is closed.
    plain: Option<PlainPeers>,
    since: Instant,
}

/// Begins to ask, on the caller's worker.
///
/// # Errors
///
/// There is no room for a dhaga.
pub(crate) fn start(connection: &Arc<Connection<Peer>>, plain: Option<PlainPeers>) -> Result<Arc<Probe>, CallError> {
    let probe = Arc::new(Probe { verdict: OnceLock::new(), over: Semaphore::new(0) });
    let (name, since) = (connection.peer_name(), park::now());
    let asking = Asking { probe: probe.clone(), connection: connection.clone(), name, plain, since };
    match turn::spawn_here(move || asking.ask()) {
        Ok(()) => Ok(probe),
        Err(error) => {
            connection.close(None);
            Err(CallError::Connect(Arc::new(error.into())))
        }
    }
}

impl Asking {
    fn ask(self) {
        let answer = self.connection.say_hello(self.since.checked_add(HELLO_WITHIN));
        if answer.as_ref().is_ok_and(|caps| caps.is_extended()) {
            return self.probe.end(Verdict::Extended);
        }
        log::debug!("{} is a plain peer", self.connection.describe_peer());
        if let (Some(plain), true, Some(name)) = (&self.plain, is_peers_word(&answer), &self.name) {
            let was_closed = matches!(answer, Err(CallError::Disconnected { .. }));
            plain.insert(name.clone(), was_closed.then(|| park::now() + CLOSE_REMEMBERED));
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.plain.is_none() && !self.probe.is_over() {
            self.connection.close(None);
        }
        self.probe.end(Verdict::Plain);
    }
}

/// Whether it was the peer that has answered so, been silent, or closed; not our own side.
fn is_peers_word<T>(answer: &Result<T, CallError>) -> bool {
    match answer {
        Ok(_) | Err(CallError::Remote(_) | CallError::DeadlineExceeded | CallError::Malformed(_)) => true,
        Err(CallError::Disconnected { source, .. }) => source.as_ref().is_none_or(was_ended_by_peer),
        Err(_) => false,
    }
}

fn was_ended_by_peer(cause: &Cause) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let kind = cause.downcast_ref().map(io::Error::kind);
    kind.is_some_and(|kind| matches!(kind, ConnectionReset | BrokenPipe | ConnectionAborted))
}
