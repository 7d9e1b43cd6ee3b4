//! The behaviour of the runtime, from outside. A file for each topic.

#[cfg(not(feature = "sanitizer"))]
mod aborting;
mod blocking;
mod child;
mod common;
mod fork;
mod leaks;
mod limits;
mod machine;
mod many;
mod net;
mod overflow;
mod panicking;
mod races;
#[cfg(feature = "sanitizer")]
mod sanitizer;
mod seeded;
mod select;
mod shutdown;
mod spawn;
mod stacks;
mod storm;
mod sync;
