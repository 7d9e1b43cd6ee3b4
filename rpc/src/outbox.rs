//! The outgoing buffer of a connection: written by many, flushed at the end of a turn.
//!
//! ```text
//!   handlers, callers ──append──▶ buffer ──end of the turn──▶ one write ──▶ all taken: done
//!                                   ▲                             └─ socket full: a writer dhaga waits, then writes on
//!                                   └── above the limit of unsent bytes senders wait here
//! ```
//!
//! The first packet of what we send unasked leaves as soon as it is full: the peer works on it while the rest of the turn is
//! encoded. Answers wait for the end, since their reader is better woken once.
//!
//! A connection whose socket is full is *congested* by answers long before the limit: what the kernel holds for the peer is more than
//! it reads until there is room again, so that nothing is gained by answers that wait here. They may reach the limit only within a
//! turn. What we send unasked does not count: of two sides that push at once, each would wait for the other to read. Its
//! senders wait themselves at the limit, and with them all answers.
//!
//! A message is encoded outside of the lock, beside the buffer: that runs the user's `Serialize`, which might wait, and what one
//! sender sends leaves in the order in which it was sent, whatever others are encoding meanwhile.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhaga::Interrupt;
use dhaga::park::{self, Parked, WaitReason};
use dhaga::turn::{ShortGuard, ShortLock};

use crate::transport::Transport;
use crate::waiters::Waiters;

/// Capacity that a thread keeps for the next buffers. What is above it, from a large message or a burst, is freed.
const SPARE_BYTES_MAX: usize = 256 << 10;
/// What fills the first packet: the data of a segment on an Ethernet, less the usual option of TCP (RFC 9293, 3.7.1; RFC 7323, 3.2).
const PACKET_BYTES: usize = 1448;
/// Capacity of a new buffer: most messages fit in.
const FIRST_BYTES: usize = 128;
/// A full socket and this part of the limit in answers make a connection congested: 128 KiB by default, far less than what the kernel holds.
const CONGESTED_PART: usize = 8;
/// How long a peer may take nothing of what waits for it before the connection is given up.
pub const UNSENT_MUST_MOVE_WITHIN: Duration = Duration::from_secs(30);

/// What is yet to be sent on one connection.
pub(crate) struct Outbox {
    state: ShortLock<State>,
    unsent_max: usize,
    /// It was full or congested when it was last looked at under the lock.
    was_tight: AtomicBool,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    turn: Turn,
    /// A writer dhaga holds what the socket did not take.
    has_writer: bool,
    /// The rest of what a flush began: goes first, and nobody encodes into it, since it begins inside a message.
    head: Vec<u8>,
    /// Bytes of `head`, or of what the writer holds: all of them until the last has left, since so long they take memory.
    held: usize,
    /// What of the buffer, and of what is held, are answers.
    answers: Answers,
    held_answers: Answers,
    is_closed: bool,
    /// Senders for whom there is no room.
    waiting: Waiters,
}

/// How the buffer stands in the turn that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// Nobody will flush.
    #[default]
    Clean,
    /// The end of the turn will.
    Dirty,
    /// So it will, and a first packet has left before.
    Begun,
}

/// Bytes of answers. They go with the buffer in which they are.
#[derive(Clone, Copy, Default)]
struct Answers {
    bytes: usize,
    /// Of those that were appended without regard to the limit.
    unlimited: usize,
}

impl AddAssign for Answers {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.unlimited += other.unlimited;
    }
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It goes out with what was there before.
    Queued,
    /// It is the first of this turn: the caller asks for a flush at the turn's end.
    First,
    /// It fills the first packet of this turn: the caller flushes at once, and the end of the turn what comes behind.
    Packet,
    /// It meets the limit, and nobody has tried to send it: the caller flushes at once.
    Full,
    /// The connection has ended.
    Closed,
}

/// Why a sender got no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// None came before the deadline.
    Late,
    /// What [`park::check`] says.
    Interrupted(Interrupt),
}

impl From<Interrupt> for NoRoom {
    fn from(interrupt: Interrupt) -> Self {
        Self::Interrupted(interrupt)
    }
}

/// What became of a flush.
#[derive(Debug)]
pub(crate) enum Flushed {
    /// Everything was sent, or a writer is at it.
    Done,
    /// The socket is full: the caller starts a writer with [`Outbox::write_rest`].
    Full,
    /// The connection broke.
    Broken(io::Error),
}

