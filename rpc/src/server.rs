//! Accepts connections, looks after them, and drains at the end.
//!
//! ```text
//!   accept loop ──▶ the worker with the fewest connections ──▶ Connection<Peer>
//!   serve ────────▶ the caller's worker, or any ─────────────▶ Connection<Peer>
//! ```

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use dhaga::net::unix::SocketAddr as UnixAddress;
use dhaga::net::{TcpListener, ToSocketAddrs, UnixListener};
use dhaga::sync::channel::RecvError;
use dhaga::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use dhaga::{Builder, JoinHandle, Runtime, park, turn};

use crate::client::Client;
use crate::connection::{Connection, on_a_worker};
use crate::error::{Cause, ErrorProfile};
use crate::host::{Host, Manner};
use crate::introspection::{self, Health, HealthStatus, Reports, ReportsLater};
use crate::layer::{self, Answered, Next};
use crate::limits::Limits;
use crate::metrics::{Metrics, Side};
use crate::peer::{Breach, Keeper, Peer};
use crate::service::{HandlerError, Methods, TypedHandler};
use crate::transport::Transport;

/// The pause of an accept loop after an error. Where the kernel refuses a descriptor, the accept itself makes longer ones.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
/// How often connections that owe us bytes are looked at. Only while there are such.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often a drain looks whether the last answers have left.
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);

/// A MessagePack-RPC server. Each request is run by a dhaga of its own, so a handler may wait as it likes.
///
/// It listens on TCP by [`ServerBuilder::bind`] or at a path by [`ServerBuilder::bind_unix`], or serves over one connection that
/// is there already by [`ServerBuilder::serve`]; `A` is what its address is.
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
pub struct Server<A = SocketAddr> {
    shared: Arc<Shared>,
    address: A,
    acceptor: Option<JoinHandle<()>>,
}

/// How a [`Server`] shall be: its methods and its limits.
#[derive(Clone)]
#[must_use = "a builder does nothing before `bind`"]
pub struct ServerBuilder {
    methods: Methods,
    limits: Limits,
    manner: Manner,
    is_introspected: bool,
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
    host: Arc<Host>,
    accepted: AtomicU64,
    /// Room for connections.
    room: Arc<Semaphore>,
    connections: Mutex<Registry>,
    watched: Mutex<Watched>,
    wants_calls: AtomicBool,
}

/// The open connections, and how many each worker has.
#[derive(Default)]
struct Registry {
    open: slab::Slab<Weak<Connection<Peer>>>,
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
    connection: Weak<Connection<Peer>>,
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

    /// In which form errors travel to plain peers. Default: [`ErrorProfile::Text`]. Those with extensions get
    /// [`ErrorProfile::Map`] at any rate.
    pub fn error_profile(mut self, profile: ErrorProfile) -> Self {
        self.manner.errors = profile;
        self
    }

    /// Puts `layer` around each handler, inside of those that are there already; see [`layer`](crate::layer). It runs in the
    /// dhaga of the handler.
    pub fn layer<F>(mut self, layer: F) -> Self
    where
        F: Fn(&layer::Call<'_>, &mut Next<'_, HandlerError>) -> Result<Answered, HandlerError> + Send + Sync + 'static,
    {
        self.manner.layers.push(Arc::new(layer));
        self
    }

    /// Whether calls are counted and timed, for [`Server::metrics`]. Default: they are not. It costs a hundred instructions a
    /// call: 2 % of what a small one takes where calls come one at a time, and 4 % where sixteen are in flight.
    pub fn metrics(mut self, has_metrics: bool) -> Self {
        self.manner.has_metrics = has_metrics;
        self
    }

    /// Whether the requests `$/describe`, `$/health` and `$/stats` are answered, to any peer that asks and that no layer
    /// keeps from it. Default: they are.
    pub fn introspection(mut self, is_introspected: bool) -> Self {
        self.is_introspected = is_introspected;
        self
    }

