//! How a TCP connection comes about: to one address, or to the first of several that answers (RFC 8305, "happy eyeballs").
//!
//! ```text
//!   0 ms     250 ms    500 ms
//!   ├─ first address ──────────────▶ …
//!             ├─ second ───▶ refused: the next begins at once
//!                          ├─ third ──────▶ stands: it is taken, and the first is closed
//! ```
//!
//! The attempts are sockets of the caller, who waits for all of them at once; there is no dhaga for each.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::names::no_address;
use super::source::{Manner, Source, is_shortage};
use crate::park::{self, Unparker, WaitReason};
use crate::reactor::Direction;
use crate::run_queue::Address;
use crate::sync::select::{self, Claim, Event, Order, Timer};

/// Of several addresses, the next one is tried this long after the one before, though that may still answer: the delay that
/// RFC 8305 recommends. When one fails, the next is tried at once.
pub const CONNECT_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long one of several addresses may take to answer: the kernel asks it five times within that, at 0, 1, 3, 7 and 15 s. A
/// single address has as long as the kernel gives it, about two minutes.
pub const CONNECT_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Addresses of one name that are tried at once at most, a descriptor each. What a name server sends may be thousands.
pub const CONNECT_ATTEMPTS_MAX: usize = 16;

/// Addresses that the text of a [`ConnectError`] names.
const ATTEMPTS_SHOWN_MAX: usize = 8;

pub(super) type Stream = Source<std::net::TcpStream>;

/// Connects to the first of the addresses that answers.
pub(super) fn connect_first(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Stream> {
    let first = addresses.next().ok_or_else(no_address)?;
    match addresses.next() {
        None => connect(&first, None),
        Some(second) => Race::new([first, second].into_iter().chain(addresses).collect()).run(),
    }
}

/// Connects to one address.
pub(super) fn connect(address: &SocketAddr, timeout: Option<Duration>) -> io::Result<Stream> {
    park::check_attempt()?;
    let begun = begin(address)?;
    if begun.is_established {
        return Ok(begun.stream);
    }
    let manner = Manner { direction: Direction::Write, reason: WaitReason::Connect, timeout };
    match begun.stream.io(manner, finish, |()| false) {
        Ok(()) => Ok(begun.stream),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(late()),
        Err(error) => Err(error),
    }
}

/// A socket for an address, in non-blocking mode.
pub(super) fn open(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}

struct Begun {
    stream: Stream,
    is_established: bool,
}

fn begin(address: &SocketAddr) -> io::Result<Begun> {
    let address = routable(address);
    let socket = open(&address)?;
    let is_established = match rustix::net::connect(&socket, &address) {
        Ok(()) => true,
        Err(Errno::INPROGRESS | Errno::INTR) => false,
        Err(error) => return Err(error.into()),
    };
    Ok(Begun { stream: Source::new(socket.into()), is_established })
}

/// Whether the connection stands: `WouldBlock` while it is under way.
fn finish(socket: &std::net::TcpStream) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error),
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the connection was not established in time")
}

/// To connect to "any address" means this host, as in std.
fn routable(address: &SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, v6.port())),
        other => *other,
    }
}

/// Several addresses, of which the first that answers wins.
struct Race {
    not_tried: std::vec::IntoIter<SocketAddr>,
    under_way: Vec<Attempt>,
    failed: Vec<(SocketAddr, io::Error)>,
    /// When the next begins even if none fails.
    next: Instant,
}

impl Race {
    fn new(addresses: Vec<SocketAddr>) -> Self {
        let not_tried = interleaved(addresses).into_iter();
        Self { not_tried, under_way: Vec::new(), failed: Vec::new(), next: park::now() }
    }

