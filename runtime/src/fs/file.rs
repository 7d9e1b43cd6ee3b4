//! An open file, and how it is opened.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::SystemTime;

use super::cached::{self, Place};
use super::{FileTimes, Metadata, Permissions, operate};

/// Bytes of one piece of a read to the end: a deadline or cancel is looked at after each.
const PIECE_BYTES: usize = 1 << 20;

/// An open file, as [`std::fs::File`], with [`FileExt`]. See [the module](super) for what ends an operation.
///
/// It turns into std's and back by `From`. It is closed in place when it is dropped, as std's: what a file system has to say or
/// to do then is best got by [`File::sync_all`] before.
pub struct File(std::fs::File);

impl File {
    /// As [`std::fs::File::open`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::options().read(true).open(path)
    }

    /// As [`std::fs::File::create`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::options().write(true).create(true).truncate(true).open(path)
    }

    /// As [`std::fs::File::create_new`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn create_new(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::options().read(true).write(true).create_new(true).open(path)
    }

    /// As [`std::fs::File::options`].
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// As [`std::fs::File::sync_all`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn sync_all(&self) -> io::Result<()> {
        operate(|| self.0.sync_all())
    }

    /// As [`std::fs::File::sync_data`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn sync_data(&self) -> io::Result<()> {
        operate(|| self.0.sync_data())
    }

    /// As [`std::fs::File::set_len`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        operate(|| self.0.set_len(size))
    }

    /// As [`std::fs::File::metadata`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn metadata(&self) -> io::Result<Metadata> {
        operate(|| self.0.metadata())
    }

    /// As [`std::fs::File::set_permissions`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        operate(|| self.0.set_permissions(permissions))
    }

    /// As [`std::fs::File::set_times`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn set_times(&self, times: FileTimes) -> io::Result<()> {
        operate(|| self.0.set_times(times))
    }

    /// As [`std::fs::File::set_modified`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.set_times(FileTimes::new().set_modified(time))
    }

    /// As [`std::fs::File::try_clone`]. Does not wait.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn read_at_place(&self, buffers: &mut [IoSliceMut<'_>], place: Place) -> io::Result<usize> {
        if let Some(count) = cached::read(&self.0, buffers, place)? {
            return Ok(count);
        }
        match place {
            Place::Cursor => operate(|| (&self.0).read_vectored(buffers)),
            Place::Offset(offset) => {
                let first = buffers.iter_mut().find(|buffer| !buffer.is_empty());
                first.map_or(Ok(0), |buffer| operate(|| self.0.read_at(buffer, offset)))
            }
        }
    }
}

impl Read for &File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_at_place(&mut [IoSliceMut::new(buffer)], Place::Cursor)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.read_at_place(buffers, Place::Cursor)
    }

    /// By pieces of 1 MiB, each of which is one operation.
    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let begin = buffer.len();
        loop {
            let count = operate(|| read_piece(&self.0, buffer))?;
            if count < PIECE_BYTES {
                return Ok(buffer.len() - begin);
            }
        }
    }

    fn read_to_string(&mut self, text: &mut String) -> io::Result<usize> {
        let mut bytes = Vec::new();
        let read = self.read_to_end(&mut bytes);
        match std::str::from_utf8(&bytes) {
            // Also what was read before an error, as in std.
            Ok(new) => {
                text.push_str(new);
                read
            }
            Err(error) => read.and(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
        }
    }
}

/// Reads up to [`PIECE_BYTES`]; less than that at the end of the file only.
fn read_piece(mut file: &std::fs::File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    if let (Ok(metadata), Ok(position)) = (file.metadata(), file.stream_position()) {
        let left = usize::try_from(metadata.len().saturating_sub(position)).unwrap_or(usize::MAX);
        buffer.try_reserve(left.min(PIECE_BYTES))?;
    }
    file.take(PIECE_BYTES as u64).read_to_end(buffer)
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        operate(|| (&self.0).write(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        operate(|| (&self.0).write_vectored(slices))
    }

    /// Does nothing, as in std: nothing is kept back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// In one operation, whatever the number of arguments.
    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> io::Result<()> {
        let mut text = String::new();
        fmt::Write::write_fmt(&mut text, arguments)
            .map_err(|_| io::Error::other("a Display or Debug of an argument failed"))?;
        self.write_all(text.as_bytes())
    }
}

impl Seek for &File {
    /// Waits only for the end of the file, which a network file system may have to be asked for.
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        match position {
            SeekFrom::End(_) => operate(|| (&self.0).seek(position)),
            SeekFrom::Start(_) | SeekFrom::Current(_) => (&self.0).seek(position),
        }
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }

    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        (&*self).read_to_end(buffer)
    }

    fn read_to_string(&mut self, text: &mut String) -> io::Result<usize> {
        (&*self).read_to_string(text)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> io::Result<()> {
        Write::write_fmt(&mut &*self, arguments)
    }
}

impl Seek for File {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        (&*self).seek(position)
    }
}

impl FileExt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at_place(&mut [IoSliceMut::new(buffer)], Place::Offset(offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        operate(|| self.0.write_at(bytes, offset))
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        Self(file)
    }
}

impl From<File> for std::fs::File {
    fn from(file: File) -> Self {
        file.0
    }
}

impl From<OwnedFd> for File {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }
}

impl From<File> for OwnedFd {
    fn from(file: File) -> Self {
        file.0.into()
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        file.0.into()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a file is opened. As [`std::fs::OpenOptions`], with [`OpenOptionsExt`].
#[derive(Clone, Debug)]
pub struct OpenOptions(std::fs::OpenOptions);

/// Options that are on or off.
macro_rules! switches {
    ($($name:ident),+) => {$(
        #[doc = concat!("As [`std::fs::OpenOptions::", stringify!($name), "`].")]
        pub fn $name(&mut self, $name: bool) -> &mut Self {
            self.0.$name($name);
            self
        }
    )+};
}

impl OpenOptions {
    /// As [`std::fs::OpenOptions::new`].
    #[expect(clippy::new_without_default, reason = "std's has none either")]
    pub fn new() -> Self {
        Self(std::fs::OpenOptions::new())
    }

    switches!(read, write, append, truncate, create, create_new);

    /// As [`std::fs::OpenOptions::open`]. Opening a FIFO waits for its other end, and nothing ends that wait.
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        operate(|| self.0.open(path)).map(File::from)
    }
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.0.mode(mode);
        self
    }

    fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.0.custom_flags(flags);
        self
    }
}
