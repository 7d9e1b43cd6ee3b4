//! `std::fs`'s names, for dhagas: files do not hold up a worker.
//!
//! The kernel has no way to wait for a file as for a socket, so each operation runs on a thread of the
//! [blocking pool](crate::blocking_pool) while its dhaga is parked; a small read of what the page cache has is done on the
//! worker. On a plain thread, and in a `Drop` while the stack unwinds, all of it runs in place. What is named as in std does
//! what it does there, with the same errors.
//!
//! | what ends | when |
//! |---|---|
//! | an operation that has not begun | at the deadline or cancel around it: it fails with [`TimedOut`](io::ErrorKind::TimedOut), or [`Cancelled`](crate::Cancelled) of kind `Other`, and was not done |
//! | one that a thread has begun | at its own end: the kernel cannot be called off either, and the result is delivered |
//! | a long one, as [`File::read_to_end`](File) of gigabytes | between two pieces of 1 MiB, as if it were several |
//!
//! A shutdown that unwinds the dhaga waits for what has begun, too. So use [`File`] for files: a read from a FIFO or a terminal
//! may never end. [`net::Watched`](crate::net::Watched) is for those, and [`io`](crate::io) for the standard streams.
//!
//! Of many, 32 are under way at once, and others wait for their turn, for 100 ms at most. An operation by a thread costs some 10 µs more than in place. So read and write in large pieces, by
//! [`BufReader`](std::io::BufReader) and [`BufWriter`](std::io::BufWriter) where they are small; [`read`] and [`write()`] of a
//! whole file are one operation each.
//!
//! ```
//! use std::io::{Read, Seek, Write};
//! use dhaga::fs::{self, File};
//!
//! let path = std::env::temp_dir().join(format!("dhaga-{}", std::process::id()));
//! let written = path.clone();
//! let text = dhaga::spawn(move || {
//!     let mut file = File::options().read(true).write(true).create(true).open(&written)?;
//!     file.write_all(b"hello")?;
//!     file.rewind()?;
//!     let mut text = String::new();
//!     file.read_to_string(&mut text)?;
//!     Ok::<String, std::io::Error>(text)
//! });
//! assert_eq!(text.join()??, "hello");
//! fs::remove_file(path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cached;
mod dir;
mod file;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::blocking::{Turns, lend_in_turn};

pub use std::fs::{FileTimes, FileType, Metadata, Permissions};

pub use self::dir::{DirBuilder, DirEntry, ReadDir, read_dir};
pub use self::file::{File, OpenOptions};

/// Operations on files that are under way at once, of all dhagas of the process: as many as keep a fast disk busy.
const OPERATIONS_AT_ONCE: usize = 32;
/// How long an operation waits for those that are under way, which may be of another disk, or never end.
const OPERATION_PATIENCE: Duration = Duration::from_millis(100);

static OPERATIONS: Turns = Turns::new(OPERATIONS_AT_ONCE, OPERATION_PATIENCE);

/// Runs an operation that may borrow, as the table above says.
#[track_caller]
fn operate<R: Send>(operation: impl FnOnce() -> io::Result<R> + Send) -> io::Result<R> {
    lend_in_turn(&OPERATIONS, operation)?
}

/// Functions of a path as std has them.
macro_rules! of_a_path {
    ($($name:ident -> $result:ty;)+) => {$(
        #[doc = concat!("As [`std::fs::", stringify!($name), "`].")]
        ///
        /// # Errors
        ///
        /// Those of std, and those of the scope around it.
        pub fn $name(path: impl AsRef<Path>) -> io::Result<$result> {
            let path = path.as_ref();
            operate(|| std::fs::$name(path))
        }
    )+};
}

/// Functions of two paths as std has them.
macro_rules! of_two_paths {
    ($($name:ident -> $result:ty;)+) => {$(
        #[doc = concat!("As [`std::fs::", stringify!($name), "`].")]
        ///
        /// # Errors
        ///
        /// Those of std, and those of the scope around it.
        pub fn $name(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<$result> {
            let (from, to) = (from.as_ref(), to.as_ref());
            operate(|| std::fs::$name(from, to))
        }
    )+};
}

of_a_path! {
    canonicalize -> PathBuf;
    create_dir -> ();
    create_dir_all -> ();
    exists -> bool;
    metadata -> Metadata;
    read -> Vec<u8>;
    read_link -> PathBuf;
    read_to_string -> String;
    remove_dir -> ();
    remove_dir_all -> ();
    remove_file -> ();
    symlink_metadata -> Metadata;
}

of_two_paths! {
    copy -> u64;
    hard_link -> ();
    rename -> ();
}

/// As [`std::fs::write`].
///
/// # Errors
///
/// Those of std, and those of the scope around it.
pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let (path, contents) = (path.as_ref(), contents.as_ref());
    operate(|| std::fs::write(path, contents))
}

/// As [`std::fs::set_permissions`].
///
/// # Errors
///
/// Those of std, and those of the scope around it.
pub fn set_permissions(path: impl AsRef<Path>, permissions: Permissions) -> io::Result<()> {
    let path = path.as_ref();
    operate(|| std::fs::set_permissions(path, permissions))
}

/// As [`std::os::unix::fs::symlink`].
///
/// # Errors
///
/// Those of std, and those of the scope around it.
pub fn symlink(original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
    let (original, link) = (original.as_ref(), link.as_ref());
    operate(|| std::os::unix::fs::symlink(original, link))
}
