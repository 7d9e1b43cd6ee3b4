//! Standard input and output for one user alone, who speaks a protocol there.

use std::fs::File;
use std::io::{self, stderr, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::ioctl_fionbio;
use rustix::stdio::{dup2_stdin, dup2_stdout};

static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes standard input and output away from the rest of the process, for who speaks a protocol there: whatever prints from
/// now on prints to standard error, and whatever reads finds the end of input. Both come in non-blocking mode. When they are
/// dropped, the process at the other end sees them close.
///
/// Where the kernel can, they are opened again, so that the mode is theirs alone; of a socket it is that of all who share it.
///
/// # Errors
///
/// `InvalidInput` if one of them is a regular file, which nobody can wait for; `AlreadyExists` if they were taken before; what
/// the kernel says.
pub fn take_stdio() -> io::Result<(File, File)> {
    if IS_TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "standard input and output are taken already"));
    }
    let taken = take();
    if taken.is_err() {
        IS_TAKEN.store(false, Ordering::SeqCst);
    }
    taken
}

fn take() -> io::Result<(File, File)> {
    let input = in_nonblocking_mode(stdin().as_fd(), OFlags::RDONLY, "standard input")?;
    let output = in_nonblocking_mode(stdout().as_fd(), OFlags::WRONLY, "standard output")?;
    let nothing = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Nothing is undone where the second fails: it has the same reasons as the first, that there is no such thing here.
    dup2_stdin(&nothing)?;
    dup2_stdout(stderr().as_fd()).or_else(|_| dup2_stdout(&nothing))?;
    Ok((input, output))
}

fn in_nonblocking_mode(descriptor: BorrowedFd<'_>, way: OFlags, name: &str) -> io::Result<File> {
    let kind = FileType::from_raw_mode(fstat(descriptor)?.st_mode);
    if matches!(kind, FileType::RegularFile | FileType::BlockDevice | FileType::Directory) {
        let words = format!("{name} is a file: only a pipe, a socket or a terminal can be waited for");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    }
    // Refused for a socket, for what belongs to another user, and where no /proc is.
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let flags = way | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    if let Ok(own) = open(path, flags, Mode::empty()) {
        return Ok(own.into());
    }
    let shared: OwnedFd = descriptor.try_clone_to_owned()?;
    ioctl_fionbio(&shared, true)?;
    Ok(shared.into())
}
