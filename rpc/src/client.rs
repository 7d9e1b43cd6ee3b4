//! The face of a peer that is called: connections that we dial, or one that is there already.
//!
//! A client has a connection for each worker that calls, opened when used, so a call never crosses threads. A plain thread
//! has no worker: its calls are made by a dhaga on its behalf. A client with methods of its own has one connection in all,
//! since whoever calls it would else call it several times. A client of a connection that is there already opens none.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dhaga::net::unix::SocketAddr as UnixAddress;
use dhaga::net::{TcpStream, ToSocketAddrs, UnixStream};
use dhaga::park;
use dhaga::process::Command;
use dhaga::sync::LockTimeoutError;
use dhaga::turn::{self, ShortLock};
use dhaga::{Builder, Interrupt, JoinError, with_deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::child::Minder;
use crate::connection::{Connection, on_a_worker};
use crate::description::Description;
use crate::encode;
use crate::error::{CALL_ERROR_KINDS, CallError, RefusedReason};
use crate::host::{Host, Manner};
use crate::introspection::{self, Health};
use crate::layer::{self, Answered, Layer, Next};
use crate::limits::Limits;
use crate::message::{self, Message};
use crate::meta::OUTGOING;
use crate::metrics::{Begun, Metrics, Side, Table};
use crate::peer::{self, Answer, Keeper, Peer, Until};
use crate::probe::{self, PlainPeers, Probe, Verdict};
use crate::service::{HandlerError, Methods, TypedHandler};
use crate::transport::{Transport, unix_name};

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
#[derive(Clone, Default)]
#[must_use = "a builder does nothing before `connect`"]
pub struct ClientBuilder {
    methods: Methods,
    limits: Limits,
    extensions: Extensions,
    layers: Vec<Arc<Layer<CallError>>>,
    has_metrics: bool,
    /// Of the methods.
    manner: Manner,
}

/// Whether a client asks its peer for what goes beyond plain MessagePack-RPC: deadlines, cancellation, metadata and traces
/// that go with a call. `docs/protocol.md` says what goes over the wire.
///
/// The question is one ordinary request, sent when a connection was dialled; the calls wait for its answer,
/// [`HELLO_WITHIN`](crate::limits::HELLO_WITHIN) at most. Nothing else of the extensions is sent to who has not answered it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extensions {
    /// It does not ask.
    Plain,
    /// It asks. A peer that refuses, says nothing or closes is a plain one: the client remembers its address, and does not
    /// ask it again.
    #[default]
    Auto,
    /// As `Auto`, but to a plain peer nothing is sent: calls fail with [`CallError::PlainPeer`].
    Require,
}

struct Shared {
    limits: Arc<Limits>,
    route: Route,
    around: Around,
}

/// What is done around each call.
#[derive(Default)]
struct Around {
    /// The outermost first.
    layers: Vec<Arc<Layer<CallError>>>,
    metrics: Option<Table>,
}

/// Where a client finds a connection.
#[expect(clippy::large_enum_variant, reason = "there are few clients, and the large one is the usual one")]
enum Route {
    Dialled(Dialled),
    /// One that was open when the client was made. While it is open, its worker keeps it.
    Open(Weak<Connection<Peer>>),
    /// As `Open`, but it goes with the client.
    Own(Own),
}

/// A connection that ends with its client.
struct Own {
    connection: Arc<Connection<Peer>>,
    probe: Option<Arc<Probe>>,
    extensions: Extensions,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.connection.end();
    }
}

/// Where a server listens.
#[derive(Debug)]
enum Target {
    Tcp(Box<[SocketAddr]>),
    Unix(UnixAddress),
}

/// Connections that are opened when used.
struct Dialled {
    target: Target,
    host: Arc<Host>,
    extensions: Extensions,
    plain: PlainPeers,
    links: ShortLock<Vec<Link>>,
    /// One dhaga connects at a time; the others wait for what it gets.
    connecting: dhaga::sync::Mutex<()>,
}

/// A connection, and what its calls have to wait for.
type Found = (Arc<Connection<Peer>>, Option<Arc<Probe>>);

/// The connection of one worker.
struct Link {
    worker: u16,
    connection: Arc<Connection<Peer>>,
    /// `Some`: calls wait for what the peer says to `$/hello`.
    probe: Option<Arc<Probe>>,
}

