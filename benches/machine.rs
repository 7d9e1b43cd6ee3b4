//! What a benchmark asks of the machine: one processor, and as many open files as it may have.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps this process (its main thread, and the threads that it starts later) on one processor.
///
/// # Errors
///
/// The kernel's, when the machine has no such processor or this process may not use it.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such processor"));
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}

/// Raises the soft limit of open files to the hard one, since a connection is an open file at
/// either end.
///
/// # Errors
///
/// The kernel's; none is expected, since any process may do this.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