    /// Listens on `address` and serves, in dhagas of the caller's runtime or else of the default one.
    ///
    /// # Errors
    ///
    /// What the kernel says: `AddrInUse`, `PermissionDenied`, out of descriptors.
    pub fn bind(self, address: impl ToSocketAddrs) -> io::Result<Server> {
        self.listen(TcpListener::bind(address)?)
    }

    /// As [`ServerBuilder::bind`], in dhagas of `runtime`.
    ///
    /// # Errors
    ///
    /// As [`ServerBuilder::bind`].
    pub fn bind_on(self, runtime: &Runtime, address: impl ToSocketAddrs) -> io::Result<Server> {
        self.start(TcpListener::bind(address)?, |builder, loop_| builder.spawn_on(runtime, loop_))
    }

    /// Listens at `path`, where it makes a socket, for clients on this host; see [`ServerBuilder::bind`]. Who may write to the
    /// socket may connect: its permissions, and those of the folder, say who.
    ///
    /// The socket stays at its path when the server goes, and also when it is killed. Nothing else should lie there, so a server
    /// that starts removes what its predecessor has left.
    ///
    /// # Errors
    ///
    /// What the kernel says: `AddrInUse` if there is something at the path, be it a server or what one has left behind.
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga_rpc::{Client, Server};
    ///
    /// # let folder = std::env::temp_dir().join(format!("dhaga-bind-unix-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder)?;
    /// # let path = folder.join("add.socket");
    /// if path.try_exists()? {
    ///     std::fs::remove_file(&path)?;
    /// }
    /// let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind_unix(&path)?;
    /// let client = Client::connect_unix(&path)?;
    /// assert_eq!(client.call::<_, i64>("add", (20, 22))?, 42);
    /// # drop(server);
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bind_unix(self, path: impl AsRef<Path>) -> io::Result<Server<UnixAddress>> {
        self.listen(listen_at(path.as_ref())?)
    }

    /// As [`ServerBuilder::bind_unix`], in dhagas of `runtime`.
    ///
    /// # Errors
    ///
    /// As [`ServerBuilder::bind_unix`].
    pub fn bind_unix_on(self, runtime: &Runtime, path: impl AsRef<Path>) -> io::Result<Server<UnixAddress>> {
        self.start(listen_at(path.as_ref())?, |builder, loop_| builder.spawn_on(runtime, loop_))
    }

