//! The behaviour of the RPC library, from outside. A file for each topic.

mod calls;
mod common;
mod errors;
mod exhaustion;
mod faults;
mod floods;
mod fuzz_bodies;
mod golden;
mod hello;
mod hostile;
mod idle;
mod introspection;
mod late;
mod layers;
mod metrics;
mod once;
mod ownership;
mod peers;
mod pressure;
mod replay;
mod services;
mod shutdown;
mod transports;
mod waits;
