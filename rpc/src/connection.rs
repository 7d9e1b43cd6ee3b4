//! One transport: reading on demand, one outgoing buffer, flushed at the end of a turn.
//!
//! An idle connection is this struct and a source in its worker's reactor: no dhaga, no stack, no buffer.
//!
//! ```text
//!   readable ──▶ on_ready ──▶ a reader dhaga: read, cut all whole frames, tell the side ──▶ nothing left: it ends
//!                                  │                                                     └─▶ runs the side's last work
//!                                  └─▶ no room for a frame: it ends, and the side resumes it
//! ```
//!
//! There is one reader at a time. It gives the connection back before it runs the side's work, which is user code.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dhaga::turn::{self, AtEnd, OnReady};
use dhaga::{Builder, JoinError, SpawnError, park, yield_now};

use crate::error::Cause;
use crate::frame::FrameError;
use crate::incoming::{Flow, Incoming};
use crate::limits::Limits;
use crate::outbox::{Appended, Flushed, NoRoom, Outbox};
use crate::share::{SMALL_READ_BYTES, Share};
use crate::transport::Transport;

/// What a connection is for: the floor above, which gets to know what happens here.
pub(crate) trait Side: Send + Sync + Sized + 'static {
    /// What the reader collects from one read.
    type Batch: Default;
    /// What was begun when a batch ended.
    type Work;

    /// Takes a whole frame, or makes it wait. Must neither wait itself nor run user code.
    fn take(connection: &Arc<Connection<Self>>, frame: &[u8], batch: &mut Self::Batch) -> Flow;
    /// Ends a batch. `waits_for` is the size of a frame that has to wait; returns whether there is room for it after all.
    /// If not, the side resumes the reader when there is. Where there is a place for `work`, it may begin some, which the reader runs
    /// at once.
    fn commit(
        connection: &Arc<Connection<Self>>,
        batch: &mut Self::Batch,
        waits_for: Option<usize>,
        work: Option<&mut Option<Self::Work>>,
    ) -> bool;
    /// Runs what was taken, and before it what was begun, in the reader's dhaga, which has given the connection back.
    fn run(connection: Arc<Connection<Self>>, work: Option<Self::Work>);
    /// Has others run what was taken, since the reader reads on.
    fn delegate(connection: &Arc<Connection<Self>>);
    /// Asks the processor for what a read will touch.
    fn bring_near(&self);
    /// So many bytes of a frame that has not ended are kept.
    fn unfinished(connection: &Arc<Connection<Self>>, bytes: usize);
    /// Some of what was to be sent has left: there may be room for a frame that had to wait.
    fn eased(connection: &Arc<Connection<Self>>);
    /// All that was to be sent has left.
    fn drained(connection: &Arc<Connection<Self>>);
    /// The peer sends no more. Called once.
    fn end_of_input(connection: &Arc<Connection<Self>>, was_unfinished: bool);
    /// The transport refuses what is to be sent: the side closes the connection, at once or later.
    fn broken(connection: &Arc<Connection<Self>>, error: io::Error);
    /// The connection is closed, for the reason given. Called once.
    fn closed(connection: &Arc<Connection<Self>>, reason: Option<Cause>);
}

/// One transport and what is unfinished in either direction.
pub(crate) struct Connection<S> {
    pub(crate) side: S,
    pub(crate) limits: Arc<Limits>,
    transport: Transport,
    outbox: Outbox,
    /// Empty while a reader works with it: there is one at a time, which looks here only if something was left.
    incoming: Mutex<Incoming>,
    /// A frame has begun and not ended, as the reader has found it.
    is_unfinished: AtomicBool,
    /// A reader runs, or is to be resumed by the side.
    is_reading: AtomicBool,
    is_closed: AtomicBool,
    share: Share,
    /// Counts reads that brought something: who watches for a peer that stalls compares two looks.
    reads: AtomicU64,
}

/// What one read led to.
enum Step {
    /// The socket may have more.
    More,
    /// An event will tell of more.
    Drained,
    /// A frame has to wait.
    Waiting,
    /// Nothing more will be read.
    Over,
}

impl<S: Side> Connection<S> {
    /// Begins to listen to the socket, on the caller's worker.
    ///
    /// # Errors
    ///
    /// What the kernel said when the socket was registered.
    pub(crate) fn open(transport: Transport, side: S, limits: Arc<Limits>) -> io::Result<Arc<Self>> {
        transport.prepare()?;
        let connection = Arc::new(Self {
            side,
            outbox: Outbox::new(limits.unsent_bytes_max),
            limits,
            transport,
            incoming: Mutex::default(),
            is_unfinished: AtomicBool::new(false),
            is_reading: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            share: Share::default(),
            reads: AtomicU64::new(0),
        });
        if let Err(error) = connection.transport.on_ready(connection.clone()) {
            connection.close(Some(Arc::new(io::Error::new(error.kind(), error.to_string()))));
            return Err(error);
        }
        Ok(connection)
    }

