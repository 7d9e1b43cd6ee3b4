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

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::around;
use crate::blocking;
use crate::park::{self, WaitReason};
use crate::scheduler;
use crate::sync::crowd::Crowd;
use crate::sync::wait_queue::Stopped;
use crate::sync::{AcquireTimeoutError, Semaphore, SemaphorePermit};

/// Host names that are looked up at once at most, in the whole process; who asks for one more waits. An eighth of the threads
/// of the blocking pool: a name server that does not answer must not keep files and everything else from it.
pub const LOOKUPS_MAX: usize = 64;

/// How long a dhaga waits for the addresses of a host name at most. It is what the resolver needs by default to ask three
/// name servers twice, 5 s each, when none of them answers.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// How the resolver says `EAI_AGAIN`. std tells its words and no number. In another language than this one, which a program
/// gets only if it asks for it, such an error is taken for any other.
const RESOLVER_GAVE_UP: &str =
    if cfg!(target_env = "musl") { "Try again" } else { "Temporary failure in name resolution" };

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

    /// Whether nobody answered in time: [`LOOKUP_TIMEOUT`] was over, or the resolver has given up on the name servers before
    /// (`EAI_AGAIN`, which it also says of one that answers that it is in trouble). It may be worth while to ask again.
    pub fn is_timeout(&self) -> bool {
        match &self.cause {
            Cause::NoAnswer | Cause::NoRoom => true,
            Cause::Resolver(error) => error.to_string().ends_with(RESOLVER_GAVE_UP),
            Cause::NeverRan => false,
        }
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
    /// Where those wait who ask, by the numbers of their workers.
    desks: Vec<(Option<u16>, Arc<Desk>)>,
}

/// Where the dhagas of one worker wait for an answer, or all plain threads. The thread that has it tells one dhaga of each
/// worker, and the others are told from there: for all of them it would contend with the workers for cores and locks.
type Desk = Crowd<Option<Answer>>;

type Answer = Result<Arc<[SocketAddr]>, Cause>;

static ROOM: Semaphore = Semaphore::new(LOOKUPS_MAX);
/// What the threads of the pool look up now: as many as there is room for, and each name once.
static UNDER_WAY: Mutex<Vec<Lookup>> = Mutex::new(Vec::new());

thread_local! {
    /// Desks of this worker, and for which names. Who comes to one of them need not meet the other workers at `UNDER_WAY`.
    /// One that has its answer is of no use any more, and goes when the next is opened.
    static OPENED: RefCell<Vec<(Box<str>, Arc<Desk>)>> = const { RefCell::new(Vec::new()) };
}

fn under_way() -> MutexGuard<'static, Vec<Lookup>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_up_in_pool(
    host: &str,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Arc<[SocketAddr]>> {
    let deadline = around::after(LOOKUP_TIMEOUT);
    let desk = match opened(host) {
        Some(desk) => desk,
        None => open(host, join(host, deadline, resolve)?),
    };
    wait(host, &desk, deadline)
}

/// The desk of the caller's worker, if that is known to have one.
fn opened(host: &str) -> Option<Arc<Desk>> {
    // A plain thread has opened none, and may have destroyed its list.
    scheduler::worker()?;
    let desk = OPENED.with_borrow(|opened| {
        let (_, desk) = opened.iter().find(|(name, _)| **name == *host)?;
        Some(desk.clone())
    })?;
    let is_told = desk.lock().is_some();
    (!is_told).then_some(desk)
}

/// Has the dhagas of the caller's worker find a desk.
fn open(host: &str, desk: Arc<Desk>) -> Arc<Desk> {
    if scheduler::worker().is_some() {
        let closed: Vec<_> = OPENED.with_borrow_mut(|opened| {
            let closed = opened.extract_if(.., |(name, desk)| **name == *host || desk.lock().is_some()).collect();
            opened.push((host.into(), desk.clone()));
            closed
        });
        // Only now that nothing is borrowed: it may be the last owner of an answer.
        drop(closed);
    }
    desk
}

