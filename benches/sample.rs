//! Timing of one operation inside a process: many batches, their median, and how far they spread.

use std::time::Instant;

use crate::spread::Spread;

/// Batches of one measurement. Their median resists what else the machine does.
const BATCHES: usize = 101;

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
        Self::of_batches(|| nanos_of(operations, &mut batch))
    }

    /// What `more` takes beyond `less`, each batch of one next to a batch of the other in time.
    pub fn take_difference(operations: usize, mut less: impl FnMut(), mut more: impl FnMut()) -> Self {
        less();
        more();
        Self::of_batches(|| -nanos_of(operations, &mut less) + nanos_of(operations, &mut more))
    }

    fn of_batches(nanos: impl FnMut() -> f64) -> Self {
        let spread = Spread::of(std::iter::repeat_with(nanos).take(BATCHES));
        Self { median: spread.median, least: spread.min, most: spread.max }
    }
}

fn nanos_of(operations: usize, batch: &mut impl FnMut()) -> f64 {
    let began = Instant::now();
    batch();
    began.elapsed().as_nanos() as f64 / operations as f64
}

/// Prints the heading for [`print_line`].
pub fn print_heading(of: &str) {
    println!("{of:<52} {:>12} {:>12} {:>12}", "ns (median)", "least", "most");
}

/// Prints one measurement.
pub fn print_line(name: &str, sample: Sample) {
    println!("{name:<52} {:>12.1} {:>12.1} {:>12.1}", sample.median, sample.least, sample.most);
}
