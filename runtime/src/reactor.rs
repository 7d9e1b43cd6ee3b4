//! The mio poll of one worker and its slab of sources: who became ready, and nothing more.
//!
//! A source is registered once, edge-triggered, for both directions, and remembers its readiness in bits, so that a wait
//! costs no system call and an attempt that must fail is not made. The bits share a word with a counter of events: who
//! clears a bit does so only if no event came since it looked.
//!
//! ```text
//!   31 ......... 4   3             2             1          0
//!   ┌───────────────┬─────────────┬─────────────┬──────────┬──────────┐
//!   │ events seen   │ registered  │ read closed │ writable │ readable │
//!   └───────────────┴─────────────┴─────────────┴──────────┴──────────┘
//! ```

mod futures;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use mio::unix::SourceFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slab::Slab;

use crate::atomic::{AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering, lock};
use crate::coroutine::{CACHE_LINE_BYTES, prefetch_lines};
use crate::run_queue::{Address, Doorbell};

use self::futures::Places;
pub(crate) use self::futures::{FutureWaker, WakerRef};

const READABLE: u32 = 1;
const WRITABLE: u32 = 2;
const READ_CLOSED: u32 = 4;
const REGISTERED: u32 = 8;
const EVENT: u32 = 16;

/// Events taken from the kernel in one poll. What is over comes in the next one.
const EVENTS_MAX: usize = 1024;
/// Events whose sources come near while the ones before are delivered, which takes some 20 ns each: a miss is as long as five.
const EVENTS_AHEAD: usize = 4;
/// Events whose callbacks do.
const CALLBACKS_AHEAD: usize = 2;
const WAKE_TOKEN: mio::Token = mio::Token(usize::MAX);
/// A token is a slab key in its low half and the key's generation in its high half: a key that is used again does not
/// receive the last events of its former owner.
const KEY_BITS: u32 = 32;

/// Counts registrations of all reactors: a late message for one that has gone must not fit its successor.
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// One of the two ways of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    fn bit(self) -> u32 {
        match self {
            Self::Read => READABLE,
            Self::Write => WRITABLE,
        }
    }
}

/// The word as somebody saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen(u32);

impl Seen {
    #[inline(always)]
    pub(crate) fn is_ready(self, direction: Direction) -> bool {
        self.0 & direction.bit() != 0
    }

    /// Whether a reactor tells of its events.
    pub(crate) fn is_registered(self) -> bool {
        self.0 & REGISTERED != 0
    }

    /// Whether the peer has sent its end, or something urgent, or the socket has failed: a short read says nothing, and no
    /// further event will tell of it.
    pub(crate) fn is_read_closed(self) -> bool {
        self.0 & READ_CLOSED != 0
    }
}

/// How a waiter left the queue of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// No event had come for it.
    Unwoken,
    /// An event woke it, and nobody else waits.
    Woken,
    /// An event woke it, and others wait behind it.
    WokenBeforeOthers,
}

/// Who is told when a source becomes readable, instead of a waiter. Belongs to our crates, runs on a worker's own
/// context, and may only push.
pub trait OnReady: Send + Sync {
    /// Called once for each event that makes the source readable.
    fn on_ready(self: Arc<Self>);

    /// Called instead when the reactor has gone, with its runtime: no event will ever come again.
    fn on_abandoned(self: Arc<Self>) {}

    /// Called shortly before [`on_ready`](Self::on_ready) where many are called in a row, to ask for memory that it will touch
    /// besides the callback itself.
    fn bring_near(&self) {}
}

/// Readiness and waiters of one source. Shared between the reactor that learns of events and whoever waits. `W` names a
/// waiter.
///
/// Who finds a direction not ready takes the lock of the waiters, looks once more, and queues; the reactor changes the word
/// before it takes that lock. One of them is first, so either the waiter sees the event or the reactor sees the waiter.
///
/// What an event touches fills one cache line: with thousands of sources every line is a miss.
#[repr(align(64))]
pub(crate) struct Readiness<W = Address> {
    word: AtomicU32,
    /// Whether anybody waits, by direction. Changes under the lock, and is read without it by who was woken: mostly nobody
    /// waits then, and so neither does the reader.
    has_waiters: [AtomicBool; 2],
    /// Where the count of the callback lies: a hint for who does not wait for the lock.
    callback_at: AtomicUsize,
    waiters: Mutex<Waiters<W>>,
}

