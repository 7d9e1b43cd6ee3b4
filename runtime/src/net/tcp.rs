//! TCP as in `std::net`: the same names, the same behaviour, and a wait that parks.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};

use super::connect::{connect, connect_first};
use super::face::{handle, listener, refuse_zero, stream, timeouts};
use super::listener_options::ListenerOptions;
use super::names::{ToSocketAddrs, each_address};
use super::source::Source;

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
    /// A host name is looked up as [`ToSocketAddrs`] says. Of several addresses the families take turns, beginning with that
    /// of the first (RFC 8305). The next is tried when one has failed, or has not answered for
    /// [`CONNECT_ATTEMPT_DELAY`](super::CONNECT_ATTEMPT_DELAY), and the first that answers wins; the others are closed. A
    /// deadline around the call ends all of it.
    ///
    /// # Errors
    ///
    /// The address's error as std has it, if there is one; `InvalidInput` when there is none. Of several, a
    /// [`ConnectError`](super::ConnectError), which has the error of each, inside an error of the kind of the first one that
    /// says more than that there is no way there. Where no descriptor is left for a socket, what the kernel says.
    pub fn connect(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { source: Arc::new(connect_first(addresses.to_socket_addrs()?)?) })
    }

    /// As [`TcpStream::connect`] to one address, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// `TimedOut` when the time is over; `InvalidInput` when it is zero.
    pub fn connect_timeout(address: &SocketAddr, timeout: Duration) -> io::Result<Self> {
        refuse_zero(Some(timeout))?;
        Ok(Self { source: Arc::new(connect(address, Some(timeout))?) })
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
        ListenerOptions::new().bind(addresses)
    }

    /// How it shall listen, to begin with as [`TcpListener::bind`] does.
    pub fn options() -> ListenerOptions {
        ListenerOptions::new()
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

impl ListenerOptions {
    /// Listens on the first of the addresses that can be had.
    ///
    /// # Errors
    ///
    /// As [`TcpListener::bind`].
    pub fn bind(&self, addresses: impl ToSocketAddrs) -> io::Result<TcpListener> {
        Ok(TcpListener::from_nonblocking(each_address(addresses, |address| self.listen(address))?))
    }
}

handle!(TcpListener, std::net::TcpListener);
listener!(TcpListener, TcpStream, SocketAddr, accept);

/// Errors of a connection that has died before it was accepted, and is out of the backlog by then: the next one's turn.
const DEAD_CONNECTION: [Errno; 8] = [
    Errno::CONNABORTED,
    Errno::NETDOWN,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::HOSTDOWN,
    Errno::NONET,
    Errno::HOSTUNREACH,
    Errno::NETUNREACH,
];

fn accept(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, address) = loop {
        match rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Err(error) if DEAD_CONNECTION.contains(&error) => {}
            accepted => break accepted?,
        }
    };
    let unspecified = || SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let address = address.and_then(|address| SocketAddr::try_from(address).ok()).unwrap_or_else(unspecified);
    Ok((TcpStream::from_nonblocking(socket.into()), address))
}