    fn run(mut self) -> io::Result<Stream> {
        loop {
            if let Some(stream) = self.begin_those_due()? {
                return Ok(stream);
            }
            if self.under_way.is_empty() {
                return Err(failure(self.failed));
            }
            self.wait()?;
            if let Some(stream) = self.settle() {
                return Ok(stream);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < CONNECT_ATTEMPTS_MAX
    }

    fn is_next_due(&self) -> bool {
        self.under_way.is_empty() || self.has_room() && self.next <= park::now()
    }

    /// Returns a connection that stands at once. Addresses to which there is no way fail at once, and may be thousands: between
    /// them others have their turn, and the scope may end.
    fn begin_those_due(&mut self) -> io::Result<Option<Stream>> {
        while self.is_next_due() {
            park::spend();
            park::check_attempt()?;
            let Some(address) = self.not_tried.next() else { break };
            match Attempt::begin(address) {
                Ok(attempt) => {
                    self.next = attempt.began + CONNECT_ATTEMPT_DELAY;
                    self.under_way.push(attempt);
                }
                Err(error) => self.failed.push((address, error)),
            }
            if let Some(stream) = self.settle() {
                return Ok(Some(stream));
            }
        }
        Ok(None)
    }

    /// Waits until one of the attempts has ended, or the next is due.
    fn wait(&mut self) -> io::Result<()> {
        let may_begin = self.has_room() && self.not_tried.len() > 0;
        let mut next = may_begin.then(|| Timer::at(self.next));
        let attempts = self.under_way.iter_mut().map(|attempt| attempt as &mut dyn Event);
        let mut events: Vec<_> = attempts.chain([&mut next as &mut dyn Event]).collect();
        select::wait_as(WaitReason::Connect, &mut events, Order::Biased)?;
        // If one has failed, another may stand already, and no more need begin.
        for attempt in &mut self.under_way {
            attempt.attempt();
        }
        Ok(())
    }

    /// Takes those that have ended off the list. Returns the first that stands.
    fn settle(&mut self) -> Option<Stream> {
        let ended = self.under_way.extract_if(.., |attempt| attempt.ended.is_some());
        for attempt in ended {
            match attempt.ended {
                Some(Err(error)) => {
                    self.failed.push((attempt.address, error));
                    self.next = park::now();
                }
                _ => return Some(attempt.stream),
            }
        }
        None
    }
}

/// A connection that is under way to one of several addresses.
struct Attempt {
    address: SocketAddr,
    stream: Stream,
    began: Instant,
    ended: Option<io::Result<()>>,
    place: Option<Address>,
}

impl Attempt {
    fn begin(address: SocketAddr) -> io::Result<Self> {
        let Begun { stream, is_established } = begin(&address)?;
        let ended = is_established.then_some(Ok(()));
        Ok(Self { address, stream, began: park::now(), ended, place: None })
    }

    fn look(&self) -> Option<io::Result<()>> {
        let looked = self.stream.attempt(Direction::Write, &mut finish, &|()| false);
        let is_late = || self.began + CONNECT_ATTEMPT_TIMEOUT <= park::now();
        looked.or_else(|| is_late().then(|| Err(late())))
    }
}

impl Event for Attempt {
    fn attempt(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.look();
        }
        self.ended.is_some()
    }

    unsafe fn enlist(&mut self, _: &Claim, unparker: Unparker) -> bool {
        // A plain thread asks the kernel, see `descriptor`.
        let Some(me) = unparker.address() else {
            return true;
        };
        match self.stream.enlist(Direction::Write, me) {
            Ok(is_enlisted) => {
                self.place = is_enlisted.then_some(me);
                is_enlisted
            }
            // It cannot be watched, and so this attempt has failed.
            Err(error) => {
                self.ended = Some(Err(error));
                false
            }
        }
    }

    fn withdraw(&mut self) -> bool {
        if let Some(me) = self.place.take() {
            self.stream.withdraw(Direction::Write, me);
        }
        false
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.began + CONNECT_ATTEMPT_TIMEOUT)
    }

    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        Some(self.stream.polled(Direction::Write))
    }
}

/// The families of the addresses in turn, beginning with that of the first; otherwise in their order. So an address of the
/// other family comes second, however many there are of one whose network does not work.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_family = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (mut these, mut others): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_family);
    let mut turns = Vec::with_capacity(these.len() + others.len());
    while !these.is_empty() || !others.is_empty() {
        turns.extend(these.pop_front());
        turns.extend(others.pop_front());
    }
    turns
}

/// Several addresses were tried, and none could be connected to: the inner error of an [`io::Error`], as
/// [`TcpStream::connect`](super::TcpStream::connect) returns it.
#[derive(Debug)]
pub struct ConnectError {
    attempts: Vec<(SocketAddr, io::Error)>,
}

impl ConnectError {
    /// Each address that was tried, and its error, in the order in which they failed.
    pub fn attempts(&self) -> &[(SocketAddr, io::Error)] {
        &self.attempts
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "none of {} addresses could be connected to", self.attempts.len())?;
        for (index, (address, error)) in self.attempts.iter().take(ATTEMPTS_SHOWN_MAX).enumerate() {
            write!(f, "{} {address}: {error}", if index == 0 { ":" } else { ";" })?;
        }
        match self.attempts.len().saturating_sub(ATTEMPTS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        most_telling(&self.attempts).map(|error| error as _)
    }
}

/// What became of attempts none of which has succeeded.
fn failure(mut attempts: Vec<(SocketAddr, io::Error)>) -> io::Error {
    if attempts.iter().all(|(_, error)| is_shortage(error))
        && let Some((_, shortage)) = attempts.pop()
    {
        // The addresses have nothing to do with it.
        return shortage;
    }
    let kind = most_telling(&attempts).map_or(io::ErrorKind::InvalidInput, io::Error::kind);
    io::Error::new(kind, ConnectError { attempts })
}

/// The first error, but one that says that there is no way to that address only if all say so: on a host without IPv6 each
/// address of that family does.
fn most_telling(attempts: &[(SocketAddr, io::Error)]) -> Option<&io::Error> {
    let mut errors = attempts.iter().map(|(_, error)| error);
    errors.clone().find(|error| !is_no_way(error)).or_else(|| errors.next())
}

