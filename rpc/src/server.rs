//! The serving side: accepts connections, gives each request a dhaga, answers, and drains at the end.
//!
//! ```text
//!   accept loop ──▶ the worker with the fewest connections ──▶ Connection<Serving>
//!   reader: frame ──▶ admit (limits, duplicate id, method) ──▶ a dhaga: decode, run, encode, append ──▶ release
//! ```

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream, ToSocketAddrs};
use dhaga::sync::{OwnedSemaphorePermit, Semaphore};
use dhaga::{Builder, JoinHandle, Runtime, park, turn, yield_now};

use crate::connection::{Connection, Side};
use crate::error::{Cause, ErrorProfile, Refusal};
use crate::frame::FrameError;
use crate::incoming::Flow;
use crate::limits::{Limits, QUEUED_FRAME_OVERHEAD_BYTES};
use crate::message::{Message, MessageError};
use crate::outbox::Appended;
use crate::service::{Handler, HandlerError, Methods, TypedHandler, respond_refusal};

/// The pause of an accept loop after an error. Where the kernel refuses a descriptor, the accept itself makes longer ones.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
/// How often connections that owe us bytes are looked at. Only while there are such.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often a drain looks whether the last answers have left.
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);

/// A MessagePack-RPC server. Each request is run by a dhaga of its own, so a handler may wait as it likes.
///
/// Dropping it stops accepting and closes its connections; [`Server::shutdown`] lets the calls in flight finish first. When
/// the runtime that it lives on is shut down, it accepts nothing more and refuses new requests, and the calls in flight have
/// the runtime's grace to finish.
///
/// # Examples
///
/// ```
/// let server = dhaga_rpc::Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind("127.0.0.1:0")?;
/// let client = dhaga_rpc::Client::connect(server.local_addr())?;
/// assert_eq!(client.call::<_, i64>("add", (20, 22))?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

/// How a [`Server`] shall be: its methods and its limits.
#[derive(Clone, Default)]
#[must_use = "a builder does nothing before `bind`"]
pub struct ServerBuilder {
    methods: Methods,
    limits: Limits,
    errors: ErrorProfile,
}

/// What a server has done and holds; see [`Server::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections that are open.
    pub connections: usize,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Handlers that run or wait now.
    pub in_flight: usize,
    /// Notifications for methods that are not there, and answers nobody asked for.
    pub ignored: u64,
    /// Connections closed because the peer broke the protocol or a limit.
    pub closed_for_fault: u64,
}

struct Shared {
    methods: Methods,
    limits: Arc<Limits>,
    errors: ErrorProfile,
    /// Handlers that run or wait.
    in_flight: AtomicUsize,
    /// Bytes of frames that have not ended, over all connections.
    unfinished_bytes: AtomicUsize,
    accepted: AtomicU64,
    ignored: AtomicU64,
    closed_for_fault: AtomicU64,
    is_draining: AtomicBool,
    /// Room for connections.
    room: Arc<Semaphore>,
    connections: Mutex<Registry>,
    watched: Mutex<Watched>,
}

/// The open connections, and how many each worker has.
#[derive(Default)]
struct Registry {
    open: slab::Slab<Weak<Connection<Serving>>>,
    per_worker: Vec<usize>,
    /// Nothing is accepted any more.
    is_closed: bool,
}

/// Connections from which something is overdue some day: a first frame, or the rest of one.
#[derive(Default)]
struct Watched {
    list: Vec<Watch>,
    has_watcher: bool,
}

struct Watch {
    connection: Weak<Connection<Serving>>,
    reads: u64,
    overdue: Instant,
}

impl ServerBuilder {
    /// Adds the function `f` as `name`; see [`Methods::method`].
    ///
    /// # Panics
    ///
    /// When `name` is taken already, or begins with `$/`.
    pub fn method<Args, F: TypedHandler<Args>>(mut self, name: &str, f: F) -> Self {
        self.methods = self.methods.method(name, f);
        self
    }

