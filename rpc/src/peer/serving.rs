//! What the peer asks of us: admitted, run, answered.
//!
//! ```text
//!   reader: frame ──▶ admit (limits, duplicate id, method) ──▶ a dhaga: decode, run, encode, append ──▶ release
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::asked::{Asked, Request};
use super::calling::Answered;
use super::{Breach, Peer};
use crate::connection::Connection;
use crate::error::{Cause, Refusal};
use crate::extension::PREFIX;
use crate::id_hash::IdHash;
use crate::incoming::Flow;
use crate::limits::{Limits, QUEUED_FRAME_OVERHEAD_BYTES};
use crate::message::{self, Message, MessageError};
use crate::meta::{Announced, Meta};
use crate::service::respond_refusal;

/// Capacity that an idle connection may keep in each of its collections.
const KEPT_MAX: usize = 8;

/// The serving part of one connection.
///
/// Requests that were read wait in `pending`. A *runner* is a dhaga that takes one after the other from there; before it
/// runs a handler it makes sure that, if any are left, a *successor* is queued, which starts when the runner parks or when
/// an idle worker steals it. So each request that waits has a dhaga of its own, and those that do not wait share one.
#[derive(Default)]
pub(super) struct Serving {
    state: Mutex<State>,
    /// A frame waits for room: whoever makes room resumes the reader.
    is_waiting: AtomicBool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pending: VecDeque<Request>,
    pub(super) has_successor: bool,
    /// Requests that are pending or run, notifications included.
    in_flight: usize,
    /// Bytes of their frames and of what goes with them, at true cost.
    queued_bytes: usize,
    /// The requests among them, by id.
    requests: HashMap<u32, Request, IdHash>,
    /// A `$/meta` whose request has not come.
    announced: Option<Box<Announced>>,
    /// Size of the frame that waits, if one does, and of its `$/meta`.
    waiting_bytes: usize,
}

/// What one read brought, before it is entered.
#[derive(Default)]
pub(crate) struct Batch {
    /// Callers whose answers came with them.
    pub(super) answered: Answered,
    requests: Vec<Request>,
    bytes: usize,
    /// `None`: no request came yet.
    room: Option<Room>,
    /// A `$/meta` whose request has not come.
    announced: Option<Box<Announced>>,
}

/// Room when the first request of a batch came. It only grows meanwhile: there is one reader.
struct Room {
    requests: usize,
    bytes: usize,
    /// Nothing was in flight: a frame of any size is taken if it is alone.
    was_idle: bool,
}

/// What is found wrong with a frame before any handler is asked.
enum Reject {
    /// The stream cannot be trusted any more.
    Close(Cause),
    /// An error answer.
    Refuse(u32, Refusal),
    /// A notification for nobody.
    Ignore,
}

impl Connection<Peer> {
    /// Takes a request of the usual form for a method that is there, if there is room for it. Returns whether it did: whatever
    /// is unusual goes the long way.
    #[inline]
    pub(super) fn take_plain_request(self: &Arc<Self>, frame: &[u8], batch: &mut Batch) -> bool {
        let Some((id, name, params)) = message::plain_request(frame, &self.limits) else { return false };
        let Some((handler, number)) = self.side.host.methods.lookup_numbered(name) else { return false };
        if !batch.has_room(self, frame.len()) || batch.announced.is_some() || self.is_ending() {
            return false;
        }
        let is_admitted = self.side.host.reserve(self.limits.in_flight_per_server_max);
        if is_admitted {
            let cost = frame.len() + QUEUED_FRAME_OVERHEAD_BYTES;
            batch.push(Asked::request(self, handler, number, Some(id), params, cost, None));
        }
        is_admitted
    }

    /// New requests are refused.
    #[inline]
    fn is_ending(&self) -> bool {
        self.side.host.is_draining.load(Ordering::Relaxed) || dhaga::is_shutting_down()
    }

    /// Takes what is no answer, or makes it wait for room.
    pub(super) fn take_request(
        self: &Arc<Self>,
        frame: &[u8],
        message: Result<Message<'_>, MessageError>,
        batch: &mut Batch,
    ) -> Flow {
        if !batch.has_room(self, frame.len())
            && let Some(flow) = self.make_wait(frame, &message, batch)
        {
            return flow;
        }
        let mut meta_bytes = 0;
        let meta = match (batch.announced.take(), request_id(&message)) {
            (None, _) => None,
            (Some(announced), Some(id)) if announced.id == id => match announced.meta {
                Ok(meta) => {
                    meta_bytes = announced.bytes;
                    Some(Box::new(meta))
                }
                Err(reason) => {
                    let refusal = Refusal::BadRequest { reason };
                    self.count_refused(frame, &message, &refusal);
                    self.refuse(id, refusal);
                    return Flow::Taken;
                }
            },
            // A notification is in nobody's way.
            (announced @ Some(_), None) => {
                batch.announced = announced;
                None
            }
            (Some(_), Some(_)) => {
                self.close_for_breach(Breach::StrayMeta);
                return Flow::Taken;
            }
        };
        if let Ok(Message::Request { id, method, params }) = message
            && method.starts_with(PREFIX)
            && self.take_reserved_request(id, method, params)
        {
            return Flow::Taken;
        }
        match self.admit(frame, message, meta, meta_bytes) {
            Ok(request) => batch.push(request),
            Err(Reject::Refuse(id, refusal)) => self.refuse(id, refusal),
            Err(Reject::Close(cause)) => self.close_for_fault(cause),
            Err(Reject::Ignore) => self.side.host.count_ignored(),
        }
        Flow::Taken
    }

