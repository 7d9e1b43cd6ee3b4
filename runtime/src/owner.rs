//! Who holds something, in one word; and the end of a process in which two of one thread would wait for each other.

use std::thread::panicking;
use std::time::Duration;

use crate::plain_thread::THREAD;
use crate::scheduler::{Worker, worker};
use crate::task::{Task, TaskId};

/// How long a lock that is taken while its thread panics may block the OS thread.
pub(crate) const UNWIND_BLOCK_MAX: Duration = Duration::from_secs(10);

/// Who holds something: a dhaga, or a plain thread. One word, so that a lock can keep it beside its state.
///
/// ```text
///   63 ........... 48   47 ........ 16   15 ........ 0
///   ┌─────────────────┬────────────────┬──────────────┐
///   │ worker's number │ slot           │ generation   │   a dhaga
///   │ 0               │ thread, from 1 │ 0            │   a plain thread
///   └─────────────────┴────────────────┴──────────────┘
/// ```
///
/// Only the low half of the generation fits. It serves reports and the question who shares a worker, where a mistake in
/// 65 536 uses of a slot does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Here(u64);

impl Here {
    #[inline(always)]
    fn dhaga(worker: &Worker, task: &Task) -> Self {
        let TaskId { slot, generation } = task.id();
        Self(u64::from(worker.injector.number) << 48 | u64::from(slot) << 16 | u64::from(generation as u16))
    }

    fn on_thread(number: u32) -> Self {
        Self(u64::from(number) << 16)
    }

    fn worker(self) -> u64 {
        self.0 >> 48
    }

    fn slot(self) -> u32 {
        (self.0 >> 16) as u32
    }

    #[inline(always)]
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// While a thread's locals are destroyed it has no number any more: it is some thread.
const UNNUMBERED: u32 = u32::MAX;

/// Identifies the caller, for as long as it lives.
#[inline(always)]
pub(crate) fn here() -> Here {
    match worker().and_then(|worker| Some((worker, worker.current()?))) {
        Some((worker, task)) => Here::dhaga(worker, &task),
        None => here_on_thread(),
    }
}

#[inline(never)]
fn here_on_thread() -> Here {
    Here::on_thread(THREAD.try_with(|thread| thread.number).unwrap_or(UNNUMBERED))
}

/// Whether the caller, who unwinds from a panic and so cannot switch, would wait for a dhaga of its own worker.
pub(crate) fn would_deadlock_while_unwinding(owner: Here) -> bool {
    panicking() && owner.worker() != 0 && here().worker() == owner.worker()
}

/// Whether the caller is `owner`. Of a thread whose locals are destroyed nobody can tell.
pub(crate) fn is_here(owner: Here) -> bool {
    owner == here() && owner != Here::on_thread(UNNUMBERED)
}

/// Ends the process: `owner` holds what the caller needs, and cannot run while the caller unwinds.
pub(crate) fn abort_deadlock(what: &str, owner: Here) -> ! {
    eprintln!(
        "\n{} unwinds from a panic and waits for {what}, which is held by {} of the same OS thread. A dhaga never switches while \
         it unwinds, so the wait would never end: aborting. Release {what} before a panic can pass, or keep it out of `Drop`.",
        describe(here()),
        describe(owner),
    );
    std::process::abort()
}

/// Ends the process: the caller unwinds and has blocked its OS thread for as long as it may, for something of which nobody
/// can tell who would bring it.
pub(crate) fn abort_unwinding_wait(what: &str) -> ! {
    eprintln!(
        "\n{} unwinds from a panic and has waited {UNWIND_BLOCK_MAX:?} for {what}. A dhaga never switches while it unwinds, so \
         nothing else of its OS thread ran, and the wait may never end: aborting. Keep such a wait out of `Drop`.",
        describe(here()),
    );
    std::process::abort()
}

fn describe(who: Here) -> String {
    let found = worker().and_then(|worker| worker.describe_slot(who.slot()));
    found.filter(|_| who.worker() != 0).unwrap_or_else(|| "a plain thread".to_owned())
}
