//! Memory of stacks that nobody needs goes back to the system.

use std::time::{Duration, Instant};

use super::{Worker, now};

/// Address space of the touched stacks that a worker keeps for the next burst: 64 of the default size, which hold 256 KiB
/// if each uses a page.
const WARM_BYTES_MAX: usize = 16 << 20;
/// How often a worker gives an eighth of the stacks that it did not need meanwhile back to the system, so that half of
/// them are gone after half a second.
const TRIM_PERIOD: Duration = Duration::from_millis(100);
/// How long a worker trims at most before it sleeps, and looks at the clock each so many stacks: 20 000 stacks a second.
const TRIM_TIME_MAX: Duration = Duration::from_millis(1);
const TRIMMED_PER_LOOK: usize = 128;
/// When to try again if the system takes nothing back, as with locked memory.
const TRIM_REFUSED_PAUSE: Duration = Duration::from_secs(3600);

impl Worker {
    pub(super) fn count_spare_stacks(&self) -> usize {
        self.stacks.borrow().spare(WARM_BYTES_MAX)
    }

    /// Gives memory of stacks back that nobody needed for a while. Armed only while there is some, so that an idle
    /// process sleeps for good.
    pub(super) fn trim_stacks(&self) {
        let spare = self.count_spare_stacks();
        if spare == 0 {
            return self.trim_due.set(None);
        }
        let now = now();
        match self.trim_due.get() {
            Some(due) if due > now => return,
            Some(_) => {
                let share = self.spare_stacks.get().min(spare).div_ceil(8);
                let is_refused = share > 0 && self.trim(share, now) == 0;
                self.trim_due.set(Some(now + if is_refused { TRIM_REFUSED_PAUSE } else { TRIM_PERIOD }));
            }
            None => self.trim_due.set(Some(now + TRIM_PERIOD)),
        }
        self.spare_stacks.set(spare);
    }

    /// Trims so many stacks, or as many as there is time for, and returns how many.
    fn trim(&self, count: usize, began: Instant) -> usize {
        let (mut stacks, mut left) = (self.stacks.borrow_mut(), count);
        loop {
            let step = left.min(TRIMMED_PER_LOOK);
            let trimmed = stacks.trim(WARM_BYTES_MAX, step);
            left -= trimmed;
            if trimmed < step || left == 0 || now() - began > TRIM_TIME_MAX {
                return count - left;
            }
        }
    }
}