    pub(super) fn refuse(self: &Arc<Self>, id: u32, refusal: Refusal) {
        self.send(|out| respond_refusal(&self.limits, self.side.errors(), id, refusal, out));
    }

    /// Counts a request that is refused before it is looked at.
    fn count_refused(&self, frame: &[u8], message: &Result<Message<'_>, MessageError>, refusal: &Refusal) {
        let host = &self.side.host;
        let number = match message {
            Ok(Message::Request { method, .. }) => {
                host.methods.lookup_numbered(method.as_bytes()).map(|(_, number)| number)
            }
            _ => None,
        };
        host.count_refused(number, frame.len(), refusal);
    }

    fn room(&self, state: &State) -> Room {
        let requests = match self.may_read_requests() {
            true => self.requests_to_go(state),
            false => 0,
        };
        let bytes = self.limits.queued_bytes_max.saturating_sub(state.queued_bytes);
        Room { requests, bytes, was_idle: state.in_flight == 0 }
    }

    fn requests_to_go(&self, state: &State) -> usize {
        self.limits.in_flight_per_connection_max.saturating_sub(state.in_flight)
    }

    /// A peer that does not read what it is sent is not read from. But if calls of ours wait, it may hold back for the same
    /// reason, and one of us has to read on.
    fn may_read_requests(&self) -> bool {
        !self.is_congested() || self.side.has_calls() && !self.is_flooded()
    }

    /// There was no room for a request. The reader waits until there is, unless calls of ours wait for answers, which come
    /// behind it: the handlers that hold the room may be those who called. `None`: there is room after all, which has come
    /// since the batch began.
    #[cold]
    fn make_wait(
        self: &Arc<Self>,
        frame: &[u8],
        message: &Result<Message<'_>, MessageError>,
        batch: &mut Batch,
    ) -> Option<Flow> {
        if !self.side.has_calls() || self.is_flooded() {
            return Some(Flow::Wait);
        }
        if batch.has_room_by_now(self, frame.len()) {
            return None;
        }
        match message {
            Ok(Message::Request { id, .. }) | Err(MessageError { request_id: Some(id), .. }) => {
                batch.announced = None;
                let refusal = Refusal::TooManyInFlight { limit: self.limits.in_flight_per_connection_max };
                self.count_refused(frame, message, &refusal);
                self.refuse(*id, refusal);
            }
            Ok(_) => self.side.host.count_ignored(),
            Err(error) => self.close_for_fault(Arc::new(*error)),
        }
        Some(Flow::Taken)
    }

    /// Enters a batch. Returns whether there is room after all for the frame that has to wait, if one does.
    pub(super) fn enter_requests(self: &Arc<Self>, batch: Batch, waits_for: Option<usize>) -> bool {
        if batch.room.is_none() && waits_for.is_none() {
            return true;
        }
        let serving = self.side.serving();
        let mut state = serving.state();
        let entered = state.enter(batch);
        let mut has_room = true;
        if let Some(bytes) = waits_for {
            let bytes = bytes + bytes_of(&state.announced);
            state.waiting_bytes = bytes;
            // Under the lock: who makes room looks at it after the room is made.
            serving.is_waiting.store(true, Ordering::SeqCst);
            has_room = state.has_room(bytes, &self.limits) && !self.is_congested();
            // Who calls looks at it after the call is entered.
            has_room |= self.side.has_calls() && !self.is_flooded();
            has_room = has_room && serving.is_waiting.swap(false, Ordering::SeqCst);
        }
        drop(state);
        if let Err(duplicate) = entered {
            self.close_for_breach(duplicate);
        }
        has_room
    }