/// A thread's spare buffers, so that a connection which is idle holds none. One for each of those that send in the same turn:
/// with a single one all others would grow theirs anew, in several steps.
struct Spares {
    buffers: RefCell<Vec<Vec<u8>>>,
    /// Their capacity in all.
    bytes: Cell<usize>,
}

thread_local! {
    static SPARES: Spares = const { Spares { buffers: RefCell::new(Vec::new()), bytes: Cell::new(0) } };
}

impl Spares {
    #[inline]
    fn take(&self) -> Option<Vec<u8>> {
        let buffer = self.buffers.borrow_mut().pop()?;
        self.bytes.set(self.bytes.get() - buffer.capacity());
        Some(buffer)
    }

    #[inline]
    fn keep(&self, mut buffer: Vec<u8>) {
        let bytes = self.bytes.get() + buffer.capacity();
        if buffer.capacity() > 0 && bytes <= SPARE_BYTES_MAX {
            buffer.clear();
            self.bytes.set(bytes);
            self.buffers.borrow_mut().push(buffer);
        }
    }
}

#[inline]
fn take_spare() -> Vec<u8> {
    // While the locals of a thread are destroyed there are no spares.
    let spare = SPARES.try_with(Spares::take).ok().flatten();
    spare.unwrap_or_else(|| Vec::with_capacity(FIRST_BYTES))
}

#[inline]
fn keep_spare(buffer: Vec<u8>) {
    let _ = SPARES.try_with(|spares| spares.keep(buffer));
}

impl Outbox {
    pub(crate) fn new(unsent_max: usize) -> Self {
        Self { state: ShortLock::default(), unsent_max, was_tight: AtomicBool::new(false) }
    }

    #[inline]
    fn lock(&self) -> ShortGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until there is room below the limit of unsent bytes. Suspends.
    ///
    /// # Errors
    ///
    /// The deadline passed first, or what [`park::check`] says.
    pub(crate) fn wait_for_room(&self, deadline: Option<Instant>) -> Result<(), NoRoom> {
        self.wait_while(|state| self.is_full(state), deadline)
    }

    /// Waits until more requests of the peer may begin: until it is not congested, and there is room if `answers_wait`. Suspends,
    /// whatever deadline has passed and whether or not it was cancelled: an answer must not be swallowed.
    pub(crate) fn wait_while_congested(&self, answers_wait: bool) {
        let mut place = Place { outbox: self, number: None };
        while self.takes_place(&mut place, |state| self.congests(state) || answers_wait && self.is_full(state)) {
            park::park(WaitReason::Write);
        }
    }

    fn wait_while(&self, is_so: impl Fn(&State) -> bool, deadline: Option<Instant>) -> Result<(), NoRoom> {
        let mut place = Place { outbox: self, number: None };
        loop {
            park::check()?;
            if !self.takes_place(&mut place, &is_so) {
                return Ok(());
            }
            if park::park_until(WaitReason::Write, deadline) == Parked::TimedOut {
                park::check()?;
                return Err(NoRoom::Late);
            }
        }
    }

    /// Among those who wait, if it is so and the outbox is open.
    fn takes_place(&self, place: &mut Place<'_>, is_so: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        let waits = !state.is_closed && is_so(&state);
        if waits {
            place.take(&mut state);
        }
        waits
    }

    /// Whether the peer takes less than it is answered.
    pub(crate) fn is_congested(&self) -> bool {
        self.congests(&self.lock())
    }

    /// Whether it was full or congested, without the lock: for whoever looks again under it if it is so, and adds no more than one
    /// message if it is not yet.
    #[inline]
    pub(crate) fn was_tight(&self) -> bool {
        self.was_tight.load(Ordering::Relaxed)
    }

    fn is_full(&self, state: &State) -> bool {
        state.unsent() >= self.unsent_max
    }

    fn congests(&self, state: &State) -> bool {
        let part = if state.has_writer { CONGESTED_PART } else { 1 };
        // However small the limit is, without answers it is not.
        state.answers.bytes + state.held_answers.bytes >= (self.unsent_max / part).max(1)
    }

    fn note_tightness(&self, state: &State) {
        if self.is_full(state) || self.congests(state) {
            self.was_tight.store(true, Ordering::Relaxed);
        }
    }

    /// After something has left; `was_congested` before that.
    fn wake_if_eased(&self, state: &mut State, was_congested: bool) {
        let (is_full, is_congested) = (self.is_full(state), self.congests(state));
        if !is_full && !is_congested {
            self.was_tight.store(false, Ordering::Relaxed);
        }
        if !is_full || was_congested && !is_congested {
            state.waiting.wake_all();
        }
    }

