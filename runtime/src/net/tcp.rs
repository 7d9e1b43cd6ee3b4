//! TCP as in `std::net`: the same names, the same behaviour, and a wait that parks.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::face::{handle, listener, refuse_zero, stream, timeouts};
use super::source::{Manner, Source};
use crate::park::WaitReason;
use crate::reactor::{Direction, OnReady};

/// Connections that wait in the kernel to be accepted. std's 128 overflows when ten thousand clients come at once; the
/// kernel cuts it down to `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

/// A TCP connection. All its waits park a dhaga and block a plain thread; see [`std::net::TcpStream`] for the rest.
///
/// Any number of dhagas may use it at once, on any worker. Clones share it: the connection is closed with the last one.
///
/// # Examples
///
/// ```no_run
/// use std::io::{Read, Write};
/// let mut stream = dhaga::net::TcpStream::connect("127.0.0.1:7")?;
/// stream.write_all(b"hello")?;
/// let mut answer = [0; 5];
/// stream.read_exact(&mut answer)?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct TcpStream {
    pub(super) source: Arc<Source<std::net::TcpStream>>,
}

impl TcpStream {
    /// Opens a connection to the first of the addresses that answers. Waits until it is established.
    ///
    /// A host name is looked up on the OS thread; where that may take long, look it up in [`blocking`](crate::blocking).
    ///
    /// # Errors
    ///
    /// The last address's error; `InvalidInput` when there is none.
    pub fn connect(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        each_address(addresses, |address| connect(address, None))
    }

    /// As [`TcpStream::connect`] to one address, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// `TimedOut` when the time is over; `InvalidInput` when it is zero.
    pub fn connect_timeout(address: &SocketAddr, timeout: Duration) -> io::Result<Self> {
        refuse_zero(Some(timeout))?;
        connect(address, Some(timeout))
    }

    /// The address of the other side.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().peer_addr()
    }

    /// The address of this side.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().local_addr()
    }

    /// Ends one direction or both. Who waits in it is woken.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.source.socket().shutdown(how)
    }

    /// Receives without taking: the next read finds the same bytes.
    ///
    /// # Errors
    ///
    /// As a read.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.io(self.source.reading(), |socket| socket.peek(buffer), |_| false)
    }

    /// Sends small messages at once instead of gathering them (`TCP_NODELAY`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.source.socket().set_nodelay(nodelay)
    }

    /// Whether `TCP_NODELAY` is set.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.source.socket().nodelay()
    }

    /// Sets the hop limit of what is sent (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.source.socket().set_ttl(ttl)
    }

    /// The hop limit of what is sent.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn ttl(&self) -> io::Result<u32> {
        self.source.socket().ttl()
    }

    /// Acknowledges at once what is received (`TCP_QUICKACK`), until the kernel thinks otherwise. A method of
    /// [`std::os::linux::net::TcpStreamExt`] in std.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_quickack(&self, quickack: bool) -> io::Result<()> {
        Ok(sockopt::set_tcp_quickack(self.source.socket(), quickack)?)
    }

    /// Whether `TCP_QUICKACK` is in force.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn quickack(&self) -> io::Result<bool> {
        Ok(sockopt::tcp_quickack(self.source.socket())?)
    }

    pub(crate) fn on_ready(&self, callback: Arc<dyn OnReady>) -> io::Result<()> {
        self.source.on_ready(callback)
    }

    pub(crate) fn stop_callbacks(&self) {
        self.source.stop_callbacks();
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.source.is_ready(Direction::Read)
    }

    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let len = buffer.len();
        self.source
            .attempt(Direction::Read, &mut |mut socket: &std::net::TcpStream| socket.read(buffer), &|count| {
                *count < len
            })
            .transpose()
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.source
            .attempt(Direction::Write, &mut |mut socket: &std::net::TcpStream| socket.write(bytes), &|count| {
                *count < bytes.len()
            })
            .transpose()
    }
}