    /// Checks a frame against all that needs no user code, and copies what its handler will need.
    fn admit(
        self: &Arc<Self>,
        frame: &[u8],
        message: Result<Message<'_>, MessageError>,
        meta: Option<Box<Meta>>,
        meta_bytes: usize,
    ) -> Result<Request, Reject> {
        let host = &*self.side.host;
        let (id, method, params) = match message {
            Ok(Message::Request { id, method, params }) => (Some(id), method, params),
            Ok(Message::Notification { method, params }) => (None, method, params),
            Ok(Message::Response { .. }) => return Err(Reject::Ignore),
            Err(MessageError { request_id: Some(id), flaw }) => {
                let refusal = Refusal::BadRequest { reason: flaw.to_string() };
                host.count_refused(None, frame.len(), &refusal);
                return Err(Reject::Refuse(id, refusal));
            }
            Err(error) => return Err(Reject::Close(Arc::new(error))),
        };
        let refuse = |number, refusal| {
            host.count_refused(number, frame.len(), &refusal);
            Err(id.map_or(Reject::Ignore, |id| Reject::Refuse(id, refusal)))
        };
        let Some((handler, number)) = host.methods.lookup_numbered(method.as_bytes()) else {
            return refuse(None, Refusal::UnknownMethod { method: method.to_owned() });
        };
        // Who watches a server over wants to see it end.
        if self.is_ending() && !method.starts_with(PREFIX) {
            return refuse(Some(number), Refusal::ShuttingDown);
        }
        let limit = self.limits.in_flight_per_server_max;
        if !host.reserve(limit) {
            return refuse(Some(number), Refusal::TooManyInFlight { limit });
        }
        let cost = frame.len() + meta_bytes + QUEUED_FRAME_OVERHEAD_BYTES;
        Ok(Asked::request(self, handler, number, id, params, cost, meta))
    }
}

fn request_id(message: &Result<Message<'_>, MessageError>) -> Option<u32> {
    match message {
        Ok(Message::Request { id, .. }) => Some(*id),
        Ok(_) => None,
        Err(error) => error.request_id,
    }
}

/// What a request is charged for the `$/meta` before it.
fn bytes_of(announced: &Option<Box<Announced>>) -> usize {
    announced.as_ref().map_or(0, |announced| announced.bytes)
}

impl Batch {
    /// A frame above the limit of queued bytes is taken when it is alone.
    #[inline]
    fn has_room(&mut self, connection: &Connection<Peer>, frame_bytes: usize) -> bool {
        if self.room.is_none() {
            self.begin(connection);
        }
        let Some(room) = &self.room else { return false };
        let is_alone = room.was_idle && self.requests.is_empty();
        let bytes = self.bytes + frame_bytes + bytes_of(&self.announced) + QUEUED_FRAME_OVERHEAD_BYTES;
        self.requests.len() < room.requests && (is_alone || bytes <= room.bytes)
    }

    /// As [`has_room`](Self::has_room), looked at anew, for who reads on however much is unsent.
    #[cold]
    fn has_room_by_now(&mut self, connection: &Connection<Peer>, frame_bytes: usize) -> bool {
        let state = connection.side.serving().state();
        self.room = Some(Room { requests: connection.requests_to_go(&state), ..connection.room(&state) });
        drop(state);
        self.has_room(connection, frame_bytes)
    }

    fn push(&mut self, request: Request) {
        self.bytes += request.cost();
        self.requests.push(request);
    }

    /// Before the first that is no answer.
    fn begin(&mut self, connection: &Connection<Peer>) {
        let mut state = connection.side.serving().state();
        self.room = Some(connection.room(&state));
        self.announced = state.announced.take();
    }

    /// The request with this id, if it is in this batch.
    pub(super) fn request(&self, id: u32) -> Option<Request> {
        self.requests.iter().rev().find(|request| request.id() == Some(id)).cloned()
    }

    /// Keeps a `$/meta` for the next request. Returns the one before it, for which none has come.
    pub(super) fn announce(
        &mut self,
        connection: &Connection<Peer>,
        announced: Option<Box<Announced>>,
    ) -> Option<Box<Announced>> {
        if self.room.is_none() {
            self.begin(connection);
        }
        std::mem::replace(&mut self.announced, announced)
    }
}

impl State {
    /// Enters a batch.
    ///
    /// # Errors
    ///
    /// An id is in flight already.
    fn enter(&mut self, batch: Batch) -> Result<(), Breach> {
        self.in_flight += batch.requests.len();
        self.queued_bytes += batch.bytes;
        self.announced = batch.announced;
        self.requests.reserve(batch.requests.len());
        let mut result = Ok(());
        for request in &batch.requests {
            let Some(id) = request.id() else { continue };
            if self.requests.insert(id, request.clone()).is_some() {
                result = Err(Breach::DuplicateId(id));
            }
        }
        self.pending.extend(batch.requests);
        result
    }