#[cfg(not(all(test, loom)))]
const _: () = assert!(size_of::<Readiness>() == 64, "an event touches one line of a source");

/// Nearly always one who reads, or a callback instead.
struct Waiters<W> {
    reader: Option<W>,
    callback: Option<Arc<dyn OnReady>>,
    /// Made for the first of them, and kept.
    others: Option<Box<Others<W>>>,
}

/// Who waits for a source besides its first reader.
struct Others<W> {
    /// Behind the first one.
    readers: VecDeque<W>,
    writers: VecDeque<W>,
    /// By direction.
    futures: [Places; 2],
}

impl<W> Default for Waiters<W> {
    fn default() -> Self {
        Self { reader: None, callback: None, others: None }
    }
}

impl<W> Default for Others<W> {
    fn default() -> Self {
        Self { readers: VecDeque::new(), writers: VecDeque::new(), futures: Default::default() }
    }
}

impl<W: Copy + PartialEq> Waiters<W> {
    #[cold]
    fn others(&mut self) -> &mut Others<W> {
        self.others.get_or_insert_default()
    }

    fn is_empty(&self, direction: Direction) -> bool {
        match direction {
            Direction::Read => self.reader.is_none(),
            Direction::Write => self.others.as_ref().is_none_or(|others| others.writers.is_empty()),
        }
    }

    #[inline(always)]
    fn push(&mut self, direction: Direction, waiter: W) {
        match direction {
            Direction::Read if self.reader.is_none() => self.reader = Some(waiter),
            Direction::Read => self.others().readers.push_back(waiter),
            Direction::Write => self.others().writers.push_back(waiter),
        }
    }

    #[inline(always)]
    fn pop(&mut self, direction: Direction) -> Option<W> {
        let others = self.others.as_mut();
        match direction {
            Direction::Read => {
                std::mem::replace(&mut self.reader, others.and_then(|others| others.readers.pop_front()))
            }
            Direction::Write => others.and_then(|others| others.writers.pop_front()),
        }
    }

    /// Returns whether it was there.
    fn remove(&mut self, direction: Direction, waiter: W) -> bool {
        if direction == Direction::Read && self.reader == Some(waiter) {
            self.pop(direction);
            return true;
        }
        self.others.as_mut().is_some_and(|others| {
            let queue = if direction == Direction::Read { &mut others.readers } else { &mut others.writers };
            let at = queue.iter().position(|entry| *entry == waiter);
            at.is_some_and(|at| queue.remove(at).is_some())
        })
    }

    #[inline(always)]
    fn take_futures(&mut self, direction: Direction, report: impl FnMut(FutureWaker)) {
        if let Some(others) = &mut self.others {
            others.futures[direction as usize].take(report);
        }
    }
}

impl<W: Copy + PartialEq> Default for Readiness<W> {
    /// Ready in both directions until an attempt shows the contrary.
    fn default() -> Self {
        Self {
            word: AtomicU32::new(READABLE | WRITABLE),
            has_waiters: [AtomicBool::new(false), AtomicBool::new(false)],
            callback_at: AtomicUsize::new(0),
            waiters: Mutex::new(Waiters::default()),
        }
    }
}

impl<W: Copy + PartialEq> Readiness<W> {
    #[inline(always)]
    pub(crate) fn look(&self) -> Seen {
        Seen(self.word.load(Ordering::SeqCst))
    }

    /// Notes that an attempt after `seen` took all there was. Keeps the bit when an event came since, and when the peer
    /// has closed, since no event will come again.
    #[inline(always)]
    pub(crate) fn clear(&self, seen: Seen, direction: Direction) {
        if direction == Direction::Read && seen.is_read_closed() {
            return;
        }
        self.clear_bits(seen, direction.bit());
    }

