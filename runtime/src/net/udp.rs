//! UDP as in `std::net`: the same names, the same behaviour, and a wait that parks.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::face::{handle, timeouts};
use super::names::{ToSocketAddrs, each_address, no_address};
use super::source::Source;

/// A UDP socket. All its waits park a dhaga and block a plain thread; see [`std::net::UdpSocket`] for the rest.
///
/// Any number of dhagas may wait in it at once, on any worker: each datagram goes to one of them.
///
/// # Examples
///
/// ```
/// let server = dhaga::net::UdpSocket::bind("127.0.0.1:0")?;
/// let address = server.local_addr()?;
/// let echo = move || {
///     let mut buffer = [0; 1500];
///     let (len, from) = server.recv_from(&mut buffer)?;
///     server.send_to(&buffer[..len], from)
/// };
/// dhaga::spawn(echo).detach();
/// let client = dhaga::net::UdpSocket::bind("127.0.0.1:0")?;
/// client.send_to(b"hello", address)?;
/// let mut answer = [0; 5];
/// assert_eq!(client.recv_from(&mut answer)?, (5, address));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct UdpSocket {
    pub(super) source: Arc<Source<std::net::UdpSocket>>,
}

impl UdpSocket {
    /// A socket at the first of the addresses that can be had.
    ///
    /// Waits only where a host name has to be looked up, as [`ToSocketAddrs`] says. So it is with each address here.
    ///
    /// # Errors
    ///
    /// The last address's error, `AddrInUse` above all; `InvalidInput` when there is none.
    pub fn bind(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        let socket = each_address(addresses, std::net::UdpSocket::bind)?;
        socket.set_nonblocking(true)?;
        Ok(Self::from_nonblocking(socket))
    }

    /// Sets the address that [`send`](Self::send) sends to, and the only one that is heard from now on. Nothing is sent.
    ///
    /// # Errors
    ///
    /// The last address's error; `InvalidInput` when there is none.
    pub fn connect(&self, addresses: impl ToSocketAddrs) -> io::Result<()> {
        each_address(addresses, |address| self.source.socket().connect(address))
    }

    /// Sends a datagram to the first of the addresses. Waits while the socket's buffer is full.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std; `InvalidInput` when there is no address.
    pub fn send_to(&self, datagram: &[u8], addresses: impl ToSocketAddrs) -> io::Result<usize> {
        let address = addresses.to_socket_addrs()?.next().ok_or_else(no_address)?;
        self.source.io(self.source.writing(), |socket| socket.send_to(datagram, address), |_| false)
    }

    /// Sends a datagram to the address of [`connect`](Self::connect). Waits while the socket's buffer is full.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `ConnectionRefused` if nobody was there for an earlier one.
    pub fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.source.io(self.source.writing(), |socket| socket.send(datagram), |_| false)
    }

    /// Waits for a datagram, and tells its length and who sent it. What the buffer has no room for is lost.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std; `WouldBlock` after the read timeout.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.source.io(self.source.reading(), |socket| socket.recv_from(buffer), |_| false)
    }

    /// Waits for a datagram, and tells its length. What the buffer has no room for is lost.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from); `ConnectionRefused` if nobody was there for what a connected socket has sent.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.io(self.source.reading(), |socket| socket.recv(buffer), |_| false)
    }

    /// As [`recv_from`](Self::recv_from), but the next receive finds the same datagram.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from).
    pub fn peek_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.source.io(self.source.reading(), |socket| socket.peek_from(buffer), |_| false)
    }

    /// As [`recv`](Self::recv), but the next receive finds the same datagram.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.io(self.source.reading(), |socket| socket.peek(buffer), |_| false)
    }

    /// The address of the other side, if it is connected.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `NotConnected` if it is not.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().peer_addr()
    }

    /// The address of this side: the port that the kernel chose, if it was bound to port 0.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket().local_addr()
    }

    /// Whether it may send to a broadcast address (`SO_BROADCAST`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.source.socket().set_broadcast(broadcast)
    }

    /// Whether `SO_BROADCAST` is set.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn broadcast(&self) -> io::Result<bool> {
        self.source.socket().broadcast()
    }

    /// Whether this host gets what it sends to a group of IPv4 (`IP_MULTICAST_LOOP`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_multicast_loop_v4(&self, multicast_loop_v4: bool) -> io::Result<()> {
        self.source.socket().set_multicast_loop_v4(multicast_loop_v4)
    }

    /// Whether `IP_MULTICAST_LOOP` is set.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn multicast_loop_v4(&self) -> io::Result<bool> {
        self.source.socket().multicast_loop_v4()
    }

    /// Sets the hop limit of what is sent to a group of IPv4 (`IP_MULTICAST_TTL`). 1 by default: this network.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_multicast_ttl_v4(&self, ttl: u32) -> io::Result<()> {
        self.source.socket().set_multicast_ttl_v4(ttl)
    }

    /// The hop limit of what is sent to a group of IPv4.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn multicast_ttl_v4(&self) -> io::Result<u32> {
        self.source.socket().multicast_ttl_v4()
    }

    /// Whether this host gets what it sends to a group of IPv6 (`IPV6_MULTICAST_LOOP`).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn set_multicast_loop_v6(&self, multicast_loop_v6: bool) -> io::Result<()> {
        self.source.socket().set_multicast_loop_v6(multicast_loop_v6)
    }

    /// Whether `IPV6_MULTICAST_LOOP` is set.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn multicast_loop_v6(&self) -> io::Result<bool> {
        self.source.socket().multicast_loop_v6()
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

    /// Joins a group of IPv4 on the interface with the address `interface` (unspecified: the kernel's choice).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn join_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        self.source.socket().join_multicast_v4(group, interface)
    }

    /// Joins a group of IPv6 on the interface with the index `interface` (0: the kernel's choice).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.source.socket().join_multicast_v6(group, interface)
    }

    /// Leaves a group of IPv4 on the interface with the address `interface` (unspecified: the kernel's choice).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn leave_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        self.source.socket().leave_multicast_v4(group, interface)
    }

    /// Leaves a group of IPv6 on the interface with the index `interface` (0: the kernel's choice).
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.source.socket().leave_multicast_v6(group, interface)
    }
}

handle!(UdpSocket, std::net::UdpSocket);
timeouts!(UdpSocket);
