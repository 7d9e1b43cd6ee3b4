//! The rule by which two servers are compared: many alternating runs, and the median of the ratios
//! within a round.
//!
//! One round runs each contestant once, in order, and then the first one again: `A B A`, `A B A`, …
//! A ratio is between the two of one round, which lie next to each other in time, so that slow
//! changes of the machine cancel out. The two runs of the first show what ratio the machine makes
//! of no difference at all.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::child::Running;
use crate::spread::Spread;
use crate::window::Report;

/// A server to run, with `{addr}` in its arguments where the address goes.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// What the table calls it.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// What its load needs besides, for example its protocol.
    pub load_options: &'static str,
}

impl Contestant {
    /// Splits `command` at white space; there is no quoting.
    pub fn new(name: &str, command: &str) -> Contestant {
        Contestant { name: name.to_owned(), command: words(command), load_options: "" }
    }
}

/// How long and where the runs take place.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Rounds, at least one.
    pub rounds: usize,
    /// The measured time of a run.
    pub seconds: f64,
    /// The time before it.
    pub warm_up_seconds: f64,
    /// The servers' processor, where it is to be one.
    pub server_cpu: Option<usize>,
    /// The load's processor, where it is to be one.
    pub load_cpu: Option<usize>,
    /// Whether one more run of each counts system calls.
    pub syscalls: bool,
}

/// The runs of one contestant, in order, and where asked for its system calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Runs {
    /// What the table calls it.
    pub name: String,
    /// One report a round.
    pub reports: Vec<Report>,
    /// System calls per request, counted in a run of its own.
    pub syscalls: Option<f64>,
}

/// All runs of one load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// What the load was.
    pub load: String,
    /// The contestants; all others are held against the first, or rather it against them.
    pub contestants: Vec<Runs>,
    /// The second run of the first contestant in each round.
    pub again: Vec<Report>,
}

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(10);

/// How long a load may take beyond its warm-up and its measured time: to open its connections, and
/// to be traced.
const OVERHEAD_MAX: Duration = Duration::from_secs(60);

impl Comparison {
    /// Runs all rounds. `progress` is told of each run before it starts. Each run has a fresh
    /// server, so none inherits the memory of the last, and none shares its processor with a
    /// resting one.
    ///
    /// # Errors
    ///
    /// When a server does not start, or a load fails or takes too long.
    pub fn run(
        load: &str,
        contestants: &[Contestant],
        course: &Course,
        mut progress: impl FnMut(&str),
    ) -> io::Result<Comparison> {
        let runs = contestants.iter().map(|contestant| Runs {
            name: contestant.name.clone(),
            reports: Vec::new(),
            syscalls: None,
        });
        let mut comparison =
            Comparison { load: without_directory(load), contestants: runs.collect(), again: Vec::new() };
        for _ in 0..course.rounds {
            for (contestant, runs) in contestants.iter().zip(&mut comparison.contestants) {
                progress(&contestant.name);
                runs.reports.push(course.run_once(load, contestant, Counting::Time)?);
            }
            progress(&contestants[0].name);
            comparison.again.push(course.run_once(load, &contestants[0], Counting::Time)?);
        }
        if course.syscalls {
            comparison.count_syscalls(load, contestants, course, progress)?;
        }
        Ok(comparison)
    }

    fn count_syscalls(
        &mut self,
        load: &str,
        contestants: &[Contestant],
        course: &Course,
        mut progress: impl FnMut(&str),
    ) -> io::Result<()> {
        for (contestant, runs) in contestants.iter().zip(&mut self.contestants) {
            progress(&contestant.name);
            let report = course.run_once(load, contestant, Counting::SystemCalls)?;
            runs.syscalls = report.server_syscalls;
        }
        Ok(())
    }

    /// Adds later rounds of the same contestants under the same load.
    pub fn append(&mut self, later: Comparison) {
        for (runs, later) in self.contestants.iter_mut().zip(later.contestants) {
            runs.reports.extend(later.reports);
        }
        self.again.extend(later.again);
    }

