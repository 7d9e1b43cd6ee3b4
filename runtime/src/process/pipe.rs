//! The three pipes to a child, of which this process holds one end each.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{self, Stdio};

use rustix::io::ioctl_fionbio;

use crate::net::ready::{AnySource, Sourced};
use crate::net::source::Source;

/// The child's standard input, to write to. It is closed when this is dropped, and then the child reads to its end.
///
/// Any number of dhagas and plain threads may write at once, by `&ChildStdin`. When the child has closed its end, a write is
/// `BrokenPipe`.
pub struct ChildStdin {
    source: Source<PipeWriter>,
}

/// The child's standard output, to read from. Closed when this is dropped; a child that writes on is told by SIGPIPE.
///
/// Any number of dhagas and plain threads may read at once, by `&ChildStdout`. It is at its end when the child has closed it,
/// and all others to whom the child has passed it on.
pub struct ChildStdout {
    source: Source<PipeReader>,
}

/// The child's standard error, to read from; as [`ChildStdout`].
pub struct ChildStderr {
    source: Source<PipeReader>,
}

/// What the three have in common. `$end` is our end of the pipe.
macro_rules! pipe {
    ($pipe:ident, $end:ident) => {
        impl $pipe {
            fn adopt(end: $end) -> io::Result<Self> {
                // The mode belongs to our end alone.
                ioctl_fionbio(&end, true)?;
                Ok(Self { source: Source::new(end) })
            }
        }

        impl AsFd for $pipe {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.source.socket().as_fd()
            }
        }

        impl AsRawFd for $pipe {
            fn as_raw_fd(&self) -> RawFd {
                self.as_fd().as_raw_fd()
            }
        }

        impl Sourced for $pipe {
            fn source(&self) -> &dyn AnySource {
                &self.source
            }
        }

        /// Takes over a pipe of std's, and puts it into non-blocking mode.
        impl TryFrom<process::$pipe> for $pipe {
            type Error = io::Error;

            fn try_from(pipe: process::$pipe) -> io::Result<Self> {
                Self::adopt(OwnedFd::from(pipe).into())
            }
        }

        /// Hands the pipe over to std, in blocking mode.
        impl TryFrom<$pipe> for process::$pipe {
            type Error = io::Error;

            fn try_from(pipe: $pipe) -> io::Result<Self> {
                Ok(OwnedFd::from(pipe).into())
            }
        }

        /// Takes over a descriptor, which must be of a pipe. Puts it into non-blocking mode.
        impl From<OwnedFd> for $pipe {
            fn from(descriptor: OwnedFd) -> Self {
                Self::adopt(descriptor.into()).expect("an open descriptor can be put into non-blocking mode")
            }
        }

        /// Hands over the descriptor, in blocking mode.
        impl From<$pipe> for OwnedFd {
            fn from(pipe: $pipe) -> Self {
                let end = pipe.source.into_socket();
                ioctl_fionbio(&end, false).expect("an open descriptor can be put into blocking mode");
                end.into()
            }
        }

        /// For the next child: what this one writes, that one reads, or the other way round.
        impl From<$pipe> for Stdio {
            fn from(pipe: $pipe) -> Self {
                OwnedFd::from(pipe).into()
            }
        }

        impl fmt::Debug for $pipe {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($pipe)).field(self.source.socket()).finish()
            }
        }
    };
}

pipe!(ChildStdin, PipeWriter);
pipe!(ChildStdout, PipeReader);
pipe!(ChildStderr, PipeReader);

impl Write for &ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.source.io(self.source.writing(), |mut pipe| pipe.write(bytes), |_| false)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.source.io(self.source.writing(), |mut pipe| pipe.write_vectored(slices), |_| false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How much was read says nothing about what is left: a child may write packets (`O_DIRECT`). Only an attempt does.
macro_rules! read {
    ($pipe:ident) => {
        impl Read for &$pipe {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.source.io(self.source.reading(), |mut pipe| pipe.read(buffer), |_| false)
            }

            fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                self.source.io(self.source.reading(), |mut pipe| pipe.read_vectored(buffers), |_| false)
            }
        }

        impl Read for $pipe {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                (&*self).read(buffer)
            }

            fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                (&*self).read_vectored(buffers)
            }
        }
    };
}

read!(ChildStdout);
read!(ChildStderr);
