//! The client of `dhaga-rpc` as a load.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use dhaga::{Runtime, spawn};
use dhaga_rpc::CallError;

use crate::calls::{Calling, Calls, check};
use crate::rpc_echo::{EchoClient, PAYLOAD};
use crate::window::Found;

/// A client for each connection, each with the connection of the one worker.
pub struct DhagaCalls {
    runtime: Runtime,
    address: SocketAddr,
    clients: Vec<EchoClient>,
}

impl DhagaCalls {
    /// No connection yet.
    ///
    /// # Errors
    ///
    /// When the runtime cannot be built.
    pub fn new(address: SocketAddr) -> io::Result<DhagaCalls> {
        Ok(DhagaCalls { runtime: Runtime::builder().workers(1).build()?, address, clients: Vec::new() })
    }

    /// Runs `f` on the worker, where the connections are.
    fn on_worker<T: Send + 'static>(&self, f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        self.runtime.spawn(f).join().unwrap_or_else(|error| Err(io::Error::other(error.to_string())))
    }
}

impl Calls for DhagaCalls {
    fn open(&mut self, connections: usize) -> io::Result<()> {
        let address = self.address;
        let opened = self.on_worker(move || (0..connections).map(|_| open(address)).collect::<io::Result<Vec<_>>>())?;
        self.clients.extend(opened);
        Ok(())
    }

    fn run(&mut self, in_flight: usize, length: Duration) -> io::Result<Found> {
        let clients = self.clients.clone();
        self.on_worker(move || {
            let calling = Calling::new(length);
            let task = |client: EchoClient| {
                let calling = calling.clone();
                spawn(move || call(&client, &calling))
            };
            let each = clients.into_iter().flat_map(|client| std::iter::repeat_n(client, in_flight));
            let tasks: Vec<_> = each.map(task).collect();
            for task in tasks {
                task.join().map_err(|error| io::Error::other(error.to_string()))??;
            }
            Ok(calling.found())
        })
    }
}

fn open(address: SocketAddr) -> io::Result<EchoClient> {
    let client = EchoClient::connect(address).map_err(io::Error::other)?;
    check(&client.echo(PAYLOAD.to_vec()).map_err(failed)?)?;
    Ok(client)
}

fn call(client: &EchoClient, calling: &Calling) -> io::Result<()> {
    let mut caller = calling.caller();
    while caller.goes_on() {
        let answer = client.echo(PAYLOAD.to_vec()).map_err(failed)?;
        caller.note(&answer)?;
    }
    Ok(())
}

fn failed(error: CallError<String>) -> io::Error {
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use dhaga_rpc::Server;

    use super::*;
    use crate::rpc_echo::{EchoHandler, EchoServer};

    #[test]
    fn each_connection_calls_until_the_time_is_over() {
        let server = Server::builder().service(EchoServer::new(EchoHandler)).bind("127.0.0.1:0");
        let server = server.expect("a port is free");
        let mut calls = DhagaCalls::new(server.local_addr()).expect("a runtime can be built");
        calls.open(3).expect("the server listens");
        let found = calls.run(4, Duration::from_millis(20)).expect("the server answers");
        assert!(found.requests >= 12, "each of twelve callers has called: {found:?}");
        assert!(found.seconds >= 0.02 && found.p50_us <= found.p999_us, "{found:?}");
        assert_eq!(server.stats().connections, 3);
    }
}