/// Waits for room if nobody else looks the name up.
fn join(
    host: &str,
    deadline: Option<Instant>,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Arc<Desk>> {
    let shared = find(&mut under_way(), host);
    match shared {
        Some(desk) => Ok(desk),
        None => Ok(begin(host, wait_for_room(host, deadline)?, resolve)),
    }
}

/// Where the caller waits for the answer, if the name is being looked up.
fn find(under_way: &mut [Lookup], host: &str) -> Option<Arc<Desk>> {
    under_way.iter_mut().find(|lookup| *lookup.host == *host).map(Lookup::desk)
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
) -> Arc<Desk> {
    let mut under_way = under_way();
    // Somebody may have begun it while we waited for room, which is free again then.
    if let Some(desk) = find(&mut under_way, host) {
        return desk;
    }
    let mut lookup = Lookup { host: host.into(), desks: Vec::new() };
    let desk = lookup.desk();
    under_way.push(lookup);
    drop(under_way);
    let running = Running { host: Some(host.into()), _room: room };
    blocking::run_detached(move || running.answer(resolve));
    desk
}

impl Lookup {
    /// The caller's.
    fn desk(&mut self) -> Arc<Desk> {
        let here = scheduler::worker().map(|worker| worker.injector.number);
        if let Some((_, desk)) = self.desks.iter().find(|(worker, _)| *worker == here) {
            return desk.clone();
        }
        let desk = Arc::new(Crowd::new(None));
        self.desks.push((here, desk.clone()));
        desk
    }

    fn tell(self, told: &Answer) {
        for (_, desk) in self.desks {
            // A list for each, since all who wait there will count themselves among its owners.
            let told = told.as_ref().map(|found| Arc::from(&**found)).map_err(Cause::clone);
            let mut answer = desk.lock();
            *answer = Some(told);
            answer.release_first();
        }
    }
}

fn wait(host: &str, desk: &Desk, deadline: Option<Instant>) -> io::Result<Arc<[SocketAddr]>> {
    loop {
        let answer = desk.lock();
        if let Some(told) = &*answer {
            let told = told.clone();
            drop(answer);
            return told.map_err(|cause| LookupError::new(host, cause).into());
        }
        answer.wait_and_pass_on(WaitReason::Lookup, deadline).map_err(|stopped| match stopped {
            Stopped::TimedOut => LookupError::new(host, Cause::NoAnswer).into(),
            Stopped::Interrupted(interrupt) => io::Error::from(interrupt),
        })?;
    }
}

/// A look-up that a thread of the pool does, or would have done. However it ends, who waits is told.
struct Running {
    /// Present until it has ended.
    host: Option<Box<str>>,
    _room: SemaphorePermit<'static>,
}

impl Running {
    fn answer(mut self, resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>>) {
        let host = self.host.as_deref().expect("it has not ended");
        let found = resolve(host);
        self.end(found.map(Arc::from).map_err(|error| Cause::Resolver(Arc::new(error))));
    }

    /// Tells who waits. Who asks from now on has it looked up anew.
    fn end(&mut self, told: Answer) {
        let Some(host) = self.host.take() else { return };
        let mut under_way = under_way();
        let place = under_way.iter().position(|lookup| lookup.host == host);
        let lookup = under_way.swap_remove(place.expect("it is there until it has ended"));
        drop(under_way);
        lookup.tell(&told);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Err(Cause::NeverRan));
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
        let error = late(wait("silent", &Crowd::new(None), around::after(SHORT)));
        assert_eq!((error.host(), error.is_timeout()), ("silent", true));
        assert_eq!(error.to_string(), "cannot look up the host \"silent\": no answer within 30s");
        let all = ROOM.acquire_many(LOOKUPS_MAX).expect("nobody looks up names here");
        let error = late(wait_for_room("patient", around::after(SHORT)));
        assert_eq!((error.host(), error.is_timeout()), ("patient", true));
        drop(all);
    }

    #[test]
    fn whatever_becomes_of_a_look_up_who_waits_is_told_and_there_is_room_again() {
        let room = || wait_for_room("dropped", None).expect("there is room");
        let mut lookup = Lookup { host: "dropped".into(), desks: Vec::new() };
        let desk = lookup.desk();
        under_way().push(lookup);
        let shared = begin("dropped", room(), |_| unreachable!("it is under way"));
        assert!(Arc::ptr_eq(&shared, &desk));
        drop(Running { host: Some("dropped".into()), _room: room() });
        let error = wait("dropped", &desk, None).expect_err("nobody looked it up");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(find(&mut under_way(), "dropped").is_none());
    }
}
