//! The behaviour of the RPC library, from outside. A file for each topic.

mod calls;
mod common;
mod errors;
mod faults;
mod hostile;
mod idle;
mod late;
mod ownership;
mod pressure;
mod services;
mod shutdown;
mod waits;