    /// Whether as much as may be unsent are answers that were appended without regard to that.
    pub(crate) fn is_flooded(&self) -> bool {
        let state = self.lock();
        state.answers.unlimited + state.held_answers.unlimited >= self.unsent_max
    }

    /// Whether everything was handed to the socket.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.unsent() == 0 && state.turn == Turn::Clean
    }

    /// Lets `encode` append to the buffer. Never waits by itself.
    pub(crate) fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Appended {
        let mut message = take_spare();
        encode(&mut message);
        let mut state = self.lock();
        let appended = if state.is_closed { Appended::Closed } else { self.put_unasked(&mut state, &mut message) };
        drop(state);
        keep_spare(message);
        appended
    }

    #[inline]
    fn put_unasked(&self, state: &mut State, message: &mut Vec<u8>) -> Appended {
        match state.buffer.is_empty() {
            true => std::mem::swap(&mut state.buffer, message),
            false => state.buffer.extend_from_slice(message),
        }
        self.note_tightness(state);
        state.mark_dirty_unasked()
    }

    /// Appends whole answers, however much is unsent.
    pub(crate) fn append_answers(&self, messages: &[u8]) -> Appended {
        let mut state = self.lock();
        match state.is_closed {
            true => Appended::Closed,
            false => self.put(&mut state, messages, Answers { bytes: messages.len(), unlimited: messages.len() }),
        }
    }

    /// Appends whole answers, if there is room below the limit of unsent bytes.
    pub(crate) fn try_append(&self, messages: &[u8]) -> Option<Appended> {
        let mut state = self.lock();
        if state.is_closed {
            return Some(Appended::Closed);
        }
        (!self.is_full(&state)).then(|| self.put(&mut state, messages, Answers { bytes: messages.len(), unlimited: 0 }))
    }

    #[inline]
    fn put(&self, state: &mut State, messages: &[u8], answers: Answers) -> Appended {
        if state.buffer.capacity() == 0 {
            state.buffer = take_spare();
        }
        state.buffer.extend_from_slice(messages);
        state.answers += answers;
        self.note_tightness(state);
        let is_full = !state.has_writer && state.buffer.len() >= self.unsent_max;
        if is_full { Appended::Full } else { state.mark_dirty() }
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&self, transport: &Transport) -> Flushed {
        let mut state = self.lock();
        state.turn = Turn::Clean;
        self.write(state, transport)
    }

    /// As [`flush`](Self::flush), before the turn ends, which flushes the rest.
    pub(crate) fn flush_packet(&self, transport: &Transport) -> Flushed {
        self.write(self.lock(), transport)
    }

    fn write(&self, mut state: ShortGuard<'_, State>, transport: &Transport) -> Flushed {
        if state.has_writer || state.is_closed {
            return Flushed::Done;
        }
        let mut written = 0;
        let outcome = loop {
            if written == state.buffer.len() {
                break Flushed::Done;
            }
            match transport.try_write(&state.buffer[written..]) {
                Ok(Some(count)) => written += count,
                Ok(None) => break Flushed::Full,
                Err(error) => break Flushed::Broken(error),
            }
        };
        let was_congested = self.congests(&state);
        let buffer = std::mem::take(&mut state.buffer);
        let answers = std::mem::take(&mut state.answers);
        match outcome {
            Flushed::Done => {
                self.wake_if_eased(&mut state, was_congested);
                drop(state);
                keep_spare(buffer);
            }
            _ => {
                state.head = buffer;
                state.head.drain(..written);
                state.held = state.head.len();
                state.held_answers = answers;
                state.has_writer = matches!(outcome, Flushed::Full);
                self.note_tightness(&state);
            }
        }
        outcome
    }

    /// Writes until nothing is left, and calls `has_eased` after each batch of several. Suspends; run by one dhaga at a time.
    ///
    /// # Errors
    ///
    /// The connection broke, or the peer took nothing for [`UNSENT_MUST_MOVE_WITHIN`].
    pub(crate) fn write_rest(&self, transport: &Transport, has_eased: impl Fn()) -> io::Result<()> {
        let mut batch = self.take_batch();
        while !batch.is_empty() {
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let count = self.write_some(transport, rest)?;
                rest = &rest[count..];
            }
            batch = self.take_batch();
            has_eased();
        }
        Ok(())
    }

    /// Waits until the transport takes something.
    fn write_some(&self, transport: &Transport, bytes: &[u8]) -> io::Result<usize> {
        let patience = park::now() + UNSENT_MUST_MOVE_WITHIN;
        loop {
            if let Some(count) = transport.try_write(bytes)? {
                return Ok(count);
            }
            // Our own end of a pipe tells nobody that it is closed.
            if self.lock().is_closed {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let left = patience.saturating_duration_since(park::now());
            if left.is_zero() {
                return Err(stalled());
            }
            transport.wait_for_room(left)?;
        }
    }

    /// The next bytes for the writer. None left: the writer's time is over.
    fn take_batch(&self) -> Vec<u8> {
        let mut state = self.lock();
        let was_congested = self.congests(&state);
        let mut batch = std::mem::take(&mut state.head);
        if batch.is_empty() {
            batch = std::mem::take(&mut state.buffer);
            state.held_answers = std::mem::take(&mut state.answers);
        }
        state.held = batch.len();
        state.has_writer = !batch.is_empty();
        self.wake_if_eased(&mut state, was_congested);
        batch
    }

    /// Takes nothing more, drops what is unsent, and lets all senders go on. Returns whether it was open.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.lock();
        state.buffer = Vec::new();
        state.head = Vec::new();
        state.held = 0;
        (state.answers, state.held_answers) = Default::default();
        state.turn = Turn::Clean;
        self.was_tight.store(false, Ordering::Relaxed);
        state.waiting.wake_all();
        !std::mem::replace(&mut state.is_closed, true)
    }
}

