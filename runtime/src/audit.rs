//! What a runtime holds right now, worker by worker: for tests that look whether anything was left behind.

use std::iter::Sum;
use std::ops::Add;

/// Counts over all workers of a runtime. Each worker counts between two batches, not all at the same instant.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Dhagas that have started and not ended.
    pub tasks: usize,
    /// Dhagas that have not started.
    pub unstarted: usize,
    /// Stacks in use, those apart that each worker keeps for the case that there is no other.
    pub stacks: usize,
    pub timers: usize,
    /// Sockets known to a poll.
    pub sources: usize,
    /// Things asked for the end of the turn.
    pub at_end: usize,
    /// Dhagas that room is reserved for.
    pub reserved: usize,
}

impl Add for Audit {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tasks: self.tasks + other.tasks,
            unstarted: self.unstarted + other.unstarted,
            stacks: self.stacks + other.stacks,
            timers: self.timers + other.timers,
            sources: self.sources + other.sources,
            at_end: self.at_end + other.at_end,
            reserved: self.reserved + other.reserved,
        }
    }
}

impl Sum for Audit {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}
