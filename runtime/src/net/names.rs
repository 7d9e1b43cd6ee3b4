//! What stands for addresses: numbers, which are taken as they are, and host names, which are looked up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use super::lookup::look_up;

/// What stands for addresses of sockets: an address, an IP address or a host name with a port, a list. As
/// [`std::net::ToSocketAddrs`], with the same implementors, but where a host name is looked up a dhaga parks, and the worker
/// goes on with others.
///
/// # Examples
///
/// ```
/// use dhaga::net::ToSocketAddrs;
///
/// let local: Vec<_> = "localhost:80".to_socket_addrs()?.collect();
/// assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
/// assert_eq!(("127.0.0.1", 80).to_socket_addrs()?.next(), "127.0.0.1:80".parse().ok());
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait ToSocketAddrs {
    /// The addresses, in the order in which they should be tried.
    type Iter: Iterator<Item = SocketAddr>;

    /// The addresses that this stands for. Suspends only to look up a host name, which numbers are not.
    ///
    /// On a plain thread a name is looked up in place, unless a deadline or a scope around it may have to end the wait.
    ///
    /// # Errors
    ///
    /// [`LookupError`](super::LookupError), which names the host, inside an error of the kind that std has: what the resolver
    /// says, or `TimedOut` after [`LOOKUP_TIMEOUT`](super::LOOKUP_TIMEOUT). `InvalidInput` for text that has no port. Those of
    /// the scope around it: the look-up runs on then, and its result is lost.
    fn to_socket_addrs(&self) -> io::Result<Self::Iter>;
}

/// Looks a host name up: [`ToSocketAddrs::to_socket_addrs`] as a function. Suspends if it is a name and no number.
///
/// # Errors
///
/// As [`ToSocketAddrs::to_socket_addrs`].
///
/// # Examples
///
/// ```
/// for address in dhaga::net::lookup_host("localhost:80")? {
///     println!("{address}");
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn lookup_host<T: ToSocketAddrs>(host: T) -> io::Result<T::Iter> {
    host.to_socket_addrs()
}

/// For tests: looks `host` up with `resolve` in the place of the system's resolver.
#[doc(hidden)]
pub fn lookup_host_by(
    host: &str,
    port: u16,
    resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<SocketAddrs> {
    let found = look_up(host, resolve)?;
    Ok(SocketAddrs { found: Found::Name(found), port, next: 0 })
}

fn resolved(host: &str, port: u16) -> io::Result<SocketAddrs> {
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddrs::number(SocketAddr::new(ip, port))),
        Err(_) => lookup_host_by(host, port, ask_system),
    }
}

fn ask_system(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(std::net::ToSocketAddrs::to_socket_addrs(&(host, 0))?.collect())
}

/// The addresses that a text stands for.
#[derive(Clone, Debug)]
pub struct SocketAddrs {
    found: Found,
    port: u16,
    /// Which address comes next.
    next: usize,
}

#[derive(Clone, Debug)]
enum Found {
    Number(SocketAddr),
    /// Shared with others who have asked for it. Without the port.
    Name(Arc<[SocketAddr]>),
}

impl SocketAddrs {
    fn number(address: SocketAddr) -> Self {
        Self { found: Found::Number(address), port: address.port(), next: 0 }
    }

    fn as_slice(&self) -> &[SocketAddr] {
        match &self.found {
            Found::Number(address) => std::slice::from_ref(address),
            Found::Name(addresses) => addresses,
        }
    }
}

impl Iterator for SocketAddrs {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        let mut address = *self.as_slice().get(self.next)?;
        address.set_port(self.port);
        self.next += 1;
        Some(address)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.as_slice().len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for SocketAddrs {}

macro_rules! numbers {
    ($($address:ty),*) => {
        $(impl ToSocketAddrs for $address {
            type Iter = std::option::IntoIter<SocketAddr>;

            fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
                Ok(Some(SocketAddr::from(*self)).into_iter())
            }
        })*
    };
}

numbers!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl ToSocketAddrs for (&str, u16) {
    type Iter = SocketAddrs;

    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        resolved(self.0, self.1)
    }
}

impl ToSocketAddrs for (String, u16) {
    type Iter = SocketAddrs;

    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        resolved(&self.0, self.1)
    }
}

impl ToSocketAddrs for str {
    type Iter = SocketAddrs;

    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        if let Ok(address) = self.parse() {
            return Ok(SocketAddrs::number(address));
        }
        let refuse = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        let (host, port) = self.rsplit_once(':').ok_or_else(|| refuse("an address needs a port, as in `host:80`"))?;
        let port = port.parse().map_err(|_| refuse("a port is a number up to 65535"))?;
        resolved(host, port)
    }
}

impl ToSocketAddrs for String {
    type Iter = SocketAddrs;

    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        self.as_str().to_socket_addrs()
    }
}

impl<'a> ToSocketAddrs for &'a [SocketAddr] {
    type Iter = std::iter::Copied<std::slice::Iter<'a, SocketAddr>>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        Ok(self.iter().copied())
    }
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {
    type Iter = T::Iter;

    fn to_socket_addrs(&self) -> io::Result<T::Iter> {
        (**self).to_socket_addrs()
    }
}

/// Tries the addresses in turn, until one will do.
pub(super) fn each_address<T>(
    addresses: impl ToSocketAddrs,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = no_address();
    for address in addresses.to_socket_addrs()? {
        match attempt(address) {
            Ok(value) => return Ok(value),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub(super) fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the name stands for no address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_and_have_the_port() {
        let two: Vec<SocketAddr> = ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().expect("it is a number")).into();
        let mut addresses = SocketAddrs { found: Found::Name(two.into()), port: 80, next: 0 };
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses.next(), "127.0.0.1:80".parse().ok());
        assert_eq!(addresses.len(), 1);
        assert_eq!(addresses.by_ref().collect::<Vec<_>>(), ["[::1]:80".parse().expect("it is a number")]);
        assert_eq!((addresses.next(), addresses.len()), (None, 0));
    }
}