    /// Adds a function on encoded bytes as `name`; see [`Methods::method_raw`].
    ///
    /// # Panics
    ///
    /// As [`ServerBuilder::method`].
    pub fn method_raw<F>(mut self, name: &str, f: F) -> Self
    where
        F: Fn(&[u8], &mut Vec<u8>) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        self.methods = self.methods.method_raw(name, f);
        self
    }

    /// Adds the methods of a [`service`](macro@crate::service).
    ///
    /// # Panics
    ///
    /// When one of the names is taken already: give the services names, by `#[service(name = "…")]`.
    pub fn service(self, service: impl Into<Methods>) -> Self {
        self.methods(service.into())
    }

    /// Adds all of `methods`.
    ///
    /// # Panics
    ///
    /// When one of the names is taken already.
    pub fn methods(mut self, methods: Methods) -> Self {
        self.methods = self.methods.merge(methods);
        self
    }

    /// Replaces the limits. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// In which form errors travel to peers with which nothing else was agreed on. Default: [`ErrorProfile::Text`].
    pub fn error_profile(mut self, profile: ErrorProfile) -> Self {
        self.errors = profile;
        self
    }

    /// Listens on `address` and serves, in dhagas of the caller's runtime or else of the default one.
    ///
    /// # Errors
    ///
    /// What the kernel says: `AddrInUse`, `PermissionDenied`, out of descriptors.
    pub fn bind(self, address: impl ToSocketAddrs) -> io::Result<Server> {
        self.start(TcpListener::bind(address)?, |builder, loop_| builder.spawn(loop_))
    }

    /// As [`ServerBuilder::bind`], in dhagas of `runtime`.
    ///
    /// # Errors
    ///
    /// As [`ServerBuilder::bind`].
    pub fn bind_on(self, runtime: &Runtime, address: impl ToSocketAddrs) -> io::Result<Server> {
        self.start(TcpListener::bind(address)?, |builder, loop_| builder.spawn_on(runtime, loop_))
    }

    fn start(
        self,
        listener: TcpListener,
        spawn: impl FnOnce(Builder, Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>, dhaga::SpawnError>,
    ) -> io::Result<Server> {
        self.limits.check().map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        let address = listener.local_addr()?;
        let room = Arc::new(Semaphore::new(self.limits.connections_max));
        let shared = Arc::new(Shared {
            methods: self.methods,
            limits: Arc::new(self.limits),
            errors: self.errors,
            in_flight: AtomicUsize::new(0),
            unfinished_bytes: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            closed_for_fault: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            room,
            connections: Mutex::default(),
            watched: Mutex::default(),
        });
        let accepting = shared.clone();
        let builder = Builder::new().name("rpc accept").detached();
        let acceptor = spawn(builder, Box::new(move || accepting.accept_loop(&listener)))?;
        Ok(Server { shared, address, acceptor: Some(acceptor) })
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// Sets out to build a server.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Counters, as they are now.
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            connections: self.shared.registry().open.len(),
            accepted: self.shared.accepted.load(Ordering::Relaxed),
            in_flight: self.shared.in_flight.load(Ordering::Relaxed),
            ignored: self.shared.ignored.load(Ordering::Relaxed),
            closed_for_fault: self.shared.closed_for_fault.load(Ordering::Relaxed),
        }
    }

    /// Drains: accepts nothing more, refuses new requests with an error answer, lets the calls in flight finish and their
    /// answers leave, up to `grace`, and then closes all connections. Suspends. Returns whether every call finished.
    pub fn shutdown(mut self, grace: Duration) -> bool {
        let deadline = park::now().checked_add(grace);
        self.shared.is_draining.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.cancel();
            // With it goes the listener: the port is free when this returns.
            let _ = acceptor.join_timeout(grace);
        }
        while !self.shared.is_drained() {
            // While the thread unwinds nothing can be waited for.
            if std::thread::panicking() || deadline.is_some_and(|deadline| park::now() >= deadline) {
                return false;
            }
            dhaga::sleep(DRAIN_INTERVAL);
        }
        // Asked once only: a request that is refused now has its refusal unsent for a moment.
        true
    }

    fn stop_accepting(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.cancel();
            // It ends by itself; to wait for it here would make `drop` suspend.
            acceptor.detach();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        let open = self.shared.registry().close();
        open.iter().filter_map(Weak::upgrade).for_each(|connection| connection.close(None));
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Registry {
    fn close(&mut self) -> Vec<Weak<Connection<Serving>>> {
        self.is_closed = true;
        self.open.iter().map(|(_, connection)| connection.clone()).collect()
    }

    /// The worker with the fewest connections, which gets one more.
    fn place(&mut self) -> usize {
        self.per_worker.resize(turn::workers().unwrap_or(1), 0);
        let fewest = self.per_worker.iter().enumerate().min_by_key(|(_, count)| **count);
        let index = fewest.map_or(0, |(index, _)| index);
        self.per_worker[index] += 1;
        index
    }
}

/// A place among a server's connections, given back when the connection goes.
struct Place {
    /// `Some` until the place is dropped.
    server: Option<Arc<Shared>>,
    worker: usize,
    /// Key in the registry; `None` before it is entered.
    key: Mutex<Option<usize>>,
    _room: OwnedSemaphorePermit,
}

impl Place {
    fn server(&self) -> &Arc<Shared> {
        self.server.as_ref().expect("it is there until the place is dropped")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let mut registry = server.registry();
        registry.per_worker[self.worker] -= 1;
        if let Some(key) = *self.key.get_mut().unwrap_or_else(PoisonError::into_inner) {
            registry.open.remove(key);
        }
        drop(registry);
        // With the last connection may go the user's handlers, and what they have captured.
        turn::drop_in_dhaga(server);
    }
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_drained(&self) -> bool {
        let open: Vec<_> = self.registry().open.iter().filter_map(|(_, connection)| connection.upgrade()).collect();
        self.in_flight.load(Ordering::SeqCst) == 0 && open.iter().all(|connection| connection.is_flushed())
    }

    /// Accepts until it is cancelled, or its runtime shut down. No error of the kernel ends it.
    fn accept_loop(self: &Arc<Self>, listener: &TcpListener) {
        while let Ok(room) = self.room.clone().acquire_owned() {
            match listener.accept() {
                Ok((stream, _)) => self.adopt(stream, room),
                Err(error) if is_end(&error) => return,
                Err(error) => {
                    log::warn!("accept failed and is tried again: {error}");
                    dhaga::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Hands a new connection to the worker that has the fewest.
    fn adopt(self: &Arc<Self>, stream: TcpStream, room: OwnedSemaphorePermit) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let worker = self.registry().place();
        let place = Place { server: Some(self.clone()), worker, key: Mutex::new(None), _room: room };
        let opened = turn::spawn_at(worker, move || {
            if let Err(error) = open(stream, place) {
                log::warn!("a connection was lost as soon as it was accepted: {error}");
            }
        });
        if let Err(error) = opened {
            log::error!("a connection was closed because no dhaga could be spawned for it: {error}");
        }
    }

    /// Has the connection looked at until it owes nothing any more.
    fn watch(self: &Arc<Self>, connection: &Arc<Connection<Serving>>, within: Duration) {
        if connection.side.is_watched.swap(true, Ordering::SeqCst) {
            return;
        }
        let Some(overdue) = park::now().checked_add(within) else { return };
        let watch = Watch { connection: Arc::downgrade(connection), reads: connection.progress().1, overdue };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.list.push(watch);
        if !watched.has_watcher {
            let server = Arc::downgrade(self);
            // In the background: an end in good order need not wait for a peer that owes us bytes.
            let builder = Builder::new().name("rpc watch").detached();
            watched.has_watcher = builder.spawn(move || watch_loop(&server)).map(JoinHandle::detach).is_ok();
        }
    }

    /// Looks at all watched connections once. Returns whether any is left.
    fn look_after_watched(&self) -> bool {
        let now = park::now();
        let mut list = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut watched.list)
        };
        list.retain_mut(|watch| watch.is_still_due(now, &self.limits));
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.list.append(&mut list);
        watched.has_watcher = !watched.list.is_empty();
        watched.has_watcher
    }
}

/// The watcher lives only while somebody owes us bytes, so that an idle server makes no wake.
fn watch_loop(server: &Weak<Shared>) {
    loop {
        dhaga::sleep(WATCH_INTERVAL);
        match server.upgrade() {
            Some(server) if server.look_after_watched() => {}
            _ => return,
        }
    }
}

impl Watch {
    fn is_still_due(&mut self, now: Instant, limits: &Limits) -> bool {
        let Some(connection) = self.connection.upgrade().filter(|connection| !connection.is_closed()) else {
            return false;
        };
        let (is_unfinished, reads) = connection.progress();
        let has_grown = reads != self.reads;
        let is_owing = is_unfinished || reads == 0;
        // A frame that waits for room of ours is not the peer's fault.
        let is_ours = connection.side.is_waiting.load(Ordering::SeqCst);
        if is_owing && (has_grown || is_ours) {
            self.reads = reads;
            self.overdue = now + limits.frame_must_grow_within;
        } else if is_owing && now >= self.overdue {
            let which = if reads == 0 { "sent nothing" } else { "left a frame unfinished" };
            log::warn!("closing the connection to {}: it {which} for too long", connection.describe_peer());
            connection.close(Some(Arc::new(Overdue)));
            return false;
        }
        if !is_owing {
            connection.side.is_watched.store(false, Ordering::SeqCst);
            // Between the look and the store a frame may have begun: then this one is still watched.
            return connection.progress().0 && !connection.side.is_watched.swap(true, Ordering::SeqCst);
        }
        true
    }
}

/// The peer owed bytes and did not send them in time.
#[derive(Debug)]
struct Overdue;

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the peer did not finish a frame in time (Limits::first_frame_within, frame_must_grow_within)")
    }
}

