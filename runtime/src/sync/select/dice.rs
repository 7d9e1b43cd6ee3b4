//! Chance that is cheap and good enough to leave nobody out.

use std::cell::Cell;

thread_local! {
    /// Each thread goes its own way from the address of its place, which differs from those of all others.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// A number below `limit`, which is not 0. An xorshift generator: a few instructions.
pub(super) fn below(limit: usize) -> usize {
    // While a thread's locals are destroyed all are in order: this one has no destructor.
    let number = STATE.with(|state| {
        let mut number = state.get();
        if number == 0 {
            number = std::ptr::from_ref(state).addr() as u64 | 1;
        }
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        state.set(number);
        number
    });
    // The upper half, scaled: no division.
    (((number >> 32) * limit as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_about_as_often_as_any_other() {
        let mut counts = [0; 5];
        (0..50_000).for_each(|_| counts[below(5)] += 1);
        assert!(counts.iter().all(|count| (8_000..12_000).contains(count)), "{counts:?}");
    }
}
