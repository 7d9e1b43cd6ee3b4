//! The behaviour of the runtime, from outside. A file for each topic.

mod blocking;
mod child;
mod common;
mod limits;
mod machine;
mod many;
mod net;
mod overflow;
mod panicking;
mod shutdown;
mod spawn;
mod stacks;
mod sync;
