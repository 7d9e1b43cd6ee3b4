//! Who runs: the name, the number and the origin of a dhaga or a plain thread.

use std::fmt;
use std::num::NonZeroU64;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::thread::Thread;

use crate::around;
use crate::job::JobRef;
use crate::plain_thread::{ThreadParker, this_thread};
use crate::scheduler::current_task;

/// A dhaga, or a plain thread, as others may know it.
#[derive(Clone)]
pub struct Dhaga(Who);

#[derive(Clone)]
enum Who {
    Dhaga(JobRef),
    Thread { thread: Thread, number: u64, parker: Arc<ThreadParker> },
}

/// Tells one dhaga or plain thread from all others of the process, those that have ended included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DhagaId(NonZeroU64);

/// Who runs the caller.
///
/// # Examples
///
/// ```
/// let indexer = dhaga::Builder::new().name("indexer").spawn(|| dhaga::current())?;
/// let known = indexer.dhaga().id();
/// let indexer = indexer.join()?;
/// assert_eq!((indexer.name(), indexer.id()), (Some("indexer"), known));
/// assert_ne!(indexer.id(), dhaga::current().id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn current() -> Dhaga {
    let job = current_task().and_then(|task| task.reference());
    let thread = || Who::Thread { thread: std::thread::current(), number: around::number(), parker: this_thread() };
    Dhaga(job.map_or_else(thread, Who::Dhaga))
}

impl Dhaga {
    pub(crate) fn of_job(job: JobRef) -> Self {
        Self(Who::Dhaga(job))
    }

    /// Its name, if it was given one.
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            Who::Dhaga(job) => job.head().label().name(),
            Who::Thread { thread, .. } => thread.name(),
        }
    }

    /// Its number, which no other dhaga or thread of this process has, had or will have.
    pub fn id(&self) -> DhagaId {
        let number = match &self.0 {
            Who::Dhaga(job) => around::number_of(job.head()),
            Who::Thread { number, .. } => *number,
        };
        DhagaId(NonZeroU64::new(number).expect("numbers begin with 1"))
    }

    /// Where it was spawned; `None` for a plain thread.
    pub fn spawn_site(&self) -> Option<&'static Location<'static>> {
        match &self.0 {
            Who::Dhaga(job) => Some(job.head().label().site),
            Who::Thread { .. } => None,
        }
    }

    /// Leaves it the token that its present or next [`thread::park`](crate::thread::park) takes and returns with. Two tokens
    /// that nobody has taken are one; a token for who has ended does nothing. Never waits; from anywhere.
    ///
    /// # Examples
    ///
    /// ```
    /// let sleeper = dhaga::spawn(|| dhaga::thread::park());
    /// sleeper.dhaga().unpark();
    /// sleeper.join()?;
    /// # Ok::<(), dhaga::JoinError<()>>(())
    /// ```
    pub fn unpark(&self) {
        match &self.0 {
            Who::Dhaga(job) => job.head().leave_token(),
            Who::Thread { parker, .. } => parker.leave_token(),
        }
    }

    /// Whether it is a dhaga rather than a plain thread.
    pub fn is_dhaga(&self) -> bool {
        matches!(self.0, Who::Dhaga(_))
    }
}

/// As std's `Thread`: no panic leaves a name or a number half-changed.
impl UnwindSafe for Dhaga {}
impl RefUnwindSafe for Dhaga {}

impl fmt::Debug for Dhaga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dhaga")
            .field("id", &self.id().0)
            .field("name", &self.name())
            .field("spawn_site", &self.spawn_site())
            .finish()
    }
}

/// As in a log line: `"indexer" #17`.
impl fmt::Display for Dhaga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name:?} {}", self.id()),
            None => self.id().fmt(f),
        }
    }
}

impl fmt::Display for DhagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
