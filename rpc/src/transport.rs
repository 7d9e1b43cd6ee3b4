//! What a connection reads from and writes to: a socket of TCP or of this host, or two pipes.
//!
//! ```text
//!   Tcp    TcpStream     one descriptor, both ways       ended by shutdown(2)
//!   Unix   UnixStream    as TCP, without the network     ended by shutdown(2)
//!   Pipes  two files     one to read, one to write       ended by closing them
//! ```

use std::fmt;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dhaga::net::unix::{SocketAddr as UnixAddress, SocketAddrExt};
use dhaga::net::{TcpStream, UnixStream, Watched};
use dhaga::turn::{self, OnReady};

/// A connection that is open already, over which a client calls or a server serves: a socket, two pipes, or the standard input
/// and output of this process.
///
/// It is what is behind `Client::connect` and `ServerBuilder::bind`, too; there is no need for one where these do.
///
/// # Examples
///
/// Any [`TcpStream`] and [`UnixStream`] of `dhaga::net` can be one:
///
/// ```
/// use dhaga::net::UnixStream;
/// use dhaga_rpc::Transport;
///
/// let (near, far) = UnixStream::pair()?;
/// let (near, far) = (Transport::from(near), Transport::from(far));
/// assert_eq!(near.to_string(), "the other end of a socket pair");
/// # drop(far);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Transport(Kind);

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// On the heap: there are few of them, and many of the others.
    Pipes(Box<Pipes>),
}

struct Pipes {
    input: End,
    output: End,
    /// Who is at the other ends.
    peer: Box<str>,
}

/// Our end of a pipe, until it is closed.
struct End(Mutex<Option<Arc<Watched<File>>>>);

impl Transport {
    /// Two transports that are connected with each other in this process: what is written to one is read from the other. For
    /// tests of services, with a server at one end and a client at the other, and no port and no path.
    ///
    /// It is a pair of Unix sockets (`socketpair(2)`), so that it behaves as a network does: bytes wait in the kernel, of which
    /// each direction holds some 200 KiB, and a side that does not read makes the other wait.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left: a pair takes two.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((one.into(), other.into()))
    }

    /// Reads from `input` and writes to `output`, which are pipes, or other things that the kernel can poll. Both are put into
    /// non-blocking mode, in which also their duplicates are then. Dropping the transport closes both.
    ///
    /// # Errors
    ///
    /// What the kernel says of a descriptor that has no such mode.
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga_rpc::Transport;
    ///
    /// let (input, their_output) = std::io::pipe()?;
    /// let (their_input, output) = std::io::pipe()?;
    /// let near = Transport::pipes(input, output)?;
    /// let far = Transport::pipes(their_input, their_output)?;
    /// # drop((near, far));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn pipes(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> io::Result<Self> {
        Self::pipes_to("the other end of two pipes", input.into(), output.into())
    }

    /// The standard input and output of this process: for a program that is started by its peer, as language servers and the
    /// plugins of editors are.
    ///
    /// They are taken away from the rest of the process, since a stray `println!` would break the protocol: from now on what is
    /// printed goes to standard error, and who reads standard input finds its end. Call it before anything was read there. When
    /// the transport is dropped the peer sees both close.
    ///
    /// The non-blocking mode that it needs is put on what was opened again for this process alone where the kernel allows that;
    /// where the two are sockets, it is the mode of all who share them.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if one of them is a file, which nobody can wait for; `AlreadyExists` the second time.
    pub fn stdio() -> io::Result<Self> {
        let (input, output) = turn::take_stdio()?;
        Self::pipes_to("standard input", input.into(), output.into())
    }

    /// Two descriptors, and who is at the other end of them.
    pub(crate) fn pipes_to(peer: &str, input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let pipes = Pipes { input: End::new(input)?, output: End::new(output)?, peer: peer.into() };
        Ok(Self(Kind::Pipes(Box::new(pipes))))
    }

    /// What the peer has listened at, if it has a name and is there.
    pub(crate) fn peer_name(&self) -> Option<String> {
        match &self.0 {
            Kind::Tcp(stream) => Some(stream.peer_addr().ok()?.to_string()),
            Kind::Unix(stream) => unix_name(stream.peer_addr()),
            Kind::Pipes(_) => None,
        }
    }

    /// What is set once, before anything is sent.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(stream) => stream.set_nodelay(true),
            Kind::Unix(_) | Kind::Pipes(_) => Ok(()),
        }
    }

    /// As [`turn::on_ready`].
    pub(crate) fn on_ready(&self, callback: Arc<dyn OnReady>) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(stream) => turn::on_ready(stream, callback),
            Kind::Unix(stream) => turn::on_ready(stream, callback),
            Kind::Pipes(pipes) => pipes.input.with(|input| turn::on_ready(input, callback)).map_err(unwatchable),
        }
    }

    /// As [`turn::stop_on_ready`].
    pub(crate) fn stop_on_ready(&self) {
        match &self.0 {
            Kind::Tcp(stream) => turn::stop_on_ready(stream),
            Kind::Unix(stream) => turn::stop_on_ready(stream),
            Kind::Pipes(pipes) => pipes.input.get().iter().for_each(|input| turn::stop_on_ready(&**input)),
        }
    }

    /// As [`turn::is_readable`].
    #[inline]
    pub(crate) fn is_readable(&self) -> bool {
        match &self.0 {
            Kind::Tcp(stream) => turn::is_readable(stream),
            Kind::Unix(stream) => turn::is_readable(stream),
            Kind::Pipes(pipes) => pipes.input.get().is_some_and(|input| turn::is_readable(&*input)),
        }
    }

    /// As [`turn::bring_near`].
    #[inline]
    pub(crate) fn bring_near(&self) {
        match &self.0 {
            Kind::Tcp(stream) => turn::bring_near(stream),
            Kind::Unix(stream) => turn::bring_near(stream),
            Kind::Pipes(_) => {}
        }
    }

    /// As [`turn::try_read`].
    #[inline]
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.0 {
            Kind::Tcp(stream) => turn::try_read(stream, buffer),
            Kind::Unix(stream) => turn::try_read(stream, buffer),
            Kind::Pipes(pipes) => pipes.input.with(|input| turn::try_read(input, buffer)),
        }
    }

    /// As [`turn::try_write`].
    #[inline]
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match &self.0 {
            Kind::Tcp(stream) => turn::try_write(stream, bytes),
            Kind::Unix(stream) => turn::try_write(stream, bytes),
            Kind::Pipes(pipes) => pipes.output.with(|output| turn::try_write(output, bytes)),
        }
    }

    /// As [`turn::wait_for_room`].
    pub(crate) fn wait_for_room(&self, timeout: Duration) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(stream) => turn::wait_for_room(stream, timeout),
            Kind::Unix(stream) => turn::wait_for_room(stream, timeout),
            Kind::Pipes(pipes) => pipes.output.with(|output| turn::wait_for_room(output, timeout)),
        }
    }

    /// Lets what has come until now be the last that is read, with an end behind it. Returns false for pipes, of which the kernel
    /// closes one end for all.
    pub(crate) fn end_input(&self) -> bool {
        // It fails when the peer's reset was faster, which is such an end.
        match &self.0 {
            Kind::Tcp(stream) => drop(stream.shutdown(Shutdown::Read)),
            Kind::Unix(stream) => drop(stream.shutdown(Shutdown::Read)),
            Kind::Pipes(_) => return false,
        }
        true
    }

    /// Ends both directions. The peer sees it at once, and a writer who waits is woken.
    pub(crate) fn close(&self) {
        // A socket's end fails when the peer was faster: either way it is down.
        match &self.0 {
            Kind::Tcp(stream) => drop(stream.shutdown(Shutdown::Both)),
            Kind::Unix(stream) => drop(stream.shutdown(Shutdown::Both)),
            Kind::Pipes(pipes) => {
                pipes.input.close();
                pipes.output.close();
            }
        }
    }
}

