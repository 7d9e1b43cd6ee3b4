//! The behaviour of the runtime, from outside. A file for each topic.

mod blocking;
mod child;
mod common;
mod fork;
mod leaks;
mod many;
mod net;
mod overflow;
mod panicking;
mod races;
mod seeded;
mod shutdown;
mod spawn;
mod storm;
mod sync;
