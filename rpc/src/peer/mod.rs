//! Our side of a connection. Either side calls and serves, whoever dialled; the two directions share the socket and know
//! nothing of each other, with one exception: answers are always read on, since handlers may wait for them.
//!
//! ```text
//!                       ┌── request, notification ──▶ Serving: admitted, run, answered
//!   frame ──▶ Peer ─────┤
//!                       └── response ───────────────▶ Calling: handed to who called
//! ```
//!
//! Each of the two is made at its first use: most connections need one only.

mod answer;
mod asked;
mod calling;
mod ids;
mod queue;
mod reserved;
mod runner;
mod running;
mod serving;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use dhaga::turn;

use crate::connection::{Connection, Side};
use crate::error::{CallError, Cause, ErrorProfile};
use crate::extension::{Caps, PREFIX};
use crate::frame::FrameError;
use crate::host::Host;
use crate::incoming::Flow;
use crate::message::{self, Message, MessageError};
use crate::share;

pub(crate) use answer::Answer;
pub(crate) use asked::Asked;
pub(crate) use calling::{Until, call, notify};

use calling::Calling;
use runner::{Runner, Work};
use serving::{Batch, Serving};

/// Our side of one connection.
pub(crate) struct Peer {
    host: Arc<Host>,
    /// `None`: nobody accepted it, we dialled.
    keeper: Option<Box<dyn Keeper>>,
    serving: OnceLock<Box<Serving>>,
    calling: OnceLock<Box<Calling>>,
    /// The extensions that were agreed on.
    caps: AtomicU8,
    /// Requests that the peer takes at a time, as far as it has said.
    peers_room: AtomicU32,
    /// Bytes of an unfinished frame that are charged to the host.
    charged: AtomicUsize,
    /// The keeper looks at it until the peer owes nothing.
    is_watched: AtomicBool,
    /// The peer sends no more: what it asked for is answered, and nothing more can be asked of it.
    is_ended: AtomicBool,
    /// The peer takes nothing more: what it has sent before is yet to be read.
    is_deaf: AtomicBool,
    /// The peer ends: it is asked nothing more, and answers what it was asked.
    is_leaving: AtomicBool,
    /// Whom it was opened for has gone; what was sent has not.
    is_ending: AtomicBool,
}

/// Who accepted a connection, and looks after it. Dropped with the connection.
pub(crate) trait Keeper: Send + Sync {
    /// The peer has begun a frame, and owes the rest of it.
    fn watch(&self, connection: &Arc<Connection<Peer>>);
    /// The peer sends no more, or takes no more. Returns whether the keeper finds out why, and closes the connection then.
    fn ends(&self) -> bool {
        false
    }

    /// The connection is closed, for the reason given. Called once.
    fn closed(&self, reason: Option<&Cause>);
}

