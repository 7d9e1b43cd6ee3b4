//! Sockets of this host, as in `std::os::unix::net`: the same names, the same behaviour, and a wait that parks.
//!
//! # Examples
//!
//! ```
//! use std::io::{Read, Write};
//! let (mut near, mut far) = dhaga::net::UnixStream::pair()?;
//! let echo = move || {
//!     let mut word = [0; 5];
//!     far.read_exact(&mut word)?;
//!     far.write_all(&word)
//! };
//! dhaga::spawn(echo).detach();
//! near.write_all(b"hello")?;
//! let mut answer = String::new();
//! near.read_to_string(&mut answer)?;
//! assert_eq!(answer, "hello");
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
pub use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as std_unix;
pub use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::face::{handle, listener, stream, timeouts};
use super::source::{Manner, Source};
use crate::park::WaitReason;
use crate::reactor::Direction;

/// A connection on this host. All its waits park a dhaga and block a plain thread; see [`std::os::unix::net::UnixStream`]
/// for the rest.
///
/// Any number of dhagas may use it at once, on any worker. Clones share it: the connection is closed with the last one.
pub struct UnixStream {
    pub(super) source: Arc<Source<std_unix::UnixStream>>,
}

impl UnixStream {
    /// Connects to the socket at `path`. Waits while the listener's backlog is full: for this the kernel has no event, so it
    /// is tried again at least every 10 ms.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `NotFound`, or `ConnectionRefused` where nobody listens.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::connect_addr(&SocketAddr::from_pathname(path)?)
    }

    /// As [`UnixStream::connect`] to an address, which may be an abstract one.
    ///
    /// # Errors
    ///
    /// As [`UnixStream::connect`].
    pub fn connect_addr(address: &SocketAddr) -> io::Result<Self> {
        let address = kernel_address(address)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let stream = Self::from_nonblocking(socket.into());
        let manner = Manner { direction: Direction::Write, reason: WaitReason::Connect, timeout: None };
        stream.source.io_by_pauses(manner, |socket| Ok(rustix::net::connect(socket, &address)?))?;
        Ok(stream)
    }

    /// Two streams that are connected with each other.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = pair(SocketType::STREAM)?;
        Ok((Self::from_nonblocking(one.into()), Self::from_nonblocking(other.into())))
    }

    /// The address of this side.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().local_addr()
    }

    /// The address of the other side.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().peer_addr()
    }

    /// Ends one direction or both. Who waits in it is woken; but a plain thread whose write waits for room is so only by
    /// `Both`.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.source.socket().shutdown(how)?;
        rouse_writers(&self.source, how);
        Ok(())
    }
}

handle!(UnixStream, std_unix::UnixStream);
timeouts!(UnixStream);
stream!(UnixStream, is_empty_after);

/// A read ends where descriptors were sent along with the bytes, and leaves what comes behind: how much was read says
/// nothing. Only an attempt does.
fn is_empty_after(_count: usize, _len: usize) -> bool {
    false
}

/// A socket that accepts connections on this host. See [`std::os::unix::net::UnixListener`].
///
/// Any number of dhagas may wait in `accept` at once.
///
/// # Examples
///
/// ```no_run
/// let listener = dhaga::net::UnixListener::bind("/run/echo.socket")?;
/// for stream in listener.incoming() {
///     let mut stream = stream?;
///     dhaga::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream)).detach();
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct UnixListener {
    pub(super) source: Arc<Source<std_unix::UnixListener>>,
}

impl UnixListener {
    /// Listens at `path`, where it makes a socket, which stays when the listener goes.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `AddrInUse` if there is something already.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_addr(&SocketAddr::from_pathname(path)?)
    }

    /// As [`UnixListener::bind`] at an address, which may be an abstract one.
    ///
    /// # Errors
    ///
    /// As [`UnixListener::bind`].
    pub fn bind_addr(address: &SocketAddr) -> io::Result<Self> {
        let socket = std_unix::UnixListener::bind_addr(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self::from_nonblocking(socket))
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().local_addr()
    }
}

handle!(UnixListener, std_unix::UnixListener);
listener!(UnixListener, UnixStream, SocketAddr, accept);

impl<'a> IntoIterator for &'a UnixListener {
    type Item = io::Result<UnixStream>;
    type IntoIter = Incoming<'a>;

    fn into_iter(self) -> Incoming<'a> {
        self.incoming()
    }
}

/// Sends and receives datagrams on this host. See [`std::os::unix::net::UnixDatagram`].
///
/// Any number of dhagas may wait in it at once, on any worker: each datagram goes to one of them.
///
/// # Examples
///
/// ```
/// let (near, far) = dhaga::net::UnixDatagram::pair()?;
/// near.send(b"hello")?;
/// let mut buffer = [0; 16];
/// assert_eq!(far.recv(&mut buffer)?, 5);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct UnixDatagram {
    pub(super) source: Arc<Source<std_unix::UnixDatagram>>,
}

