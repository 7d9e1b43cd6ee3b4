//! What the clients of all libraries on tokio have in common: one worker, and a task for each call in flight.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::calls::{Calling, Calls, check};
use crate::rpc_echo::PAYLOAD;
use crate::tokio_work;
use crate::window::Found;

/// A connection of such a library.
pub trait TokioClient: Clone + Send + Sync + 'static {
    /// The answer's bytes.
    type Answer: AsRef<[u8]> + Send;

    /// One call of `echo`.
    fn echo(&mut self, payload: Vec<u8>) -> impl Future<Output = io::Result<Self::Answer>> + Send;
}

/// A client for each connection.
pub struct TokioCalls<C, D> {
    runtime: Runtime,
    dial: D,
    clients: Vec<C>,
}

impl<C, D> TokioCalls<C, D> {
    /// Connections come from `dial`.
    ///
    /// # Errors
    ///
    /// When the runtime cannot be built.
    pub fn new(dial: D) -> io::Result<TokioCalls<C, D>> {
        Ok(TokioCalls { runtime: tokio_work::multi_thread(1)?, dial, clients: Vec::new() })
    }
}

impl<C, D, F> Calls for TokioCalls<C, D>
where
    C: TokioClient,
    D: Fn() -> F,
    F: Future<Output = io::Result<C>> + Send + 'static,
{
    fn open(&mut self, connections: usize) -> io::Result<()> {
        for _ in 0..connections {
            // In a task: what `block_on` runs itself lives on a thread of its own.
            let opened = self.runtime.spawn(opened((self.dial)()));
            self.clients.push(self.runtime.block_on(opened)??);
        }
        Ok(())
    }

    fn run(&mut self, in_flight: usize, length: Duration) -> io::Result<Found> {
        let run = self.runtime.spawn(run(self.clients.clone(), in_flight, length));
        self.runtime.block_on(run)?
    }
}

async fn opened<C: TokioClient>(dial: impl Future<Output = io::Result<C>>) -> io::Result<C> {
    let mut client = dial.await?;
    check(client.echo(PAYLOAD.to_vec()).await?.as_ref())?;
    Ok(client)
}

async fn run<C: TokioClient>(clients: Vec<C>, in_flight: usize, length: Duration) -> io::Result<Found> {
    let calling = Calling::new(length);
    let mut tasks = JoinSet::new();
    for client in clients.into_iter().flat_map(|client| std::iter::repeat_n(client, in_flight)) {
        tasks.spawn(call(client, calling.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(calling.found())
}

async fn call<C: TokioClient>(mut client: C, calling: Calling) -> io::Result<()> {
    let mut caller = calling.caller();
    while caller.goes_on() {
        let answer = client.echo(PAYLOAD.to_vec()).await?;
        caller.note(answer.as_ref())?;
    }
    Ok(())
}