impl std::error::Error for Overdue {}

/// All connections together have begun more than the server will hold.
#[derive(Debug)]
struct TooMuchUnfinished {
    limit: usize,
}

impl fmt::Display for TooMuchUnfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit;
        write!(
            f,
            "unfinished frames of all peers take more than {limit} bytes (Limits::unfinished_bytes_per_server_max)"
        )
    }
}

impl std::error::Error for TooMuchUnfinished {}

/// Whether the server, or the runtime that it lives on, is being shut down.
fn is_end(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<dhaga::Cancelled>() || inner.is::<dhaga::ShuttingDown>())
}

/// On the connection's own worker: from here its socket is listened to.
fn open(stream: TcpStream, place: Place) -> io::Result<()> {
    let server = place.server().clone();
    let limits = server.limits.clone();
    let side = Serving {
        place,
        state: Mutex::default(),
        is_waiting: AtomicBool::new(false),
        is_watched: AtomicBool::new(false),
        charged: AtomicUsize::new(0),
    };
    let connection = Connection::open(stream, side, limits)?;
    // Nothing has been read yet: this dhaga has not waited since, and the reader will run on the same worker.
    connection.set_error_profile(server.errors);
    let mut registry = server.registry();
    if registry.is_closed {
        drop(registry);
        connection.close(None);
        return Ok(());
    }
    let key = registry.open.insert(Arc::downgrade(&connection));
    drop(registry);
    *connection.side.place.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    server.watch(&connection, server.limits.first_frame_within);
    Ok(())
}

