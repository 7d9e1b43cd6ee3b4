//! A point that nobody passes before all have reached it.

use std::fmt;

use super::crowd::Crowd;
use crate::park::WaitReason;

/// A barrier, as [`std::sync::Barrier`], at which waiters are parked. When the last has come all go on, and it can be used
/// again.
///
/// # Examples
///
/// ```
/// use dhaga::sync::Barrier;
///
/// let barrier = Barrier::new(3);
/// let leaders = dhaga::scope(|s| {
///     let parts = [0; 3].map(|_| s.spawn(|| barrier.wait().is_leader()));
///     parts.into_iter().filter_map(|part| part.join().ok()).filter(|&is_leader| is_leader).count()
/// });
/// assert_eq!(leaders, 1);
/// ```
pub struct Barrier {
    count: usize,
    /// How many have come since it last opened.
    arrived: Crowd<usize>,
}

/// What [`Barrier::wait`] returns: who is the leader.
pub struct BarrierWaitResult(bool);

impl Barrier {
    /// A barrier for this many. One for none is one for one: nobody waits at it.
    pub const fn new(count: usize) -> Self {
        Barrier { count, arrived: Crowd::new(0) }
    }

    /// Suspends until as many as the barrier is for have called this, and goes on doing so when the scope is cancelled or
    /// out of time. The last who comes is the leader.
    ///
    /// Whoever has come counts, even if the shutdown of its runtime unwinds it while it waits.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run, so it counts itself in and blocks its OS thread. If the others have
    /// not come after ten seconds, the process ends with a sentence that names it.
    pub fn wait(&self) -> BarrierWaitResult {
        let mut arrived = self.arrived.lock();
        *arrived += 1;
        if *arrived < self.count {
            arrived.wait(WaitReason::Barrier, "others at a barrier");
            return BarrierWaitResult(false);
        }
        *arrived = 0;
        arrived.release();
        BarrierWaitResult(true)
    }
}

impl BarrierWaitResult {
    /// Whether the caller came last: true for exactly one of those who go on together.
    pub fn is_leader(&self) -> bool {
        self.0
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").finish_non_exhaustive()
    }
}

impl fmt::Debug for BarrierWaitResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarrierWaitResult").field("is_leader", &self.is_leader()).finish()
    }
}