    /// Notes that an attempt after `seen` would have blocked, unless an event came since. What looked like the peer's end
    /// was none, or it would have told: an error of one datagram, or a writer of a FIFO that has a successor.
    pub(crate) fn clear_blocked(&self, seen: Seen, direction: Direction) {
        self.clear_bits(seen, if direction == Direction::Read { READABLE | READ_CLOSED } else { WRITABLE });
    }

    #[inline(always)]
    fn clear_bits(&self, seen: Seen, bits: u32) {
        let mut current = seen.0;
        // The other direction's bit may change meanwhile; only another event counts as news.
        while let Err(now) = self.word.compare_exchange(current, current & !bits, Ordering::SeqCst, Ordering::SeqCst) {
            if now / EVENT != seen.0 / EVENT {
                return;
            }
            current = now;
        }
    }

    /// Before registration: what can be read, the kernel tells from now on; a new socket takes what is written.
    fn begin(&self) {
        self.word.store(REGISTERED | WRITABLE, Ordering::SeqCst);
    }

    /// Nobody tells of events: ready until an attempt shows the contrary.
    fn disown(&self) {
        self.word.store(READABLE | WRITABLE, Ordering::SeqCst);
    }

    /// After its reactor has gone: whoever waits tries again and, on finding nothing, registers the source anew. Returns the
    /// callback, which may own the source, others of the same reactor, and much else.
    #[must_use = "dropping it may close sources, which takes the reactor again"]
    fn orphan(&self, report: &mut impl FnMut(Report<W>)) -> Option<Arc<dyn OnReady>> {
        self.disown();
        let mut waiters = self.lock();
        let callback = waiters.callback.take();
        for direction in [Direction::Read, Direction::Write] {
            while let Some(waiter) = self.pop(&mut waiters, direction) {
                report(Report::Waiter(waiter));
            }
            waiters.take_futures(direction, |waker| report(Report::Future(waker)));
        }
        callback
    }

    /// Queues a waiter, unless the direction became ready meanwhile, or its reactor has gone. Returns whether it was queued.
    #[inline(always)]
    pub(crate) fn enqueue(&self, direction: Direction, waiter: W) -> bool {
        let mut waiters = self.lock();
        if !self.is_awaited(direction) {
            return false;
        }
        waiters.push(direction, waiter);
        self.has_waiters(direction).store(true, Relaxed);
        true
    }

    /// Whether an event will tell of this direction. Asked under the lock, by which whoever orphans it finds who waits.
    #[inline(always)]
    fn is_awaited(&self, direction: Direction) -> bool {
        let seen = self.look();
        seen.is_registered() && !seen.is_ready(direction)
    }

    #[inline(always)]
    fn pop(&self, waiters: &mut Waiters<W>, direction: Direction) -> Option<W> {
        let first = waiters.pop(direction);
        self.has_waiters(direction).store(!waiters.is_empty(direction), Relaxed);
        first
    }

    #[inline(always)]
    fn has_waiters(&self, direction: Direction) -> &AtomicBool {
        &self.has_waiters[direction as usize]
    }

    /// Takes a waiter out of the queue, if it is still there.
    #[inline]
    pub(crate) fn dequeue(&self, direction: Direction, waiter: W) -> Left {
        // Who queued wrote `true` itself, so `false` was written later: by whoever took it out, as the last one.
        if !self.has_waiters(direction).load(Relaxed) {
            return Left::Woken;
        }
        self.dequeue_among_others(direction, waiter)
    }

    #[cold]
    fn dequeue_among_others(&self, direction: Direction, waiter: W) -> Left {
        let mut waiters = self.lock();
        if waiters.remove(direction, waiter) {
            self.has_waiters(direction).store(!waiters.is_empty(direction), Relaxed);
            return Left::Unwoken;
        }
        if waiters.is_empty(direction) { Left::Woken } else { Left::WokenBeforeOthers }
    }

