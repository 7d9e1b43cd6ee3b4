//! Streams as the seam for protocol crates uses them: read when an event has come, written at the end of a turn, and never a
//! wait in between.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use super::face::{receive, send};
use super::source::{Manner, Source};
use super::tcp::TcpStream;
use super::unix::UnixStream;
use super::watched::Watched;
use crate::park::WaitReason;
use crate::reactor::Direction;

/// What bytes can be read from when an event has come: a stream of [`net`](crate::net), and whatever else can be
/// [watched](crate::net::Watched) and read by reference, such as a [`File`](std::fs::File) or a
/// [`PipeReader`](std::io::PipeReader).
#[expect(private_bounds, reason = "only what a worker can watch is read on demand")]
pub trait Input: ReadOnDemand {}

/// As [`Input`], for what bytes are written to.
#[expect(private_bounds, reason = "only what a worker can watch is written on demand")]
pub trait Output: WriteOnDemand {}

impl<T: ReadOnDemand> Input for T {}
impl<T: WriteOnDemand> Output for T {}

pub(crate) trait OnDemand {
    type Bare: AsFd;

    fn source(&self) -> &Source<Self::Bare>;
}

pub(crate) trait ReadOnDemand: OnDemand {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;
}

pub(crate) trait WriteOnDemand: OnDemand {
    fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>>;

    /// Waits until an attempt may succeed, for `timeout` at most, or until [`Source::rouse`]. May return early.
    fn wait_for_room(&self, timeout: Duration) -> io::Result<()> {
        let manner = Manner { direction: Direction::Write, reason: WaitReason::Write, timeout: Some(timeout) };
        self.source().wait_once(manner)
    }
}

/// Reads until the buffer is full or nothing is left: for a kind of descriptor of which a short read does not tell that.
fn read_all_there_is<S: AsFd>(
    source: &Source<S>,
    buffer: &mut [u8],
    read: impl Fn(&S, &mut [u8]) -> io::Result<usize>,
) -> io::Result<Option<usize>> {
    let mut filled = 0;
    loop {
        let rest = &mut buffer[filled..];
        let len = rest.len();
        match source.attempt(Direction::Read, &mut |socket: &S| read(socket, rest), &|_| false) {
            Some(Ok(count)) if (1..len).contains(&count) => filled += count,
            Some(Ok(count)) => return Ok(Some(filled + count)),
            None => return Ok((filled > 0).then_some(filled)),
            // It stays ready, so the next attempt meets the error, or the end that comes behind it.
            Some(Err(_)) if filled > 0 => return Ok(Some(filled)),
            Some(Err(error)) => return Err(error),
        }
    }
}

impl OnDemand for TcpStream {
    type Bare = std::net::TcpStream;

    #[inline]
    fn source(&self) -> &Source<Self::Bare> {
        &self.source
    }
}

impl ReadOnDemand for TcpStream {
    #[inline]
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let len = buffer.len();
        self.source
            .attempt(Direction::Read, &mut |socket: &_| receive(socket, buffer), &|count| *count < len)
            .transpose()
    }
}

impl WriteOnDemand for TcpStream {
    #[inline]
    fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.source
            .attempt(Direction::Write, &mut |socket: &_| send(socket, bytes), &|count| *count < bytes.len())
            .transpose()
    }
}

impl OnDemand for UnixStream {
    type Bare = std::os::unix::net::UnixStream;

    fn source(&self) -> &Source<Self::Bare> {
        &self.source
    }
}

/// A read ends where descriptors were sent along, which nobody takes here, and leaves what comes behind them.
impl ReadOnDemand for UnixStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        read_all_there_is(&self.source, buffer, |socket, rest| receive(socket, rest))
    }
}

impl WriteOnDemand for UnixStream {
    fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.source
            .attempt(Direction::Write, &mut |socket: &_| send(socket, bytes), &|count| *count < bytes.len())
            .transpose()
    }
}

impl<T: AsFd> OnDemand for Watched<T> {
    type Bare = T;

    fn source(&self) -> &Source<T> {
        &self.source
    }
}

/// A pipe may carry packets (`O_DIRECT`), and a terminal gives a line at a time.
impl<T: AsFd> ReadOnDemand for Watched<T>
where
    for<'a> &'a T: Read,
{
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        read_all_there_is(&self.source, buffer, |mut inner, rest| inner.read(rest))
    }
}

impl<T: AsFd> WriteOnDemand for Watched<T>
where
    for<'a> &'a T: Write,
{
    fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.source.attempt(Direction::Write, &mut |mut inner: &T| inner.write(bytes), &|_| false).transpose()
    }
}
