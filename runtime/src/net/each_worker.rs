//! An accept loop on each worker, with a listener of its own: no connection goes from one worker to another.

use std::io;
use std::net::SocketAddr;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::listener_options::ListenerOptions;
use super::names::ToSocketAddrs;
use super::tcp::{TcpListener, TcpStream};
use crate::interrupt::{Cancelled, Interrupt, ShuttingDown};
use crate::runtime::SpawnError;
use crate::scheduler::worker;
use crate::spawn::{Builder, JoinError, JoinHandle};
use crate::time::sleep;

/// The pause of an accept loop after an error, besides the one that the accept has made where descriptors are short.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// Listens on one address with a listener of each worker's own (`SO_REUSEPORT`), and calls `serve` for each connection, in a
/// dhaga of the worker whose listener got it. The workers are those of the caller's runtime, or of the default one. Waits only
/// for a host name to be looked up, and on a plain thread for the loops to be started.
///
/// With one listener, as in a loop around [`TcpListener::accept`], a single dhaga accepts, and what it spawns goes to whichever
/// worker is idle: that keeps the workers equally busy. Here no connection changes its worker, and all of them accept; but the
/// kernel chooses by addresses and ports, so with few connections some worker may get most of them, and one whose dhagas
/// compute for long keeps its own waiting. Measure before you choose it.
///
/// A second server of the same user that does the same on the same address is not refused: they share the connections. A process
/// that is out of descriptors goes on as soon as there are some.
///
/// # Errors
///
/// As [`TcpListener::bind`]; those of [`Builder::spawn`](crate::Builder::spawn); those of the scope around it.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Write};
///
/// use dhaga::net::{TcpStream, listen_on_each_worker};
///
/// let server = listen_on_each_worker("127.0.0.1:0", |mut stream| {
///     let _ = stream.write_all(b"hello");
/// })?;
/// let mut greeting = String::new();
/// TcpStream::connect(server.local_addr())?.read_to_string(&mut greeting)?;
/// assert_eq!(greeting, "hello");
/// server.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn listen_on_each_worker<F>(addresses: impl ToSocketAddrs, serve: F) -> io::Result<WorkerListeners>
where
    F: Fn(TcpStream) + Send + Sync + 'static,
{
    ListenerOptions::new().listen_on_each_worker(addresses, serve)
}

impl ListenerOptions {
    /// As [`listen_on_each_worker`], with these options and `SO_REUSEPORT`.
    ///
    /// # Errors
    ///
    /// As [`listen_on_each_worker`].
    #[track_caller]
    pub fn listen_on_each_worker<F>(&self, addresses: impl ToSocketAddrs, serve: F) -> io::Result<WorkerListeners>
    where
        F: Fn(TcpStream) + Send + Sync + 'static,
    {
        let (options, site) = (self.clone().reuse_port(true), Location::caller());
        let first = options.bind(addresses)?;
        if worker().is_some() {
            return start(&options, first, site, serve);
        }
        match Builder::new().name("listen").spawn(move || start(&options, first, site, serve))?.join() {
            Ok(started) => started,
            Err(JoinError::Stopped(interrupt, _)) => Err(interrupt.into()),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }
}

/// On a worker. All that is spawned was so at `site`, as far as anybody is told.
fn start<F>(
    options: &ListenerOptions,
    first: TcpListener,
    site: &'static Location<'static>,
    serve: F,
) -> io::Result<WorkerListeners>
where
    F: Fn(TcpStream) + Send + Sync + 'static,
{
    let workers = worker().map(|worker| worker.shared.workers).ok_or(SpawnError::NoWorker)?;
    let address = first.local_addr()?;
    // All of them before the first accept: if one fails, no connection was taken that none will serve.
    let others = (1..workers).map(|_| options.bind(address));
    let listeners = std::iter::once(Ok(first)).chain(others).collect::<io::Result<Vec<_>>>()?;
    let serve = Arc::new(serve);
    let mut listening = WorkerListeners { address, acceptors: Vec::with_capacity(workers) };
    for (index, listener) in listeners.into_iter().enumerate() {
        let serve = serve.clone();
        let builder = Builder::new().name("accept").detached();
        listening.acceptors.push(builder.spawn_at(index, site, move || accept_loop(&listener, site, &serve))?);
    }
    Ok(listening)
}

/// Accepts until it is cancelled, or its runtime shut down. No error of the kernel ends it.
fn accept_loop<F>(listener: &TcpListener, site: &'static Location<'static>, serve: &Arc<F>)
where
    F: Fn(TcpStream) + Send + Sync + 'static,
{
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let serve = serve.clone();
                if let Err(error) = Builder::new().spawn_local_at(site, move || serve(stream)) {
                    log::error!("a connection was closed because no dhaga could be spawned for it: {error}");
                }
            }
            Err(error) if is_end(&error) => return,
            Err(error) => {
                log::warn!("an accept failed and is tried again: {error}");
                sleep(ERROR_PAUSE);
            }
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Cancelled>() || inner.is::<ShuttingDown>())
}

/// What [`listen_on_each_worker`] has started: a listener and an accept loop on each worker. Dropping it stops them; the
/// connections go on.
#[derive(Debug)]
#[must_use = "dropping it stops the listeners"]
pub struct WorkerListeners {
    address: SocketAddr,
    acceptors: Vec<JoinHandle<()>>,
}

impl WorkerListeners {
    /// The address they listen on: the port that the kernel chose, if it was bound to port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, and waits until nobody listens. The connections go on; those that nobody has accepted yet are
    /// reset.
    ///
    /// # Errors
    ///
    /// When the scope is cancelled or out of time. The listeners are closed all the same, a moment later.
    pub fn stop(mut self) -> Result<(), Interrupt> {
        self.cancel();
        for acceptor in std::mem::take(&mut self.acceptors) {
            if let Err(JoinError::Stopped(interrupt, _)) = acceptor.join() {
                return Err(interrupt);
            }
        }
        Ok(())
    }

    fn cancel(&self) {
        self.acceptors.iter().for_each(JoinHandle::cancel);
    }
}

impl Drop for WorkerListeners {
    fn drop(&mut self) {
        self.cancel();
    }
}
