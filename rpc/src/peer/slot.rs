//! Where an answer is laid for its caller.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dhaga::park::{self, Unparker};

use crate::error::CallError;
use crate::spare::{KEPT_BYTES_MAX, Spares};

thread_local! {
    /// A caller gives its slot back when it has decoded its answer, mostly just before it or another calls again.
    static SPARES: Spares<Slot> = const { Spares::new(64) };
}

/// Where an answer is laid for its caller.
pub(super) struct Slot {
    caller: Unparker,
    laid: Mutex<Laid>,
}

#[derive(Default)]
struct Laid {
    /// The encoded result, if the outcome is one.
    bytes: Vec<u8>,
    outcome: Option<Result<(), CallError>>,
}

impl Slot {
    /// An empty one, for a call that the caller makes.
    #[inline]
    pub(super) fn new() -> Arc<Self> {
        let caller = park::unparker();
        if let Ok(Some(mut spare)) = SPARES.try_with(Spares::take)
            && let Some(slot) = Arc::get_mut(&mut spare)
        {
            slot.caller = caller;
            return spare;
        }
        Arc::new(Self { caller, laid: Mutex::default() })
    }

    fn laid(&self) -> MutexGuard<'_, Laid> {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays an encoded result down.
    #[inline]
    pub(super) fn fill(&self, result: &[u8]) {
        let mut laid = self.laid();
        laid.bytes.clear();
        laid.bytes.extend_from_slice(result);
        laid.outcome = Some(Ok(()));
        drop(laid);
        self.caller.unpark();
    }

    pub(super) fn fail(&self, error: CallError) {
        self.laid().outcome = Some(Err(error));
        self.caller.unpark();
    }

    /// What was laid down. `None`: nothing yet, and the slot is left where it is.
    #[inline]
    pub(super) fn take(slot: &mut Option<Arc<Self>>) -> Option<Result<Answer, CallError>> {
        let mut laid = slot.as_ref()?.laid();
        let outcome = laid.outcome.take()?;
        let bytes = std::mem::take(&mut laid.bytes);
        drop(laid);
        let answer = Answer { bytes, slot: slot.take() };
        Some(outcome.map(|()| answer))
    }

    /// Keeps the slot of a call that is over for the next one, if nobody else holds it.
    #[inline]
    fn keep(mut slot: Arc<Self>, bytes: Vec<u8>) {
        if bytes.capacity() > KEPT_BYTES_MAX {
            return;
        }
        let Some(unique) = Arc::get_mut(&mut slot) else { return };
        *unique.laid.get_mut().unwrap_or_else(PoisonError::into_inner) = Laid { bytes, outcome: None };
        // While the locals of a thread are destroyed nothing more is kept.
        let _ = SPARES.try_with(|spares| spares.keep(slot));
    }
}

/// An encoded result.
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// It lay there; the memory goes back.
    slot: Option<Arc<Slot>>,
}

impl Answer {
    pub(crate) fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Deref for Answer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

impl Drop for Answer {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            Slot::keep(slot, std::mem::take(&mut self.bytes));
        }
    }
}
