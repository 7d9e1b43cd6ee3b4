//! The bridge to [hyper](https://hyper.rs), the HTTP library: what its connections want of a runtime. With the feature `hyper`.
//!
//! | hyper wants | here | of tokio it would be |
//! |---|---|---|
//! | `hyper::rt::Read`, `Write` | [`DhagaIo`] around a socket | `TokioIo` |
//! | `hyper::rt::Executor` | [`DhagaExecutor`], and [`DhagaLocalExecutor`] for futures that are not `Send` | `TokioExecutor` |
//! | `hyper::rt::Timer` | [`DhagaTimer`] | `TokioTimer` |
//!
//! A connection is a future, which a dhaga of its own polls, see [`spawn_future`](crate::spawn_future()). So an `async` service
//! may call what waits, a lock or a remote call: what holds up a poll holds up this connection of HTTP/1 and no other, and one
//! request of HTTP/2, where hyper gives each to the executor. Only for the body of a request it must not wait so: while the
//! service holds up the poll of its connection, nobody reads that. `.await` it, or write the service as sequential code
//! throughout, with [`sequential`], which runs each request in a dhaga beside the connection's.
//!
//! ```ignore
//! fn hello(request: Request<Incoming>) -> Result<Response<String>, hyper::Error> {
//!     let body = dhaga::block_on(request.into_body().collect())?.to_bytes();
//!     dhaga::sleep(Duration::from_millis(10)); // This dhaga waits, and no other.
//!     Ok(Response::new(format!("hello, {} bytes", body.len())))
//! }
//!
//! for stream in TcpListener::bind("127.0.0.1:8080")?.incoming() {
//!     let (io, service) = (DhagaIo::new(stream?), service_fn(sequential(hello)));
//!     let connection = http1::Builder::new().timer(DhagaTimer).serve_connection(io, service);
//!     dhaga::spawn_future(connection).detach();
//! }
//! ```
//!
//! The whole program, and one of a client, are in the guide's chapter on `async` code and HTTP.

use std::future::IntoFuture;
use std::io::{self, IoSlice};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::hyper::rt::{Executor, Read, ReadBufCursor, Timer, Write};

use crate::future::{self, JoinFuture, Sleep};
use crate::net::Async;
use crate::net::asynchronous::ByteStream;
use crate::runtime::SpawnError;
use crate::spawn::{Builder, JoinError, JoinHandle, spawn};

/// A socket as hyper reads and writes it.
pub type DhagaIo<T> = Async<T>;

impl<T: ByteStream> Read for Async<T> {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: nothing that is initialised is made uninitialised: the kernel writes bytes, and nobody else does.
        let unfilled = unsafe { buffer.as_mut() };
        self.get_mut().poll_receive(context, unfilled).map_ok(|count| {
            // SAFETY: as many of them the kernel has written.
            unsafe { buffer.advance(count) }
        })
    }
}

impl<T: ByteStream> Write for Async<T> {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_end()
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send_vectored(context, slices)
    }
}

/// Runs each future in a dhaga of its own.
///
/// These dhagas are [detached](Builder::detached), as what a library keeps: they inherit neither deadline nor context of
/// whoever made hyper start them, which may be the first user of a connection that many use. Each starts on the worker of
/// its connection, or on one that is idle. A shutdown that cancels it drops its future.
///
/// At the runtime's limit of dhagas the future is dropped, as hyper's interface has no error for it; that is logged. The
/// request behind it fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct DhagaExecutor;

impl DhagaExecutor {
    /// An executor; they are all the same.
    pub fn new() -> Self {
        Self
    }
}

impl<F> Executor<F> for DhagaExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[track_caller]
    fn execute(&self, future: F) {
        keep(Builder::new().detached().spawn_future(future));
    }
}

/// As [`DhagaExecutor`], for futures that are not `Send`: each runs on the worker of whoever starts it, and nowhere else.
///
/// It can be used in a dhaga only; elsewhere the future is dropped, and that is logged.
#[derive(Clone, Copy, Debug, Default)]
pub struct DhagaLocalExecutor;

impl DhagaLocalExecutor {
    /// An executor; they are all the same.
    pub fn new() -> Self {
        Self
    }
}

impl<F> Executor<F> for DhagaLocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    #[track_caller]
    fn execute(&self, future: F) {
        keep(Builder::new().detached().spawn_local_future(future));
    }
}

/// Lets a dhaga run on by itself, or says why there is none: hyper does not hear it.
fn keep<T>(spawned: Result<JoinHandle<T>, SpawnError>) {
    match spawned {
        Ok(handle) => handle.detach(),
        Err(error) => log::error!("a future of hyper is dropped, since no dhaga can be spawned for it: {error}"),
    }
}

/// Makes a function for hyper's `service_fn` of sequential code: each request runs in a dhaga of its own, which any idle
/// worker may take, and the dhaga of the connection goes on reading and writing meanwhile.
///
/// The dhaga of a request inherits the deadline and the context of its connection's. When hyper wants no answer any more,
/// since the client has gone or the connection is cancelled, it is cancelled, too.
///
/// # Panics
///
/// The future of a request does when its dhaga panicked, with the same payload, and with it the connection of HTTP/1. Also
/// at the runtime's limit of dhagas, and when a shutdown has unwound the dhaga.
pub fn sequential<Q, A, E, H>(handler: H) -> impl Fn(Q) -> Answering<Result<A, E>> + Clone + Send + Sync + 'static
where
    H: Fn(Q) -> Result<A, E> + Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
    E: Send + 'static,
{
    let handler = Arc::new(handler);
    move |request| {
        let handler = handler.clone();
        Answering(spawn(move || handler(request)).into_future())
    }
}

/// The answer of a dhaga that runs a request. Dropping it cancels that.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Answering<T>(JoinFuture<T>);

impl<T> Future for Answering<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(context).map(|ended| match ended {
            Ok(answer) => answer,
            Err(JoinError::Panicked(panic)) => resume_unwind(panic.into_payload()),
            Err(error) => panic!("a request has no answer: {error}"),
        })
    }
}

impl<T> Drop for Answering<T> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Timers for hyper: its time limits for a request's header, its pings and pauses.
#[derive(Clone, Copy, Debug, Default)]
pub struct DhagaTimer;

impl DhagaTimer {
    /// A timer; they are all the same.
    pub fn new() -> Self {
        Self
    }
}

impl Timer for DhagaTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn ::hyper::rt::Sleep>> {
        Box::pin(future::sleep(duration))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn ::hyper::rt::Sleep>> {
        Box::pin(future::sleep_until(deadline))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn ::hyper::rt::Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleep>() {
            Some(ours) => ours.get_mut().reset(deadline),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

impl ::hyper::rt::Sleep for Sleep {}
