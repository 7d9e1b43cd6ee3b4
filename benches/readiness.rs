//! What is known of a socket since its last event. With edge-triggered events nobody says it twice.

use mio::event::Event;

/// The bits of one socket. Each says that a system call is worth trying, so none is tried in vain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    /// A read may find bytes.
    pub readable: bool,
    /// The peer has sent its last byte: a read finds the end, and no event will say so again.
    pub read_closed: bool,
}

impl Readiness {
    /// Sets what the event says; clears nothing.
    pub fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable();
        self.read_closed |= event.is_read_closed() || event.is_error();
    }

    /// After a read that did not fill its buffer: nothing is left, unless it is the end.
    #[inline]
    pub fn note_short_read(&mut self) {
        self.readable = self.read_closed;
    }
}
