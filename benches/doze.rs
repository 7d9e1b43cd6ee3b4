//! Waiting for events: blocking at once, or dozing first. To doze is to poll without blocking for
//! some microseconds after useful work, since waking a blocked thread costs more than the answer
//! that it waits for.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

/// How a loop waits.
#[derive(Clone, Copy, Debug)]
pub struct Doze {
    limit: Duration,
}

impl Doze {
    /// Polls for up to `limit` before it blocks; zero means to block at once.
    pub fn new(limit: Duration) -> Doze {
        Doze { limit }
    }

    /// Fills `events`; an empty set means that `block_max` went by (`None` waits for ever) or that
    /// a signal came.
    ///
    /// # Errors
    ///
    /// The kernel's, from `epoll_wait`.
    pub fn wait(&self, poll: &mut Poll, events: &mut Events, block_max: Option<Duration>) -> io::Result<()> {
        if self.limit > Duration::ZERO && self.events_while_dozing(poll, events)? {
            return Ok(());
        }
        uninterrupted(poll.poll(events, block_max))
    }

    /// The clock is read only after an empty poll, so that a busy loop never reads it.
    fn events_while_dozing(&self, poll: &mut Poll, events: &mut Events) -> io::Result<bool> {
        let mut give_up_at = None;
        loop {
            uninterrupted(poll.poll(events, Some(Duration::ZERO)))?;
            if !events.is_empty() {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= *give_up_at.get_or_insert(now + self.limit) {
                return Ok(false);
            }
        }
    }
}

fn uninterrupted(polled: io::Result<()>) -> io::Result<()> {
    match polled {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}
