//! What the faces of all sockets have in common.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};
use rustix::net::{RecvFlags, SendFlags};

use super::source::Source;
use crate::reactor::Direction;

const TIMEOUTS: [(Direction, Timeout); 2] = [(Direction::Read, Timeout::Recv), (Direction::Write, Timeout::Send)];

/// Takes over a socket of std's, with its timeouts: the kernel's apply to no socket in non-blocking mode.
pub(super) fn adopt<S: AsFd>(socket: S) -> io::Result<Arc<Source<S>>> {
    ioctl_fionbio(&socket, true)?;
    let timeouts = TIMEOUTS.map(|(direction, id)| (direction, socket_timeout(&socket, id).ok().flatten()));
    let source = Source::new(socket);
    for (direction, timeout) in timeouts {
        source.set_timeout(direction, timeout);
    }
    Ok(Arc::new(source))
}

/// The opposite of [`adopt`]. Clones go on with their own descriptor, and so in non-blocking mode.
pub(super) fn release<S: AsFd + Into<OwnedFd>>(source: Arc<Source<S>>) -> io::Result<OwnedFd> {
    let is_nonblocking = source.is_nonblocking();
    let timeouts = TIMEOUTS.map(|(direction, id)| (source.timeout(direction), id));
    let socket = match Arc::try_unwrap(source) {
        Ok(source) => source.into_socket().into(),
        Err(shared) => return shared.socket().as_fd().try_clone_to_owned(),
    };
    for (timeout, id) in timeouts {
        set_socket_timeout(&socket, id, timeout)?;
    }
    ioctl_fionbio(&socket, is_nonblocking)?;
    Ok(socket)
}

/// `recv(2)` without libc's points of cancellation, which cost a process of several threads as much as a switch does.
#[inline]
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, buffer, RecvFlags::empty())?.0)
}

/// As [`receive`], for `send(2)`; a peer that has gone is an error and no signal, as in std.
#[inline]
pub(super) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)
}

/// Slices that one call to the kernel takes (its `UIO_MAXIOV`). What lies in others is left, whatever room there is.
const SLICES_MAX: usize = 1024;

/// How many bytes one call can carry at most, of slices of such lengths.
pub(super) fn len_at_once(lens: impl Iterator<Item = usize>) -> usize {
    lens.take(SLICES_MAX).fold(0, usize::saturating_add)
}

pub(super) fn refuse_zero(timeout: Option<Duration>) -> io::Result<()> {
    match timeout {
        Some(Duration::ZERO) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a timeout of zero would never let anything happen"))
        }
        _ => Ok(()),
    }
}

