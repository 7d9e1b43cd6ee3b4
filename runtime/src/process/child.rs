//! A child process: its end, its pipes, and what becomes of it when nobody waits for it.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::process::{self, ExitStatus, Output};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
    waitpid,
};

use super::orphans;
use super::pipe::{ChildStderr, ChildStdin, ChildStdout};
use crate::blocking::blocking;
use crate::fork;
use crate::net::ready::{AnySource, Sourced};
use crate::net::source::{Manner, Source};
use crate::park::{self, WaitReason};
use crate::reactor::Direction;
use crate::signal::SignalKind;
use crate::spawn::{JoinError, JoinHandle};

/// Bytes read from a pipe at once: as many as it holds, unless somebody has changed that.
const CHUNK_BYTES: usize = 64 << 10;

/// A child process that was [spawned](super::Command::spawn). As [`std::process::Child`], but for what the
/// [module](super) says.
///
/// When it is dropped the child lives on, or is killed if [`kill_on_drop`](super::Command::kill_on_drop) was set. In both cases
/// what the kernel keeps of it at its end is collected in the background.
///
/// # Examples
///
/// A time limit, after which the child is killed:
///
/// ```
/// use std::io::ErrorKind;
/// use std::time::Duration;
/// use dhaga::process::Command;
///
/// let mut child = Command::new("sleep").arg("1000").spawn()?;
/// let late = dhaga::within(Duration::from_millis(20), || child.wait());
/// assert_eq!(late.map_err(|error| error.kind()), Err(ErrorKind::TimedOut));
/// child.kill()?;
/// assert_eq!(child.wait()?.code(), None); // it died by a signal
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Child {
    /// The child's standard input, if it was [piped](super::Stdio::piped).
    pub stdin: Option<ChildStdin>,
    /// The child's standard output, if it was piped.
    pub stdout: Option<ChildStdout>,
    /// The child's standard error, if it was piped.
    pub stderr: Option<ChildStderr>,
    process: Process,
}

impl Child {
    /// Takes over a child that nobody has waited for.
    pub(super) fn adopt(mut child: process::Child, kill_on_drop: bool) -> io::Result<Self> {
        let process = Process::new(Pid::from_child(&child), kill_on_drop);
        let stdin = child.stdin.take().map(ChildStdin::try_from).transpose()?;
        let stdout = child.stdout.take().map(ChildStdout::try_from).transpose()?;
        let stderr = child.stderr.take().map(ChildStderr::try_from).transpose()?;
        Ok(Self { stdin, stdout, stderr, process })
    }

    /// The child's process id. When its end was collected, the kernel may give the number to another process.
    pub fn id(&self) -> u32 {
        self.process.exit.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Kills the child, by SIGKILL; wait for its end afterwards. Does nothing if it has gone.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.send(Signal::KILL)
    }

    /// Sends the child a signal: `terminate()` asks it to end. Does nothing if it has gone.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a signal without a name, the real-time ones among them. What the kernel says.
    pub fn send_signal(&self, kind: SignalKind) -> io::Result<()> {
        let signal = Signal::from_named_raw(kind.as_raw_value());
        self.process.send(signal.ok_or(io::ErrorKind::InvalidInput)?)
    }