impl End {
    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self(Mutex::new(Some(Arc::new(Watched::new(descriptor.into())?)))))
    }

    fn get(&self) -> Option<Arc<Watched<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with<R>(&self, f: impl FnOnce(&Watched<File>) -> io::Result<R>) -> io::Result<R> {
        f(&*self.get().ok_or(io::ErrorKind::NotConnected)?)
    }

    /// Who is at it just now has it for a moment longer.
    fn close(&self) {
        let end = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        end.iter().for_each(|end| turn::rouse_writers(&**end));
    }
}

fn unwatchable(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::new(
            io::ErrorKind::InvalidInput,
            "the kernel cannot tell when this input has bytes: it is neither a pipe nor a socket nor a terminal",
        ),
        _ => error,
    }
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Tcp(stream))
    }
}

impl From<UnixStream> for Transport {
    fn from(stream: UnixStream) -> Self {
        Self(Kind::Unix(stream))
    }
}

/// Who is at the other end.
impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp(stream) => match stream.peer_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("a peer that has gone"),
            },
            Kind::Unix(stream) => describe_unix(stream, f),
            Kind::Pipes(pipes) => f.write_str(&pipes.peer),
        }
    }
}

/// A client mostly has no name: what it has called by tells more.
fn describe_unix(stream: &UnixStream, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match (unix_name(stream.peer_addr()), unix_name(stream.local_addr())) {
        (Some(peer), _) => f.write_str(&peer),
        (None, Some(own)) => write!(f, "a client of {own}"),
        (None, None) => f.write_str("the other end of a socket pair"),
    }
}

/// The name of a Unix socket as a word, if it has one.
pub(crate) fn unix_name(address: io::Result<UnixAddress>) -> Option<String> {
    let address = address.ok()?;
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => Some(format!("unix:{}", path.display())),
        (_, Some(name)) => Some(format!("unix:@{}", name.escape_ascii())),
        _ => None,
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({self})")
    }
}