    /// The next waiter, if the direction is still ready: who took something and left more passes the turn on.
    pub(crate) fn next_waiter(&self, direction: Direction) -> Option<W> {
        let mut waiters = self.lock();
        if self.look().is_ready(direction) { self.pop(&mut waiters, direction) } else { None }
    }

    /// As an event that the kernel does not send: the direction counts as ready. Returns who is to be woken first.
    pub(crate) fn set_ready(&self, direction: Direction) -> Option<W> {
        self.note(direction.bit());
        self.next_waiter(direction)
    }

    /// Sends the readable events to `callback` from now on.
    pub(crate) fn set_callback(&self, callback: Option<Arc<dyn OnReady>>) {
        self.callback_at.store(callback.as_ref().map_or(0, count_of), Relaxed);
        let old = std::mem::replace(&mut self.lock().callback, callback);
        drop(old);
    }

    /// Asks the processor for the count of the callback.
    #[inline(always)]
    fn prefetch_callback(&self) {
        prefetch_lines(self.callback_at.load(Relaxed), 1);
    }

    fn lock(&self) -> MutexGuard<'_, Waiters<W>> {
        lock(&self.waiters)
    }

    fn note(&self, bits: u32) {
        let add = |word: u32| Some((word | bits).wrapping_add(EVENT));
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
    }

    /// Adds the event to the word, then reports whom it concerns.
    fn deliver(&self, bits: u32, report: &mut impl FnMut(Report<W>)) {
        self.note(bits);
        let mut waiters = self.lock();
        // One after the other and not in a loop, which would be one at run time, too.
        self.deliver_to(Direction::Read, bits, &mut waiters, report);
        self.deliver_to(Direction::Write, bits, &mut waiters, report);
        if bits & READABLE != 0
            && let Some(callback) = &waiters.callback
        {
            report(Report::Callback(callback.clone()));
        }
    }

    #[inline(always)]
    fn deliver_to(
        &self,
        direction: Direction,
        bits: u32,
        waiters: &mut Waiters<W>,
        report: &mut impl FnMut(Report<W>),
    ) {
        if bits & direction.bit() == 0 {
            return;
        }
        let everybody = bits & READ_CLOSED != 0;
        // Most events are for one direction, and come for both.
        while self.has_waiters(direction).load(Relaxed)
            && let Some(waiter) = self.pop(waiters, direction)
        {
            report(Report::Waiter(waiter));
            if !everybody {
                break;
            }
        }
        waiters.take_futures(direction, |waker| report(Report::Future(waker)));
    }
}

/// Lines that are asked for ahead at most, of one that is to be called.
const LINES_AHEAD_MAX: usize = 16;

/// Where the counts lie: in front of the value.
fn count_of<T: ?Sized>(callback: &Arc<T>) -> usize {
    Arc::as_ptr(callback).addr() - 2 * size_of::<usize>()
}

/// Asks the processor for one that is to be called soon, counts included. Touches nothing of it.
#[inline]
pub(crate) fn prefetch_shared<T: ?Sized>(shared: &Arc<T>) {
    let (first, end) = (count_of(shared), Arc::as_ptr(shared).addr() + size_of_val(&**shared));
    let start = first & !(CACHE_LINE_BYTES - 1);
    prefetch_lines(start, (end - start).div_ceil(CACHE_LINE_BYTES).min(LINES_AHEAD_MAX));
}

/// What a turn of the reactor reports to the scheduler.
pub(crate) enum Report<W = Address> {
    /// This dhaga's source is ready; it may live on another worker.
    Waiter(W),
    /// This future's source is ready.
    Future(FutureWaker),
    /// This source's callback wants to push.
    Callback(Arc<dyn OnReady>),
}

/// The mio poll of one worker and its sources.
pub(crate) struct Reactor {
    poll: mio::Poll,
    events: mio::Events,
    sources: Slab<(u32, Arc<Readiness>)>,
}

