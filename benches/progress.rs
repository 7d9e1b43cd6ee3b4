//! How far a benchmark is.

use indicatif::{ProgressBar, ProgressStyle};

/// Never redrawn by itself, since a waking thread would be measured too.
///
/// # Panics
///
/// Never: the template is ours.
pub fn bar(runs: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} run {pos} of {len}, {eta} left: {msg}")
        .expect("the template is well formed");
    ProgressBar::new(runs as u64).with_style(style)
}

/// One more run begins.
pub fn step(bar: &ProgressBar, row: &str, name: &str) {
    bar.set_message(format!("{row} {name}"));
    bar.inc(1);
}
