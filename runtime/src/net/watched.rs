//! Any descriptor that the kernel can poll: for the sockets of foreign libraries.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::io::ioctl_fionbio;

use super::source::Source;

/// Something with a descriptor, whose readiness can be waited for: the socket of a C library, a pipe, a timer, a terminal.
/// A dhaga parks, a plain thread blocks, as with the sockets of [`net`](crate::net), and any number of both may wait at once.
///
/// The descriptor is watched from the first wait of a dhaga until this is dropped or [taken apart](Self::into_inner). It
/// must stay the same and open for as long. A worker watches a descriptor once: a second `Watched` of the same one fails
/// where it waits, with `AlreadyExists`.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Write, pipe};
///
/// use dhaga::net::Watched;
///
/// let (reader, mut writer) = pipe()?;
/// let reader = Watched::new(reader)?;
/// dhaga::spawn(move || writer.write_all(b"hello")).detach();
/// let mut buffer = [0; 16];
/// assert_eq!(reader.read_with(|mut pipe| pipe.read(&mut buffer))?, 5);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Watched<T: AsFd> {
    pub(super) source: Source<T>,
}

impl<T: AsFd> Watched<T> {
    /// Watches `inner`, and puts its descriptor into non-blocking mode: an attempt of [`read_with`](Self::read_with) that
    /// blocked would hold up all dhagas of a worker. The mode belongs to what was opened, so all duplicates of the
    /// descriptor are in it, and other processes' too; it stays when this is dropped.
    ///
    /// # Errors
    ///
    /// What the kernel says of a descriptor that has no such mode.
    pub fn new(inner: T) -> io::Result<Self> {
        ioctl_fionbio(&inner, true)?;
        Ok(Self::with_mode_as_is(inner))
    }

    /// As [`Watched::new`], but leaves the descriptor's mode alone: for one that is in non-blocking mode already, or that
    /// must not be, such as a terminal, which other programs share. If it is not, call only what cannot block where
    /// [`readable`](Self::readable) or [`writable`](Self::writable) has returned.
    pub fn with_mode_as_is(inner: T) -> Self {
        Self { source: Source::new(inner) }
    }

    /// Waits until the descriptor is readable as `poll(2)` says: there is something to read, or an end, or an error. Another
    /// may take it before the caller does.
    ///
    /// # Errors
    ///
    /// Those of the scope around it; `PermissionDenied` for what cannot be watched, a regular file above all, if it would
    /// have to wait; `AlreadyExists` for a descriptor that its worker watches already.
    pub fn readable(&self) -> io::Result<()> {
        self.source.become_ready(self.source.reading())
    }

    /// As [`Watched::readable`], for room to write, or an error.
    ///
    /// # Errors
    ///
    /// As [`Watched::readable`].
    pub fn writable(&self) -> io::Result<()> {
        self.source.become_ready(self.source.writing())
    }

    /// Attempts until the result is other than `WouldBlock`, and waits in between until the descriptor may be readable.
    /// Attempts that were interrupted by a signal are repeated, too.
    ///
    /// # Errors
    ///
    /// Those of the attempt and of [`Watched::readable`].
    pub fn read_with<R>(&self, attempt: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.source.io(self.source.reading(), attempt, |_| false)
    }

    /// As [`Watched::read_with`], for what waits until the descriptor may be writable.
    ///
    /// # Errors
    ///
    /// Those of the attempt and of [`Watched::writable`].
    pub fn write_with<R>(&self, attempt: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.source.io(self.source.writing(), attempt, |_| false)
    }

    /// What is watched.
    pub fn get_ref(&self) -> &T {
        self.source.socket()
    }

    /// Ends the watch and gives back what was watched, in the mode in which it is.
    pub fn into_inner(self) -> T {
        self.source.into_socket()
    }
}

impl<T: AsFd> AsFd for Watched<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.socket().as_fd()
    }
}

impl<T: AsFd> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<T: AsFd + fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(self.get_ref()).finish()
    }
}
