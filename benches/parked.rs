//! What it takes to have very many tasks parked at once: memory and time of each.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::server_use;

/// How long the last ones have to reach their wait, after they have said that they live.
const SETTLE: Duration = Duration::from_millis(200);

/// Averages over all that were parked.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    /// Growth of resident memory and page tables.
    pub bytes_each: f64,
    /// From the first spawn until the last one lives.
    pub nanos_each: f64,
}

impl Parked {
    /// Measures `start`, which spawns `count` tasks and returns when each has counted itself in
    /// [`Arrivals`]. What it returns keeps them parked, and is handed back.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc`.
    pub fn measure<T>(count: usize, start: impl FnOnce() -> T) -> io::Result<(Parked, T)> {
        let process = std::process::id();
        let before = server_use::memory_bytes(process)?;
        let began = Instant::now();
        let kept = start();
        let took = began.elapsed();
        sleep(SETTLE);
        let grown = server_use::memory_bytes(process)?.saturating_sub(before);
        let each = |total: f64| total / count as f64;
        Ok((Parked { bytes_each: each(grown as f64), nanos_each: each(took.as_nanos() as f64) }, kept))
    }
}

/// How many tasks have said that they are about to park.
#[derive(Debug, Default)]
pub struct Arrivals(AtomicUsize);

impl Arrivals {
    /// One more; to be called right before the wait.
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether all are there.
    pub fn reached(&self, count: usize) -> bool {
        self.0.load(Ordering::Relaxed) >= count
    }
}
