//! Sockets for futures.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::source::{Place, Source};
use crate::reactor::Direction;

/// A socket for futures: the bridge to `async` libraries, which are polled and must not block.
///
/// | feature | traits | for |
/// |---|---|---|
/// | `futures-io` | `AsyncRead` and `AsyncWrite` of `futures-io` 0.3 | [`TcpStream`], [`UnixStream`] |
/// | `futures-io` | `Stream` of `futures-core` 0.3, of connections | [`TcpListener`], [`UnixListener`] |
/// | `hyper` | `hyper::rt::Read` and `Write` of hyper 1 | [`TcpStream`], [`UnixStream`] |
///
/// Any other socket has [`readable`](Self::readable) and [`writable`](Self::writable).
///
/// Any executor may poll it. In a dhaga's [`block_on`](crate::block_on) an event makes that dhaga ready on its own worker,
/// with nothing in between. Any other waker, be it of `FuturesUnordered` or of another runtime, is foreign code: a small dhaga
/// wakes it. On a plain thread the first poll that would wait hands the socket to a worker of the default runtime.
///
/// In each direction the waker of the latest poll is woken, as those traits have it. To wait for the same direction in several
/// futures give each a wrapper of its own around a `try_clone` of the socket: an event wakes them all. The socket's own
/// timeouts do not apply. A scope that is over or cancelled makes an attempt fail, as it does elsewhere.
///
/// [`TcpStream`]: super::TcpStream
/// [`UnixStream`]: super::UnixStream
/// [`TcpListener`]: super::TcpListener
/// [`UnixListener`]: super::UnixListener
///
/// # Examples
///
/// ```
/// use dhaga::net::{Async, TcpListener, TcpStream};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let client = TcpStream::connect(listener.local_addr()?)?;
/// let mut listener = Async::new(listener);
/// let (stream, peer) = dhaga::block_on(listener.accept())?;
/// assert_eq!(peer, client.local_addr()?);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Async<T> {
    socket: T,
    place: Place,
}

#[expect(private_bounds, reason = "only the sockets of this runtime can be polled")]
impl<T: Shared> Async<T> {
    /// Wraps a socket.
    pub fn new(socket: T) -> Self {
        let place = socket.source().place();
        Self { socket, place }
    }

    /// Waits until the kernel says that there is something to read: bytes, a datagram, a connection, an end or an error.
    /// Another may take it before the caller does.
    ///
    /// # Errors
    ///
    /// Those of the scope around the poll, and what the kernel says to a socket that it cannot watch.
    pub async fn readable(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_ready(Direction::Read, context)).await
    }

    /// As [`readable`](Self::readable), for room to write, or an error.
    ///
    /// # Errors
    ///
    /// As [`readable`](Self::readable).
    pub async fn writable(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_ready(Direction::Write, context)).await
    }

    /// An attempt of a future in one direction.
    #[cfg_attr(not(any(feature = "futures-io", feature = "hyper")), expect(dead_code, reason = "the bridges use it"))]
    #[inline]
    pub(super) fn poll_io<R>(
        &mut self,
        direction: Direction,
        context: &mut Context<'_>,
        attempt: impl FnMut(&T::Bare) -> io::Result<R>,
        is_drained: impl Fn(&R) -> bool,
    ) -> Poll<io::Result<R>> {
        self.socket.source().poll_io(&mut self.place, direction, context, attempt, is_drained)
    }

    pub(super) fn poll_accept_by<R>(
        &mut self,
        context: &mut Context<'_>,
        attempt: impl FnMut(&T::Bare) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.socket.source().poll_accept(&mut self.place, context, attempt)
    }

    fn poll_ready(&mut self, direction: Direction, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.source().poll_ready(&mut self.place, direction, context)
    }
}

impl<T> Async<T> {
    /// The socket, whose own calls wait as ever.
    pub fn get_ref(&self) -> &T {
        &self.socket
    }

    /// The socket again.
    pub fn into_inner(self) -> T {
        self.socket
    }
}

