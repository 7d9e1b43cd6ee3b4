//! The calling side: looks blocking, sends every call of a turn in one write, and completes it on the caller's worker.
//!
//! ```text
//!   call ──▶ id and slot ──▶ encode into the outgoing buffer ──▶ park with the deadline
//!                                                                  ▲
//!   reader: frame ──▶ slot, whole id compared ──▶ bytes to the caller, made ready
//! ```
//!
//! A client has a connection for each worker that calls, opened when used, so a call never crosses threads. A plain thread
//! has no worker: its calls are made by a dhaga on its behalf.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dhaga::net::{TcpStream, ToSocketAddrs};
use dhaga::park::{self, Parked, Unparker, WaitReason};
use dhaga::sync::LockTimeoutError;
use dhaga::{Builder, Interrupt, JoinError, turn, with_deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::{Connection, Side};
use crate::encode;
use crate::error::{CallError, Cause};
use crate::error_form;
use crate::in_flight::{Full, InFlight};
use crate::incoming::Flow;
use crate::limits::Limits;
use crate::message::{self, Message};
use crate::outbox::NoRoom;
use crate::waiters::Waiters;

/// Calls methods of one server. Cheap to clone; all clones, on all threads, share its connections, which are closed when
/// the last clone goes.
///
/// # Examples
///
/// ```
/// # let server = dhaga_rpc::Server::builder().method("greet", |name: String| Ok(format!("hello {name}"))).bind("127.0.0.1:0")?;
/// # let address = server.local_addr();
/// let client = dhaga_rpc::Client::connect(address)?;
/// let greeting: String = client.call("greet", ("Asha",))?;
/// assert_eq!(greeting, "hello Asha");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// How a [`Client`] shall be.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `connect`"]
pub struct ClientBuilder {
    limits: Limits,
}

struct Shared {
    addresses: Box<[SocketAddr]>,
    limits: Arc<Limits>,
    links: Mutex<Vec<Link>>,
    /// One dhaga connects at a time; the others wait for what it gets.
    connecting: dhaga::sync::Mutex<()>,
}

/// The connection of one worker.
struct Link {
    worker: u16,
    connection: Arc<Connection<Calling>>,
}

impl ClientBuilder {
    /// How long a call waits for its answer unless it says otherwise. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.call_timeout = timeout;
        self
    }

    /// Replaces the limits, the timeout among them. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Looks the address up and opens a first connection, to fail early. Suspends.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] when no address of the name answers; [`CallError::DeadlineExceeded`] when none does within
    /// the call timeout.
    pub fn connect(self, address: impl ToSocketAddrs) -> Result<Client, CallError> {
        self.limits.check().map_err(CallError::ApiMisuse)?;
        let limits = Arc::new(self.limits);
        let deadline = deadline_in(limits.call_timeout);
        let addresses = until(deadline, || Ok(address.to_socket_addrs()?.collect())).map_err(connect_error)?;
        let shared = Shared { addresses, limits, links: Mutex::default(), connecting: dhaga::sync::Mutex::new(()) };
        let client = Client { shared: Arc::new(shared) };
        client.in_dhaga(move |shared| shared.connection(deadline).map(drop))?;
        Ok(client)
    }
}

