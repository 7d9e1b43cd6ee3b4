//! On what, when and with which versions something was measured.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::programs;

/// What belongs beside every figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Year, month and day, in UTC.
    pub date: String,
    /// Processor, how many of them, kernel.
    pub machine: String,
    /// Compilers and rivals.
    pub versions: String,
    /// What was asked for.
    pub command: String,
    /// Rounds of alternating runs.
    pub rounds: usize,
    /// Runnable processes just before, all programs of the machine together.
    pub load_before: String,
}

impl Facts {
    /// Of this machine, now.
    pub fn now(program: &str, rounds: usize) -> Facts {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Facts {
            date: said_by("date", &["-u", "+%F"]),
            machine: machine(),
            versions: versions(),
            command: format!("{program} {}", arguments().join(" ")).trim_end().to_owned(),
            rounds,
            load_before: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
        }
    }

    /// In one paragraph.
    pub fn text(&self) -> String {
        format!(
            "Measured on {} on {}; {}. `{}`: {} rounds of alternating runs; load average before: {}.",
            self.date, self.machine, self.versions, self.command, self.rounds, self.load_before
        )
    }
}

/// Without the places of files, which change nothing of what is measured.
fn arguments() -> Vec<String> {
    let mut kept = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if ["--json", "--plots"].contains(&argument.as_str()) {
            arguments.next();
        } else {
            kept.push(argument);
        }
    }
    kept
}

fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // What follows the number is the name of the one who built it.
    let version = kernel.trim().split('-').next().unwrap_or_default();
    format!("{count} cores of {}, Linux {version}", model.unwrap_or("an unnamed processor"))
}

fn versions() -> String {
    let mut versions = vec![said_by("rustc", &["--version"])];
    for name in ["tokio", "may", "corosensei", "mio", "rustls", "hyper", "tarpc", "tonic"] {
        versions.extend(locked_version(name).map(|version| format!("{name} {version}")));
    }
    if let Some(go) = programs::go_toolchain() {
        versions.push(said_by(&go.display().to_string(), &["version"]));
    }
    versions.join(", ")
}

/// The version that this program was built with.
fn locked_version(name: &str) -> Option<&'static str> {
    const LOCK: &str = include_str!("../Cargo.lock");
    let entry = LOCK.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"")))?;
    entry.split("version = \"").nth(1)?.split('"').next()
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| format!("{program}: unknown"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