impl Reactor {
    /// A reactor, and what other threads rouse it with.
    ///
    /// # Errors
    ///
    /// The kernel refused an epoll or eventfd descriptor.
    pub(crate) fn new() -> io::Result<(Self, Doorbell)> {
        let poll = mio::Poll::new()?;
        let doorbell =
            Doorbell { waker: mio::Waker::new(poll.registry(), WAKE_TOKEN)?, registry: poll.registry().try_clone()? };
        let events = mio::Events::with_capacity(EVENTS_MAX);
        Ok((Self { poll, events, sources: Slab::new() }, doorbell))
    }

    /// Registers a source, whose readiness the kernel tells from now on. Returns its token.
    pub(crate) fn register(&mut self, descriptor: RawFd, readiness: &Arc<Readiness>) -> io::Result<usize> {
        let generation = GENERATION.fetch_add(1, Relaxed) as u32 & (u32::MAX >> 1);
        let entry = self.sources.vacant_entry();
        let token = mio::Token(entry.key() | (generation as usize) << KEY_BITS);
        let interest = mio::Interest::READABLE | mio::Interest::WRITABLE | mio::Interest::PRIORITY;
        readiness.begin();
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&descriptor), token, interest) {
            readiness.disown();
            return Err(error);
        }
        entry.insert((generation, readiness.clone()));
        Ok(token.0)
    }

    /// Drops a source's entry, unless its place belongs to another by now. Its descriptor was taken out of the interest
    /// list before. Returns the entry, which the caller drops once the reactor is free.
    #[must_use = "dropping it may close sources, which takes the reactor again"]
    pub(crate) fn forget(&mut self, token: usize) -> Option<Arc<Readiness>> {
        self.find(token)?;
        Some(self.sources.remove(token & u32::MAX as usize).1)
    }

    /// How many sources it knows.
    pub(crate) fn len(&self) -> usize {
        self.sources.len()
    }

    fn find(&self, token: usize) -> Option<&Arc<Readiness>> {
        let (generation, readiness) = self.sources.get(token & u32::MAX as usize)?;
        (*generation as usize == token >> KEY_BITS).then_some(readiness)
    }

    /// Asks the processor for what an event of the source will touch.
    #[inline(always)]
    fn prefetch(&self, token: mio::Token) {
        if let Some(readiness) = self.find(token.0) {
            prefetch_lines(Arc::as_ptr(readiness).addr(), 1);
        }
    }

    /// As [`prefetch`](Self::prefetch), for the count of its callback; the source itself is near by then.
    #[inline(always)]
    fn prefetch_callback(&self, token: mio::Token) {
        if let Some(readiness) = self.find(token.0) {
            readiness.prefetch_callback();
        }
    }

    /// Waits for events up to `timeout` (`None`: for ever), and reports whom they concern. Returns how many came.
    pub(crate) fn turn(&mut self, timeout: Option<Duration>, mut report: impl FnMut(Report)) -> usize {
        let timeout = timeout.map(|timeout| self.wait_below_resolution(timeout));
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return 0,
            Err(error) => {
                panic!("epoll_wait of a live descriptor and a live buffer cannot fail: {error}")
            }
        }
        let mut count = 0;
        let (mut ahead, mut nearer) = (self.events.iter(), self.events.iter());
        ahead.by_ref().take(EVENTS_AHEAD).for_each(|event| self.prefetch(event.token()));
        nearer.by_ref().take(CALLBACKS_AHEAD).for_each(|event| self.prefetch_callback(event.token()));
        for event in &self.events {
            if let Some(event) = ahead.next() {
                self.prefetch(event.token());
            }
            if let Some(event) = nearer.next() {
                self.prefetch_callback(event.token());
            }
            count += 1;
            if event.token() == WAKE_TOKEN {
                continue;
            }
            if let Some(readiness) = self.find(event.token().0) {
                readiness.deliver(bits_of(event), &mut report);
            }
        }
        count
    }

    /// epoll counts whole milliseconds, and mio rounds up: a deadline would be late by as much. What is left below one is waited
    /// for by `ppoll(2)`, which counts nanoseconds; of more, the whole milliseconds come first, and the caller asks again for
    /// the rest. So a deadline costs a wake and a call more, and an event nothing. Returns how long the poll is to wait.
    #[inline]
    fn wait_below_resolution(&self, timeout: Duration) -> Duration {
        let whole = Duration::from_millis(timeout.as_millis().try_into().unwrap_or(u64::MAX));
        if whole.is_zero() && !timeout.is_zero() {
            // A signal, or an epoll that cannot be polled: then the poll finds nothing, and the caller asks again.
            let _ = poll(
                &mut [PollFd::new(self.poll.registry(), PollFlags::IN)],
                Timespec::try_from(timeout).ok().as_ref(),
            );
        }
        whole
    }

    /// Sends every source back to its owner as unregistered and ready, so that whoever waits for it tries again and, on
    /// finding nothing, registers it with a worker that lives. Returns the callbacks, which the caller drops once the reactor
    /// is free.
    #[must_use = "dropping them may close sources, which takes the reactor again"]
    pub(crate) fn close(&mut self, mut report: impl FnMut(Report)) -> Vec<Arc<dyn OnReady>> {
        self.sources.drain().filter_map(|(_, readiness)| readiness.orphan(&mut report)).collect()
    }
}