impl UnixDatagram {
    /// A socket at `path`.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `AddrInUse` if there is something already.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_addr(&SocketAddr::from_pathname(path)?)
    }

    /// A socket at an address, which may be an abstract one.
    ///
    /// # Errors
    ///
    /// As [`UnixDatagram::bind`].
    pub fn bind_addr(address: &SocketAddr) -> io::Result<Self> {
        let socket = std_unix::UnixDatagram::bind_addr(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self::from_nonblocking(socket))
    }

    /// A socket without an address: nobody can answer.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn unbound() -> io::Result<Self> {
        let socket = std_unix::UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self::from_nonblocking(socket))
    }

    /// Two sockets that are connected with each other.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = pair(SocketType::DGRAM)?;
        Ok((Self::from_nonblocking(one.into()), Self::from_nonblocking(other.into())))
    }

    /// Sets the socket that [`send`](Self::send) sends to, and the only one that is heard from now on.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `NotFound`, or `ConnectionRefused` where nobody is.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.source.socket().connect(path)
    }

    /// As [`connect`](Self::connect) to an address, which may be an abstract one.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_addr(&self, address: &SocketAddr) -> io::Result<()> {
        self.source.socket().connect_addr(address)
    }

    /// The address of this side.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().local_addr()
    }

    /// The address of the other side.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `NotConnected` if there is none.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().peer_addr()
    }

    /// Waits for a datagram, and tells its length and who sent it. What the buffer has no room for is lost.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std; `WouldBlock` after the read timeout.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        // What std's gives at the end: the address of nobody.
        let end = || Ok((0, SocketAddr::from_pathname("")?));
        self.receive(|socket| socket.recv_from(buffer), end)
    }

    /// As [`recv_from`](Self::recv_from) for who does not want to know the sender.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from).
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(|socket| socket.recv(buffer), || Ok(0))
    }

    /// Sends a datagram to the socket of [`connect`](Self::connect). Waits while that one's queue is full.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std; `WouldBlock` after the write timeout.
    pub fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.source.io(self.source.writing(), |socket| socket.send(datagram), |_| false)
    }

    /// Sends a datagram to the socket at `path`. Waits while that one's queue is full: for this the kernel has no event, so
    /// it is tried again at least every 10 ms.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std; `WouldBlock` after the write timeout.
    pub fn send_to(&self, datagram: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        self.send_to_addr(datagram, &SocketAddr::from_pathname(path)?)
    }

    /// As [`send_to`](Self::send_to) to an address, which may be an abstract one.
    ///
    /// # Errors
    ///
    /// As [`send_to`](Self::send_to).
    pub fn send_to_addr(&self, datagram: &[u8], address: &SocketAddr) -> io::Result<usize> {
        self.source.io_by_pauses(self.source.writing(), |socket| socket.send_to_addr(datagram, address))
    }

    /// Ends one direction or both. Who waits in it is woken; but a plain thread whose `send` waits for room is so only by
    /// `Both`.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.source.socket().shutdown(how)?;
        rouse_writers(&self.source, how);
        Ok(())
    }

    /// After a `shutdown` a blocking receive ends with nothing. One in non-blocking mode would go on to say `WouldBlock`.
    fn receive<T>(
        &self,
        mut attempt: impl FnMut(&std_unix::UnixDatagram) -> io::Result<T>,
        end: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        let attempt = |socket: &std_unix::UnixDatagram| match attempt(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let has_ended = !self.source.is_nonblocking() && is_shut_for_reading(socket);
                if has_ended { end() } else { Err(error) }
            }
            received => received,
        };
        self.source.io(self.source.reading(), attempt, |_| false)
    }
}

handle!(UnixDatagram, std_unix::UnixDatagram);
timeouts!(UnixDatagram);

fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

fn accept(listener: &std_unix::UnixListener) -> io::Result<(UnixStream, SocketAddr)> {
    let (socket, address) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((UnixStream::from_nonblocking(socket), address))
}

fn is_shut_for_reading(socket: &std_unix::UnixDatagram) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::RDHUP)
}

/// The kernel calls a socket that is shut down for writing writable only when there is room, so its events do not tell.
fn rouse_writers<S: AsFd>(source: &Source<S>, how: Shutdown) {
    if how != Shutdown::Read {
        source.rouse(Direction::Write);
    }
}

fn kernel_address(address: &SocketAddr) -> io::Result<SocketAddrUnix> {
    Ok(match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => SocketAddrUnix::new(path)?,
        (_, Some(name)) => SocketAddrUnix::new_abstract_name(name)?,
        _ => SocketAddrUnix::new_unnamed(),
    })
}