/// The serving side of one connection.
///
/// Requests that were read wait in `pending`. A *runner* is a dhaga that takes one after the other from there; before it
/// runs a handler it makes sure that, if any are left, a *successor* is queued, which starts when the runner parks or when
/// an idle worker steals it. So each request that waits has a dhaga of its own, and those that do not wait share one.
struct Serving {
    place: Place,
    state: Mutex<State>,
    /// A frame waits for room: whoever makes room resumes the reader.
    is_waiting: AtomicBool,
    is_watched: AtomicBool,
    /// Bytes of an unfinished frame that are charged to the server.
    charged: AtomicUsize,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.charge(0);
    }
}

#[derive(Default)]
struct State {
    pending: VecDeque<Request>,
    has_successor: bool,
    /// Requests that are pending or run, notifications included.
    in_flight: usize,
    /// Bytes of their frames, at true cost.
    queued_bytes: usize,
    /// Ids of the requests among them.
    ids: HashSet<u32, IdHash>,
    /// Size of the frame that waits, if one does.
    waiting_bytes: usize,
    /// The peer sends no more: the last answer closes the connection.
    is_ended: bool,
}

/// Capacity that an idle connection may keep in each of its collections.
const KEPT_MAX: usize = 8;
/// How long a runner goes on before it lets others of its worker run: the runtime's own measure for a batch.
const RUN_MAX: Duration = Duration::from_micros(100);
/// Requests between two looks at the clock.
const REQUESTS_PER_CLOCK_READ: usize = 8;

