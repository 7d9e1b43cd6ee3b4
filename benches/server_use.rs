//! What a server process uses, seen from outside: processor time, system calls, memory.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What the scheduler says of all threads of a process together, in nanoseconds and not in the
/// ticks of `/proc/PID/stat`. Threads that have ended no longer count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerTimes {
    /// Processor time, user and system.
    pub ran: Duration,
    /// Time in which a thread could have run but another process had its processor.
    pub waited: Duration,
}

impl SchedulerTimes {
    /// Since the process began.
    ///
    /// # Errors
    ///
    /// The file system's, when there is no such process; `InvalidData` when the kernel keeps no
    /// `schedstat`.
    pub fn of(pid: u32) -> io::Result<SchedulerTimes> {
        let (mut ran, mut waited) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between the listing and the reading.
            let Ok(line) = fs::read_to_string(thread?.path().join("schedstat")) else {
                continue;
            };
            ran += nth_number(&line, 0)?;
            waited += nth_number(&line, 1)?;
        }
        if ran == 0 {
            return Err(unreadable("the kernel keeps no processor times of threads"));
        }
        Ok(SchedulerTimes { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
    }

    /// What has been added since an earlier reading.
    pub fn since(self, earlier: SchedulerTimes) -> SchedulerTimes {
        SchedulerTimes { ran: self.ran.saturating_sub(earlier.ran), waited: self.waited.saturating_sub(earlier.waited) }
    }
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
        kibibytes += nth_number(line, 0)?;
    }
    Ok(kibibytes << 10)
}

/// A program that can count the system calls of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// By the kernel's tracepoint: hardly slows the process, so the count is the one under the real load.
    Perf,
    /// By stopping the process at each call, which makes it many times slower: rates measured with it mean nothing, and the
    /// server meets its requests in other batches than without.
    Strace,
}

impl Counter {
    /// The better of those that work on this machine.
    pub fn find() -> Option<Counter> {
        let works = |program: &str, arguments: &[&str]| {
            let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        if works("perf", &["stat", "-e", SYSTEM_CALLS, "true"]) {
            Some(Counter::Perf)
        } else {
            works("strace", &["-V"]).then_some(Counter::Strace)
        }
    }

    fn command(self, server_pid: u32) -> Command {
        let pid = server_pid.to_string();
        let mut command = match self {
            Counter::Perf => {
                let mut perf = Command::new("perf");
                perf.args(["stat", "-x", ",", "-e", SYSTEM_CALLS, "-p", &pid]);
                perf
            }
            Counter::Strace => {
                let mut strace = Command::new("strace");
                strace.args(["-c", "-f", "-p", &pid]);
                strace
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// The entry of any system call.
const SYSTEM_CALLS: &str = "raw_syscalls:sys_enter";

/// A counter attached to a running process.
///
/// Both ends wait for the server to be idle, in a load that has stopped asking. So the calls
/// counted are those for the requests sent in between, which in a closed loop are as many as the
/// answers.
pub struct SyscallCount {
    server_pid: u32,
    counter: Counter,
    child: Child,
    messages: BufReader<ChildStderr>,
}

impl SyscallCount {
    /// Attaches once the server is idle, and returns when system calls are counted.
    ///
    /// # Errors
    ///
    /// When no counter is installed or may attach.
    pub fn start(server_pid: u32) -> io::Result<SyscallCount> {
        let counter =
            Counter::find().ok_or_else(|| unreadable("neither perf nor strace can count system calls here"))?;
        wait_until_idle(server_pid)?;
        let mut child = counter.command(server_pid).spawn()?;
        let messages = BufReader::new(child.stderr.take().expect("stderr was asked to be a pipe"));
        let mut count = SyscallCount { server_pid, counter, child, messages };
        count.wait_until_attached()?;
        Ok(count)
    }

    fn wait_until_attached(&mut self) -> io::Result<()> {
        match self.counter {
            // It says nothing, and sleeps until it is interrupted.
            Counter::Perf => wait_until_idle(self.child.id()),
            Counter::Strace => {
                let mut first = String::new();
                self.messages.read_line(&mut first)?;
                if first.contains("attached") {
                    return Ok(());
                }
                self.child.wait()?;
                Err(io::Error::other(first.trim().to_owned()))
            }
        }
    }

    /// Detaches once the server is idle again, and returns how many system calls were made.
    ///
    /// # Errors
    ///
    /// When the summary cannot be read.
    pub fn finish(mut self) -> io::Result<u64> {
        wait_until_idle(self.server_pid)?;
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let mut summary = String::new();
        self.messages.read_to_string(&mut summary)?;
        self.child.wait()?;
        match self.counter {
            Counter::Perf => counted_by_perf(&summary),
            Counter::Strace => total_calls(&summary),
        }
    }
}

/// Returns when the server sleeps and has used next to no processor time for a while; a server that
/// never rests is waited for in vain, but not for ever.
fn wait_until_idle(pid: u32) -> io::Result<()> {
    const REST: Duration = Duration::from_millis(100);
    const RESTING_USE_MAX: Duration = Duration::from_micros(200);
    const RESTS_MAX: usize = 50;
    let mut before = SchedulerTimes::of(pid)?;
    for _ in 0..RESTS_MAX {
        sleep(REST);
        let now = SchedulerTimes::of(pid)?;
        if now.since(before).ran <= RESTING_USE_MAX && sleeps(pid)? {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Whether each thread waits for something. One that uses no processor time may also be kept from
/// it, by other processes or by strace.
fn sleeps(pid: u32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
            continue;
        };
        // The state follows the program's name, which may itself hold parentheses.
        if !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first field of the only line, `4321,,raw_syscalls:sys_enter,…`.
fn counted_by_perf(summary: &str) -> io::Result<u64> {
    let line = summary.lines().find(|line| line.contains(SYSTEM_CALLS));
    let count = line.and_then(|line| line.split(',').next()?.parse().ok());
    count.ok_or_else(|| unreadable("perf's summary holds no count"))
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
    let calls = total.split_whitespace().nth(3).ok_or_else(|| unreadable("strace's last line has no fourth column"))?;
    calls.parse().map_err(|_| unreadable("strace's count of calls is no number"))
}

fn nth_number(text: &str, index: usize) -> io::Result<u64> {
    let number = text.split_whitespace().nth(index);
    number.and_then(|word| word.parse().ok()).ok_or_else(|| unreadable("a number was expected in /proc"))
}

fn unreadable(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_summary_is_its_fourth_column() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
            100.00    0.012345           3      4321        12 total\n";
        assert_eq!(total_calls(summary).expect("the summary is well formed"), 4321);
        assert_eq!(total_calls("strace: Process 7 detached\n").expect("no calls, no line"), 0);
    }

    #[test]
    fn the_count_of_perf_is_its_first_field() {
        let summary = "4321,,raw_syscalls:sys_enter,1000000,100.00,,\n";
        assert_eq!(counted_by_perf(summary).expect("the summary is well formed"), 4321);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let pid = std::process::id();
        assert!(memory_bytes(pid).expect("/proc is readable") > 0);
        let times = SchedulerTimes::of(pid).expect("/proc is readable");
        assert!(times.ran > Duration::ZERO);
    }
}
