//! Sockets as std's, in which a dhaga that waits parks and a plain thread blocks.
//!
//! | std | here |
//! |---|---|
//! | `std::net::{TcpStream, TcpListener}` | [`TcpStream`], [`TcpListener`] |
//! | `std::net::UdpSocket` | [`UdpSocket`] |
//! | `std::os::unix::net` | [`unix`]; its three sockets also lie here |
//! | any other descriptor that the kernel can poll | [`Watched`] |
//!
//! Addresses are std's own types; [`ToSocketAddrs`] is ours, so that a host name is looked up without blocking a worker. Any
//! number of dhagas may use one socket at once, on any worker, and plain threads beside them; clones share it, and the last
//! one closes it. What waits ends at the deadline around it and with its dhaga's cancel; see [`within`](crate::within). The
//! readiness of each of them is an event of [`select!`](crate::select!).
//!
//! In a future they wait as [`Async`], which has the traits of `async` libraries.
//!
//! From std's types and to them: `TryFrom`; from descriptors and to them: `From`.
//!
//! ```
//! let ours = dhaga::net::TcpListener::try_from(std::net::TcpListener::bind("127.0.0.1:0")?)?;
//! let stds = std::net::TcpListener::try_from(ours)?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub(crate) mod asynchronous;
mod connect;
mod each_worker;
mod face;
#[cfg(feature = "futures-io")]
mod futures_io;
mod listener_options;
mod lookup;
mod names;
pub(crate) mod on_demand;
pub(crate) mod ready;
pub(crate) mod source;
mod tcp;
mod udp;
pub mod unix;
mod watched;

pub use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6};

pub use asynchronous::Async;
pub use connect::{CONNECT_ATTEMPT_DELAY, CONNECT_ATTEMPT_TIMEOUT, CONNECT_ATTEMPTS_MAX, ConnectError};
pub use each_worker::{WorkerListeners, listen_on_each_worker};
pub use listener_options::ListenerOptions;
pub use lookup::{LOOKUP_TIMEOUT, LOOKUPS_MAX, LookupError};
#[doc(hidden)]
pub use names::lookup_host_by;
pub use names::{SocketAddrs, ToSocketAddrs, lookup_host};
pub use ready::Socket;
pub use tcp::{Incoming, TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UnixDatagram, UnixListener, UnixStream};
pub use watched::Watched;
