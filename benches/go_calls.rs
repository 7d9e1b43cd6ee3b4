//! The client of Go's net/rpc as a load: a program of its own, asked by a line for each thing to do.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::calls::Calls;
use crate::programs;
use crate::window::Found;

/// `go/rpc_load`, with one processor. It ends when its input does, which is when this process ends.
pub struct GoCalls {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What it says after each line.
#[derive(Deserialize)]
struct Said {
    requests: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

impl GoCalls {
    /// No connection yet.
    ///
    /// # Errors
    ///
    /// When the program is not built.
    pub fn new(address: SocketAddr) -> io::Result<GoCalls> {
        let mut child = Command::new(programs::beside("go_rpc_load")?)
            .arg(address.to_string())
            .env("GOMAXPROCS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().expect("stdin was asked to be a pipe");
        let output = BufReader::new(child.stdout.take().expect("stdout was asked to be a pipe"));
        Ok(GoCalls { child, input, output })
    }

    fn ask(&mut self, line: &str) -> io::Result<Said> {
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        serde_json::from_str(&answer).map_err(|_| io::Error::other("the load in Go has failed"))
    }
}

impl Calls for GoCalls {
    fn open(&mut self, connections: usize) -> io::Result<()> {
        self.ask(&format!("open {connections}")).map(drop)
    }

    fn run(&mut self, in_flight: usize, length: Duration) -> io::Result<Found> {
        let said = self.ask(&format!("run {in_flight} {}", length.as_secs_f64()))?;
        Ok(Found {
            requests: said.requests,
            seconds: said.seconds,
            p50_us: said.p50_us,
            p99_us: said.p99_us,
            p999_us: said.p999_us,
        })
    }
}

impl Drop for GoCalls {
    fn drop(&mut self) {
        // Both fail only when the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