    /// The first contestant's value divided by that of another, round by round.
    pub fn ratio(&self, other: usize, value: impl Fn(&Report) -> f64) -> Spread {
        self.ratio_between(0, other, value)
    }

    /// One contestant's value divided by that of another, round by round.
    pub fn ratio_between(&self, one: usize, other: usize, value: impl Fn(&Report) -> f64) -> Spread {
        let values = |index: usize| self.contestants[index].reports.iter().map(&value);
        Spread::of_ratios(values(one), values(other))
    }

    /// The first contestant against itself.
    pub fn self_ratio(&self, value: impl Fn(&Report) -> f64) -> Spread {
        Spread::of_ratios(self.contestants[0].reports.iter().map(&value), self.again.iter().map(&value))
    }
}

impl Runs {
    /// The median over the rounds.
    pub fn median(&self, value: impl Fn(&Report) -> f64) -> f64 {
        Spread::of(self.reports.iter().map(value)).median
    }
}

impl Course {
    /// How many runs a comparison takes.
    pub fn runs(&self, contestants: usize) -> usize {
        self.rounds * (contestants + 1) + if self.syscalls { contestants } else { 0 }
    }

    fn run_once(&self, load: &str, contestant: &Contestant, counting: Counting) -> io::Result<Report> {
        let options = self.load_options(counting);
        let load = format!("{load} {} --server-pid {{pid}} {options}", contestant.load_options);
        let answer = self.answer_of(&load, contestant)?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Starts the contestant and then `load`, in whose arguments `{addr}` and `{pid}` stand for the server, and returns what
    /// the load prints.
    ///
    /// # Errors
    ///
    /// When the server does not start, or the load fails or takes too long.
    pub fn answer_of(&self, load: &str, contestant: &Contestant) -> io::Result<String> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", contestant.name));
        let address = free_address()?;
        let mut server = Running::start_server(&filled(&contestant.command, address), self.server_cpu)?;
        wait_until_listening(&mut server, address).map_err(named)?;
        let load = load.replace("{pid}", &server.pid().to_string());
        Running::start_load(&filled(&words(&load), address), self.load_cpu)?.answer(self.run_max()).map_err(named)
    }

    fn load_options(&self, counting: Counting) -> String {
        let syscalls = if let Counting::SystemCalls = counting { "--syscalls" } else { "" };
        format!("--json --seconds {} --warm-up-seconds {} {syscalls}", self.seconds, self.warm_up_seconds)
    }

    fn run_max(&self) -> Duration {
        OVERHEAD_MAX + Duration::from_secs_f64(self.seconds + self.warm_up_seconds)
    }
}

#[derive(Clone, Copy)]
enum Counting {
    Time,
    SystemCalls,
}

/// An address that nobody listens on. Another process may take it first; then the server says so
/// and the run fails.
///
/// # Errors
///
/// The kernel's.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// Waits until `server` has begun to listen.
///
/// # Errors
///
/// When it ends instead; `TimedOut`.
pub fn wait_until_listening(server: &mut Running, address: SocketAddr) -> io::Result<()> {
    let give_up_at = Instant::now() + START_MAX;
    while TcpStream::connect(address).is_err() {
        if server.has_ended()? {
            return Err(io::Error::other("the server ended at once"));
        }
        if Instant::now() >= give_up_at {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the server does not listen on the address it was given",
            ));
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The place of a program says nothing of what it does.
fn without_directory(command: &str) -> String {
    let names = command.split_whitespace().map(|word| match word.rsplit_once('/') {
        Some((directory, name)) if directory.starts_with('/') => name,
        _ => word,
    });
    names.collect::<Vec<_>>().join(" ")
}

fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

fn filled(command: &[String], address: SocketAddr) -> Vec<String> {
    command.iter().map(|word| word.replace("{addr}", &address.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_load_names_no_place() {
        assert_eq!(without_directory("chrt -f 1 /a/b/load --addr {addr}"), "chrt -f 1 load --addr {addr}");
    }

    #[test]
    fn the_address_goes_where_the_command_wants_it() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7000));
        assert_eq!(filled(&words("server  --addr {addr}"), address), ["server", "--addr", "127.0.0.1:7000"]);
    }
}
