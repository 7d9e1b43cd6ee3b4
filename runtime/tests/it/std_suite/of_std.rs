//! The cases over std's sockets.

#![expect(clippy::duplicate_mod, reason = "the same cases over two sets of types")]

use std::net;
use std::os::unix::net as unix_net;

#[path = "streams.rs"]
pub mod streams;
#[path = "tcp.rs"]
pub mod tcp;
#[path = "udp.rs"]
pub mod udp;
#[path = "unix.rs"]
pub mod unix;