/// The face of any socket: a handle for a [`Source`], and the ways from and to std's type.
macro_rules! handle {
    ($socket:ident, $std:ty) => {
        impl $crate::net::asynchronous::Shared for $socket {
            type Bare = $std;

            fn source(&self) -> &std::sync::Arc<$crate::net::source::Source<$std>> {
                &self.source
            }
        }

        impl $socket {
            /// Another handle for the same socket, with the same timeouts. The last one closes it.
            ///
            /// # Errors
            ///
            /// None; the signature is std's.
            pub fn try_clone(&self) -> std::io::Result<Self> {
                Ok(Self { source: self.source.clone() })
            }

            /// Takes the error that the kernel keeps for the socket.
            ///
            /// # Errors
            ///
            /// What the kernel says, as in std.
            pub fn take_error(&self) -> std::io::Result<Option<std::io::Error>> {
                self.source.socket().take_error()
            }

            /// Whether an operation that would wait returns `WouldBlock` instead. Shared by clones.
            ///
            /// # Errors
            ///
            /// None; the signature is std's.
            pub fn set_nonblocking(&self, nonblocking: bool) -> std::io::Result<()> {
                self.source.set_nonblocking(nonblocking);
                Ok(())
            }

            /// Takes over a socket that is in non-blocking mode already.
            fn from_nonblocking(socket: $std) -> Self {
                Self { source: std::sync::Arc::new($crate::net::source::Source::new(socket)) }
            }
        }

        impl std::os::fd::AsFd for $socket {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.source.socket().as_fd()
            }
        }

        impl std::os::fd::AsRawFd for $socket {
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                self.source.socket().as_raw_fd()
            }
        }

        /// Takes over a socket of std's with its timeouts. Puts it into non-blocking mode, which also concerns std's own
        /// clones of it.
        impl TryFrom<$std> for $socket {
            type Error = std::io::Error;

            fn try_from(socket: $std) -> std::io::Result<Self> {
                Ok(Self { source: $crate::net::face::adopt(socket)? })
            }
        }

        /// Hands the socket over to std, with its timeouts, in the mode that `set_nonblocking` has set. If it has clones, they
        /// keep it, and std gets a duplicate that is in non-blocking mode as they are.
        impl TryFrom<$socket> for $std {
            type Error = std::io::Error;

            fn try_from(socket: $socket) -> std::io::Result<Self> {
                Ok($crate::net::face::release(socket.source)?.into())
            }
        }

        /// Takes over a descriptor, which must be of such a socket, as in std. Puts it into non-blocking mode.
        impl From<std::os::fd::OwnedFd> for $socket {
            fn from(descriptor: std::os::fd::OwnedFd) -> Self {
                let source = $crate::net::face::adopt(descriptor.into());
                Self { source: source.expect("an open descriptor can be put into non-blocking mode") }
            }
        }

        /// As the conversion into std's type.
        ///
        /// # Panics
        ///
        /// If the socket has clones, and no descriptor is left for a duplicate.
        impl From<$socket> for std::os::fd::OwnedFd {
            fn from(socket: $socket) -> Self {
                $crate::net::face::release(socket.source).expect("there is a descriptor for a duplicate")
            }
        }

        /// As the conversion into a descriptor, which is the caller's to close. The way back goes by `OwnedFd`, which needs no
        /// `unsafe` here.
        ///
        /// # Panics
        ///
        /// As the conversion.
        impl std::os::fd::IntoRawFd for $socket {
            fn into_raw_fd(self) -> std::os::fd::RawFd {
                std::os::fd::OwnedFd::from(self).into_raw_fd()
            }
        }

        impl std::fmt::Debug for $socket {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.source.socket().fmt(f)
            }
        }
    };
}

/// The timeouts of what reads and writes.
macro_rules! timeouts {
    ($socket:ident) => {
        impl $socket {
            /// Limits each wait to read. `None`, the default, waits for ever. As in std it is shared by clones, and its
            /// expiry is an error of kind `WouldBlock`.
            ///
            /// # Errors
            ///
            /// `InvalidInput` for a timeout of zero.
            pub fn set_read_timeout(&self, timeout: Option<std::time::Duration>) -> std::io::Result<()> {
                $crate::net::face::refuse_zero(timeout)?;
                self.source.set_timeout($crate::reactor::Direction::Read, timeout);
                Ok(())
            }

            /// As `set_read_timeout`, for writes.
            ///
            /// # Errors
            ///
            /// `InvalidInput` for a timeout of zero.
            pub fn set_write_timeout(&self, timeout: Option<std::time::Duration>) -> std::io::Result<()> {
                $crate::net::face::refuse_zero(timeout)?;
                self.source.set_timeout($crate::reactor::Direction::Write, timeout);
                Ok(())
            }

            /// What `set_read_timeout` has set.
            ///
            /// # Errors
            ///
            /// None; the signature is std's.
            pub fn read_timeout(&self) -> std::io::Result<Option<std::time::Duration>> {
                Ok(self.source.timeout($crate::reactor::Direction::Read))
            }

            /// What `set_write_timeout` has set.
            ///
            /// # Errors
            ///
            /// None; the signature is std's.
            pub fn write_timeout(&self) -> std::io::Result<Option<std::time::Duration>> {
                Ok(self.source.timeout($crate::reactor::Direction::Write))
            }
        }
    };
}

