//! Timing of one operation inside a process: many batches, their median, and how far they spread.

use std::time::Instant;

/// Batches of one measurement. Their median resists what else the machine does.
const BATCHES: usize = 21;

/// Nanoseconds of one operation: the median, the least and the most of all batches.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Half of the batches were faster.
    pub median: f64,
    /// The fastest batch.
    pub least: f64,
    /// The slowest batch.
    pub most: f64,
}

impl Sample {
    /// Times `batch`, which does `operations` of what is measured, after one run that does not count.
    pub fn take(operations: usize, mut batch: impl FnMut()) -> Self {
        batch();
        let mut nanos: Vec<f64> = (0..BATCHES)
            .map(|_| {
                let began = Instant::now();
                batch();
                began.elapsed().as_nanos() as f64 / operations as f64
            })
            .collect();
        nanos.sort_by(f64::total_cmp);
        Self { median: nanos[BATCHES / 2], least: nanos[0], most: nanos[BATCHES - 1] }
    }
}

/// Prints the heading for [`print_line`].
pub fn print_heading(of: &str) {
    println!("{of:<52} {:>12} {:>12} {:>12}", "ns (median)", "least", "most");
}

/// Prints one measurement.
pub fn print_line(name: &str, sample: Sample) {
    println!("{name:<52} {:>12.1} {:>12.1} {:>12.1}", sample.median, sample.least, sample.most);
}