impl Peer {
    pub(crate) fn new(host: Arc<Host>, keeper: Option<Box<dyn Keeper>>) -> Self {
        Self {
            host,
            keeper,
            serving: OnceLock::new(),
            calling: OnceLock::new(),
            caps: AtomicU8::new(0),
            peers_room: AtomicU32::new(u32::MAX),
            charged: AtomicUsize::new(0),
            is_watched: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// In which form errors are answered.
    fn errors(&self) -> ErrorProfile {
        match self.caps().has(Caps::ERRORS) {
            true => ErrorProfile::Map,
            false => self.host.manner.errors,
        }
    }

    /// Whether the peer may yet answer a call that begins now.
    pub(crate) fn may_be_called(&self) -> bool {
        let is_out_of_reach = self.is_deaf.load(Ordering::Relaxed) || self.is_leaving.load(Ordering::Relaxed);
        !self.is_ended.load(Ordering::SeqCst) && !is_out_of_reach
    }

    /// Prepares for the first call, so that whatever ends the connection is noted for it.
    pub(crate) fn prepare_to_call(&self) {
        self.calling();
    }

    /// Notes that the keeper looks at the connection. Returns whether it did before.
    pub(crate) fn set_watched(&self, is_watched: bool) -> bool {
        self.is_watched.swap(is_watched, Ordering::SeqCst)
    }

    fn serving(&self) -> &Serving {
        self.serving.get_or_init(Box::default)
    }

    fn calling(&self) -> &Calling {
        self.calling.get_or_init(|| Box::new(Calling::new(&self.host.limits)))
    }

    /// Whether calls of ours wait for answers.
    fn has_calls(&self) -> bool {
        self.calling.get().is_some_and(|calling| calling.is_busy())
    }

    /// Who knows how to cancel has given up all that it asked for when it sends no more.
    fn cancel_for_who_has_gone(&self) {
        if let Some(serving) = self.serving.get().filter(|_| self.caps().has(Caps::CANCEL)) {
            serving.cancel_all();
        }
    }

    /// Charges the bytes of an unfinished frame, instead of those charged before. Returns what the host holds in all.
    fn charge(&self, bytes: usize) -> usize {
        let total = &self.host.unfinished_bytes;
        // By one reader at a time, or by who drops it.
        let before = self.charged.load(Ordering::Relaxed);
        if before == bytes {
            return total.load(Ordering::Relaxed);
        }
        self.charged.store(bytes, Ordering::Relaxed);
        total.fetch_sub(before, Ordering::Relaxed);
        total.fetch_add(bytes, Ordering::Relaxed) + bytes
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.charge(0);
        if let Some(number) = self.serving.get().and_then(|serving| serving.number()) {
            self.host.served.open.remove(number);
        }
    }
}

impl Connection<Peer> {
    /// Closes the connection as soon as all that was sent has left. What the socket takes leaves at once, since the process
    /// may be about to end.
    pub(crate) fn end(self: &Arc<Self>) {
        self.side.is_ending.store(true, Ordering::SeqCst);
        self.flush();
    }

    /// Asks nothing more of a peer that ends. What we have dialled is closed behind the last answer.
    pub(crate) fn leave(self: &Arc<Self>) {
        self.side.is_leaving.store(true, Ordering::SeqCst);
        self.close_if_left();
    }

    #[inline]
    fn close_if_left(self: &Arc<Self>) {
        if self.side.is_leaving.load(Ordering::Relaxed) && self.side.keeper.is_none() {
            self.close_if_idle();
        }
    }

    #[cold]
    fn close_if_idle(self: &Arc<Self>) {
        let peer = &self.side;
        if peer.serving.get().is_none_or(|serving| serving.is_idle()) && peer.calling().end_if_idle() {
            self.end();
        }
    }

    /// Whether nobody waits for answers any more. What handlers return that were cancelled for it may be half of an answer.
    fn is_deserted(&self) -> bool {
        self.is_closed() || self.side.is_ended.load(Ordering::SeqCst) && self.side.caps().has(Caps::CANCEL)
    }

    fn close_for_breach(self: &Arc<Self>, breach: Breach) {
        self.close_for_fault(Arc::new(breach));
    }

    fn close_for_fault(self: &Arc<Self>, cause: Cause) {
        log::warn!("closing the connection to {}: {cause}", self.describe_peer());
        self.close(Some(cause));
    }

    /// After the peer's FIN: the last answer has left, so ours may follow.
    fn close_if_done(self: &Arc<Self>) {
        let peer = &self.side;
        let is_over = peer.is_ending.load(Ordering::SeqCst)
            || peer.is_ended.load(Ordering::SeqCst) && peer.serving.get().is_none_or(|serving| serving.is_idle());
        if is_over && self.is_flushed() {
            self.close(None);
        }
    }
}

impl Side for Peer {
    type Batch = Batch;
    type Work = Work;

    #[inline]
    fn take(connection: &Arc<Connection<Self>>, frame: &[u8], batch: &mut Batch) -> Flow {
        if connection.is_closed() {
            return Flow::Taken;
        }
        if let Some((id, result)) = message::plain_answer(frame) {
            connection.take_answer(id, Ok(result), &mut batch.answered);
            return Flow::Taken;
        }
        if connection.take_plain_request(frame, batch) {
            return Flow::Taken;
        }
        match Message::parse(frame, &connection.limits) {
            Ok(Message::Response { id, outcome }) => {
                connection.take_answer(id, outcome, &mut batch.answered);
                Flow::Taken
            }
            Ok(Message::Notification { method, params }) if method.starts_with(PREFIX) => {
                connection.take_reserved_notification(method, params, batch);
                Flow::Taken
            }
            message => connection.take_request(frame, message, batch),
        }
    }

    fn commit(
        connection: &Arc<Connection<Self>>,
        batch: &mut Batch,
        waits_for: Option<usize>,
        work: Option<&mut Option<Work>>,
    ) -> bool {
        std::mem::take(&mut batch.answered).wake();
        let has_room = connection.enter_requests(batch, waits_for, work);
        // Not before: a request may have come with the last answer.
        if waits_for.is_none() {
            connection.close_if_left();
        }
        has_room
    }

    fn run(connection: Arc<Connection<Self>>, work: Option<Work>) {
        if let Some(serving) = connection.side.serving.get() {
            let runner = Runner::new(&connection, serving);
            let appended = match work {
                Some(work) => runner.run_begun(work),
                None => runner.run(),
            };
            connection.note_last(appended);
        }
    }

    fn delegate(connection: &Arc<Connection<Self>>) {
        if let Some(serving) = connection.side.serving.get() {
            serving.ensure_successor(connection, serving.state());
        }
    }

    fn unfinished(connection: &Arc<Connection<Self>>, bytes: usize) {
        let peer = &connection.side;
        // What we dialled sends what we asked for: the timeouts of the calls are enough.
        let Some(keeper) = &peer.keeper else { return };
        let limit = connection.limits.unfinished_bytes_per_server_max;
        if peer.charge(bytes) > limit && bytes > 0 {
            return connection.close_for_breach(Breach::TooMuchUnfinished { limit });
        }
        if bytes > 0 {
            keeper.watch(connection);
        }
    }

    #[inline]
    fn bring_near(&self) {
        if let Some(serving) = self.serving.get() {
            turn::bring_value_near(&**serving);
        }
    }

    fn eased(connection: &Arc<Connection<Self>>) {
        if let Some(serving) = connection.side.serving.get() {
            serving.resume_if_waiting(connection);
        }
    }

    fn drained(connection: &Arc<Connection<Self>>) {
        Self::eased(connection);
        connection.close_if_done();
    }

    fn end_of_input(connection: &Arc<Connection<Self>>, was_unfinished: bool) {
        if was_unfinished {
            log::debug!("{} closed in the middle of a frame", connection.describe_peer());
        }
        if connection.side.keeper.as_ref().is_some_and(|keeper| keeper.ends()) {
            return;
        }
        connection.side.is_ended.store(true, Ordering::SeqCst);
        // A process that was killed sends no more than this.
        connection.side.cancel_for_who_has_gone();
        connection.close_if_done();
        if !connection.is_closed() {
            // What it has asked for goes on. It is made if need be, so that a call which begins just now finds it ended.
            connection.side.calling().fail(&CallError::Disconnected { maybe_executed: true, source: None });
        }
    }

    fn broken(connection: &Arc<Connection<Self>>, error: io::Error) {
        let keeper = connection.side.keeper.as_ref().filter(|_| error.kind() == io::ErrorKind::BrokenPipe);
        if keeper.is_some_and(|keeper| keeper.ends()) {
            return;
        }
        let is_gone = is_gone(&error);
        if is_gone {
            // Before nothing more is taken: who finds that out calls another.
            connection.side.is_deaf.store(true, Ordering::Relaxed);
        }
        // What it has sent before it went may lie in the socket: notifications, or answers to us.
        if !(is_gone && connection.end_output()) {
            connection.close(Some(Arc::new(error)));
        }
    }

    fn closed(connection: &Arc<Connection<Self>>, reason: Option<Cause>) {
        let peer = &connection.side;
        if let Some(serving) = peer.serving.get() {
            // What it has sent before it went counts, even if it takes no more answers.
            let keeps_notifications = reason.as_ref().is_some_and(is_departure);
            peer.host.release(serving.forget(keeps_notifications));
        }
        peer.cancel_for_who_has_gone();
        if let Some(cause) = &reason {
            log::debug!("connection to {} closed: {cause}", connection.describe_peer());
            if is_breach(cause) || is_stall(cause) {
                peer.host.closed_for_fault.fetch_add(1, Ordering::Relaxed);
                share::be_on_guard();
            }
        }
        if let Some(calling) = peer.calling.get() {
            calling.fail(&match reason.clone() {
                Some(cause) if is_breach(&cause) => CallError::Malformed(cause),
                source => CallError::Disconnected { maybe_executed: true, source },
            });
        }
        if let Some(keeper) = &peer.keeper {
            keeper.closed(reason.as_ref());
        }
    }
}

/// A broken protocol or limit.
fn is_breach(cause: &Cause) -> bool {
    cause.is::<FrameError>() || cause.is::<MessageError>() || cause.is::<Breach>()
}

/// The peer took none of its bytes. A network that broke otherwise is nobody's fault.
fn is_stall(cause: &Cause) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The peer has gone, and neither it nor we did anything wrong.
fn is_departure(cause: &Cause) -> bool {
    match cause.downcast_ref::<io::Error>() {
        Some(error) => is_gone(error),
        // A child has ended.
        None => !is_breach(cause),
    }
}

/// The other end of the transport is closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What a peer may not do, although each of its frames is in order.
#[derive(Debug)]
pub(crate) enum Breach {
    /// Two requests with one id are in flight: whichever is answered first would complete the other at the peer.
    DuplicateId(u32),
    /// What it announced by `$/meta` did not come, or no such message is of that form.
    StrayMeta,
    /// It owed bytes and did not send them in time.
    Overdue,
    /// All connections together have begun more than the server will hold.
    TooMuchUnfinished { limit: usize },
    /// It keeps answering calls that nobody made.
    TooManyUnknown { limit: u32 },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateId(id) => {
                write!(f, "the peer sent a request with id {id} while another with this id is in flight")
            }
            Self::StrayMeta => f.write_str("the peer sent a $/meta that does not stand before its request"),
            Self::Overdue => f.write_str(
                "the peer did not finish a frame in time (Limits::first_frame_within, frame_must_grow_within)",
            ),
            Self::TooMuchUnfinished { limit } => write!(
                f,
                "unfinished frames of all peers take more than {limit} bytes (Limits::unfinished_bytes_per_server_max)"
            ),
            Self::TooManyUnknown { limit } => write!(
                f,
                "the peer sent more than {limit} answers a second to calls that are not in flight (Limits::unknown_answers_per_second_max)"
            ),
        }
    }
}

impl std::error::Error for Breach {}
