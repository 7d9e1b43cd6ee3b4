//! A socket that becomes ready, as an event of `select!`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::PollFlags;

use super::source::Source;
use super::tcp::{TcpListener, TcpStream};
use super::udp::UdpSocket;
use super::unix::{UnixDatagram, UnixListener, UnixStream};
use super::watched::Watched;
use crate::park::Unparker;
use crate::reactor::Direction;
use crate::run_queue::Address;
use crate::sync::select::{Arm, Claim, Event};

/// What a [`select!`](crate::select!) can wait for to become readable or writable: the sockets of [`net`](crate::net), and
/// pointers to them.
#[expect(private_bounds, reason = "only sockets that a worker can watch are sockets")]
pub trait Socket: Sourced {}

pub(crate) trait Sourced {
    fn source(&self) -> &dyn AnySource;
}

/// A source, whatever its socket is.
pub(crate) trait AnySource {
    fn is_ready_by_now(&self, direction: Direction) -> bool;
    fn enlist(&self, direction: Direction, me: Address) -> io::Result<bool>;
    fn withdraw(&self, direction: Direction, me: Address);
    fn polled(&self, direction: Direction) -> (BorrowedFd<'_>, PollFlags);
}

impl<S: AsFd> AnySource for Source<S> {
    fn is_ready_by_now(&self, direction: Direction) -> bool {
        self.is_ready_by_now(direction)
    }

    fn enlist(&self, direction: Direction, me: Address) -> io::Result<bool> {
        self.enlist(direction, me)
    }

    fn withdraw(&self, direction: Direction, me: Address) {
        self.withdraw(direction, me);
    }

    fn polled(&self, direction: Direction) -> (BorrowedFd<'_>, PollFlags) {
        self.polled(direction)
    }
}

/// A socket that becomes ready.
pub struct Ready<'a> {
    source: &'a dyn AnySource,
    direction: Direction,
    place: Option<Address>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    /// It cannot be watched. An attempt will fail for the same reason, and say so.
    Unwatched,
    Happened,
}

impl<'a> Ready<'a> {
    /// For bytes to read, a connection to accept, the peer's end, or an error.
    pub fn to_read(socket: &'a (impl Socket + ?Sized)) -> Self {
        Self::new(socket.source(), Direction::Read)
    }

    /// For room to write, or an error.
    pub fn to_write(socket: &'a (impl Socket + ?Sized)) -> Self {
        Self::new(socket.source(), Direction::Write)
    }

    fn new(source: &'a dyn AnySource, direction: Direction) -> Self {
        Self { source, direction, place: None, state: State::Pending }
    }
}

impl Event for Ready<'_> {
    fn attempt(&mut self) -> bool {
        let is_ready = self.state == State::Unwatched || self.source.is_ready_by_now(self.direction);
        if is_ready {
            self.state = State::Happened;
        }
        is_ready
    }

    unsafe fn enlist(&mut self, _: &Claim, unparker: Unparker) -> bool {
        // A plain thread asks the kernel, see `descriptor`.
        let Some(me) = unparker.address() else {
            return true;
        };
        match self.source.enlist(self.direction, me) {
            Ok(is_enlisted) => {
                self.place = is_enlisted.then_some(me);
                is_enlisted
            }
            Err(_) => {
                self.state = State::Unwatched;
                false
            }
        }
    }

    fn withdraw(&mut self) -> bool {
        if let Some(me) = self.place.take() {
            self.source.withdraw(self.direction, me);
        }
        false
    }

    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        Some(self.source.polled(self.direction))
    }
}

impl Arm for Ready<'_> {
    type Outcome = ();

    fn outcome(&mut self) -> Option<()> {
        let state = std::mem::replace(&mut self.state, State::Pending);
        (state == State::Happened).then_some(())
    }
}

macro_rules! sockets {
    ($($socket:ty),*) => {
        $(impl Sourced for $socket {
            fn source(&self) -> &dyn AnySource {
                &*self.source
            }
        })*
    };
}

sockets!(TcpStream, TcpListener, UdpSocket, UnixStream, UnixListener, UnixDatagram);

impl<T: AsFd> Sourced for Watched<T> {
    fn source(&self) -> &dyn AnySource {
        &self.source
    }
}

macro_rules! pointers_to_sockets {
    ($($pointer:ty),*) => {
        $(impl<S: Sourced + ?Sized> Sourced for $pointer {
            fn source(&self) -> &dyn AnySource {
                (**self).source()
            }
        })*
    };
}

pointers_to_sockets!(&S, &mut S, Box<S>, Rc<S>, Arc<S>);

impl<S: Sourced + ?Sized> Socket for S {}
