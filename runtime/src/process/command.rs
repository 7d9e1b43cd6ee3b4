//! What program to run, and how. The same as std's, but for how it starts.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, CommandArgs, CommandEnvs, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use super::child::Child;
use crate::blocking::{Turns, lend_in_turn};
use crate::machine;

/// Children that dhagas start at once: as many as there are cores, since to start one keeps a core busy for about a
/// millisecond, and its child another one. But two at least, since one of them may hang.
const STARTS_AT_ONCE_MIN: usize = 2;
/// How long a start waits for those that are under way, which may hang: a program on a file system that does not answer.
const START_PATIENCE: Duration = Duration::from_secs(1);

static STARTS: LazyLock<Turns> = LazyLock::new(|| Turns::new(machine::cores().max(STARTS_AT_ONCE_MIN), START_PATIENCE));

/// Which program to run, and how. As [`std::process::Command`], but for what the [module](super) says.
///
/// # Examples
///
/// ```
/// use std::io::{BufRead, BufReader, Write};
/// use dhaga::process::{Command, Stdio};
///
/// let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
/// let (stdin, stdout) = (child.stdin.take().ok_or("piped")?, child.stdout.take().ok_or("piped")?);
/// let feeder = dhaga::spawn(move || (&stdin).write_all(b"one\ntwo\n")); // closed when it ends
/// let lines = BufReader::new(stdout).lines().collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(lines, ["one", "two"]);
/// feeder.join()??;
/// assert!(child.wait()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Command {
    std: process::Command,
    kill_on_drop: bool,
    configured: Configured,
}

/// Which of the three the user has set: `output` and `spawn` have different defaults for the others.
#[derive(Clone, Copy, Default)]
struct Configured {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Command {
    /// As [`std::process::Command::new`].
    pub fn new<S: AsRef<OsStr>>(program: S) -> Self {
        process::Command::new(program).into()
    }

    /// Whether the child is killed, by SIGKILL, when its [`Child`] is dropped and it has not ended; not so by default. That is
    /// also what becomes of a child whose `output` or `status` fails, because its scope was cancelled, say. Its own children are not
    /// killed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use dhaga::process::Command;
    ///
    /// let mut command = Command::new("sleep");
    /// command.arg("1000").kill_on_drop(true);
    /// let late = dhaga::within(Duration::from_millis(20), || command.status());
    /// assert!(late.is_err()); // and it sleeps no longer
    /// ```
    pub fn kill_on_drop(&mut self, kill_on_drop: bool) -> &mut Self {
        self.kill_on_drop = kill_on_drop;
        self
    }

    /// Starts the program, which inherits the three standard streams unless they were set.
    ///
    /// It is made by a thread of the [`blocking`](crate::blocking) pool, while a dhaga parks; of many, as many at a time as
    /// there are cores, and two at least. Once that has begun it goes to its end, which takes about a millisecond: a deadline
    /// that passes meanwhile is one for the next wait, and no child is lost. If the dhaga is unwound by a shutdown just
    /// then, the child is as one that is dropped.
    ///
    /// # Errors
    ///
    /// What the kernel says, as in std: `NotFound` where there is no such program. Those of the scope around it, and then nothing
    /// was started.
    #[track_caller]
    pub fn spawn(&mut self) -> io::Result<Child> {
        let Self { std, kill_on_drop, .. } = self;
        lend_in_turn(&STARTS, || Child::adopt(std.spawn()?, *kill_on_drop))?
    }

    /// Runs the program to its end, and returns its status and what it wrote. The standard input is empty and the other two are
    /// captured, unless they were set.
    ///
    /// Waits as [`spawn`](Self::spawn) and [`Child::wait_with_output`].
    ///
    /// # Errors
    ///
    /// Those of both. If the wait fails, the child lives on, unless [`kill_on_drop`](Self::kill_on_drop) was set.
    #[track_caller]
    pub fn output(&mut self) -> io::Result<Output> {
        self.set_others(Stdio::null, Stdio::piped);
        let child = self.spawn();
        self.set_others(Stdio::inherit, Stdio::inherit);
        child?.wait_with_output()
    }

    /// Runs the program to its end, and returns its status. It inherits the three standard streams unless they were set.
    ///
    /// Waits as [`spawn`](Self::spawn) and [`Child::wait`].
    ///
    /// # Errors
    ///
    /// Those of both. If the wait fails, the child lives on, unless [`kill_on_drop`](Self::kill_on_drop) was set.
    #[track_caller]
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.spawn()?.wait()
    }