/// A request or notification that was admitted, with bytes of its own.
struct Request {
    handler: Arc<Handler>,
    /// `None`: a notification.
    id: Option<u32>,
    params: Box<[u8]>,
    /// What it is charged.
    cost: usize,
}

/// What one read brought, before it is entered.
#[derive(Default)]
pub(crate) struct Batch {
    requests: Vec<Request>,
    bytes: usize,
    /// Room when the batch began. It only grows meanwhile: there is one reader.
    room: usize,
    room_bytes: usize,
    /// Nothing was in flight when it began: a frame of any size is taken if it is alone.
    was_idle: bool,
}

/// What is found wrong with a frame before any handler is asked.
enum Reject {
    /// The stream cannot be trusted any more.
    Close(Cause),
    /// An error answer.
    Refuse(u32, Refusal),
    /// A notification for nobody, or an answer to nothing.
    Ignore,
}

impl Side for Serving {
    type Batch = Batch;

    fn begin(connection: &Arc<Connection<Self>>) -> Batch {
        let state = connection.side.state();
        let limits = &connection.limits;
        let room = match connection.is_congested() {
            true => 0,
            false => limits.in_flight_per_connection_max.saturating_sub(state.in_flight),
        };
        let room_bytes = limits.queued_bytes_max.saturating_sub(state.queued_bytes);
        Batch { room, room_bytes, was_idle: state.in_flight == 0, ..Batch::default() }
    }

    fn take(connection: &Arc<Connection<Self>>, frame: &[u8], batch: &mut Batch) -> Flow {
        if connection.is_closed() {
            return Flow::Taken;
        }
        if !batch.has_room(frame.len()) {
            return Flow::Wait;
        }
        match admit(connection, frame) {
            Ok(request) => {
                batch.bytes += request.cost;
                batch.requests.push(request);
            }
            Err(Reject::Refuse(id, refusal)) => {
                connection
                    .send(|out| respond_refusal(&connection.limits, connection.error_profile(), id, refusal, out));
            }
            Err(Reject::Close(cause)) => connection.side.close_for_fault(connection, cause),
            Err(Reject::Ignore) => {
                connection.side.server().ignored.fetch_add(1, Ordering::Relaxed);
            }
        }
        Flow::Taken
    }

    fn commit(connection: &Arc<Connection<Self>>, batch: Batch, waits_for: Option<usize>) -> bool {
        let side = &connection.side;
        let mut state = side.state();
        let entered = state.enter(batch);
        let mut has_room = true;
        if let Some(bytes) = waits_for {
            state.waiting_bytes = bytes;
            // Under the lock: who makes room looks at it after the room is made.
            side.is_waiting.store(true, Ordering::SeqCst);
            has_room = state.has_room(bytes, &connection.limits) && !connection.is_congested();
            has_room = has_room && side.is_waiting.swap(false, Ordering::SeqCst);
        }
        drop(state);
        if let Err(duplicate) = entered {
            side.close_for_fault(connection, Arc::new(duplicate));
        }
        has_room
    }

    fn run(connection: &Arc<Connection<Self>>) {
        Runner::new(connection).run();
    }

    fn delegate(connection: &Arc<Connection<Self>>) {
        let state = connection.side.state();
        connection.side.ensure_successor(connection, state);
    }

    fn unfinished(connection: &Arc<Connection<Self>>, bytes: usize) {
        let limit = connection.limits.unfinished_bytes_per_server_max;
        if connection.side.charge(bytes) > limit && bytes > 0 {
            return connection.side.close_for_fault(connection, Arc::new(TooMuchUnfinished { limit }));
        }
        if bytes == 0 {
            return;
        }
        connection.side.server().watch(connection, connection.limits.frame_must_grow_within);
    }

    fn drained(connection: &Arc<Connection<Self>>) {
        connection.side.resume_if_waiting(connection);
        connection.side.close_if_done(connection);
    }

    fn end_of_input(connection: &Arc<Connection<Self>>, was_unfinished: bool) {
        if was_unfinished {
            log::debug!("{} closed in the middle of a frame", connection.describe_peer());
        }
        connection.side.state().is_ended = true;
        connection.side.close_if_done(connection);
    }

