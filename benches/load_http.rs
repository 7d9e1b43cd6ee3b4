//! How fast does an HTTP server answer, and how late? By `wrk` and `h2load`, in the words of the other loads.

use std::io;

use clap::Parser;
use dhaga_benches::http_load::{HttpLoad, Protocol};
use dhaga_benches::window::Window;

/// Loads an HTTP server by wrk (HTTP/1.1) or h2load (HTTP/2) and reports its rate and latency.
///
/// Both stay on the processor of this program, and run for whole seconds: less is rounded up.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    window: Window,
    /// Which version of HTTP.
    #[arg(long, value_enum, default_value = "http1")]
    protocol: Protocol,
    /// How many connections to open.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Requests at once on each connection, with HTTP/2.
    #[arg(long, default_value_t = 1)]
    streams: usize,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.window.prepare()?;
    let url = format!("http://{}/", options.window.addr);
    let Options { protocol, connections, streams, .. } = options;
    let load = HttpLoad { url, protocol, connections, streams };
    options.window.run_foreign(|seconds| load.run(seconds))
}
