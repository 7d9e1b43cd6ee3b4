//! A peer that is a child of ours: its standard input and output are the connection, and it is minded until it has ended.
//!
//! ```text
//!   runs ──▶ it has exited, or closed its output ──▶ both, or ENDS_WITHIN is over ──▶ close: all calls learn how it ended
//!    └─────▶ we have closed the connection, and so its input ──▶ it exits, or is killed after CHILD_GRACE ──▶ collected
//! ```

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dhaga::process::{Child, Command, Stdio};
use dhaga::sync::channel;
use dhaga::{Builder, Interrupt, JoinHandle, park, within};

use crate::connection::Connection;
use crate::error::Cause;
use crate::peer::{Keeper, Peer};
use crate::transport::Transport;

/// How long a child may go on when its client has gone and its standard input is closed. Then it is killed. Time enough to
/// write a file; a child that reads its input ends at once.
pub const CHILD_GRACE: Duration = Duration::from_secs(5);
/// When a child ends, so does its output, but for what its own children hold: how long the one is awaited after the other.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// The child behind a client has ended, or has closed its output: the source of a
/// [`CallError::Disconnected`](crate::CallError::Disconnected).
#[derive(Clone, Debug)]
pub struct ChildEnded {
    name: Arc<str>,
    status: Option<ExitStatus>,
}

impl ChildEnded {
    /// How it has ended; `None` if it has not, or if that is not known because other code waits for all children.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }
}

impl fmt::Display for ChildEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "the child {} has ended: {status}", self.name),
            None => write!(f, "the child {} has closed its output", self.name),
        }
    }
}

impl Error for ChildEnded {}

/// Who waits for a child's end.
pub(crate) struct Minder {
    child: Child,
    name: Arc<str>,
    news: Arc<News>,
    bell: channel::Receiver<()>,
}

/// What the connection tells the minder.
struct News {
    /// The child's output has ended, or it takes no more input.
    has_ended: AtomicBool,
    is_closed: AtomicBool,
    bell: channel::Sender<()>,
}

impl News {
    /// On a worker's own context, too. Returns whether there is a minder: one that never got a stack has gone with its child.
    fn tell(&self, what: &AtomicBool) -> bool {
        what.store(true, Ordering::SeqCst);
        // One that has not been heard yet is enough.
        !matches!(self.bell.try_send(()), Err(channel::TrySendError::Disconnected(())))
    }
}

struct ChildKeeper(Arc<News>);

impl Keeper for ChildKeeper {
    /// The timeouts of the calls are enough.
    fn watch(&self, _: &Arc<Connection<Peer>>) {}

    fn ends(&self) -> bool {
        self.0.tell(&self.0.has_ended)
    }

    fn closed(&self, _: Option<&Cause>) {
        self.0.tell(&self.0.is_closed);
    }
}

impl Minder {
    /// Starts the child, which is killed if the minder is dropped.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Transport, Self)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let program = Path::new(command.get_program());
        let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        let name: Arc<str> = format!("pid {} ({program})", child.id()).into();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
            unreachable!("both were piped three lines ago");
        };
        let transport = Transport::pipes_to(&name, stdout.into(), stdin.into())?;
        let (sender, bell) = channel::bounded(1);
        let news = News { has_ended: AtomicBool::new(false), is_closed: AtomicBool::new(false), bell: sender };
        Ok((transport, Self { child, name, news: Arc::new(news), bell }))
    }

    /// What the connection has of it.
    pub(crate) fn keeper(&self) -> Box<dyn Keeper> {
        Box::new(ChildKeeper(self.news.clone()))
    }

    /// Minds the child from now on, in a dhaga of its own.
    pub(crate) fn begin(self, connection: &Arc<Connection<Peer>>) -> io::Result<()> {
        let connection = Arc::downgrade(connection);
        let builder = Builder::new().name("rpc child").detached();
        Ok(builder.spawn(move || self.mind(&connection)).map(JoinHandle::detach)?)
    }

    fn mind(mut self, connection: &Weak<Connection<Peer>>) {
        let stopped = self.wait_for_end();
        if let Some(connection) = connection.upgrade() {
            let status = self.child.try_wait().ok().flatten();
            connection.close(Some(Arc::new(ChildEnded { name: self.name.clone(), status })));
        }
        if stopped.is_ok() {
            self.collect();
        }
    }

    /// Until the child has ended and all it wrote was read, or one of the two and the other not within a while, or the
    /// connection is closed.
    fn wait_for_end(&mut self) -> Result<(), Interrupt> {
        let mut deadline = None;
        loop {
            // If its status was thrown away it has ended, too.
            let has_exited = !matches!(self.child.try_wait(), Ok(None));
            let has_ended = self.news.has_ended.load(Ordering::SeqCst);
            let is_late = deadline.is_some_and(|deadline| park::now() >= deadline);
            if self.news.is_closed.load(Ordering::SeqCst) || has_exited && has_ended || is_late {
                return Ok(());
            }
            if has_exited || has_ended {
                deadline.get_or_insert_with(|| park::now() + ENDS_WITHIN);
            }
            self.wait_for_news(has_exited, deadline)?;
        }
    }

    fn wait_for_news(&self, has_exited: bool, deadline: Option<Instant>) -> Result<(), Interrupt> {
        // None on a kernel before 5.3 and where no descriptor is left: then the end of the output tells, and after the child's
        // end nothing more. Who knows of that end asks no more: it would be told at once, again and again.
        let exited = self.child.ended().ok().filter(|_| !has_exited);
        dhaga::select! {
            readable(*exited.expect("asked for by the condition")), if exited.is_some() => Ok(()),
            recv(self.bell) -> _ => Ok(()),
            at(deadline.expect("asked for by the condition")), if deadline.is_some() => Ok(()),
            interrupted(why) => Err(why),
        }
    }

    /// Its input is closed: it ends by itself or is killed.
    fn collect(mut self) {
        if within(CHILD_GRACE, || self.child.wait()).is_ok() {
            return;
        }
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        log::warn!("killing the child {}: it has not ended within {CHILD_GRACE:?} of its input's end", self.name);
        // The rest is done when it is dropped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_minder_the_end_of_a_child_is_that_of_any_peer() {
        let (sender, bell) = channel::bounded(1);
        let news = News { has_ended: AtomicBool::new(false), is_closed: AtomicBool::new(false), bell: sender };
        let keeper = ChildKeeper(Arc::new(news));
        assert!(keeper.ends() && keeper.ends(), "the bell rings once and is heard by who is there");
        drop(bell);
        assert!(!keeper.ends());
    }
}
