//! The loop of a bare server: accept, wait, serve what is ready. No tasks, no timers, one thread.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::doze::Doze;
use crate::outgoing::Outgoing;
use crate::readiness::Readiness;

/// One client, and what the server keeps for it.
pub struct Connection<S> {
    /// Non-blocking, `TCP_NODELAY`.
    pub stream: TcpStream,
    /// What the events said of it.
    pub readiness: Readiness,
    /// What a full socket did not take.
    pub outgoing: Outgoing,
    /// What this kind of server needs besides.
    pub state: S,
}

/// How a connection stands after it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is left to do before the next event.
    AwaitEvent,
    /// There may be more to read. The others come first.
    ServeAgain,
    /// The peer is gone.
    Close,
}

/// How many events one `epoll_wait` may bring: one call for a busy turn, and no more than 16 KiB of
/// cache.
const EVENTS_MAX: usize = 1024;

const LISTENER: Token = Token(usize::MAX);

/// Listens on `address` and calls `serve` for each connection that can be read, for ever. An error
/// from `serve` closes that connection.
///
/// # Errors
///
/// Those of the listener and of `epoll`.
pub fn serve_forever<S: Default>(
    address: SocketAddr,
    doze: Doze,
    mut serve: impl FnMut(&mut Connection<S>) -> io::Result<Next>,
) -> io::Result<()> {
    let poll = Poll::new()?;
    let mut listener = TcpListener::bind(address)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut server = Server { poll, listener, connections: Slab::new(), again: VecDeque::new() };
    let mut events = Events::with_capacity(EVENTS_MAX);
    loop {
        server.wait(doze, &mut events)?;
        server.serve_those_left(&mut serve);
        for event in &events {
            match event.token() {
                LISTENER => server.accept_all()?,
                Token(key) => server.serve_event(key, event, &mut serve),
            }
        }
    }
}

struct Server<S> {
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection<S>>,
    /// Those who wanted to be served again.
    again: VecDeque<usize>,
}

impl<S: Default> Server<S> {
    fn wait(&mut self, doze: Doze, events: &mut Events) -> io::Result<()> {
        if self.again.is_empty() {
            doze.wait(&mut self.poll, events, None)
        } else {
            doze.wait(&mut self.poll, events, Some(Duration::ZERO))
        }
    }

    /// Gives each of those who wait one more go; who wants yet another waits for the next turn.
    fn serve_those_left(&mut self, serve: &mut impl FnMut(&mut Connection<S>) -> io::Result<Next>) {
        for _ in 0..self.again.len() {
            if let Some(key) = self.again.pop_front() {
                self.serve(key, serve);
            }
        }
    }

    fn serve_event(
        &mut self,
        key: usize,
        event: &Event,
        serve: &mut impl FnMut(&mut Connection<S>) -> io::Result<Next>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.readiness.note(event);
        if connection.outgoing.is_stuck()
            && event.is_writable()
            && connection.outgoing.resend(&mut connection.stream).is_err()
        {
            self.connections.remove(key);
            return;
        }
        self.serve(key, serve);
    }

    #[inline]
    fn serve(&mut self, key: usize, serve: &mut impl FnMut(&mut Connection<S>) -> io::Result<Next>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if !connection.readiness.readable || connection.outgoing.is_stuck() {
            return;
        }
        match serve(connection) {
            Ok(Next::AwaitEvent) => {}
            Ok(Next::ServeAgain) => self.again.push_back(key),
            Ok(Next::Close) | Err(_) => drop(self.connections.remove(key)),
        }
    }

    fn accept_all(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.add(stream)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_the_peers_doing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn add(&mut self, mut stream: TcpStream) -> io::Result<()> {
        // A peer that is gone already shows itself at the first read.
        let _ = stream.set_nodelay(true);
        let entry = self.connections.vacant_entry();
        self.poll.registry().register(&mut stream, Token(entry.key()), Interest::READABLE | Interest::WRITABLE)?;
        entry.insert(Connection {
            stream,
            readiness: Readiness::default(),
            outgoing: Outgoing::default(),
            state: S::default(),
        });
        Ok(())
    }
}

fn is_the_peers_doing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}