impl ClientBuilder {
    /// Adds the function `f` as `name`, for the server to call; see [`Methods::method`]. A client with methods has one
    /// connection, whoever calls, so that it is notified once; until the next call it stays without one when that breaks.
    ///
    /// # Panics
    ///
    /// When `name` is taken already, or begins with `$/`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga_rpc::{Client, Server};
    ///
    /// let server = Server::builder().method("join", || Ok(())).bind("127.0.0.1:0")?;
    /// let client = Client::builder().method("double", |n: i64| Ok(2 * n)).connect(server.local_addr())?;
    /// client.call::<_, ()>("join", ())?;
    /// let answers: Result<Vec<i64>, _> = server.peers().iter().map(|peer| peer.call("double", (21,))).collect();
    /// assert_eq!(answers?, [42]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn method<Args, F: TypedHandler<Args>>(mut self, name: &str, f: F) -> Self {
        self.methods = self.methods.method(name, f);
        self
    }

    /// Adds a function on encoded bytes as `name`; see [`Methods::method_raw`].
    ///
    /// # Panics
    ///
    /// As [`ClientBuilder::method`].
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

    /// How long a call waits for its answer unless it says otherwise. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.call_timeout = timeout;
        self
    }

    /// Whether the peer is asked for extensions. Default: [`Extensions::Auto`].
    pub fn extensions(mut self, extensions: Extensions) -> Self {
        self.extensions = extensions;
        self
    }

    /// Puts `layer` around each call, inside of those that are there already; see [`layer`](crate::layer). It runs where the
    /// call is made, within its deadline. Around the client's own methods go [others](Self::handler_layer).
    pub fn layer<F>(mut self, layer: F) -> Self
    where
        F: Fn(&layer::Call<'_>, &mut Next<'_, CallError>) -> Result<Answered, CallError> + Send + Sync + 'static,
    {
        self.layers.push(Arc::new(layer));
        self
    }

    /// Puts `layer` around the handler of each method that the client has for its server, as
    /// [`ServerBuilder::layer`](crate::ServerBuilder::layer) does.
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga_rpc::{Client, Server, layer};
    ///
    /// let server = Server::builder().method("join", || Ok(())).bind("127.0.0.1:0")?;
    /// let client = Client::builder().method("double", |n: i64| Ok(2 * n)).handler_layer(layer::log_calls);
    /// client.connect(server.local_addr())?.call::<_, ()>("join", ())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handler_layer<F>(mut self, layer: F) -> Self
    where
        F: Fn(&layer::Call<'_>, &mut Next<'_, HandlerError>) -> Result<Answered, HandlerError> + Send + Sync + 'static,
    {
        self.manner.layers.push(Arc::new(layer));
        self
    }

    /// Whether calls are counted and timed, for [`Client::metrics`], and those of the client's own methods, for
    /// [`Client::served_metrics`]. Default: they are not. It costs a hundred and fifty instructions a call; see
    /// [`ServerBuilder::metrics`](crate::ServerBuilder::metrics).
    pub fn metrics(mut self, has_metrics: bool) -> Self {
        self.has_metrics = has_metrics;
        self.manner.has_metrics = has_metrics;
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
    /// the call timeout; [`CallError::PlainPeer`] if extensions are required and it has none.
    pub fn connect(self, address: impl ToSocketAddrs) -> Result<Client, CallError> {
        let deadline = deadline_in(self.limits.call_timeout);
        let addresses = until(deadline, || Ok(address.to_socket_addrs()?.collect())).map_err(connect_error)?;
        self.dial(Target::Tcp(addresses), deadline)
    }

    /// As [`ClientBuilder::connect`], to the server that listens at `path` on this host.
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::connect`]: `NotFound` is inside if nothing is there, `ConnectionRefused` if nobody listens.
    pub fn connect_unix(self, path: impl AsRef<Path>) -> Result<Client, CallError> {
        let address = UnixAddress::from_pathname(path).map_err(connect_error)?;
        let deadline = deadline_in(self.limits.call_timeout);
        self.dial(Target::Unix(address), deadline)
    }

    /// What a client of this builder has around its calls.
    fn around(&self) -> Around {
        let table = || Table::new(CALL_ERROR_KINDS, std::iter::empty(), METHODS_COUNTED_MAX);
        Around { layers: self.layers.clone(), metrics: self.has_metrics.then(table) }
    }

    fn dial(self, target: Target, deadline: Option<Instant>) -> Result<Client, CallError> {
        self.limits.check().map_err(CallError::ApiMisuse)?;
        let around = self.around();
        let limits = Arc::new(self.limits);
        let host = Host::new(self.methods, limits.clone(), self.manner);
        let dialled = Dialled {
            target,
            host,
            extensions: self.extensions,
            plain: PlainPeers::default(),
            links: ShortLock::default(),
            connecting: dhaga::sync::Mutex::new(()),
        };
        let route = Route::Dialled(dialled);
        let client = Client { shared: Arc::new(Shared { limits, route, around }) };
        client.in_dhaga(move |shared| shared.open(deadline))?;
        Ok(client)
    }

    /// Calls whoever is at the other end of `transport`: one connection for all calls, from any worker and thread, and no other
    /// when it ends. Dropping the last clone of the client closes it. It asks for extensions as one that dials; a peer that closes
    /// because it was asked is lost, so do not [ask](Self::extensions) such a one.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] with what the kernel says to a descriptor that cannot be waited for.
    pub fn over(self, transport: Transport) -> Result<Client, CallError> {
        self.limits.check().map_err(CallError::ApiMisuse)?;
        let around = self.around();
        Ok(Client::owning(self.open(transport, None)?, around))
    }

    /// Starts the program of `command` and calls it over its standard input and output: one connection for all calls, from any
    /// worker and thread. The program serves there, as by [`ServerBuilder::serve`] over [`Transport::stdio`], or as
    /// `nvim --embed --headless` does. Suspends. What it writes to standard error goes where `command` says, by default to ours.
    ///
    /// When the child ends or closes its output, all calls fail with [`CallError::Disconnected`], whose source is a
    /// [`ChildEnded`](crate::ChildEnded) with its exit status; it is not started again. When the last clone of the client goes, what
    /// was sent leaves, the child's standard input is closed, and if it has not ended within
    /// [`CHILD_GRACE`](crate::CHILD_GRACE), it is killed. In any case its status is collected in the background, so that it is
    /// no zombie. At the end of its runtime the child is killed at once.
    ///
    /// `command` keeps the settings that are made for this: piped streams, and that the child is killed when it is dropped.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] when it cannot be started, with what the kernel says.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use dhaga::process::Command;
    /// use dhaga_rpc::Client;
    ///
    /// let nvim = Client::spawn(Command::new("nvim").args(["--embed", "--headless"]))?;
    /// assert_eq!(nvim.call::<_, i64>("nvim_eval", ("6 * 7",))?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`ServerBuilder::serve`]: crate::ServerBuilder::serve
    pub fn spawn(self, command: &mut Command) -> Result<Client, CallError> {
        self.limits.check().map_err(CallError::ApiMisuse)?;
        let (transport, minder) = Minder::start(command).map_err(connect_error)?;
        let around = self.around();
        let own = self.open(transport, Some(minder.keeper()))?;
        minder.begin(&own.connection).map_err(connect_error)?;
        Ok(Client::owning(own, around))
    }

    /// Begins to listen to a transport, on the caller's worker or on any.
    fn open(self, transport: Transport, keeper: Option<Box<dyn Keeper>>) -> Result<Own, CallError> {
        let (limits, extensions) = (Arc::new(self.limits), self.extensions);
        let side = Peer::new(Host::new(self.methods, limits.clone(), self.manner), keeper);
        side.prepare_to_call();
        let opened = on_a_worker(move || {
            let connection = Connection::open(transport, side, limits).map_err(connect_error)?;
            let probe = extensions.ask(&connection, &PlainPeers::default())?;
            Ok(Own { connection, probe, extensions })
        });
        opened.map_err(connect_error)?
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { methods, limits, extensions, .. } = self;
        let mut shown = f.debug_struct("ClientBuilder");
        shown.field("methods", methods).field("limits", limits).field("extensions", extensions).finish_non_exhaustive()
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

    /// As [`Client::connect`], to the server that listens at `path` on this host; see [`ServerBuilder::bind_unix`].
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::connect_unix`].
    ///
    /// [`ServerBuilder::bind_unix`]: crate::ServerBuilder::bind_unix
    pub fn connect_unix(path: impl AsRef<Path>) -> Result<Self, CallError> {
        Self::builder().connect_unix(path)
    }

    /// Calls over a connection that is open already, with the default limits; see [`ClientBuilder::over`].
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::over`].
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga_rpc::{Client, Server, Transport};
    ///
    /// let (near, far) = Transport::pair()?;
    /// let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).serve(far)?;
    /// assert_eq!(Client::over(near)?.call::<_, i64>("add", (20, 22))?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn over(transport: Transport) -> Result<Self, CallError> {
        Self::builder().over(transport)
    }

    /// Starts a program and calls it over its standard input and output, with the default limits; see
    /// [`ClientBuilder::spawn`].
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::spawn`].
    pub fn spawn(command: &mut Command) -> Result<Self, CallError> {
        Self::builder().spawn(command)
    }

    /// Sets out to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A client of a connection that has ended.
    pub(crate) fn of_nobody() -> Self {
        Self {
            shared: Arc::new(Shared {
                limits: Arc::default(),
                route: Route::Open(Weak::new()),
                around: Around::default(),
            }),
        }
    }

    /// Calls whoever is at the other end of a connection that is open.
    pub(crate) fn of_connection(connection: &Arc<Connection<Peer>>) -> Self {
        let route = Route::Open(Arc::downgrade(connection));
        Self { shared: Arc::new(Shared { limits: connection.limits.clone(), route, around: Around::default() }) }
    }

    /// A client with which the connection ends.
    fn owning(own: Own, around: Around) -> Self {
        let limits = own.connection.limits.clone();
        Self { shared: Arc::new(Shared { limits, route: Route::Own(own), around }) }
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
        self.call_until(method, &params, untold(self.shared.limits.call_timeout))
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
        self.call_until(method, &params, told(timeout))
    }

    fn call_until<P, R>(&self, method: &str, params: &P, until: Until) -> Result<R, CallError>
    where
        P: Serialize,
        R: DeserializeOwned,
    {
        let limits = &*self.shared.limits;
        let encode = |out: &mut Vec<u8>, id| encode::encode_request(out, limits, id, method, params);
        let answer = self.request(method, until, encode)?;
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
        let until = timeout.map_or_else(|| untold(limits.call_timeout), told);
        let encode = |out: &mut Vec<u8>, id| encode::encode_request(out, limits, id, method, &params);
        let mut may_call_again = true;
        let answer = loop {
            match self.request(method, until, encode) {
                Err(CallError::Disconnected { maybe_executed, .. })
                    if may_call_again && (is_idempotent || !maybe_executed) =>
                {
                    may_call_again = false;
                }
                answer => break answer?,
            }
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
        let answer = self.request(method, untold(limits.call_timeout), encode)?;
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
        let mut count = Count::begin(&self.shared, method);
        count.bytes_out.set(message.len());
        let send = |message: Vec<u8>| {
            self.in_dhaga(move |shared| peer::notify(&shared.connection(deadline)?, deadline, &message))
        };
        let outcome = match self.shared.around.layers.is_empty() {
            true => send(message),
            false => self.in_layers(method, true, || send(message.clone()).map(|()| Answered::new(0))).map(drop),
        };
        count.end(0, outcome.as_ref().err());
        outcome
    }

    /// Connections that are open now: one for each worker that has called.
    pub fn connections(&self) -> usize {
        match &self.shared.route {
            Route::Dialled(dialled) => dialled.links.lock().iter().filter(|link| link.is_usable()).count(),
            Route::Open(connection) => usize::from(connection.upgrade().is_some_and(|open| is_usable(&open))),
            Route::Own(own) => usize::from(is_usable(&own.connection)),
        }
    }

    /// What was counted of each method that this client and its clones have called. Nothing unless it was built with
    /// [`ClientBuilder::metrics`].
    pub fn metrics(&self) -> Metrics {
        self.shared
            .around
            .metrics
            .as_ref()
            .map_or_else(|| Metrics::none(Side::Client), |table| table.snapshot(Side::Client))
    }

    /// What was counted of each method that this client has for its server, as [`Server::metrics`](crate::Server::metrics) tells of a
    /// server's. Nothing unless it was built with [`ClientBuilder::metrics`].
    pub fn served_metrics(&self) -> Metrics {
        match &self.shared.route {
            Route::Dialled(dialled) => dialled.host.served_metrics(),
            Route::Own(own) => own.connection.side.host().served_metrics(),
            Route::Open(_) => Metrics::none(Side::Server),
        }
    }

    /// Asks the server what it serves. One of another make may not know.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub fn describe(&self) -> Result<Description, CallError> {
        self.call(introspection::DESCRIBE, ())
    }

    /// Asks the server how it is. One of another make may not know.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub fn health(&self) -> Result<Health, CallError> {
        self.call(introspection::HEALTH, ())
    }

    /// One call, counted and within the layers.
    #[inline]
    fn request<E>(&self, method: &str, until: Until, encode: E) -> Result<Answer, CallError>
    where
        E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
    {
        let mut count = Count::begin(&self.shared, method);
        let encode = |out: &mut Vec<u8>, id| {
            let before = out.len();
            encode(out, id)?;
            count.bytes_out.set(out.len() - before);
            Ok(())
        };
        let answer = match self.shared.around.layers.is_empty() {
            true => self.send_request(until, encode),
            false => {
                let mut answer = None;
                let send = || {
                    let got = self.send_request(until, encode)?;
                    Ok(Answered::new(answer.insert(got).len()))
                };
                let outcome = self.in_layers(method, false, send);
                outcome.and_then(|_| answer.ok_or(CallError::ApiMisuse("a layer succeeded where nothing was called")))
            }
        };
        count.end(answer.as_ref().map_or(0, |answer| answer.len()), answer.as_ref().err());
        answer
    }

    /// Runs `send` within the layers.
    fn in_layers(
        &self,
        method: &str,
        is_notification: bool,
        mut send: impl FnMut() -> Result<Answered, CallError>,
    ) -> Result<Answered, CallError> {
        let peer = || self.shared.describe_peer();
        let outgoing = OUTGOING.get();
        let metadata = outgoing.as_ref().map(|outgoing| outgoing.metadata.clone()).unwrap_or_default();
        let call = layer::Call::new(method, is_notification, &metadata, &peer);
        layer::run(&self.shared.around.layers, &call, &mut send)
    }

    #[inline]
    fn send_request<E>(&self, until: Until, encode: E) -> Result<Answer, CallError>
    where
        E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
    {
        if self.shared.serves_here() {
            return self.shared.request(until, encode);
        }
        // Encoded here, since the arguments need not be `Send`; the dhaga that calls puts its own id in.
        let mut template = Vec::new();
        encode(&mut template, 1)?;
        self.in_dhaga(move |shared| {
            let limits = &*shared.limits;
            match Message::parse(&template, limits) {
                Ok(Message::Request { method, params, .. }) => {
                    shared.request(until, |out, id| encode::encode_request_raw(out, limits, id, method, params))
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
        if self.shared.serves_here() {
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
        let mut shown = f.debug_struct("Client");
        if let Route::Dialled(dialled) = &self.shared.route {
            shown.field("target", &dialled.target);
        }
        shown.field("connections", &self.connections()).finish_non_exhaustive()
    }
}

/// Methods that a client counts apart, by the names that its own program calls: more than services have.
const METHODS_COUNTED_MAX: usize = 512;

/// A call that was counted when it began. Whatever becomes of it, its end is counted.
struct Count<'a> {
    begun: Option<Begun<'a>>,
    bytes_out: Cell<usize>,
}

impl<'a> Count<'a> {
    #[inline]
    fn begin(shared: &'a Shared, method: &str) -> Self {
        let table = shared.around.metrics.as_ref();
        Self { begun: table.map(|table| table.row_named(method).begin()), bytes_out: Cell::new(0) }
    }

    #[inline]
    fn end(&mut self, bytes_in: usize, error: Option<&CallError>) {
        if let Some(begun) = self.begun.take() {
            begun.end(bytes_in, self.bytes_out.get(), error.map(CallError::kind));
        }
    }
}

impl Drop for Count<'_> {
    /// The caller unwinds.
    fn drop(&mut self) {
        self.end(0, Some(&CallError::Panicking));
    }
}

/// Tries of a call whose connection turns out to have ended before anything was sent.
const TRIES_MAX: usize = 3;

impl Shared {
    /// Whether calls need no dhaga but the caller's, if it is one at all.
    fn serves_here(&self) -> bool {
        turn::worker_id().is_some() || matches!(self.route, Route::Open(_) | Route::Own(_))
    }

    fn describe_peer(&self) -> String {
        match &self.route {
            Route::Open(connection) => {
                connection.upgrade().map_or_else(|| "a peer that has gone".to_owned(), |open| open.describe_peer())
            }
            Route::Own(own) => own.connection.describe_peer(),
            Route::Dialled(dialled) => dialled.describe_peer(),
        }
    }

    /// One call, where it is served.
    #[inline]
    fn request<E>(&self, until: Until, encode: E) -> Result<Answer, CallError>
    where
        E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
    {
        let (mut tries, mut refused) = (1, None);
        loop {
            park::check()?;
            let connection = match (self.connection(until.at), &refused) {
                // It says more than that nobody else is there.
                (Err(CallError::Connect(_)), Some(refused)) => return Err(CallError::clone(refused)),
                (found, _) => found?,
            };
            match peer::call(&connection, until, &encode) {
                Err(error) if error.is_stale() && tries < TRIES_MAX => tries += 1,
                Err(error @ CallError::Refused { reason: RefusedReason::ShuttingDown, .. })
                    if refused.is_none() && matches!(self.route, Route::Dialled(_)) =>
                {
                    refused = Some(error);
                    connection.leave();
                }
                result => return result,
            }
        }
    }

    /// A first connection. What the peer says to `$/hello` need not be waited for if it makes no difference.
    fn open(&self, deadline: Option<Instant>) -> Result<(), CallError> {
        match &self.route {
            Route::Dialled(dialled) if dialled.extensions != Extensions::Require => dialled.connect(deadline),
            _ => self.connection(deadline).map(drop),
        }
    }

    fn connection(&self, deadline: Option<Instant>) -> Result<Arc<Connection<Peer>>, CallError> {
        match &self.route {
            Route::Dialled(dialled) => dialled.connection(deadline),
            Route::Open(connection) => connection
                .upgrade()
                .filter(|open| is_usable(open))
                .ok_or(CallError::Disconnected { maybe_executed: false, source: None }),
            Route::Own(own) => own.connection(deadline),
        }
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        let links = std::mem::take(&mut *self.links.lock());
        links.iter().for_each(|link| link.connection.end());
    }
}

impl Own {
    /// The connection, when it is known what the peer is.
    fn connection(&self, deadline: Option<Instant>) -> Result<Arc<Connection<Peer>>, CallError> {
        let is_required = self.extensions == Extensions::Require;
        if let Some(probe) = self.probe.as_ref().filter(|probe| is_required || !probe.is_over()) {
            let verdict = probe.wait(deadline)?;
            // Nothing is known of a peer that has ended before it said anything, but how it has ended.
            if !self.connection.is_closed() {
                self.extensions.check(&self.connection, verdict)?;
            }
        }
        // Whether it has ended, and why, turns out when something is to be sent.
        Ok(self.connection.clone())
    }
}

impl Extensions {
    /// Has the peer asked for extensions, if it shall be.
    fn ask(self, connection: &Arc<Connection<Peer>>, plain: &PlainPeers) -> Result<Option<Arc<Probe>>, CallError> {
        match self {
            Self::Plain => Ok(None),
            Self::Auto if connection.peer_name().is_some_and(|name| plain.contains(&name)) => Ok(None),
            Self::Auto => probe::start(connection, Some(plain.clone())).map(Some),
            // To remember it would be to refuse it for ever.
            Self::Require => probe::start(connection, None).map(Some),
        }
    }

    fn check(self, connection: &Connection<Peer>, verdict: Verdict) -> Result<(), CallError> {
        match verdict {
            Verdict::Plain if self == Self::Require => Err(CallError::PlainPeer { peer: connection.describe_peer() }),
            Verdict::Plain | Verdict::Extended => Ok(()),
        }
    }
}

impl Link {
    #[cold]
    fn probed(&mut self) -> Option<Found> {
        self.probe.take_if(|probe| probe.is_over());
        (self.is_usable() || self.probe.is_some()).then(|| (self.connection.clone(), self.probe.clone()))
    }

    fn is_usable(&self) -> bool {
        is_usable(&self.connection)
    }
}

/// Whether a call that begins now may be answered.
fn is_usable(connection: &Connection<Peer>) -> bool {
    !connection.is_closed() && connection.side.may_be_called()
}

impl Dialled {
    fn describe_peer(&self) -> String {
        match &self.target {
            Target::Tcp(addresses) => addresses.first().map_or_else(|| "nobody".to_owned(), ToString::to_string),
            Target::Unix(address) => unix_name(Ok(address.clone())).unwrap_or_else(|| "a Unix socket".to_owned()),
        }
    }

    /// The connection of the caller's worker, opened if there is none that lives.
    fn connection(&self, deadline: Option<Instant>) -> Result<Arc<Connection<Peer>>, CallError> {
        // Twice each: what closes on the question is dialled anew.
        for _ in 0..5 {
            match self.existing() {
                Some((connection, None)) => return Ok(connection),
                Some((connection, Some(probe))) => self.wait_for(&connection, &probe, deadline)?,
                None => self.connect(deadline)?,
            }
        }
        Err(CallError::Disconnected { maybe_executed: false, source: None })
    }

    #[inline]
    fn existing(&self) -> Option<Found> {
        let worker = turn::worker_id()?;
        let mut links = self.links.lock();
        let link = links.iter_mut().find(|link| link.worker == worker || self.is_called())?;
        if link.probe.is_some() {
            return link.probed();
        }
        link.is_usable().then(|| (link.connection.clone(), None))
    }

    #[cold]
    fn wait_for(
        &self,
        connection: &Arc<Connection<Peer>>,
        probe: &Probe,
        deadline: Option<Instant>,
    ) -> Result<(), CallError> {
        // A plain peer that has closed is dialled anew, and not asked again.
        self.extensions.check(connection, probe.wait(deadline)?)
    }

    /// Whether the server may call us.
    fn is_called(&self) -> bool {
        !self.host.methods.is_empty()
    }

    #[cold]
    fn connect(&self, deadline: Option<Instant>) -> Result<(), CallError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(park::now()));
        let _turn = match self.connecting.lock_timeout(left.unwrap_or(Duration::MAX)) {
            Ok(turn) => turn,
            Err(LockTimeoutError::Poisoned(turn)) => turn.into_inner(),
            Err(LockTimeoutError::Interrupted(interrupt)) => return Err(interrupt.into()),
            Err(LockTimeoutError::Timeout) => return Err(CallError::DeadlineExceeded),
        };
        if self.existing().is_some() {
            return Ok(());
        }
        let transport = self.dial(deadline)?;
        let side = Peer::new(self.host.clone(), None);
        let connection = Connection::open(transport, side, self.host.limits.clone())
            .map_err(|error| CallError::Connect(Arc::new(error)))?;
        let worker = turn::worker_id().ok_or(CallError::ApiMisuse("a connection is opened on a worker"))?;
        let probe = self.extensions.ask(&connection, &self.plain)?;
        let mut links = self.links.lock();
        let (kept, replaced) = std::mem::take(&mut *links)
            .into_iter()
            .partition::<Vec<_>, _>(|link| link.worker != worker && !self.is_called());
        *links = kept;
        links.push(Link { worker, connection, probe });
        // Not before: with the last hold of a connection goes its socket.
        drop((links, replaced));
        Ok(())
    }

    /// Connects to the first of the addresses that answers.
    fn dial(&self, deadline: Option<Instant>) -> Result<Transport, CallError> {
        let dialled = until(deadline, || match &self.target {
            Target::Tcp(addresses) => TcpStream::connect(&addresses[..]).map(Transport::from),
            Target::Unix(address) => UnixStream::connect_addr(address).map(Transport::from),
        });
        dialled.map_err(connect_error)
    }
}

/// The end of a call with a timeout that its caller has not given. The peer is told of it if there is a deadline around.
fn untold(timeout: Duration) -> Until {
    let (own, around) = (park::now().checked_add(timeout), dhaga::deadline());
    let at = own.map_or(around, |own| Some(around.map_or(own, |around| own.min(around))));
    Until { at, is_told: around.is_some() }
}

/// The end of a call with a timeout that its caller has given.
fn told(timeout: Duration) -> Until {
    Until { at: deadline_in(timeout), is_told: true }
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
