//! Sockets as std's, in which a dhaga that waits parks.

mod ready;
pub(crate) mod source;
mod tcp;

pub use ready::{Ready, Socket};
pub use tcp::{Incoming, TcpListener, TcpStream};
