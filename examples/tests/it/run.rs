//! Runs programs for the tests: the examples of this package, and foreign peers.
//!
//! `cargo test` builds the examples before it runs these tests. `cargo test --test it` does not: it
//! then runs whatever `cargo build --examples` left last.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a debug build to open its port on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The example programs of this package.
pub struct Example;

impl Example {
    /// Starts an example that goes on until it is dropped.
    pub fn start<A: AsRef<OsStr>>(name: &str, args: &[A]) -> Running {
        Running::start(Example::command(name).args(args))
    }

    /// As [`Example::start`], with a standard input for [`Running::tell`].
    pub fn start_to_tell<A: AsRef<OsStr>>(name: &str, args: &[A]) -> Running {
        Running::start_with(Example::command(name).args(args), Stdio::piped())
    }

    /// Runs an example to its end: status, stdout, stderr. Panics when it takes longer than
    /// `timeout`.
    pub fn output<A: AsRef<OsStr>>(name: &str, args: &[A], timeout: Duration) -> (ExitStatus, String, String) {
        output(Example::command(name).args(args), timeout)
    }

    /// Tests lie in `target/PROFILE/deps`, examples in `target/PROFILE/examples`.
    fn command(name: &str) -> Command {
        let test = std::env::current_exe().expect("a running test has a path");
        let profile = test.ancestors().nth(2).expect("a test lies two folders deep");
        let example = profile.join("examples").join(name);
        let shown = example.display();
        assert!(example.exists(), "no {shown}: run `cargo build -p dhaga-examples --examples`");
        Command::new(example)
    }
}

/// A program in the background. Dropping it kills it by its process id.
pub struct Running {
    child: Child,
    name: String,
    lines: Receiver<String>,
}

impl Running {
    /// Starts a program with nothing to read; its stderr goes where ours goes.
    pub fn start(command: &mut Command) -> Running {
        Running::start_with(command, Stdio::null())
    }

    fn start_with(command: &mut Command, stdin: Stdio) -> Running {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(stdin).stdout(Stdio::piped());
        let spawned = command.spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let stdout = BufReader::new(child.stdout.take().expect("stdout was asked for"));
        let (sender, lines) = mpsc::channel();
        // Reads on until the program ends, so that it never waits on a full pipe.
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Running { child, name, lines }
    }

    /// The next line of stdout that starts with `prefix`; the lines before it are lost.
    /// Panics when none has come within `timeout` or the program has closed its stdout.
    pub fn line(&mut self, prefix: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        let mut passed = Vec::new();
        loop {
            match self.lines.recv_timeout(left(deadline)) {
                Ok(line) if line.starts_with(prefix) => return line,
                Ok(line) => passed.push(line),
                Err(why) => panic!("{}: no line `{prefix}…`, {why}, only {passed:?}", self.name),
            }
        }
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it is running").count()
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let mut stdin = self.child.stdin.as_ref().expect("it was started to be told");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// Sends it what Ctrl-C sends.
    pub fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("it was not waited for");
    }

    /// Waits for its end. Panics when it takes longer than `timeout`.
    pub fn status(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        // It has ended, or is about to, once its stdout is closed.
        while !matches!(self.lines.recv_timeout(left(deadline)), Err(RecvTimeoutError::Disconnected)) {
            assert!(!left(deadline).is_zero(), "{} is still running after {timeout:?}", self.name);
        }
        self.child.wait().expect("nobody else waits for this child")
    }

    /// The address from the line `listening on ADDRESS`, which each of our servers prints first.
    pub fn address(&mut self) -> String {
        const PREFIX: &str = "listening on ";
        self.line(PREFIX, START_TIMEOUT)[PREFIX.len()..].to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the program has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end: status, stdout, stderr. Panics when it takes longer than `timeout`.
pub fn output(command: &mut Command, timeout: Duration) -> (ExitStatus, String, String) {
    let deadline = Instant::now() + timeout;
    let mut running = Running::start(command.stderr(Stdio::piped()));
    let stderr = text(running.child.stderr.take().expect("stderr was asked for"));

    let mut stdout = String::new();
    loop {
        match running.lines.recv_timeout(left(deadline)) {
            Ok(line) => stdout.extend([line.as_str(), "\n"]),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{} took longer than {timeout:?}: {stdout}", running.name)
            }
        }
    }
    let stderr = stderr.recv_timeout(left(deadline)).expect("stderr closes together with stdout");
    // With both pipes closed the program is at its end, so this wait needs no deadline.
    let status = running.child.wait().expect("nobody else waits for this child");
    (status, stdout, stderr)
}

/// All that comes out of a pipe, once it is closed.
fn text(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        sender.send(String::from_utf8_lossy(&bytes).into_owned())
    });
    receiver
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
