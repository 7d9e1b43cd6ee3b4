//! The bytes that a full socket did not take.

use std::io::{self, Write};

/// What is still to be written to one socket. Empty, and without memory, as long as the peer reads.
#[derive(Debug, Default)]
pub struct Outgoing {
    unsent: Vec<u8>,
}

impl Outgoing {
    /// Whether bytes wait for room in the socket.
    pub fn is_stuck(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Writes `bytes` by one system call where the socket has room, and keeps what does not fit.
    /// Returns whether all of it went out.
    ///
    /// # Errors
    ///
    /// The socket's.
    #[inline]
    pub fn send(&mut self, socket: &mut impl Write, bytes: &[u8]) -> io::Result<bool> {
        debug_assert!(!self.is_stuck(), "new bytes must not overtake those that wait");
        let sent = written(socket, bytes)?;
        if sent < bytes.len() {
            self.unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(sent == bytes.len())
    }

    /// Tries again after the socket became writable. Returns whether nothing is left.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn resend(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        let sent = written(socket, &self.unsent)?;
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        Ok(self.unsent.is_empty())
    }
}

/// How many of the bytes one write took. A short write means that the socket is full: the next
/// event says when it is not.
#[inline]
fn written(socket: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Ok(sent) => return Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
