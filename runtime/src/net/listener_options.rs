//! How a listener shall listen.

use std::io;
use std::net::SocketAddr;

use rustix::net::sockopt;

use super::connect::open;

/// Connections that wait in the kernel to be accepted. std's 128 overflows when ten thousand clients come at once; the
/// kernel cuts it down to `net.core.somaxconn` (4096 by default).
const BACKLOG: u32 = 4096;

/// How a [`TcpListener`](super::TcpListener) shall listen.
///
/// # Examples
///
/// ```
/// use dhaga::net::TcpListener;
///
/// let options = TcpListener::options().reuse_port(true).backlog(1024);
/// let one = options.bind("127.0.0.1:0")?;
/// let other = options.bind(one.local_addr()?)?;
/// assert_eq!(one.local_addr()?, other.local_addr()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing before `bind`"]
pub struct ListenerOptions {
    backlog: u32,
    reuse_port: bool,
    only_v6: Option<bool>,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ListenerOptions {
    /// As [`TcpListener::bind`](super::TcpListener::bind) listens.
    pub fn new() -> Self {
        Self { backlog: BACKLOG, reuse_port: false, only_v6: None }
    }

    /// Connections that wait in the kernel to be accepted, at most. Default: 4096; the kernel takes no more than
    /// `net.core.somaxconn`. What comes when there is no room comes again, a second later at first.
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether others with this option, of the same user, may listen on the same address (`SO_REUSEPORT`). Each new
    /// connection goes to one of them, which the kernel chooses by the addresses and ports of both ends. Default: no.
    ///
    /// When one of them is closed, connections that it has not accepted are reset, though others still listen.
    pub fn reuse_port(mut self, reuses: bool) -> Self {
        self.reuse_port = reuses;
        self
    }

    /// Whether a listener on an address of IPv6 has no part in IPv4 (`IPV6_V6ONLY`): if it has, `[::]:80` hears both. No
    /// effect on an address of IPv4. Default: as `net.ipv6.bindv6only` says, and by default that it hears both.
    pub fn only_v6(mut self, only: bool) -> Self {
        self.only_v6 = Some(only);
        self
    }

    /// A listening socket in non-blocking mode.
    pub(super) fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        let socket = open(&address)?;
        // As std: a server that is restarted must not wait for old connections to leave TIME_WAIT.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if self.reuse_port {
            sockopt::set_socket_reuseport(&socket, true)?;
        }
        if let Some(only) = self.only_v6
            && address.is_ipv6()
        {
            sockopt::set_ipv6_v6only(&socket, only)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    }
}
