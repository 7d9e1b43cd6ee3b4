//! Signals of the process as events that can be waited for: Ctrl-C, the order to end, the order to read a configuration again.
//!
//! [`ctrl_c`] waits for one SIGINT, [`signal`] makes a receiver for one kind of signal, and [`Signals`] one for several. A
//! dhaga that waits parks, a plain thread blocks; both end at the deadline around them and with a cancel. A receiver is also
//! an event of [`select!`](crate::select!): `readable(signals) => …`.
//!
//! - **The default is off from the first receiver on, for as long as the process lives.** SIGINT and SIGTERM no longer end the
//!   process by themselves, not even when all receivers have gone. Where that matters, keep a receiver to the end.
//! - **Signals of one kind that come faster than they are received are one.** The kernel itself does so too. Each receiver
//!   sees each signal that comes while it lives, whatever the other receivers do; what came before it was made, it does not
//!   see. So make it before what it is to guard.
//! - **A handler that was there before is still called**, after ours: of the `ctrlc` crate, say. One that somebody installs
//!   later without calling ours takes the signals away. Handlers of SIGSEGV and SIGBUS, our own included, are left alone.
//! - A signal that every thread of the process blocks (`pthread_sigmask`) reaches nobody.
//! - Children begin with the defaults of all signals that we listen to.
//!
//! Nothing runs for this but the handler: no thread, and no system call before a signal comes. A receiver holds a descriptor,
//! which the next receiver takes over when it is gone.
//!
//! # Examples
//!
//! A server that ends in order when it is told to, and at once when it is told again:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use dhaga::signal::{SignalKind, Signals};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut stop = Signals::new([SignalKind::interrupt(), SignalKind::terminate()])?;
//!     let runtime = dhaga::Runtime::builder().build()?;
//!     let listener = dhaga::net::TcpListener::bind("127.0.0.1:7000")?;
//!     runtime
//!         .spawn(move || {
//!             for stream in listener.incoming().flatten() {
//!                 dhaga::spawn(move || std::io::copy(&mut &stream, &mut &stream)).detach();
//!             }
//!         })
//!         .detach();
//!
//!     let kind = stop.recv()?;
//!     eprintln!("{kind}: connections may end within ten seconds; once more ends the process at once");
//!     std::thread::spawn(move || {
//!         let _ = stop.recv();
//!         std::process::exit(1);
//!     });
//!     runtime.shutdown(Duration::from_secs(10))?;
//!     Ok(())
//! }
//! ```

mod handler;

use std::fmt;
use std::io;

use self::handler::Ringer;
use crate::fork;
use crate::net::ready::{AnySource, Sourced};
use crate::net::source::{Manner, Source};
use crate::park::WaitReason;
use crate::reactor::Direction;

/// Waits for Ctrl-C, that is for the next SIGINT. From the first call on, SIGINT no longer ends the process by itself.
///
/// It does not see a signal that comes between two calls; a loop keeps a receiver of [`signal`] instead.
///
/// # Errors
///
/// Those of [`signal`] and [`Signal::recv`].
///
/// # Examples
///
/// ```no_run
/// let server = dhaga::spawn(|| dhaga::sleep(std::time::Duration::from_secs(3600)));
/// dhaga::signal::ctrl_c()?;
/// eprintln!("ending");
/// server.cancel();
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn ctrl_c() -> io::Result<()> {
    signal(SignalKind::interrupt())?.recv()
}

/// A receiver for one kind of signal.
///
/// # Errors
///
/// As [`Signals::new`].
///
/// # Examples
///
/// ```
/// use dhaga::process::Command;
/// use dhaga::signal::{SignalKind, signal};
///
/// let mut hangup = signal(SignalKind::hangup())?;
/// let reader = dhaga::spawn(move || {
///     hangup.recv()?;
///     Ok::<_, std::io::Error>("reads its configuration again")
/// });
/// Command::new("sh").args(["-c", &format!("kill -HUP {}", std::process::id())]).status()?;
/// assert_eq!(reader.join()??, "reads its configuration again");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn signal(kind: SignalKind) -> io::Result<Signal> {
    Ok(Signal { signals: Signals::new([kind])? })
}

/// Receives signals of one kind. Made by [`signal`].
pub struct Signal {
    signals: Signals,
}

impl Signal {
    /// Waits for the next signal, or takes one that has come since the last call.
    ///
    /// # Errors
    ///
    /// As [`Signals::recv`].
    pub fn recv(&mut self) -> io::Result<()> {
        self.signals.recv().map(drop)
    }
}

/// Receives signals of several kinds.
///
/// # Examples
///
/// ```
/// use dhaga::process::Command;
/// use dhaga::signal::{SignalKind, Signals};
///
/// let mut signals = Signals::new([SignalKind::user_defined1(), SignalKind::user_defined2()])?;
/// Command::new("sh").args(["-c", &format!("kill -USR2 {}", std::process::id())]).status()?;
/// assert_eq!(signals.recv()?, SignalKind::user_defined2());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Signals {
    source: Source<Ringer>,
    /// Each kind, and how many of it were received.
    received: Vec<(SignalKind, u64)>,
}

