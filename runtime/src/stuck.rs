//! Who has not stopped when a runtime was shut down.

use std::fmt;
use std::panic::Location;

use crate::task::{State, Task, WaitReason};

/// Dhagas that are named when a shutdown fails: those of one fault resemble each other, and a report shall fit a screen.
pub const STUCK_REPORTED_MAX: usize = 32;

/// A dhaga that had not ended when its runtime gave up to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StuckDhaga {
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// Where it was spawned.
    pub spawn_site: &'static Location<'static>,
    /// What it waits for; `None` while it runs or is ready to.
    pub wait: Option<WaitReason>,
    /// Its worker, from 0: the number at the end of the name of the worker's OS thread.
    pub worker: usize,
}

impl StuckDhaga {
    /// `None` of one that has handed its result over and is about to go.
    pub(crate) fn of(task: &Task, worker: usize) -> Option<Self> {
        let label = task.head()?.label();
        let wait = match task.state.get() {
            State::Parked(reason) => Some(reason),
            State::Ready => None,
        };
        Some(Self::new(label.name(), label.site, wait, worker))
    }

    pub(crate) fn new(
        name: Option<&str>,
        spawn_site: &'static Location<'static>,
        wait: Option<WaitReason>,
        worker: usize,
    ) -> Self {
        Self { name: name.map(str::to_owned), spawn_site, wait, worker }
    }
}

impl fmt::Display for StuckDhaga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("<unnamed>");
        write!(f, "dhaga {name:?} (spawned at {}): ", self.spawn_site)?;
        match self.wait {
            Some(reason) => write!(f, "waits ({reason:?})"),
            None => f.write_str("runs or is ready to"),
        }
    }
}

/// What a worker says of the dhagas that it still has.
pub(crate) struct WorkerReport {
    pub(crate) worker: usize,
    /// How many.
    pub(crate) dhagas: usize,
    /// The first of them, [`STUCK_REPORTED_MAX`] at most.
    pub(crate) stuck: Vec<StuckDhaga>,
}
