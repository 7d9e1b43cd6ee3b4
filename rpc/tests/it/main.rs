//! The behaviour of the RPC library, from outside. A file for each topic.

mod calls;
mod cancel;
mod common;
mod deadlines;
mod faults;
mod fuzz_bodies;
mod goaway;
mod hello;
mod hostile;
mod idle;
mod late;
mod metadata;
mod once;
mod ownership;
mod peers;
mod pressure;
mod replay;
mod services;
mod shutdown;
mod waits;