impl<T: Shared> From<T> for Async<T> {
    fn from(socket: T) -> Self {
        Self::new(socket)
    }
}

impl<T: fmt::Debug> fmt::Debug for Async<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Async").field(&self.socket).finish()
    }
}

/// A handle for a socket, of which there may be several.
pub(crate) trait Shared: Unpin {
    type Bare: AsFd + Send + Sync + 'static;

    fn source(&self) -> &Arc<Source<Self::Bare>>;
}

/// What bytes are read from and written to.
#[cfg_attr(not(any(feature = "futures-io", feature = "hyper")), expect(dead_code, reason = "the bridges use it"))]
pub(crate) trait ByteStream: Shared {
    /// Whether a read that filled so many bytes of so many left nothing.
    fn is_drained(count: usize, len: usize) -> bool;
    fn end_writing(&self) -> io::Result<()>;
}

#[cfg(any(feature = "futures-io", feature = "hyper"))]
mod bytes {
    use std::io::{self, IoSlice, IoSliceMut};
    use std::task::{Context, Poll};

    use rustix::io::{readv, writev};
    use rustix::net::{RecvFlags, recv};

    use super::{Async, ByteStream};
    use crate::net::face::{len_at_once, receive, send};
    use crate::reactor::Direction;

    #[expect(private_bounds, reason = "only the streams of this runtime can be polled")]
    impl<T: ByteStream> Async<T> {
        /// Reads into bytes that need not be initialised, whose first ones then are. Returns how many.
        #[cfg_attr(not(feature = "hyper"), expect(dead_code, reason = "that bridge uses it"))]
        #[inline]
        pub(crate) fn poll_receive(
            &mut self,
            context: &mut Context<'_>,
            buffer: &mut [std::mem::MaybeUninit<u8>],
        ) -> Poll<io::Result<usize>> {
            let len = buffer.len();
            let attempt = |socket: &T::Bare| {
                let ((filled, _), _) = recv(socket, &mut *buffer, RecvFlags::empty())?;
                Ok(filled.len())
            };
            let is_drained = |count: &usize| T::is_drained(*count, len);
            self.poll_io(Direction::Read, context, attempt, is_drained)
        }

        #[cfg_attr(not(feature = "futures-io"), expect(dead_code, reason = "that bridge uses it"))]
        #[inline]
        pub(crate) fn poll_receive_into(
            &mut self,
            context: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let len = buffer.len();
            let attempt = |socket: &T::Bare| receive(socket, buffer);
            let is_drained = |count: &usize| T::is_drained(*count, len);
            self.poll_io(Direction::Read, context, attempt, is_drained)
        }

        #[cfg_attr(not(feature = "futures-io"), expect(dead_code, reason = "that bridge uses it"))]
        pub(crate) fn poll_receive_vectored(
            &mut self,
            context: &mut Context<'_>,
            buffers: &mut [IoSliceMut<'_>],
        ) -> Poll<io::Result<usize>> {
            let len = len_at_once(buffers.iter().map(|buffer| buffer.len()));
            let attempt = |socket: &T::Bare| Ok(readv(socket, buffers)?);
            let is_drained = |count: &usize| T::is_drained(*count, len);
            self.poll_io(Direction::Read, context, attempt, is_drained)
        }

        #[inline]
        pub(crate) fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let attempt = |socket: &T::Bare| send(socket, bytes);
            let is_full = |count: &usize| *count < bytes.len();
            self.poll_io(Direction::Write, context, attempt, is_full)
        }

        #[inline]
        pub(crate) fn poll_send_vectored(
            &mut self,
            context: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let len = len_at_once(slices.iter().map(|slice| slice.len()));
            let attempt = |socket: &T::Bare| Ok(writev(socket, slices)?);
            let is_full = |count: &usize| *count < len;
            self.poll_io(Direction::Write, context, attempt, is_full)
        }

        /// Says that no more comes. The peer may have gone already.
        pub(crate) fn poll_end(&mut self) -> Poll<io::Result<()>> {
            Poll::Ready(match self.socket.end_writing() {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                ended => ended,
            })
        }
    }
}