/// A place in the queue for room, left however the wait ends.
struct Place<'a> {
    outbox: &'a Outbox,
    number: Option<u64>,
}

impl Place<'_> {
    /// Whoever was woken in vain keeps its place: else who is first would go on, wait again, and be first for ever.
    fn take(&mut self, state: &mut State) {
        match self.number {
            Some(number) => state.waiting.join_again(number),
            None => self.number = Some(state.waiting.join()),
        }
    }

    fn leave(&mut self, state: &mut State) {
        if let Some(number) = self.number.take() {
            state.waiting.leave(number);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.number.is_some() {
            self.leave(&mut self.outbox.lock());
        }
    }
}

fn stalled() -> io::Error {
    let seconds = UNSENT_MUST_MOVE_WITHIN.as_secs();
    io::Error::new(io::ErrorKind::TimedOut, format!("the peer took none of its bytes for {seconds} s"))
}

impl State {
    fn unsent(&self) -> usize {
        self.buffer.len() + self.held
    }

    #[inline]
    fn mark_dirty(&mut self) -> Appended {
        if self.turn != Turn::Clean {
            return Appended::Queued;
        }
        self.turn = Turn::Dirty;
        Appended::First
    }

    /// As [`mark_dirty`](Self::mark_dirty), for what is no answer.
    #[inline]
    fn mark_dirty_unasked(&mut self) -> Appended {
        let is_packet =
            self.turn == Turn::Dirty && self.buffer.len() - self.answers.bytes >= PACKET_BYTES && !self.has_writer;
        if is_packet {
            self.turn = Turn::Begun;
            return Appended::Packet;
        }
        self.mark_dirty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than the kernel buffers of a connection that nobody reads.
    const LARGE: usize = 64 << 20;

    #[test]
    fn the_rest_of_a_half_sent_message_goes_first_and_nobody_encodes_into_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port can be had");
        let address = listener.local_addr().expect("it is bound");
        let stream = dhaga::net::TcpStream::connect(address).expect("it listens").into();
        let outbox = Outbox::new(usize::MAX);
        outbox.append(|buffer| buffer.resize(LARGE, 1));
        assert!(matches!(outbox.flush(&stream), Flushed::Full));
        outbox.append(|buffer| {
            assert!(buffer.is_empty(), "a message is put behind half of another");
            buffer.push(2);
        });
        let head = outbox.take_batch();
        assert!(!head.is_empty() && head.iter().all(|byte| *byte == 1));
        assert_eq!(outbox.take_batch(), [2]);
    }

    #[test]
    fn messages_leave_in_the_order_of_their_sender_although_another_is_being_encoded() {
        let (near, far) = Transport::pair().expect("there are descriptors");
        let outbox = Outbox::new(usize::MAX);
        let send = |byte| outbox.append(|buffer| buffer.push(byte));
        assert_eq!(send(1), Appended::First);
        // `Serialize` waits, and meanwhile who has sent the first sends a second, and the turn ends.
        outbox.append(|buffer| {
            send(2);
            assert!(matches!(outbox.flush(&near), Flushed::Done));
            buffer.push(3);
        });
        assert!(matches!(outbox.flush(&near), Flushed::Done));
        let mut sent = [0; 4];
        assert_eq!(far.try_read(&mut sent).expect("it is open"), Some(3));
        assert_eq!(sent[..3], [1, 2, 3]);
    }

