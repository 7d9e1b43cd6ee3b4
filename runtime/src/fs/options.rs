//! How a file is opened, and how a directory is made.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::file::File;
use super::operate;

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