impl Signals {
    /// A receiver for these kinds of signals; for none, it only waits for its interruption.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for what cannot be waited for: KILL and STOP; SEGV, BUS, FPE and ILL, after which the program cannot go
    /// on; and numbers that no signal has. What the kernel says if the process has no descriptor left. `Unsupported` in a
    /// process that was forked from one with a runtime.
    pub fn new(kinds: impl IntoIterator<Item = SignalKind>) -> io::Result<Self> {
        refuse_in_fork()?;
        let mut received: Vec<(SignalKind, u64)> = Vec::new();
        for kind in kinds {
            handler::install(kind.0)?;
            if received.iter().all(|(other, _)| *other != kind) {
                received.push((kind, 0));
            }
        }
        let ringer = Ringer::new(received.iter().map(|(kind, _)| kind.0))?;
        // What comes from here on rings.
        received.iter_mut().for_each(|(kind, count)| *count = handler::count(kind.0));
        Ok(Self { source: Source::new(ringer), received })
    }

    /// Waits for the next signal, or takes one that has come since the last call. Of several kinds that have come, the one
    /// that was named first is taken first.
    ///
    /// # Errors
    ///
    /// Those of the scope around it; then no signal is taken. `Unsupported` in a process that was forked from one with a
    /// runtime.
    pub fn recv(&mut self) -> io::Result<SignalKind> {
        refuse_in_fork()?;
        let manner = Manner { direction: Direction::Read, reason: WaitReason::Signal, timeout: None };
        let received = &mut self.received;
        self.source.io(manner, |ringer| take(ringer, received).ok_or(io::ErrorKind::WouldBlock.into()), |_| false)
    }
}

/// Takes a signal that has come. The bell is left ringing if there are more, and only then.
fn take(ringer: &Ringer, received: &mut [(SignalKind, u64)]) -> Option<SignalKind> {
    // Before the look at the counts, or a signal that comes in between would be silenced.
    ringer.silence();
    let mut news = received.iter_mut().filter_map(|(kind, seen)| {
        let count = handler::count(kind.0);
        (count != *seen).then_some((*kind, seen, count))
    });
    let (kind, seen, count) = news.next()?;
    *seen = count;
    if news.next().is_some() {
        ringer.ring();
    }
    Some(kind)
}

/// The bells are the parent's, too: a forked process that took their rings would take them from its parent.
fn refuse_in_fork() -> io::Result<()> {
    fork::check().map_err(|owner| io::Error::new(io::ErrorKind::Unsupported, fork::words(owner)))
}

impl Sourced for Signals {
    fn source(&self) -> &dyn AnySource {
        &self.source
    }
}

impl Sourced for Signal {
    fn source(&self) -> &dyn AnySource {
        &self.signals.source
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.received.iter().map(|(kind, _)| kind)).finish()
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.signals.fmt(f)
    }
}

/// A kind of signal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignalKind(libc::c_int);

impl SignalKind {
    /// The signal with this number, of which those who make a receiver are told whether it can be waited for.
    pub const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// The signal's number.
    pub const fn as_raw_value(self) -> i32 {
        self.0
    }

    fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }
}

/// Makes the constructor of each kind, and the table of their names.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $number:ident;)+) => {
        impl SignalKind {
            $(
                $(#[$doc])*
                pub const fn $kind() -> Self {
                    Self(libc::$number)
                }
            )+
        }

        const NAMES: &[(libc::c_int, &str)] = &[$((libc::$number, stringify!($number))),+];
    };
}

kinds! {
    /// SIGALRM: a timer of `alarm(2)` or `setitimer(2)` has run out.
    alarm: SIGALRM;
    /// SIGCHLD: a child has ended or was stopped. [`process`](crate::process) does not need it.
    child: SIGCHLD;
    /// SIGHUP: the terminal is gone; for a daemon, by custom, to read its configuration again.
    hangup: SIGHUP;
    /// SIGINT: Ctrl-C at the terminal.
    interrupt: SIGINT;
    /// SIGIO: a descriptor that was set to tell so is ready.
    io: SIGIO;
    /// SIGPIPE: a write to a pipe that nobody reads. Rust's programs ignore it, and are told by an error instead.
    pipe: SIGPIPE;
    /// SIGQUIT: Ctrl-\ at the terminal.
    quit: SIGQUIT;
    /// SIGTERM: the polite order to end, as service managers and `kill` give it.
    terminate: SIGTERM;
    /// SIGUSR1: whatever the program makes of it.
    user_defined1: SIGUSR1;
    /// SIGUSR2: whatever the program makes of it.
    user_defined2: SIGUSR2;
    /// SIGWINCH: the terminal has another size.
    window_change: SIGWINCH;
}

/// As `SIGTERM`, or `signal 40` where there is no such name.
impl fmt::Display for SignalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for SignalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignalKind({self})")
    }
}
