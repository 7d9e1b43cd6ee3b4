//! The end of a runtime, phase by phase.
//!
//! ```text
//!   shutdown(grace) ──▶ drain ───────────▶ cancel ────────────▶ unwind ─────────▶ report
//!                       up to grace        up to 1 s            up to 5 s
//!   from outside        refused            refused              refused           refused
//!   accept              ends               ends                 throws
//!   spawned inside      runs               runs, cancelled      never runs
//!   waits that can fail go on              fail: cancelled      throw
//!   sleep, yield_now    go on              throw                throw
//!   locks, scope        go on              go on                throw (scope: when it is empty)
//!   over when left are  background dhagas  none                 no workers
//! ```
//!
//! Each phase ends early when nothing is left that it waits for. A dropped runtime begins with *cancel*.

use std::error::Error;
use std::fmt;
use std::sync::mpsc;
use std::time::Duration;

use crate::around;
use crate::park::{self, Parked, WaitReason};
use crate::phase::Phase;
use crate::run_queue::Message;
use crate::scheduler::Shared;
use crate::stuck::{StuckDhaga, WorkerReport};

pub use crate::stuck::STUCK_REPORTED_MAX;

/// How long the dhagas of a runtime that is shut down have to hand back what they hold, once they are cancelled. Enough for
/// some round trips to say good-bye over a network; more would be work, for which the grace of
/// [`Runtime::shutdown`](crate::Runtime::shutdown) is there.
pub const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// How long those that a cancel did not end have to unwind. To unwind takes no time by itself; what lasts is a computation
/// that meets no wait, or a `Drop` that blocks.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long a worker has to say who is left. One that is not kept by a dhaga answers within a turn; more is for machines on
/// which its OS thread waits for a processor.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// How the work of a runtime shall end.
pub(crate) enum Ending {
    /// It has so long to finish, before it is cancelled.
    Drain(Duration),
    Cancel,
    /// Nobody can wait for it, not even for a report.
    Abandon,
}

/// Brings all dhagas and workers to an end.
pub(crate) fn shut_down(shared: &Shared, ending: Ending) -> Result<(), ShutdownError> {
    if let Ending::Abandon = ending {
        enter(shared, Phase::Unwinding);
        return Err(ShutdownError::of(shared, None));
    }
    let waiter = park::unparker();
    shared.observe(move || waiter.unpark());
    if let Ending::Drain(grace) = ending {
        pass(shared, Phase::Draining, grace);
    }
    pass(shared, Phase::Cancelling, CANCEL_GRACE);
    if pass(shared, Phase::Unwinding, SHUTDOWN_GRACE) {
        return Ok(());
    }
    let error = ShutdownError::of(shared, Some(ask_workers(shared)));
    // The last may have ended meanwhile.
    if shared.is_over(Phase::Unwinding) { Ok(()) } else { Err(error) }
}

fn enter(shared: &Shared, phase: Phase) {
    shared.advance(phase);
    for injector in shared.injectors() {
        // A worker that has ended takes no messages, and needs none.
        let _ = injector.push(Message::Shutdown);
    }
}

/// Goes through a phase. Returns whether nothing is left that it waits for.
fn pass(shared: &Shared, phase: Phase, grace: Duration) -> bool {
    enter(shared, phase);
    let deadline = around::after(grace);
    loop {
        if shared.is_over(phase) {
            return true;
        }
        if park::park_until(WaitReason::Join, deadline) == Parked::TimedOut {
            return shared.is_over(phase);
        }
    }
}

/// What each worker says, `None` of one that says nothing. Those that have ended are left out.
fn ask_workers(shared: &Shared) -> Vec<(usize, Option<WorkerReport>)> {
    let (sender, answers) = mpsc::channel();
    let is_asked = |worker: usize| {
        let injector = shared.injectors()[worker];
        injector.push(Message::Report(worker, sender.clone())).is_ok()
    };
    let mut reports: Vec<_> =
        (0..shared.injectors().len()).filter(|&worker| is_asked(worker)).map(|worker| (worker, None)).collect();
    let deadline = around::after(REPORT_PATIENCE);
    loop {
        for answer in answers.try_iter() {
            let place = reports.iter_mut().find(|(worker, _)| *worker == answer.worker);
            place.expect("only those that were asked answer").1 = Some(answer);
        }
        let is_complete = reports.iter().all(|(_, report)| report.is_some());
        if is_complete || park::park_until(WaitReason::Join, deadline) == Parked::TimedOut {
            return reports;
        }
    }
}

/// Who had not stopped when a shutdown gave up. It is left running, with its stacks and OS threads: to free them would pull
/// stacks away under running code.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownError {
    /// Workers that still run.
    pub workers: usize,
    /// Dhagas that still live on them, started or not.
    pub dhagas: usize,
    /// The first of these dhagas, [`STUCK_REPORTED_MAX`] at most, of the workers that answer.
    pub stuck: Vec<StuckDhaga>,
    /// Workers, from 0, that do not even answer: a dhaga computes there, or blocks the OS thread outside the runtime.
    pub silent_workers: Vec<usize>,
}

impl ShutdownError {
    /// `reports`: of the workers that live; `None` when they were not asked.
    fn of(shared: &Shared, reports: Option<Vec<(usize, Option<WorkerReport>)>>) -> Self {
        let Some(reports) = reports else {
            let (workers, dhagas) = (shared.live_workers(), shared.tasks());
            return Self { workers, dhagas, stuck: Vec::new(), silent_workers: Vec::new() };
        };
        let mut error = Self { workers: reports.len(), dhagas: 0, stuck: Vec::new(), silent_workers: Vec::new() };
        for (worker, report) in reports {
            match report {
                Some(report) => {
                    error.dhagas += report.dhagas;
                    error.stuck.extend(report.stuck);
                }
                None => {
                    // The count may be of the turn before, but somebody keeps it.
                    error.dhagas += shared.tasks_of(worker).max(1);
                    error.silent_workers.push(worker);
                }
            }
        }
        error.stuck.truncate(STUCK_REPORTED_MAX);
        error
    }
}

/// A line for the whole, and one for each that is known.
impl fmt::Display for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} dhagas on {} workers did not stop when their runtime was shut down, and are left as they are",
            self.dhagas, self.workers
        )?;
        for worker in &self.silent_workers {
            write!(f, "\n  worker {worker} does not answer: a dhaga computes there, or blocks outside the runtime")?;
        }
        for dhaga in &self.stuck {
            write!(f, "\n  on worker {}: {dhaga}", dhaga.worker)?;
        }
        Ok(())
    }
}

impl Error for ShutdownError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::Location;

    #[test]
    fn each_that_has_not_stopped_has_a_line() {
        let stuck = StuckDhaga::new(Some("indexer"), Location::caller(), Some(WaitReason::Lock), 1);
        let site = stuck.spawn_site;
        let error = ShutdownError { workers: 2, dhagas: 7, stuck: vec![stuck], silent_workers: vec![0] };
        let expected = format!(
            "7 dhagas on 2 workers did not stop when their runtime was shut down, and are left as they are\n  \
             worker 0 does not answer: a dhaga computes there, or blocks outside the runtime\n  \
             on worker 1: dhaga \"indexer\" (spawned at {site}): waits (Lock)"
        );
        assert_eq!(error.to_string(), expected);
    }
}
