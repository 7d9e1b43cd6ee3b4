//! The bridge to `async` libraries, from outside: futures-io, hyper, and executors that are not ours.

mod common;
mod futures_io;
mod hyper;
