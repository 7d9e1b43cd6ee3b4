//! Host names, and the addresses that they stand for.
//!
//! A name is looked up by the system's resolver (`getaddrinfo`), so that `/etc/hosts`, `nsswitch.conf` and search domains
//! hold. It blocks, and for long if a name server is dead, so it runs on the blocking pool:
//!
//! ```text
//!   who asks ──▶ is the name being looked up? ──yes──▶ wait for that answer
//!                          no
//!                          ▼
//!              wait for room (LOOKUPS_MAX) ──▶ a thread of the pool: getaddrinfo ──▶ all who wait are answered
//! ```
//!
//! Who asks again and again for a name that nobody answers for, each time with a short deadline, shares one look-up. If each
//! had its own, they would fill all room while they run on, and keep out the names that can be resolved.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::around;
use crate::blocking;
use crate::park::{self, WaitReason};
use crate::sync::crowd::Crowd;
use crate::sync::wait_queue::Stopped;
use crate::sync::{AcquireTimeoutError, Semaphore, SemaphorePermit};

/// Host names that are looked up at once at most, in the whole process; who asks for one more waits. An eighth of the threads
/// of the blocking pool: a name server that does not answer must not keep files and everything else from it.
pub const LOOKUPS_MAX: usize = 64;

/// How long a dhaga waits for the addresses of a host name at most. It is what the resolver needs by default to ask three
/// name servers twice, 5 s each, when none of them answers.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Looks a host name up with `resolve`, which may block: on the pool, or on a plain thread in place. Suspends.
pub(super) fn look_up(
    host: &str,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Arc<[SocketAddr]>> {
    park::spend();
    park::check()?;
    if park::is_in_dhaga() || around::is_in_frame() {
        return look_up_in_pool(host, resolve);
    }
    let found = resolve(host).map_err(|error| LookupError::new(host, Cause::Resolver(Arc::new(error))))?;
    Ok(found.into())
}

/// A host name that could not be looked up: the inner error of an [`io::Error`], as
/// [`ToSocketAddrs`](super::ToSocketAddrs) returns it.
#[derive(Clone, Debug)]
pub struct LookupError {
    host: Box<str>,
    cause: Cause,
}

#[derive(Clone, Debug)]
enum Cause {
    /// Shared with others who have asked for it.
    Resolver(Arc<io::Error>),
    NoAnswer,
    NoRoom,
    NeverRan,
}

impl LookupError {
    fn new(host: &str, cause: Cause) -> Self {
        Self { host: host.into(), cause }
    }

    /// The name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the time was over, [`LOOKUP_TIMEOUT`], before the resolver had anything to say.
    pub fn is_timeout(&self) -> bool {
        matches!(self.cause, Cause::NoAnswer | Cause::NoRoom)
    }
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot look up the host {:?}: ", self.host)?;
        match &self.cause {
            Cause::Resolver(error) => error.fmt(f),
            Cause::NoAnswer => write!(f, "no answer within {LOOKUP_TIMEOUT:?}"),
            Cause::NoRoom => write!(f, "{LOOKUPS_MAX} others had no answer within {LOOKUP_TIMEOUT:?}"),
            Cause::NeverRan => f.write_str("the blocking pool had no thread for it"),
        }
    }
}

impl Error for LookupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            Cause::Resolver(error) => Some(&**error),
            _ => None,
        }
    }
}

impl From<LookupError> for io::Error {
    fn from(error: LookupError) -> Self {
        let kind = match &error.cause {
            Cause::Resolver(error) => error.kind(),
            Cause::NoAnswer | Cause::NoRoom => io::ErrorKind::TimedOut,
            Cause::NeverRan => io::ErrorKind::WouldBlock,
        };
        Self::new(kind, error)
    }
}

/// A name that is being looked up.
struct Lookup {
    host: Box<str>,
    answer: Crowd<Option<Answer>>,
}

type Answer = Result<Arc<[SocketAddr]>, Cause>;

static ROOM: Semaphore = Semaphore::new(LOOKUPS_MAX);
/// What the threads of the pool look up now: as many as there is room for.
static UNDER_WAY: Mutex<Vec<Arc<Lookup>>> = Mutex::new(Vec::new());

fn under_way() -> MutexGuard<'static, Vec<Arc<Lookup>>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(under_way: &[Arc<Lookup>], host: &str) -> Option<Arc<Lookup>> {
    under_way.iter().find(|lookup| *lookup.host == *host).cloned()
}