    /// Closes the child's standard input, and waits until the child has ended. Once it has, this returns the same each time.
    ///
    /// The standard input is closed so that the child does not wait for us, and stays so when the wait fails. Output that is
    /// piped and that nobody reads stops the child when the pipe is full, so read it meanwhile, or use
    /// [`wait_with_output`](Self::wait_with_output).
    ///
    /// Any kernel since 5.3 tells of the end by a descriptor. If there is none, a thread of the
    /// [`blocking`](crate::blocking) pool waits.
    ///
    /// # Errors
    ///
    /// Those of the scope around it: then the child lives on, and can be waited for again. [`Reaped`], of kind `Other`, if its
    /// status was thrown away.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        self.process.wait()
    }

    /// The child's status if it has ended. Never waits, and leaves the standard input alone.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), but for the scope's.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.exit.try_wait()
    }

    /// Closes the child's standard input, reads its standard output and error, as far as they are piped, to their ends, and
    /// waits until the child has ended. Both are read at once, so neither fills up while the other is awaited.
    ///
    /// As in std there is no limit to what is kept: read the pipes yourself if the child is not to be trusted with your memory.
    /// The ends come when the last process has closed them; that may be one that the child has started and left behind.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait). What was read until then is lost, the pipes are closed, and the child is as one that is
    /// dropped; read for yourself if that is not what you want.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let (stdout, stderr) = drain(self.stdout.take(), self.stderr.take())?;
        Ok(Output { status: self.wait()?, stdout, stderr })
    }

    /// What tells of the child's end: it is readable when [`wait`](Self::wait) would not wait. It is an event of
    /// [`select!`](crate::select!), to wait for the end of a child or for something else.
    ///
    /// # Errors
    ///
    /// What the kernel says: it is older than 5.3, or the process has no descriptor left. `NotFound` if the end was collected
    /// before this was asked for the first time.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use dhaga::process::Command;
    ///
    /// let mut child = Command::new("true").spawn()?;
    /// let ended = dhaga::select! {
    ///     readable(child.ended()?) => true,
    ///     after(Duration::from_secs(60)) => false,
    ///     interrupted(why) => return Err(why.into()),
    /// };
    /// assert!(ended && child.wait()?.success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ended(&self) -> io::Result<&Ended> {
        self.process.ended()
    }
}

/// Takes over a child of std's, with its pipes, which are put into non-blocking mode. It is not killed when it is dropped.
impl TryFrom<process::Child> for Child {
    type Error = io::Error;

    fn try_from(mut child: process::Child) -> io::Result<Self> {
        // Somebody may have waited for it already, and then nobody else may. An error comes again when we wait.
        let status = child.try_wait().ok().flatten();
        let mut child = Self::adopt(child, false)?;
        child.process.exit.state = status.map_or(State::Runs, State::Ended);
        Ok(child)
    }
}

/// A child's status was thrown away by the kernel because SIGCHLD is ignored, or taken by other code of this process, which
/// waits for any child: the inner error of an [`std::io::Error`] of kind `Other`. The child has ended, but how is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped;

impl fmt::Display for Reaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the child has ended, and its status is lost: SIGCHLD is ignored, or other code waits for every child",
        )
    }
}

impl Error for Reaped {}

/// Tells of a child's end. See [`Child::ended`].
pub struct Ended {
    source: Source<OwnedFd>,
}

impl Sourced for Ended {
    fn source(&self) -> &dyn AnySource {
        &self.source
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ended").field(self.source.socket()).finish()
    }
}

/// A child without its pipes.
struct Process {
    exit: Exit,
    /// Opened when somebody must wait: most children that are not waited for at once have ended by then.
    ended: OnceLock<Ended>,
    /// A thread of the pool that waits, if there is no descriptor, since a wait that was stopped.
    pool: Option<AssertUnwindSafe<JoinHandle<io::Result<()>>>>,
    kill_on_drop: bool,
}

impl Process {
    fn new(pid: Pid, kill_on_drop: bool) -> Self {
        let exit = Exit { pid, state: State::Runs };
        Self { exit, ended: OnceLock::new(), pool: None, kill_on_drop }
    }

    fn ended(&self) -> io::Result<&Ended> {
        if let Some(ended) = self.ended.get() {
            return Ok(ended);
        }
        if self.exit.state != State::Runs {
            return Err(io::ErrorKind::NotFound.into());
        }
        let pidfd = pidfd_open(self.exit.pid, PidfdFlags::empty())?;
        Ok(self.ended.get_or_init(|| Ended { source: Source::new(pidfd) }))
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        park::spend();
        park::check_attempt()?;
        if let Some(status) = self.exit.try_wait()? {
            return Ok(status);
        }
        if self.ended().is_err() {
            return self.wait_in_pool();
        }
        let Self { exit, ended, .. } = self;
        let manner = Manner { direction: Direction::Read, reason: WaitReason::Child, timeout: None };
        let ended = ended.get().expect("it was opened above");
        ended.source.io(manner, |_| exit.try_wait()?.ok_or(io::ErrorKind::WouldBlock.into()), |_| false)
    }

