//! Standard input.

use std::fmt;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::LazyLock;

use super::descriptor::{Attempt, Descriptor, Turn, is_closed};
use super::errand::Errand;

/// Bytes that are read at once, as in std.
const CHUNK_BYTES: usize = 8 << 10;

static STDIN: LazyLock<Descriptor<io::Stdin, State>> = LazyLock::new(|| Descriptor::new(io::stdin()));

type Inbox<'a> = Turn<'a, io::Stdin, State>;

/// What was read and not yet asked for.
#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Of these, how many were handed out.
    taken: usize,
    /// A read by a thread, whose result belongs to whoever reads next.
    errand: Option<Errand<io::Result<Vec<u8>>>>,
}

/// Standard input, as [`std::io::stdin`]. See [the module](super).
pub fn stdin() -> Stdin {
    Stdin(())
}

/// A handle to standard input. All of them share one buffer, and take turns.
pub struct Stdin(());

impl Stdin {
    /// As [`std::io::Stdin::read_line`]. A line that is not complete when the wait is stopped stays for the next call.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a line that is not UTF-8, which is taken; what the kernel says; and those of the scope around it.
    pub fn read_line(&self, line: &mut String) -> io::Result<usize> {
        let mut input = STDIN.take_turn()?;
        let mut seen = 0;
        let end = loop {
            let unseen = &input.state.left()[seen..];
            if let Some(newline) = unseen.iter().position(|&byte| byte == b'\n') {
                break seen + newline + 1;
            }
            seen += unseen.len();
            if input.fill()? == 0 {
                break seen;
            }
        };
        let text = std::str::from_utf8(&input.state.left()[..end]).map(|text| line.push_str(text));
        input.state.taken += end;
        text.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)).map(|()| end)
    }

    /// As [`std::io::Stdin::lines`]: an error is no end, and the call after it tries again. So what was stopped by a deadline can
    /// be gone on with outside of it; and inside, where each try is stopped, `lines().flatten()` never ends. Use
    /// `lines().map_while(Result::ok)`, or look at the errors.
    pub fn lines(self) -> Lines {
        Lines(self)
    }

    /// As [`IsTerminal::is_terminal`].
    pub fn is_terminal(&self) -> bool {
        STDIN.get_ref().is_terminal()
    }
}

impl State {
    fn left(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }
}

impl Inbox<'_> {
    /// Waits for more, and adds it to what is left. 0: the end.
    fn fill(&mut self) -> io::Result<usize> {
        self.state.bytes.drain(..self.state.taken);
        self.state.taken = 0;
        match self.read_more() {
            Err(error) if is_closed(&error) => Ok(0),
            read => read,
        }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        loop {
            if self.state.errand.is_none() {
                let mut buffer = [0; CHUNK_BYTES];
                match self.read(&mut buffer)? {
                    Attempt::Done(count) => {
                        self.state.bytes.extend_from_slice(&buffer[..count]);
                        return Ok(count);
                    }
                    Attempt::NeedsThread => self.state.errand = Some(Errand::send(read_chunk)),
                }
            }
            if let Some(errand) = &self.state.errand {
                errand.wait()?;
            }
            match self.state.errand.take().map_or(Ok(Ok(Vec::new())), Errand::take)? {
                Ok(bytes) => {
                    self.state.bytes.extend_from_slice(&bytes);
                    return Ok(bytes.len());
                }
                // Somebody else was faster, and the descriptor is in non-blocking mode.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reads on a thread that may wait.
fn read_chunk() -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut buffer))?;
    buffer.truncate(count);
    Ok(buffer)
}

impl Read for &Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut input = STDIN.take_turn()?;
        if input.state.left().is_empty() && !buffer.is_empty() {
            input.fill()?;
        }
        let count = input.state.left().read(buffer)?;
        input.state.taken += count;
        Ok(count)
    }
}

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl AsFd for Stdin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        STDIN.get_ref().as_fd()
    }
}

impl AsRawFd for Stdin {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stdin")
    }
}

/// The lines of standard input, as [`std::io::Lines`]. Made by [`Stdin::lines`], which says what comes after an error.
#[derive(Debug)]
pub struct Lines(Stdin);

impl Iterator for Lines {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => {
                let len =
                    line.strip_suffix('\n').map_or(line.len(), |text| text.strip_suffix('\r').unwrap_or(text).len());
                line.truncate(len);
                Some(Ok(line))
            }
            Err(error) => Some(Err(error)),
        }
    }
}