impl Client {
    /// Connects with the default limits; see [`ClientBuilder::connect`].
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::connect`].
    pub fn connect(address: impl ToSocketAddrs) -> Result<Self, CallError> {
        Self::builder().connect(address)
    }

    /// Sets out to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder { limits: Limits::default() }
    }

    /// Calls `method` and waits for its result. `params` is a tuple or list; `()` for no arguments. Parks a dhaga, blocks
    /// a plain thread; ends with the default timeout or the deadline of the caller's scope, whichever is earlier.
    ///
    /// # Errors
    ///
    /// See [`CallError`]: what is wrong, whose fault it is, and whether the call may have been executed.
    pub fn call<P, R>(&self, method: &str, params: P) -> Result<R, CallError>
    where
        P: Serialize,
        R: DeserializeOwned,
    {
        self.call_timeout(method, params, self.shared.limits.call_timeout)
    }

    /// As [`Client::call`], with a timeout of its own.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub fn call_timeout<P, R>(&self, method: &str, params: P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize,
        R: DeserializeOwned,
    {
        let limits = &*self.shared.limits;
        let encode = |out: &mut Vec<u8>, id| encode::encode_request(out, limits, id, method, &params);
        let answer = self.request(deadline_in(timeout), encode)?;
        Ok(message::decode(&answer, limits)?)
    }

    /// As [`Client::call`], within `timeout` or else the default one. What a connection's end has kept from being executed
    /// is called again once, and so is an idempotent call that may have been.
    pub(crate) fn call_again<P, R>(
        &self,
        method: &str,
        params: P,
        timeout: Option<Duration>,
        is_idempotent: bool,
    ) -> Result<R, CallError>
    where
        P: Serialize,
        R: DeserializeOwned,
    {
        let limits = &*self.shared.limits;
        let deadline = deadline_in(timeout.unwrap_or(limits.call_timeout));
        let encode = |out: &mut Vec<u8>, id| encode::encode_request(out, limits, id, method, &params);
        let answer = match self.request(deadline, encode) {
            Err(CallError::Disconnected { maybe_executed, .. }) if is_idempotent || !maybe_executed => {
                self.request(deadline, encode)?
            }
            answer => answer?,
        };
        Ok(message::decode(&answer, limits)?)
    }

    /// Calls `method` with an encoded array of arguments, and returns the encoded result.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub fn call_raw(&self, method: &str, params: &[u8]) -> Result<Vec<u8>, CallError> {
        let limits = &*self.shared.limits;
        let encode = |out: &mut Vec<u8>, id| encode::encode_request_raw(out, limits, id, method, params);
        let answer = self.request(deadline_in(limits.call_timeout), encode)?;
        Ok(answer.into_vec())
    }

    /// Sends a notification, which is never answered. Returns when it is on its way; suspends only to connect, or while
    /// too much is unsent.
    ///
    /// # Errors
    ///
    /// As [`Client::call`], before anything was sent.
    pub fn notify<P: Serialize>(&self, method: &str, params: P) -> Result<(), CallError> {
        let limits = self.shared.limits.clone();
        let deadline = deadline_in(limits.call_timeout);
        let mut message = Vec::new();
        encode::encode_notification(&mut message, &limits, method, &params)?;
        self.in_dhaga(move |shared| {
            let connection = shared.connection(deadline)?;
            connection.wait_for_room(deadline).map_err(overloaded(&connection))?;
            match connection.send(|out| out.extend_from_slice(&message)) {
                true => Ok(()),
                false => Err(CallError::Disconnected { maybe_executed: false, source: None }),
            }
        })
    }

    /// Connections that are open now: one for each worker that has called.
    pub fn connections(&self) -> usize {
        self.shared.links().iter().filter(|link| !link.connection.is_closed()).count()
    }

    fn request<E>(&self, deadline: Option<Instant>, encode: E) -> Result<Answer, CallError>
    where
        E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
    {
        if turn::worker_id().is_some() {
            return self.shared.request(deadline, encode);
        }
        // Encoded here, since the arguments need not be `Send`; the dhaga that calls puts its own id in.
        let mut template = Vec::new();
        encode(&mut template, 1)?;
        self.in_dhaga(move |shared| {
            let limits = &*shared.limits;
            match Message::parse(&template, limits) {
                Ok(Message::Request { method, params, .. }) => {
                    shared.request(deadline, |out, id| encode::encode_request_raw(out, limits, id, method, params))
                }
                _ => unreachable!("a request was encoded three lines ago"),
            }
        })
    }

    /// Runs `f` in a dhaga: the caller's own, or one that a plain thread waits for.
    fn in_dhaga<T, F>(&self, f: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&Shared) -> Result<T, CallError> + Send + 'static,
    {
        park::check()?;
        if turn::worker_id().is_some() {
            return f(&self.shared);
        }
        let shared = self.shared.clone();
        let spawned = Builder::new().name("rpc call").spawn(move || f(&shared));
        let handle = spawned.map_err(|error| CallError::Connect(Arc::new(error.into())))?;
        match handle.join() {
            Ok(result) => result,
            Err(JoinError::Stopped(interrupt, handle)) => {
                handle.cancel();
                Err(interrupt.into())
            }
            Err(error) => Err(CallError::Disconnected {
                maybe_executed: true,
                source: Some(Arc::new(io::Error::other(error.to_string()))),
            }),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("addresses", &self.shared.addresses)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let links = std::mem::take(self.links.get_mut().unwrap_or_else(PoisonError::into_inner));
        links.iter().for_each(|link| link.connection.side.end(&link.connection));
    }
}

/// Tries of a call whose connection turns out to have ended before anything was sent.
const TRIES_MAX: usize = 3;

impl Shared {
    fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call, in a dhaga.
    fn request<E>(&self, deadline: Option<Instant>, encode: E) -> Result<Answer, CallError>
    where
        E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
    {
        let mut tries = 1;
        loop {
            park::check()?;
            let connection = self.connection(deadline)?;
            match call(&connection, deadline, &encode) {
                Err(error) if error.is_stale() && tries < TRIES_MAX => tries += 1,
                result => return result,
            }
        }
    }

    /// The connection of the caller's worker, opened if there is none that lives.
    fn connection(&self, deadline: Option<Instant>) -> Result<Arc<Connection<Calling>>, CallError> {
        match self.existing() {
            Some(connection) => Ok(connection),
            None => self.connect(deadline),
        }
    }

    fn existing(&self) -> Option<Arc<Connection<Calling>>> {
        let worker = turn::worker_id()?;
        let links = self.links();
        let link = links.iter().find(|link| link.worker == worker)?;
        (!link.connection.is_closed()).then(|| link.connection.clone())
    }

    #[cold]
    fn connect(&self, deadline: Option<Instant>) -> Result<Arc<Connection<Calling>>, CallError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(park::now()));
        let _turn = match self.connecting.lock_timeout(left.unwrap_or(Duration::MAX)) {
            Ok(turn) => turn,
            Err(LockTimeoutError::Poisoned(turn)) => turn.into_inner(),
            Err(LockTimeoutError::Interrupted(interrupt)) => return Err(interrupt.into()),
            Err(LockTimeoutError::Timeout) => return Err(CallError::DeadlineExceeded),
        };
        if let Some(connection) = self.existing() {
            return Ok(connection);
        }
        let stream = self.dial(deadline)?;
        let side = Calling { in_flight: Mutex::new(Calls::new(&self.limits)), is_ending: AtomicBool::new(false) };
        let connection =
            Connection::open(stream, side, self.limits.clone()).map_err(|error| CallError::Connect(Arc::new(error)))?;
        let worker = turn::worker_id().ok_or(CallError::ApiMisuse("a connection is opened on a worker"))?;
        let mut links = self.links();
        links.retain(|link| link.worker != worker);
        links.push(Link { worker, connection: connection.clone() });
        Ok(connection)
    }

    /// Connects to the first of the addresses that answers.
    fn dial(&self, deadline: Option<Instant>) -> Result<TcpStream, CallError> {
        until(deadline, || TcpStream::connect(&self.addresses[..])).map_err(connect_error)
    }
}

/// The end of a wait that begins now.
fn deadline_in(timeout: Duration) -> Option<Instant> {
    park::earliest(park::now().checked_add(timeout))
}

fn until<T>(deadline: Option<Instant>, f: impl FnOnce() -> T) -> T {
    match deadline {
        Some(deadline) => with_deadline(deadline, f),
        None => f(),
    }
}

/// Why there is no connection: the caller's deadline or cancel, or else the network.
fn connect_error(error: io::Error) -> CallError {
    if let Err(interrupt) = park::check() {
        return interrupt.into();
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(interrupt @ Interrupt::DeadlineExceeded { .. }) => (*interrupt).into(),
        _ => CallError::Connect(Arc::new(error)),
    }
}

fn overloaded(connection: &Arc<Connection<Calling>>) -> impl Fn(NoRoom) -> CallError {
    let limit = connection.limits.unsent_bytes_max;
    move |why| match why {
        NoRoom::Late | NoRoom::Interrupted(Interrupt::DeadlineExceeded { .. }) => CallError::Overloaded { limit },
        NoRoom::Interrupted(other) => other.into(),
    }
}

/// Sends one request and waits for its answer.
fn call<E>(connection: &Arc<Connection<Calling>>, deadline: Option<Instant>, encode: E) -> Result<Answer, CallError>
where
    E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
{
    if connection.is_congested() {
        connection.wait_for_room(deadline).map_err(overloaded(connection))?;
    }
    let mut pending = Pending::enter(connection, deadline)?;
    let mut encoded = Ok(());
    if !connection.send(|out| encoded = encode(out, pending.id)) {
        return Err(CallError::Disconnected { maybe_executed: false, source: None });
    }
    encoded?;
    pending.is_sent = true;
    pending.wait(deadline)
}

/// Where an answer is laid for its caller.
struct Slot {
    caller: Unparker,
    answer: Mutex<Option<Result<Answer, CallError>>>,
}

impl Slot {
    fn fill(&self, answer: Result<Answer, CallError>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.caller.unpark();
    }

    fn take(&self) -> Option<Result<Answer, CallError>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A call that is entered among those in flight. Dropped before its answer came, it gives its id up.
struct Pending<'a> {
    connection: &'a Arc<Connection<Calling>>,
    id: u32,
    slot: Arc<Slot>,
    is_sent: bool,
    is_over: bool,
}

impl<'a> Pending<'a> {
    /// Enters a call, and waits while as many as allowed are in flight.
    fn enter(connection: &'a Arc<Connection<Calling>>, deadline: Option<Instant>) -> Result<Self, CallError> {
        let mut place = Place { side: &connection.side, number: None };
        loop {
            let slot = Arc::new(Slot { caller: park::unparker(), answer: Mutex::new(None) });
            let mut calls = connection.side.calls();
            if let Some(error) = &calls.ended {
                return Err(error.clone().before_sending());
            }
            match calls.in_flight.insert(slot.clone()) {
                Ok(id) => {
                    place.leave(&mut calls);
                    return Ok(Self { connection, id, slot, is_sent: false, is_over: false });
                }
                Err(Full { limit }) => {
                    place.take(&mut calls);
                    drop(calls);
                    if park::park_until(WaitReason::Call, deadline) == Parked::TimedOut {
                        park::check()?;
                        return Err(CallError::TooManyInFlight { limit });
                    }
                    park::check()?;
                }
            }
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<Answer, CallError> {
        let mut is_late = false;
        loop {
            if let Some(answer) = self.slot.take() {
                self.is_over = true;
                return answer;
            }
            if is_late {
                return Err(CallError::DeadlineExceeded);
            }
            park::check()?;
            is_late = park::park_until(WaitReason::Call, deadline) == Parked::TimedOut;
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let mut calls = self.connection.side.calls();
            if calls.in_flight.cancel(self.id).is_some() {
                calls.given_up += u64::from(self.is_sent);
                calls.waiting.wake_one();
            }
        }
    }
}

/// A place in the queue for room in the table. Who was woken and gave up meanwhile passes the wake on.
struct Place<'a> {
    side: &'a Calling,
    number: Option<u64>,
}

impl Place<'_> {
    fn take(&mut self, calls: &mut Calls) {
        self.leave(calls);
        self.number = Some(calls.waiting.join());
    }

    /// Returns whether the place was taken out already, by a wake.
    fn leave(&mut self, calls: &mut Calls) -> bool {
        self.number.take().is_some_and(|number| !calls.waiting.leave(number))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.number.is_some() {
            let mut calls = self.side.calls();
            if self.leave(&mut calls) {
                calls.waiting.wake_one();
            }
        }
    }
}

/// An encoded result.
type Answer = Box<[u8]>;

/// The calling side of one connection.
pub(crate) struct Calling {
    in_flight: Mutex<Calls>,
    /// The client has gone; what it sent has not.
    is_ending: AtomicBool,
}

struct Calls {
    in_flight: InFlight<Arc<Slot>>,
    /// Callers for whom there was no room.
    waiting: Waiters,
    /// Calls whose callers did not wait for the answer, which may yet come.
    given_up: u64,
    /// Why the connection ended.
    ended: Option<CallError>,
    unknown: Unknown,
}

impl Calls {
    fn new(limits: &Limits) -> Self {
        Self {
            in_flight: InFlight::new(limits.calls_per_connection_max),
            waiting: Waiters::default(),
            given_up: 0,
            ended: None,
            unknown: Unknown { since: park::now(), count: 0 },
        }
    }

    /// Counts an answer that nobody waits for. Returns whether it is tolerable.
    fn count_unknown(&mut self, per_second: u32) -> bool {
        if self.given_up > 0 {
            self.given_up -= 1;
            return true;
        }
        self.unknown.count(per_second)
    }
}

impl Calling {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection as soon as all that was sent has left. What the socket takes leaves at once, since the process
    /// may be about to end.
    fn end(&self, connection: &Arc<Connection<Self>>) {
        self.is_ending.store(true, Ordering::SeqCst);
        connection.flush();
    }
}

/// Answers to calls that are not in flight and were not given up: a few may be a mistake, a flood is not.
struct Unknown {
    since: Instant,
    count: u32,
}

impl Unknown {
    /// Counts one. Returns whether it is still within `per_second`.
    fn count(&mut self, per_second: u32) -> bool {
        let now = park::now();
        if now - self.since >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count <= per_second
    }
}

/// The peer keeps answering calls that nobody made.
#[derive(Debug)]
struct TooManyUnknown {
    limit: u32,
}

impl fmt::Display for TooManyUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the peer sent more than {} answers a second to calls that are not in flight (Limits::unknown_answers_per_second_max)",
            self.limit
        )
    }
}

impl std::error::Error for TooManyUnknown {}

impl Side for Calling {
    type Batch = ();

    fn begin(_: &Arc<Connection<Self>>) {}

    fn take(connection: &Arc<Connection<Self>>, frame: &[u8], (): &mut ()) -> Flow {
        match Message::parse(frame, &connection.limits) {
            Ok(Message::Response { id, outcome }) => complete(connection, id, outcome),
            // Nobody serves here. An unanswered request is the peer's to time out; it is told so.
            // A peer that does not read the refusals gets none.
            Ok(Message::Request { .. }) if connection.is_congested() => {}
            Ok(Message::Request { id, method, .. }) => {
                let refusal = crate::error::Refusal::UnknownMethod { method: method.to_owned() };
                let (limits, errors) = (&connection.limits, connection.error_profile());
                connection.send(|out| crate::service::respond_refusal(limits, errors, id, refusal, out));
            }
            Ok(Message::Notification { method, .. }) => log::debug!("ignored a notification {method:?}"),
            Err(error) => {
                log::warn!("closing the connection to {}: {error}", connection.describe_peer());
                connection.close(Some(Arc::new(error)));
            }
        }
        Flow::Taken
    }

    fn commit(_: &Arc<Connection<Self>>, (): (), _: Option<usize>) -> bool {
        true
    }

    fn run(_: &Arc<Connection<Self>>) {}

    fn delegate(_: &Arc<Connection<Self>>) {}

    fn unfinished(_: &Arc<Connection<Self>>, _: usize) {}

    fn drained(connection: &Arc<Connection<Self>>) {
        if connection.side.is_ending.load(Ordering::SeqCst) && connection.is_flushed() {
            connection.close(None);
        }
    }

    fn end_of_input(connection: &Arc<Connection<Self>>, _was_unfinished: bool) {
        connection.close(None);
    }

    fn closed(connection: &Arc<Connection<Self>>, reason: Option<Cause>) {
        let error = match reason {
            Some(cause) if is_fault_of_peer(&cause) => CallError::Malformed(cause),
            source => CallError::Disconnected { maybe_executed: true, source },
        };
        let mut calls = connection.side.calls();
        calls.ended = Some(error.clone());
        let failed: Vec<_> = calls.in_flight.fail_all().collect();
        calls.waiting.wake_all();
        drop(calls);
        failed.iter().for_each(|(_, slot)| slot.fill(Err(error.clone())));
    }
}

fn is_fault_of_peer(cause: &Cause) -> bool {
    cause.is::<crate::frame::FrameError>() || cause.is::<message::MessageError>() || cause.is::<TooManyUnknown>()
}

fn complete(connection: &Arc<Connection<Calling>>, id: u32, outcome: Result<&[u8], &[u8]>) {
    let mut calls = connection.side.calls();
    let Some(slot) = calls.in_flight.complete(id) else {
        let limit = connection.limits.unknown_answers_per_second_max;
        let is_tolerable = calls.count_unknown(limit);
        drop(calls);
        if !is_tolerable {
            let cause = TooManyUnknown { limit };
            log::warn!("closing the connection to {}: {cause}", connection.describe_peer());
            connection.close(Some(Arc::new(cause)));
        }
        return;
    };
    calls.waiting.wake_one();
    drop(calls);
    slot.fill(match outcome {
        Ok(result) => Ok(result.into()),
        Err(error) => Err(error_form::read(error, &connection.limits)),
    });
}

impl CallError {
    /// As the error of a call of which nothing was sent.
    fn before_sending(self) -> Self {
        match self {
            Self::Disconnected { source, .. } => Self::Disconnected { maybe_executed: false, source },
            other => other,
        }
    }

    /// The connection had ended before the call began, so that another one may serve it.
    fn is_stale(&self) -> bool {
        matches!(self, Self::Disconnected { maybe_executed: false, .. })
    }
}

impl From<Interrupt> for CallError {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Cancelled => Self::Cancelled,
            Interrupt::Panicking => Self::Panicking,
            _ => Self::DeadlineExceeded,
        }
    }
}
