//! The behaviour of the runtime, from outside. A file for each topic.

#[cfg(not(feature = "sanitizer"))]
mod aborting;
mod blocking;
mod broadcast;
mod cancels;
mod child;
mod common;
mod context;
mod fork;
mod future;
mod groups;
mod halves;
mod leaks;
mod leftovers;
mod limits;
mod locks;
mod machine;
mod many;
mod mpsc;
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
mod std_suite;
mod storm;
mod sync;
mod thread;
mod time;
mod traits;
mod udp;
mod unix;
mod verdicts;
mod waits;
mod watch;
mod watched;
mod within;
