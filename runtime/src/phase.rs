//! How far the shutdown of a runtime has come.

use std::sync::atomic::{AtomicU8, Ordering};

/// What a runtime does with its dhagas. It only goes on, never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Running,
    /// Nothing comes in from outside, and what is there may finish.
    Draining,
    /// Everything is cancelled, and so is what starts from now on.
    Cancelling,
    /// Everything unwinds, and nothing starts any more.
    Unwinding,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Running, Self::Draining, Self::Cancelling, Self::Unwinding];
}

/// The phase, as all threads see it.
pub(crate) struct AtomicPhase(AtomicU8);

impl AtomicPhase {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(Phase::Running as u8))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Phase {
        Phase::ALL[usize::from(self.0.load(Ordering::SeqCst))]
    }

    /// Goes on to `phase`, unless it is there or further already.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_never_goes_back() {
        let phase = AtomicPhase::new();
        assert_eq!(phase.get(), Phase::Running);
        phase.advance(Phase::Cancelling);
        phase.advance(Phase::Draining);
        assert_eq!(phase.get(), Phase::Cancelling);
    }

    #[test]
    fn each_phase_is_found_at_its_number() {
        assert!(Phase::ALL.iter().enumerate().all(|(number, phase)| *phase as usize == number));
    }
}