fn bits_of(event: &mio::event::Event) -> u32 {
    let failed = event.is_error();
    let mut bits = 0;
    if event.is_readable() || failed {
        bits |= READABLE;
    }
    // Both ways closed: who writes must learn of it, also where the buffer is full.
    if event.is_writable() || event.is_write_closed() || failed {
        bits |= WRITABLE;
    }
    // A read ends before a byte that TCP was sent as urgent: what lies behind it counts as what lies before the peer's end,
    // until an attempt finds nothing.
    if event.is_read_closed() || failed || (event.is_readable() && event.is_priority()) {
        bits |= READABLE | READ_CLOSED;
    }
    bits
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    type Readiness = super::Readiness<Address>;

    fn reactor() -> Reactor {
        Reactor::new().expect("a test can make an epoll").0
    }

    fn pipe() -> io::PipeReader {
        io::pipe().expect("a test can make a pipe").0
    }

    #[test]
    fn a_place_is_forgotten_for_its_own_source_only() {
        let (mut reactor, first, second) = (reactor(), pipe(), pipe());
        let token = reactor.register(first.as_raw_fd(), &Arc::default()).expect("a pipe can be watched");
        drop(reactor.forget(token));
        assert!(reactor.sources.is_empty());
        reactor.register(second.as_raw_fd(), &Arc::default()).expect("so can another");
        drop(reactor.forget(token));
        assert_eq!(reactor.sources.len(), 1, "a late message for the place's last owner");
    }

    #[test]
    fn a_source_that_cannot_be_registered_stays_ready() {
        let readiness = Arc::default();
        reactor().register(-1, &readiness).expect_err("no descriptor has this number");
        let seen = readiness.look();
        assert!(!seen.is_registered() && seen.is_ready(Direction::Read) && seen.is_ready(Direction::Write));
    }

    #[test]
    fn nobody_waits_for_a_source_whose_reactor_has_gone() {
        let readiness = super::Readiness::<u32>::default();
        readiness.begin();
        // Here somebody looks, and finds it registered.
        drop(readiness.orphan(&mut |_| panic!("nobody waits yet")));
        readiness.clear_blocked(readiness.look(), Direction::Read);
        let waker = WakerRef::Own(std::task::Waker::noop());
        assert!(!readiness.leave_word(&mut None, Direction::Read, waker), "no event would wake it");
        assert!(!readiness.enqueue(Direction::Read, 1), "no event would wake it");
    }

    #[test]
    fn an_event_that_comes_during_an_attempt_is_not_cleared() {
        let readiness = Readiness::default();
        readiness.begin();
        readiness.note(READABLE);
        let seen = readiness.look();
        readiness.note(READABLE);
        readiness.clear(seen, Direction::Read);
        assert!(readiness.look().is_ready(Direction::Read));
        readiness.clear(readiness.look(), Direction::Read);
        assert!(!readiness.look().is_ready(Direction::Read));
    }

    #[test]
    fn after_the_peers_end_a_source_stays_readable() {
        let readiness = Readiness::default();
        readiness.begin();
        readiness.note(READABLE | READ_CLOSED);
        readiness.clear(readiness.look(), Direction::Read);
        assert!(readiness.look().is_ready(Direction::Read));
    }

    #[test]
    fn an_end_after_which_a_read_would_block_was_none() {
        let readiness = Readiness::default();
        readiness.begin();
        readiness.note(READABLE | READ_CLOSED);
        let seen = readiness.look();
        readiness.note(READABLE);
        readiness.clear_blocked(seen, Direction::Read);
        assert!(readiness.look().is_ready(Direction::Read), "an event came since");
        readiness.clear_blocked(readiness.look(), Direction::Read);
        assert!(!readiness.look().is_ready(Direction::Read) && !readiness.look().is_read_closed());
        assert!(readiness.look().is_ready(Direction::Write));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::model;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    /// A socket at a poll, and the bell that stands for the reader's unpark.
    struct Socket {
        bytes: Mutex<usize>,
        readiness: Readiness<u32>,
        bell: Notify,
    }

    impl Socket {
        fn new() -> Arc<Self> {
            let socket = Self { bytes: Mutex::new(0), readiness: Readiness::default(), bell: Notify::new() };
            socket.readiness.begin();
            Arc::new(socket)
        }

        /// A byte comes, and the reactor tells of it.
        fn feed(&self) {
            *lock(&self.bytes) += 1;
            self.readiness.deliver(READABLE, &mut |report| match report {
                Report::Waiter(1) => self.bell.notify(),
                Report::Future(FutureWaker::Own(waker)) => waker.wake(),
                _ => panic!("only the reader waits"),
            });
        }

        /// As a source reads: all that is there, whenever the word says that something is. Whoever misses an event waits for
        /// ever, which loom reports as a deadlock.
        fn read(&self, wanted: usize) {
            let mut got = 0;
            while got < wanted {
                let seen = self.readiness.look();
                if seen.is_ready(Direction::Read) {
                    got += std::mem::take(&mut *lock(&self.bytes));
                    self.readiness.clear(seen, Direction::Read);
                } else if self.readiness.enqueue(Direction::Read, 1) {
                    self.bell.wait();
                    self.readiness.dequeue(Direction::Read, 1);
                }
            }
        }
    }

    /// As [`Socket::bell`], for a future.
    struct Bell(Arc<Socket>);

    impl std::task::Wake for Bell {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.bell.notify();
        }
    }

    /// As [`Socket::read`], by polls: word is left with the same waker again and again.
    fn read_as_future(socket: &Arc<Socket>, wanted: usize) {
        let waker = std::task::Waker::from(std::sync::Arc::new(Bell(socket.clone())));
        let (mut got, mut key) = (0, None);
        while got < wanted {
            let seen = socket.readiness.look();
            if seen.is_ready(Direction::Read) {
                got += std::mem::take(&mut *lock(&socket.bytes));
                socket.readiness.clear(seen, Direction::Read);
            } else if socket.readiness.leave_word(&mut key, Direction::Read, WakerRef::Own(&waker)) {
                socket.bell.wait();
            }
        }
        if let Some(key) = key {
            socket.readiness.give_up(key, Direction::Read);
        }
    }

    #[test]
    fn loom_no_event_of_a_socket_is_missed_by_a_future() {
        model(3, || {
            let socket = Socket::new();
            let reactor = socket.clone();
            let reactor = thread::spawn(move || (0..2).for_each(|_| reactor.feed()));
            read_as_future(&socket, 2);
            reactor.join().expect("it ends");
        });
    }

    #[test]
    fn loom_no_event_of_a_socket_is_missed() {
        model(3, || {
            let socket = Socket::new();
            let reactor = socket.clone();
            let reactor = thread::spawn(move || (0..2).for_each(|_| reactor.feed()));
            socket.read(2);
            reactor.join().expect("it ends");
        });
    }
}