    fn has_room(&self, frame_bytes: usize, limits: &Limits) -> bool {
        let bytes = self.queued_bytes + frame_bytes + QUEUED_FRAME_OVERHEAD_BYTES;
        self.in_flight == 0
            || (self.in_flight < limits.in_flight_per_connection_max && bytes <= limits.queued_bytes_max)
    }

    /// Lets a request go, and returns it. `None`: a notification.
    pub(super) fn release(&mut self, id: Option<u32>, cost: usize) -> Option<Request> {
        let request = id.and_then(|id| self.requests.remove(&id));
        self.in_flight -= 1;
        self.queued_bytes -= cost;
        if self.in_flight == 0 && self.requests.capacity() > KEPT_MAX {
            self.requests = HashMap::default();
        }
        if self.in_flight == 0 && self.pending.capacity() > KEPT_MAX {
            self.pending = VecDeque::new();
        }
        request
    }
}

impl Serving {
    /// Whether requests of the peer are in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.state().in_flight > 0
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::SeqCst)
    }

    /// Whether nothing is pending or runs.
    pub(super) fn is_idle(&self) -> bool {
        self.state().in_flight == 0
    }

    /// Drops what is pending, but for notifications if they are to be run all the same. Returns how many there were.
    pub(super) fn forget_pending(&self, keeps_notifications: bool) -> usize {
        let mut state = self.state();
        let pending = std::mem::take(&mut state.pending).into_iter();
        let (kept, forgotten): (VecDeque<_>, VecDeque<_>) =
            pending.partition(|request| keeps_notifications && request.id().is_none());
        state.pending = kept;
        state.in_flight -= forgotten.len();
        state.queued_bytes -= forgotten.iter().map(|request| request.cost()).sum::<usize>();
        forgotten.iter().filter_map(|request| request.id()).for_each(|id| drop(state.requests.remove(&id)));
        drop(state);
        forgotten.len()
    }

    /// The request with this id, if it is pending or runs.
    pub(super) fn request(&self, id: u32) -> Option<Request> {
        self.state().requests.get(&id).cloned()
    }

    pub(super) fn cancel_all(&self) {
        let all: Vec<_> = self.state().requests.values().cloned().collect();
        all.iter().for_each(|request| request.cancel());
    }

    pub(super) fn resume_if_waiting(&self, connection: &Arc<Connection<Peer>>) {
        if !self.is_waiting() {
            return;
        }
        let state = self.state();
        let has_room = state.has_room(state.waiting_bytes, &connection.limits);
        drop(state);
        if has_room && !connection.is_congested() {
            self.resume(connection);
        }
    }

    /// A call of ours was entered: its answer is behind the frame that waits.
    pub(super) fn resume_for_answers(&self, connection: &Arc<Connection<Peer>>) {
        if self.is_waiting() && !connection.is_flooded() {
            self.resume(connection);
        }
    }

    fn resume(&self, connection: &Arc<Connection<Peer>>) {
        if self.is_waiting.swap(false, Ordering::SeqCst) {
            connection.resume();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode;
    use crate::host::{Host, Manner};
    use crate::peer::{Until, call};
    use crate::service::Methods;
    use crate::transport::Transport;

    /// A connection that serves `add`, on which a call of ours waits for its answer.
    fn busy_connection(transport: Transport) -> Arc<Connection<Peer>> {
        let limits = Arc::new(Limits::default());
        let methods = Methods::new().method("add", |a: i64, b: i64| Ok(a + b));
        let peer = Peer::new(Host::new(methods, limits.clone(), Manner::default()), None);
        let connection = Connection::open(transport, peer, limits).expect("a socket can be waited for");
        let calling = connection.clone();
        let never_answered = move || {
            let encode = |out: &mut Vec<u8>, id| encode::encode_request(out, &calling.limits, id, "never", &());
            drop(call(&calling, Until::untold(None), encode));
        };
        dhaga::Builder::new().spawn(never_answered).expect("there is room").detach();
        while !connection.side.has_calls() {
            dhaga::yield_now();
        }
        connection
    }

    #[test]
    fn room_that_has_come_since_the_batch_began_is_used() {
        const FRAME: [u8; 10] = [0x94, 0, 1, 0xa3, b'a', b'd', b'd', 0x92, 1, 2];
        let (near, _far) = Transport::pair().expect("there are descriptors");
        let taking = dhaga::spawn(move || {
            let connection = busy_connection(near);
            let room = Room { requests: 0, bytes: 0, was_idle: false };
            let mut batch = Batch { room: Some(room), ..Batch::default() };
            let flow = connection.take_request(&FRAME, Message::parse(&FRAME, &connection.limits), &mut batch);
            connection.close(None);
            (flow, batch.requests.len())
        });
        assert_eq!(taking.join().expect("nobody panics"), (Flow::Taken, 1));
    }
}