    #[test]
    fn of_a_message_whose_encoder_panics_nothing_leaves_and_the_others_do() {
        let (near, far) = Transport::pair().expect("there are descriptors");
        let outbox = Outbox::new(usize::MAX);
        assert_eq!(outbox.append(|buffer| buffer.push(1)), Appended::First);
        let panics = |buffer: &mut Vec<u8>| {
            buffer.push(2);
            panic!("in the middle of a message");
        };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| outbox.append(panics)));
        assert!(panicked.is_err());
        assert!(matches!(outbox.flush(&near), Flushed::Done));
        let mut sent = [0; 4];
        assert_eq!(far.try_read(&mut sent).expect("it is open"), Some(1));
    }

    #[test]
    fn the_first_packet_of_what_is_sent_unasked_leaves_before_the_turn_ends_and_no_other() {
        let (near, far) = Transport::pair().expect("there are descriptors");
        let outbox = Outbox::new(usize::MAX);
        let request = |bytes| outbox.append(|buffer| buffer.resize(buffer.len() + bytes, 1));
        for _ in 0..2 {
            assert_eq!(outbox.append_answers(&[2; PACKET_BYTES]), Appended::First);
            assert_eq!(outbox.append_answers(&[2; PACKET_BYTES]), Appended::Queued, "answers wait for the end");
            assert_eq!(request(PACKET_BYTES - 1), Appended::Queued, "the packet is not full");
            assert_eq!(request(1), Appended::Packet);
            assert!(matches!(outbox.flush_packet(&near), Flushed::Done));
            let mut sent = [0; 4 * PACKET_BYTES];
            assert_eq!(far.try_read(&mut sent).expect("it is open"), Some(3 * PACKET_BYTES));
            assert_eq!(request(2 * PACKET_BYTES), Appended::Queued, "the end of the turn flushes the rest");
            assert!(!outbox.is_empty());
            assert!(matches!(outbox.flush(&near), Flushed::Done));
            assert_eq!(far.try_read(&mut sent).expect("it is open"), Some(2 * PACKET_BYTES));
            assert!(outbox.is_empty());
        }
        assert_eq!(request(2 * PACKET_BYTES), Appended::First, "a large one that is alone leaves at the end");
    }

    #[test]
    fn answers_are_counted_until_they_have_left() {
        let (near, _far) = Transport::pair().expect("there are descriptors");
        let outbox = Outbox::new(1);
        outbox.append_answers(&[1]);
        let is_congested = || (outbox.was_tight() && outbox.is_congested(), outbox.is_flooded());
        assert_eq!(is_congested(), (true, true));
        outbox.append(|buffer| buffer.push(2));
        assert_eq!(is_congested(), (true, true), "an answer is forgotten");
        assert!(matches!(outbox.flush(&near), Flushed::Done));
        assert_eq!(is_congested(), (false, false), "an answer that has left is counted");
    }

    #[test]
    fn without_answers_none_is_held_up_however_small_the_limit_is() {
        let (near, _far) = Transport::pair().expect("there are descriptors");
        let outbox = Outbox::new(1);
        outbox.append(|buffer| buffer.resize(LARGE, 1));
        assert!(matches!(outbox.flush(&near), Flushed::Full));
        assert!(!outbox.is_congested() && !outbox.is_flooded());
    }

    #[test]
    fn each_of_those_that_sent_together_leaves_its_buffer_within_bounds() {
        let spares = Spares { buffers: RefCell::default(), bytes: Cell::new(0) };
        let some = SPARE_BYTES_MAX / 4;
        (0..10).for_each(|_| spares.keep(Vec::with_capacity(some)));
        spares.keep(Vec::new());
        let kept = std::iter::from_fn(|| spares.take()).inspect(|buffer| assert!(buffer.capacity() >= some)).count();
        assert_eq!((kept, spares.bytes.get()), (4, 0), "a buffer is lost or kept above the bound");
    }

    #[test]
    fn who_waited_for_room_in_vain_leaves_no_place_behind() {
        let outbox = Outbox::new(1);
        outbox.append(|buffer| buffer.push(1));
        for _ in 0..10 {
            assert_eq!(outbox.wait_for_room(Some(Instant::now())), Err(NoRoom::Late));
        }
        assert!(outbox.lock().waiting.is_empty());
    }
}