/// Reading and writing a stream of bytes. `$is_drained` says whether a read that filled so many bytes of so many left nothing.
macro_rules! stream {
    ($socket:ident, $is_drained:path) => {
        impl $crate::net::asynchronous::ByteStream for $socket {
            fn is_drained(count: usize, len: usize) -> bool {
                $is_drained(count, len)
            }

            fn end_writing(&self) -> std::io::Result<()> {
                self.shutdown(std::net::Shutdown::Write)
            }
        }

        impl std::io::Read for &$socket {
            #[inline]
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let len = buffer.len();
                let attempt = |socket: &_| $crate::net::face::receive(socket, buffer);
                self.source.io(self.source.reading(), attempt, |count| $is_drained(*count, len))
            }

            fn read_vectored(&mut self, buffers: &mut [std::io::IoSliceMut<'_>]) -> std::io::Result<usize> {
                let len = $crate::net::face::len_at_once(buffers.iter().map(|buffer| buffer.len()));
                let attempt = |mut socket: &_| std::io::Read::read_vectored(&mut socket, buffers);
                if len == 0 {
                    return self.source.io_at_once(attempt);
                }
                self.source.io(self.source.reading(), attempt, |count| $is_drained(*count, len))
            }
        }

        impl std::io::Write for &$socket {
            #[inline]
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let attempt = |socket: &_| $crate::net::face::send(socket, bytes);
                if bytes.is_empty() {
                    return self.source.io_at_once(attempt);
                }
                self.source.io(self.source.writing(), attempt, |count| *count < bytes.len())
            }

            fn write_vectored(&mut self, slices: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                let len = $crate::net::face::len_at_once(slices.iter().map(|slice| slice.len()));
                let attempt = |mut socket: &_| std::io::Write::write_vectored(&mut socket, slices);
                if len == 0 {
                    return self.source.io_at_once(attempt);
                }
                self.source.io(self.source.writing(), attempt, |count| *count < len)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        impl std::io::Read for $socket {
            #[inline]
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                (&*self).read(buffer)
            }

            fn read_vectored(&mut self, buffers: &mut [std::io::IoSliceMut<'_>]) -> std::io::Result<usize> {
                (&*self).read_vectored(buffers)
            }
        }

        impl std::io::Write for $socket {
            #[inline]
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                (&*self).write(bytes)
            }

            fn write_vectored(&mut self, slices: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                (&*self).write_vectored(slices)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
    };
}

/// What a listener's accepts have in common: their end at a shutdown. `$accept` is the attempt.
macro_rules! listener {
    ($listener:ident, $stream:ident, $address:ty, $accept:path) => {
        impl $listener {
            /// Waits for a connection.
            ///
            /// # Errors
            ///
            /// What the kernel says. When the process is out of descriptors the listener lives on, and the connection waits:
            /// call it again. The first such error comes at once; until an accept succeeds, each further one comes after a
            /// pause, of 5 ms at first and 1 s at last, and another attempt, so that a loop of accepts does not spin.
            ///
            /// [`ShuttingDown`](crate::ShuttingDown), of kind `Other`, once the [`shutdown`](crate::Runtime::shutdown) of the
            /// caller's runtime has begun: end the loop around the call.
            pub fn accept(&self) -> std::io::Result<($stream, $address)> {
                self.source.accept($accept)
            }

            /// Connections, until the [`shutdown`](crate::Runtime::shutdown) of the caller's runtime begins.
            pub fn incoming(&self) -> Incoming<'_> {
                Incoming { listener: self }
            }
        }

        impl $crate::net::Async<$listener> {
            /// Waits for a connection.
            ///
            /// # Errors
            ///
            /// As the listener's own `accept`, pauses included: the future is pending while they last. That a shutdown has
            /// begun the next poll says; a server that is a future is best run by [`try_block_on`](crate::try_block_on),
            /// which ends when it is cancelled then.
            pub async fn accept(&mut self) -> std::io::Result<($stream, $address)> {
                std::future::poll_fn(|context| self.poll_accept(context)).await
            }

            /// As [`accept`](Self::accept), as a single poll.
            ///
            /// # Errors
            ///
            /// As [`accept`](Self::accept).
            pub fn poll_accept(
                &mut self,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<($stream, $address)>> {
                if $crate::around::is_shutting_down() {
                    return std::task::Poll::Ready(Err(std::io::Error::other($crate::interrupt::ShuttingDown)));
                }
                self.poll_accept_by(context, $accept)
            }
        }

        #[doc = concat!("Connections of a [`", stringify!($listener), "`], until the runtime is shut down.")]
        #[derive(Debug)]
        pub struct Incoming<'a> {
            listener: &'a $listener,
        }

        impl Iterator for Incoming<'_> {
            type Item = std::io::Result<$stream>;

            fn next(&mut self) -> Option<Self::Item> {
                match self.listener.accept() {
                    Err(error)
                        if error.get_ref().is_some_and(|inner| inner.is::<$crate::interrupt::ShuttingDown>()) =>
                    {
                        None
                    }
                    accepted => Some(accepted.map(|(stream, _)| stream)),
                }
            }
        }
    };
}

pub(super) use {handle, listener, stream, timeouts};
