//! Sockets as std's, in which a dhaga that waits parks.

pub(crate) mod ready;
pub(crate) mod source;
mod tcp;

pub use ready::Socket;
pub use tcp::{Incoming, TcpListener, TcpStream};
