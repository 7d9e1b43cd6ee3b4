//! Standard output and standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::LazyLock;
use std::thread::panicking;

use super::descriptor::{Attempt, Descriptor, Turn, is_closed};
use super::errand::Errand;

/// Bytes that a thread writes at once: what a pipe that is ready takes without blocking, and few enough that who gives up
/// does not leave much behind.
const CHUNK_BYTES: usize = 4 << 10;

/// As [`CHUNK_BYTES`], of a file, which has room: so many that the hand-over is a small part of the work.
const FILE_CHUNK_BYTES: usize = 64 << 10;

/// A write by a thread whose sender may have given up.
#[derive(Default)]
struct State {
    errand: Option<Errand<io::Result<usize>>>,
}

/// One of the two.
macro_rules! output {
    ($output:ident, $function:ident, $descriptor:ident, $what:literal) => {
        static $descriptor: LazyLock<Descriptor<io::$output, State>> =
            LazyLock::new(|| Descriptor::new(io::$function()));

        #[doc = concat!("Standard ", $what, ", as [`std::io::", stringify!($function), "`]. See [the module](super).")]
        pub fn $function() -> $output {
            $output(())
        }

        #[doc = concat!("A handle to standard ", $what, ". All of them take turns.")]
        pub struct $output(());

        impl $output {
            /// As [`IsTerminal::is_terminal`].
            pub fn is_terminal(&self) -> bool {
                $descriptor.get_ref().is_terminal()
            }
        }

        impl Write for &$output {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                $descriptor.take_turn()?.put(bytes)
            }

            /// Not mixed with what others write.
            fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
                $descriptor.take_turn()?.put_all(bytes)
            }

            fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> io::Result<()> {
                let mut text = String::new();
                let formatted = fmt::Write::write_fmt(&mut text, arguments);
                formatted.map_err(|_| io::Error::other("a Display or Debug of an argument failed"))?;
                self.write_all(text.as_bytes())
            }

            /// Waits until what others have left to a thread has gone out; nothing else is kept back.
            fn flush(&mut self) -> io::Result<()> {
                $descriptor.take_turn()?.finish_errand()
            }
        }

        impl Write for $output {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (&*self).write(bytes)
            }

            fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
                (&*self).write_all(bytes)
            }

            fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> io::Result<()> {
                Write::write_fmt(&mut &*self, arguments)
            }

            fn flush(&mut self) -> io::Result<()> {
                (&*self).flush()
            }
        }

        impl AsFd for $output {
            fn as_fd(&self) -> BorrowedFd<'_> {
                $descriptor.get_ref().as_fd()
            }
        }

        impl AsRawFd for $output {
            fn as_raw_fd(&self) -> RawFd {
                self.as_fd().as_raw_fd()
            }
        }

        impl fmt::Debug for $output {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($output))
            }
        }

        impl Raw for io::$output {
            fn again() -> Self {
                io::$function()
            }
        }
    };
}

/// What a thread writes to.
trait Raw: AsFd + Send + 'static {
    fn again() -> Self;
}

output!(Stdout, stdout, STDOUT, "output");
output!(Stderr, stderr, STDERR, "error");

impl<D: Raw> Turn<'_, D, State> {
    fn put_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.put(bytes)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => bytes = &bytes[count..],
            }
        }
        Ok(())
    }

    /// Writes some of it, after what others have left to a thread.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.put_some(bytes) {
            Err(error) if is_closed(&error) => Ok(bytes.len()),
            written => written,
        }
    }

    fn put_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.finish_errand()?;
        loop {
            if let Attempt::Done(count) = self.write(bytes)? {
                return Ok(count);
            }
            let bytes_max = if self.is_file() { FILE_CHUNK_BYTES } else { CHUNK_BYTES };
            let chunk = &bytes[..bytes.len().min(bytes_max)];
            let written = if panicking() { write_chunk::<D>(chunk) } else { self.send(chunk.to_vec())? };
            match written {
                // Somebody else was faster, and the descriptor is in non-blocking mode.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn send(&mut self, chunk: Vec<u8>) -> io::Result<io::Result<usize>> {
        let errand = self.state.errand.insert(Errand::send(move || write_chunk::<D>(&chunk)));
        errand.wait()?;
        self.state.errand.take().map_or(Ok(Ok(0)), Errand::take)
    }

    /// Waits for a write whose sender gave up, and who was told so: how it ended is of no use to anybody else.
    fn finish_errand(&mut self) -> io::Result<()> {
        if let Some(errand) = &self.state.errand {
            errand.wait()?;
            self.state.errand = None;
        }
        Ok(())
    }
}

/// Writes on a thread that may wait.
fn write_chunk<D: Raw>(chunk: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::write(D::again(), chunk))?)
}
