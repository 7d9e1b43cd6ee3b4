//! The entries of a directory, and how one is made.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, DirEntryExt};
use std::path::{Path, PathBuf};

use super::{FileType, Metadata, operate};

/// Entries that are fetched at once: the hand-over to a thread is then a small part of the work, and a directory of millions
/// takes no more memory than this at a time.
const ENTRIES_AT_ONCE: usize = 256;

/// As [`std::fs::read_dir`].
///
/// # Errors
///
/// Those of std, and those of the scope around it.
pub fn read_dir(path: impl AsRef<Path>) -> io::Result<ReadDir> {
    let path = path.as_ref();
    let open = || {
        let mut entries = std::fs::read_dir(path)?;
        let fetched = fetch(&mut entries);
        Ok((entries, fetched))
    };
    operate(open).map(|(entries, fetched)| ReadDir { rest: Some(entries), fetched })
}

/// The next entries, with the one thing of them that may take a look at the disk.
fn fetch(entries: &mut std::fs::ReadDir) -> VecDeque<io::Result<DirEntry>> {
    let entry =
        |entry: io::Result<std::fs::DirEntry>| entry.map(|entry| DirEntry { file_type: entry.file_type().ok(), entry });
    entries.by_ref().take(ENTRIES_AT_ONCE).map(entry).collect()
}

/// The entries of a directory, as [`std::fs::ReadDir`]. They are fetched 256 at a time.
///
/// An error of the scope around it is the last item: a loop that passes over errors shall end as well.
pub struct ReadDir {
    /// `None` after the end, or an error.
    rest: Option<std::fs::ReadDir>,
    fetched: VecDeque<io::Result<DirEntry>>,
}

impl Iterator for ReadDir {
    type Item = io::Result<DirEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fetched.is_empty()
            && let Some(rest) = &mut self.rest
        {
            let fetched = operate(|| Ok(fetch(rest)));
            if !fetched.as_ref().is_ok_and(|fetched| fetched.len() == ENTRIES_AT_ONCE) {
                self.rest = None;
            }
            self.fetched = fetched.unwrap_or_else(|error| [Err(error)].into());
        }
        self.fetched.pop_front()
    }
}

impl fmt::Debug for ReadDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadDir").field("rest", &self.rest).field("fetched", &self.fetched.len()).finish()
    }
}

/// An entry of a directory, as [`std::fs::DirEntry`], with [`DirEntryExt`].
pub struct DirEntry {
    entry: std::fs::DirEntry,
    /// `None`: it could not be told when the entry was fetched.
    file_type: Option<FileType>,
}

impl DirEntry {
    /// As [`std::fs::DirEntry::path`].
    pub fn path(&self) -> PathBuf {
        self.entry.path()
    }

    /// As [`std::fs::DirEntry::file_name`].
    pub fn file_name(&self) -> OsString {
        self.entry.file_name()
    }

    /// As [`std::fs::DirEntry::metadata`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn metadata(&self) -> io::Result<Metadata> {
        operate(|| self.entry.metadata())
    }

    /// As [`std::fs::DirEntry::file_type`]. Known from the listing; does not wait.
    ///
    /// # Errors
    ///
    /// Those of [`DirEntry::metadata`], on file systems whose listings do not tell.
    pub fn file_type(&self) -> io::Result<FileType> {
        self.file_type.map_or_else(|| self.metadata().map(|metadata| metadata.file_type()), Ok)
    }
}

impl DirEntryExt for DirEntry {
    fn ino(&self) -> u64 {
        self.entry.ino()
    }
}

impl fmt::Debug for DirEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entry.fmt(f)
    }
}

/// How a directory is made. As [`std::fs::DirBuilder`], with [`DirBuilderExt`].
#[derive(Debug)]
pub struct DirBuilder(std::fs::DirBuilder);

impl DirBuilder {
    /// As [`std::fs::DirBuilder::new`].
    #[expect(clippy::new_without_default, reason = "std's has none either")]
    pub fn new() -> Self {
        Self(std::fs::DirBuilder::new())
    }

    /// As [`std::fs::DirBuilder::recursive`].
    pub fn recursive(&mut self, recursive: bool) -> &mut Self {
        self.0.recursive(recursive);
        self
    }

    /// As [`std::fs::DirBuilder::create`].
    ///
    /// # Errors
    ///
    /// Those of std, and those of the scope around it.
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        operate(|| self.0.create(path))
    }
}

impl DirBuilderExt for DirBuilder {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.0.mode(mode);
        self
    }
}
