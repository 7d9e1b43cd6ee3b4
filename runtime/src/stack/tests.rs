//! What the tests of the lower floors share: a process of its own for what may crash, and questions to the kernel.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::ptr;

use corosensei::stack::Stack as _;

use super::{STACK_BYTES_DEFAULT, Stack, StackPool};

const CHILD: &str = "DHAGA_TEST_CHILD";

/// Whether this process is the child that [`run_in_child`] started.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one test of this binary in a process of its own, where it may crash.
pub(crate) fn run_in_child(test: &str) -> Output {
    let (_crate, test) = test.split_once("::").expect("a test path begins with the crate");
    Command::new(std::env::current_exe().expect("the test binary exists"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("the test binary can be run again")
}

/// The path of a test of this module.
macro_rules! test_path {
    ($test:ident) => {
        concat!(module_path!(), "::", stringify!($test))
    };
}
pub(crate) use test_path;

/// Runs the body in a child and expects it to succeed there.
pub(super) fn in_child(test: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let output = run_in_child(test);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

pub(super) fn take_many(pool: &mut StackPool, count: usize) -> Vec<Stack> {
    (0..count).map(|_| pool.take(STACK_BYTES_DEFAULT).expect("address space for the test")).collect()
}

pub(super) fn touch(stack: &Stack) -> *mut u8 {
    let top = ptr::with_exposed_provenance_mut::<u8>(stack.base().get() - 1);
    // SAFETY: the top byte of a stack that we hold and that no coroutine runs on.
    unsafe { top.write(7) };
    top
}

/// How much of the address space around `range` the kernel counts as mappings.
pub(super) fn mappings_in(range: Range<usize>) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let starts = maps.lines().filter_map(|line| usize::from_str_radix(line.split_once('-')?.0, 16).ok());
    starts.filter(|start| range.contains(start)).count()
}

/// Asks the kernel to read a byte for us, which it refuses without a signal.
pub(super) fn is_inaccessible(address: usize) -> bool {
    let (_reader, writer) = io::pipe().expect("a pipe");
    // SAFETY: the kernel checks the address itself and answers EFAULT.
    let written = unsafe { libc::write(writer.as_raw_fd(), ptr::with_exposed_provenance(address), 1) };
    written == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