handle!(TcpStream, std::net::TcpStream);
timeouts!(TcpStream);
stream!(TcpStream, is_short);

/// TCP gives all it has, up to what was asked for. Only at a byte that was sent as urgent does a read end before, of which
/// the reactor tells.
fn is_short(count: usize, len: usize) -> bool {
    count < len
}

/// A socket that accepts connections. See [`std::net::TcpListener`].
///
/// Any number of dhagas may wait in `accept` at once.
///
/// # Examples
///
/// ```no_run
/// use std::io::{Read, Write};
/// let listener = dhaga::net::TcpListener::bind("127.0.0.1:0")?;
/// for stream in listener.incoming() {
///     let mut stream = stream?;
///     dhaga::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream)).detach();
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct TcpListener {
    pub(super) source: Arc<Source<std::net::TcpListener>>,
}

impl TcpListener {
    /// Listens on the first of the addresses that can be had.
    ///
    /// # Errors
    ///
    /// The last address's error, `AddrInUse` above all; `InvalidInput` when there is none.
    pub fn bind(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        each_address(addresses, bind)
    }

    /// The address it listens on: the port that the kernel chose, if it was bound to port 0.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().local_addr()
    }

    /// Sets the hop limit of accepted connections (`IP_TTL`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.source.socket().set_ttl(ttl)
    }

    /// The hop limit of accepted connections.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn ttl(&self) -> io::Result<u32> {
        self.source.socket().ttl()
    }

    /// Whether a socket of IPv6 leaves IPv4 alone (`IPV6_V6ONLY`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `InvalidInput` once the socket is bound, and so always.
    #[deprecated(note = "this option can only be set before the socket is bound")]
    #[expect(deprecated, reason = "std keeps it for old programs, and so is it here")]
    pub fn set_only_v6(&self, only_v6: bool) -> io::Result<()> {
        self.source.socket().set_only_v6(only_v6)
    }

    /// Whether `IPV6_V6ONLY` is set.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    #[deprecated(note = "this option can only be set before the socket is bound")]
    #[expect(deprecated, reason = "std keeps it for old programs, and so is it here")]
    pub fn only_v6(&self) -> io::Result<bool> {
        self.source.socket().only_v6()
    }
}

handle!(TcpListener, std::net::TcpListener);
listener!(TcpListener, TcpStream, SocketAddr, accept);

fn each_address<T>(
    addresses: impl ToSocketAddrs,
    mut attempt: impl FnMut(&SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name stands for no address");
    for address in addresses.to_socket_addrs()? {
        match attempt(&address) {
            Ok(value) => return Ok(value),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}

fn bind(address: &SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address)?;
    // As std: a server that is restarted must not wait for old connections to leave TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from_nonblocking(socket.into()))
}

fn accept(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, address) = rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let unspecified = || SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let address = address.and_then(|address| SocketAddr::try_from(address).ok()).unwrap_or_else(unspecified);
    Ok((TcpStream::from_nonblocking(socket.into()), address))
}

fn connect(address: &SocketAddr, timeout: Option<Duration>) -> io::Result<TcpStream> {
    crate::park::check_attempt()?;
    let socket = open(&routable(address))?;
    let begun = rustix::net::connect(&socket, &routable(address));
    let stream = TcpStream::from_nonblocking(socket.into());
    match begun {
        Ok(()) => return Ok(stream),
        Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let manner = Manner { direction: Direction::Write, reason: WaitReason::Connect, timeout };
    let established = stream.source.io(manner, finish_connect, |()| false);
    match established {
        Ok(()) => Ok(stream),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the connection was not established in time"))
        }
        Err(error) => Err(error),
    }
}

/// Whether the connection stands: `WouldBlock` while it is under way.
fn finish_connect(socket: &std::net::TcpStream) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error),
    }
}

/// To connect to "any address" means this host, as in std.
fn routable(address: &SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, v6.port())),
        other => *other,
    }
}