fn look_up_in_pool(
    host: &str,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Arc<[SocketAddr]>> {
    let deadline = around::after(LOOKUP_TIMEOUT);
    let shared = find(&under_way(), host);
    let lookup = match shared {
        Some(lookup) => lookup,
        None => begin(host, wait_for_room(host, deadline)?, resolve),
    };
    lookup.wait(deadline)
}

fn wait_for_room(host: &str, deadline: Option<Instant>) -> io::Result<SemaphorePermit<'static>> {
    let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(park::now()));
    ROOM.acquire_timeout(left).map_err(|error| match error {
        AcquireTimeoutError::Interrupted(interrupt) => interrupt.into(),
        AcquireTimeoutError::Timeout | AcquireTimeoutError::Closed => LookupError::new(host, Cause::NoRoom).into(),
    })
}

fn begin(
    host: &str,
    room: SemaphorePermit<'static>,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Arc<Lookup> {
    let mut under_way = under_way();
    // Somebody may have begun it while we waited for room, which is free again then.
    if let Some(lookup) = find(&under_way, host) {
        return lookup;
    }
    let lookup = Arc::new(Lookup { host: host.into(), answer: Crowd::new(None) });
    under_way.push(lookup.clone());
    drop(under_way);
    let running = Running { lookup: lookup.clone(), _room: room };
    blocking::run_detached(move || running.answer(resolve));
    lookup
}

impl Lookup {
    fn wait(&self, deadline: Option<Instant>) -> io::Result<Arc<[SocketAddr]>> {
        loop {
            let answer = self.answer.lock();
            if let Some(told) = &*answer {
                let told = told.clone();
                drop(answer);
                return told.map_err(|cause| LookupError::new(&self.host, cause).into());
            }
            answer.wait_until(WaitReason::Lookup, deadline).map_err(|stopped| match stopped {
                Stopped::TimedOut => LookupError::new(&self.host, Cause::NoAnswer).into(),
                Stopped::Interrupted(interrupt) => io::Error::from(interrupt),
            })?;
        }
    }

    fn tell(&self, told: Answer) {
        let mut answer = self.answer.lock();
        if answer.is_none() {
            *answer = Some(told);
            answer.release();
        }
    }
}

/// A look-up that a thread of the pool does, or would have done. However it ends, who waits is told.
struct Running {
    lookup: Arc<Lookup>,
    _room: SemaphorePermit<'static>,
}

impl Running {
    fn answer(self, resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>>) {
        let found = resolve(&self.lookup.host);
        self.leave();
        self.lookup.tell(found.map(Arc::from).map_err(|error| Cause::Resolver(Arc::new(error))));
    }

    /// Who asks from now on has it looked up anew.
    fn leave(&self) {
        under_way().retain(|other| !Arc::ptr_eq(other, &self.lookup));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.leave();
        self.lookup.tell(Err(Cause::NeverRan));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time that is there to be over.
    const SHORT: Duration = Duration::from_millis(1);

    fn late(result: io::Result<impl Sized>) -> LookupError {
        let error = result.err().expect("nobody answers");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let inner = error.into_inner().and_then(|inner| inner.downcast().ok());
        *inner.expect("it is typed")
    }

    #[test]
    fn a_resolver_that_does_not_answer_is_an_error_that_names_the_host() {
        let lookup = Lookup { host: "silent".into(), answer: Crowd::new(None) };
        let error = late(lookup.wait(around::after(SHORT)));
        assert_eq!((error.host(), error.is_timeout()), ("silent", true));
        assert_eq!(error.to_string(), "cannot look up the host \"silent\": no answer within 30s");
        let all = ROOM.acquire_many(LOOKUPS_MAX).expect("nobody looks up names here");
        let error = late(wait_for_room("patient", around::after(SHORT)));
        assert_eq!((error.host(), error.is_timeout()), ("patient", true));
        drop(all);
    }

    #[test]
    fn whatever_becomes_of_a_look_up_who_waits_is_told_and_there_is_room_again() {
        let lookup = Arc::new(Lookup { host: "dropped".into(), answer: Crowd::new(None) });
        under_way().push(lookup.clone());
        let room = wait_for_room("dropped", None).expect("there is room");
        let shared = begin("dropped", room, |_| unreachable!("it is under way"));
        assert!(Arc::ptr_eq(&shared, &lookup));
        let room = wait_for_room("dropped", None).expect("there is room");
        drop(Running { lookup: lookup.clone(), _room: room });
        let error = lookup.wait(None).expect_err("nobody looked it up");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(find(&under_way(), "dropped").is_none());
    }
}