    /// Whether a frame has begun and not ended, and how often something was read.
    pub(crate) fn progress(&self) -> (bool, u64) {
        (self.is_unfinished.load(Ordering::Relaxed), self.reads.load(Ordering::Relaxed))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Whether a reader runs, has yet to run, or waits for the side: bytes of the peer may be there that nobody has looked at.
    pub(crate) fn is_reading(&self) -> bool {
        self.is_reading.load(Ordering::SeqCst)
    }

    /// Whether everything was handed to the socket.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether the peer takes its bytes too slowly for more requests of its to be read or begun.
    #[inline]
    pub(crate) fn is_congested(&self) -> bool {
        // While a message is encoded it was so, and is not: the first is only to save a look under the lock.
        self.outbox.was_tight() && self.outbox.is_congested()
    }

    /// Whether senders or requests of the peer may have to wait, as far as it is known without a lock.
    #[inline]
    pub(crate) fn was_tight(&self) -> bool {
        self.outbox.was_tight()
    }

    /// Whether as much as may be unsent are answers that were appended without regard to that: refusals for the most part.
    pub(crate) fn is_flooded(&self) -> bool {
        self.outbox.is_flooded()
    }

    /// Reader: takes what was left.
    #[inline]
    fn take_incoming(&self) -> Incoming {
        match self.is_unfinished.load(Ordering::Relaxed) {
            true => std::mem::take(&mut *self.incoming()),
            false => Incoming::default(),
        }
    }

    /// Reader: leaves what is left.
    #[inline]
    fn leave_incoming(&self, incoming: Incoming) {
        let is_unfinished = incoming.is_unfinished();
        if is_unfinished {
            *self.incoming() = incoming;
        }
        if self.is_unfinished.load(Ordering::Relaxed) != is_unfinished {
            self.is_unfinished.store(is_unfinished, Ordering::Relaxed);
        }
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room among the unsent bytes.
    pub(crate) fn wait_for_room(&self, deadline: Option<Instant>) -> Result<(), NoRoom> {
        self.outbox.wait_for_room(deadline)
    }

    /// Waits until more requests of the peer may begin, and there is room if `answers_wait` for it.
    pub(crate) fn wait_while_congested(&self, answers_wait: bool) {
        self.outbox.wait_while_congested(answers_wait);
    }

    /// Appends whole answers to the unsent bytes, whatever is there. The caller hands the result to [`note`](Self::note).
    pub(crate) fn append_answers(&self, messages: &[u8]) -> Appended {
        self.outbox.append_answers(messages)
    }

    /// As [`append_answers`](Self::append_answers), if there is room below the limit of unsent bytes.
    pub(crate) fn try_append(&self, messages: &[u8]) -> Option<Appended> {
        self.outbox.try_append(messages)
    }

    /// Lets `encode` append a message to what goes out, at the latest at the end of the turn. Returns false when the connection has ended.
    pub(crate) fn send(self: &Arc<Self>, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.note(self.outbox.append(encode))
    }

    /// As [`note`](Self::note), for who needs the connection no more.
    pub(crate) fn note_last(self: Arc<Self>, appended: Appended) {
        if appended == Appended::First {
            turn::at_end(self);
        }
    }

    /// Sees to it that what was appended is flushed: at the end of the turn, or at once. Returns false when the connection has ended.
    pub(crate) fn note(self: &Arc<Self>, appended: Appended) -> bool {
        match appended {
            Appended::Queued => true,
            Appended::First => {
                turn::at_end(self.clone());
                true
            }
            Appended::Packet => {
                self.see_to(self.outbox.flush_packet(&self.transport));
                true
            }
            Appended::Full => {
                self.flush();
                true
            }
            Appended::Closed => false,
        }
    }

    /// Hands what is unsent to the socket; what that does not take, a writer waits with.
    pub(crate) fn flush(self: &Arc<Self>) {
        self.see_to(self.outbox.flush(&self.transport));
    }

    fn see_to(self: &Arc<Self>, flushed: Flushed) {
        match flushed {
            Flushed::Done => S::drained(self),
            Flushed::Broken(error) => S::broken(self, error),
            Flushed::Full => {
                let chore = Chore::of(self);
                if let Err(error) = turn::spawn(move || chore.run(|connection| connection.write_rest())) {
                    log_undone(&error);
                }
            }
        }
    }

    /// The writer.
    fn write_rest(self: &Arc<Self>) {
        match self.outbox.write_rest(&self.transport, || S::eased(self)) {
            Ok(()) => S::drained(self),
            Err(error) => S::broken(self, error),
        }
    }

    /// Starts a reader on the caller's worker. Only for who holds the right to read: an event that set `is_reading`, or
    /// the side that made a frame wait.
    pub(crate) fn resume(self: &Arc<Self>) {
        let chore = Chore::of(self);
        if let Err(error) = turn::spawn(move || chore.run(Self::read_on)) {
            log_undone(&error);
        }
    }

    /// The reader.
    fn read(self: Arc<Self>) {
        self.step_back_if_greedy();
        self.read_from(Step::More);
    }

    /// A reader that is resumed: what had to wait comes before what is new.
    fn read_on(self: Arc<Self>) {
        self.step_back_if_greedy();
        let step = self.cut(&[], Step::More, &mut None);
        self.read_from(step);
    }

    #[inline]
    fn read_from(self: Arc<Self>, mut step: Step) {
        let (mut buffer, mut work) = (turn::read_buffer(), None);
        loop {
            match step {
                Step::More => step = self.read_once(self.share.portion(&mut buffer), &mut work),
                Step::Drained if self.give_back() => {
                    if work.is_some() {
                        // It has begun: another reads.
                        self.resume();
                        break;
                    }
                    step = Step::More;
                }
                Step::Drained | Step::Waiting | Step::Over => break,
            }
            if let Step::More = step {
                // A full buffer: others go first, so that one connection does not keep the worker to itself.
                S::delegate(&self);
                turn::return_read_buffer(buffer);
                self.pause();
                buffer = turn::read_buffer();
            }
        }
        turn::return_read_buffer(buffer);
        if work.is_none() {
            self.step_back_if_greedy();
        }
        S::run(self, work);
    }

    /// Lets others have their turn.
    fn pause(&self) {
        match self.share.is_greedy() {
            true => turn::step_back(),
            false => yield_now(),
        }
    }

    /// Whoever takes little time goes before who takes much. But who was cancelled by shutdown would end there, with requests or
    /// an answer in its hands.
    pub(crate) fn step_back_if_greedy(&self) {
        if self.share.is_greedy() && !(dhaga::is_shutting_down() && dhaga::is_cancelled()) {
            turn::step_back();
        }
    }

    /// What the peer asks for took long: whoever takes little goes first.
    pub(crate) fn be_greedy(&self) {
        self.share.set_greedy();
    }

    pub(crate) fn is_greedy(&self) -> bool {
        self.share.is_greedy()
    }

    /// Ends the right to read. Returns whether an event came meanwhile, and the caller has the right again.
    fn give_back(&self) -> bool {
        self.is_reading.store(false, Ordering::SeqCst);
        self.transport.is_readable() && !self.is_reading.swap(true, Ordering::SeqCst)
    }

    fn read_once(self: &Arc<Self>, buffer: &mut [u8], work: &mut Option<S::Work>) -> Step {
        match self.transport.try_read(buffer) {
            Ok(None) => Step::Drained,
            Ok(Some(0)) => {
                S::end_of_input(self, self.is_unfinished.load(Ordering::Relaxed));
                Step::Over
            }
            Ok(Some(count)) => {
                // By one reader at a time.
                self.reads.store(self.reads.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
                let then = if count < buffer.len() && !self.has_news() { Step::Drained } else { Step::More };
                let was_full = count == buffer.len();
                if count < SMALL_READ_BYTES && !was_full {
                    self.share.note_small();
                    return self.cut(&buffer[..count], then, work);
                }
                let began = park::now();
                let step = self.cut(&buffer[..count], then, work);
                self.share.note(park::now() - began, was_full);
                step
            }
            Err(error) => {
                self.close(Some(Arc::new(error)));
                Step::Over
            }
        }
    }

    /// A short read leaves the bit set only if the peer has closed or an event came: then there is no event to wait for.
    fn has_news(&self) -> bool {
        self.transport.is_readable()
    }

    fn cut(self: &Arc<Self>, bytes: &[u8], then: Step, work: &mut Option<S::Work>) -> Step {
        let mut incoming = self.take_incoming();
        if bytes.is_empty() && !incoming.is_unfinished() {
            return then;
        }
        let mut fresh = bytes;
        loop {
            let (mut batch, mut waits_for) = (S::Batch::default(), None);
            let cut = incoming.feed(fresh, &self.limits, |frame| {
                let flow = S::take(self, frame, &mut batch);
                waits_for = (flow == Flow::Wait).then_some(frame.len());
                flow
            });
            if waits_for.is_some() {
                // Before others may resume a reader, which goes on with it.
                self.leave_incoming(std::mem::take(&mut incoming));
            }
            // Who has begun something neither reads on nor waits before it runs that.
            let is_last = cut == Ok(Flow::Taken) && matches!(then, Step::Drained) && !self.share.is_greedy();
            let has_room = S::commit(self, &mut batch, waits_for, is_last.then_some(&mut *work));
            match cut {
                Ok(_) if self.is_closed() => return Step::Over,
                Ok(Flow::Taken) => {
                    let bytes = incoming.unfinished_bytes();
                    self.leave_incoming(incoming);
                    S::unfinished(self, bytes);
                    return then;
                }
                Ok(Flow::Wait) if has_room => (incoming, fresh) = (self.take_incoming(), &[]),
                Ok(Flow::Wait) => return Step::Waiting,
                Err(error) => {
                    self.close_malformed(error);
                    return Step::Over;
                }
            }
        }
    }

    /// The peer broke the protocol: nothing after this can be understood.
    pub(crate) fn close_malformed(self: &Arc<Self>, error: FrameError) {
        log::warn!("closing the connection to {}: {error}", self.describe_peer());
        self.close(Some(Arc::new(error)));
    }

    /// What the peer has listened at; `None` if it has gone, or if it has no name.
    pub(crate) fn peer_name(&self) -> Option<String> {
        self.transport.peer_name()
    }

    pub(crate) fn describe_peer(&self) -> String {
        self.transport.to_string()
    }

    #[cold]
    pub(crate) fn close_for_want_of_a_dhaga(self: &Arc<Self>) {
        let reason = "a dhaga for the connection could not begin";
        self.close(Some(Arc::new(io::Error::new(io::ErrorKind::OutOfMemory, reason))));
    }

    /// The peer takes nothing more: what it has sent before is the last that is read. Returns false where the transport cannot
    /// end so, and nothing was done.
    #[cold]
    pub(crate) fn end_output(self: &Arc<Self>) -> bool {
        let ends = self.transport.end_input();
        if ends {
            self.outbox.close();
            S::drained(self);
        }
        ends
    }

    /// Ends the connection at once, in both directions. Whoever waits for it learns the reason.
    pub(crate) fn close(self: &Arc<Self>, reason: Option<Cause>) {
        if self.is_closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.transport.stop_on_ready();
        // What is buffered and belongs to nobody who waits still has a chance to leave.
        if reason.is_none() {
            // It fails when the peer was faster.
            let _ = self.outbox.flush(&self.transport);
        }
        // Before the peer can see it: who asks then finds it counted. And before nothing more is taken: who is told that finds
        // out why.
        S::closed(self, reason);
        self.outbox.close();
        self.transport.close();
    }
}

/// What a dhaga is to do for a connection. It may never begin, where the runtime has no room or memory for it: nobody would ever
/// read then, or write, so the connection is closed.
struct Chore<S: Side>(Option<Arc<Connection<S>>>);

impl<S: Side> Chore<S> {
    #[inline]
    fn of(connection: &Arc<Connection<S>>) -> Self {
        Self(Some(connection.clone()))
    }

    #[inline]
    fn run(mut self, work: impl FnOnce(Arc<Connection<S>>)) {
        if let Some(connection) = self.0.take() {
            work(connection);
        }
    }
}

impl<S: Side> Drop for Chore<S> {
    #[inline]
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.close_for_want_of_a_dhaga();
        }
    }
}

/// The connection was closed with its chore.
#[cold]
fn log_undone(error: &SpawnError) {
    log::warn!("a connection was closed because no dhaga could be spawned for it: {error}");
}

/// Runs `f` in a dhaga: the caller's own, or one that a plain thread waits for.
///
/// # Errors
///
/// Those of the scope around it, and that there is no room for a dhaga.
pub(crate) fn on_a_worker<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if turn::worker_id().is_some() {
        return Ok(f());
    }
    match Builder::new().name("rpc open").spawn(f)?.join() {
        Ok(done) => Ok(done),
        Err(JoinError::Stopped(interrupt, handle)) => {
            handle.cancel();
            Err(interrupt.into())
        }
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// The worker holds a connection until it is closed.
impl<S: Side> OnReady for Connection<S> {
    fn on_ready(self: Arc<Self>) {
        if self.is_reading.swap(true, Ordering::SeqCst) {
            return;
        }
        let chore = Chore(Some(self));
        if let Err(error) = turn::spawn_here(move || chore.run(Connection::read)) {
            log_undone(&error);
        }
    }

    fn bring_near(&self) {
        self.transport.bring_near();
        self.side.bring_near();
    }

    /// What nobody listens to any more must not seem to live.
    fn on_abandoned(self: Arc<Self>) {
        self.close(Some(Arc::new(io::Error::other("the runtime of the connection has ended"))));
    }
}

impl<S: Side> AtEnd for Connection<S> {
    fn at_end(self: Arc<Self>) {
        self.flush();
    }

    fn bring_near(&self) {
        self.transport.bring_near();
    }
}