fn is_no_way(error: &io::Error) -> bool {
    let no_family = [Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| no_family.contains(&code))
        || matches!(
            error.kind(),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::AddrNotAvailable
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 1))
    }

    fn v6(last: u16) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, last], 1))
    }

    #[test]
    fn families_take_turns() {
        let check = |addresses: &[SocketAddr], expected: &[SocketAddr]| {
            assert_eq!(interleaved(addresses.to_vec()), expected);
        };
        check(&[], &[]);
        check(&[v4(3), v4(1), v4(2)], &[v4(3), v4(1), v4(2)]);
        check(&[v6(1), v6(2), v6(3), v4(1)], &[v6(1), v4(1), v6(2), v6(3)]);
        check(&[v4(1), v6(1), v6(2), v4(2), v6(3)], &[v4(1), v6(1), v4(2), v6(2), v6(3)]);
    }

    /// An address that does not answer: one connection more than its backlog has room for is on its way.
    fn silent() -> (OwnedFd, SocketAddr, Vec<Stream>) {
        let listener = open(&v4(1)).expect("a socket");
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free");
        rustix::net::listen(&listener, 0).expect("it can listen");
        let address = rustix::net::getsockname(&listener).expect("it is bound").try_into().expect("it is of IPv4");
        let in_the_way = (0..2).map(|_| begin(&address).expect("there are descriptors").stream).collect();
        (listener, address, in_the_way)
    }

    #[test]
    fn so_many_are_tried_at_once_and_each_has_its_time() {
        let (_listener, address, _in_the_way) = silent();
        let mut race = Race::new(vec![address; CONNECT_ATTEMPTS_MAX + 2]);
        for _ in 0..CONNECT_ATTEMPTS_MAX + 5 {
            assert!(race.begin_those_due().expect("nothing ends it").is_none());
            // As if the delay were over.
            race.next = park::now();
        }
        assert_eq!((race.under_way.len(), race.not_tried.len()), (CONNECT_ATTEMPTS_MAX, 2));
        race.under_way[0].began -= CONNECT_ATTEMPT_TIMEOUT;
        race.wait().expect("nothing interrupts it");
        assert!(race.settle().is_none());
        assert_eq!(race.failed.iter().map(|(_, error)| error.kind()).collect::<Vec<_>>(), [io::ErrorKind::TimedOut]);
        assert!(race.begin_those_due().expect("nothing ends it").is_none());
        assert_eq!((race.under_way.len(), race.not_tried.len()), (CONNECT_ATTEMPTS_MAX, 1));
    }

    #[test]
    fn the_kind_is_that_of_the_most_telling_error() {
        let check = |errors: &[Errno], expected: io::ErrorKind| {
            let attempts = errors.iter().map(|error| (v4(1), io::Error::from(*error))).collect();
            assert_eq!(failure(attempts).kind(), expected, "{errors:?}");
        };
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
        check(&[Errno::CONNREFUSED, Errno::CONNRESET], ConnectionRefused);
        check(&[Errno::NETUNREACH, Errno::AFNOSUPPORT, Errno::CONNRESET, Errno::CONNREFUSED], ConnectionReset);
        check(&[Errno::HOSTUNREACH, Errno::NETUNREACH], HostUnreachable);
        check(&[Errno::ADDRNOTAVAIL, Errno::TIMEDOUT], io::ErrorKind::TimedOut);
        check(&[Errno::MFILE, Errno::NETUNREACH], io::Error::from(Errno::MFILE).kind());
        check(&[Errno::NETUNREACH, Errno::MFILE], io::Error::from(Errno::MFILE).kind());
        check(&[Errno::NETUNREACH], NetworkUnreachable);
    }

    #[test]
    fn a_shortage_of_descriptors_is_an_error_of_its_own() {
        let attempts = |errors: [Errno; 2]| errors.map(|error| (v4(1), io::Error::from(error))).into();
        let shortage = failure(attempts([Errno::MFILE, Errno::MFILE]));
        assert_eq!(shortage.raw_os_error(), Some(Errno::MFILE.raw_os_error()));
        let mixed = failure(attempts([Errno::CONNREFUSED, Errno::MFILE]));
        assert!(mixed.get_ref().is_some_and(|error| error.is::<ConnectError>()), "{mixed:?}");
    }

    #[test]
    fn the_text_names_addresses_and_is_no_longer_than_it_must_be() {
        let text = |count: u8| {
            let attempts = (0..count).map(|last| (v4(last), io::Error::from(io::ErrorKind::ConnectionRefused)));
            ConnectError { attempts: attempts.collect() }.to_string()
        };
        assert_eq!(
            text(2),
            "none of 2 addresses could be connected to: 127.0.0.0:1: connection refused; 127.0.0.1:1: connection refused"
        );
        assert!(text(200).ends_with("127.0.0.7:1: connection refused; and 192 more"), "{}", text(200));
    }
}