    /// As [`ServerBuilder::bind`], with a listener that is there already: one with options of its own, at an abstract address, or
    /// handed over by whoever started the program.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga::net::TcpListener;
    ///
    /// let listener = TcpListener::options().backlog(64).bind("127.0.0.1:0")?;
    /// let server = dhaga_rpc::Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).listen(listener)?;
    /// # let client = dhaga_rpc::Client::connect(server.local_addr())?;
    /// # assert_eq!(client.call::<_, i64>("add", (20, 22))?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listen<L: Listener>(self, listener: L) -> io::Result<Server<L::Address>> {
        self.start(listener, |builder, loop_| builder.spawn(loop_))
    }

    /// Serves over one connection that is open already, in dhagas of the caller's runtime or else of the default one: over
    /// [`Transport::stdio`] a program that its peer has started, over one end of a [`Transport::pair`] a test.
    ///
    /// The limits are those of any other connection, but that the peer may be silent at first: it is no stranger.
    ///
    /// # Errors
    ///
    /// What the kernel says to a descriptor that cannot be waited for.
    ///
    /// # Examples
    ///
    /// A program that serves whoever has started it, and ends when that one closes its standard input:
    ///
    /// ```no_run
    /// use dhaga_rpc::{Server, Transport};
    ///
    /// Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).serve(Transport::stdio()?)?.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// A test without a port:
    ///
    /// ```
    /// use dhaga_rpc::{Client, Server, Transport};
    ///
    /// let (near, far) = Transport::pair()?;
    /// let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).serve(far)?;
    /// let client = Client::over(near)?;
    /// assert_eq!(client.call::<_, i64>("add", (20, 22))?, 42);
    /// drop(client);
    /// server.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn serve(self, transport: Transport) -> io::Result<Server<OneConnection>> {
        let shared = self.shared()?;
        let room = shared.room.clone().try_acquire_owned();
        let room = room.map_err(|_| io::Error::other("Limits::connections_max leaves no room for a connection"))?;
        let (ending, ended) = oneshot::channel();
        let server = shared.clone();
        on_a_worker(move || {
            server.accepted.fetch_add(1, Ordering::Relaxed);
            let (worker, key) = server.registry().place();
            let ending = Some(Box::new(Mutex::new(Some(ending))));
            open(transport, Place { server, worker, key, ending, _room: room }).map(drop)
        })??;
        Ok(Server { shared, address: OneConnection { ended: Some(ended) }, acceptor: None })
    }

    fn shared(self) -> io::Result<Arc<Shared>> {
        self.limits.check().map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        let room = Arc::new(Semaphore::new(self.limits.connections_max));
        let reports = ReportsLater::new();
        let methods = match self.is_introspected {
            true => introspection::add(self.methods, &reports),
            false => self.methods,
        };
        let shared = Arc::new(Shared {
            host: Host::new(methods, Arc::new(self.limits), self.manner),
            accepted: AtomicU64::new(0),
            room,
            connections: Mutex::default(),
            watched: Mutex::default(),
            wants_calls: AtomicBool::new(true),
        });
        reports.set(Arc::downgrade(&shared));
        Ok(shared)
    }

    fn start<L: Listener>(
        self,
        listener: L,
        spawn: impl FnOnce(Builder, Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>, dhaga::SpawnError>,
    ) -> io::Result<Server<L::Address>> {
        let shared = self.shared()?;
        let address = listener.address()?;
        let accepting = shared.clone();
        let builder = Builder::new().name("rpc accept").detached();
        let acceptor = spawn(builder, Box::new(move || accepting.accept_loop(&listener)))?;
        Ok(Server { shared, address, acceptor: Some(acceptor) })
    }
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            methods: Methods::default(),
            limits: Limits::default(),
            manner: Manner::default(),
            is_introspected: true,
        }
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a server accepts connections from: a [`TcpListener`] or a [`UnixListener`] of `dhaga::net`.
#[expect(private_bounds, reason = "only what yields transports can be listened to")]
pub trait Listener: Accept {
    /// What the address of such a server is.
    type Address;

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn address(&self) -> io::Result<Self::Address>;
}

trait Accept: Send + 'static {
    fn accept(&self) -> io::Result<Transport>;
}

impl Listener for TcpListener {
    type Address = SocketAddr;

    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }
}

impl Accept for TcpListener {
    fn accept(&self) -> io::Result<Transport> {
        Ok(self.accept()?.0.into())
    }
}

impl Listener for UnixListener {
    type Address = UnixAddress;

    fn address(&self) -> io::Result<UnixAddress> {
        self.local_addr()
    }
}

impl Accept for UnixListener {
    fn accept(&self) -> io::Result<Transport> {
        Ok(self.accept()?.0.into())
    }
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "there is something at {} already: if it is a socket that nobody listens on any more, remove the file",
                path.display()
            ),
        ),
        _ => error,
    })
}

/// Of a [`Server`] that serves over one connection, which has no address.
pub struct OneConnection {
    /// Taken when it is waited for.
    ended: Option<oneshot::Receiver<Option<Cause>>>,
}

impl fmt::Debug for OneConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneConnection")
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
}

impl Server<UnixAddress> {
    /// The address it listens at: a path, or an abstract name.
    pub fn local_addr(&self) -> &UnixAddress {
        &self.address
    }
}

