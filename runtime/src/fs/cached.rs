//! What the page cache has of a file, read on the worker.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::fs::{FileType, fstat, tell};
use rustix::io::{ReadWriteFlags, preadv2};

use crate::park;

/// The largest read that is tried on the worker. To copy so much takes about as long as the hand-over to a thread, 10 µs, which
/// is small beside the copying of a larger one.
const CACHED_BYTES_MAX: usize = 64 << 10;

/// Bytes that count as one operation of a dhaga's budget, of 64 before it gives way: a MiB, copied in a hundred microseconds.
const BYTES_PER_OPERATION: usize = 16 << 10;

/// Where in a file to read.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Where the last read or write of the descriptor ended.
    Cursor,
    Offset(u64),
}

/// Reads what is in memory already. `None`: a thread shall read, since the disk is needed, or the file system cannot say, or
/// there is an error to be told.
///
/// # Errors
///
/// Those of the scope around it.
pub(super) fn read(file: &File, buffers: &mut [IoSliceMut<'_>], place: Place) -> io::Result<Option<usize>> {
    let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
    if !park::is_in_dhaga() || bytes > CACHED_BYTES_MAX {
        return Ok(None);
    }
    (0..bytes.div_ceil(BYTES_PER_OPERATION)).for_each(|_| park::spend());
    park::check_attempt()?;
    let offset = match place {
        // What the kernel takes for it.
        Place::Cursor => u64::MAX,
        // No file is so long.
        Place::Offset(offset) if i64::try_from(offset).is_err() => return Ok(None),
        Place::Offset(offset) => offset,
    };
    Ok(match preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(0) if bytes > 0 && !is_at_end(file, place) => None,
        read => read.ok(),
    })
}

/// Whether there is nothing more to read. Linux 5.9 and 5.10 say so, of a read that shall not wait, also where there is.
fn is_at_end(file: &File, place: Place) -> bool {
    let Ok(stat) = fstat(file) else { return false };
    let position = match place {
        Place::Cursor => tell(file).ok(),
        Place::Offset(offset) => Some(offset),
    };
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_regular && position.is_some_and(|position| position >= stat.st_size as u64)
}