    /// Sets those of the streams that the user has not set.
    fn set_others(&mut self, input: fn() -> Stdio, outputs: fn() -> Stdio) {
        let Configured { stdin, stdout, stderr } = self.configured;
        if !stdin {
            self.std.stdin(input());
        }
        if !stdout {
            self.std.stdout(outputs());
        }
        if !stderr {
            self.std.stderr(outputs());
        }
    }

    /// What the child's standard input is. As [`std::process::Command::stdin`].
    pub fn stdin<T: Into<Stdio>>(&mut self, stdin: T) -> &mut Self {
        self.configured.stdin = true;
        self.std.stdin(stdin);
        self
    }

    /// What the child's standard output is. As [`std::process::Command::stdout`].
    pub fn stdout<T: Into<Stdio>>(&mut self, stdout: T) -> &mut Self {
        self.configured.stdout = true;
        self.std.stdout(stdout);
        self
    }

    /// What the child's standard error is. As [`std::process::Command::stderr`].
    pub fn stderr<T: Into<Stdio>>(&mut self, stderr: T) -> &mut Self {
        self.configured.stderr = true;
        self.std.stderr(stderr);
        self
    }

    /// As [`std::process::Command::arg`].
    pub fn arg<S: AsRef<OsStr>>(&mut self, argument: S) -> &mut Self {
        self.std.arg(argument);
        self
    }

    /// As [`std::process::Command::args`].
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&mut self, arguments: I) -> &mut Self {
        self.std.args(arguments);
        self
    }

    /// As [`std::process::Command::env`].
    pub fn env<K: AsRef<OsStr>, V: AsRef<OsStr>>(&mut self, key: K, value: V) -> &mut Self {
        self.std.env(key, value);
        self
    }

    /// As [`std::process::Command::envs`].
    pub fn envs<I, K, V>(&mut self, variables: I) -> &mut Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        self.std.envs(variables);
        self
    }

    /// As [`std::process::Command::env_remove`].
    pub fn env_remove<K: AsRef<OsStr>>(&mut self, key: K) -> &mut Self {
        self.std.env_remove(key);
        self
    }

    /// As [`std::process::Command::env_clear`].
    pub fn env_clear(&mut self) -> &mut Self {
        self.std.env_clear();
        self
    }

    /// As [`std::process::Command::current_dir`].
    pub fn current_dir<P: AsRef<Path>>(&mut self, folder: P) -> &mut Self {
        self.std.current_dir(folder);
        self
    }

    /// As [`CommandExt::uid`].
    pub fn uid(&mut self, id: u32) -> &mut Self {
        self.std.uid(id);
        self
    }

    /// As [`CommandExt::gid`].
    pub fn gid(&mut self, id: u32) -> &mut Self {
        self.std.gid(id);
        self
    }

    /// As [`CommandExt::arg0`].
    pub fn arg0<S: AsRef<OsStr>>(&mut self, argument: S) -> &mut Self {
        self.std.arg0(argument);
        self
    }

    /// As [`CommandExt::process_group`]: a child with a group of its own, 0, does not get the terminal's Ctrl-C.
    pub fn process_group(&mut self, group: i32) -> &mut Self {
        self.std.process_group(group);
        self
    }

    /// Puts the program into the place of this one. As [`CommandExt::exec`]; returns only if that fails.
    pub fn exec(&mut self) -> io::Error {
        self.std.exec()
    }

    /// As [`std::process::Command::get_program`].
    pub fn get_program(&self) -> &OsStr {
        self.std.get_program()
    }

    /// As [`std::process::Command::get_args`].
    pub fn get_args(&self) -> CommandArgs<'_> {
        self.std.get_args()
    }

    /// As [`std::process::Command::get_envs`].
    pub fn get_envs(&self) -> CommandEnvs<'_> {
        self.std.get_envs()
    }

    /// As [`std::process::Command::get_current_dir`].
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.std.get_current_dir()
    }

    /// std's command inside.
    pub fn as_std(&self) -> &process::Command {
        &self.std
    }

    /// std's command inside, for what is not here. Standard streams that are set there, [`output`](Self::output) sets again.
    pub fn as_std_mut(&mut self) -> &mut process::Command {
        &mut self.std
    }

    /// std's command inside. After an [`output`](Self::output), streams that were not set are set to be inherited.
    pub fn into_std(self) -> process::Command {
        self.std
    }
}

/// With what is set there; but standard streams [`output`](Command::output) sets again.
impl From<process::Command> for Command {
    fn from(std: process::Command) -> Self {
        Self { std, kill_on_drop: false, configured: Configured::default() }
    }
}

impl From<Command> for process::Command {
    fn from(command: Command) -> Self {
        command.std
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.std.fmt(f)
    }
}
