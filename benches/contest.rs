//! What the programs of all tables of servers do alike: each row is a comparison under a load, and then memory is measured.

use std::io;

use clap::Args;
use indicatif::ProgressBar;

use crate::contender::Contender;
use crate::pairs::{Comparison, Contestant, Course};
use crate::progress;
use crate::server_memory::ServerMemory;
use crate::server_use::Counter;

/// How long and where the runs of a table take place: options of its program.
#[derive(Args, Clone, Debug)]
pub struct CourseOptions {
    /// Rounds. With fewer than ten the result is no more than a glance.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// The measured time of a run.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// The time before it.
    #[arg(long, default_value_t = 0.3)]
    warm_up_seconds: f64,
    /// Where.
    #[command(flatten)]
    pub processors: Processors,
}

/// Where the runs take place.
#[derive(Args, Clone, Debug)]
pub struct Processors {
    /// The servers' processor.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The load's processor.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
}

impl CourseOptions {
    /// System calls are counted where they can be.
    pub fn course(&self) -> Course {
        self.processors.course(self.rounds, self.seconds, self.warm_up_seconds)
    }
}

impl Processors {
    /// As [`CourseOptions::course`].
    pub fn course(&self, rounds: u16, seconds: f64, warm_up_seconds: f64) -> Course {
        Course {
            rounds: rounds.into(),
            seconds,
            warm_up_seconds,
            server_cpu: Some(self.server_cpu),
            load_cpu: Some(self.load_cpu),
            syscalls: Counter::find().is_some(),
        }
    }
}

/// A server, and whose it is.
pub type Entrant = (Contender, Contestant);

/// A table being measured.
#[derive(Clone)]
pub struct Contest {
    course: Course,
    bar: ProgressBar,
}

impl Contest {
    /// Which will have so many runs.
    pub fn new(course: Course, runs: usize) -> Contest {
        Contest { course, bar: progress::bar(runs) }
    }

    /// The same table on another course.
    pub fn on(&self, course: Course) -> Contest {
        Contest { course, bar: self.bar.clone() }
    }

    /// One row: who took part, and their runs.
    ///
    /// # Errors
    ///
    /// When a server does not start, or a load fails or takes too long.
    pub fn row(&self, title: &str, load: &str, entrants: &[Entrant]) -> io::Result<(Vec<Contender>, Comparison)> {
        let (contenders, contestants): (Vec<_>, Vec<_>) = entrants.iter().cloned().unzip();
        Ok((contenders, self.compare(title, load, &contestants)?))
    }

    /// One row of servers that are not told apart by their library.
    ///
    /// # Errors
    ///
    /// As [`row`](Contest::row).
    pub fn compare(&self, title: &str, load: &str, contestants: &[Contestant]) -> io::Result<Comparison> {
        let told = format!("{title},");
        Comparison::run(load, contestants, &self.course, |name| progress::step(&self.bar, &told, name))
    }

    /// The memory of a server's connections, of which `load` opens so many and prints the bytes of one.
    ///
    /// # Errors
    ///
    /// As [`row`](Contest::row).
    pub fn memory(&self, (contender, contestant): &Entrant, memory: MemoryRuns<'_>) -> io::Result<ServerMemory> {
        let load = format!("{} --addr {{addr}} --pid {{pid}} --brief", memory.load);
        let load = format!("{load} --connections {} {}", memory.connections, contestant.load_options);
        let mut bytes_each = Vec::new();
        for _ in 0..memory.rounds {
            progress::step(&self.bar, "memory,", &contestant.name);
            let answer = self.course.answer_of(&load, contestant)?;
            bytes_each.push(answer.trim().parse().map_err(io::Error::other)?);
        }
        Ok(ServerMemory { contender: *contender, connections: memory.connections, bytes_each })
    }

    /// All runs are done.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// How memory is measured.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRuns<'a> {
    /// The program that opens the connections, with its own options.
    pub load: &'a str,
    /// How many it opens.
    pub connections: usize,
    /// Runs.
    pub rounds: u16,
}
