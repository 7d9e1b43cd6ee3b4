//! For time to pass.

use std::time::{Duration, Instant};

use super::{Arm, Claim, Event};
use crate::around;
use crate::park::{self, Unparker};

/// For time to pass.
pub struct Timer {
    /// Counted from the beginning of each wait.
    after: Option<Duration>,
    /// Never, if there is none.
    deadline: Option<Instant>,
    has_passed: bool,
}

impl Timer {
    /// So long after the wait has begun.
    pub fn after(duration: Duration) -> Self {
        Self { after: Some(duration), deadline: None, has_passed: false }
    }

    /// At this instant.
    pub fn at(deadline: Instant) -> Self {
        Self { after: None, deadline: Some(deadline), has_passed: false }
    }
}

impl Event for Timer {
    fn begin(&mut self) {
        if let Some(duration) = self.after {
            self.deadline = around::after(duration);
        }
    }

    fn attempt(&mut self) -> bool {
        self.has_passed = self.deadline.is_some_and(|deadline| deadline <= park::now());
        self.has_passed
    }

    /// The park has the deadline.
    unsafe fn enlist(&mut self, _: &Claim, _: Unparker) -> bool {
        true
    }

    fn withdraw(&mut self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

impl Arm for Timer {
    type Outcome = ();

    fn outcome(&mut self) -> Option<()> {
        std::mem::take(&mut self.has_passed).then_some(())
    }
}
