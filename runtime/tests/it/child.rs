//! Tests that need a process of their own: what must crash, and what counts descriptors, threads or memory.

use std::process::{Command, Output, abort};
use std::thread;

use crate::common::DEADLINE;

/// Set in the child, to the name of its test.
const CHILD: &str = "DHAGA_TEST_CHILD";

/// Runs one test of this binary again, in a child, with `body` instead of what follows the call. `None` in the child,
/// which is to return.
pub fn run(test: &str, body: impl FnOnce()) -> Option<Output> {
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        abort_at_deadline();
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().expect("the test binary exists"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output();
    Some(output.expect("the test binary can be run again"))
}

/// Runs `body` in a child and expects it to succeed there.
pub fn succeeds(test: &str, body: impl FnOnce()) {
    if let Some(output) = run(test, body) {
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{text}");
        assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    }
}

/// What a child said before it died of the signal that an abort sends.
pub fn aborts(test: &str, body: impl FnOnce()) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    let output = run(test, body)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
    Some(text)
}

/// The name of a test of this file, for its child.
macro_rules! name_of {
    ($test:ident) => {
        concat!(module_path!(), "::", stringify!($test)).split_once("::").expect("a path begins with the crate").1
    };
}
pub(crate) use name_of;

fn abort_at_deadline() {
    thread::spawn(|| {
        thread::sleep(DEADLINE);
        eprintln!("the child is still running after {DEADLINE:?}");
        abort();
    });
}