impl Server<OneConnection> {
    /// Waits until the connection has ended: the peer has closed its side, what it asked for is answered, and the answers have
    /// left; or, if it can cancel, as our own clients can, what it asked for has ended. Suspends.
    ///
    /// # Errors
    ///
    /// Why the connection was closed, if it was not in good order: the peer broke the protocol, or the connection broke. Those
    /// of the scope around it, and then the connection is closed.
    pub fn wait(mut self) -> io::Result<()> {
        match self.address.ended.take().map_or(Err(RecvError::Disconnected), oneshot::Receiver::recv) {
            Ok(None) => Ok(()),
            Ok(Some(cause)) => Err(error_of(cause)),
            Err(RecvError::Interrupted(interrupt)) => Err(interrupt.into()),
            Err(RecvError::Disconnected) => Err(io::Error::other("the connection was never opened")),
        }
    }
}

/// The kernel's own errors as they were.
fn error_of(cause: Cause) -> io::Error {
    match cause.downcast_ref::<io::Error>() {
        Some(error) => io::Error::new(error.kind(), cause.to_string()),
        None => io::Error::new(io::ErrorKind::InvalidData, cause),
    }
}

impl<A> Server<A> {
    /// Counters, as they are now.
    pub fn stats(&self) -> ServerStats {
        self.shared.stats()
    }

    /// What was counted of each method until now. Nothing unless it was built with [`ServerBuilder::metrics`].
    pub fn metrics(&self) -> Metrics {
        self.shared.host.served_metrics()
    }

    /// Says how the server is, to who asks by [`Client::health`]: before it ends, so that a balancer sends new calls to
    /// others. The calls that come are served all the same. A server that is shut down is draining at any rate.
    pub fn set_health(&self, status: HealthStatus) {
        self.shared.wants_calls.store(status == HealthStatus::Serving, Ordering::SeqCst);
    }

    /// A client for each connection that is open now, in no special order: to notify them all, or to call one. Each goes
    /// with its connection, and is never connected anew.
    ///
    /// # Examples
    ///
    /// ```
    /// # let server = dhaga_rpc::Server::builder().method("join", || Ok(())).bind("127.0.0.1:0")?;
    /// let client = dhaga_rpc::Client::builder().method("name", || Ok("Asha")).connect(server.local_addr())?;
    /// client.call::<_, ()>("join", ())?;
    /// let peers = server.peers();
    /// assert_eq!(peers.len(), 1);
    /// assert_eq!(peers[0].call::<_, String>("name", ())?, "Asha");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn peers(&self) -> Vec<Client> {
        let open = self.shared.open_connections();
        open.iter().filter(|connection| !connection.is_closed()).map(Client::of_connection).collect()
    }

    /// Drains: accepts nothing more, refuses new requests with an error answer, lets the calls in flight finish and their
    /// answers leave, up to `grace`, and then closes all connections. Suspends. Returns whether every call finished.
    ///
    /// Clients with [`Extensions`](crate::Extensions) are told: they make their next calls on a new connection, to whoever
    /// listens by then, and what was refused meanwhile they call again there.
    pub fn shutdown(mut self, grace: Duration) -> bool {
        let deadline = park::now().checked_add(grace);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.cancel();
            // With it goes the listener: the port is free when this returns.
            let _ = acceptor.join_timeout(grace);
        }
        // Not before: whoever is told connects anew, and shall not find the old listener.
        self.shared.host.is_draining.store(true, Ordering::SeqCst);
        self.shared.open_connections().iter().for_each(|connection| connection.say_goaway(grace));
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

impl<A> Drop for Server<A> {
    fn drop(&mut self) {
        self.stop_accepting();
        let open = self.shared.registry().close();
        open.iter().filter_map(Weak::upgrade).for_each(|connection| connection.close(None));
    }
}

impl<A: fmt::Debug> fmt::Debug for Server<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Registry {
    fn close(&mut self) -> Vec<Weak<Connection<Peer>>> {
        self.is_closed = true;
        self.open.iter().map(|(_, connection)| connection.clone()).collect()
    }

    /// A place for one more connection: on the worker that has the fewest, and a key.
    fn place(&mut self) -> (usize, usize) {
        self.per_worker.resize(turn::workers().unwrap_or(1), 0);
        let fewest = self.per_worker.iter().enumerate().min_by_key(|(_, count)| **count);
        let index = fewest.map_or(0, |(index, _)| index);
        self.per_worker[index] += 1;
        (index, self.open.insert(Weak::new()))
    }
}