    #[cold]
    fn wait_in_pool(&mut self) -> io::Result<ExitStatus> {
        loop {
            let pid = self.exit.pid;
            let begun = self.pool.take().map(|AssertUnwindSafe(handle)| handle.join_until(WaitReason::Child, None));
            let waited = match begun {
                // A wait that was stopped before it began.
                None | Some(Err(JoinError::NeverRan)) => blocking(move || wait_without_collecting(pid)),
                Some(waited) => waited,
            };
            match waited {
                Ok(waited) => waited?,
                Err(JoinError::Stopped(why, handle)) => {
                    self.pool = Some(AssertUnwindSafe(handle));
                    return Err(why.into());
                }
                Err(JoinError::Withdrawn(why)) => return Err(why.into()),
                Err(error) => return Err(io::Error::new(io::ErrorKind::WouldBlock, error.to_string())),
            }
            if let Some(status) = self.exit.try_wait()? {
                return Ok(status);
            }
        }
    }

    /// By the descriptor if there is one: who has the child's id by now, if somebody else has collected it, is left alone.
    fn send(&self, signal: Signal) -> io::Result<()> {
        let sent = match (self.exit.state, self.ended.get()) {
            (State::Runs, Some(ended)) => pidfd_send_signal(ended.source.socket(), signal),
            (State::Runs, None) => kill_process(self.exit.pid, signal),
            (State::Ended(_) | State::Reaped, _) => Ok(()),
        };
        match sent {
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    fn give_away(&mut self) -> io::Result<()> {
        let pidfd = match self.ended.take() {
            Some(ended) => ended.source.into_socket(),
            None => pidfd_open(self.exit.pid, PidfdFlags::empty())?,
        };
        orphans::adopt(self.exit.pid, pidfd)
    }
}

/// Blocks the thread until the child has ended.
fn wait_without_collecting(pid: Pid) -> io::Result<()> {
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            // Gone: whoever collects it learns of that.
            Ok(_) | Err(Errno::CHILD) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // In a forked process it is no child, and the parent still has it.
        if self.exit.state != State::Runs || fork::check().is_err() {
            return;
        }
        if self.kill_on_drop {
            // Refused if the child has changed its user, and then nothing can be done.
            let _ = self.send(Signal::KILL);
        }
        if matches!(self.exit.try_wait(), Ok(None))
            && let Err(error) = self.give_away()
        {
            log::warn!("the child with process id {} becomes a zombie at its end: {error}", self.exit.pid);
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exit.fmt(f)
    }
}

/// A child's end. Only who finds it running may use its id, which the kernel gives to others afterwards.
#[derive(Debug)]
struct Exit {
    pid: Pid,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It runs, or its end was not collected.
    Runs,
    Ended(ExitStatus),
    Reaped,
}

impl Exit {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.state == State::Runs {
            self.state = match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(None) => State::Runs,
                Ok(Some((_, status))) => State::Ended(ExitStatus::from_raw(status.as_raw())),
                Err(Errno::CHILD) => State::Reaped,
                Err(error) => return Err(error.into()),
            };
        }
        match self.state {
            State::Runs => Ok(None),
            State::Ended(status) => Ok(Some(status)),
            State::Reaped => Err(io::Error::other(Reaped)),
        }
    }
}

/// Reads both to their ends.
fn drain(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (Drain::new(stdout), Drain::new(stderr));
    loop {
        match (&stdout.pipe, &stderr.pipe) {
            (None, None) => return Ok((stdout.bytes, stderr.bytes)),
            (Some(_), None) => stdout.read()?,
            (None, Some(_)) => stderr.read()?,
            (Some(one), Some(other)) => crate::select! {
                readable(one) => stdout.read()?,
                readable(other) => stderr.read()?,
                interrupted(why) => return Err(why.into()),
            },
        }
    }
}

/// A pipe, and what has come out of it.
struct Drain<P> {
    /// None at its end.
    pipe: Option<P>,
    bytes: Vec<u8>,
}

impl<P> Drain<P>
where
    for<'a> &'a P: Read,
{
    fn new(pipe: Option<P>) -> Self {
        Self { pipe, bytes: Vec::new() }
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(mut pipe) = self.pipe.as_ref() else { return Ok(()) };
        let length = self.bytes.len();
        self.bytes.resize(length + CHUNK_BYTES, 0);
        let read = pipe.read(&mut self.bytes[length..]);
        self.bytes.truncate(length + read.as_ref().map_or(0, |count| *count));
        if read? == 0 {
            self.pipe = None;
        }
        Ok(())
    }
}
