//! The encoded result of a call, in memory that serves the next one.

use std::fmt;
use std::ops::Deref;

use crate::spare::{KEPT_BYTES_MAX, Spares};

thread_local! {
    /// Answers come in a burst, are decoded one by one, and then their memory goes back: 256 KiB at most.
    static SPARES: Spares<Vec<u8>> = const { Spares::new(2048) };
}

/// An encoded result.
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    #[inline]
    pub(super) fn new(result: &[u8]) -> Self {
        // While the locals of a thread are destroyed there are no spares.
        let spare = if result.len() > KEPT_BYTES_MAX { None } else { SPARES.try_with(Spares::take).ok().flatten() };
        let mut bytes = spare.unwrap_or_default();
        bytes.extend_from_slice(result);
        Self(bytes)
    }

    pub(crate) fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Deref for Answer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Drop for Answer {
    #[inline]
    fn drop(&mut self) {
        if (1..=KEPT_BYTES_MAX).contains(&self.0.capacity()) {
            let mut bytes = std::mem::take(&mut self.0);
            bytes.clear();
            let _ = SPARES.try_with(|spares| spares.keep(bytes));
        }
    }
}
