//! Loads of HTTP by the programs that everybody uses: `wrk` for HTTP/1.1, `h2load` for HTTP/2.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::programs;
use crate::spread::quantile;
use crate::window::Found;

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1, a request at a time on each connection.
    Http1,
    /// HTTP/2 without TLS, several requests at a time on each connection.
    Http2,
}

impl Protocol {
    /// The option that names it.
    pub fn option(self) -> &'static str {
        match self {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
        }
    }

    /// The program that loads it, and the package that it lies in.
    pub fn program(self) -> (&'static str, &'static str) {
        match self {
            Protocol::Http1 => ("wrk", "wrk"),
            Protocol::Http2 => ("h2load", "nghttp2-client"),
        }
    }

    /// Whether its program can be run here.
    ///
    /// # Errors
    ///
    /// `NotFound`, with the command that installs it.
    pub fn check_program(self) -> io::Result<()> {
        let (program, _) = self.program();
        Command::new(program).arg("--version").output().map(drop).map_err(|error| self.missing(&error))
    }

    fn missing(self, error: &io::Error) -> io::Error {
        let (program, package) = self.program();
        io::Error::new(error.kind(), format!("{program}: {error}; `apt-get install {package}` brings it"))
    }
}

/// A measured time in which no more than so many connections per second are opened has room for requests as well: wrk opens
/// ten times as many on a machine that is not busy.
const CONNECTIONS_PER_SECOND: usize = 2_000;

/// One load: how many connections, and how many requests at once on each.
#[derive(Clone, Debug)]
pub struct HttpLoad {
    /// Where the server listens.
    pub url: String,
    /// Of HTTP.
    pub protocol: Protocol,
    /// Connections.
    pub connections: usize,
    /// Requests at once on each; always 1 with HTTP/1.1.
    pub streams: usize,
}

impl HttpLoad {
    /// Asks for so long, in whole seconds, one at least: neither program can do with less. With very many connections for
    /// longer, since they are opened within that time.
    ///
    /// # Errors
    ///
    /// `NotFound` when the program is not installed; what it complains of; `InvalidData` when requests failed; `TimedOut`
    /// when nothing was answered.
    pub fn run(&self, seconds: f64) -> io::Result<Found> {
        let seconds = (seconds.ceil().max(1.0) as u64).max((self.connections / CONNECTIONS_PER_SECOND) as u64);
        let found = match self.protocol {
            Protocol::Http1 => self.run_wrk(seconds)?,
            Protocol::Http2 => self.run_h2load(seconds)?,
        };
        if found.requests == 0 {
            let why = format!("nothing was answered within {seconds} s: give it more --seconds");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Ok(found)
    }

    fn run_wrk(&self, seconds: u64) -> io::Result<Found> {
        let script = programs::sources().join("wrk.lua");
        let output = self.output(
            Command::new("wrk")
                .args(["--threads", "1", "--timeout", "10s"])
                .args(["--connections", &self.connections.to_string(), "--duration", &format!("{seconds}s")])
                .arg("--script")
                .arg(script)
                .arg(&self.url),
        )?;
        // Its own report comes first; the last line is the script's.
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        let said: WrkSaid = serde_json::from_str(last).map_err(|_| unreadable(&text))?;
        if said.errors > 0 {
            return Err(unreadable(&text));
        }
        Ok(Found {
            requests: said.requests,
            seconds: said.seconds,
            p50_us: said.p50_us,
            p99_us: said.p99_us,
            p999_us: said.p999_us,
        })
    }

    fn run_h2load(&self, seconds: u64) -> io::Result<Found> {
        let log = RequestLog::new();
        self.output(
            Command::new("h2load")
                .args(["--threads", "1"])
                .args([
                    "--clients",
                    &self.connections.to_string(),
                    "--max-concurrent-streams",
                    &self.streams.to_string(),
                ])
                .args(["--duration", &seconds.to_string()])
                .arg(format!("--log-file={}", log.path.display()))
                .arg(&self.url),
        )?;
        let mut latencies = log.latencies()?;
        latencies.sort_unstable();
        let quantile = |share| quantile(&latencies, share).map_or(f64::NAN, |micros| micros as f64);
        Ok(Found {
            requests: latencies.len() as u64,
            seconds: seconds as f64,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
        })
    }

    fn output(&self, command: &mut Command) -> io::Result<Output> {
        let output = command.output().map_err(|error| self.protocol.missing(&error))?;
        if output.status.success() {
            return Ok(output);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{}: {}", output.status, complaint.trim())))
    }
}

/// What `wrk.lua` prints.
#[derive(Deserialize)]
struct WrkSaid {
    requests: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    errors: u64,
}

/// A line for each request: when it began, its status, and how long it took, with tabs between. Gone when this is dropped.
struct RequestLog {
    path: PathBuf,
}

impl RequestLog {
    fn new() -> RequestLog {
        RequestLog { path: std::env::temp_dir().join(format!("dhaga-h2load-{}", std::process::id())) }
    }

    /// In µs, of all requests, each of which must have been answered with 200.
    fn latencies(&self) -> io::Result<Vec<u64>> {
        let text = std::fs::read_to_string(&self.path)?;
        text.lines().map(|line| latency_of(line).ok_or_else(|| unreadable(line))).collect()
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        // It lies among temporary files, where the system clears what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn latency_of(line: &str) -> Option<u64> {
    let mut fields = line.split('\t');
    let (_, status, latency) = (fields.next()?, fields.next()?, fields.next()?);
    if status == "200" { latency.parse().ok() } else { None }
}

fn unreadable(said: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the load failed, or says what cannot be read: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answered_requests_have_a_latency() {
        assert_eq!(latency_of("1700000000000000\t200\t1234"), Some(1234));
        assert_eq!(latency_of("1700000000000000\t503\t1234"), None);
        assert_eq!(latency_of("1700000000000000\t-1\t1234"), None);
        assert_eq!(latency_of("nonsense"), None);
    }
}
