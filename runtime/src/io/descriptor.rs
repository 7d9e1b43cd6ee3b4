//! A descriptor that other processes share, so that its mode must stay as it is: single attempts that do not block.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use crate::net::Watched;
use crate::park;
use crate::sync::{AcquireError, Semaphore, SemaphorePermit};

/// What the kernel takes for the place where the last read or write ended.
const CURSOR: u64 = u64::MAX;

/// A descriptor, and what its users have in common, one at a time.
pub(super) struct Descriptor<D: AsFd, S> {
    watched: Watched<D>,
    /// A file is always ready, and may take its time all the same.
    is_file: bool,
    turn: Semaphore,
    state: Mutex<S>,
}

/// How an attempt ended.
pub(super) enum Attempt {
    Done(usize),
    /// The kernel has no way to do it without blocking. The descriptor is ready, as far as it tells.
    NeedsThread,
}

impl<D: AsFd, S: Default> Descriptor<D, S> {
    pub(super) fn new(descriptor: D) -> Self {
        let kind = fstat(&descriptor).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let is_file = matches!(kind, Ok(FileType::RegularFile | FileType::BlockDevice | FileType::Directory));
        let watched = Watched::with_mode_as_is(descriptor);
        Self { watched, is_file, turn: Semaphore::new(1), state: Mutex::default() }
    }

    pub(super) fn get_ref(&self) -> &D {
        self.watched.get_ref()
    }

    /// Waits until it is the caller's turn.
    pub(super) fn take_turn(&self) -> io::Result<Turn<'_, D, S>> {
        park::spend();
        park::check_attempt()?;
        let permit = match self.turn.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.turn.acquire().map_err(|error| match error {
                AcquireError::Interrupted(interrupt) => interrupt,
                AcquireError::Closed => unreachable!("nobody closes it"),
            })?,
        };
        let state = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Turn { descriptor: self, state, _permit: permit })
    }
}

/// The right to use a descriptor and what belongs to it.
pub(super) struct Turn<'a, D: AsFd, S> {
    descriptor: &'a Descriptor<D, S>,
    pub(super) state: S,
    /// Below the state, which is put back before the next one's turn comes.
    _permit: SemaphorePermit<'a>,
}

impl<D: AsFd, S> Drop for Turn<'_, D, S> {
    fn drop(&mut self) {
        let mut place = self.descriptor.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *place, &mut self.state);
    }
}

impl<D: AsFd, S> Turn<'_, D, S> {
    pub(super) fn is_file(&self) -> bool {
        self.descriptor.is_file
    }

    /// Waits until there is something to read, and reads it if that takes no thread.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Attempt> {
        let attempt = |descriptor: &D| {
            let read = preadv2(descriptor, &mut [IoSliceMut::new(buffer)], CURSOR, ReadWriteFlags::NOWAIT);
            judge(descriptor, read, PollFlags::IN)
        };
        self.attempt(|watched| watched.read_with(attempt))
    }

    /// Waits until there is room to write, and writes if that takes no thread.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<Attempt> {
        let attempt = |descriptor: &D| {
            let written = pwritev2(descriptor, &[IoSlice::new(bytes)], CURSOR, ReadWriteFlags::NOWAIT);
            judge(descriptor, written, PollFlags::OUT)
        };
        self.attempt(|watched| watched.write_with(attempt))
    }

    fn attempt(&self, attempt: impl FnOnce(&Watched<D>) -> io::Result<Attempt>) -> io::Result<Attempt> {
        if self.is_file() {
            return Ok(Attempt::NeedsThread);
        }
        match attempt(&self.descriptor.watched) {
            // It cannot be watched, or the program watches it by itself.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::AlreadyExists) => {
                Ok(Attempt::NeedsThread)
            }
            attempted => attempted,
        }
    }
}

fn judge<D: AsFd>(descriptor: &D, attempted: Result<usize, Errno>, flags: PollFlags) -> io::Result<Attempt> {
    match attempted {
        Ok(count) => Ok(Attempt::Done(count)),
        // In the words of different kinds of descriptors: there is no such read or write.
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::SPIPE | Errno::NOSYS) => {
            let is_ready = poll(&mut [PollFd::new(descriptor, flags)], Some(&Timespec::default())) != Ok(0);
            is_ready.then_some(Attempt::NeedsThread).ok_or_else(|| io::ErrorKind::WouldBlock.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// As std: a process that was started without the descriptor reads nothing there, and writes into the void.
pub(super) fn is_closed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BADF.raw_os_error())
}
