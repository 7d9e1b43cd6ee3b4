//! Tests that need a process of their own: what must crash, and what counts descriptors, threads or memory.

use std::process::{Command, Output, abort};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::common::DEADLINE;

/// Set in the child, to the name of its test.
const CHILD: &str = "DHAGA_TEST_CHILD";

/// Bytes of stack for the threads of a child that is to run out of address space: the more of it each thread takes, the
/// more is left for everything else when it ends.
pub const THREAD_BYTES: u64 = 64 << 20;

/// Runs one test of this binary again, in a child, with `body` instead of what follows the call. `None` in the child,
/// which is to return.
pub fn run(test: &str, body: impl FnOnce()) -> Option<Output> {
    run_with_threads(test, DEADLINE, 2 << 20, body)
}

fn run_with_threads(test: &str, limit: Duration, stack_bytes: u64, body: impl FnOnce()) -> Option<Output> {
    let mut command = command_unless_child(test, limit, body)?;
    let output = command.env("RUST_MIN_STACK", stack_bytes.to_string()).output();
    Some(output.expect("the test binary can be run again"))
}

/// What runs one test of this binary again, in a child, where `body` runs instead of what follows the call. `None` in the
/// child, which is to return.
pub fn command(test: &str, body: impl FnOnce()) -> Option<Command> {
    command_unless_child(test, DEADLINE, body)
}

fn command_unless_child(test: &str, limit: Duration, body: impl FnOnce()) -> Option<Command> {
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        abort_after(limit);
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().expect("the test binary exists"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, test);
    Some(command)
}

/// Runs `body` in a child and expects it to succeed there.
pub fn succeeds(test: &str, body: impl FnOnce()) {
    check_success(run(test, body));
}

/// As [`succeeds`], for a body that needs longer than others.
pub fn succeeds_in(test: &str, limit: Duration, body: impl FnOnce()) {
    check_success(run_with_threads(test, limit, 2 << 20, body));
}

/// As [`succeeds`], with threads of [`THREAD_BYTES`].
pub fn succeeds_with_large_threads(test: &str, body: impl FnOnce()) {
    check_success(run_with_threads(test, DEADLINE, THREAD_BYTES, body));
}

fn check_success(output: Option<Output>) {
    let Some(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

/// What a child said before it died of the signal that an abort sends.
pub fn aborts(test: &str, body: impl FnOnce()) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    let output = run(test, body)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
    Some(text)
}

/// Has warnings and errors written to the child's standard error.
pub fn log_to_stderr() {
    log::set_logger(&ToStderr).expect("it is the first");
    log::set_max_level(log::LevelFilter::Warn);
}

struct ToStderr;

impl log::Log for ToStderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// The name of a test of this file, for its child.
macro_rules! name_of {
    ($test:ident) => {
        concat!(module_path!(), "::", stringify!($test)).split_once("::").expect("a path begins with the crate").1
    };
}
pub(crate) use name_of;

/// Descriptors that this process has open. What reads them takes one, every time.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the kernel tells").count()
}

fn abort_after(limit: Duration) {
    let (started, has_started) = mpsc::channel();
    thread::spawn(move || {
        started.send(()).expect("the test waits");
        thread::sleep(limit);
        eprintln!("the child is still running after {limit:?}");
        abort();
    });
    // A thread that starts while the body takes memory or descriptors away would abort in std.
    has_started.recv().expect("it starts");
}
