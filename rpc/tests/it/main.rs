//! The behaviour of the RPC library, from outside. A file for each topic.

mod calls;
mod common;
mod faults;
mod hostile;
mod idle;
mod late;
mod ownership;
mod peers;
mod pressure;
mod services;
mod shutdown;
mod waits;
