//! What a server process uses, seen from outside: processor time, system calls, memory.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Processor time of all threads of a process, user and system together, in nanoseconds and not in
/// the ticks of `/proc/PID/stat`. Threads that have ended no longer count.
///
/// # Errors
///
/// The file system's, when there is no such process or the kernel keeps no `schedstat`.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(line) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        nanos += first_number(&line)?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory and the page tables behind it, in bytes.
///
/// # Errors
///
/// The file system's, when there is no such process.
pub fn memory_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut kibibytes = 0;
    for name in ["VmRSS:", "VmPTE:"] {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .ok_or_else(|| unreadable("no such line in /proc/PID/status"))?;
        kibibytes += first_number(line)?;
    }
    Ok(kibibytes << 10)
}

/// Whether system calls can be counted on this machine.
pub fn strace_is_installed() -> bool {
    let strace = Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    strace.is_ok_and(|status| status.success())
}

/// An `strace -c -f` attached to a running process. It makes the process many times slower, so
/// rates measured with it mean nothing.
pub struct SyscallCount {
    strace: Child,
    messages: BufReader<ChildStderr>,
}

impl SyscallCount {
    /// Attaches, and returns once system calls are counted.
    ///
    /// # Errors
    ///
    /// When strace is not installed or may not attach.
    pub fn start(pid: u32) -> io::Result<SyscallCount> {
        let mut strace = Command::new("strace")
            .args(["-c", "-f", "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut messages =
            BufReader::new(strace.stderr.take().expect("stderr was asked to be a pipe"));
        let mut first = String::new();
        messages.read_line(&mut first)?;
        if first.contains("attached") {
            return Ok(SyscallCount { strace, messages });
        }
        strace.wait()?;
        Err(io::Error::other(first.trim().to_owned()))
    }

    /// Detaches and returns how many system calls were made.
    ///
    /// # Errors
    ///
    /// When the summary cannot be read.
    pub fn finish(mut self) -> io::Result<u64> {
        let pid = Pid::from_child(&self.strace);
        kill_process(pid, Signal::INT)?;
        let mut summary = String::new();
        self.messages.read_to_string(&mut summary)?;
        self.strace.wait()?;
        total_calls(&summary)
    }
}

/// The calls in the last line of strace's summary, or none: a process that made no call has no such
/// line.
///
/// ```text
/// 100.00    0.012345           3      4321        12 total
/// ```
fn total_calls(summary: &str) -> io::Result<u64> {
    let Some(total) = summary.lines().find(|line| line.ends_with(" total")) else {
        return Ok(0);
    };
    let calls = total
        .split_whitespace()
        .nth(3)
        .ok_or_else(|| unreadable("strace's last line has no fourth column"))?;
    calls
        .parse()
        .map_err(|_| unreadable("strace's count of calls is no number"))
}

fn first_number(text: &str) -> io::Result<u64> {
    let number = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    number.ok_or_else(|| unreadable("a number was expected in /proc"))
}

fn unreadable(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_summary_is_its_fourth_column() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n100.00    0.012345           3      4321        12 total\n";
        assert_eq!(
            total_calls(summary).expect("the summary is well formed"),
            4321
        );
        assert_eq!(
            total_calls("strace: Process 7 detached\n").expect("no calls, no line"),
            0
        );
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let pid = std::process::id();
        assert!(memory_bytes(pid).expect("/proc is readable") > 0);
        assert!(cpu_time(pid).expect("/proc is readable") > Duration::ZERO);
    }
}