    fn closed(connection: &Arc<Connection<Self>>, reason: Option<Cause>) {
        let mut state = connection.side.state();
        let pending = std::mem::take(&mut state.pending);
        state.in_flight -= pending.len();
        state.queued_bytes -= pending.iter().map(|request| request.cost).sum::<usize>();
        drop(state);
        connection.side.server().in_flight.fetch_sub(pending.len(), Ordering::SeqCst);
        if let Some(cause) = reason {
            log::debug!("connection to {} closed: {cause}", connection.describe_peer());
            if is_fault_of_peer(&cause) {
                connection.side.server().closed_for_fault.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Batch {
    /// A frame above the limit of queued bytes is taken when it is alone.
    fn has_room(&self, frame_bytes: usize) -> bool {
        let is_alone = self.was_idle && self.requests.is_empty();
        let bytes = self.bytes + frame_bytes + QUEUED_FRAME_OVERHEAD_BYTES;
        self.requests.len() < self.room && (is_alone || bytes <= self.room_bytes)
    }
}

impl State {
    /// Enters a batch.
    ///
    /// # Errors
    ///
    /// An id is in flight already.
    fn enter(&mut self, batch: Batch) -> Result<(), DuplicateId> {
        self.in_flight += batch.requests.len();
        self.queued_bytes += batch.bytes;
        self.ids.reserve(batch.requests.len());
        let mut result = Ok(());
        for id in batch.requests.iter().filter_map(|request| request.id) {
            if !self.ids.insert(id) {
                result = Err(DuplicateId(id));
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

    fn release(&mut self, cost: usize) {
        self.in_flight -= 1;
        self.queued_bytes -= cost;
        if self.in_flight == 0 && self.ids.capacity() > KEPT_MAX {
            self.ids = HashSet::default();
        }
        if self.in_flight == 0 && self.pending.capacity() > KEPT_MAX {
            self.pending = VecDeque::new();
        }
    }
}

impl Serving {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server(&self) -> &Arc<Shared> {
        self.place.server()
    }

    /// Charges the bytes of an unfinished frame, instead of those charged before. Returns what the server holds in all.
    fn charge(&self, bytes: usize) -> usize {
        let before = self.charged.swap(bytes, Ordering::Relaxed);
        if before == bytes {
            return self.server().unfinished_bytes.load(Ordering::Relaxed);
        }
        self.server().unfinished_bytes.fetch_sub(before, Ordering::Relaxed);
        self.server().unfinished_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Has a runner queued if anything is pending.
    fn ensure_successor(&self, connection: &Arc<Connection<Self>>, mut state: MutexGuard<'_, State>) {
        if state.has_successor || state.pending.is_empty() {
            return;
        }
        state.has_successor = true;
        drop(state);
        let successor = Successor { connection: connection.clone(), has_begun: false };
        if let Err(error) = turn::spawn(move || successor.run()) {
            // The runner at hand goes on, and tries again before its next request.
            log::debug!("requests of {} run one after the other: {error}", connection.describe_peer());
        }
    }

    fn resume_if_waiting(&self, connection: &Arc<Connection<Self>>) {
        if !self.is_waiting.load(Ordering::SeqCst) {
            return;
        }
        let state = self.state();
        let has_room = state.has_room(state.waiting_bytes, &connection.limits);
        drop(state);
        if has_room && !connection.is_congested() && self.is_waiting.swap(false, Ordering::SeqCst) {
            connection.resume();
        }
    }

    /// After the peer's FIN: the last answer has left, so ours may follow.
    fn close_if_done(&self, connection: &Arc<Connection<Self>>) {
        let state = self.state();
        let is_done = state.is_ended && state.in_flight == 0;
        drop(state);
        if is_done && connection.is_flushed() {
            connection.close(None);
        }
    }

    fn close_for_fault(&self, connection: &Arc<Connection<Self>>, cause: Cause) {
        log::warn!("closing the connection to {}: {cause}", connection.describe_peer());
        connection.close(Some(cause));
    }
}

/// A broken protocol or limit. A network that broke is nobody's fault; a peer that takes none of its bytes is timed out.
fn is_fault_of_peer(cause: &Cause) -> bool {
    let is_stalled = cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let is_breach = cause.is::<FrameError>() || cause.is::<MessageError>() || cause.is::<DuplicateId>();
    is_stalled || is_breach || cause.is::<Overdue>() || cause.is::<TooMuchUnfinished>()
}

/// Checks a frame against all that needs no user code, and copies what its handler will need.
fn admit(connection: &Arc<Connection<Serving>>, frame: &[u8]) -> Result<Request, Reject> {
    let server = connection.side.server();
    let (id, method, params) = match Message::parse(frame, &connection.limits) {
        Ok(Message::Request { id, method, params }) => (Some(id), method, params),
        Ok(Message::Notification { method, params }) => (None, method, params),
        Ok(Message::Response { .. }) => return Err(Reject::Ignore),
        Err(MessageError { request_id: Some(id), flaw }) => {
            return Err(Reject::Refuse(id, Refusal::BadRequest { reason: flaw.to_string() }));
        }
        Err(error) => return Err(Reject::Close(Arc::new(error))),
    };
    let handler = match (server.methods.lookup(method), id) {
        (Some(handler), _) => handler.clone(),
        (None, Some(id)) => return Err(Reject::Refuse(id, Refusal::UnknownMethod { method: method.to_owned() })),
        (None, None) => return Err(Reject::Ignore),
    };
    let refuse = |refusal| Err(id.map_or(Reject::Ignore, |id| Reject::Refuse(id, refusal)));
    if server.is_draining.load(Ordering::Relaxed) || dhaga::is_shutting_down() {
        return refuse(Refusal::ShuttingDown);
    }
    let limit = connection.limits.in_flight_per_server_max;
    if server.in_flight.fetch_add(1, Ordering::SeqCst) >= limit {
        server.in_flight.fetch_sub(1, Ordering::SeqCst);
        return refuse(Refusal::TooManyInFlight { limit });
    }
    Ok(Request { handler, id, params: params.into(), cost: frame.len() + QUEUED_FRAME_OVERHEAD_BYTES })
}

/// Two requests with one id are in flight: whichever is answered first would complete the other at the peer.
#[derive(Debug)]
struct DuplicateId(u32);

impl fmt::Display for DuplicateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the peer sent a request with id {} while another with this id is in flight", self.0)
    }
}

impl std::error::Error for DuplicateId {}

/// Runs pending requests one after the other. Whatever becomes of a handler, dropping the runner answers its request and
/// makes room.
struct Runner<'a> {
    connection: &'a Arc<Connection<Serving>>,
    /// The request whose handler runs.
    current: Option<Current>,
}

struct Current {
    /// `None`: a notification.
    id: Option<u32>,
    cost: usize,
}

impl<'a> Runner<'a> {
    fn new(connection: &'a Arc<Connection<Serving>>) -> Self {
        Self { connection, current: None }
    }

    /// In a dhaga; suspends where the handlers do.
    fn run(mut self) {
        let limits = self.connection.limits.clone();
        let (mut answer, mut slice) = (Vec::new(), Slice::default());
        while let Some(Request { handler, id, params, .. }) = self.next(&mut answer) {
            match id {
                Some(id) => {
                    let errors = self.connection.error_profile();
                    handler.respond(&limits, errors, id, &params, &mut answer);
                }
                None => self.notify(&handler, &params),
            }
            if slice.is_over() {
                yield_now();
            }
        }
    }

    fn notify(&self, handler: &Handler, params: &[u8]) {
        if let Err(error) = handler.notify(&self.connection.limits, params) {
            log::debug!("a notification of {} failed: {error}", self.connection.describe_peer());
        }
    }

    /// Sends the answer of the request at hand, lets it go, and takes the next. Suspends while too much is unsent.
    fn next(&mut self, answer: &mut Vec<u8>) -> Option<Request> {
        loop {
            let mut state = self.connection.side.state();
            if let Some(appended) = self.settle(&mut state, answer) {
                let next = state.pending.pop_front();
                self.current = next.as_ref().map(|next| Current { id: next.id, cost: next.cost });
                // What never waits is soon over: the runner itself goes on with what is behind it.
                let goes_on = next.as_ref().is_some_and(|next| next.handler.is_inline());
                self.let_go(state, appended, goes_on);
                return next;
            }
            drop(state);
            // Its deadline or cancel must not swallow an answer; and if the connection ends, there is room.
            if self.connection.wait_for_room(None).is_err() {
                yield_now();
            }
        }
    }

    /// All under the lock: whoever sees nothing in flight may close the connection, so the answer is with the unsent bytes
    /// by then; and its id is free before the answer can leave, for then the peer may use it again. `None`: no room.
    fn settle(&mut self, state: &mut State, answer: &mut Vec<u8>) -> Option<Settled> {
        let Some(current) = &self.current else { return Some(Settled::Nothing) };
        let appended = match answer.is_empty() {
            true => Appended::Queued,
            false => self.connection.try_append(answer)?,
        };
        answer.clear();
        if let Some(id) = current.id {
            state.ids.remove(&id);
        }
        state.release(current.cost);
        self.current = None;
        Some(Settled::One(appended))
    }

    fn let_go(&self, state: MutexGuard<'_, State>, settled: Settled, goes_on: bool) {
        let side = &self.connection.side;
        let may_be_done = state.is_ended;
        match goes_on {
            true => drop(state),
            false => side.ensure_successor(self.connection, state),
        }
        if let Settled::One(appended) = settled {
            self.connection.note(appended);
            side.server().in_flight.fetch_sub(1, Ordering::SeqCst);
            side.resume_if_waiting(self.connection);
            if may_be_done {
                side.close_if_done(self.connection);
            }
        }
    }
}

/// A runner that is queued behind another.
struct Successor {
    connection: Arc<Connection<Serving>>,
    has_begun: bool,
}

impl Successor {
    fn run(mut self) {
        self.has_begun = true;
        // A peer that does not read gets no more handlers run: each would hold its answer.
        while self.connection.wait_for_room(None).is_err() {
            yield_now();
        }
        self.connection.side.state().has_successor = false;
        Serving::run(&self.connection);
    }
}

impl Drop for Successor {
    /// It may never begin: the runtime has no room or memory for a dhaga. Whoever runs next queues another.
    fn drop(&mut self) {
        if !self.has_begun {
            self.connection.side.state().has_successor = false;
        }
    }
}

/// What a runner had to settle.
enum Settled {
    Nothing,
    One(Appended),
}

impl Drop for Runner<'_> {
    /// A handler panicked, or the runtime's shutdown unwinds it. Others go on with what is pending.
    fn drop(&mut self) {
        let Some(current) = self.current.take() else { return };
        let mut answer = Vec::new();
        if let Some(id) = current.id {
            let (limits, errors) = (&self.connection.limits, self.connection.error_profile());
            respond_refusal(limits, errors, id, Refusal::HandlerPanicked, &mut answer);
        }
        let mut state = self.connection.side.state();
        // Without regard to the limit: nothing may wait here.
        let appended = self.connection.append(&answer);
        if let Some(id) = current.id {
            state.ids.remove(&id);
        }
        state.release(current.cost);
        self.let_go(state, Settled::One(appended), false);
    }
}

/// A runner's share of its worker's time.
#[derive(Default)]
struct Slice {
    requests: usize,
    began: Option<Instant>,
}

impl Slice {
    /// Counts a request. Returns whether others should run now.
    fn is_over(&mut self) -> bool {
        self.requests += 1;
        if !self.requests.is_multiple_of(REQUESTS_PER_CLOCK_READ) {
            return false;
        }
        let now = park::now();
        let is_over = now - *self.began.get_or_insert(now) > RUN_MAX;
        if is_over {
            self.began = None;
        }
        is_over
    }
}

/// Hashes ids with a multiplier that the peer cannot know. No more is needed for a set that holds a thousand of them at
/// most, and it costs a fifth of SipHash.
#[derive(Clone)]
struct IdHash {
    multiplier: u64,
}

impl Default for IdHash {
    fn default() -> Self {
        let random = std::hash::RandomState::new().build_hasher().finish();
        Self { multiplier: random | 1 }
    }
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { multiplier: self.multiplier, hash: 0 }
    }
}

struct IdHasher {
    multiplier: u64,
    hash: u64,
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        let product = u128::from(self.hash ^ u64::from(id)) * u128::from(self.multiplier);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }
}