/// A place among a server's connections, given back when the connection goes.
struct Place {
    server: Arc<Shared>,
    worker: usize,
    /// Key in the registry.
    key: usize,
    /// Whom to tell of the end.
    ending: Option<Box<Ending>>,
    _room: OwnedSemaphorePermit,
}

/// Tells once how a connection has ended.
type Ending = Mutex<Option<oneshot::Sender<Option<Cause>>>>;

impl Keeper for Place {
    fn watch(&self, connection: &Arc<Connection<Peer>>) {
        self.server.watch(connection, self.server.host.limits.frame_must_grow_within);
    }

    fn closed(&self, reason: Option<&Cause>) {
        let ending = self.ending.as_ref().map(|ending| ending.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(ending) = ending.flatten() {
            // Nobody may wait.
            let _ = ending.send(reason.cloned());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut registry = self.server.registry();
        registry.per_worker[self.worker] -= 1;
        registry.open.remove(self.key);
    }
}

impl Reports for Shared {
    fn health(&self) -> Health {
        let is_serving = self.wants_calls.load(Ordering::SeqCst) && !self.host.is_draining.load(Ordering::SeqCst);
        let status = if is_serving { HealthStatus::Serving } else { HealthStatus::Draining };
        let ServerStats { in_flight, connections, .. } = self.stats();
        Health::new(status, in_flight, connections)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let ServerStats { connections, accepted, in_flight, ignored, closed_for_fault } = self.stats();
        vec![
            ("connections", connections as u64),
            ("accepted", accepted),
            ("in_flight", in_flight as u64),
            ("ignored", ignored),
            ("closed_for_fault", closed_for_fault),
        ]
    }

    fn metrics_of_most(&self, methods_max: usize) -> (Metrics, usize) {
        match &self.host.metrics {
            Some(table) => table.snapshot_of_most(Side::Server, methods_max),
            None => (Metrics::none(Side::Server), 0),
        }
    }
}

impl Shared {
    fn stats(&self) -> ServerStats {
        let host = &self.host;
        ServerStats {
            connections: self.registry().open.len(),
            accepted: self.accepted.load(Ordering::Relaxed),
            in_flight: host.in_flight.load(Ordering::Relaxed),
            ignored: host.ignored.load(Ordering::Relaxed),
            closed_for_fault: host.closed_for_fault.load(Ordering::Relaxed),
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_drained(&self) -> bool {
        let open = self.open_connections();
        self.host.in_flight.load(Ordering::SeqCst) == 0 && open.iter().all(|connection| connection.is_flushed())
    }

    fn open_connections(&self) -> Vec<Arc<Connection<Peer>>> {
        self.registry().open.iter().filter_map(|(_, connection)| connection.upgrade()).collect()
    }

    /// Accepts until it is cancelled, or its runtime shut down. No error of the kernel ends it.
    fn accept_loop(self: &Arc<Self>, listener: &impl Accept) {
        while let Ok(room) = self.room.clone().acquire_owned() {
            match listener.accept() {
                Ok(transport) => {
                    self.adopt(transport, room);
                    // Many may come at once: who is connected goes first.
                    turn::step_back();
                }
                Err(error) if is_end(&error) => return,
                Err(error) => {
                    log::warn!("accept failed and is tried again: {error}");
                    dhaga::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Hands a new connection to the worker that has the fewest.
    fn adopt(self: &Arc<Self>, transport: Transport, room: OwnedSemaphorePermit) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let (worker, key) = self.registry().place();
        let place = Place { server: self.clone(), worker, key, ending: None, _room: room };
        let server = self.clone();
        let opened = turn::spawn_at(worker, move || {
            turn::step_back();
            match open(transport, place) {
                Ok(connection) => server.watch(&connection, server.host.limits.first_frame_within),
                Err(error) => log::warn!("a connection was lost as soon as it was accepted: {error}"),
            }
        });
        if let Err(error) = opened {
            log::error!("a connection was closed because no dhaga could be spawned for it: {error}");
        }
    }

    /// Has the connection looked at until it owes nothing any more.
    fn watch(self: &Arc<Self>, connection: &Arc<Connection<Peer>>, within: Duration) {
        if connection.side.set_watched(true) {
            return;
        }
        let Some(overdue) = park::now().checked_add(within) else { return };
        let watch = Watch { connection: Arc::downgrade(connection), reads: connection.progress().1, overdue };
        let mut watched = self.watched();
        watched.list.push(watch);
        if !watched.has_watcher {
            watched.has_watcher = true;
            drop(watched);
            let watcher = Watcher { server: Arc::downgrade(self), has_begun: false };
            // In the background: an end in good order need not wait for a peer that owes us bytes.
            let builder = Builder::new().name("rpc watch").detached();
            let _ = builder.spawn(move || watcher.run()).map(JoinHandle::detach);
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all watched connections once. Returns whether any is left.
    fn look_after_watched(&self) -> bool {
        let now = park::now();
        let mut list = std::mem::take(&mut self.watched().list);
        list.retain_mut(|watch| watch.is_still_due(now, &self.host.limits));
        let mut watched = self.watched();
        watched.list.append(&mut list);
        watched.has_watcher = !watched.list.is_empty();
        watched.has_watcher
    }
}

/// Lives only while somebody owes us bytes, so that an idle server makes no wake.
struct Watcher {
    server: Weak<Shared>,
    has_begun: bool,
}

impl Watcher {
    fn run(mut self) {
        self.has_begun = true;
        loop {
            dhaga::sleep(WATCH_INTERVAL);
            match self.server.upgrade() {
                Some(server) if server.look_after_watched() => {}
                _ => return,
            }
        }
    }
}

impl Drop for Watcher {
    /// It may never begin: the runtime has no room or memory for a dhaga. The next connection that owes us bytes brings another.
    fn drop(&mut self) {
        if let Some(server) = self.server.upgrade().filter(|_| !self.has_begun) {
            server.watched().has_watcher = false;
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
        // What came and waits for room of ours, or for the reader's turn on a busy worker, is not the peer's fault.
        let is_ours = connection.is_reading();
        if is_owing && (has_grown || is_ours) {
            self.reads = reads;
            self.overdue = now + limits.frame_must_grow_within;
        } else if is_owing && now >= self.overdue {
            let which = if reads == 0 { "sent nothing" } else { "left a frame unfinished" };
            log::warn!("closing the connection to {}: it {which} for too long", connection.describe_peer());
            connection.close(Some(Arc::new(Breach::Overdue)));
            return false;
        }
        if !is_owing {
            connection.side.set_watched(false);
            // Between the look and the store a frame may have begun: then this one is still watched.
            return connection.progress().0 && !connection.side.set_watched(true);
        }
        true
    }
}

/// Whether the server, or the runtime that it lives on, is being shut down.
fn is_end(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<dhaga::Cancelled>() || inner.is::<dhaga::ShuttingDown>())
}

/// On the connection's own worker: from here its transport is listened to.
fn open(transport: Transport, place: Place) -> io::Result<Arc<Connection<Peer>>> {
    let (server, key) = (place.server.clone(), place.key);
    let host = server.host.clone();
    let limits = host.limits.clone();
    let connection = Connection::open(transport, Peer::new(host, Some(Box::new(place))), limits)?;
    let mut registry = server.registry();
    registry.open[key] = Arc::downgrade(&connection);
    let is_closed = registry.is_closed;
    drop(registry);
    if is_closed {
        connection.close(None);
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_that_never_begins_leaves_its_place_to_another() {
        let server = Server::builder().shared().expect("the limits are in order");
        server.watched().has_watcher = true;
        drop(Watcher { server: Arc::downgrade(&server), has_begun: false });
        assert!(!server.watched().has_watcher);
    }
}
