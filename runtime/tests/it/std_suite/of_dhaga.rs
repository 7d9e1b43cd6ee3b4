//! The cases over our sockets.

#![expect(clippy::duplicate_mod, reason = "the same cases over two sets of types")]

use dhaga::net;
use dhaga::net::unix as unix_net;

#[path = "streams.rs"]
pub mod streams;
#[path = "tcp.rs"]
pub mod tcp;
#[path = "udp.rs"]
pub mod udp;
#[path = "unix.rs"]
pub mod unix;
